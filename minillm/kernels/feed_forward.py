"""The feed-forward layer's non-linearities: gelu, y = x σ(2u), and swiglu, y = g σ(g) x, in one pass each way.

Both are one program: y = z σ(a) · x, with z = a = g for swiglu, and with z = x, a = 2u and no factor for gelu.

    dz = dy x (σ + z σ (1 - σ) ∂a/∂z)        dx = dy z σ        (see reference/feed_forward.py)

The cost is memory traffic. Bytes per element in bfloat16:

    version                          forward      backward     saved for it   launches
    swiglu by torch: silu, times     10           18            6             2 + 3
    swiglu fused                      6           10            4             1 + 1
    gelu by torch, fused already      4            6            2             1 + 1
    gelu here                         4            6            2             1 + 1

σ is recomputed in the backward pass: an exponential costs less than saving and loading two bytes. Torch's gelu moves
as few bytes; the measurement decides between the two. relu stays torch's, one operation each way with nothing to fuse.
On paper a swiglu takes 6 / 10 and 10 / 18 of torch's time.
"""

import math
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

LINEAR, CUBE = tl.constexpr(2 * math.sqrt(2 / math.pi)), tl.constexpr(0.044715)
"""Of gelu: a = LINEAR (z + CUBE z³)."""
BLOCKS = {"BLOCK": 1024, "num_warps": 4}
"""Eight elements per thread: 16 bytes of bfloat16, the most that one instruction loads."""


@triton.jit
def _forward_kernel(inner, factor, out, count, GATED: tl.constexpr, BLOCK: tl.constexpr):
    place = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    z = tl.load(inner + place, mask=place < count, other=0.0).to(tl.float32)
    y = z * tl.sigmoid(_argument(z, GATED))
    if GATED:
        y *= tl.load(factor + place, mask=place < count, other=0.0).to(tl.float32)
    tl.store(out + place, y.to(out.dtype.element_ty), mask=place < count)


@triton.jit
def _backward_kernel(dout, inner, factor, dinner, dfactor, count, GATED: tl.constexpr, BLOCK: tl.constexpr):
    place = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    dy = tl.load(dout + place, mask=place < count, other=0.0).to(tl.float32)
    z = tl.load(inner + place, mask=place < count, other=0.0).to(tl.float32)
    argument, derivative = _argument(z, GATED), 1.0
    # σ(-a) is exact where 1 - σ(a) would cancel.
    sigmoid, rest = tl.sigmoid(argument), tl.sigmoid(-argument)
    if GATED:
        x = tl.load(factor + place, mask=place < count, other=0.0).to(tl.float32)
        tl.store(dfactor + place, (dy * z * sigmoid).to(dfactor.dtype.element_ty), mask=place < count)
        dy *= x
    else:
        derivative = (3.0 * z * z * CUBE + 1.0) * LINEAR
    dz = dy * sigmoid * (1.0 + z * rest * derivative)
    tl.store(dinner + place, dz.to(dinner.dtype.element_ty), mask=place < count)


@triton.jit
def _argument(z, GATED: tl.constexpr):
    """The argument of the sigmoid."""
    if GATED:
        return z
    return z * (z * z * CUBE + 1.0) * LINEAR


@torch.library.custom_op("minillm::feed_forward", mutates_args=())
def _feed_forward(inner: Tensor, factor: Tensor | None) -> Tensor:
    """swiglu of a gate and a factor, or gelu of the first input alone."""
    out = _feed_forward_fake(inner, factor)
    if count := inner.numel():
        _forward_kernel[(triton.cdiv(count, BLOCKS["BLOCK"]),)](
            inner.contiguous(), None if factor is None else factor.contiguous(), out, count,
            GATED=factor is not None, **BLOCKS,
        )  # fmt: skip
    return out


@_feed_forward.register_fake
def _feed_forward_fake(inner: Tensor, factor: Tensor | None) -> Tensor:
    dtype = inner.dtype if factor is None else torch.promote_types(inner.dtype, factor.dtype)
    return inner.new_empty(inner.shape, dtype=dtype)


@torch.library.custom_op("minillm::feed_forward_backward", mutates_args=())
def _feed_forward_backward(dout: Tensor, inner: Tensor, factor: Tensor | None) -> tuple[Tensor, Tensor]:
    """The gradients of both inputs; for gelu the second one is empty."""
    dinner, dfactor = _feed_forward_backward_fake(dout, inner, factor)
    if count := inner.numel():
        _backward_kernel[(triton.cdiv(count, BLOCKS["BLOCK"]),)](
            dout.contiguous(), inner.contiguous(), None if factor is None else factor.contiguous(), dinner, dfactor,
            count, GATED=factor is not None, **BLOCKS,
        )  # fmt: skip
    return dinner, dfactor


@_feed_forward_backward.register_fake
def _feed_forward_backward_fake(dout: Tensor, inner: Tensor, factor: Tensor | None) -> tuple[Tensor, Tensor]:
    dfactor = inner.new_empty(0) if factor is None else factor.new_empty(factor.shape)
    return inner.new_empty(inner.shape), dfactor


def _save(ctx: Any, inputs: tuple, output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _differentiate(ctx: Any, dout: Tensor):
    inner, factor = ctx.saved_tensors
    dinner, dfactor = _feed_forward_backward(dout, inner, factor)
    return dinner, None if factor is None else dfactor


_feed_forward.register_autograd(_differentiate, setup_context=_save)


def gelu(up: Tensor) -> Tensor:
    return _feed_forward(up, None)


def swiglu(gate: Tensor, up: Tensor) -> Tensor:
    return _feed_forward(gate, up)
