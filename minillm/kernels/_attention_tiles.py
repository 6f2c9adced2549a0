"""Shared by the kernels of attention: the addresses of tiles of queries and keys, and the scores between two of them.

A tensor is passed as (pointer, strides of its rows, heads and positions), so it need not be copied to be contiguous.
The queries of a group form one stack: row r of the stack is query r // group of the group's head r % group. Keys and
values are stacks of groups of one.
"""

import triton
import triton.language as tl

from minillm.kernels._interpreter import EXACT, WIDEN


@triton.jit
def _place(side, b, g, first, ROWS: tl.constexpr, GROUP: tl.constexpr, BLOCK_K: tl.constexpr):
    """The addresses of a tile of a stack; offsets within it have 32 bits, which saves registers."""
    pointer, stride_b, stride_h, stride_t = side
    pointer += tl.cast(b, tl.int64) * stride_b + tl.cast(g, tl.int64) * GROUP * stride_h
    pointer += tl.cast(first // GROUP, tl.int64) * stride_t
    row = first % GROUP + tl.arange(0, ROWS)
    return pointer + (row // GROUP * stride_t + row % GROUP * stride_h)[:, None] + tl.arange(0, BLOCK_K)[None, :]


@triton.jit
def load(
    side, b, g, first, rows, ROWS: tl.constexpr, GROUP: tl.constexpr, WIDTH: tl.constexpr, BLOCK_K: tl.constexpr,
    EDGE: tl.constexpr = True,
):  # fmt: skip
    """A tile of a stack, from row `first`; zeros beyond the head width and, at an edge, beyond the last row."""
    place = _place(side, b, g, first, ROWS, GROUP, BLOCK_K)
    within = (tl.arange(0, BLOCK_K) < WIDTH)[None, :]
    if EDGE:
        tile = tl.load(place, mask=within & (first + tl.arange(0, ROWS) < rows)[:, None], other=0.0)
    elif WIDTH < BLOCK_K:
        tile = tl.load(place, mask=within, other=0.0)
    else:
        tile = tl.load(place)
    return tile.to(tl.float32) if WIDEN else tile


@triton.jit
def store(
    side, b, g, first, rows, tile, ROWS: tl.constexpr, GROUP: tl.constexpr, WIDTH: tl.constexpr, BLOCK_K: tl.constexpr
):
    within = (tl.arange(0, BLOCK_K) < WIDTH)[None, :] & (first + tl.arange(0, ROWS) < rows)[:, None]
    tl.store(_place(side, b, g, first, ROWS, GROUP, BLOCK_K), tile.to(side[0].dtype.element_ty), mask=within)


@triton.jit
def scores_of(q, k, mask, b, key, keys, last, EDGE: tl.constexpr):
    """Queries times keys, -∞ for masked keys: padding and, at an edge, keys after the last visible one of a row."""
    scores = tl.dot(q, tl.trans(k), input_precision=EXACT)
    if mask is not None:
        visible = tl.load(mask + b.to(tl.int64) * keys + key, mask=key < keys, other=0)[None, :] != 0
        if EDGE:  # every query attends to its own position, padding or not
            visible = (visible & (key[None, :] < last[:, None])) | (key[None, :] == last[:, None])
        scores = tl.where(visible, scores, float("-inf"))
    elif EDGE:
        scores = tl.where(key[None, :] <= last[:, None], scores, float("-inf"))
    return scores


@triton.jit
def program_of(groups, queries, keys, GROUP: tl.constexpr, BLOCK_T: tl.constexpr, BLOCK_S: tl.constexpr):
    """(b, g, first row, own key of each row, number of keys visible to all rows, in whole tiles, and to any row)."""
    rows = queries * GROUP
    tiles = tl.cdiv(rows, BLOCK_T)
    head = tl.program_id(0) // tiles
    # The last queries have the most keys: they run first, so that no long program is left at the end.
    start = (tiles - 1 - tl.program_id(0) % tiles) * BLOCK_T
    own = (start + tl.arange(0, BLOCK_T)) // GROUP + keys - queries
    whole = (start // GROUP + keys - queries) // BLOCK_S * BLOCK_S
    end = (tl.minimum(start + BLOCK_T, rows) - 1) // GROUP + keys - queries + 1
    return head // groups, head % groups, start, own, whole, end
