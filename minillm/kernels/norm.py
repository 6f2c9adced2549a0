"""The norm of add & norm, layer or rms: out = x̂ weight + bias.

A norm does little arithmetic on each element that it loads: its cost is memory traffic. For N rows of D bfloat16
elements, rms:

    version                                            bytes per element  launches    FLOPs per element
    naive: torch, one operation at a time              36 (forward)      7           4
    fused: a row stays in registers                     4 (forward)      1           4
    backward: dx from a recomputed x̂; naive            60               12          9
    backward, fused; dweight in stripes                 6                2           9

The gradient is that of `reference/norm.py`. Each program of the backward pass loops over a stripe of rows and writes
one sum for the weight; a second stage adds these up: no atomics, so the same run gives the same bits.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

BLOCK_NUMBERS = 4096
"""Elements that a program holds at a time: several narrow rows, or one wide row."""
STRIPES = 256
"""Maximum number of programs of the backward pass: a few for each of the 100 or so processors of a GPU."""


@triton.jit
def _forward_kernel(
    hidden, weight, bias, out, mean, inverse, rows, width, eps,
    LAYER: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    column = tl.arange(0, BLOCK_D)
    valid = (row < rows)[:, None] & (column < width)[None, :]
    place = row.to(tl.int64)[:, None] * width + column[None, :]
    x = tl.load(hidden + place, mask=valid, other=0.0).to(tl.float32)
    if LAYER:
        middle = tl.sum(x, 1) / width
        tl.store(mean + row, middle, mask=row < rows)
        x = tl.where(valid, x - middle[:, None], 0.0)
    scale = tl.rsqrt(tl.sum(x * x, 1) / width + eps)
    tl.store(inverse + row, scale, mask=row < rows)
    y = x * scale[:, None] * tl.load(weight + column, mask=column < width, other=0.0).to(tl.float32)[None, :]
    if LAYER:
        y += tl.load(bias + column, mask=column < width, other=0.0).to(tl.float32)[None, :]
    tl.store(out + place, y.to(out.dtype.element_ty), mask=valid)


@triton.jit
def _backward_kernel(
    dout, hidden, weight, mean, inverse, dhidden, weight_sums, bias_sums, rows, width, stripe,
    LAYER: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    program, column = tl.program_id(0), tl.arange(0, BLOCK_D)
    gain = tl.load(weight + column, mask=column < width, other=0.0).to(tl.float32)[None, :]
    weight_sum = tl.zeros((BLOCK_N, BLOCK_D), tl.float32)
    bias_sum = tl.zeros((BLOCK_N, BLOCK_D), tl.float32)
    for start in range(0, stripe, BLOCK_N):
        row = program * stripe + start + tl.arange(0, BLOCK_N)
        real = (start + tl.arange(0, BLOCK_N) < stripe) & (row < rows)
        valid = real[:, None] & (column < width)[None, :]
        place = row.to(tl.int64)[:, None] * width + column[None, :]
        dy = tl.load(dout + place, mask=valid, other=0.0).to(tl.float32)
        x = tl.load(hidden + place, mask=valid, other=0.0).to(tl.float32)
        scale = tl.load(inverse + row, mask=real, other=0.0)[:, None]
        if LAYER:
            x = tl.where(valid, x - tl.load(mean + row, mask=real, other=0.0)[:, None], 0.0)
        normed, dnormed = x * scale, dy * gain
        weight_sum += dy * normed
        dx = dnormed - normed * (tl.sum(dnormed * normed, 1) / width)[:, None]
        if LAYER:
            bias_sum += dy
            dx -= (tl.sum(dnormed, 1) / width)[:, None]
        dx *= scale
        tl.store(dhidden + place, dx.to(dhidden.dtype.element_ty), mask=valid)
    tl.store(weight_sums + program * width + column, tl.sum(weight_sum, 0), mask=column < width)
    if LAYER:
        tl.store(bias_sums + program * width + column, tl.sum(bias_sum, 0), mask=column < width)


def _blocks(width: int) -> dict[str, int]:
    """The number of whole rows in a block, and of warps that process them."""
    block = triton.next_power_of_2(width)
    return {"BLOCK_N": max(1, BLOCK_NUMBERS // block), "BLOCK_D": block, "num_warps": 4 if block <= 8192 else 16}


@torch.library.custom_op("minillm::norm", mutates_args=())
def _norm(hidden: Tensor, weight: Tensor, bias: Tensor | None, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    """(out, mean, 1 / deviation); an rms norm's mean is empty. Rows are the leading axes."""
    hidden, width = hidden.contiguous(), weight.shape[0]
    rows = hidden.numel() // width
    out, mean, inverse = _norm_fake(hidden, weight, bias, eps)
    blocks = _blocks(width)
    if rows:
        _forward_kernel[(triton.cdiv(rows, blocks["BLOCK_N"]),)](
            hidden, weight, bias, out, mean, inverse, rows, width, eps, LAYER=bias is not None, **blocks
        )
    return out, mean, inverse


