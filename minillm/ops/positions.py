"""Positional encoding (figure 1): sinusoidal vectors added to the embeddings, or rotations of queries and keys in every
layer. (Learned positions are an embedding.) Positions count the real tokens of a row, starting at the prompt's length;
in a packed row those of each conversation.
"""

import math

import torch
from torch import Tensor

from minillm.config import RopeScaling
from minillm.shapes import Bool, Float, Int, Mask

PREFIX = -1  # a prefix in the mask of packed rows: every conversation attends to it. As Bool it is True


def token_positions(mask: Mask[Tensor, "B S"], start: int) -> Int[Tensor, "B S"]:
    """Positions of real tokens: start, start + 1, ..., on whichever side the padding is. Its positions are not used."""
    if mask.dtype == torch.bool:
        return start + (mask.long().cumsum(-1) - 1).clamp(min=0)
    return start + same_conversation(mask).tril().sum(-1) - 1


def same_conversation(mask: Int[Tensor, "B S"]) -> Bool[Tensor, "B S S"]:
    """Whether a token (second axis) and a key (third) of a packed row share a conversation, or the key is a prefix."""
    return (mask[:, :, None] == mask[:, None]) | (mask[:, None] == PREFIX)


def _angles(
    positions: Int[Tensor, "*B T"], width: int, theta: float, dtype: torch.dtype, scaling: RopeScaling | None = None
) -> Float[Tensor, "*B T {width}//2"]:
    """positions · theta^(-2i / width) for i = 0 ... width/2 - 1, in float32 at least; scaled frequencies are lower."""
    wide = torch.promote_types(dtype, torch.float32)
    pairs = torch.arange(0, width, 2, device=positions.device, dtype=wide)
    frequencies = theta ** (-pairs / width)
    if scaling is not None:
        share = unscaled_share(frequencies, theta, scaling)
        frequencies = frequencies * (share + (1 - share) / scaling.factor)
    return positions[..., None].to(wide) * frequencies


def unscaled_share(frequencies: Float[Tensor, "_"], theta: float, scaling: RopeScaling) -> Float[Tensor, "_"]:
    """1 for a pair whose frequency is not scaled, 0 for one whose frequency is divided by the factor.

    A frequency of f radians per token turns f original_context / 2π times. Llama 3.1 interpolates in this number, YaRN
    in the index of the pair (its authors' code, with rounded ends).
    """
    if scaling.kind == "linear":
        return torch.zeros_like(frequencies)
    if scaling.kind == "llama3":
        turns = frequencies * scaling.original_context / (2 * math.pi)
        return ((turns - scaling.slow) / (scaling.fast - scaling.slow)).clamp(0, 1)
    pairs = len(frequencies)

    def pair_that_turns(times: float) -> float:
        return pairs * math.log(scaling.original_context / (2 * math.pi * times)) / math.log(theta)

    first = max(math.floor(pair_that_turns(scaling.fast)), 0)
    last = min(math.ceil(pair_that_turns(scaling.slow)), 2 * pairs - 1)
    index = torch.arange(pairs, device=frequencies.device, dtype=frequencies.dtype)
    return ((last - index) / max(last - first, 0.001)).clamp(0, 1)


def sinusoidal(positions: Int[Tensor, "*B T"], width: int, dtype: torch.dtype) -> Float[Tensor, "*B T {width}"]:
    """sin at even indices, cos at odd ones (Vaswani et al. 2017, section 3.5; theta is 10,000)."""
    angles = _angles(positions, width, 10_000.0, dtype)
    return torch.stack((angles.sin(), angles.cos()), -1).flatten(-2).to(dtype)


def rotary_tables(
    positions: Int[Tensor, "*B T"], head_width: int, theta: float, dtype: torch.dtype,
    scaling: RopeScaling | None = None,
) -> tuple[Float[Tensor, "*B T {head_width}//2"], Float[Tensor, "*B T {head_width}//2"]]:  # fmt: skip
    """(cos, sin) of the angles of each position, one per pair, shared by all layers and heads; times YaRN's factor."""
    angles = _angles(positions, head_width, theta, dtype, scaling)
    factor = 1.0 if scaling is None else scaling.attention_factor
    return (factor * angles.cos()).to(dtype), (factor * angles.sin()).to(dtype)


def rotary(
    vectors: Float[Tensor, "B H T K"], cos: Float[Tensor, "*B T K//2"], sin: Float[Tensor, "*B T K//2"]
) -> Float[Tensor, "B H T K"]:
    """Rotate the pair (x[i], x[i + K/2]) by the angle of its position (Su et al. 2021, equation 34).

    Pairing the two halves of a head is the layout of Llama checkpoints on Hugging Face. The paper and GGUF files pair
    adjacent elements, which is the same up to the order of the elements. Where the tables have a wider dtype than the
    vectors (autocast), the rotation is computed in the wider one.
    """
    cos, sin = cos.unsqueeze(-3), sin.unsqueeze(-3)
    first, second = vectors.chunk(2, -1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), -1).to(vectors.dtype)
