"""`minillm adapt`: one method, one base, one task; the result is an adapter and its measurements."""

import json
import sys
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from minillm.adapt import Adaptation
from minillm.data.exchanges import Exchanges, table_exchanges
from minillm.data.reviews import PROMPT
from minillm.errors import InputError
from minillm.lab import methods
from minillm.lab.experiment import Experiment, ExperimentOptions, labels, parameter_count, tensor_bytes
from minillm.lab.free_answers import adapt_to_answers
from minillm.lab.methods import MethodOptions
from minillm.lab.report import standard_error
from minillm.prompting.scoring import accuracy
from minillm.runtime.device import keep_freed_memory, use_threads
from minillm.runtime.files import check_directory, write_text

MEASURED = "adapt.json"
METHODS = ("features", *methods.METHODS)


@dataclass(frozen=True, kw_only=True)
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
    if options.method not in METHODS:
        raise InputError(f"there is no method {options.method!r}; there are: {', '.join(METHODS)}")
    check_directory(options.out)
    use_threads(options.threads)
    if options.free:
        if options.method == "features":
            raise InputError(f"a classifier has no free answers; of the methods these have: {', '.join(METHODS[1:])}")
        task = options.exchanges()
        measured = to_answers(options.load(None, options.out), options, task)
    else:
        measured = to_labels(options.load(options.load_task(), options.out), options)
    described = {
        "ladder": options.described(),
        "method": options.method,
        "options": {option.name: getattr(options, option.name) for option in fields(MethodOptions)},
        "prompt_column": options.prompt_column,
        "answer_column": options.answer_column,
    }
    write_text(options.out / MEASURED, json.dumps(described | measured, indent=2) + "\n")
    return {"method": options.method, **measured}


def to_labels(experiment: Experiment, options: Adapt) -> dict[str, Any]:
    """Adapt to labelled text and save the adapter."""
    outcome = methods.run(experiment, options.method, options, lambda method: save(method, experiment))
    test = experiment.labelled.test
    share = accuracy(outcome.scores, labels(test))
    return {
        "accuracy": share,
        "standard_error": standard_error(share, len(test)),
        "trainable_parameters": outcome.trainable_parameters,
        "stored_bytes": outcome.stored_bytes,
        "train_seconds": outcome.train_seconds,
        "eval_seconds": outcome.eval_seconds,
        "chosen": outcome.chosen,
    }


def to_answers(experiment: Experiment, options: Adapt, task: Exchanges) -> dict[str, Any]:
    """Adapt to free answers and save the adapter."""
    settings = methods.training_settings(experiment, options.method, options)
    method = methods.build(experiment, options.method, options)
    measured = adapt_to_answers(experiment, task, method, settings, lambda trained: save(trained, experiment))
    return {
        "trainable_parameters": parameter_count(method.trainable()),
        "stored_bytes": tensor_bytes(method.state()),
        **asdict(measured),
    }


def save(method: Adaptation, experiment: Experiment) -> None:
    """Save an adapter once it is trained, before it is measured, or when its training is interrupted."""
    # The measurements of another adapter, which was here before.
    (experiment.out / MEASURED).unlink(missing_ok=True)
    method.save(experiment.out, tokenizer=experiment.tokenizer)
    print(f"the adapter is saved as far as it is trained: {experiment.out}", file=sys.stderr)
