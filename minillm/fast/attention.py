"""Attention by torch's fused kernels, and by separate operations where those are slow: in bfloat16 on a CPU.

Forward and backward of PyTorch's CPU kernel take 9.3 ms in half precision for 16 x 40 tokens, `_in_groups` 1.0 ms.
"""

import math

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from minillm.ops.attention import Prefix, always_visible, prepend, visible_keys
from minillm.ops.dropout import dropout
from minillm.ops.softmax import softmax


def attention(
    query: Tensor, key: Tensor, value: Tensor, *, mask: Tensor | None = None, prefix: Prefix | None = None,
    window: int | None = None, dropout_probability: float = 0.0,
) -> Tensor:  # fmt: skip
    if prefix is not None and prefix.gate is not None:
        text = attention(query, key, value, mask=mask, window=window, dropout_probability=dropout_probability)
        return text + gated(prefix, query)
    always = always_visible(prefix)
    if prefix is not None:
        key, value, mask = prepend(prefix, key, value, mask)
    queries, keys = query.shape[2], key.shape[2]
    window = None if window is None or keys - always <= window else window
    if query.device.type == "cpu" and query.dtype == torch.bfloat16:
        visible = visible_keys(queries, keys, mask, query.device, window, always)
        return _in_groups(query, key, value, visible, dropout_probability)
    square = mask is None and window is None and queries == keys
    unmasked = square or (mask is None and window is None and queries == 1)
    return F.scaled_dot_product_attention(
        query, key, value, attn_mask=None if unmasked else _mask(query, keys, mask, window, always), is_causal=square,
        dropout_p=dropout_probability, enable_gqa=query.shape[1] != key.shape[1],
    )  # fmt: skip


def gated(prefix: Prefix, query: Tensor) -> Tensor:
    assert prefix.gate is not None
    rows, heads = query.shape[:2]
    key, value = (side.expand(rows, -1, -1, -1).to(query.dtype) for side in (prefix.key, prefix.value))
    attended = F.scaled_dot_product_attention(query, key, value, enable_gqa=heads != key.shape[1])
    return rearrange(prefix.gate.tanh(), "H -> H 1 1").to(query.dtype) * attended


def _in_groups(query: Tensor, key: Tensor, value: Tensor, visible: Tensor, dropout_probability: float) -> Tensor:
    """The formula, with the queries of a group stacked along T, so that their shared key head is not copied."""
    heads, queries, groups = query.shape[1], query.shape[2], key.shape[1]
    stacked = rearrange(query, "B (G group) T K -> B G (group T) K", G=groups)
    scores = rearrange(stacked @ key.mT, "B G (group T) S -> B (G group) T S", T=queries) / math.sqrt(query.shape[-1])
    weights = dropout(softmax(scores.masked_fill(~visible, -torch.inf)), dropout_probability)
    by_group = rearrange(weights, "B (G group) T S -> B G (group T) S", G=groups)
    return rearrange(by_group @ value, "B G (group T) K -> B (G group) T K", group=heads // groups)


def _mask(query: Tensor, keys: int, mask: Tensor | None, window: int | None, always: int) -> Tensor:
    """The visible keys: a Boolean array, or a causal bias that the kernels of a GPU support without one."""
    queries = query.shape[2]
    if mask is None and window is None and query.is_cuda and query.dtype in (torch.bfloat16, torch.float16):
        # Imported here, because it imports torch's compiler. Flash attention skips masked keys and needs no array.
        from torch.nn.attention.bias import causal_lower_right

        return causal_lower_right(queries, keys)
    return visible_keys(queries, keys, mask, query.device, window, always)
