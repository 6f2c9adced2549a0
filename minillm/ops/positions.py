"""Positional encoding (figure 1): sinusoidal vectors added to the embeddings, or rotations of queries and keys in every
layer. (Learned positions are an embedding.) Positions count the real tokens of a row, starting at the prompt's length.
"""

import torch
from torch import Tensor

from minillm.shapes import Bool, Float, Int


def token_positions(mask: Bool[Tensor, "B S"], start: int) -> Int[Tensor, "B S"]:
    """Positions of real tokens: start, start + 1, ..., on whichever side the padding is. Its positions are not used."""
    return start + (mask.long().cumsum(-1) - 1).clamp(min=0)


def _angles(
    positions: Int[Tensor, "*B T"], width: int, theta: float, dtype: torch.dtype
) -> Float[Tensor, "*B T {width}//2"]:
    """positions · theta^(-2i / width) for i = 0 ... width/2 - 1, in float32 at least."""
    wide = torch.promote_types(dtype, torch.float32)
    pairs = torch.arange(0, width, 2, device=positions.device, dtype=wide)
    return positions[..., None].to(wide) * theta ** (-pairs / width)


def sinusoidal(positions: Int[Tensor, "*B T"], width: int, dtype: torch.dtype) -> Float[Tensor, "*B T {width}"]:
    """sin at even indices, cos at odd ones (Vaswani et al. 2017, section 3.5; theta is 10,000)."""
    angles = _angles(positions, width, 10_000.0, dtype)
    return torch.stack((angles.sin(), angles.cos()), -1).flatten(-2).to(dtype)


def rotary_tables(
    positions: Int[Tensor, "*B T"], head_width: int, theta: float, dtype: torch.dtype
) -> tuple[Float[Tensor, "*B T {head_width}//2"], Float[Tensor, "*B T {head_width}//2"]]:
    """(cos, sin) of the angles of each position, one per pair, shared by all layers and heads."""
    angles = _angles(positions, head_width, theta, dtype)
    return angles.cos().to(dtype), angles.sin().to(dtype)


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
