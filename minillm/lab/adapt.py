"""`minillm adapt`: adapt a base to a task with one method; the result is an adapter and its measurements.

adapt.json describes the run from the moment when the adapter is saved, and has the measurements once it is complete.
Until then a checkpoint lies next to it.
"""

import json
import shlex
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from functools import partial
from pathlib import Path
from textwrap import shorten
from typing import Any, Literal

from minillm.adapt.card import write_card
from minillm.adapt.description import DESCRIPTION, Usage, describe
from minillm.classifier import CLASSIFIER
from minillm.data.conversation_tables import Kind, lecture, table_conversations
from minillm.data.conversations import Conversations
from minillm.data.tasks import Task
from minillm.data.templates import Template
from minillm.errors import InputError, check_at_least
from minillm.lab.experiment import DataOptions, doubts, parameter_count, run, tensor_bytes
from minillm.lab.free_answers import adapt_to_answers
from minillm.lab.own_data import report, trained_tokens
from minillm.lab.report import verdict
from minillm.lab.saving import saved
from minillm.prompting.fitting import encode_conversations
from minillm.prompting.lengths import room
from minillm.runtime.device import keep_freed_memory, pick_device, use_threads
from minillm.runtime.distributed import first_before_others, is_first, joined
from minillm.runtime.files import check_directory, check_unused, commit, complete
from minillm.runtime.options import RUN, Directory, DryRunOptions
from minillm.runtime.progress import note
from minillm.runtime.reading import read_json
from minillm.training.checkpoints import CHECKPOINT, Checkpoints, check_settings
from minillm.training.methods import METHODS, MethodOptions, Trained, check_options, training_settings

MEASURED = "adapt.json"
CHOICES = {name: name for name in ("kind", "prompt_column", "answer_column", "pack")} | {"exact": "exact_match"}
"""The options of this file that change the results, by their names in adapt.json, which may lack some."""


@dataclass(kw_only=True)
class Adapt(MethodOptions, DryRunOptions, DataOptions):
    """Adapt a model to labelled texts, free answers or conversations with one method, and save the adapter.

    Ctrl-C saves what was trained so far. The same command again continues from the last checkpoint, bit for bit. Under
    torchrun the processes share each batch.

    Example: minillm adapt --data reviews.csv --method lora --learning-rate 1e-3 --out my.adapter
    """

    out: Directory
    """The directory of the adapter and of its measurements, adapt.json."""
    method: Literal["features", Trained] = "lora"
    """The method; features is a linear probe, output trains the output rows of the answers, full trains all weights."""
    kind: Kind | None = None
    """The kind of your data, recognised from its columns if not given: labels (labelled texts), or conversations in
    the base's chat template: messages, sharegpt (conversations), alpaca (instruction, input, output), answers (prompt,
    answer)."""
    prompt_column: str | None = None
    """The column of the prompts in your data; without --kind, free answers without the chat template."""
    answer_column: str | None = None
    """The column of the answers in your data."""
    pack: int | None = None
    """Conversations: join those of a batch to rows of up to so many tokens, where each still sees only itself; the
    losses are the same. Not faster on a CPU, where conversations of similar length share a batch."""
    exact_match: bool = False
    """Answer all test rows of conversations, and report the share of answers that equal the expected ones."""
    show_data: bool = False
    """Print three training rows with the trained tokens in colour or in brackets, and end."""
    checkpoint_every: int | None = None
    """Optimizer steps between checkpoints; every epoch and every five minutes if not given."""
    overwrite: bool = False
    """Start again, and replace the results of another run."""

    def __post_init__(self):
        super().__post_init__()
        check_options(self.method, self)
        if self.kind is not None and self.data is None:
            raise InputError("--kind needs --data")
        check_at_least(1, checkpoint_every=self.checkpoint_every, pack=self.pack)

    @property
    def free(self) -> bool:
        """Whether the data are prompts and answers for a prompt template."""
        return self.kind is None and (self.prompt_column is not None or self.answer_column is not None)

    @property
    def question(self) -> str:
        return "{text}\n" if self.free and self.prompt is None else super().question

    def run(self) -> None:
        keep_freed_memory()
        if self.show_data:
            if is_first():
                print(shown(self))
            return
        with joined(pick_device(self.device)):
            measured = adapt(self)
        if self.dry_run:
            self.show_plan(measured)
        if self.dry_run or not is_first():
            return
        single = {name: value for name, value in measured.items() if not isinstance(value, (list, dict))}
        lines = [f"{name}: {_figure(value) if isinstance(value, float) else value}" for name, value in single.items()]
        for sample in measured.get("samples", []):
            lines += [*(f"{name}: {shorten(text, 400)}" for name, text in sample.items()), ""]
        lines += [f"saved: {self.out}", "", *self.conclusion(measured)]
        self.show("\n".join(lines), measured | {"out": self.out})
        for doubt in doubts(measured) if "accuracy" in measured else []:
            note(doubt)

    def conclusion(self, measured: Mapping[str, Any]) -> list[str]:
        """The accuracy against the majority baseline, and the command that uses the adapter."""
        if "accuracy" in measured:
            return [verdict(measured), f"next: {shlex.join(['minillm', 'predict', str(self.out)])} FILE"]
        name, text = ("chat", "") if describe(self.out).chat else ("generate", " TEXT")
        return [f"next: {shlex.join(['minillm', name, '--base', self.base, '--adapter', str(self.out)])}{text}"]

    def load_data(self) -> Task | Conversations:
        """Labelled texts, free answers or conversations. Raises InputError for data or options that cannot be used."""
        columns = [name for name in (self.prompt_column, self.answer_column) if name is not None]
        for_labels = (self.text_column, self.label_column, self.prompt, self.labels) != ("text", "label", None, None)
        if self.free and (self.table is None or len(columns) < 2):
            raise InputError("free answers need --data, --prompt-column and --answer-column")
        if for_labels and not self.free and (self.task == "lecture" or self.kind not in (None, "labels")):
            raise InputError("--prompt, --labels, --text-column and --label-column are for labelled texts")
        if self.task == "lecture":
            return lecture()
        if self.table is None or self.kind == "labels" or (for_labels and not self.free):
            return self.load_task()
        template = Template(self.question).question if self.free else None  # a template without {text} is refused
        kind = "answers" if self.free else self.kind
        found = table_conversations(self.table, kind, columns, self.train, self.test, template)
        return self.load_task() if found is None else found


