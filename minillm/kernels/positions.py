"""Rotary positions: every pair (x_i, x_i+K/2) of a head is rotated by the angle of its token, forward and backward.

A rotation costs memory traffic: 6 FLOPs per pair, for a read and a write of each element. Bytes per element, bfloat16:

    version                                            bytes            launches
    naive: torch, four products, two sums, a cat       18               7
    the same with tables in float32 (autocast)         38               8
    fused: a pair stays in registers                    4               1

plus the tables, once per token for all of its heads: the heads of a token are adjacent in memory, a program works on
several of them, and the rows of the tables come from its cache. Vectors are read by their strides and written in the
same order, so that heads split from the output of a Linear are not copied.

The gradient is the inverse rotation, the same kernel with the other sign. The tables are computed from integers and
get no gradient; `operations` uses torch for a table that needs one. On paper this takes 4 / 18 of torch's time, at the
bandwidth of a copy.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

BLOCK_NUMBERS = 1024
"""Pairs that a program rotates: eight per thread."""


@triton.jit
def _rotary_kernel(
    vectors, cos, sin, out, rows, heads, tokens, half,
    stride_vb, stride_vh, stride_vt, stride_vk, stride_ob, stride_oh, stride_ot, stride_ok,
    stride_cb, stride_ct, stride_ck, stride_sb, stride_st, stride_sk,
    BACK: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    row, pair = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)[:, None], tl.arange(0, BLOCK_K)[None, :]
    valid = (row < rows) & (pair < half)
    # The heads of a token, then the next token: divisions in 32 bits, which are fast, products in 64.
    head, token, batch = row % heads, row // heads % tokens, row // heads // tokens
    head, token, batch = head.to(tl.int64), token.to(tl.int64), batch.to(tl.int64)
    c = tl.load(cos + batch * stride_cb + token * stride_ct + pair * stride_ck, mask=valid, other=0.0).to(tl.float32)
    s = tl.load(sin + batch * stride_sb + token * stride_st + pair * stride_sk, mask=valid, other=0.0).to(tl.float32)
    if BACK:
        s = -s
    source = vectors + batch * stride_vb + head * stride_vh + token * stride_vt + pair * stride_vk
    first = tl.load(source, mask=valid, other=0.0).to(tl.float32)
    second = tl.load(source + half * stride_vk, mask=valid, other=0.0).to(tl.float32)
    target = out + batch * stride_ob + head * stride_oh + token * stride_ot + pair * stride_ok
    tl.store(target, (first * c - second * s).to(out.dtype.element_ty), mask=valid)
    tl.store(target + half * stride_ok, (second * c + first * s).to(out.dtype.element_ty), mask=valid)


@torch.library.custom_op("minillm::rotary", mutates_args=())
def _rotary(vectors: Tensor, cos: Tensor, sin: Tensor, back: bool) -> Tensor:
    """The vectors rotated, or rotated back, with the strides of the input."""
    batch, heads, tokens, width = vectors.shape
    out, rows = _rotary_fake(vectors, cos, sin, back), batch * heads * tokens
    cos, sin = (table.expand(batch, tokens, width // 2) for table in (cos, sin))
    block = triton.next_power_of_2(width // 2)
    block_rows = max(1, BLOCK_NUMBERS // block)
    if rows:
        _rotary_kernel[(triton.cdiv(rows, block_rows),)](
            vectors, cos, sin, out, rows, heads, tokens, width // 2,
            *vectors.stride(), *out.stride(), *cos.stride(), *sin.stride(),
            BACK=back, BLOCK_N=block_rows, BLOCK_K=block,
        )  # fmt: skip
    return out


@_rotary.register_fake
def _rotary_fake(vectors: Tensor, cos: Tensor, sin: Tensor, back: bool) -> Tensor:
    return torch.empty_like(vectors)


def _save(ctx: Any, inputs: tuple, output: Tensor) -> None:
    _, cos, sin, ctx.back = inputs
    ctx.save_for_backward(cos, sin)


def _differentiate(ctx: Any, dout: Tensor):
    return _rotary(dout, *ctx.saved_tensors, not ctx.back), None, None, None


_rotary.register_autograd(_differentiate, setup_context=_save)


def rotary(vectors: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    return _rotary(vectors, cos, sin, False)
