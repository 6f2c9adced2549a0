"""A rung runs in a process of its own, which ends with its parent; a rung that fails does not end the others."""

import json
import multiprocessing
import os
import shlex
import signal
import subprocess
import sys
import threading
from dataclasses import fields, replace
from pathlib import Path
from unittest.mock import Mock

import pytest

from minillm import Decoder, DecoderConfig, InputError, save
from minillm.lab import ladder
from minillm.lab.adapt import Adapt
from minillm.lab.experiment import DataOptions
from minillm.lab.ladder import Ladder, measure_apart, run_ladder
from minillm.operations import backend, current_backend
from minillm.runtime.options import parse
from minillm.training.checkpoints import CHECKPOINT
from minillm.training.loop import Loop
from minillm.training.tokenizers import byte_pairs
from tests.processes import running, wait


class Process(threading.Thread):
    """Instead of a process: a new thread has no forced backend either."""

    def start(self):
        super().start()
        self.join()


class Context:
    Pipe, Process = staticmethod(multiprocessing.Pipe), Process


def test_the_child_uses_the_forced_backend_of_its_parent(monkeypatch):
    monkeypatch.setattr(ladder.multiprocessing, "get_context", lambda method: Context)
    monkeypatch.setattr(ladder, "end_with_parent", lambda connection: None)
    monkeypatch.setattr(ladder, "measure", lambda name, options: {"backend": current_backend()})
    for forced in ("plain", "fast"):
        with backend(forced):
            assert measure_apart("lora", Ladder()) == {"backend": forced}
    assert measure_apart("lora", Ladder()) == {"backend": None}


def test_an_accelerator_that_fails_in_a_rung_is_named(monkeypatch):
    error = NotImplementedError("The operator 'aten::lu' is not currently implemented for the MPS device.")
    monkeypatch.setattr(ladder.multiprocessing, "get_context", lambda method: Context)
    monkeypatch.setattr(ladder, "end_with_parent", lambda connection: None)
    monkeypatch.setattr(ladder, "measure", Mock(side_effect=error))
    with pytest.raises(
        InputError, match=r"the accelerator failed in _child \(ladder\.py\): The .*; --device cpu computes"
    ):
        measure_apart("lora", Ladder())


@pytest.mark.parametrize(
    "given",
    [
        {
            "data": Path("my data.csv"),
            "prompt": "Q: {text}\nA:",
            "labels": ("1=bad", "5=very good"),
            "delimiter": "\\t",
        },
        {"task": "word_problems", "train": 40, "base": "tiny", "seed": 3, "truncate": "left"},
        {},
    ],
)
def test_the_last_lines_name_the_best_rung_and_the_command_that_adapts_with_it(given):
    """A prompt is no adapter, so the command is for the best of the others."""
    settings = Ladder(**given)
    shares = {"zero-shot": 0.9, "features": 0.5, "lora": 0.7, "full": 0.6}
    best, command = settings.conclusion([{**result(name), "accuracy": share} for name, share in shares.items()])
    assert best == "\nbest: zero-shot, accuracy 0.900 ± 0.500, majority baseline 0.100"
    assert command.startswith("next: minillm adapt --method lora")
    assert command.endswith("--out lora.adapter")
    adapt = parse(Adapt, "minillm adapt", shlex.split(command)[3:])
    assert all(getattr(adapt, field.name) == getattr(settings, field.name) for field in fields(DataOptions))


@pytest.fixture
def options(tmp_path):
    """A ladder on 40 rows, and one that is too long for a prefix of 10."""
    save(Decoder(DecoderConfig.tiny(vocabulary=257, layers=1)), byte_pairs([], 257), tmp_path / "base")
    path, rows = tmp_path / "rows.csv", [f"text {n},{'good' if n % 2 else 'bad'}" for n in range(40)]
    path.write_text("text,label\n" + "\n".join([*rows, f"{'a' * 55},bad"]) + "\n")
    return Ladder(
        base=str(tmp_path / "base"), data=path, prompt="{text}:", out=tmp_path / "out", device="cpu", threads=1,
        rungs=("zero-shot", "prefix", "lora"),
    )  # fmt: skip


