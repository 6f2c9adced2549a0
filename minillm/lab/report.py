"""Tables and standard errors of measurements."""

import math
import shutil
import sys
from collections.abc import Mapping, Sequence
from typing import Any

COLUMNS = "technique", "place in figure 1", "trainable", "adapter size", "accuracy", "train", "eval", "tokens/s", "peak"
LEAST = "peak", "tokens/s", "adapter size", "place in figure 1", "eval", "train", "trainable"
"""The columns that a narrow terminal leaves out, the first ones first."""


def standard_error(share: float, count: int) -> float:
    """The standard error of a share of `count` independent rows: sqrt(p (1 - p) / n)."""
    return math.sqrt(share * (1 - share) / count)


def verdict(measured: Mapping[str, Any]) -> str:
    """The accuracy with its standard error, next to that of always predicting the most frequent class."""
    accuracy = f"accuracy {measured['accuracy']:.3f} ± {measured['standard_error']:.3f}"
    return f"{accuracy}, majority baseline {measured['majority_baseline']:.3f}"


def terminal_width() -> float:
    """The columns of the terminal; a file or a pipe has no limit."""
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else math.inf


def aligned(rows: Sequence[Sequence[str]], left: int = 1, least: Sequence[str] = ()) -> str:
    """Rows in aligned columns under a header line; the first `left` columns are left-aligned.

    For a terminal that is too narrow, columns of `least` are left out from the first on, then cells are shortened.
    """
    columns, dropped = [(n < left, list(cells)) for n, cells in enumerate(zip(*rows, strict=True))], []

    def excess() -> float:
        return sum(max(map(len, cells)) + 2 for _, cells in columns) - 2 - terminal_width()

    while excess() > 0 and len(dropped) < len(least):
        dropped.append(least[len(dropped)])
        columns = [column for column in columns if column[1][0] != dropped[-1]]
    if excess() > 0:
        most = max(8, max(len(cell) for text, cells in columns if text for cell in cells) - int(excess()))
        columns = [
            (text, [f"{c[: most - 1]}…" if text and len(c) > most else c for c in cells]) for text, cells in columns
        ]
    filled = []
    for text, cells in columns:
        width = max(map(len, cells))
        filled.append([cell.ljust(width) if text else cell.rjust(width) for cell in cells])
    header, *lines = ("  ".join(cells) for cells in zip(*filled, strict=True))
    notes = [f"no room for: {', '.join(dropped)}"] if dropped else []
    return "\n".join([header.rstrip(), "-" * len(header), *(line.rstrip() for line in lines), *notes])


def table(ladder: dict[str, Any]) -> str:
    """The table of rungs: parameters, size, accuracy with its standard error, seconds, tokens/s, memory.

    Below it are the rungs that failed, with the reasons.
    """
    rows = aligned([COLUMNS, *(_cells(rung) for rung in ladder["rungs"])], left=2, least=LEAST)
    return "\n".join([rows, *(f"{name}: skipped, {reason}" for name, reason in ladder.get("skipped", {}).items())])


def _cells(rung: dict[str, Any]) -> tuple[str, ...]:
    peak = rung["peak_memory_bytes"]
    return (
        rung["technique"],
        rung["place"],
        f"{rung['trainable_parameters']:,}",
        in_bytes(rung["stored_bytes"]),
        f"{rung['accuracy']:.3f} ± {rung['standard_error']:.3f}",
        f"{rung['train_seconds']:.1f} s",
        f"{rung['eval_seconds']:.1f} s",
        f"{rung['tokens_per_second']:,.0f}",
        "-" if peak is None else in_bytes(peak),
    )


def in_bytes(count: int | float) -> str:
    """A number of bytes in a suitable unit: 0 B, 4.6 kB, 1.8 MB, 2.10 GiB."""
    if count < 1000:
        return f"{count:.0f} B"
    if count < 1e6:
        return f"{count / 1e3:.1f} kB"
    return f"{count / 1e6:.1f} MB" if count < 2**29 else f"{count / 2**30:.2f} GiB"
