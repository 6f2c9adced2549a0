"""`minillm ladder`: adapt one base to one task with one method after another, each in a process of its own.

In its own process the peak memory of a rung can be measured, and a rung that fails does not end the others. Finished
rungs are saved in `ladder.json`, seed by seed. A ladder that is started again with the same options continues after
them and, within a rung, from its checkpoint.
"""

import json
import multiprocessing
import os
import shlex
import signal
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext, suppress
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection
from pathlib import Path
from threading import Thread
from typing import Any, NamedTuple

from minillm import hub
from minillm.classifier import IN_CONTEXT, TextClassifier
from minillm.data.tasks import Task
from minillm.errors import InputError, check_at_least, one_sentence, unknown
from minillm.lab.attention import attention_picture, prefix_attention
from minillm.lab.experiment import DataOptions, doubts, labels, passes, run, versions
from minillm.lab.own_data import report
from minillm.lab.pictures import PictureOptions, draw, ladder_picture
from minillm.lab.report import differences, table, verdict
from minillm.lab.statistics import compare_all, over_seeds, right_of
from minillm.operations import backend, current_backend
from minillm.runtime.device import keep_freed_memory, pick_device, use_threads
from minillm.runtime.distributed import is_first, joined
from minillm.runtime.files import check_directory
from minillm.runtime.interrupts import INTERRUPTED, ctrl_c_ignored, interrupts_handled
from minillm.runtime.locks import locked
from minillm.runtime.option import options_of
from minillm.runtime.options import NO_SETTINGS, Directory, DryRunOptions, Names
from minillm.runtime.progress import duration, note
from minillm.runtime.reading import read_json, reading
from minillm.runtime.streams import unbroken
from minillm.training.checkpoints import Checkpoints, check_settings
from minillm.training.methods import MethodOptions

LADDER = "ladder.json"
Rungs = dict[str, dict[str, Any]]
"""The results of rungs by their names."""
SEEDLESS = "zero-shot", "features"  # their results do not depend on the seed


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
class Ladder(DryRunOptions, PictureOptions, DataOptions):
    """Adapt a model to a task with several methods (rungs), and compare: a table, ladder.json and a picture.

    LoRA trains for two epochs, full fine-tuning for one. Hyperparameters are selected on validation rows. If a rung
    fails, its row says why, the others run, and the exit code is 1. Under torchrun the processes share each batch.

    Example: minillm ladder --base tiny --task word_problems --rungs all
    """

    rungs: Names = ("zero-shot", "few-shot", "features", "lora", "full")
    """The methods, separated by commas: zero-shot, few-shot, soft-prompt, prefix, features, output, last-blocks, lora,
    full; or all."""
    seeds: int | None = None
    """The number of seeds, from --seed on, with which a rung that depends on them is run. With one, only the noise of
    the test rows is measured. If not given: 3 for the base tiny, else 1."""
    out: Directory = Path("ladder")
    """The directory of the results. Finished rungs are not run again."""
    overwrite: bool = False
    """Run all rungs again, and replace the results of another run."""

    def __post_init__(self):
        super().__post_init__()
        self.seeds = (3 if self.base == "tiny" else 1) if self.seeds is None else self.seeds
        check_at_least(1, seeds=self.seeds)

    def run(self) -> None:
        if self.dry_run:
            self.show_plan(next(run_ladder(self))[1])
            return
        ladder: dict[str, Any] = {}
        try:
            for name, ladder in run_ladder(self):
                if name in ladder["skipped"]:
                    note(f"{name}: skipped, {ladder['skipped'][name]}")
                    continue
                rung = next(rung for rung in ladder["rungs"] if rung["name"] == name)
                seconds, share = rung["train_seconds"] + rung["eval_seconds"], rung["accuracy"]
                note(f"{rung['name']}: {share:.3f} ± {rung['standard_error']:.3f} in {duration(seconds)}")
                for doubt in doubts(rung):
                    note(f"{rung['name']}: {doubt}")
        finally:
            if ladder and is_first():
                drawn = draw(ladder_picture, ladder, self.out / "ladder", self.format) if ladder["rungs"] else []
                for found in [rung["attention"] for rung in ladder["rungs"] if "attention" in rung]:
                    drawn += draw(attention_picture, found, self.out / "attention", self.format)
                files = [f"saved: {path}" for path in (*drawn, self.out / LADDER)]
                lines = [table(ladder), "", *differences(ladder["pairs"]), *files, *self.conclusion(ladder["rungs"])]
                self.show("\n".join(lines), ladder | {"out": self.out})
        if ladder["skipped"]:
            sys.exit(1)  # a rung failed

    def conclusion(self, rungs: Sequence[Mapping[str, Any]]) -> list[str]:
        """The best rung, and the command that adapts with the best one of those that train."""
        ranked = sorted(rungs, key=lambda rung: rung["accuracy"], reverse=True)
        best = [f"\nbest: {rung['name']}, {verdict(rung)}" for rung in ranked[:1]]
        trained = [rung["name"] for rung in ranked if rung["name"] not in IN_CONTEXT]
        return best + [f"next: {self.adapt_command(name)}" for name in trained[:1]]

    def adapt_command(self, method: str) -> str:
        """The command that adapts with a method to the same data."""
        usual, words = DataOptions(task=self.task, data=self.data), ["minillm", "adapt", "--method", method]
        for name, option in options_of(DataOptions).items():
            value = getattr(self, name)
            given = value != getattr(usual, name) or (name in ("task", "data") and value is not None)
            if given and name not in NO_SETTINGS:
                words += [option.flag, str(value) if option.spec is None else option.spec.str_from_instance(value)[0]]
        return shlex.join([*words, "--out", f"{method}.adapter"])

    def described_run(self, task: Task) -> dict[str, Any]:
        """The settings that determine the results, in JSON's types."""
        return json.loads(json.dumps({**self.described(task), "versions": versions()}))

    def seeds_left(self, name: str, finished: Rungs) -> range:
        """The seeds with which a rung is still to be run."""
        done, count = len(finished.get(name, {}).get("runs", [])), 1 if name in SEEDLESS else self.seeds
        return range(self.seed + done, self.seed + (count or 1))

    def checkpoints(self, name: str, described: dict[str, Any]) -> Checkpoints:
        return Checkpoints(self.out / "checkpoints" / name, described)

    def chosen(self) -> list[str]:
        """The names of the rungs. Raises InputError for an unknown one."""
        for name in self.rungs:
            if name not in RUNGS and self.rungs != ("all",):
                raise unknown("rung", name, [*RUNGS, "all"])
        return list(RUNGS) if self.rungs == ("all",) else list(self.rungs)


