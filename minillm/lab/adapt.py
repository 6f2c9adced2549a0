"""`minillm adapt`: one method, one base, one task; the result is an adapter and its measurements."""

import json
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields
from functools import partial
from pathlib import Path
from typing import Any

from minillm.classifier import CLASSIFIER
from minillm.data.exchanges import Exchanges, table_exchanges
from minillm.data.reviews import PROMPT
from minillm.errors import InputError
from minillm.lab.experiment import ExperimentOptions, parameter_count, run, tensor_bytes
from minillm.lab.free_answers import adapt_to_answers
from minillm.runtime.device import keep_freed_memory, use_threads
from minillm.runtime.files import check_directory, write_text
from minillm.training.methods import METHODS, MethodOptions, training_settings

MEASURED = "adapt.json"
NAMES = ("features", *METHODS)


@dataclass(kw_only=True)
class Adapt(MethodOptions, ExperimentOptions):
    """Adapt a base to a task by one method, and save the adapter: to labelled text, or to free answers.

    Ctrl-C saves the adapter with what it has learned so far.
    """

    out: Path
    """The adapter's directory to write; what was measured goes into its adapt.json."""
    method: str = "lora"
    """lora, dora, pissa, soft-prompt, prefix, features, output, last-blocks or full."""
    prompt_column: str | None = None
    """For free answers: the column of the prompts."""
    answer_column: str | None = None
    """For free answers: the column of the answers."""

    @property
    def free(self) -> bool:
        return self.prompt_column is not None or self.answer_column is not None

    @property
    def question(self) -> str:
        return self.prompt if self.prompt is not None else "{text}\n" if self.free else PROMPT

    def run(self) -> None:
        keep_freed_memory()
        for name, value in adapt(self).items():
            if not isinstance(value, (list, dict)):
                print(f"{name}: {value}")
        print(f"written: {self.out}")

    def exchanges(self) -> Exchanges:
        """The rows of free answers. Raises InputError where an option for them is missing."""
        if self.data is None or self.prompt_column is None or self.answer_column is None:
            raise InputError("free answers need all three: data, a prompt column and an answer column")
        if "{text}" not in self.question:
            raise InputError(f"the prompt {self.question!r} has no {{text}}, where the text of a row would go")
        return table_exchanges(
            self.data, prompt_column=self.prompt_column, answer_column=self.answer_column, template=self.question,
            train=self.train, test=self.test,
        )  # fmt: skip


def adapt(options: Adapt) -> dict[str, Any]:
    """Adapt, save the adapter and what was measured. Raises InputError before anything is written or trained."""
    if options.method not in NAMES:
        raise InputError(f"there is no method {options.method!r}; there are: {', '.join(NAMES)}")
    check_directory(options.out)
    use_threads(options.threads)
    if options.free:
        if options.method == "features":
            raise InputError(f"a classifier has no free answers; of the methods these have: {', '.join(METHODS)}")
        measured = to_answers(options, options.exchanges())
    else:
        measured = to_labels(options)
    described = {
        "ladder": options.described(),
        "method": options.method,
        "options": {option.name: getattr(options, option.name) for option in fields(MethodOptions)},
        "prompt_column": options.prompt_column,
        "answer_column": options.answer_column,
    }
    write_text(options.out / MEASURED, json.dumps(described | measured, indent=2) + "\n")
    return {"method": options.method, **measured}


def to_labels(options: Adapt) -> dict[str, Any]:
    """Adapt to labelled text and save the classifier."""
    task = options.load_task()
    classifier = options.classifier(task, options.method, options, options.out)
    found = run(classifier, task, lambda classifier: save(classifier.save, options.out))
    only_of_a_ladder = ("tokens_per_second", "peak_memory_bytes", "precision")
    return {name: value for name, value in found.items() if name not in only_of_a_ladder}


def to_answers(options: Adapt, task: Exchanges) -> dict[str, Any]:
    """Adapt to free answers and save the adapter."""
    experiment = options.load()
    settings = training_settings(options.method, options, experiment.precision, options.seed)
    method = experiment.build(options.method, options)
    measured = adapt_to_answers(
        experiment, task, method, settings,
        lambda: save(partial(method.save, tokenizer=experiment.tokenizer), options.out),
    )  # fmt: skip
    return {
        "trainable_parameters": parameter_count(method.trainable()),
        "stored_bytes": tensor_bytes(method.state()),
        **asdict(measured),
    }


def save(write: Callable[[Path], None], out: Path) -> None:
    """Save an adapter once it is trained, before it is measured, or when its training is interrupted."""
    # What describes another adapter, which was here before.
    for stale in (MEASURED, CLASSIFIER):
        (out / stale).unlink(missing_ok=True)
    write(out)
    print(f"the adapter is saved as far as it is trained: {out}", file=sys.stderr)
