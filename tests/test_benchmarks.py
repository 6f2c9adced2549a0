"""The arithmetic of the benchmarks and the help of each; `make bench` measures."""

import json
import multiprocessing
import runpy
import time
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as some

from benchmarks import everything, gpu, scaling
from benchmarks.adapt_vs_peft import METHODS
from benchmarks.comparison import Comparison, Rounds, check, error, ratio, write_json
from benchmarks.lecture_set import table as lecture_table
from benchmarks.scaling import exponent
from benchmarks.sides import Side, at_work, shares, take_turns
from minillm.errors import InputError

ROOT = Path(__file__).parent.parent
COMMANDS = [path.stem for path in (ROOT / "benchmarks").glob("*.py") if "__main__" in path.read_text("utf-8")]


def rounds(side, seconds, amounts=None, peak_bytes=None):
    return Rounds(side, amounts=amounts or [1.0] * len(seconds), seconds=seconds, peak_bytes=peak_bytes)


def test_a_speedup_is_the_ratio_of_the_median_rates_with_the_range_of_single_rounds():
    assert ratio(rounds("ours", [1.0, 2.0, 3.0]), rounds("peer", [2.0, 4.0, 6.0])) == (2.0, 2.0, 2.0)
    assert ratio(rounds("ours", [1.0, 1.0, 5.0]), rounds("peer", [2.0, 3.0, 2.0])) == (2.0, 0.4, 3.0)
    assert ratio(rounds("ours", [1.0, 2.0], [10, 20]), rounds("peer", [1.0, 1.0], [10, 10])).of_medians == 1.0


@given(batches=some.lists(some.integers(), min_size=1), data=some.data())
def test_the_rounds_divide_the_work_into_equal_parts(batches, data):
    parts = shares(batches, data.draw(some.integers(1, len(batches))))
    assert sorted(batch for part in parts for batch in part) == sorted(batches)
    assert max(map(len, parts)) - min(map(len, parts)) <= 1
    with pytest.raises(InputError, match=r"rounds must be in \[1, 2\], the number of batches, got 3"):
        shares([[0], [1]], 3)


def test_the_table_of_the_lecture_set_has_a_dash_for_what_a_prompt_does_not_have():
    lines = lecture_table(
        {"zero-shot": {"perplexity": 61.234, "keyword_match": 0.05, "eval_seconds": 9.0}}
    ).splitlines()
    assert lines[0] == "| method | perplexity | keyword match | forgetting | train seconds |"
    assert lines[2] == "| zero-shot | 61.23 | 5% | - | - |"


def test_sides_with_different_results_are_refused():
    expected = {"logits": np.array([3.0, 4.0]), "gradients": {"a": np.ones((2, 2)), "b": np.zeros(1)}}
    assert check("ours", expected, expected, 1e-9) == {"logits": 0.0, "gradients": 0.0}
    with pytest.raises(InputError, match="ours: relative error of the logits"):
        check("ours", {**expected, "logits": np.array([3.0, 5.0])}, expected, 1e-3)
    with pytest.raises(InputError, match="nan"):
        check("ours", {**expected, "logits": np.array([3.0, np.nan])}, expected, 1e-3)
    assert error({"a": np.ones(1)}, {"a": np.ones(1), "b": np.ones(1)}) == float("inf")


def test_an_exponent_is_the_slope_of_the_logarithms():
    assert exponent([1, 2, 4], [3, 12, 48]) == pytest.approx(2)
    assert exponent([1, 10], [5, 5]) == pytest.approx(0)


@pytest.mark.parametrize(("axis", "flops"), [("rows", 1), ("layers", 1), ("rank", 0.3)])
def test_the_flops_of_a_step_grow_as_the_axis(axis, flops, monkeypatch):
    monkeypatch.setattr(scaling, "USUAL", {**scaling.USUAL, "width": 32, "length": 8})
    monkeypatch.setitem(scaling.AXES, axis, (2, 4, 8))
    found = scaling.measured(axis, rounds=1)
    assert found["flops"] == pytest.approx(flops, abs=0.3)
    assert len(found["medians"]) == len(found["counted"]) == 3


