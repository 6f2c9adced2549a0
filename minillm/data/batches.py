"""Padding and length buckets: rows of unequal length in one tensor.

For generation, rows are padded on the left and need a mask. For scoring and training, they are padded on the right and
need none: attention is causal, and positions count from the left.
"""

import random
from collections.abc import Sequence

import torch
from torch import Tensor

from minillm.errors import InputError
from minillm.shapes import Bool, Int


def pad_left(rows: Sequence[Sequence[int]], padding: int = 0) -> tuple[Int[Tensor, "B T"], Bool[Tensor, "B T"]]:
    """(ids, mask); every row ends in the last column. Raises InputError for an empty row."""
    width = _width(rows)
    ids = torch.tensor([[padding] * (width - len(row)) + list(row) for row in rows])
    mask = torch.tensor([[False] * (width - len(row)) + [True] * len(row) for row in rows])
    return ids, mask


def pad_right(rows: Sequence[Sequence[int]], padding: int = 0) -> tuple[Int[Tensor, "B T"], Int[Tensor, "B"]]:
    """(ids, index of the last token of each row); every row starts in the first column."""
    width = _width(rows)
    ids = torch.tensor([list(row) + [padding] * (width - len(row)) for row in rows])
    return ids, torch.tensor([len(row) - 1 for row in rows])


def _width(rows: Sequence[Sequence[int]]) -> int:
    if not rows or not all(len(row) for row in rows):
        raise InputError("a batch needs at least one row, and every row at least one token")
    return max(len(row) for row in rows)


def length_buckets(lengths: Sequence[int], size: int, order: random.Random | None = None) -> list[list[int]]:
    """Batches of `size` row indices of similar lengths, which keeps padding small.

    For training, `order` shuffles the batches, and the rows of equal length.
    """
    indices = list(range(len(lengths)))
    if order is not None:
        order.shuffle(indices)
    indices.sort(key=lambda index: lengths[index])
    batches = [indices[start : start + size] for start in range(0, len(indices), size)]
    if order is not None:
        order.shuffle(batches)
    return batches


def generation_batches(prompts: Sequence[int], answers: Sequence[int], size: int, room: int) -> list[list[int]]:
    """`length_buckets` of prompts, divided where the longest prompt and the longest answer of a batch exceed `room`.

    A row that exceeds it alone is a batch of its own.
    """
    found = []
    for bucket in length_buckets(prompts, size):
        batch: list[int] = []
        for row in bucket:
            if batch and max(prompts[n] for n in [*batch, row]) + max(answers[n] for n in [*batch, row]) > room:
                found.append(batch)
                batch = []
            batch.append(row)
        found.append(batch)
    return found
