"""Where a kernel was measured to be quicker than torch: the rule by which `ops` chooses, on one kind of GPU each.

`measured.json` is written by the benchmark of the kernels. Sizes between those that were measured go with the nearest,
in factors of two. A GPU on which nothing was measured computes by torch.
"""

import json
import math
from collections.abc import Sequence
from functools import lru_cache
from importlib.resources import files

import torch


@lru_cache(maxsize=4096)
def quicker(gpu: str, operation: str, dtype: torch.dtype, sizes: Sequence[int]) -> bool:
    """Whether the kernel won, on this GPU and in this dtype, at the measured sizes that are nearest to these."""
    rows = [
        row
        for row in _rows()
        if (row["gpu"], row["operation"], row["dtype"]) == (gpu, operation, str(dtype).removeprefix("torch."))
        and len(row["sizes"]) == len(sizes)
    ]
    if not rows:
        return False
    return min(rows, key=lambda row: _distance(row["sizes"], sizes))["times_as_quick"] > 1


def _distance(one: Sequence[int], other: Sequence[int]) -> float:
    return sum(abs(math.log2(max(a, 1) / max(b, 1))) for a, b in zip(one, other, strict=True))


@lru_cache(maxsize=1)
def _rows() -> list[dict]:
    return json.loads(files("minillm.kernels").joinpath("measured.json").read_text("utf-8"))