@_norm.register_fake
def _norm_fake(hidden: Tensor, weight: Tensor, bias: Tensor | None, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    rows = hidden.shape[:-1].numel()
    # As in torch: a layer norm returns the dtype of hidden, an rms norm, which is a product, the wider of the two.
    dtype = hidden.dtype if bias is not None else torch.promote_types(hidden.dtype, weight.dtype)
    out = hidden.new_empty(hidden.shape, dtype=dtype)
    mean = hidden.new_empty(0 if bias is None else rows, dtype=torch.float32)
    return out, mean, hidden.new_empty(rows, dtype=torch.float32)


@torch.library.custom_op("minillm::norm_backward", mutates_args=())
def _norm_backward(
    dout: Tensor, hidden: Tensor, weight: Tensor, mean: Tensor, inverse: Tensor, layer: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of hidden, weight and bias (empty for an rms norm)."""
    dout, hidden = dout.contiguous(), hidden.contiguous()
    rows, width = len(inverse), len(weight)
    blocks = _blocks(width)
    stripe = triton.cdiv(max(rows, 1), min(STRIPES, triton.cdiv(max(rows, 1), blocks["BLOCK_N"])))
    programs = triton.cdiv(rows, stripe)
    dhidden = torch.empty_like(hidden)
    sums = [weight.new_empty((programs, width), dtype=torch.float32) for _ in range(1 + layer)]
    if rows:
        _backward_kernel[(programs,)](
            dout, hidden, weight, mean, inverse, dhidden, sums[0], sums[-1], rows, width, stripe, LAYER=layer, **blocks
        )
    dweight = sums[0].sum(0).to(weight.dtype)
    return dhidden, dweight, sums[1].sum(0).to(weight.dtype) if layer else weight.new_empty(0)


@_norm_backward.register_fake
def _(
    dout: Tensor, hidden: Tensor, weight: Tensor, mean: Tensor, inverse: Tensor, layer: bool
) -> tuple[Tensor, Tensor, Tensor]:
    return torch.empty_like(hidden), torch.empty_like(weight), weight.new_empty(len(weight) if layer else 0)


def _save(ctx: Any, inputs: tuple, output: tuple[Tensor, ...]) -> None:
    hidden, weight, bias, _ = inputs
    ctx.save_for_backward(hidden, weight, *output[1:])
    ctx.layer = bias is not None


def _differentiate(ctx: Any, dout: Tensor, *_: Any):
    dhidden, dweight, dbias = _norm_backward(dout, *ctx.saved_tensors, ctx.layer)
    return dhidden, dweight, dbias if ctx.layer else None, None


_norm.register_autograd(_differentiate, setup_context=_save)


def layer_norm(hidden: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    return _norm(hidden, weight, bias, eps)[0]


def rms_norm(hidden: Tensor, weight: Tensor, eps: float) -> Tensor:
    return _norm(hidden, weight, None, eps)[0]
