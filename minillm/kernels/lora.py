"""LoRA: x Wᵀ + bias + s (x Aᵀ) Bᵀ, with one adapter for all rows, or with a separate one for each row of a batch.

At D = 4096 an update of rank 16 adds 1 % to the FLOPs of the frozen product; its real cost is memory traffic and
launches. A pass that reads or writes N rows of D bfloat16 elements takes 184 / D of the time of a product at 790
TFLOP/s and 4.3 TB/s: 4 % at D = 4096, 24 % at D = 768. Passes beyond those of the frozen product and its gradient:

    version                                                 passes forward and backward           launches
    naive: three Linears, a scale and a sum                 7, 9                                  5 + 7
    torch: `addmm_` onto x Wᵀ; x Aᵀ and g B saved           x, out, out; g, g, x, dx, dx = 3, 5   4 + 6
    here: the update first, cuBLAS adds x Wᵀ to it          x, out; g, g, x, dx = 2, 4            2 + 4
    the update in the epilogue of our own product           x; g, g, x = 1, 3                     2 + 4
    x Aᵀ in the loop of that product, too                   none; g, x = 0, 2                     1 + 3

The third is built. `_update_kernel` reads x once, saves s x Aᵀ (R elements per row) and writes s (x Aᵀ) Bᵀ + c, to
which cuBLAS adds x Wᵀ at the end of each of its tiles (β = 1), a read that overlaps with its arithmetic. The backward
pass uses the same kernel with A and B exchanged: from g it computes s g B, which the gradients of A and of x share, and
s (g B) A, to which cuBLAS adds g W. One kernel computes the gradients of both factors in stripes of rows and another
sums the stripes: no atomics, so the same run gives the same bits. In total 6 N R (I + O) FLOPs. A and B are loaded in
their own dtype, without a cast before.

The fourth saves two passes, 4 % of both products, but a Triton product with pointer loads is slower than cuBLAS by more
than that on Hopper. The fifth also multiplies A again for each column of tiles: 16 / 256.

Expected for R = 16 and N = 8192, in units of the frozen Linear's forward and backward: 1.14 (torch 1.18) at D = 4096;
1.6 (torch 2) at D = 768, where everything is in the L2 cache and the gain is fewer launches.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from minillm.kernels._interpreter import EXACT, WIDEN

PROCESSORS = 128
"""About as many as a GPU has: rows are distributed so that each processor gets one or a few blocks."""
PROGRAMS, BLOCK_STRIPE = 512, 64
"""Of the kernel of the gradients; its stripes of rows are longer where there are more columns."""


@triton.jit
def _tile(base, row, column, row_stride, column_stride, rows, columns, DTYPE: tl.constexpr):
    """A tile of a matrix, 0 beyond its edges, in the dtype of the product."""
    place = row.to(tl.int64)[:, None] * row_stride + column.to(tl.int64)[None, :] * column_stride
    tile = tl.load(base + place, mask=(row < rows)[:, None] & (column < columns)[None, :], other=0.0)
    # Via float32: the interpreter cannot cast float64 to bfloat16 directly.
    tile = tile.to(tl.float32).to(DTYPE)
    return tile.to(tl.float32) if WIDEN else tile


@triton.jit
def _update_kernel(
    x, down, up, bias, adapter, low, out, tokens, inner, outer, rank, scale, down_r, down_i, up_r, up_o,
    BLOCK_N: tl.constexpr, BLOCK_I: tl.constexpr, BLOCK_O: tl.constexpr, BLOCK_R: tl.constexpr,
):  # fmt: skip
    """low = scale x downᵀ and, if `out` is given, out = low upᵀ + bias, for a block of tokens of one row."""
    row = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    batch, rank_place = tl.program_id(1).to(tl.int64), tl.arange(0, BLOCK_R)
    member = tl.full((), 0, tl.int64)
    if adapter is not None:
        member = tl.load(adapter + batch).to(tl.int64)
    # Without an adapter nothing is loaded: the update is zero, whatever values the other adapters have.
    ranks = tl.where(member < 0, 0, rank)
    down += member * rank * inner
    up += member * rank * outer
    x += batch * tokens * inner
    total = tl.zeros((BLOCK_N, BLOCK_R), tl.float32)
    for start in range(0, tl.where(member < 0, 0, inner), BLOCK_I):
        column = start + tl.arange(0, BLOCK_I)
        inputs = _tile(x, row, column, inner, 1, tokens, inner, x.dtype.element_ty)
        factor = _tile(down, column, rank_place, down_i, down_r, inner, ranks, x.dtype.element_ty)
        total = tl.dot(inputs, factor, total, input_precision=EXACT)
    small = (total * scale).to(low.dtype.element_ty)
    low_place = (batch * tokens + row)[:, None] * rank + rank_place[None, :]
    tl.store(low + low_place, small, mask=(row < tokens)[:, None] & (rank_place < rank)[None, :])
    if out is not None:
        small = small.to(tl.float32) if WIDEN else small
        for start in range(0, outer, BLOCK_O):
            column = start + tl.arange(0, BLOCK_O)
            factor = _tile(up, rank_place, column, up_r, up_o, ranks, outer, low.dtype.element_ty)
            update = tl.dot(small, factor, input_precision=EXACT)
            if bias is not None:
                update += tl.load(bias + column, mask=column < outer, other=0.0).to(tl.float32)[None, :]
            place = (batch * tokens + row)[:, None] * outer + column[None, :]
            valid = (row < tokens)[:, None] & (column < outer)[None, :]
            tl.store(out + place, update.to(out.dtype.element_ty), mask=valid)


@triton.jit
def _stripe(
    small, wide, sums, first, last, columns, rank, offset, total_columns, tile,
    BLOCK_N: tl.constexpr, BLOCK_W: tl.constexpr, BLOCK_R: tl.constexpr,
):  # fmt: skip
    """smallᵀ wide over the rows from first to last, for a tile of columns."""
    column, rank_place = tile * BLOCK_W + tl.arange(0, BLOCK_W), tl.arange(0, BLOCK_R)
    total = tl.zeros((BLOCK_R, BLOCK_W), tl.float32)
    for start in range(first, last, BLOCK_N):
        row = start + tl.arange(0, BLOCK_N)
        left = _tile(small, rank_place, row, 1, rank, rank, last, wide.dtype.element_ty)
        right = _tile(wide, row, column, columns, 1, last, columns, wide.dtype.element_ty)
        total = tl.dot(left, right, total, input_precision=EXACT)
    place = rank_place[:, None] * total_columns + offset + column[None, :]
    tl.store(sums + place, total, mask=(rank_place < rank)[:, None] & (column < columns)[None, :])


@triton.jit
def _stripes_kernel(
    x, dout, low, shared, adapter, sums, tokens, inner, outer, rank, stripe, tiles,
    BLOCK_N: tl.constexpr, BLOCK_W: tl.constexpr, BLOCK_R: tl.constexpr,
):  # fmt: skip
    """The terms of one stripe of dA, sharedᵀ x, and next to it of dBᵀ, lowᵀ dout: a tile of one of them."""
    tile, batch, columns = tl.program_id(0), tl.program_id(2).to(tl.int64), inner + outer
    first = tl.program_id(1) * stripe
    last = tl.minimum(first + stripe, tokens)
    if adapter is not None:
        last = tl.where(tl.load(adapter + batch) < 0, first, last)
    sums += (batch * tl.num_programs(1) + tl.program_id(1)) * rank * columns
    low += batch * tokens * rank
    shared += batch * tokens * rank
    if tile < tiles:
        x += batch * tokens * inner
        _stripe(shared, x, sums, first, last, inner, rank, 0, columns, tile, BLOCK_N, BLOCK_W, BLOCK_R)
    else:
        dout += batch * tokens * outer
        _stripe(low, dout, sums, first, last, outer, rank, inner, columns, tile - tiles, BLOCK_N, BLOCK_W, BLOCK_R)


@triton.jit
def _sum_kernel(
    sums, adapter, da, db, parts, stripes, inner, outer, rank, BLOCK_P: tl.constexpr, BLOCK_W: tl.constexpr,
):  # fmt: skip
    """A row of dA and a column of dB: the sum over the stripes of all rows that use this adapter, in a fixed order."""
    column, rank_place = tl.program_id(0) * BLOCK_W + tl.arange(0, BLOCK_W), tl.program_id(1).to(tl.int64)
    member, columns = tl.program_id(2).to(tl.int64), inner + outer
    total = tl.zeros((BLOCK_W,), tl.float32)
    for start in range(0, parts, BLOCK_P):
        part = start + tl.arange(0, BLOCK_P)
        mine = part < parts
        if adapter is not None:
            mine = mine & (tl.load(adapter + part // stripes, mask=mine, other=-1) == member)
        place = (part.to(tl.int64) * rank + rank_place)[:, None] * columns + column[None, :]
        total += tl.sum(tl.load(sums + place, mask=mine[:, None] & (column < columns)[None, :], other=0.0), 0)
    tl.store(da + (member * rank + rank_place) * inner + column, total.to(da.dtype.element_ty), mask=column < inner)
    in_b = (column >= inner) & (column < columns)
    tl.store(db + (member * outer + column - inner) * rank + rank_place, total.to(db.dtype.element_ty), mask=in_b)


def _blocks(rank: int, dtype: torch.dtype, rows: int) -> dict[str, int]:
    """Of the update: fewer rows for small batches, and small blocks in float32, whose factors fill the registers."""
    blocks = {"BLOCK_R": _padded(rank)}
    if dtype == torch.float32:
        return blocks | {"BLOCK_N": 32, "BLOCK_I": 32, "BLOCK_O": 32, "num_warps": 8}
    columns = 128 if rank <= 32 else 64
    blocks |= {"BLOCK_N": 64 if rows >= 64 * PROCESSORS else 32, "BLOCK_I": columns, "BLOCK_O": columns}
    return blocks | {"num_warps": 4, "num_stages": 4}


def _padded(rank: int) -> int:
    """Tensor cores need at least 16."""
    return max(16, triton.next_power_of_2(rank))


def _update(
    x: Tensor, down: Tensor, up: Tensor, bias: Tensor | None, adapter: Tensor | None, scale: float, with_out: bool
) -> tuple[Tensor, Tensor]:
    """(low = scale x downᵀ, low upᵀ + bias): down is "M R I", up is "M R O", with any strides of the last two axes."""
    batch, tokens, inner = x.shape
    rank, outer = up.shape[1:]
    low = x.new_empty(batch, tokens, rank)
    out = x.new_empty((batch, tokens, outer) if with_out else 0)
    blocks = _blocks(rank, x.dtype, batch * tokens)
    if batch * tokens:
        _update_kernel[(triton.cdiv(tokens, blocks["BLOCK_N"]), batch)](
            x, down, up, bias, adapter, low, out if with_out else None, tokens, inner, outer, rank, scale,
            *down.stride()[1:], *up.stride()[1:], **blocks,
        )  # fmt: skip
    return low, out


@torch.library.custom_op("minillm::lora", mutates_args=())
def _lora(
    x: Tensor, weight: Tensor, bias: Tensor | None, a: Tensor, b: Tensor, adapter: Tensor | None, scale: float,
    dropped: Tensor | None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """(out, s x Aᵀ): x is "B T I", A "M R I", B "M O R"; row i of the batch uses adapter[i], or none if that is -1."""
    x = x.contiguous()
    a_input = x if dropped is None else dropped.contiguous()
    low, out = _update(a_input, a.contiguous(), b.contiguous().mT, bias, adapter, scale, True)
    out.flatten(0, 1).addmm_(x.flatten(0, 1), weight.T)
    return out, low


@_lora.register_fake
def _(x: Tensor, weight: Tensor, bias: Tensor | None, a: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    return x.new_empty(*x.shape[:-1], weight.shape[0]), x.new_empty(*x.shape[:-1], a.shape[1])


@torch.library.custom_op("minillm::lora_backward", mutates_args=())
def _lora_backward(
    dout: Tensor, a_input: Tensor, weight: Tensor | None, a: Tensor, b: Tensor, adapter: Tensor | None, low: Tensor,
    scale: float, needed: list[bool],
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """The gradients of the input of A, of A and of B; the first includes the term of `weight`, if it is given.

    `needed` has two flags, for the first gradient and for the other two; a gradient that is not needed is empty.
    """
    dout, a_input, a, b = dout.contiguous(), a_input.contiguous(), a.contiguous(), b.contiguous()
    shared, d_input = _update(dout, b.mT, a, None, adapter, scale, needed[0])
    if needed[0] and weight is not None:
        d_input.flatten(0, 1).addmm_(dout.flatten(0, 1), weight)
    if not needed[1]:
        return d_input, a.new_empty(0), b.new_empty(0)
    return d_input, *_factor_gradients(a_input, dout, low, shared, adapter, a, b)


@_lora_backward.register_fake
def _(
    dout: Tensor, a_input: Tensor, weight: Tensor | None, a: Tensor, b: Tensor, adapter: Tensor | None, low: Tensor,
    scale: float, needed: list[bool],
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    for_input, for_factors = needed
    sides = ((a_input, for_input), (a, for_factors), (b, for_factors))
    d_input, da, db = (side.new_empty(side.shape if wants else 0) for side, wants in sides)
    return d_input, da, db


def _factor_gradients(
    a_input: Tensor, dout: Tensor, low: Tensor, shared: Tensor, adapter: Tensor | None, a: Tensor, b: Tensor
) -> tuple[Tensor, Tensor]:
    """The gradients of A and B, sharedᵀ x and doutᵀ low, over the rows that use each adapter."""
    (batch, tokens, inner), (members, outer, rank) = a_input.shape, b.shape
    width = 64 if a_input.dtype == torch.float32 else 128
    tiles, blocks = triton.cdiv(inner, width), triton.cdiv(max(tokens, 1), BLOCK_STRIPE)
    programs = tiles + triton.cdiv(outer, width)
    stripe = BLOCK_STRIPE * triton.cdiv(blocks, min(blocks, max(1, PROGRAMS // (programs * max(batch, 1)))))
    stripes = triton.cdiv(max(tokens, 1), stripe)
    sums = a_input.new_empty((batch, stripes, rank, inner + outer), dtype=torch.float32)
    _stripes_kernel[(programs, stripes, batch)](
        a_input, dout, low, shared, adapter, sums, tokens, inner, outer, rank, stripe, tiles,
        BLOCK_N=BLOCK_STRIPE, BLOCK_W=width, BLOCK_R=_padded(rank), num_warps=4,
    )  # fmt: skip
    da, db = torch.empty_like(a), torch.empty_like(b)
    _sum_kernel[(triton.cdiv(inner + outer, 128), rank, members)](
        sums, adapter, da, db, batch * stripes, stripes, inner, outer, rank, BLOCK_P=16, BLOCK_W=128, num_warps=4
    )
    return da, db


def _save(ctx: Any, inputs: tuple, output: tuple[Tensor, Tensor]) -> None:
    x, weight, _, a, b, adapter, ctx.scale, dropped = inputs
    ctx.save_for_backward(x if dropped is None else dropped, weight, a, b, adapter, output[1])
    ctx.drops = dropped is not None
    ctx.set_materialize_grads(False)


def _differentiate(ctx: Any, dout: Tensor, _: Tensor | None):
    a_input, weight, a, b, adapter, low = ctx.saved_tensors
    for_x, _, for_bias, for_a, for_b, _, _, for_dropped = ctx.needs_input_grad
    needed = [for_dropped if ctx.drops else for_x, for_a or for_b]
    with_weight = None if ctx.drops else weight
    d_input, da, db = _lora_backward(dout, a_input, with_weight, a, b, adapter, low, ctx.scale, needed)
    dx = (dout @ weight if ctx.drops else d_input) if for_x else None
    dbias = dout.flatten(0, 1).sum(0) if for_bias else None
    factors = (da, db) if needed[1] else (None, None)
    return dx, None, dbias, *factors, None, None, d_input if for_dropped else None


_lora.register_autograd(_differentiate, setup_context=_save)


def lora(
    x: Tensor, weight: Tensor, bias: Tensor | None, a: Tensor, b: Tensor, scale: float, dropped: Tensor | None = None
) -> Tensor:
    rows, dropped_rows = (None if side is None else side.reshape(1, -1, x.shape[-1]) for side in (x, dropped))
    out, _ = _lora(rows, weight, bias, a[None], b[None], None, float(scale), dropped_rows)
    return out.view(*x.shape[:-1], weight.shape[0])
