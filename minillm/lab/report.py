"""Tables and standard errors of measurements."""

import math
import shutil
import sys
from collections.abc import Mapping, Sequence
from typing import Any

COLUMNS = "method", "place in figure 1", "trainable", "adapter", "accuracy", "ECE", "train", "eval", "tokens/s", "peak"
LEAST = "peak", "tokens/s", "ECE", "adapter", "place in figure 1", "eval", "train", "trainable"
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
    """The table of rungs: parameters, size, accuracy with its standard error, calibration, seconds, tokens/s, memory.

    Below it are the rungs that failed, with the reasons.
    """
    rows = [aligned([COLUMNS, *(_cells(rung) for rung in ladder["rungs"])], left=2, least=LEAST)]
    if (seeds := max((len(rung["runs"]) for rung in ladder["rungs"]), default=1)) > 1:
        rows.append(f"means of {seeds} seeds where they matter; ± is the standard error over test rows and seeds")
    return "\n".join([*rows, *(f"{name}: skipped, {reason}" for name, reason in ladder.get("skipped", {}).items())])


def _cells(rung: dict[str, Any]) -> tuple[str, ...]:
    peak = rung["peak_memory_bytes"]
    return (
        rung["technique"],
        rung["place"],
        f"{rung['trainable_parameters']:,}",
        in_bytes(rung["stored_bytes"]),
        f"{rung['accuracy']:.3f} ± {rung['standard_error']:.3f}",
        f"{rung['calibration_error']:.3f}",
        f"{rung['train_seconds']:.1f} s",
        f"{rung['eval_seconds']:.1f} s",
        f"{rung['tokens_per_second']:,.0f}",
        "-" if peak is None else in_bytes(peak),
    )


def differences(pairs: Sequence[Mapping[str, Any]]) -> list[str]:
    """Which differences are larger than noise: of more than ten those with the best rung; a narrow terminal counts."""
    rows = [("difference in accuracy", "points", "95 % interval", "p (Holm)", "")]
    for pair in pairs if len(pairs) <= 10 else [pair for pair in pairs if pair["first"] == pairs[0]["first"]]:
        points, low, high = (f"{round(100 * pair[name], 1) + 0.0:+.1f}" for name in ("difference", "low", "high"))
        names, p = f"{pair['first']} - {pair['second']}", f"{pair['holm_p']:.2g}"
        rows.append((names, points, f"{low} to {high}", p, pair["verdict"]))
    larger = sum(pair["verdict"] == "larger than noise" for pair in pairs)
    lines = [aligned(rows)] if terminal_width() >= 80 else []
    return [*lines, f"{larger} of {len(pairs)} differences are larger than noise", ""] if pairs else []


def in_bytes(count: int | float) -> str:
    """A number of bytes in a suitable unit: 0 B, 4.6 kB, 1.8 MB, 2.10 GiB."""
    if count < 1000:
        return f"{count:.0f} B"
    if count < 1e6:
        return f"{count / 1e3:.1f} kB"
    return f"{count / 1e6:.1f} MB" if count < 2**29 else f"{count / 2**30:.2f} GiB"
