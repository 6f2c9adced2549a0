"""`minillm lab rank`: how large must the rank of a LoRA be, and which matrices should it adapt?

The learning rate is fixed, and alpha grows with √r: so the size of an update does not depend on r (Kalajdzievski 2023).
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import torch
from torch.nn.functional import normalize

from minillm.adapters.algebra import from_factors
from minillm.adapters.extract import effective_rank, extract, resize, similarity
from minillm.classifier import TextClassifier
from minillm.lab.crossed import SEEDS, Cells, Crossed, shown
from minillm.lab.experiment import judged, labels
from minillm.lab.statistics import bootstrap, right_of
from minillm.lab.study import Bench, Settings, Table, Trial, chosen
from minillm.runtime.options import Directory, Names

RANKS = (8, 1, 64, 2, 4, 16, 32)
"""The most informative ones first."""
TARGETS, EQUAL = ("query, value", "attention.*", "feed_forward.*", "all-linear"), 32
COMPARED, DIRECTIONS = ((8, 0), (64, 0), (64, 1)), (1, 2, 4, 8)
"""Ranks and seeds of the LoRAs whose subspaces are compared, each with the next, and their first directions."""
CUT = "dW of full, cut"


@dataclass(kw_only=True)
class Rank(Crossed):
    """Compare ranks and targets of LoRA, and decompose the update of a full fine-tune.

    Example: minillm lab rank --minutes 10
    """

    methods: Names = ("full", "lora")
    """The methods: lora for all ranks and targets, full also for the ranks of its update, others for comparison."""
    out: Directory = Path("rank")
    """The directory of the results. Finished trials are not run again."""

    name, row, column, line = "rank", "r", "targets of LoRA", "-"

    def plan(self, finished: Sequence[Trial]) -> list[Settings]:
        first = [*((r, TARGETS[0]) for r in RANKS[:3]), (min(RANKS), TARGETS[-1])]
        grid = [(r, on) for r in RANKS for on in TARGETS] + equal_parameters(self.cells(finished))
        planned, loras = list[Settings](), "lora" in self.methods
        for keys in (first, [key for key in dict.fromkeys(grid) if key not in first]):
            for seed in range(SEEDS):
                planned += [self.settings(m, seed=seed) for m in self.methods if m != "lora" and keys == first]
                planned += [self.of_rank(r, on, seed) for r, on in keys if loras]
            planned += [self.settings("lora", compared=True)] * (loras and keys == first)
        return planned

    def of_rank(self, r: int, on: str, seed: int) -> Settings:
        more = {"r": r, "alpha": round(16 * math.sqrt(r / 8), 2), "targets": on.split(", "), self.column: on}
        return self.settings("lora", seed=seed, **more)

    def measure(self, bench: Bench, settings: Settings) -> dict[str, Any]:
        if settings.get("compared"):
            return {"similarity": self.similarities(bench, settings)}
        classifier, measured = self.adapted(bench, settings)
        return measured | (decomposed(bench, classifier) if settings["method"] == "full" else {})

    def similarities(self, bench: Bench, settings: Settings) -> list[list[Any]]:
        """φ(i, i) of right singular vectors of dW (in Hu et al. 2021, section 7.2, of A): means over the matrices."""
        found = []
        for r, seed in COMPARED:
            lora: Any = self.adapted(bench, settings | self.of_rank(r, TARGETS[0], seed))[0].method_
            state = resize(lora, r=r).lora.state()
            found.append([normalize(state[name]) for name in state if name.endswith(".a")])
        rows: list[list[Any]] = [["by chance", *(fmean(i / v.shape[1] for v in found[0]) for i in DIRECTIONS)]]
        for pair, names in zip(pairwise(found), pairwise(COMPARED), strict=True):
            phi = [fmean(similarity(v, w, i, i) for v, w in zip(*pair, strict=True)) for i in DIRECTIONS]
            rows.append([" and ".join(f"r {r}, seed {seed}" for r, seed in names), *phi])
        return rows

    def cells(self, finished: Sequence[Trial]) -> Cells:
        """The LoRAs by rank and targets, the best approximations of full fine-tuning's dW by rank, other methods."""
        found = list(finished)
        for settings, measured, _ in finished:
            if "predicted" in measured and "r" not in settings:
                found.append(Trial({"r": "all", self.column: settings["method"]}, measured, 0.0))
            found += [Trial({"r": int(r), self.column: CUT}, cut, 0.0) for r, cut in measured.get("cut", {}).items()]
        return super().cells(found)

    def conclude(self, finished: Sequence[Trial]) -> tuple[list[Table], list[str]]:
        (tables, lines), cells = super().conclude(finished), self.cells(finished)
        if equal := [(*key, size(cells[key]), shown(cells[key])) for key in equal_parameters(cells) if key in cells]:
            tables.append(Table("about equal numbers of parameters", ("r", "targets", "parameters", "accuracy"), equal))
        for trial in chosen(finished, seed=0):
            if "similarity" in trial.measured:
                columns = (f"LoRAs of {TARGETS[0]}", *(f"first {i}" for i in DIRECTIONS))
                tables.append(Table("similarity φ of the directions of dW", columns, trial.measured["similarity"]))
            roles: dict[str, list[float]] = {}
            for path, singular in trial.measured.get("spectra", {}).items():
                roles.setdefault(path.split(".", 2)[-1], []).append(effective_rank(torch.tensor(singular)))
            if rows := [[role, min(each), fmean(each), max(each)] for role, each in roles.items()]:
                tables.append(
                    Table("effective rank of full's dW over layers", ("matrix", "least", "mean", "most"), rows)
                )
        loras = sorted((key for key in cells if key[1] in TARGETS), key=lambda key: size(cells[key]))
        for keys in ([key for key in cells if key[1] in (CUT, "full")], loras):
            right = {key: right_of([trial.measured for trial in cells[key]], self.expected) for key in keys}
            lines += [advice(right)] if right else []
        return tables, lines


