"""The loss of a language model from its last hidden states, without all of its logits: -Σ log softmax(h Wᵀ)[label].

Three products of N x D x V are the work; the softmax between them is a matter of bytes. For N labelled rows:

    version                                          FLOPs      bytes a logit    held at once
    naive: torch, all of them, softmax in float32    6 N D V    42               12 bytes a logit
    chunks of rows, made again for the gradient      8 N D V    58               12 bytes a logit of a chunk
    chunks, slopes put over the logits               6 N D V    10                2 bytes a logit of a chunk

The loss is a scalar, so its slope in the hidden states and in the weight is known, up to a factor, when the loss is.
They are computed beside it, for as long as a chunk's logits are there, and the backward pass multiplies by the factor:
no logit is made twice. A slope that no one wants, a frozen head's, is not computed: 4 N D V. The products are cuBLAS';
the kernel reads a row of logits for its loss and again, out of the L2 cache, to put p - [v = label] in its place.

A chunk has many rows, because it adds to the weight's gradient, kept in float32 until it is rounded once: 8 V D bytes,
however many rows there are. That is rows / 4 FLOPs a byte, and a H100 does 250 while it moves one. 2048 rows at
V = 131,072 and D = 4096 are 6.6 TFLOP, 8.4 ms at 790 TFLOP/s, with up to 1.1 ms for that sum at 4 TB/s and 0.5 ms for
the kernel: 660 TFLOP/s on paper. No GPU has timed it yet (`python -m benchmarks.kernels` will).
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from minillm.ops.linear_cross_entropy import IGNORED

CHUNK_BYTES = 1 << 29
"""Of logits held at a time: 2048 rows of a vocabulary of 131,072 in half precision."""
LOWEST = tl.constexpr(-3e38)


@triton.jit
def _loss_kernel(
    logits, labels, losses, stride, vocabulary, SLOPES: tl.constexpr, BLOCK_V: tl.constexpr
):  # fmt: skip
    row, column = tl.program_id(0), tl.arange(0, BLOCK_V)
    logits += row.to(tl.int64) * stride
    label = tl.load(labels + row)
    # No word has such a label; a GPU cannot raise, but NaN is seen.
    word = (label >= 0) & (label < vocabulary)
    chosen = tl.load(logits + label, mask=word, other=float("nan")).to(tl.float32)
    # Each lane has a maximum and a sum of its own, so that no thread waits for another before the row's end.
    top = tl.full((BLOCK_V,), LOWEST, tl.float32)
    total = tl.zeros((BLOCK_V,), tl.float32)
    for start in range(0, vocabulary, BLOCK_V):
        z = _read(logits, start + column, stride, vocabulary)
        higher = tl.maximum(top, z)
        total = total * tl.exp(top - higher) + tl.exp(z - higher)
        top = higher
    highest = tl.max(top, 0)
    total = tl.sum(total * tl.exp(top - highest), 0)
    tl.store(losses + row, highest + tl.log(total) - chosen)
    if SLOPES:
        part = 1.0 / total
        for start in range(0, vocabulary, BLOCK_V):
            place = start + column
            share = tl.exp(_read(logits, place, stride, vocabulary) - highest) * part
            slope = tl.where(place == label, share - 1.0, share)
            tl.store(logits + place, slope.to(logits.dtype.element_ty), mask=place < stride)


@triton.jit
def _read(logits, place, stride, vocabulary):
    """Memory is masked by the stride, a multiple of 64, so that whole vectors are read at any vocabulary."""
    z = tl.load(logits + place, mask=place < stride, other=0.0).to(tl.float32)
    return tl.where(place < vocabulary, z, float("-inf"))


def _blocks(vocabulary: int) -> dict[str, int]:
    """Eight numbers a thread. At 1024 threads each processor has one row: 132 rows of 256 KB fit a H100's L2 cache."""
    block = min(triton.next_power_of_2(vocabulary), 8192)
    return {"BLOCK_V": block, "num_warps": max(1, block // 256)}


def _rows_at_once(rows: int, row_bytes: int) -> int:
    """Chunks of one size, as few as there may be: a short last one would cost as many bytes as the others."""
    return triton.cdiv(rows, max(triton.cdiv(rows * row_bytes, CHUNK_BYTES), 1))


@torch.library.custom_op("minillm::linear_cross_entropy", mutates_args=())
def _linear_cross_entropy(
    hidden: Tensor, weight: Tensor, labels: Tensor, dtype: torch.dtype, of_hidden: bool, of_weight: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """(loss, its slope in hidden, in weight), multiplied in `dtype`; a slope that no one asked for is empty."""
    labelled, (vocabulary, _) = (labels != IGNORED).nonzero().squeeze(1), weight.shape
    losses = hidden.new_empty(len(labelled), dtype=torch.float32)
    dhidden = hidden.new_zeros(hidden.shape if of_hidden else 0, dtype=dtype)
    dweight = weight.new_zeros(weight.shape if of_weight else 0, dtype=torch.float32)
    weight, blocks = weight.to(dtype), _blocks(vocabulary)
    stride = triton.cdiv(vocabulary, 64) * 64  # rows that begin where a vector may
    size = _rows_at_once(len(labelled), stride * dtype.itemsize)
    memory = hidden.new_empty((size, stride), dtype=dtype)
    for start in range(0, len(labelled), max(size, 1)):
        rows = labelled[start : start + size]
        states, logits = hidden[rows].to(dtype), memory[: len(rows), :vocabulary]
        torch.mm(states, weight.T, out=logits)
        _loss_kernel[(len(rows),)](
            logits, labels[rows], losses[start:], stride, vocabulary, SLOPES=of_hidden or of_weight, **blocks
        )  # fmt: skip
        if of_hidden:
            dhidden.index_copy_(0, rows, logits @ weight)
        if of_weight:
            _add_product(dweight, logits.T, states)
    return losses.sum(), dhidden, dweight


def _add_product(total: Tensor, left: Tensor, right: Tensor) -> None:
    """total += left right, summed in float32. Only a GPU's cuBLAS does that from factors in half precision."""
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
def _scaled(slope: Tensor, factor: Tensor, dtype: torch.dtype) -> Tensor:
    """slope · factor, rounded once, in one pass: a factor without axes would be rounded to the slope's dtype first."""
    return torch.mul(slope, factor[None], out=torch.empty_like(slope, dtype=dtype))


@_scaled.register_fake
def _(slope: Tensor, factor: Tensor, dtype: torch.dtype) -> Tensor:
    return torch.empty_like(slope, dtype=dtype)


def _save(ctx: Any, inputs: tuple, output: tuple[Tensor, ...]) -> None:
    hidden, weight, *_ = inputs
    _, *slopes = output
    ctx.save_for_backward(*slopes)
    ctx.dtypes = hidden.dtype, weight.dtype
    ctx.set_materialize_grads(False)


def _differentiate(ctx: Any, dloss: Tensor | None, *_: Any):
    wanted = zip(ctx.saved_tensors, ctx.dtypes, ctx.needs_input_grad, strict=False)
    slopes = (_scaled(slope, dloss, dtype) if wants and dloss is not None else None for slope, dtype, wants in wanted)
    return *slopes, None, None, None, None


_linear_cross_entropy.register_autograd(_differentiate, setup_context=_save)


def linear_cross_entropy(hidden: Tensor, weight: Tensor, labels: Tensor) -> Tensor:
    wanted = (torch.is_grad_enabled() and tensor.requires_grad for tensor in (hidden, weight))
    return _linear_cross_entropy(hidden, weight, labels, _products_dtype(hidden, weight), *wanted)[0]


def _products_dtype(hidden: Tensor, weight: Tensor) -> torch.dtype:
    """Autocast has Linears multiply in half precision, and so does this one."""
    if torch.is_autocast_enabled(weight.device.type):
        return torch.get_autocast_dtype(weight.device.type)
    return torch.promote_types(hidden.dtype, weight.dtype)
