"""The loss of a language model from its last hidden states, without storing all logits: -Σ log softmax(h Wᵀ)[label].

The FLOPs are three products of N x D x V; the softmax between them costs memory traffic. For N labelled rows:

    version                                          FLOPs      bytes per logit  in memory at a time
    naive: torch, all of them, softmax in float32    6 N D V    42               12 bytes per logit
    chunks of rows, recomputed for the gradient      8 N D V    58               12 bytes per logit of a chunk
    chunks, gradients written over the logits        6 N D V    10                2 bytes per logit of a chunk

The loss is a scalar, so its gradients are known, up to the factor dloss, as soon as the loss is. They are computed
together with it, while the logits of a chunk are in memory, and the backward pass multiplies by the factor: no logit
is computed twice. A gradient that is not needed, like a frozen head's, is not computed: 4 N D V. cuBLAS computes the
products; the kernel reads a row of logits for its loss, and again, from the L2 cache, to write p - [v = label] over it.

Chunks have many rows, because each adds to the gradient of the weight, which is summed in float32 and rounded once:
8 V D bytes per chunk, independent of its rows. That is rows / 4 FLOPs per byte, and an H100 does 250 per byte. 2048
rows at V = 131,072 and D = 4096 are 6.6 TFLOP, 8.4 ms at 790 TFLOP/s, plus up to 1.1 ms for that sum at 4 TB/s and 0.5
ms for the kernel: 660 TFLOP/s on paper.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from minillm.ops.linear_cross_entropy import IGNORED

CHUNK_BYTES = 1 << 29
"""Bytes of logits in memory at a time: 2048 rows of a vocabulary of 131,072 in half precision."""
LOWEST = tl.constexpr(-3e38)


@triton.jit
def _loss_kernel(
    logits, labels, losses, stride, vocabulary, GRADIENTS: tl.constexpr, BLOCK_V: tl.constexpr
):  # fmt: skip
    row, column = tl.program_id(0), tl.arange(0, BLOCK_V)
    logits += row.to(tl.int64) * stride
    label = tl.load(labels + row)
    # A GPU cannot raise for a label out of range, but NaN is visible.
    valid = (label >= 0) & (label < vocabulary)
    chosen = tl.load(logits + label, mask=valid, other=float("nan")).to(tl.float32)
    # Each lane has its own maximum and sum, so that no thread waits for another before the end of the row.
    top = tl.full((BLOCK_V,), LOWEST, tl.float32)
    total = tl.zeros((BLOCK_V,), tl.float32)
    for start in range(0, vocabulary, BLOCK_V):
        z = _load(logits, start + column, stride, vocabulary)
        higher = tl.maximum(top, z)
        total = total * tl.exp(top - higher) + tl.exp(z - higher)
        top = higher
    highest = tl.max(top, 0)
    total = tl.sum(total * tl.exp(top - highest), 0)
    tl.store(losses + row, (highest - chosen) + tl.log(total))
    if GRADIENTS:
        inverse = 1.0 / total
        for start in range(0, vocabulary, BLOCK_V):
            place = start + column
            p = tl.exp(_load(logits, place, stride, vocabulary) - highest) * inverse
            dz = tl.where(place == label, p - 1.0, p)
            tl.store(logits + place, dz.to(logits.dtype.element_ty), mask=place < stride)


@triton.jit
def _load(logits, place, stride, vocabulary):
    """Loads are masked by the stride, a multiple of 64, so that whole vectors are loaded for any vocabulary."""
    z = tl.load(logits + place, mask=place < stride, other=0.0).to(tl.float32)
    return tl.where(place < vocabulary, z, float("-inf"))


def _blocks(vocabulary: int) -> dict[str, int]:
    """Eight elements per thread. With 1024 threads a processor has one row: 132 of 256 KB fit an H100's L2 cache."""
    block = min(triton.next_power_of_2(vocabulary), 8192)
    return {"BLOCK_V": block, "num_warps": max(1, block // 256)}


def _rows_at_once(rows: int, row_bytes: int) -> int:
    """Chunks of equal size, as few as possible: a short last one would move as many bytes as the others."""
    return triton.cdiv(rows, max(triton.cdiv(rows * row_bytes, CHUNK_BYTES), 1))


@torch.library.custom_op("minillm::linear_cross_entropy", mutates_args=())
def _linear_cross_entropy(
    hidden: Tensor, weight: Tensor, labels: Tensor, dtype: torch.dtype, of_hidden: bool, of_weight: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """(loss, dhidden, dweight), with products in `dtype`; a gradient that is not needed is empty."""
    labelled, (vocabulary, _) = (labels != IGNORED).nonzero().squeeze(1), weight.shape
    losses = hidden.new_empty(len(labelled), dtype=torch.float32)
    dhidden = hidden.new_zeros(hidden.shape if of_hidden else 0, dtype=dtype)
    dweight = weight.new_zeros(weight.shape if of_weight else 0, dtype=torch.float32)
    weight, blocks = weight.to(dtype), _blocks(vocabulary)
    stride = triton.cdiv(vocabulary, 64) * 64  # so that rows are aligned for vector loads
    size = _rows_at_once(len(labelled), stride * dtype.itemsize)
    memory = hidden.new_empty((size, stride), dtype=dtype)
    for start in range(0, len(labelled), max(size, 1)):
        rows = labelled[start : start + size]
        states, logits = hidden[rows].to(dtype), memory[: len(rows), :vocabulary]
        torch.mm(states, weight.T, out=logits)
        _loss_kernel[(len(rows),)](
            logits, labels[rows], losses[start:], stride, vocabulary, GRADIENTS=of_hidden or of_weight, **blocks
        )  # fmt: skip
        if of_hidden:
            dhidden.index_copy_(0, rows, logits @ weight)
        if of_weight:
            _add_product(dweight, logits.T, states)
    return losses.sum(), dhidden, dweight


def _add_product(total: Tensor, left: Tensor, right: Tensor) -> None:
    """total += left right, summed in float32. From factors in half precision only cuBLAS does that."""
    if left.is_cuda and left.dtype != torch.float32:
        torch.addmm(total, left, right, out_dtype=torch.float32, out=total)
    else:
        torch.addmm(total, left.float(), right.float(), out=total)


@_linear_cross_entropy.register_fake
def _(
    hidden: Tensor, weight: Tensor, labels: Tensor, dtype: torch.dtype, of_hidden: bool, of_weight: bool
) -> tuple[Tensor, Tensor, Tensor]:
    dhidden = hidden.new_empty(hidden.shape if of_hidden else 0, dtype=dtype)
    dweight = weight.new_empty(weight.shape if of_weight else 0, dtype=torch.float32)
    return hidden.new_empty((), dtype=torch.float32), dhidden, dweight


@torch.library.custom_op("minillm::scaled", mutates_args=())
def _scaled(gradient: Tensor, factor: Tensor, dtype: torch.dtype) -> Tensor:
    """gradient · factor in one pass, rounded once: a factor without axes would first be rounded to gradient's dtype."""
    return torch.mul(gradient, factor[None], out=torch.empty_like(gradient, dtype=dtype))


@_scaled.register_fake
def _(gradient: Tensor, factor: Tensor, dtype: torch.dtype) -> Tensor:
    return torch.empty_like(gradient, dtype=dtype)


def _save(ctx: Any, inputs: tuple, output: tuple[Tensor, ...]) -> None:
    hidden, weight, *_ = inputs
    _, *gradients = output
    ctx.save_for_backward(*gradients)
    ctx.dtypes = hidden.dtype, weight.dtype
    ctx.set_materialize_grads(False)


def _differentiate(ctx: Any, dloss: Tensor | None, *_: Any):
    sides = zip(ctx.saved_tensors, ctx.dtypes, ctx.needs_input_grad, strict=False)
    gradients = (_scaled(side, dloss, dtype) if needed and dloss is not None else None for side, dtype, needed in sides)
    return *gradients, None, None, None, None


_linear_cross_entropy.register_autograd(_differentiate, setup_context=_save)


def linear_cross_entropy(hidden: Tensor, weight: Tensor, labels: Tensor) -> Tensor:
    needed = (torch.is_grad_enabled() and tensor.requires_grad for tensor in (hidden, weight))
    return _linear_cross_entropy(hidden, weight, labels, _products_dtype(hidden, weight), *needed)[0]


def _products_dtype(hidden: Tensor, weight: Tensor) -> torch.dtype:
    """Under autocast Linears multiply in half precision, and so does this one."""
    if torch.is_autocast_enabled(weight.device.type):
        return torch.get_autocast_dtype(weight.device.type)
    return torch.promote_types(hidden.dtype, weight.dtype)
