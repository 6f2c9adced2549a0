"""`minillm lab rates`: which learning rate does each method need? Methods at unequal rates cannot be compared.

For each method, rates in steps of half a power of ten are compared on the validation rows, from its default rate
outwards, until the accuracy is clearly lower. Then several seeds with the chosen rate are scored on the test rows.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from minillm.lab.crossed import SEEDS
from minillm.lab.pictures import look
from minillm.lab.report import differences
from minillm.lab.statistics import compare_all, right_of
from minillm.lab.study import Bench, Settings, Study, Table, Trial, chosen, over_seeds
from minillm.runtime.options import Directory, Names
from minillm.training.methods import METHODS

NEAR, FAR = (0, 1, -1, 2, -2), (3, -3, 4, -4)
"""Half powers of ten from the default rate; those of FAR are tried while the best rate is at the end of the grid."""


@dataclass(kw_only=True)
class Rates(Study):
    """Choose the learning rate of each method on validation rows, and compare the methods at their rates.

    Example: minillm lab rates --methods lora,full
    """

    methods: Names = ("soft-prompt", "prefix", "output", "last-blocks", "lora", "full")
    """The methods, separated by commas."""
    out: Directory = Path("rates")
    """The directory of the results. Finished trials are not run again."""

    name = "rates"

    def plan(self, finished: Sequence[Trial]) -> list[Settings]:
        trained = [method for method in self.methods if method in METHODS]
        sweep = [
            self.at(method, power) for power in NEAR + FAR for method in trained if self.wanted(method, power, finished)
        ]
        rates = {method: {"learning_rate": best(finished, method)} for method in trained if sweep_of(finished, method)}
        seeds = range(SEEDS)
        return sweep + [self.settings(m, seed=seed, **rates.get(m, {})) for seed in seeds for m in self.methods]

    def at(self, method: str, power: int) -> Settings:
        rate = float(f"{self.settings(method)['learning_rate'] * 10 ** (power / 2):.2g}")
        return self.settings(method, learning_rate=rate, scored="validation")

    def wanted(self, method: str, power: int, finished: Sequence[Trial]) -> bool:
        """Whether the rate may still be the best: the next one inwards was not clearly worse than the best so far."""
        scores = {trial.settings["learning_rate"]: trial for trial in sweep_of(finished, method)}
        if power == 0 or self.at(method, power)["learning_rate"] in scores:
            return True
        inner = scores.get(self.at(method, power - int(math.copysign(1, power)))["learning_rate"])
        if inner is None:
            return power in NEAR
        top = max(trial.measured["accuracy"] for trial in scores.values())
        noise = math.sqrt(2) * inner.measured["standard_error"]
        return inner.measured["accuracy"] >= (top - noise if power in NEAR else top)

    def measure(self, bench: Bench, settings: Settings) -> dict[str, Any]:
        task = bench.task
        if settings.get("scored") == "validation":
            task = replace(task, validation=[], test=task.validation)
        return self.adapted(bench, settings, task)[1]

    def conclude(self, finished: Sequence[Trial]) -> tuple[list[Table], list[str]]:
        rows, swept = [], []
        for method in self.methods:
            trials = sweep_of(finished, method)
            swept += [[method, f"{t.settings['learning_rate']:g}", t.measured["accuracy"]] for t in trials]
            if final := tested(finished, method):
                mean, error = over_seeds(final)
                rate = f"{best(finished, method):g}" if trials else "-"
                rows.append([method, rate, f"{mean:.3f} ± {error:.3f}", len(final)])
        tables = [
            Table("validation accuracy at each learning rate", ("method", "rate", "accuracy"), swept),
            Table("test accuracy at the chosen rate", ("method", "rate", "accuracy", "seeds"), rows),
        ]
        runs = {m: [trial.measured for trial in trials] for m in self.methods if (trials := tested(finished, m))}
        return tables, differences(compare_all({method: right_of(of, self.expected) for method, of in runs.items()}))

    def picture(self, pyplot: Any, finished: Sequence[Trial]) -> Any:
        figure, axes = pyplot.subplots()
        for method in self.methods:
            trials = sweep_of(finished, method)
            rates = [trial.settings["learning_rate"] for trial in trials]
            axes.plot(rates, [trial.measured["accuracy"] for trial in trials], label=method, **look(method)._asdict())
        axes.set(xscale="log", xlabel="learning rate", ylabel="validation accuracy")
        axes.legend()
        return figure


def sweep_of(finished: Sequence[Trial], method: str) -> list[Trial]:
    """The trials of a method on the validation rows, by their rates."""
    found = chosen(finished, method=method, scored="validation")
    return sorted(found, key=lambda trial: trial.settings["learning_rate"])


def best(finished: Sequence[Trial], method: str) -> float:
    """The rate of the highest validation accuracy; of equal ones the lowest."""
    key = lambda trial: (trial.measured["accuracy"], -trial.settings["learning_rate"])  # noqa: E731
    return max(sweep_of(finished, method), key=key).settings["learning_rate"]


def tested(finished: Sequence[Trial], method: str) -> list[Trial]:
    return [trial for trial in chosen(finished, method=method) if "scored" not in trial.settings]
