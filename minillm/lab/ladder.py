"""`minillm ladder`: one base and one task, adapted by one method after another, each in a process of its own.

In a process of its own a rung's peak memory is its own. Finished rungs are saved in `ladder.json`, and a ladder that is
started again with the same options continues where it stopped.
"""

import json
import multiprocessing
import signal
import sys
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple

from minillm import hub
from minillm.classifier import TextClassifier
from minillm.errors import InputError
from minillm.lab.experiment import ExperimentOptions, run, versions
from minillm.lab.report import draw, picture, table
from minillm.operations import backend, current_backend
from minillm.runtime.device import keep_freed_memory, pick_device, use_threads
from minillm.runtime.files import check_directory, write_text
from minillm.runtime.options import Names
from minillm.training.methods import MethodOptions


class Rung(NamedTuple):
    """A technique, and its place in figure 1."""

    technique: str
    place: str


RUNGS = {
    "zero-shot": Rung("zero-shot prompt", "1 prompt"),
    "few-shot": Rung(f"{TextClassifier.shots}-shot prompt", "1 prompt"),
    "soft-prompt": Rung("soft prompt", "2 embeddings"),
    "prefix": Rung("prefix tuning, 10 positions", "2 every layer"),
    "features": Rung("stored features, classifier", "4 on top"),
    "output": Rung("output layer, answers' rows", "4 on top"),
    "last-blocks": Rung("last two blocks, final norm", "4 last layers"),
    "lora": Rung("LoRA r 8, query and value", "3 weights"),
    "full": Rung("full fine-tuning", "3 weights"),
}


@dataclass(kw_only=True)
class Ladder(ExperimentOptions):
    """Adapt a base to a task by every method, and compare: a table, ladder.json and ladder.png.

    LoRA trains for two epochs and full fine-tuning for one. What is chosen is chosen on validation rows.
    """

    rungs: Names = ("zero-shot", "few-shot", "features", "lora", "full")
    """Which techniques, comma-separated: zero-shot, few-shot, soft-prompt, prefix, features, output, last-blocks, lora,
    full; or all."""
    out: Path = Path("ladder")
    """The directory for what is written. Finished rungs in it are not run again."""
    fresh: bool = False
    """Run all rungs again."""

    def run(self) -> None:
        finished = []
        try:
            for rung, ladder in run_ladder(self):
                finished.append(ladder)
                seconds, share = rung["train_seconds"] + rung["eval_seconds"], rung["accuracy"]
                print(f"{rung['name']}: {share:.3f} ± {rung['standard_error']:.3f} in {seconds:.0f} s", file=sys.stderr)
        finally:
            if finished:
                print(table(finished[-1]))
                if draw(picture, finished[-1], self.out / "ladder.png"):
                    print(f"\npicture: {self.out / 'ladder.png'}", end="")
                print(f"\nwritten: {self.out / 'ladder.json'}")

    def chosen(self) -> list[str]:
        """The rungs' names. Raises InputError for one that is unknown."""
        for name in self.rungs:
            if name not in RUNGS and self.rungs != ("all",):
                raise InputError(f"there is no rung {name!r}; there are: {', '.join(RUNGS)}, or all")
        return list(RUNGS) if self.rungs == ("all",) else list(self.rungs)


def run_ladder(options: Ladder) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    """After each rung, the rung and the ladder with all finished rungs, which is what `ladder.json` then holds.

    Raises InputError before anything is run where the options cannot work.
    """
    chosen = options.chosen()
    pick_device(options.device)
    options = replace(options, threads=use_threads(options.threads))
    options.load_task()
    hub.locate(options.base)
    path = options.out / "ladder.json"
    described = json.loads(json.dumps({**options.described(), "versions": versions()}))
    finished = {} if options.fresh else _finished(path, described)
    check_directory(options.out)
    if options.fresh:
        for stored in (options.out / "features").glob("*/*.safetensors"):
            stored.unlink()
    for name in chosen:
        if name not in finished:
            finished[name] = measure_apart(name, options)
        ladder = {**described, "rungs": [finished[name] for name in RUNGS if name in finished]}
        write_text(path, json.dumps(ladder, indent=2) + "\n")
        yield finished[name], ladder


def _finished(path: Path, described: dict[str, Any]) -> dict[str, Any]:
    """The rungs of an earlier ladder with the same options."""
    try:
        earlier = json.loads(path.read_text())
        rungs = {rung["name"]: rung for rung in earlier.pop("rungs")}
    except (OSError, ValueError, LookupError, AttributeError, TypeError):
        return {}
    return rungs if earlier == described else {}


def measure_apart(name: str, options: Ladder) -> dict[str, Any]:
    """`measure` in a process of its own. Raises InputError with the child's sentence, or where it died."""
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    child = context.Process(target=_child, args=(sender, name, options, current_backend()))
    child.start()
    sender.close()
    try:
        result, complaint = receiver.recv()
    except EOFError:
        child.join()
        if child.exitcode in (130, -signal.SIGINT):
            raise KeyboardInterrupt from None
        raise InputError(
            f"the rung {name} ended without a result (exit code {child.exitcode}); was there too little memory?"
        ) from None
    finally:
        child.join()
    if complaint is not None:
        raise InputError(complaint)
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
    """Run one rung in this process, and describe the outcome in JSON's types."""
    use_threads(options.threads)
    task = options.load_task()
    classifier = options.classifier(task, name, MethodOptions(), options.out)
    return {"name": name, **RUNGS[name]._asdict(), **run(classifier, task)}
