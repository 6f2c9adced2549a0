"""Masked multi-head attention (figure 1): softmax(Q Kᵀ / √K) V, Vaswani et al. 2017, equation 1.

H query heads share G key/value heads (grouped-query attention, Ainslie et al. 2023). The T queries are the last T of
the S positions: S > T when decoding with a cache. A prefix precedes them, and every query attends to it. Nothing is
projected here: query, key and value come from the decoder's linear layers, already rotated.
"""

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from minillm.ops.dropout import dropout
from minillm.ops.positions import PREFIX, same_conversation
from minillm.ops.softmax import softmax
from minillm.shapes import Bool, Float, Mask


class Prefix(NamedTuple):
    """One layer's keys and values for P positions before the text, for each row or shared by all rows.

    Without a gate the prefix takes its share of the softmax. With one it is attended to separately and added,
    Attn(text) + tanh(gate) Attn(prefix), so that a gate of 0 is exactly no prefix (Zhang et al. 2023). A sliding window
    passes over a `windowed` prefix as over the tokens of a prompt; any other prefix stays visible.
    """

    key: Float[Tensor, "#B G P K"]
    value: Float[Tensor, "#B G P K"]
    gate: Float[Tensor, "H"] | None = None
    windowed: bool = False


def attention(
    query: Float[Tensor, "B H T K"], key: Float[Tensor, "B G S K"], value: Float[Tensor, "B G S K"], *,
    mask: Mask[Tensor, "B S"] | None = None, prefix: Prefix | None = None, window: int | None = None,
    dropout_probability: float = 0.0,
) -> Float[Tensor, "B H T K"]:  # fmt: skip
    """Causal attention to the prefix and to the real tokens (`mask`), the last `window` of them, among the keys."""
    if prefix is not None and prefix.gate is not None:
        text = attention(query, key, value, mask=mask, window=window, dropout_probability=dropout_probability)
        return text + gated(prefix, query)
    if prefix is not None:
        key, value, mask = prepend(prefix, key, value, mask)
    visible = visible_keys(query.shape[2], key.shape[2], mask, query.device, window, always_visible(prefix))
    weights = dropout(attention_weights(query, key, visible), dropout_probability)
    return weights @ for_each_head(value, query.shape[1])


def attention_weights(
    query: Float[Tensor, "B H T K"], key: Float[Tensor, "B G S K"], visible: Bool[Tensor, "#B 1 T S"] | None
) -> Float[Tensor, "B H T S"]:
    """softmax(Q Kᵀ / √K) over the keys that each query may attend to; None: all of them."""
    scores = query @ for_each_head(key, query.shape[1]).mT / math.sqrt(query.shape[-1])
    return softmax(scores if visible is None else scores.masked_fill(~visible, -torch.inf))


def visible_keys(
    queries: int, keys: int, mask: Mask[Tensor, "B S"] | None, device: torch.device, window: int | None = None,
    always: int = 0,
) -> Bool[Tensor, "#B 1 T S"]:  # fmt: skip
    """The keys that each query attends to: real tokens up to its own position, and its own always: no row is empty.

    With a `window`, only the last so many real tokens (Jiang et al. 2023), and the first `always` keys. In packed rows,
    the tokens of the query's conversation and the prefix.
    """
    packed = None if mask is None or mask.dtype == torch.bool else same_conversation(mask)
    causal = torch.ones(queries, keys, dtype=torch.bool, device=device).tril(keys - queries)[None]
    if window is not None:
        place = torch.arange(keys, device=device)[None] if mask is None else mask.cumsum(-1)
        place = place if packed is None else packed.tril().sum(-1)
        near = place[:, keys - queries :, None] - place[:, None] < window
        near[..., :always] = True
        causal = causal & near
    if mask is None:
        return causal[:, None]
    if packed is not None:
        return (causal & packed[:, keys - queries :])[:, None]
    itself = torch.eye(queries, keys, dtype=torch.bool, device=device).roll(keys - queries, -1)
    return rearrange(causal & mask[:, None] | itself, "B T S -> B 1 T S")


def always_visible(prefix: Prefix | None) -> int:
    """The length of a prefix that no window passes over."""
    return 0 if prefix is None or prefix.windowed else prefix.key.shape[2]


def for_each_head(side: Float[Tensor, "B G S K"], heads: int) -> Float[Tensor, "B H S K"]:
    """Query head h uses key/value head h // (H / G)."""
    return side.repeat_interleave(heads // side.shape[1], 1)


def prepend(
    prefix: Prefix, key: Float[Tensor, "B G S K"], value: Float[Tensor, "B G S K"], mask: Mask[Tensor, "B S"] | None
) -> tuple[Tensor, Tensor, Tensor | None]:
    """The prefix as the first P keys; the causal mask, aligned at the end, lets every query attend to it.

    A float32 prefix is rounded to the dtype of the text; its gradient is summed over the rows in float32.
    """
    before = (side.expand(key.shape[0], -1, -1, -1).to(key.dtype) for side in (prefix.key, prefix.value))
    key, value = (torch.cat(both, 2) for both in zip(before, (key, value), strict=True))
    return key, value, None if mask is None else F.pad(mask, (prefix.key.shape[2], 0), value=PREFIX)


def gated(prefix: Prefix, query: Float[Tensor, "B H T K"]) -> Float[Tensor, "B H T K"]:
    """tanh(gate) Attn(prefix): attention to the prefix alone."""
    assert prefix.gate is not None
    key, value = (side.expand(query.shape[0], -1, -1, -1).to(query.dtype) for side in (prefix.key, prefix.value))
    attended = attention_weights(query, key, None) @ for_each_head(value, query.shape[1])
    return rearrange(prefix.gate.tanh(), "H -> H 1 1").to(query.dtype) * attended
