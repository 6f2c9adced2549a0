"""Measured speedups of the kernels over torch, by GPU model: the rule by which `operations` chooses.

`measured.json` is written by the benchmark of the kernels, and a file of the same rows in the user's cache by `minillm
check --kernels --measure`, which counts more. Other sizes use the nearest measured ones, by the product of the ratios.
A GPU without measurements uses torch, and so does a machine without triton.
"""

import importlib.util
import json
import math
from functools import lru_cache
from importlib.resources import files
from typing import Any

import torch

from minillm.runtime.cache import SPEEDUPS_FORMAT, kernel_speedups
from minillm.runtime.reading import read_sealed, reading

Sizes = tuple[int, ...]
Measured = dict[tuple[str, str, torch.dtype], list[tuple[Sizes, float]]]


def faster(device: torch.device, operation: str, dtype: torch.dtype, sizes: Sizes) -> bool:
    """Whether the kernel was faster on this GPU model, in this dtype, at the measured sizes nearest to these.

    While torch.compile traces, sizes may be symbols. A cache by size is useless then, and the comparisons become the
    guards that let one program serve all sizes with the same choice.
    """
    gpu = torch.cuda.get_device_properties(device).name
    return (_won if torch.compiler.is_compiling() else _remembered)(gpu, operation, dtype, sizes)


def _won(gpu: str, operation: str, dtype: torch.dtype, sizes: Sizes) -> bool:
    nearest, speedup = math.inf, 0.0
    for measured, times in MEASURED.get((gpu, operation, dtype), ()):
        if len(measured) == len(sizes) and (distance := _distance(measured, sizes)) < nearest:
            nearest, speedup = distance, times
    return speedup > 1


_remembered = lru_cache(maxsize=4096)(_won)


def _distance(measured: Sizes, sizes: Sizes) -> float:
    product = 1.0
    for one, other in zip(measured, sizes, strict=True):
        product = product * max(max(one, 1) / max(other, 1), max(other, 1) / max(one, 1))
    return product


def _read() -> Measured:
    found = _by_key(json.loads(files("minillm.kernels").joinpath("measured.json").read_text("utf-8")))
    if (own := kernel_speedups()).exists():
        with reading(own, "measured speedups", advice="; delete it, or measure again"):
            found |= _by_key(read_sealed(own, SPEEDUPS_FORMAT)["rows"])
    return found


def _by_key(rows: list[dict[str, Any]]) -> Measured:
    found: Measured = {}
    for row in rows:
        key = row["gpu"], row["operation"], getattr(torch, row["dtype"])
        found.setdefault(key, []).append((tuple(row["sizes"]), float(row["speedup"])))
    return found


MEASURED = _read() if importlib.util.find_spec("triton") is not None else {}