def _figure(value: float) -> str:
    """Three significant digits, without an exponent for large numbers."""
    return f"{value:.3g}" if abs(value) < 1000 else f"{value:.0f}"


def adapt(options: Adapt) -> dict[str, Any]:
    """Adapt, and save the adapter and its measurements; those of a complete run with these options are returned.

    A dry run returns what would be trained. Raises InputError before anything is written or trained, also for a
    directory that holds something else.
    """
    if options.dry_run:
        options.check_local()
    check_directory(options.out)
    use_threads(options.threads)
    task = options.load_data()
    if isinstance(task, Conversations) and options.method == "features":
        raise InputError(f"features trains a classifier, which has no free answers; choose from: {', '.join(METHODS)}")
    if options.pack is not None and not isinstance(task, Conversations):
        raise InputError("--pack joins conversations, and these are labelled texts")
    described = {
        "ladder": options.described(task),
        "method": options.method,
        "options": {option.name: getattr(options, option.name) for option in fields(MethodOptions)},
        **{name: getattr(options, option) or None for name, option in CHOICES.items()},
    }
    output = Output(options, described)
    with first_before_others():
        measured = output.earlier()
    if measured is not None and options.dry_run:
        return {"method": options.method, "steps": 0, "out": options.out}
    if measured is None:
        report(task)
        measured = to_answers(output, task) if isinstance(task, Conversations) else to_labels(output, task)
        if options.dry_run:
            rows = {f"{part}_rows": len(getattr(task, part)) for part in ("train", "validation", "test")}
            return {"method": options.method, "base": options.base, **rows, **measured, "out": options.out}
        metrics = {name: value for name, value in measured.items() if isinstance(value, (int, float))}
        if is_first():
            with commit(options.out) as new:
                new.text(MEASURED, json.dumps(described | measured, indent=2) + "\n")
                new.removed.add(CHECKPOINT)
                write_card(options.out, describe(options.out), metrics)
    return {"method": options.method, **measured}


