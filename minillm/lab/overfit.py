"""`minillm lab overfit`: when does the validation loss turn, by method and number of training rows?"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from minillm.errors import InputError
from minillm.lab.crossed import SEEDS
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

    def __post_init__(self):
        super().__post_init__()
        for method in self.methods:
            if method not in METHODS:
                raise InputError(f"{method} has no epochs; the methods that train in epochs are {', '.join(METHODS)}")

    def plan(self, finished: Sequence[Trial]) -> list[Settings]:
        sizes = [size for size in SIZES if self.train is None or size <= self.train]
        wanted = [(n, size, m) for n in range(SEEDS) for size in sizes for m in self.methods]
        return [self.settings(method, train=size, epochs=EPOCHS, seed=n) for n, size, method in wanted]

    def conclude(self, finished: Sequence[Trial]) -> tuple[list[Table], list[str]]:
        seeds: dict[tuple[str, int], list[list[float]]] = {}
        for trial in finished:
            training, held, stop = curves(trial)
            turn = held.index(min(held))
            found = [turn + 1, stop, training[turn], held[turn], training[-1], held[-1]]
            seeds.setdefault((trial.settings["method"], trial.settings["train"]), []).append(found)
        rows = [[*of, len(each), *map(fmean, zip(*each, strict=True))] for of, each in seeds.items()]
        columns = (
            "method", "rows", "seeds", "turns", "stops", "training", "validation", "training, last", "validation, last",
        )  # fmt: skip
        return [Table("epochs, and losses in nats per row: means over the seeds", columns, rows)], []

    def picture(self, pyplot: Any, finished: Sequence[Trial]) -> Any:
        sizes = sorted({trial.settings["train"] for trial in finished})
        figure, (panels,) = pyplot.subplots(1, len(sizes), sharey=True, squeeze=False)
        for trial in finished:
            axes, method, epochs = panels[sizes.index(trial.settings["train"])], trial.settings["method"], EPOCHS + 1
            training, held, stop = curves(trial)
            label = None if trial.settings["seed"] else method
            axes.plot(range(1, epochs), training, ":", color=look(method).color)
            axes.plot(range(1, epochs), held, label=label, markevery=[stop - 1], **look(method)._asdict())
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