def test_all_benchmarks_become_one_table_and_a_failure_is_reported(monkeypatch, capsys, tmp_path):
    compared = Comparison("training", "tokens", "peer", [rounds("ours", [1.0], [20]), rounds("peer", [2.0], [20])])

    def ran(command, env, **others):
        name = command[2].removeprefix("benchmarks.")
        assert set(everything.AVX2) <= set(env)
        if name == "scaling":
            axis = {"axis": "rows", "seconds": 0.9, "flops": 1.0}
            Path(command[-1]).write_text(json.dumps({"axes": [axis]}))
        elif name == "decoding":
            write_json(Path(command[-1]), {}, [compared])
        wrong = name not in ("scaling", "decoding")
        return SimpleNamespace(returncode=int(wrong), stdout="", stderr="a warning\nno memory\n" * wrong)

    monkeypatch.setattr(everything.subprocess, "run", ran)
    everything.main(threads=1, avx2=True, json=tmp_path / "bench.json")
    shown = capsys.readouterr()
    assert "training ours 20 tokens 2.00 2.00 to 2.00 -" in [" ".join(line.split()) for line in shown.out.splitlines()]
    assert "rows: seconds ~ n^0.90, FLOPs ~ n^1.00" in shown.out
    assert "benchmarks.pretrain failed, with exit code 1: no memory" in shown.err
    found = json.loads((tmp_path / "bench.json").read_text())
    assert {name for name, results in found.items() if "failed" not in results} == {"decoding", "scaling"}


def test_a_part_that_fails_or_takes_too_long_does_not_end_the_measurement_of_a_gpu(monkeypatch, capsys, tmp_path):
    compared = Comparison("a kernel", "B", "torch", [rounds("minillm", [1.0], [20]), rounds("torch", [2.0], [20])])
    asked = {}

    def ran(command, env, timeout, **others):
        name = command[2].removeprefix("benchmarks.")
        asked[name] = (command, timeout)
        if name == "decoding":
            raise everything.subprocess.TimeoutExpired(command, timeout)
        if name == "kernels":
            Path(command[-1]).write_text(json.dumps({"works": [compared.as_json()]}))
        if name == "pretrain":
            write_json(Path(command[-1]), {}, [compared])
        wrong = name == "adapt_vs_peft"
        return SimpleNamespace(returncode=int(wrong), stdout="", stderr="out of memory" * wrong)

    monkeypatch.setattr(everything.subprocess, "run", ran)
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.get_device_name", lambda: "a GPU")
    gpu.main(json=tmp_path / "gpu.json")
    found = json.loads((tmp_path / "gpu.json").read_text())
    assert (found["device"], found["tests"]) == ("a GPU", {"passed": True})
    assert found["decoding"] == {"failed": "benchmarks.decoding did not end within 60 s"}
    assert found["adapt_vs_peft"] == {"failed": "benchmarks.adapt_vs_peft failed, with exit code 1: out of memory"}
    table = (tmp_path / "gpu.md").read_text()
    assert table.count("| a kernel | minillm | 20 B | 2.00 | 2.00 to 2.00 | - |") == 2
    assert table.count("| a kernel | torch |") == 1, "of the kernels, only ours"
    assert "benchmarks.decoding did not end within 60 s." in table
    assert sum(timeout for _, timeout in asked.values()) <= 60 * gpu.MINUTES
    assert asked["pretrain"][0][-4:-1] == ["--device", "cuda", "--json"]


def test_the_parts_of_a_gpus_measurement_have_limits_and_options():
    assert gpu.LIMITS.keys() == gpu.OPTIONS.keys() == gpu.REHEARSED.keys()
    assert sum(gpu.LIMITS.values()) <= 60 * gpu.MINUTES
    with pytest.raises(InputError, match="unknown part 'magic'; choose from tests, kernels"):
        gpu.main(device="cpu", parts="tests,magic")


@pytest.mark.slow
def test_the_measurement_of_a_gpu_is_rehearsed_on_a_cpu(tmp_path):
    gpu.main(device="cpu", parts="tests,kernels,pretrain", json=tmp_path / "gpu.json")
    found = json.loads((tmp_path / "gpu.json").read_text())
    assert found["tests"] == {"passed": True}
    assert "timing kernels needs a CUDA device" in found["kernels"]["failed"]
    assert {side["side"] for side in found["pretrain"]["comparisons"][0]["sides"]} == {"minillm", "plain torch"}


