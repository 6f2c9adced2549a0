"""Masked multi-head attention (figure 1): softmax(Q Kᵀ / √K) V, Vaswani et al. 2017, equation 1.

H query heads share G key/value heads (grouped queries, Ainslie et al. 2023). The T queries are the last T of
the S positions: S > T while decoding with a cache. A prefix stands before them all and every query sees it.
Nothing is projected here: query, key and value come from the decoder's Linears, rotated already.
"""

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from minillm.ops import by_kernel
from minillm.ops.dropout import dropout
from minillm.ops.softmax import softmax
from minillm.shapes import Bool, Float


class Prefix(NamedTuple):
    """One layer's keys and values for P positions before the text, for one row or shared by all of them.

    Without a gate the prefix takes its share of the softmax. With one it is attended to apart and added,
    Attn(text) + tanh(gate) Attn(prefix), so that a gate of 0 is exactly no prefix (Zhang et al. 2023).
    """

    key: Float[Tensor, "#B G P K"]
    value: Float[Tensor, "#B G P K"]
    gate: Float[Tensor, "H"] | None = None


def visible_keys(
    queries: int, keys: int, mask: Bool[Tensor, "B S"] | None, device: torch.device
) -> Bool[Tensor, "#B 1 T S"]:
    """Which key each query sees: real tokens up to itself, and always itself, so that no row is empty."""
    causal = torch.ones(queries, keys, dtype=torch.bool, device=device).tril(keys - queries)
    if mask is None:
        return causal[None, None]
    itself = torch.eye(queries, keys, dtype=torch.bool, device=device).roll(keys - queries, -1)
    return rearrange(causal & mask[:, None] | itself, "B T S -> B 1 T S")


def explicit_attention(
    query: Float[Tensor, "B H T K"],
    key: Float[Tensor, "B G S K"],
    value: Float[Tensor, "B G S K"],
    *,
    mask: Bool[Tensor, "B S"] | None = None,
    prefix: Prefix | None = None,
    dropout_probability: float = 0.0,
) -> tuple[Float[Tensor, "B H T K"], Float[Tensor, "B H T _"]]:
    """The output, and the weights over the (ungated) prefix and the keys, step by step.

    A group's queries are stacked along T, so that the key head they share is read and not copied.
    """
    if prefix is not None and prefix.gate is None:
        key, value, mask = _prepend(prefix, key, value, mask)
    heads, queries, groups = query.shape[1], query.shape[2], key.shape[1]
    stacked = rearrange(query, "B (G group) T K -> B G (group T) K", G=groups)
    scores = rearrange(stacked @ key.mT, "B G (group T) S -> B (G group) T S", T=queries) / math.sqrt(query.shape[-1])
    visible = visible_keys(queries, key.shape[2], mask, query.device)
    weights = softmax(scores.masked_fill(~visible, -torch.inf))
    kept = rearrange(dropout(weights, dropout_probability), "B (G group) T S -> B G (group T) S", G=groups)
    out = rearrange(kept @ value, "B G (group T) K -> B (G group) T K", group=heads // groups)
    if prefix is not None and prefix.gate is not None:
        out = out + _gated(prefix, query)
    return out, weights


def attention(
    query: Float[Tensor, "B H T K"],
    key: Float[Tensor, "B G S K"],
    value: Float[Tensor, "B G S K"],
    *,
    mask: Bool[Tensor, "B S"] | None = None,
    prefix: Prefix | None = None,
    dropout_probability: float = 0.0,
) -> Float[Tensor, "B H T K"]:
    """Causal attention to the prefix and to the real tokens (`mask`) among the keys, by the quickest way there is."""
    if prefix is not None and prefix.gate is not None:
        return _ungated(query, key, value, mask, None, dropout_probability) + _gated(prefix, query)
    return _ungated(query, key, value, mask, prefix, dropout_probability)


def _ungated(
    query: Float[Tensor, "B H T K"],
    key: Float[Tensor, "B G S K"],
    value: Float[Tensor, "B G S K"],
    mask: Bool[Tensor, "B S"] | None,
    prefix: Prefix | None,
    dropout_probability: float,
) -> Float[Tensor, "B H T K"]:
    """By our kernel where it was measured to win, step by step where that is quickest, and else by torch's."""
    if dropout_probability == 0 and by_kernel("attention", query, *_sizes(query, key, mask, prefix)):
        from minillm.kernels import attention as kernels

        return kernels.attention(query, key, value, mask=mask, prefix=prefix)
    if query.device.type == "cpu" and query.dtype == torch.bfloat16:
        # PyTorch's CPU kernel trains slowly in half precision: 9.3 ms at 16 x 40 tokens where this takes 1.0.
        return explicit_attention(
            query, key, value, mask=mask, prefix=prefix, dropout_probability=dropout_probability
        )[0]  # fmt: skip
    if prefix is not None:
        key, value, mask = _prepend(prefix, key, value, mask)
    queries, keys = query.shape[2], key.shape[2]
    square = mask is None and queries == keys
    unmasked = square or (mask is None and queries == 1)
    return F.scaled_dot_product_attention(
        query,
        key,
        value,
        attn_mask=None if unmasked else _rule(query, keys, mask),
        is_causal=square,
        dropout_p=dropout_probability,
        enable_gqa=query.shape[1] != key.shape[1],
    )


def _rule(query: Float[Tensor, "B H T K"], keys: int, mask: Bool[Tensor, "B S"] | None) -> Tensor:
    """Who sees what, as torch is told it; written out where it is not one that a GPU's kernels know by name."""
    queries = query.shape[2]
    if mask is None and query.is_cuda and query.dtype in (torch.bfloat16, torch.float16):
        # Imported here, for it brings torch's compiler along. Flash attention skips what this hides and reads no mask.
        from torch.nn.attention.bias import causal_lower_right

        return causal_lower_right(queries, keys)
    return visible_keys(queries, keys, mask, query.device)


def _sizes(query: Tensor, key: Tensor, mask: Tensor | None, prefix: Prefix | None) -> tuple[int, ...]:
    """What attention's speed depends on: how many heads of how many queries and keys, their width, prefix and mask."""
    heads, prompt = query.shape[:2].numel(), 0 if prefix is None else prefix.key.shape[2]
    return heads, query.shape[2], key.shape[2], query.shape[3], prompt, 0 if mask is None else mask.numel()


def _prepend(prefix: Prefix, key: Tensor, value: Tensor, mask: Tensor | None):
    """The prefix as the first P of the keys; the causal rule, aligned at the end, shows it to every query.

    A prefix in float32 before half-precision text is rounded to it, and its slopes are summed over the rows in float32.
    """
    before = (side.expand(key.shape[0], -1, -1, -1).to(key.dtype) for side in (prefix.key, prefix.value))
    key, value = (torch.cat(both, 2) for both in zip(before, (key, value), strict=True))
    if mask is not None:
        mask = F.pad(mask, (prefix.key.shape[2], 0), value=True)
    return key, value, mask


def _gated(prefix: Prefix, query: Float[Tensor, "B H T K"]) -> Float[Tensor, "B H T K"]:
    """tanh(gate) Attn(prefix): the prefix attended to by itself."""
    assert prefix.gate is not None
    rows, heads = query.shape[:2]
    key, value = (side.expand(rows, -1, -1, -1).to(query.dtype) for side in (prefix.key, prefix.value))
    read = F.scaled_dot_product_attention(query, key, value, enable_gqa=heads != key.shape[1])
    return rearrange(prefix.gate.tanh(), "H -> H 1 1").to(query.dtype) * read
