"""`minillm adapt`: adapt a base to a task with one method; the result is an adapter and its measurements."""

import json
import sys
from collections.abc import Callable
from dataclasses import dataclass, fields
from functools import partial
from pathlib import Path
from typing import Any, Literal

from minillm.adapt.card import write_card
from minillm.adapt.description import Usage, describe
from minillm.classifier import CLASSIFIER
from minillm.data.exchanges import Exchanges, table_exchanges
from minillm.data.tasks import Task
from minillm.errors import InputError
from minillm.lab.experiment import DataOptions, doubts, parameter_count, run, tensor_bytes
from minillm.lab.free_answers import adapt_to_answers
from minillm.lab.own_data import report
from minillm.runtime.device import keep_freed_memory, use_threads
from minillm.runtime.files import check_directory, commit
from minillm.runtime.options import Directory
from minillm.training.methods import METHODS, MethodOptions, Trained, check_options, training_settings

MEASURED = "adapt.json"


@dataclass(kw_only=True)
class Adapt(MethodOptions, DataOptions):
    """Adapt a model to labelled texts or to free answers with one method, and save the adapter.

    Ctrl-C saves what was trained so far.

    Example: minillm adapt --data reviews.csv --method lora --learning-rate 1e-3 --out my.adapter
    """

    out: Directory
    """The directory of the adapter and of its measurements, adapt.json."""
    method: Literal["features", Trained] = "lora"
    """The method; features is a linear probe, output trains the output rows of the answers, full trains all weights."""
    prompt_column: str | None = None
    """Free answers: the column of the prompts in your data."""
    answer_column: str | None = None
    """Free answers: the column of the answers in your data."""

    def __post_init__(self):
        super().__post_init__()
        check_options(self.method, self)

    @property
    def free(self) -> bool:
        return self.prompt_column is not None or self.answer_column is not None

    @property
    def question(self) -> str:
        return "{text}\n" if self.free and self.prompt is None else super().question

    def run(self) -> None:
        keep_freed_memory()
        measured = adapt(self)
        for name, value in measured.items():
            if not isinstance(value, (list, dict)):
                print(f"{name}: {value:.4g}" if isinstance(value, float) else f"{name}: {value}")
        print(f"saved: {self.out}")
        for doubt in [] if self.free else doubts(measured):
            print(doubt, file=sys.stderr)

    def exchanges(self) -> Exchanges:
        """The prompts and answers of the data. Raises InputError if an option for them is missing."""
        if self.table is None or self.prompt_column is None or self.answer_column is None:
            raise InputError("free answers need --data, --prompt-column and --answer-column")
        if "{text}" not in self.question:
            raise InputError(f"the prompt {self.question!r} has no {{text}}, the placeholder for the text of a row")
        return table_exchanges(
            self.table, prompt_column=self.prompt_column, answer_column=self.answer_column, template=self.question,
            train=self.train, test=self.test,
        )  # fmt: skip


def adapt(options: Adapt) -> dict[str, Any]:
    """Adapt, and save the adapter and its measurements. Raises InputError before anything is written or trained."""
    check_directory(options.out)
    use_threads(options.threads)
    if options.free:
        if options.method == "features":
            raise InputError(
                f"features trains a classifier, which has no free answers; choose from: {', '.join(METHODS)}"
            )
        task = options.exchanges()
        measured = to_answers(options, task)
    else:
        task = options.load_task()
        measured = to_labels(options, task)
    described = {
        "ladder": options.described(task),
        "method": options.method,
        "options": {option.name: getattr(options, option.name) for option in fields(MethodOptions)},
        "prompt_column": options.prompt_column,
        "answer_column": options.answer_column,
    }
    metrics = {name: value for name, value in measured.items() if isinstance(value, (int, float))}
    with commit(options.out) as new:
        new.text(MEASURED, json.dumps(described | measured, indent=2) + "\n")
        write_card(options.out, describe(options.out), metrics)
    return {"method": options.method, **measured}


def to_labels(options: Adapt, task: Task) -> dict[str, Any]:
    """Adapt to labelled text and save the classifier."""
    report(task)
    classifier = options.classifier(task, options.method, options, options.out)
    command = options.command_line
    found = run(classifier, task, lambda classifier: save(partial(classifier.save, command=command), options.out))
    not_reported = ("tokens_per_second", "peak_memory_bytes", "precision")
    return {name: value for name, value in found.items() if name not in not_reported}


def to_answers(options: Adapt, task: Exchanges) -> dict[str, Any]:
    """Adapt to free answers and save the adapter."""
    experiment = options.load()
    report(task)
    settings = training_settings(options.method, options, experiment.precision, options.seed)
    method = experiment.build(options.method, options)
    end = experiment.tokenizer.names.get("eos", "")
    method.usage = Usage(base_name=options.base, prompt=options.question, end=end, command=options.command_line)
    measured = adapt_to_answers(
        experiment, task, method, settings,
        lambda: save(partial(method.save, tokenizer=experiment.tokenizer), options.out), options.truncate,
    )  # fmt: skip
    return {
        "trainable_parameters": parameter_count(method.trainable()),
        "stored_bytes": tensor_bytes(method.state()),
        **measured,
    }


def save(write: Callable[[Path], None], out: Path) -> None:
    """Save an adapter when it is trained, before it is measured, or when the training is interrupted."""
    with commit(out) as new:
        new.removed |= {MEASURED, CLASSIFIER}  # of an earlier adapter in this directory
        write(out)
    if sys.exc_info()[0] is KeyboardInterrupt:
        print(f"\ninterrupted: saved what was trained so far: {out}", file=sys.stderr)