class Output:
    """The directory of one adaptation: its checkpoint, its adapter and its description."""

    def __init__(self, options: Adapt, described: dict[str, Any]):
        self.options, self.described = options, described
        self.checkpoints = Checkpoints(options.out, _flat(described), options.checkpoint_every)

    def earlier(self) -> dict[str, Any] | None:
        """The measurements of an earlier run with these options, if it is complete.

        Raises InputError for a directory with another run, unless it is to be overwritten.
        """
        out = self.options.out
        complete(out)
        if self.options.overwrite:
            if not self.options.dry_run:
                self.checkpoints.remove()
        elif (out / MEASURED).exists():
            found = read_json(out / MEASURED)
            check_settings(out, _flat(found), self.checkpoints.settings)
            measured = {name: value for name, value in found.items() if name not in self.described}
            if measured:
                note(f"{out} is complete; --overwrite trains again")
            return measured or None
        elif not (out / CHECKPOINT).exists():
            for name in (DESCRIPTION, CLASSIFIER):
                check_unused(out / name, overwrite=False)
        return None

    def save(self, write: Callable[[Path], None]) -> None:
        """Save an adapter when it is trained, before it is measured, or when the training is interrupted."""
        if not is_first():
            return

        def whole(out: Path) -> None:
            with commit(out) as new:
                new.removed.add(CLASSIFIER)  # of an earlier adapter in this directory
                new.text(MEASURED, json.dumps(self.described, indent=2) + "\n")
                new.text(RUN, self.options.run_file())
                write(out)

        out = self.options.out = saved(whole, self.options.out)
        if sys.exc_info()[0] is KeyboardInterrupt:
            note(f"\nsaved what was trained so far: {out}")


def _flat(described: Mapping[str, Any]) -> dict[str, Any]:
    """All settings of a run by their names."""
    whole = {name: described.get(name) for name in ("method", *CHOICES)}
    return {**described.get("ladder", {}), **whole, **described.get("options", {})}


def shown(options: Adapt) -> str:
    """The first training rows, with the tokens that are trained on."""
    task = options.load_data()
    if not isinstance(task, Conversations):
        raise InputError("--show-data is for conversations and free answers; of labelled texts, the labels are trained")
    report(task)
    experiment = options.load()
    tokenizer = experiment.tokenizer
    rows = encode_conversations(tokenizer, task.train[:3], room(experiment.decoder, 0), options.truncate)
    return trained_tokens(tokenizer, [row for rows in rows for row in rows], sys.stdout.isatty())


def to_labels(output: Output, task: Task) -> dict[str, Any]:
    """Adapt to labelled text and save the classifier."""
    options = output.options
    classifier = options.classifier(task, options.method, options, options.out)
    if options.dry_run:
        return classifier.check_task(task)
    command = options.command_line
    found = run(
        classifier, task, output.checkpoints, lambda classifier: output.save(partial(classifier.save, command=command))
    )
    not_reported = ("tokens_per_second", "peak_memory_bytes", "precision")
    return {name: value for name, value in found.items() if name not in not_reported}


def to_answers(output: Output, task: Conversations) -> dict[str, Any]:
    """Adapt to free answers and save the adapter."""
    options = output.options
    experiment = options.load()
    settings = training_settings(options.method, options, experiment.precision, options.seed)
    method = experiment.build(options.method, options)
    if options.dry_run:
        available, rows = room(method, 0), [*task.validation, *task.test, *task.train]
        encoded = encode_conversations(experiment.tokenizer, rows, available, options.truncate)
        rows = sum(map(len, encoded[-len(task.train) :])) + settings.replay
        steps = settings.epochs * settings.epoch_steps(rows)
        return {"trainable_parameters": parameter_count(method.trainable()), "steps": steps}
    chat = task.train[0].template is None
    end = "" if chat else experiment.tokenizer.names.get("eos", "")
    prompt = "{text}" if chat else options.question
    method.usage = Usage(base_name=options.base, prompt=prompt, chat=chat, end=end, command=options.command_line)
    measured = adapt_to_answers(
        experiment, task, method, settings,
        lambda: output.save(partial(method.save, tokenizer=experiment.tokenizer)), options.truncate, output.checkpoints,
        exact=options.exact_match or not chat, pack=options.pack,
    )  # fmt: skip
    return {
        "trainable_parameters": parameter_count(method.trainable()),
        "stored_bytes": tensor_bytes(method.state()),
        **measured,
    }