def result(name, seed=0):
    """A rung that was not run, on four test rows."""
    measured = dict.fromkeys(("accuracy", "standard_error", "train_seconds", "eval_seconds", "tokens_per_second"), 0.5)
    counted = {"predicted_classes": 2, "majority_baseline": 0.1, "trainable_parameters": 1, "stored_bytes": 1}
    rows = {"predicted": [0, 1, 0, 1], "confidence": [0.5] * 4, "peak_memory_bytes": None, "seed": seed}
    return {"name": name, **ladder.RUNGS[name]._asdict(), **measured, **counted, **rows}


def test_a_rung_that_fails_is_reported_and_the_others_run(options, monkeypatch, capsys):
    """One has a text that is too long and is not started, one fails in its process."""
    started = []

    def measured(name, options):
        started.append(name)
        if name == "lora" and started.count(name) == 1:
            raise InputError("it ended without a result (exit code -9); was memory exhausted?")
        return result(name)

    monkeypatch.setattr(ladder, "measure_apart", measured)
    with pytest.raises(SystemExit) as end:
        options.run()
    assert end.value.code == 1
    printed, complaint = capsys.readouterr()
    too_long = "its prompt has 56 tokens, and 50 fit (a context of 64, 10 for the method's prefix, 4 for the answer)"
    for reason in (f"prefix: skipped, {options.data}, line 42 ('a", too_long, "lora: skipped, it ended without a"):
        assert reason in printed
        assert reason in complaint
    assert "zero-shot prompt" in printed
    written = json.loads((options.out / "ladder.json").read_text())
    assert [rung["name"] for rung in written["rungs"]] == ["zero-shot"]
    assert list(written["skipped"]) == ["prefix", "lora"]
    rows = json.loads((options.out / "rows.json").read_text())
    assert (rows["answers"], len(rows["labels"]), len(rows["texts"])) == (["bad", "good"], 4, 4)
    assert started == ["zero-shot", "lora"]
    for name, found in run_ladder(replace(options, rungs=("zero-shot", "lora"))):
        assert name not in found["skipped"]
    assert started == ["zero-shot", "lora", "lora"], "only what failed is run again"


def test_a_rung_is_run_once_for_each_seed_and_continues_after_those_that_are_finished(options, monkeypatch):
    """A prompt without examples depends on no seed."""
    started, options = [], replace(options, rungs=("zero-shot", "lora"), seeds=2)

    def measured(name, options):
        started.append((name, options.seed))
        if started.count(("lora", 1)) == 1 and name == "lora" and options.seed == 1:
            raise KeyboardInterrupt
        return result(name, options.seed)

    monkeypatch.setattr(ladder, "measure_apart", measured)
    with pytest.raises(KeyboardInterrupt):
        list(run_ladder(options))
    written = json.loads((options.out / "ladder.json").read_text())
    assert [len(rung["runs"]) for rung in written["rungs"]] == [1, 1]
    *_, (_, found) = run_ladder(replace(options, seeds=3))
    assert started == [("zero-shot", 0), ("lora", 0), ("lora", 1), ("lora", 1), ("lora", 2)]
    assert [[run["seed"] for run in rung["runs"]] for rung in found["rungs"]] == [[0], [0, 1, 2]]
    assert [(pair["first"], pair["second"], pair["verdict"]) for pair in found["pairs"]] == [
        ("zero-shot", "lora", "not distinguishable")
    ]
    assert sum(map(sum, found["rungs"][1]["confusion"])) == 3 * 4