def size(trials: Sequence[Trial]) -> int:
    return trials[0].measured["trainable_parameters"]


def equal_parameters(cells: Cells) -> list[tuple[int, str]]:
    """The rank of all targets at which they have about as many parameters as the first ones at rank `EQUAL`."""
    sizes = {on: size(trials) / r for (r, on), trials in cells.items() if on in TARGETS}
    first = sizes.get(TARGETS[0], 0)
    return [(max(1, round(EQUAL * first / sizes[on])), on) for on in TARGETS if first and on in sizes]


def decomposed(bench: Bench, classifier: TextClassifier) -> dict[str, Any]:
    """The singular values σ of each dW (a row of A is √σ v), and the results of its best approximations on the base."""
    base, texts, cut = bench.experiment.decoder, [row.text for row in bench.task.test], {}
    found = extract(base, classifier.method_, energy=1.0)
    factors = {path: [found.lora.state()[f"{path}.{side}"] for side in "ab"] for path in found.errors}
    for r in RANKS:
        classifier.method_ = from_factors(base, {path: (a[:r], b[:, :r]) for path, (a, b) in factors.items()})
        scores = classifier.scores(texts, f"rank {r}").scores
        cut[r] = judged(scores, labels(bench.task.test))
    spectra = {path: [float(f"{row.norm() ** 2:.4g}") for row in a] for path, (a, _) in factors.items()}
    return {"spectra": spectra, "cut": cut}


def advice(right: Mapping[tuple[Any, str], np.ndarray]) -> str:
    """The first key that is not distinguishable from the last, which has the most parameters."""
    samples, last = dict(zip(right, bootstrap(list(right.values())), strict=True)), [*right][-1]
    for r, on in right:
        low, high = 100 * np.quantile(samples[r, on] - samples[last], [0.025, 0.975])
        less = 100 * (right[r, on].mean() - right[last].mean())
        points = f"{less:+.1f} points, 95 % interval {low:+.1f} to {high:+.1f}"
        if high >= 0 and (r, on) != last:
            return f"r {r} ({on}) would do: within the noise of r {last[0]} ({last[1]}), {points}"
    return f"no smaller rank would do: those measured are less accurate than r {last[0]} ({last[1]})"
