"""The ladder: one base and one task, climbed by one technique after another, each in a process of its own.

A process of its own is what makes a rung's peak memory its own. Finished rungs are kept in `ladder.json`, and a
ladder begun again with the same settings goes on where it stopped.
"""

import json
import multiprocessing
import platform
import signal
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from importlib.metadata import version
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from minillm import hub
from minillm.data.reviews import PROMPT, reviews_task
from minillm.data.tables import table_task
from minillm.data.tasks import Task
from minillm.data.word_problems import word_problems_task
from minillm.errors import InputError, check_seed
from minillm.lab.embedded import base_path, pulled_data
from minillm.lab.rungs import RUNGS, Rung, chosen_rungs
from minillm.lab.statistics import standard_error
from minillm.lab.world import Bench, World, labels
from minillm.prompting.scoring import accuracy
from minillm.runtime.device import best_precision, keep_freed_memory, peak_memory, pick_device, use_threads
from minillm.runtime.files import check_directory, write_text


@dataclass(frozen=True)
class LadderSettings:
    """What is climbed, and on what. Two ladders of equal settings are the same ladder."""

    base: str
    task: str
    train: int
    test: int
    seed: int
    device: str
    threads: int
    data: str | None = None
    text_column: str = "text"
    label_column: str = "label"
    prompt: str = PROMPT
    labels: tuple[str, ...] | None = None

    def __post_init__(self):
        if self.threads < 1:
            raise InputError(f"threads is {self.threads}; it must be at least 1")
        check_seed(self.seed)


def load_task(settings: LadderSettings) -> Task:
    """The user's own data if there are any, else the task of that name. Raises InputError for an unknown one."""
    if settings.data is not None:
        return table_task(
            Path(settings.data), text_column=settings.text_column, label_column=settings.label_column,
            prompt=settings.prompt, labels=settings.labels, train=settings.train, test=settings.test,
        )  # fmt: skip
    if settings.task == "word_problems":
        return word_problems_task(settings.train, settings.test)
    if settings.task != "reviews":
        raise InputError(
            f"there is no task {settings.task!r}; there are: reviews, word_problems, or your own with --data FILE"
        )
    return reviews_task(pulled_data("reviews"), settings.train, settings.test)


def bench(settings: LadderSettings, out: Path) -> Bench:
    """Load the base that is worked on. Raises InputError for one without a tokenizer."""
    use_threads(settings.threads)
    device = pick_device(settings.device)
    decoder, tokenizer = hub.load(base_path(settings.base))
    if tokenizer is None:
        raise InputError(f"{settings.base} has no tokenizer, and texts need one")
    return Bench(decoder.to(device), tokenizer, device, best_precision(device), settings.seed, out)


def world(settings: LadderSettings, out: Path) -> World:
    """Load what a rung starts from, the task first: what is wrong with it is said soonest."""
    task = load_task(settings)
    found = bench(settings, out)
    return World(found.decoder, found.tokenizer, found.device, found.precision, found.seed, out, task)


def measure(rung: Rung, settings: LadderSettings, out: Path) -> dict[str, Any]:
    """Climb one rung in this process, and describe the outcome in JSON's types."""
    here = world(settings, out)
    outcome = rung.climb(here)
    share = accuracy(outcome.scores, labels(here.task.test))
    seconds = outcome.train_seconds or outcome.eval_seconds
    return {
        "name": rung.name,
        "technique": rung.technique,
        "place": rung.place,
        "accuracy": share,
        "standard_error": standard_error(share, len(here.task.test)),
        "trainable_parameters": outcome.trainable_parameters,
        "stored_bytes": outcome.stored_bytes,
        "train_seconds": outcome.train_seconds,
        "eval_seconds": outcome.eval_seconds,
        "tokens_per_second": outcome.tokens / seconds,
        "peak_memory_bytes": peak_memory(here.device),
        "precision": outcome.precision,
        "chosen": outcome.chosen,
    }


def _child(connection: Connection, name: str, settings: LadderSettings, out: Path) -> None:
    keep_freed_memory()
    try:
        connection.send((measure(RUNGS[name], settings, out), None))
    except InputError as error:
        connection.send((None, str(error)))
    except KeyboardInterrupt:
        sys.exit(130)


def climb_apart(rung: Rung, settings: LadderSettings, out: Path) -> dict[str, Any]:
    """Climb one rung in a process of its own. Raises InputError with the child's sentence, or where it died."""
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    child = context.Process(target=_child, args=(sender, rung.name, settings, out))
    child.start()
    sender.close()
    try:
        result, complaint = receiver.recv()
    except EOFError:
        child.join()
        if child.exitcode in (130, -signal.SIGINT):
            raise KeyboardInterrupt from None
        raise InputError(
            f"the rung {rung.name} ended without a result (exit code {child.exitcode}); was there too little memory?"
        ) from None
    finally:
        child.join()
    if complaint is not None:
        raise InputError(complaint)
    return result


def versions() -> dict[str, str]:
    packages = {name: version(name) for name in ("minillm", "torch", "numpy", "tokenizers")}
    return {"python": platform.python_version(), **packages}


def climb(
    rungs: str, settings: LadderSettings, out: Path, fresh: bool = False
) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    """After each rung, the rung and the ladder with all that is climbed, which is what `ladder.json` then holds.

    Raises InputError before anything is climbed where the settings cannot work.
    """
    chosen = chosen_rungs(rungs)
    pick_device(settings.device)
    load_task(settings)
    base_path(settings.base)
    path = out / "ladder.json"
    described = json.loads(json.dumps({**asdict(settings), "versions": versions()}))
    finished = {} if fresh else _finished(path, described)
    check_directory(out)
    if fresh:
        for stored in (out / "features").glob("*/*.safetensors"):
            stored.unlink()
    for rung in chosen:
        if rung.name not in finished:
            finished[rung.name] = climb_apart(rung, settings, out)
        ladder = {**described, "rungs": [finished[name] for name in RUNGS if name in finished]}
        write_text(path, json.dumps(ladder, indent=2) + "\n")
        yield finished[rung.name], ladder


def _finished(path: Path, described: dict[str, Any]) -> dict[str, Any]:
    """The rungs of an earlier ladder with the same settings."""
    try:
        earlier = json.loads(path.read_text())
        rungs = {rung["name"]: rung for rung in earlier.pop("rungs")}
    except (OSError, ValueError, LookupError, AttributeError, TypeError):
        return {}
    return rungs if earlier == described else {}
