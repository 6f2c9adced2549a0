"""`minillm ladder`: adapt one base to one task with one method after another, each in a process of its own.

In its own process the peak memory of a rung can be measured. Finished rungs are saved in `ladder.json`, and a ladder
that is started again with the same options continues after them.
"""

import json
import multiprocessing
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple

from minillm import hub
from minillm.classifier import TextClassifier
from minillm.data.tasks import Task
from minillm.errors import InputError, unknown
from minillm.lab.experiment import DataOptions, doubts, run, versions
from minillm.lab.own_data import report
from minillm.lab.report import draw, picture, table
from minillm.operations import backend, current_backend
from minillm.runtime.device import keep_freed_memory, pick_device, use_threads
from minillm.runtime.files import check_directory, read_json, reading, write_text
from minillm.runtime.options import Directory, Names
from minillm.training.methods import MethodOptions


class Rung(NamedTuple):
    """A technique and its place in figure 1."""

    technique: str
    place: str


RUNGS = {
    "zero-shot": Rung("zero-shot prompt", "1 prompt"),
    "few-shot": Rung(f"{TextClassifier.shots}-shot prompt", "1 prompt"),
    "soft-prompt": Rung("soft prompt", "2 embeddings"),
    "prefix": Rung("prefix tuning, 10 positions", "2 every layer"),
    "features": Rung("linear probe on cached features", "4 on top"),
    "output": Rung("output layer, rows of the answers", "4 on top"),
    "last-blocks": Rung("last two blocks, final norm", "4 last layers"),
    "lora": Rung("LoRA r 8, query and value", "3 weights"),
    "full": Rung("full fine-tuning", "3 weights"),
}


@dataclass(kw_only=True)
class Ladder(DataOptions):
    """Adapt a model to a task with several methods (rungs), and compare: a table, ladder.json and ladder.png.

    LoRA trains for two epochs, full fine-tuning for one. Hyperparameters are selected on validation rows.

    Example: minillm ladder --base tiny --task word_problems --rungs all
    """

    rungs: Names = ("zero-shot", "few-shot", "features", "lora", "full")
    """The methods, separated by commas: zero-shot, few-shot, soft-prompt, prefix, features, output, last-blocks, lora,
    full; or all."""
    out: Directory = Path("ladder")
    """The directory of the results. Finished rungs are not run again."""
    fresh: bool = False
    """Run all rungs again."""

    def run(self) -> None:
        finished = []
        try:
            for rung, ladder in run_ladder(self):
                finished.append(ladder)
                seconds, share = rung["train_seconds"] + rung["eval_seconds"], rung["accuracy"]
                print(f"{rung['name']}: {share:.3f} ± {rung['standard_error']:.3f} in {seconds:.0f} s", file=sys.stderr)
                for doubt in doubts(rung):
                    print(f"{rung['name']}: {doubt}", file=sys.stderr)
        finally:
            if finished:
                drawn = draw(picture, finished[-1], self.out / "ladder.png")
                print(f"{table(finished[-1])}\n")
                for name in ("ladder.png", "ladder.json") if drawn else ("ladder.json",):
                    print(f"saved: {self.out / name}")

    def chosen(self) -> list[str]:
        """The names of the rungs. Raises InputError for an unknown one."""
        for name in self.rungs:
            if name not in RUNGS and self.rungs != ("all",):
                raise unknown("rung", name, [*RUNGS, "all"])
        return list(RUNGS) if self.rungs == ("all",) else list(self.rungs)


def run_ladder(options: Ladder) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    """Yield each rung, and the ladder with all finished rungs, which is the content of `ladder.json`.

    Raises InputError for invalid options before anything is run.
    """
    chosen = options.chosen()
    pick_device(options.device)
    options = replace(options, threads=use_threads(options.threads))
    task = options.load_task()
    hub.locate(options.base)
    path = options.out / "ladder.json"
    described = json.loads(json.dumps({**options.described(task), "versions": versions()}))
    finished = {} if options.fresh else _finished(path, described)
    check_directory(options.out)
    if options.fresh:
        for stored in (options.out / "features").glob("*/*.safetensors"):
            stored.unlink()
    report(task)
    check_lengths([name for name in chosen if name not in finished], options, task)
    for name in chosen:
        if name not in finished:
            finished[name] = measure_apart(name, options)
        ladder = {**described, "rungs": [finished[name] for name in RUNGS if name in finished]}
        write_text(path, json.dumps(ladder, indent=2) + "\n")
        yield finished[name], ladder


def check_lengths(names: Sequence[str], options: Ladder, task: Task) -> None:
    """Raises InputError for a text that is too long for one of these rungs, before the first is run."""
    if options.truncate == "error" and names:
        experiment = replace(options, device="cpu").load()
        for name in names:
            classifier = options.classifier(task, name, MethodOptions(), options.out)
            classifier.set_params(base=(experiment.decoder, experiment.tokenizer)).check_task(task)


def _finished(path: Path, described: dict[str, Any]) -> dict[str, Any]:
    """The finished rungs of an earlier run with the same options."""
    try:
        with reading(path):
            earlier = read_json(path)
            rungs = {rung["name"]: rung for rung in earlier.pop("rungs")}
    except InputError:
        return {}
    return rungs if earlier == described else {}


def measure_apart(name: str, options: Ladder) -> dict[str, Any]:
    """`measure` in a process of its own. Raises InputError with the message of the child, or if the child died."""
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    child = context.Process(target=_child, args=(sender, name, options, current_backend()))
    child.start()
    sender.close()
    try:
        result, message = receiver.recv()
    except EOFError:
        child.join()
        if child.exitcode in (130, -signal.SIGINT):
            raise KeyboardInterrupt from None
        raise InputError(
            f"the rung {name} ended without a result (exit code {child.exitcode}); was memory exhausted?"
        ) from None
    finally:
        child.join()
    if message is not None:
        raise InputError(message)
    return result


def _child(connection: Connection, name: str, options: Ladder, forced: str | None) -> None:
    keep_freed_memory()
    try:
        with backend(forced) if forced is not None else nullcontext():
            connection.send((measure(name, options), None))
    except InputError as error:
        connection.send((None, str(error)))
    except KeyboardInterrupt:
        sys.exit(130)


def measure(name: str, options: Ladder) -> dict[str, Any]:
    """Run one rung in this process; the result in JSON's types."""
    use_threads(options.threads)
    task = options.load_task()
    classifier = options.classifier(task, name, MethodOptions(), options.out)
    return {"name": name, **RUNGS[name]._asdict(), **run(classifier, task)}
