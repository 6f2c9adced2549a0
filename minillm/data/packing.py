"""Packing: rows of tokens joined to longer ones without padding between them; the mask keeps them apart."""

from collections.abc import Sequence
from itertools import accumulate
from typing import NamedTuple

from torch import Tensor

from minillm.data.batches import pad_right
from minillm.shapes import Int


class Packed(NamedTuple):
    """The ids and the `shapes.Mask` of packed rows; the packed row and the first column of each original one."""

    ids: Int[Tensor, "B T"]
    mask: Int[Tensor, "B T"]
    places: list[tuple[int, int]]


def pack(rows: Sequence[Sequence[int]], capacity: int) -> Packed:
    """Rows joined to rows of at most `capacity` tokens; a longer one stays alone."""
    groups = first_fit_decreasing([len(row) for row in rows], capacity)
    places = [(0, 0)] * len(rows)
    for place, group in enumerate(groups):
        for index, start in zip(group, accumulate((len(rows[n]) for n in group), initial=0), strict=False):
            places[index] = place, start
    numbers = [[number for number, n in enumerate(group, 1) for _ in rows[n]] for group in groups]
    ids = pad_right([[token for index in group for token in rows[index]] for group in groups])[0]
    return Packed(ids, pad_right(numbers)[0], places)


def first_fit_decreasing(lengths: Sequence[int], capacity: int) -> list[list[int]]:
    """The indices in each packed row: the longest first, each where it fits first (at most 11/9 of the fewest rows)."""
    groups: list[list[int]] = []
    room: list[int] = []
    for index in sorted(range(len(lengths)), key=lambda index: -lengths[index]):
        place = next((place for place, left in enumerate(room) if lengths[index] <= left), len(groups))
        if place == len(groups):
            groups.append([])
            room.append(capacity)
        groups[place].append(index)
        room[place] -= lengths[index]
    return groups
