"""What the kernels of attention share: where tiles of queries and of keys lie, and the scores between two of them.

A tensor comes as (pointer, strides of its rows, heads, positions), so that nothing is copied to be read in order. The
queries of a group stand in one stack, row r of it being query r // group of the group's head r % group. Keys and values
are stacks of groups of one.
"""

import triton
import triton.language as tl

from minillm.kernels._interpreter import FULL_FLOAT32, INTERPRETED

EXACT, WIDEN = tl.constexpr(FULL_FLOAT32), tl.constexpr(INTERPRETED)


@triton.jit
def _place(side, b, g, first, ROWS: tl.constexpr, GROUP: tl.constexpr, BLOCK_K: tl.constexpr):
    """Where a tile of a stack lies: within it 32 bits do, which leaves registers to the numbers."""
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
    """A tile of a stack, from row `first` on; zeros past the head's width and, at an edge, past the last row."""
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
    """Queries times keys, -∞ where one is hidden: where padding stands and, at an edge, past the last a row sees."""
    scores = tl.dot(q, tl.trans(k), input_precision=EXACT)
    if mask is not None:
        visible = tl.load(mask + b.to(tl.int64) * keys + key, mask=key < keys, other=0)[None, :] != 0
        if EDGE:  # every query sees itself, padding or not
            visible = (visible & (key[None, :] < last[:, None])) | (key[None, :] == last[:, None])
        scores = tl.where(visible, scores, float("-inf"))
    elif EDGE:
        scores = tl.where(key[None, :] <= last[:, None], scores, float("-inf"))
    return scores


@triton.jit
def program_of(groups, queries, keys, GROUP: tl.constexpr, BLOCK_T: tl.constexpr, BLOCK_S: tl.constexpr):
    """(b, g, the first row, every row's own key, how many keys they all see, in whole tiles, and how many any sees)."""
    rows = queries * GROUP
    tiles = tl.cdiv(rows, BLOCK_T)
    head = tl.program_id(0) // tiles
    # The last queries see the most keys: they come first, so that no long program is left for the end.
    start = (tiles - 1 - tl.program_id(0) % tiles) * BLOCK_T
    itself = (start + tl.arange(0, BLOCK_T)) // GROUP + keys - queries
    whole = (start // GROUP + keys - queries) // BLOCK_S * BLOCK_S
    end = (tl.minimum(start + BLOCK_T, rows) - 1) // GROUP + keys - queries + 1
    return head // groups, head % groups, start, itself, whole, end
