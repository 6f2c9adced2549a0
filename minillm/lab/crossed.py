"""Experiments whose trials are the combinations of two settings, over seeds: the rows and columns of a table."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from minillm.lab.pictures import METHOD_LOOK
from minillm.lab.study import Study, Table, Trial, over_seeds

Cells = Mapping[tuple[Any, str], Sequence[Trial]]
SEEDS = 3


@dataclass(kw_only=True)
class Crossed(Study):
    """A table and a picture of the accuracies by the settings `row` and `column`, in trials that have them."""

    row, column, line = "", "method", "none"

    def cells(self, finished: Sequence[Trial]) -> Cells:
        cells: dict[tuple[Any, str], list[Trial]] = {}
        for trial in finished:
            if self.row in trial.settings:
                cells.setdefault((trial.settings[self.row], trial.settings[self.column]), []).append(trial)
        return dict(sorted(cells.items(), key=lambda cell: cell[0][0] if isinstance(cell[0][0], int) else math.inf))

    def conclude(self, finished: Sequence[Trial]) -> tuple[list[Table], list[str]]:
        cells = self.cells(finished)
        rows, columns = (list(dict.fromkeys(ends)) for ends in zip(*cells, strict=True))
        lines = [[str(row), *(shown(cells.get((row, column), ())) for column in columns)] for row in rows]
        baseline = next(iter(cells.values()))[0].measured["majority_baseline"]
        title = f"accuracy by {self.row} and {self.column} (majority baseline {baseline:.3f})"
        return [Table(title, (self.row, *columns), lines)], []

    def picture(self, pyplot: Any, finished: Sequence[Trial]) -> Any:
        cells = self.cells(finished)
        rows, columns = (list(dict.fromkeys(ends)) for ends in zip(*cells, strict=True))
        figure, axes = pyplot.subplots(figsize=(9, 4.8))
        for n, column in enumerate(columns):
            points = {rows.index(row) + n / 12: over_seeds(cells[row, of]) for row, of in cells if of == column}
            look = METHOD_LOOK[column]._asdict() if column in METHOD_LOOK else {"marker": "osv^DPX*"[n % 8]}
            axes.errorbar(list(points), *zip(*points.values(), strict=True), label=column, linestyle=self.line, **look)
        axes.set(xticks=range(len(rows)), xticklabels=rows, xlabel=self.row, ylabel="test accuracy")
        axes.legend(fontsize=9)
        return figure


def shown(trials: Sequence[Trial]) -> str:
    return "{:.3f} ± {:.3f}".format(*over_seeds(trials)) if trials else "-"