def test_a_ladder_without_predictions_is_not_continued(options, monkeypatch):
    monkeypatch.setattr(ladder, "measure_apart", lambda name, options: result(name))
    options = replace(options, rungs=("zero-shot",))
    list(run_ladder(options))
    path = options.out / "ladder.json"
    found = json.loads(path.read_text())
    del found["rungs"][0]["runs"]
    path.write_text(json.dumps(found))
    with pytest.raises(InputError, match=r"ladder\.json: an earlier minillm wrote it, without predictions; give"):
        list(run_ladder(options))


def test_what_concerns_all_rungs_ends_the_ladder(options, monkeypatch):
    monkeypatch.setattr(ladder, "measure_apart", lambda name, options: pytest.fail("a rung was started"))
    with pytest.raises(InputError, match="line 42"):
        next(run_ladder(replace(options, rungs=("prefix",))))
    assert not options.out.exists()


def test_another_ladder_in_the_directory_is_refused_unless_it_is_overwritten(options, monkeypatch):
    monkeypatch.setattr(ladder, "measure_apart", lambda name, options: result(name))
    options = replace(options, rungs=("zero-shot",))
    list(run_ladder(options))
    before = (options.out / "ladder.json").read_bytes()
    with pytest.raises(InputError, match="out holds a run with seed 0, and this one has 1; give another --out"):
        list(run_ladder(replace(options, seed=1)))
    assert (options.out / "ladder.json").read_bytes() == before
    options.data.write_text(options.data.read_text().replace("text 1,", "text one,"))
    with pytest.raises(InputError, match="out holds a run with rows '"):
        list(run_ladder(options))
    assert next(run_ladder(replace(options, seed=1, overwrite=True)))[1]["seed"] == 1
    (options.out / "ladder.json").write_text("[]")
    with pytest.raises(InputError, match=r"ladder\.json must be a JSON object"):
        list(run_ladder(options))


def test_a_rung_that_is_interrupted_continues_from_its_checkpoint(options, monkeypatch):
    """In this process: in the others, a rung has no test data."""
    monkeypatch.setattr(ladder, "measure_apart", ladder.measure)
    options, step = replace(options, rungs=("lora",)), Loop.step
    whole = next(run_ladder(replace(options, out=options.out / "whole")))[1]["rungs"][0]

    def interrupted(loop, batches):
        if loop.done == 3:
            signal.raise_signal(signal.SIGINT)
        return step(loop, batches)

    monkeypatch.setattr(Loop, "step", interrupted)
    with pytest.raises(KeyboardInterrupt):
        list(run_ladder(options))
    assert (options.out / "checkpoints" / "lora" / CHECKPOINT).exists()
    with pytest.raises(InputError, match="holds a run with seed"):
        list(run_ladder(replace(options, seed=1)))
    monkeypatch.setattr(Loop, "step", lambda loop, batches: step(loop, batches) if loop.done > 3 else None)
    rest = next(run_ladder(options))[1]["rungs"][0]
    assert not (options.out / "checkpoints").exists()
    assert (rest["chosen"], rest["accuracy"]) == (whole["chosen"], whole["accuracy"])


PARENT = """
import sys, time
from pathlib import Path
from minillm.lab import ladder

def measure(name, options):
    Path(sys.argv[1]).write_text(str(__import__("os").getpid()))
    try:
        for _ in range(600):
            time.sleep(0.1)
    except KeyboardInterrupt:
        Path(sys.argv[1]).write_text("saved")
        raise

ladder.measure = measure
if __name__ == "__main__":
    ladder.measure_apart("lora", ladder.Ladder())
"""


@pytest.mark.skipif(os.name == "nt", reason="SIGKILL")
@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_a_rung_ends_with_its_parent_and_saves_first(tmp_path, number):
    program, note = tmp_path / "parent.py", tmp_path / "note"
    program.write_text(PARENT)
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(map(str, sys.path))}
    parent = subprocess.Popen([sys.executable, program, note], stderr=subprocess.DEVNULL, env=environment)
    wait(lambda: note.exists() and note.read_text())
    child = int(note.read_text())
    parent.send_signal(number)
    parent.wait(20)
    wait(lambda: note.read_text() == "saved" and not running(child))
