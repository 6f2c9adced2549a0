"""Rows of unequal length in one tensor, and which rows go together.

To generate, rows are padded on the left and a mask says where they begin. To score or to train, they are padded on
the right and need no mask: a causal decoder never looks to the right, and positions count from the left.
"""

import random
from collections.abc import Sequence

import torch
from torch import Tensor

from minillm.errors import InputError
from minillm.shapes import Bool, Int


def pad_left(rows: Sequence[Sequence[int]], padding: int = 0) -> tuple[Int[Tensor, "B T"], Bool[Tensor, "B T"]]:
    """(ids, mask), every row ending in the last column. Raises InputError for an empty row."""
    width = _width(rows)
    ids = torch.tensor([[padding] * (width - len(row)) + list(row) for row in rows])
    mask = torch.tensor([[False] * (width - len(row)) + [True] * len(row) for row in rows])
    return ids, mask


def pad_right(rows: Sequence[Sequence[int]], padding: int = 0) -> tuple[Int[Tensor, "B T"], Int[Tensor, "B"]]:
    """(ids, index of each row's last token), every row beginning in the first column."""
    width = _width(rows)
    ids = torch.tensor([list(row) + [padding] * (width - len(row)) for row in rows])
    return ids, torch.tensor([len(row) - 1 for row in rows])


def _width(rows: Sequence[Sequence[int]]) -> int:
    if not rows or not all(len(row) for row in rows):
        raise InputError("a batch needs at least one row, and every row at least one token")
    return max(len(row) for row in rows)


def length_buckets(lengths: Sequence[int], size: int, order: random.Random | None = None) -> list[list[int]]:
    """Indices of rows in batches of `size` neighbours in length, so that little of a batch is padding.

    `order` shuffles the batches among themselves, and the rows of equal length, for training.
    """
    indices = list(range(len(lengths)))
    if order is not None:
        order.shuffle(indices)
    indices.sort(key=lambda index: lengths[index])
    batches = [indices[start : start + size] for start in range(0, len(indices), size)]
    if order is not None:
        order.shuffle(batches)
    return batches