def run_ladder(options: Ladder) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the name of each rung, and the ladder with all rungs so far, which is the content of `ladder.json`.

    A dry run yields what would run. Raises InputError for invalid options, and if no rung can be run, before anything
    is run.
    """
    if options.dry_run:
        options.check_local()
    chosen = options.chosen()
    pick_device(options.device)
    options = replace(options, threads=use_threads(options.threads))
    task = options.load_task()
    hub.locate(options.base)
    check_directory(options.out)
    described = options.described_run(task)
    finished = _finished(options, described)
    report(task)
    checked = check_rungs([name for name in chosen if options.seeds_left(name, finished)], options, task)
    skipped = {name: found for name, found in checked.items() if isinstance(found, str)}
    if options.dry_run:
        rows = {name: described[name] for name in ("base", "train", "test")}
        yield "", {**rows, "out": options.out, **{name: checked.get(name, "finished") for name in chosen}}
        return
    with locked(options.out) if is_first() else nullcontext():
        ladder = _write(options, task, described, finished, skipped)
        for name in chosen:
            for seed in () if name in skipped else options.seeds_left(name, finished):
                announce(name, task, finished)
                try:
                    runs = [*finished.get(name, {}).get("runs", []), measure_apart(name, replace(options, seed=seed))]
                    finished[name] = over_seeds(runs, labels(task.test).tolist(), len(task.answers))
                except InputError as problem:
                    skipped[name] = str(problem)
                ladder = _write(options, task, described, finished, skipped)
                if name in skipped:
                    break
                checkpoints = options.checkpoints(name, described)
                checkpoints.remove()
                with suppress(OSError):
                    os.removedirs(checkpoints.directory)
            yield name, ladder


def announce(name: str, task: Task, finished: Rungs) -> None:
    """Print the estimated time of a rung, from those that are finished."""
    done = {rung: found for rung, found in finished.items() if rung != "few-shot"}  # its rows share their prefix
    if done:
        seconds = sum(found["train_seconds"] + found["eval_seconds"] for found in done.values())
        note(f"{name}: about {duration(seconds / sum(passes(rung, task) for rung in done) * passes(name, task))}")


def _write(
    options: Ladder, task: Task, described: Mapping[str, Any], finished: Rungs, skipped: Mapping[str, str]
) -> dict[str, Any]:  # fmt: skip
    """Write ladder.json, whose content is returned, with the rungs in their order, and rows.json."""
    rungs = [finished[name] for name in RUNGS if name in finished]
    failed = {name: skipped[name] for name in RUNGS if name in skipped}
    best, targets = sorted(rungs, key=lambda rung: -rung["accuracy"]), labels(task.test).tolist()
    pairs = compare_all({rung["name"]: right_of(rung["runs"], targets) for rung in best})
    ladder = {**described, "rungs": rungs, "skipped": failed, "pairs": pairs}
    if is_first():
        options.out = options.save_with_rows(options.out, LADDER, ladder, task)
    return ladder


def check_rungs(names: Sequence[str], options: Ladder, task: Task) -> dict[str, dict[str, int] | str]:
    """The sizes of each rung, or the sentence that a text is too long for it. Raises InputError if all are too long.

    Where texts are cut, only a dry run needs it.
    """
    if not names or (options.truncate != "error" and not options.dry_run):
        return {}
    experiment, found = replace(options, device="cpu").load(), {}
    for name in names:
        classifier = options.classifier(task, name, MethodOptions(), options.out)
        try:
            found[name] = classifier.set_params(base=(experiment.decoder, experiment.tokenizer)).check_task(task)
        except InputError as problem:
            found[name] = str(problem)
    if all(isinstance(one, str) for one in found.values()):
        raise InputError(found[names[0]])
    return found


def _finished(options: Ladder, described: Mapping[str, Any]) -> Rungs:
    """The finished rungs of an earlier run. Raises InputError if it had other options, unless it is overwritten."""
    out = options.out
    if options.overwrite and not options.dry_run:
        for features in out.glob("features/*/*.safetensors"):
            features.unlink()
        for directory in out.glob("checkpoints/*"):
            Checkpoints(directory).remove()
    if options.overwrite or not (out / LADDER).exists():
        return {}
    earlier = read_json(out / LADDER)
    check_settings(out, earlier, described)
    with reading(out / LADDER):
        if not all("runs" in rung for rung in earlier["rungs"]):
            raise InputError("an earlier minillm wrote it, without predictions; give another --out, or --overwrite")
        return {rung["name"]: rung for rung in earlier["rungs"]}


def measure_apart(name: str, options: Ladder) -> dict[str, Any]:
    """`measure` in a process of its own, which ends with this one. Under torchrun these join, one from each.

    Raises InputError with the message of the child, or if the child died.
    """
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    child = context.Process(target=_child, args=(theirs, name, options, current_backend()))
    with ctrl_c_ignored():  # the child inherits it: its end of the pipe tells it when to end
        child.start()
    theirs.close()
    try:
        result, message = ours.recv()
    except EOFError:
        child.join()
        if child.exitcode in (INTERRUPTED, -signal.SIGINT):
            raise KeyboardInterrupt(f"the rung {name}") from None
        raise InputError(f"it ended without a result (exit code {child.exitcode}); was memory exhausted?") from None
    except KeyboardInterrupt as interrupt:
        ours.close()  # which interrupts the child, so that it saves a checkpoint
        interrupt.args = (f"the rung {name}",)
        raise
    finally:
        child.join()
    if message is not None:
        raise InputError(message)
    return result


def _child(connection: Connection, name: str, options: Ladder, forced: str | None) -> None:
    keep_freed_memory()
    Thread(target=end_with_parent, args=(connection,), daemon=True).start()
    try:
        chosen = backend(forced) if forced is not None else nullcontext()
        with interrupts_handled(), unbroken(sys.stderr), options.printing(), chosen:
            connection.send((measure(name, options), None))
    except Exception as problem:
        if (sentence := one_sentence(problem)) is None:
            raise
        connection.send((None, sentence))
    except KeyboardInterrupt as interrupt:
        note(f"{name}: interrupted at {interrupt or 'its start'}")
        sys.exit(INTERRUPTED)


def end_with_parent(connection: Connection) -> None:
    """Interrupt this process when the other end of the pipe is closed, by the parent or by its death."""
    with suppress(EOFError, OSError):
        connection.recv()
    signal.raise_signal(signal.SIGTERM)


def measure(name: str, options: Ladder) -> dict[str, Any]:
    """Run one rung in this process; the result in JSON's types."""
    use_threads(options.threads)
    task = options.load_task()
    classifier = options.classifier(task, name, MethodOptions(), options.out)
    checkpoints = options.checkpoints(name, options.described_run(task))
    with joined(pick_device(options.device), f"{name} {options.seed}"):
        measured = run(classifier, task, checkpoints)
    if name == "prefix":
        with suppress(InputError):  # all texts are too long for a picture
            measured["attention"] = prefix_attention(classifier, min((row.text for row in task.test), key=len))
    return {"name": name, **RUNGS[name]._asdict(), "seed": options.seed, **measured}
