"""`minillm lab NAME`: the frame of the experiments. An experiment is a plan of trials, the most important ones first.

A trial is one adaptation and its measurements. Its results are saved when it ends: an experiment that is started again
continues after the last one, also with another budget. The plan is made again after every trial, so that it can leave
out what the results so far make superfluous. The budget ends it.
"""

import json
import random
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from minillm import hub
from minillm.classifier import IN_CONTEXT, TextClassifier
from minillm.data.tasks import Task
from minillm.errors import InputError, unknown
from minillm.lab.experiment import DataOptions, Experiment, passes, run, versions
from minillm.lab.own_data import report
from minillm.lab.pictures import PictureOptions, draw
from minillm.lab.report import aligned
from minillm.lab.statistics import accuracy_over_seeds
from minillm.runtime.device import keep_freed_memory, use_threads
from minillm.runtime.files import check_directory
from minillm.runtime.locks import locked
from minillm.runtime.options import Directory, DryRunOptions, Model, Names
from minillm.runtime.progress import duration, note, progress
from minillm.runtime.reading import read_json, reading
from minillm.training.checkpoints import check_settings
from minillm.training.methods import METHODS, MethodOptions

Settings = dict[str, Any]
"""The settings of a trial: `method`, `seed`, `train` (rows), and options of the method by their names."""


class Rows(NamedTuple):
    """Default numbers of rows, and of training rows whose time is measured before an experiment starts."""

    train: int
    validation: int
    test: int
    measured: int


TINY, REAL, WARM_UP = Rows(500, 200, 400, 128), Rows(96, 64, 100, 16), 8
LONG = 5.0
"""Seconds of a short trial in which those of the first call of torch do not matter."""
RATES = {"soft-prompt": 3e-2, "prefix": 3e-2, "output": 1e-2, "last-blocks": 1e-3, "lora": 1e-3, "full": 2e-4}
"""The learning rates for the base tiny, where those of the methods are too low or too high."""


class Trial(NamedTuple):
    """The settings and the measurements of a finished trial, and its duration."""

    settings: Settings
    measured: dict[str, Any]
    seconds: float


