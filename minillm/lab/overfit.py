"""`minillm lab overfit`: when does the validation loss turn, by method and number of training rows?"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from minillm.lab.pictures import look
from minillm.lab.study import Settings, Study, Table, Trial
from minillm.runtime.options import Directory, Names
from minillm.training.methods import METHODS

SIZES, EPOCHS = (32, 128), 10


@dataclass(kw_only=True)
class Overfit(Study):
    """Train each method for 10 epochs, and find where its validation loss turns and what early stopping would select.

    Example: minillm lab overfit --methods full,lora
    """

    methods: Names = ("full", "lora", "last-blocks", "prefix")
    """The methods, separated by commas."""
    out: Directory = Path("overfit")
    """The directory of the results. Finished trials are not run again."""

    name = "overfit"

    def plan(self, finished: Sequence[Trial]) -> list[Settings]:
        trained = [method for method in self.methods if method in METHODS]
        return [self.settings(method, train=size, epochs=EPOCHS) for size in SIZES for method in trained]

    def conclude(self, finished: Sequence[Trial]) -> tuple[list[Table], list[str]]:
        rows = []
        for trial in finished:
            training, held, stop = curves(trial)
            turn = held.index(min(held))
            losses = training[turn], held[turn], training[-1], held[-1]
            rows.append([trial.settings["method"], trial.settings["train"], turn + 1, stop, *losses])
        columns = ("method", "rows", "turns", "stops", "training", "validation", "training, last", "validation, last")
        return [Table("epochs, and losses in nats per row", columns, rows)], []

    def picture(self, pyplot: Any, finished: Sequence[Trial]) -> Any:
        figure, panels = pyplot.subplots(1, len(SIZES), sharey=True)
        for trial in finished:
            axes, method, epochs = panels[SIZES.index(trial.settings["train"])], trial.settings["method"], EPOCHS + 1
            training, held, stop = curves(trial)
            axes.plot(range(1, epochs), training, ":", color=look(method).color)
            axes.plot(range(1, epochs), held, label=method, markevery=[stop - 1], **look(method)._asdict())
            axes.set(title=f"{trial.settings['train']} training rows", xlabel="epoch")
        panels[0].set_ylabel("loss, nats per row (dotted: training)")
        panels[0].legend()
        return figure


def curves(trial: Trial) -> tuple[list[float], list[float], int]:
    """The training and the validation loss of each epoch, and the epoch with the best validation accuracy."""
    found = trial.measured["chosen"]
    steps = len(found["losses"]) // EPOCHS
    training = [fmean(found["losses"][epoch * steps : (epoch + 1) * steps]) for epoch in range(EPOCHS)]
    return training, found["validation_losses"], found["best_epoch"]
