"""Attention by torch's fused kernels, and step by step where those are slow: in bfloat16 on a CPU.

PyTorch's CPU kernel trains slowly in half precision: 9.3 ms at 16 x 40 tokens where `_in_groups` takes 1.0.
"""

import math

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from minillm.ops.attention import Prefix, prepend, visible_keys
from minillm.ops.dropout import dropout
from minillm.ops.softmax import softmax
from minillm.shapes import Bool, Float


def attention(
    query: Float[Tensor, "B H T K"],
    key: Float[Tensor, "B G S K"],
    value: Float[Tensor, "B G S K"],
    *,
    mask: Bool[Tensor, "B S"] | None = None,
    prefix: Prefix | None = None,
    dropout_probability: float = 0.0,
) -> Float[Tensor, "B H T K"]:
    """Causal attention to the prefix and to the real tokens (`mask`) among the keys."""
    if prefix is not None and prefix.gate is not None:
        text = attention(query, key, value, mask=mask, dropout_probability=dropout_probability)
        return text + gated(prefix, query)
    if prefix is not None:
        key, value, mask = prepend(prefix, key, value, mask)
    if query.device.type == "cpu" and query.dtype == torch.bfloat16:
        return _in_groups(query, key, value, mask, dropout_probability)
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


def gated(prefix: Prefix, query: Float[Tensor, "B H T K"]) -> Float[Tensor, "B H T K"]:
    """tanh(gate) Attn(prefix): the prefix attended to by itself."""
    assert prefix.gate is not None
    rows, heads = query.shape[:2]
    key, value = (side.expand(rows, -1, -1, -1).to(query.dtype) for side in (prefix.key, prefix.value))
    attended = F.scaled_dot_product_attention(query, key, value, enable_gqa=heads != key.shape[1])
    return rearrange(prefix.gate.tanh(), "H -> H 1 1").to(query.dtype) * attended


def _in_groups(
    query: Float[Tensor, "B H T K"],
    key: Float[Tensor, "B G S K"],
    value: Float[Tensor, "B G S K"],
    mask: Bool[Tensor, "B S"] | None,
    dropout_probability: float,
) -> Float[Tensor, "B H T K"]:
    """The formula, with a group's queries stacked along T so that the key head they share is not copied."""
    heads, queries, groups = query.shape[1], query.shape[2], key.shape[1]
    stacked = rearrange(query, "B (G group) T K -> B G (group T) K", G=groups)
    scores = rearrange(stacked @ key.mT, "B G (group T) S -> B (G group) T S", T=queries) / math.sqrt(query.shape[-1])
    visible = visible_keys(queries, key.shape[2], mask, query.device)
    weights = dropout(softmax(scores.masked_fill(~visible, -torch.inf)), dropout_probability)
    by_group = rearrange(weights, "B (G group) T S -> B G (group T) S", G=groups)
    return rearrange(by_group @ value, "B G (group T) K -> B (G group) T K", group=heads // groups)


def _rule(query: Float[Tensor, "B H T K"], keys: int, mask: Bool[Tensor, "B S"] | None) -> Tensor:
    """Which keys are visible; as an array where the rule is not one that a GPU's kernels know by name."""
    queries = query.shape[2]
    if mask is None and query.is_cuda and query.dtype in (torch.bfloat16, torch.float16):
        # Imported here, for it brings torch's compiler along. Flash attention skips hidden keys and needs no mask.
        from torch.nn.attention.bias import causal_lower_right

        return causal_lower_right(queries, keys)
    return visible_keys(queries, keys, mask, query.device)