class Table(NamedTuple):
    """A table of an experiment; cells are texts or numbers."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str | float | int]]


@dataclass
class Bench:
    """What the trials of an experiment share: the base, the task, and the measured time of each method."""

    experiment: Experiment
    task: Task
    pace: dict[str, float] = field(default_factory=dict)


@dataclass(kw_only=True)
class Study(DryRunOptions, PictureOptions, DataOptions):
    """The options of all experiments, and how one runs: a subclass has a plan, and reads the results."""

    base: Model = "tiny"
    """A pulled model, tiny, hf:NAME, a directory in Hugging Face's layout, or a .gguf file."""
    methods: Names = ("features", "prefix", "lora", "full")
    """The methods, separated by commas."""
    minutes: float = 3.5
    """The budget: trials that do not fit are left out, the most important ones run first."""
    out: Directory = Path("lab")
    """The directory of the results. Finished trials are not run again."""
    overwrite: bool = False
    """Run all trials again, and replace the results of another run."""

    name = ""  # of the command

    def __post_init__(self):
        if self.data is None:
            self.task = self.task or ("word_problems" if self.base == "tiny" else "reviews")
            self.train = self.rows.train if self.train is None else self.train
            self.test = self.rows.test if self.test is None else self.test
        super().__post_init__()
        for method in self.methods:
            if method not in (*IN_CONTEXT, "features", *METHODS):
                raise unknown("method", method, (*IN_CONTEXT, "features", *METHODS))
        self.expected = list[int]()  # the labels of the test rows, once the task is loaded
        if not self.minutes > 0:
            raise InputError(f"--minutes must be above 0, got {self.minutes:g}")

    @property
    def rows(self) -> Rows:
        """The default numbers of rows."""
        return TINY if self.base == "tiny" else REAL

    def plan(self, finished: Sequence[Trial]) -> list[Settings]:
        """The settings of all trials, given the results so far."""
        raise NotImplementedError

    def conclude(self, finished: Sequence[Trial]) -> tuple[list[Table], list[str]]:
        """The tables and the conclusions, from the results so far."""
        raise NotImplementedError

    def picture(self, pyplot: Any, finished: Sequence[Trial]) -> Any:
        """The figure."""
        raise NotImplementedError

    def settings(self, method: str, **more: Any) -> Settings:
        """The settings of a trial, with the learning rate of its method."""
        rates = RATES if self.base == "tiny" else {}
        rate = {"learning_rate": rates.get(method, METHODS[method].learning_rate)} if method in METHODS else {}
        return {"method": method, "seed": 0, **rate, **more}

    def measure(self, bench: Bench, settings: Settings) -> dict[str, Any]:
        """Run one trial."""
        return self.adapted(bench, settings)[1]

    def adapted(
        self, bench: Bench, settings: Settings, task: Task | None = None
    ) -> tuple[TextClassifier, dict[str, Any]]:
        """The classifier that a trial trains, and its measurements on the test rows of the task."""
        task = bench.task if task is None else task
        order, count = random.Random(settings.get("seed", 0)), settings.get("train", len(task.train))
        if count < len(task.train):
            task = replace(task, train=order.sample(task.train, count))
        classifier = self.classifier(task, settings["method"], MethodOptions(), self.out)
        base = bench.experiment.decoder, bench.experiment.tokenizer
        params = {"base": base, "seed": 0, "store": None, "shots": shots(task)} | settings
        classifier.set_params(**{name: value for name, value in params.items() if name in classifier.get_params()})
        return classifier, run(classifier, task)

    def run(self) -> None:
        keep_freed_memory()
        found = run_study(self)
        if self.dry_run:
            self.show_plan(found)
            return
        trials = [Trial(**one) for one in found["trials"]]
        picture = self.out / self.name
        files = draw(lambda pyplot, _: self.picture(pyplot, trials), found, picture, self.format)
        lines = [*map(_shown, found["tables"]), *found["conclusions"], ""]
        lines += [f"saved: {file}" for file in (*files, self.out / f"{self.name}.json")]
        self.show("\n".join(lines), found | {"out": self.out})

    def passes(self, bench: Bench, settings: Settings) -> float:
        """The forward passes of a trial, of one row each, as an estimate of its time."""
        return passes(settings["method"], bench.task, settings.get("train"), settings.get("epochs"))

    def seconds(self, bench: Bench, settings: Settings, finished: Sequence[Trial]) -> float:
        """The estimated time of a trial: from those of its method that are finished, else from a short one."""
        method = settings["method"]
        same = [trial for trial in finished if trial.settings["method"] == method]
        if same:
            pace = sum(trial.seconds for trial in same) / sum(self.passes(bench, trial.settings) for trial in same)
        else:
            if method not in bench.pace:
                bench.pace[method] = self._measured_pace(bench, settings)
            pace = bench.pace[method]
        return pace * self.passes(bench, settings)

    def _measured_pace(self, bench: Bench, settings: Settings) -> float:
        """Seconds per forward pass of a method."""
        for count in (WARM_UP, self.rows.measured):  # the first call is slower
            train, held, test = (
                _every_class(rows, count) for rows in (bench.task.train, bench.task.validation, bench.task.test)
            )
            short = Bench(bench.experiment, replace(bench.task, train=train, validation=held, test=test))
            few = {**settings, "train": count, **({"epochs": 1} if settings["method"] in METHODS else {})}
            start = time.perf_counter()
            self.measure(short, few)
            seconds = time.perf_counter() - start
            if seconds > LONG:
                break
        return seconds / self.passes(short, few)


def run_study(study: Study) -> dict[str, Any]:
    """Run the trials that are not finished and fit into the budget; returns the content of NAME.json.

    Raises InputError for invalid options, before anything is run.
    """
    if study.dry_run:
        study.check_local()
    study.threads = use_threads(study.threads)
    task = study.load_task()
    hub.locate(study.base)
    check_directory(study.out)
    task = replace(task, validation=task.validation[: study.rows.validation])
    described = json.loads(json.dumps({"experiment": study.name, **study.described(task), "versions": versions()}))
    study.expected = [row.label for row in task.test]
    finished = _finished(study, described)
    report(task)
    if study.dry_run:
        return {"base": study.base, "trials": len(study.plan(finished)), "finished": len(finished), "out": study.out}
    with locked(study.out):
        return _trials(study, Bench(study.load(), task), described, finished)


