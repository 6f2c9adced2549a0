"""Comparisons of measured sides: speedups, their variation over rounds, and errors against a reference.

The rate of a round is compared with the reference's rate in the same round. The ratio of the medians is the figure to
quote; the range of the ratios of single rounds shows how reliable it is.
"""

import json
import os
import platform
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

from minillm.errors import InputError
from minillm.lab.report import in_bytes

PACKAGES = ("minillm", "torch", "numpy", "transformers", "peft", "scikit-learn")

Errors = dict[str, dict[str, float]]
"""By side, and by quantity."""


@dataclass
class Rounds:
    """The rounds of one side: the amount of work (tokens, rows, one load), the seconds and the answer of each."""

    side: str
    answers: list[Any] = field(default_factory=list)
    amounts: list[float] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    peak_bytes: int | None = None

    @property
    def rates(self) -> list[float]:
        return [amount / seconds for amount, seconds in zip(self.amounts, self.seconds, strict=True)]


class Ratio(NamedTuple):
    """The speedup by medians, and the lowest and highest speedup of a single round."""

    of_medians: float
    lowest: float
    highest: float


def ratio(side: Rounds, reference: Rounds) -> Ratio:
    """The rate of the side over that of the reference."""
    single = [mine / theirs for mine, theirs in zip(side.rates, reference.rates, strict=True)]
    return Ratio(statistics.median(side.rates) / statistics.median(reference.rates), min(single), max(single))


def error(found: Any, expected: Any) -> float:
    """The norm of the difference, relative to the norm of the expected value.

    Dictionaries of arrays (gradients by name) count as one long vector.
    """
    import numpy as np

    if isinstance(expected, dict):
        if found.keys() != expected.keys():
            return float("inf")
        found, expected = (np.concatenate([side[key].ravel() for key in expected]) for side in (found, expected))
    return float(np.linalg.norm(found - expected) / np.linalg.norm(expected))


def check(side: str, found: dict[str, Any], expected: dict[str, Any], tolerance: float) -> dict[str, float]:
    """The error of each quantity. Raises InputError if a side's results differ from the others'."""
    errors = {what: error(found[what], expected[what]) for what in expected}
    for what, size in errors.items():
        if not size <= tolerance:  # a NaN is not within any tolerance
            raise InputError(f"{side}: relative error of the {what} must be at most {tolerance:.0e}, got {size:.1e}")
    return errors


@dataclass
class Comparison:
    """One kind of work by all sides, with the errors of the checks, and the reference side."""

    title: str
    unit: str  # of the work; empty if its rate is not of interest
    reference: str
    rounds: list[Rounds]
    errors: Errors = field(default_factory=dict)

    def ratios(self) -> list[Ratio]:
        reference = next(rounds for rounds in self.rounds if rounds.side == self.reference)
        return [ratio(rounds, reference) for rounds in self.rounds]

    def table(self) -> str:
        """Medians, their ratio, and the range of ratios in single rounds; columns without figures are omitted."""
        head = ("side", "round", f"{self.unit}/s", "speedup", "single rounds", "peak memory", "max error")
        columns = zip(head, *map(self._cells, self.rounds, self.ratios()), strict=True)
        rows = list(zip(*(column for column in columns if set(column[1:]) != {"-"}), strict=True))
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = ["  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]) for row in rows]
        about = f"{self.title}: medians of {len(self.rounds[0].seconds)} rounds; speedup over {self.reference}"
        return "\n".join([about, lines[0], "-" * len(lines[0]), *lines[1:]])

    def _cells(self, rounds: Rounds, ratio: Ratio) -> tuple[str, ...]:
        errors = self.errors.get(rounds.side, {})
        return (
            rounds.side,
            f"{statistics.median(rounds.seconds):.3g} s",
            f"{statistics.median(rounds.rates):,.0f}" if self.unit else "-",
            f"{ratio.of_medians:.2f}",
            f"{ratio.lowest:.2f} to {ratio.highest:.2f}",
            "-" if rounds.peak_bytes is None else in_bytes(rounds.peak_bytes),
            f"{max(errors.values()):.0e}" if errors else "-",
        )

    def as_json(self) -> dict[str, Any]:
        sides = [
            {
                "side": rounds.side,
                "amounts": rounds.amounts,
                "seconds": rounds.seconds,
                "median_rate": statistics.median(rounds.rates),
                "ratio": ratio._asdict(),
                "peak_memory_bytes": rounds.peak_bytes,
                "errors": self.errors.get(rounds.side, {}),
            }
            for rounds, ratio in zip(self.rounds, self.ratios(), strict=True)
        ]
        return {"title": self.title, "unit": self.unit, "reference": self.reference, "sides": sides}


def cores() -> int:
    """The cores that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def multiplies_bfloat16(device: str = "cpu") -> bool:
    """Whether this device multiplies bfloat16 natively; on others those rows would be meaningless."""
    import torch

    from minillm.runtime.device import best_precision

    return best_precision(torch.device(device)) == "bfloat16"


def write_json(path: Path, settings: dict[str, Any], comparisons: Sequence[Comparison]) -> None:
    """All rounds of all sides with date, versions, CPU type and settings, without the name of the machine."""
    from minillm.runtime.files import write_text

    described = {
        "date": date.today().isoformat(),
        "versions": {"python": platform.python_version(), **{name: version(name) for name in PACKAGES}},
        "cpu": {"architecture": platform.machine(), "cores": cores(), "bfloat16": multiplies_bfloat16()},
        "settings": settings,
        "comparisons": [comparison.as_json() for comparison in comparisons],
    }
    write_text(path, json.dumps(described, indent=2) + "\n")
