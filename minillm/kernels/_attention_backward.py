"""The backward kernels of attention: one for the gradient of the queries, one for those of keys and values.

Each recomputes the attention weights that it needs from the scores and log₂ Σ 2^score. No two programs write to the
same address.
"""

import math

import triton
import triton.language as tl

from minillm.kernels._attention_tiles import load, program_of, scores_of, store
from minillm.kernels._interpreter import EXACT

LN_2 = tl.constexpr(math.log(2))
"""The kernels use scores as exponents of 2, while the gradients are with respect to exponents of e."""


@triton.jit
def _queries_gradient(
    dq, q, dout, log_sum, delta, key, value, mask, b, g, whole, end, keys, last, scale,
    WIDTH: tl.constexpr, BLOCK_S: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """Adds to dQ, without the factor 1 / √K, the terms of the keys up to `end`."""
    for edge in tl.static_range(2):
        for first in range(whole * edge, end if edge else whole, BLOCK_S):
            k = load(key, b, g, first, keys, BLOCK_S, 1, WIDTH, BLOCK_K, edge)
            v = load(value, b, g, first, keys, BLOCK_S, 1, WIDTH, BLOCK_K, edge)
            scores = scores_of(q, k, mask, b, first + tl.arange(0, BLOCK_S), keys, last, edge)
            weights = tl.exp2(scores * scale - log_sum[:, None])
            dscores = weights * (tl.dot(dout, tl.trans(v), input_precision=EXACT) - delta[:, None])
            dq = tl.dot(dscores.to(k.dtype), k, dq, input_precision=EXACT)
    return dq


@triton.jit
def queries_kernel(
    query, key, value, mask, prefix_key, prefix_value, out, dout, log_sum, delta, dquery,
    groups, queries, keys, prompt, scale,
    GROUP: tl.constexpr, WIDTH: tl.constexpr, BLOCK_T: tl.constexpr, BLOCK_S: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """dQ, and δ of each query for the kernel that runs after this one."""
    b, g, start, own, whole, end = program_of(groups, queries, keys, GROUP, BLOCK_T, BLOCK_S)
    rows = queries * GROUP
    q = load(query, b, g, start, rows, BLOCK_T, GROUP, WIDTH, BLOCK_K)
    do = load(dout, b, g, start, rows, BLOCK_T, GROUP, WIDTH, BLOCK_K)
    o = load(out, b, g, start, rows, BLOCK_T, GROUP, WIDTH, BLOCK_K)
    row = start + tl.arange(0, BLOCK_T)
    own_delta = tl.sum(do.to(tl.float32) * o.to(tl.float32), 1)
    place = (b * groups + g).to(tl.int64) * rows + row
    tl.store(delta + place, own_delta, mask=row < rows)
    sums = tl.load(log_sum + place, mask=row < rows, other=float("inf"))
    dq = tl.zeros((BLOCK_T, BLOCK_K), tl.float32)
    if prefix_key is not None:
        dq = _queries_gradient(
            dq, q, do, sums, own_delta, prefix_key, prefix_value, None, b, g, prompt // BLOCK_S * BLOCK_S, prompt,
            prompt, tl.full((BLOCK_T,), prompt - 1, tl.int32), scale, WIDTH, BLOCK_S, BLOCK_K,
        )  # fmt: skip
    dq = _queries_gradient(
        dq, q, do, sums, own_delta, key, value, mask, b, g, whole, end, keys, own, scale, WIDTH, BLOCK_S, BLOCK_K
    )  # fmt: skip
    store(dquery, b, g, start, rows, dq * (scale * LN_2), BLOCK_T, GROUP, WIDTH, BLOCK_K)


@triton.jit
def _keys_gradient(
    dk, dv, k, v, query, dout, log_sum, delta, real, position, b, g, groups, start, end, tiles, queries, ahead, scale,
    EDGE: tl.constexpr, GROUP: tl.constexpr, WIDTH: tl.constexpr, BLOCK_T: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """Adds the terms of query tiles start to end, from row b on, to dV and to dK (without the factor 1 / √K)."""
    rows = queries * GROUP
    for step in range(start, end):
        at, first = b + step // tiles, step % tiles * BLOCK_T
        q = load(query, at, g, first, rows, BLOCK_T, GROUP, WIDTH, BLOCK_K)
        do = load(dout, at, g, first, rows, BLOCK_T, GROUP, WIDTH, BLOCK_K)
        row = first + tl.arange(0, BLOCK_T)
        place = (at * groups + g).to(tl.int64) * rows + row
        sums = tl.load(log_sum + place, mask=row < rows, other=float("inf"))
        own_delta = tl.load(delta + place, mask=row < rows, other=0.0)
        weights = tl.exp2(tl.dot(k, tl.trans(q), input_precision=EXACT) * scale - sums[None, :])
        if EDGE:
            own = row // GROUP + ahead
            earlier = (position[:, None] < own[None, :]) & real[:, None]
            weights = tl.where(earlier | (position[:, None] == own[None, :]), weights, 0.0)
        dv = tl.dot(weights.to(do.dtype), do, dv, input_precision=EXACT)
        dscores = weights * (tl.dot(v, tl.trans(do), input_precision=EXACT) - own_delta[None, :])
        dk = tl.dot(dscores.to(q.dtype), q, dk, input_precision=EXACT)
    return dk, dv


@triton.jit
def keys_kernel(
    query, key, value, mask, dout, log_sum, delta, dkey, dvalue, batch, groups, queries, keys, stripes, scale,
    CAUSAL: tl.constexpr, GROUP: tl.constexpr, WIDTH: tl.constexpr,
    BLOCK_T: tl.constexpr, BLOCK_S: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """dK and dV: of the text, or of a prefix that `batch` rows share, from one stripe of their tiles of queries."""
    blocks, tiles = tl.cdiv(keys, BLOCK_S), tl.cdiv(queries * GROUP, BLOCK_T)
    first, head = tl.program_id(0) % blocks * BLOCK_S, tl.program_id(0) // blocks
    g, part = head % groups, head // groups
    owner, position, ahead = part // stripes, first + tl.arange(0, BLOCK_S), keys - queries
    b = owner * batch
    k = load(key, owner, g, first, keys, BLOCK_S, 1, WIDTH, BLOCK_K)
    v = load(value, owner, g, first, keys, BLOCK_S, 1, WIDTH, BLOCK_K)
    dk = tl.zeros((BLOCK_S, BLOCK_K), tl.float32)
    dv = tl.zeros((BLOCK_S, BLOCK_K), tl.float32)
    real = position < keys
    if CAUSAL:
        diagonal = tl.maximum(first - ahead, 0) * GROUP // BLOCK_T
        start = tl.minimum(tl.cdiv(tl.maximum(first + BLOCK_S - ahead, 0) * GROUP, BLOCK_T), tiles)
        end = tiles
    else:
        diagonal, stripe = 0, tl.cdiv(batch * tiles, stripes)
        start = part % stripes * stripe
        end = tl.minimum(start + stripe, batch * tiles)
    # First the queries after all of these keys, which need no causal mask; the gradients of padding are set to 0.
    dk, dv = _keys_gradient(
        dk, dv, k, v, query, dout, log_sum, delta, real, position, b, g, groups, start, end, tiles, queries, ahead,
        scale, False, GROUP, WIDTH, BLOCK_T, BLOCK_K,
    )  # fmt: skip
    if mask is not None:
        real = tl.load(mask + b.to(tl.int64) * keys + position, mask=real, other=0) != 0
        dk, dv = tl.where(real[:, None], dk, 0.0), tl.where(real[:, None], dv, 0.0)
    if CAUSAL:
        dk, dv = _keys_gradient(
            dk, dv, k, v, query, dout, log_sum, delta, real, position, b, g, groups, diagonal, start, tiles, queries,
            ahead, scale, True, GROUP, WIDTH, BLOCK_T, BLOCK_K,
        )  # fmt: skip
    store(dkey, part, g, first, keys, dk * (scale * LN_2), BLOCK_S, 1, WIDTH, BLOCK_K)
    store(dvalue, part, g, first, keys, dv, BLOCK_S, 1, WIDTH, BLOCK_K)