def _trials(study: Study, bench: Bench, described: Mapping[str, Any], finished: list[Trial]) -> dict[str, Any]:
    """Run the trials that are left, in the order of the plan."""
    start, seconds = time.perf_counter(), partial(study.seconds, bench, finished=finished)
    planned = study.plan(finished)
    spent = sum(trial.seconds for trial in finished if trial.settings in planned)
    left = _left(planned, finished)
    needed, budget = sum(map(seconds, left)), 60 * study.minutes
    spent += time.perf_counter() - start  # short trials were measured
    fits = "" if needed <= budget - spent else f"; --minutes {study.minutes:g} ends it earlier"
    note(f"{study.name}: {len(left)} of {len(planned)} trials to run, about {duration(needed)}{fits}")
    with progress(total=len(planned), initial=len(planned) - len(left), desc=study.name, unit="trial") as bar:
        while left := _left(planned, finished):
            if finished and spent + seconds(left[0]) > budget:
                note(f"{study.name}: {len(left)} trials do not fit into --minutes {study.minutes:g}, and were left out")
                break
            start = time.perf_counter()
            measured = json.loads(json.dumps(study.measure(bench, left[0])))
            finished.append(Trial(left[0], measured, time.perf_counter() - start))
            spent += finished[-1].seconds
            planned = study.plan(finished)
            bar.total = len(planned)
            bar.update()
            _write(study, bench.task, described, finished)
    return _write(study, bench.task, described, finished, *study.conclude(finished))


def _left(planned: Iterable[Settings], finished: Sequence[Trial]) -> list[Settings]:
    done = [trial.settings for trial in finished]
    return [settings for settings in planned if settings not in done]


def _write(
    study: Study, task: Task, described: Mapping[str, Any], finished: Sequence[Trial], tables: Sequence[Table] = (),
    conclusions: Sequence[str] = (),
) -> dict[str, Any]:  # fmt: skip
    """Write NAME.json, whose content is returned, and the test rows; at the end with tables and conclusions."""
    found = {
        **described, "command": study.command_line, "minutes": study.minutes,
        "trials": [trial._asdict() for trial in finished], "tables": [table._asdict() for table in tables],
        "conclusions": list(conclusions),
    }  # fmt: skip
    study.out = study.save_with_rows(study.out, f"{study.name}.json", found, task)
    return found


def _finished(study: Study, described: Mapping[str, Any]) -> list[Trial]:
    """The trials of an earlier run. Raises InputError if it had other data or another base, unless overwritten."""
    path = study.out / f"{study.name}.json"
    if study.overwrite or not path.exists():
        return []
    earlier = read_json(path)
    check_settings(study.out, earlier, described)
    with reading(path):
        return [Trial(**trial) for trial in earlier["trials"]]


def shots(task: Task) -> int:
    """The default number of examples in a few-shot prompt, or fewer if the training rows do not hold them."""
    rows_of = [row.label for row in task.train]
    return min(TextClassifier.shots, len(task.answers) * min(map(rows_of.count, range(len(task.answers)))))


def _every_class(rows: Sequence[Any], count: int) -> list[Any]:
    """The first rows, at least two classes among them."""
    first = {row.label: row for row in reversed(rows)}
    return list(dict.fromkeys([*first.values(), *rows]))[: max(count, 2)]


def _shown(table: Mapping[str, Any]) -> str:
    return f"{table['title']}\n{aligned([table['columns'], *map(_texts, table['rows'])])}\n"


def _texts(row: Sequence[str | float | int]) -> list[str]:
    return [cell if isinstance(cell, str) else f"{cell:.3f}" if isinstance(cell, float) else str(cell) for cell in row]


def chosen(finished: Sequence[Trial], **settings: Any) -> list[Trial]:
    """The trials with these settings."""
    return [trial for trial in finished if settings.items() <= trial.settings.items()]


def over_seeds(trials: Sequence[Trial]) -> tuple[float, float]:
    """The mean accuracy of trials that differ in their seeds, and its standard error over seeds and test rows."""
    return accuracy_over_seeds([trial.measured for trial in trials], len(trials[0].measured["predicted"]))
