"""`minillm lab data`: how does the accuracy of each method depend on the number of training rows?"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from minillm.lab.crossed import SEEDS, Crossed
from minillm.lab.study import Bench, Settings, Table, Trial, over_seeds
from minillm.runtime.options import Directory, Names
from minillm.training.methods import METHODS
from minillm.training.schedule import TrainingSettings

SIZES = (10, 100, 500, 50, 2000)
"""The most informative sizes first."""
LARGE = 20_000
"""Training rows for which the fitted curve predicts the accuracy."""
STEPS = 40
"""The least number of optimizer steps: with few rows, the default epochs would be one or two steps."""


@dataclass(kw_only=True)
class Sizes(Crossed):
    """Measure the accuracy of each method after 10, 50, 100, 500 and 2000 training rows.

    The rows of a size are drawn by the seed. There are no validation rows: the last epoch is scored.

    Example: minillm lab data --minutes 10
    """

    methods: Names = ("few-shot", "features", "prefix", "lora", "full")
    """The methods, separated by commas."""
    out: Directory = Path("data-sizes")
    """The directory of the results. Finished trials are not run again."""

    name, row, line = "data", "train", "-"

    def __post_init__(self):
        if self.data is None and self.train is None:
            self.train = max(SIZES) if self.base == "tiny" else 500
        super().__post_init__()

    def plan(self, finished: Sequence[Trial]) -> list[Settings]:
        sizes = [size for size in SIZES if self.train is None or size <= self.train]
        return [self.of_size(m, size, seed) for seed in range(SEEDS) for size in sizes for m in self.methods]

    def of_size(self, method: str, size: int, seed: int) -> Settings:
        if method not in METHODS:
            return self.settings(method, train=size, seed=seed)
        steps = TrainingSettings().epoch_steps(size)
        return self.settings(method, train=size, seed=seed, epochs=max(METHODS[method].epochs, -(-STEPS // steps)))

    def measure(self, bench: Bench, settings: Settings) -> dict[str, Any]:
        return self.adapted(bench, settings, replace(bench.task, validation=[]))[1]

    def conclude(self, finished: Sequence[Trial]) -> tuple[list[Table], list[str]]:
        (tables, lines), cells = super().conclude(finished), self.cells(finished)
        for method in self.methods:
            curve = {size: 1 - over_seeds(trials)[0] for (size, of), trials in cells.items() if of == method}
            if len(curve) > 3:
                a, b, c = power_law(list(curve), list(curve.values()))
                at = 1 - a - b / LARGE**c
                lines.append(f"{method}: error {a:.2f} + {b:.2f} n^-{c:.2f}; accuracy at {LARGE:,} rows: {at:.2f}")
        return tables, lines


def power_law(sizes: Sequence[int], errors: Sequence[float]) -> tuple[float, float, float]:
    """(a, b, c) of the least-squares fit error = a + b n^-c with a >= 0 and 0 < c <= 2 (Hestness et al. 2017)."""
    n, y = np.asarray(sizes, float), np.asarray(errors, float)
    fits = []
    for c in np.linspace(0.02, 2, 100):
        power = n**-c
        b, a = np.polyfit(power, y, 1)
        if a < 0:
            a, b = 0.0, (power @ y) / (power @ power)
        fits.append((float(((a + b * power - y) ** 2).sum()), (float(a), float(b), float(c))))
    return min(fits)[1]