def test_the_table_compares_with_the_reference_and_omits_empty_columns():
    sides = [rounds("ours", [1.0, 2.0], [10, 20]), rounds("peer", [2.0, 4.0], [10, 20], 2**30)]
    lines = Comparison("work", "tokens", "peer", sides).table().splitlines()
    assert lines[1].split("  ")[0] == "side"
    assert "max error" not in lines[1]
    assert lines[3].split() == ["ours", "1.5", "s", "10", "2.00", "2.00", "to", "2.00", "-"]
    assert lines[4].split() == ["peer", "3", "s", "5", "1.00", "1.00", "to", "1.00", "1.00", "GiB"]


def test_the_json_contains_every_round_and_no_name_of_the_machine(tmp_path):
    sides = [rounds("ours", [1.0, 2.0]), rounds("peer", [2.0, 4.0])]
    write_json(tmp_path / "found.json", {"rounds": 2}, [Comparison("work", "rows", "peer", sides)])
    found = json.loads((tmp_path / "found.json").read_text("utf-8"))
    assert set(found) == {"date", "versions", "cpu", "settings", "comparisons"}
    ours = found["comparisons"][0]["sides"][0]
    assert (ours["seconds"], ours["ratio"]["of_medians"]) == ([1.0, 2.0], 2.0)


class Adder:
    """A contestant whose results are easy to predict."""

    def __init__(self, start):
        self.total = start

    def add(self, share):
        self.total += sum(share)
        return self.total


@pytest.mark.slow
def test_sides_take_turns_in_processes_that_keep_their_state():
    sides = [Side("from 0", Adder, {"start": 0}), Side("from 10", Adder, {"start": 10})]
    with at_work(sides, threads=1) as workers:
        found = take_turns(workers, "add", [[1, 2], [3]], len, "adding")
    assert [one.answers for one in found] == [[3, 6], [13, 16]]
    assert all(one.amounts == [2, 1] and len(one.seconds) == 2 for one in found)


class Clock:
    """A contestant with a long job, which shows that it runs."""

    def tick(self, file):
        for count in range(600):
            file.write_text(str(count))
            time.sleep(0.1)


def tick(file):
    with at_work([Side("clock", Clock, {})], threads=1) as workers:
        workers[0].ask("tick", file)


@pytest.mark.slow
def test_a_worker_ends_with_its_parent_in_the_middle_of_a_job(tmp_path):
    parent = multiprocessing.get_context("spawn").Process(target=tick, args=(tmp_path / "count",))
    parent.start()
    while not (tmp_path / "count").exists():
        assert parent.is_alive()
        time.sleep(0.1)
    parent.kill()
    parent.join()
    time.sleep(2)
    last = (tmp_path / "count").read_text()
    time.sleep(1)
    assert (tmp_path / "count").read_text() == last


@pytest.mark.slow
def test_a_side_that_dies_is_named(capfd):
    with (
        pytest.raises(InputError, match="'no such start' died"),
        at_work([Side("no such start", Adder, {"begin": 0})], threads=1),
    ):
        pass
    assert "begin" in capfd.readouterr().err


@pytest.fixture
def benchmark(monkeypatch, capsys):
    """`python -m benchmarks.NAME` with options, in this process; returns the exit code and the output."""

    def run(name, *options):
        monkeypatch.setattr("sys.argv", [f"{name}.py", *options])
        with pytest.raises(SystemExit) as end:
            runpy.run_module(f"benchmarks.{name}", run_name="__main__")
        return end.value.code, capsys.readouterr()

    return run


@pytest.mark.parametrize("name", COMMANDS)
def test_every_benchmark_has_a_help_text(name, benchmark):
    code, output = benchmark(name, "--help")
    assert code == 0
    assert any(option in output.out for option in ("--json", "--out")), "no option for the output file"


def test_wrong_input_is_one_sentence_and_exit_code_2(benchmark):
    code, output = benchmark("adapt_vs_peft", "--methods", "magic")
    known = "lora, soft-prompt, prefix, last-blocks, full, features"
    assert (code, output.err) == (2, f"benchmark: unknown method 'magic'; choose from {known}\n")


def test_the_contestants_use_names_that_minillm_and_its_peers_have():
    """Only workers import them, so a renamed function would otherwise fail only during a measurement."""
    pytest.importorskip("peft")
    for side in ("minillm_side", "peer_side"):
        module = import_module(f"benchmarks.{side}")
        assert {*module.METHODS, "features"} == set(METHODS)
        assert all(hasattr(module.Training, job) for job in ("parameters", "start_from", "probe", "train"))
        assert all(hasattr(module.Features, job) for job in ("compute", "fit"))
        assert hasattr(module.Scoring, "score")
