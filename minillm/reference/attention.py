"""Masked multi-head attention (figure 1), between its Linears: Vaswani et al. 2017, equation 1.

    A = softmax(Q Kᵀ / √K),  out = A V        for each head; masked keys have a score of -∞

The T queries are the last T of S positions. H query heads share G key/value heads: head h uses head h // (H / G). With
a window W, a query attends to the last W real tokens only (Jiang et al. 2023). The keys and values of a prefix precede
all others, and every query attends to them, unless it is `windowed`, a prompt. A gated prefix has a softmax of its own
and is added: out + tanh(g) out_prefix, with one number g per head (Zhang et al. 2023).

Gradient, from the output back to the inputs, with dA = dout Vᵀ and dZ from the softmax of the scores Z:

    dV = Aᵀ dout        dQ = dZ K / √K        dK = dZᵀ Q / √K        dg = (1 - tanh² g) Σ dout out_prefix

The gradient of a shared head is the sum over the query heads that use it, and that of a shared prefix the sum over
the rows. A masked key has A = 0, so dZ = 0, and its gradient is 0.
"""

from typing import Any, NamedTuple

import numpy as np

from minillm.reference.positions import PREFIX, same_conversation
from minillm.reference.softmax import softmax_backward, softmax_forward


class Prefix(NamedTuple):
    """Keys and values for P positions, for each row of the batch or one for all; and the gate of each head."""

    key: Any
    value: Any
    gate: Any = None
    windowed: bool = False


def visible_keys(queries, keys, mask=None, window=None, always=0):
    """Real tokens up to the query's own position, in packed rows of its conversation; its own, so that there is one."""
    key_S, own_S1 = np.arange(keys), np.arange(keys)[:, None]
    mask_BS = np.ones((1, keys), bool) if mask is None else mask
    real_BSS = mask_BS[:, None] if mask_BS.dtype == bool else same_conversation(mask_BS)
    before_BSS = real_BSS & (key_S <= own_S1)
    place_BS = before_BSS.sum(-1)
    near_BSS = place_BS[:, :, None] - place_BS[:, None] < (window or keys)
    return (before_BSS & (near_BSS | (key_S < always)) | (key_S == own_S1))[:, None, keys - queries :]


def attention_weights_forward(query, key, visible):
    key_BHSK = np.repeat(key, query.shape[1] // key.shape[1], 1)
    root = np.sqrt(query.shape[-1])
    scores_BHTS = query @ key_BHSK.swapaxes(-1, -2) / root
    weights_BHTS, softmax = softmax_forward(np.where(visible, scores_BHTS, -np.inf))
    return weights_BHTS, (query, key_BHSK, key.shape[1], root, softmax)


def attention_weights_backward(dout, cache):
    query_BHTK, key_BHSK, groups, root, softmax = cache
    dscores_BHTS = softmax_backward(dout, softmax)["scores"] / root
    dkey_BHSK = dscores_BHTS.swapaxes(-1, -2) @ query_BHTK
    return {"query": dscores_BHTS @ key_BHSK, "key": _over_shared_heads(dkey_BHSK, groups)}


def attention_forward(query, key, value, *, mask=None, prefix=None, window=None):
    rows, always, before = len(query), 0, []
    if prefix is not None:
        before = [np.broadcast_to(side, (rows, *side.shape[1:])) for side in (prefix.key, prefix.value)]
        if prefix.gate is None:
            key, value = (np.concatenate(sides, 2) for sides in zip(before, (key, value), strict=True))
            length = prefix.key.shape[2]
            mask = None if mask is None else np.concatenate((np.full((rows, length), PREFIX, mask.dtype), mask), 1)
            always = 0 if prefix.windowed else length
    visible = visible_keys(query.shape[2], key.shape[2], mask, window, always)
    out_BHTK, attended = _attend_forward(query, key, value, visible)
    if prefix is None or prefix.gate is None:
        return out_BHTK, (attended, None, prefix)
    from_prefix_BHTK, attended_prefix = _attend_forward(query, *before, visible=True)
    gate_H11 = np.tanh(prefix.gate)[:, None, None]
    return out_BHTK + gate_H11 * from_prefix_BHTK, (attended, (from_prefix_BHTK, gate_H11, attended_prefix), prefix)


def attention_backward(dout, cache):
    attended, gated, prefix = cache
    gradients = _attend_backward(dout, attended)
    if prefix is None:
        return gradients
    if gated is None:
        length = prefix.key.shape[2]
        sides = gradients["key"], gradients["value"]
        (dprefix_key, dkey), (dprefix_value, dvalue) = (np.split(side, [length], 2) for side in sides)
        gradients |= {"key": dkey, "value": dvalue}
        dgate_H = None
    else:
        from_prefix_BHTK, gate_H11, attended_prefix = gated
        through = _attend_backward(dout * gate_H11, attended_prefix)
        gradients["query"] = gradients["query"] + through["query"]
        dprefix_key, dprefix_value = through["key"], through["value"]
        dgate_H = (1 - gate_H11[:, 0, 0] ** 2) * (dout * from_prefix_BHTK).sum((0, 2, 3))
    rows = len(prefix.key)
    shared = Prefix(_over_shared_rows(dprefix_key, rows), _over_shared_rows(dprefix_value, rows), dgate_H)
    return gradients | {"prefix": shared}


def _attend_forward(query, key, value, visible):
    weights_BHTS, scored = attention_weights_forward(query, key, visible)
    value_BHSK = np.repeat(value, query.shape[1] // value.shape[1], 1)
    return weights_BHTS @ value_BHSK, (weights_BHTS, value_BHSK, value.shape[1], scored)


def _attend_backward(dout_BHTK, cache):
    weights_BHTS, value_BHSK, groups, scored = cache
    gradients = attention_weights_backward(dout_BHTK @ value_BHSK.swapaxes(-1, -2), scored)
    dvalue_BHSK = weights_BHTS.swapaxes(-1, -2) @ dout_BHTK
    return gradients | {"value": _over_shared_heads(dvalue_BHSK, groups)}


def _over_shared_heads(gradient_BHSK, groups):
    batch, heads, keys, width = gradient_BHSK.shape
    return gradient_BHSK.reshape(batch, groups, heads // groups, keys, width).sum(2)


def _over_shared_rows(gradient_BGPK, rows):
    return gradient_BGPK.sum(0, keepdims=True) if rows == 1 else gradient_BGPK
