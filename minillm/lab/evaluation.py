"""Predicted labels against the correct ones: accuracy, precision, recall, F1, the confusion matrix."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from minillm.lab.report import aligned, standard_error, verdict

WIDTH, Z = 80, 1.96
"""Columns of a terminal, and standard errors of a 95 % interval."""


def wilson(share: float, count: int) -> tuple[float, float]:
    """The 95 % interval of a share of `count` independent rows; it stays within [0, 1] (Wilson 1927)."""
    centre, scale = share + Z**2 / (2 * count), 1 + Z**2 / count
    half = Z * math.sqrt(share * (1 - share) / count + (Z / (2 * count)) ** 2)
    return (centre - half) / scale, (centre + half) / scale


def evaluated(confusion: Sequence[Sequence[int]], names: Sequence[str]) -> dict[str, Any]:
    """The measures of a confusion matrix, whose rows are the labels and its columns the predictions. 0 / 0 is 0."""
    classes, rows = {}, sum(map(sum, confusion))
    for n, (name, row, column) in enumerate(zip(names, confusion, zip(*confusion, strict=True), strict=True)):
        support, predicted, right = sum(row), sum(column), row[n]
        shares = (predicted, support, (support + predicted) / 2)
        precision, recall, f1 = (right / count if count else 0.0 for count in shares)
        classes[name] = {"precision": precision, "recall": recall, "f1": f1, "rows": support}
    share = sum(row[n] for n, row in enumerate(confusion)) / rows
    return {
        "rows": rows, "accuracy": share, "standard_error": standard_error(share, rows), "interval": wilson(share, rows),
        "majority_baseline": max(map(sum, confusion)) / rows, "classes": classes, "confusion": confusion,
    }  # fmt: skip


def shown(found: Mapping[str, Any]) -> str:
    """The measures as text; a confusion matrix of more than 80 columns is left out."""
    names = [f"{n} {name if len(name) <= 30 else f'{name[:27]}...'}" for n, name in enumerate(found["classes"], 1)]
    measures: list[tuple[str, ...]] = [("label", "precision", "recall", "F1", "rows")]
    for name, (*shares, rows) in zip(names, (each.values() for each in found["classes"].values()), strict=True):
        measures.append((name, *(f"{share:.3f}" for share in shares), str(rows)))
    counts = [(name, *map(str, row)) for name, row in zip(names, found["confusion"], strict=True)]
    matrix = aligned([("predicted as", *map(str, range(1, len(names) + 1))), *counts])
    if max(map(len, matrix.splitlines())) > WIDTH:
        matrix = f"the confusion matrix is wider than {WIDTH} columns; --json prints it"
    low, high = found["interval"]
    interval = f"95 % interval {low:.3f} to {high:.3f}, {found['rows']:,} rows"
    return f"{aligned(measures)}\n\n{matrix}\n\n{verdict(found)}\n{interval}"
