"""The benchmark of the kernels without a GPU: costs, checks, alternation, table, and the file that it writes."""

import json
import math
import time
from functools import partial

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

pytest.importorskip("triton", reason="triton is not installed: pip install 'minillm[kernels]' (Linux)")

from benchmarks import kernel_timing, kernels
from benchmarks.comparison import Comparison, Rounds
from benchmarks.gpu_clock import ceilings
from benchmarks.kernel_timing import asked_sizes, check_against_numpy, input_sets, outputs, sides_of, tensors, timed
from benchmarks.kernel_works import Draw, attention_work, lora_work, loss_work, norm_work, rows_work, works
from minillm import InputError
from minillm.kernels import _measured
from minillm.lab.check_operations import operation_cases
from minillm.ops.attention import attention as plain_attention
from tests.strategies import implemented_in

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
META = torch.device("meta")
SMALL = norm_work("rms_norm", 5, 7)
ALL = works()


class HostClock:
    """Python's clock in place of a GPU's."""

    device, cache_bytes = DEVICE, 1000

    def in_turns(self, sides, rounds):
        found = {name: [] for name in sides}
        for turn in range(rounds):
            for name, calls in sides.items():
                start = time.perf_counter()
                calls[turn % len(calls)]()
                found[name].append(time.perf_counter() - start)
        return found


def test_every_operation_with_a_kernel_is_timed_under_its_name():
    assert {*implemented_in("kernels")} <= {work.operation for work in ALL}
    assert len({work.title for work in ALL}) == len(ALL)


@pytest.mark.parametrize("work", [work for work in ALL if work.unit == "B"], ids=lambda work: work.title)
def test_the_bytes_of_a_forward_pass_are_those_of_its_inputs_and_outputs(work):
    arguments = work.arguments(Draw(META, work.dtype))
    moved = [*tensors(arguments).values(), *outputs(sides_of(work)["torch"](**arguments))]
    assert sum(tensor.nbytes for tensor in moved) == work.cost[0]


def test_the_bytes_of_a_norms_backward_pass_are_those_in_the_table_of_its_kernel():
    backward = norm_work("rms_norm", 1000, 1024).cost[1]
    assert round(backward / (1000 * 1024), 1) == 6, "in bfloat16: dout and x are read, dx is written"


def flops_of(run, arguments):
    """(forward, forward and backward), as torch counts products."""
    with FlopCounterMode(display=False) as counter:
        out = run(**arguments)
    forward = counter.get_total_flops()
    with counter:
        out.sum().backward()
    return forward, forward + counter.get_total_flops()


@pytest.mark.parametrize(
    ("work", "side"),
    [
        (lora_work(5, 7, 3), "as it is written"),
        (rows_work(2, 5, 7, 3, 2), "as it is written"),
        (loss_work(5, 7, 11), "all logits at once"),
    ],
)
def test_flops_are_those_that_torch_counts(work, side):
    """By the peer: products that add to what is there are not counted."""
    arguments = work.arguments(Draw(torch.device("cpu"), torch.float32))
    forward, both = flops_of(work.peers[side], arguments)
    assert work.cost == (forward, both - forward)


@pytest.mark.parametrize("prompt", [0, 3])
def test_flops_of_attention_are_those_that_torch_counts_without_the_masked_scores(prompt):
    work = attention_work(2, 4, 2, 8, 13, prompt)
    arguments = work.arguments(Draw(torch.device("cpu"), torch.float32))
    forward, both = flops_of(plain_attention, arguments)
    hidden = 4 * 2 * 4 * 8 * (13 * 12 // 2)
    assert work.cost[0] == forward - hidden
    # The backward pass has four products, and a fifth that recomputes the scores.
    assert both == 3 * forward
    assert work.cost[1] == work.cost[0] * 5 / 2


def test_the_sizes_are_those_by_which_the_operation_chooses(monkeypatch):
    assert asked_sizes(norm_work("layer_norm", 8192, 4096)) == (8192, 4096)
    assert asked_sizes(attention_work(2, 4, 2, 8, 13, 3)) == (8, 13, 13, 8, 3, 0)
    monkeypatch.setattr("minillm.operations.rms_norm", lambda hidden, weight, eps: hidden)
    assert asked_sizes(SMALL) is None, "an operation without a kernel"


def test_inputs_are_so_many_that_none_is_in_the_cache_when_it_is_used_again():
    size = sum(tensor.nbytes for tensor in tensors(SMALL.arguments(Draw(META, SMALL.dtype))).values())
    assert len(input_sets(SMALL, DEVICE, 10 * size, 100)) == 21
    assert len(input_sets(SMALL, DEVICE, 10 * size, 5)) == 5, "a set for each round is enough"
    sets = input_sets(SMALL, DEVICE, 1, 100)
    assert len(sets) == 2
    assert not torch.equal(sets[0]["hidden"], sets[1]["hidden"])
    again = input_sets(SMALL, DEVICE, 1, 100)
    assert torch.equal(sets[1]["hidden"], again[1]["hidden"])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_all_sides_are_checked_and_timed_alternately_in_both_passes(dtype):
    work = norm_work("rms_norm", 5, 7, dtype)
    forward, both = timed(work, (5, 7), HostClock(), 3)
    for found, cost in ((forward, work.cost[0]), (both, sum(work.cost))):
        assert [rounds.side for rounds in found.comparison.rounds] == ["minillm", "torch", *work.peers]
        assert all(rounds.amounts == [cost] * 3 for rounds in found.comparison.rounds)
        assert all(parts["all"] < 8 * torch.finfo(dtype).eps for parts in found.comparison.errors.values())
        assert found.missing == {}


@pytest.fixture
def few_operations(monkeypatch):
    """The interpreter is slow; softmax has no kernel."""
    few = {"rms_norm", "layer_norm", "softmax"}
    monkeypatch.setattr(kernel_timing, "CONFIG", "tiny")
    monkeypatch.setattr(
        kernel_timing, "operation_cases",
        lambda config, random: [case for case in operation_cases(config, random) if case.what in few],
    )  # fmt: skip


@pytest.mark.usefixtures("few_operations")
@pytest.mark.parametrize("wrong", [1.1, math.nan], ids=["off", "no number"])
def test_a_wrong_kernel_is_not_timed(wrong, monkeypatch):
    from minillm.kernels import norm

    right = norm.rms_norm
    monkeypatch.setattr(norm, "rms_norm", lambda hidden, weight, eps: right(hidden, weight, eps) * wrong)
    with pytest.raises(InputError, match="the kernel of rms_norm is wrong in float32"):
        check_against_numpy(DEVICE)
    with pytest.raises(InputError, match="the kernel of rms_norm, 5 x 7, bfloat16 is wrong"):
        list(timed(SMALL, (5, 7), HostClock(), 3))


@pytest.mark.usefixtures("few_operations")
def test_correct_kernels_are_listed_with_their_errors():
    found = check_against_numpy(DEVICE)
    assert set(found) == {"float32", "bfloat16"}
    assert set(found["bfloat16"]) == {"rms_norm", "layer_norm"}


def test_a_peer_that_fails_is_left_out_with_its_reason():
    def fails(**_):
        raise torch.OutOfMemoryError("no room")

    SMALL.peers["Liger"] = fails
    try:
        forward, _ = timed(SMALL, (5, 7), HostClock(), 1)
    finally:
        del SMALL.peers["Liger"]
    assert forward.missing == {"Liger": "OutOfMemoryError: no room"}
    assert "Liger is left out: OutOfMemoryError: no room" in kernels.table(forward, CEILINGS)


CEILINGS = {"copy": 2e12, "bfloat16": 8e14, "float32": 5e13}


def measured(work, which, sizes, seconds, yardsticks=()):
    cost = work.cost[0] if which == "forward" else sum(work.cost)
    rounds = [Rounds(name, amounts=[cost] * len(times), seconds=times) for name, times in seconds.items()]
    comparison = Comparison(f"{work.title}: {which}", work.unit, "torch", rounds, {"minillm": {"all": 0.001}})
    return kernel_timing.Timed(work, which, sizes, comparison, yardsticks)


def test_the_table_has_rate_share_of_the_ceiling_and_overhead():
    work = lora_work(8192, 4096, 16)
    seconds = {"minillm": [4e-4], "torch": [5e-4], "the frozen Linear": [3.2e-4]}
    lines = kernels.table(measured(work, "forward", (1,), seconds, ["the frozen Linear"]), CEILINGS).splitlines()
    rate = work.cost[0] / 4e-4
    assert lines[0] == "lora, 8192 x 4096, rank 16, bfloat16: forward"
    cells = lines[3].split()
    assert cells[:5] == ["minillm", "400.0", "µs", f"{rate / 1e12:.1f}", "TFLOP/s"]
    assert cells[5:] == [f"{rate / 8e14:.0%}", "1.25", "1.25", "to", "1.25", "1e-03"]
    assert lines[5].split()[:5] == ["the", "frozen", "Linear", "320.0", "µs"]
    assert lines[5].split()[5:7] == ["-", "-"]
    assert lines[6] == "next to the frozen Linear: minillm takes 1.25 times as long, torch 1.56"


def test_the_ceiling_is_the_bandwidth_or_the_flops_of_the_dtype():
    for work, best in ((SMALL, 2e12), (lora_work(5, 7, 3), 8e14), (lora_work(5, 7, 3, torch.float32), 5e13)):
        assert kernels.ceiling(measured(work, "forward", (), {}), CEILINGS) == best


def test_the_kernel_is_chosen_where_it_was_faster_in_both_passes(tmp_path, monkeypatch):
    """Written by the benchmark, read back by `operations`."""
    path = tmp_path / "measured.json"
    other = {"gpu": "other", "operation": "rms_norm", "dtype": "bfloat16", "sizes": [1, 1], "speedup": 2.0}
    path.write_text(json.dumps([other, other | {"gpu": "this"}]))
    narrow, wide = norm_work("rms_norm", 64, 128), norm_work("rms_norm", 64, 4096)
    found = [
        measured(narrow, "forward", (64, 128), {"minillm": [1.0], "torch": [3.0]}),
        measured(narrow, "forward + backward", (64, 128), {"minillm": [1.0], "torch": [0.9]}),
        measured(wide, "forward", (64, 4096), {"minillm": [2.0], "torch": [3.0]}),
        measured(wide, "forward + backward", (64, 4096), {"minillm": [1.0], "torch": [4.0]}),
    ]
    kernels.write_rows(path, kernels.rows(found, "this"))
    monkeypatch.setattr(_measured, "files", lambda package: tmp_path)
    read = _measured._read()
    assert read["other", "rms_norm", torch.bfloat16] == [((1, 1), 2.0)]
    assert read["this", "rms_norm", torch.bfloat16] == [((64, 128), 0.9), ((64, 4096), 1.5)]
    monkeypatch.setattr(_measured, "MEASURED", read)
    won = partial(_measured._won, "this", "rms_norm", torch.bfloat16)
    assert (won((60, 100)), won((100, 3000))) == (False, True)
    assert len(path.read_text().splitlines()) == len(json.loads(path.read_text())) + 2, "a line each, and the brackets"


def test_no_benchmark_starts_after_the_time_limit_and_the_results_are_json():
    found, late = kernels.measure([SMALL], HostClock(), 2, minutes=0)
    assert (found, late) == ([], [SMALL.title])
    found, late = kernels.measure([SMALL], HostClock(), 2, minutes=1)
    assert late == []
    written = json.loads(json.dumps(kernels.described(found, gpu="this", ceilings=CEILINGS), allow_nan=False))
    assert {"date", "versions", "gpu", "ceilings", "works"} <= set(written)
    assert written["versions"]["torch"] == torch.__version__
    assert [work["pass"] for work in written["works"]] == ["forward", "forward + backward"]
    assert written["works"][0]["sizes"] == [5, 7]
    assert [side["side"] for side in written["works"][0]["sides"]] == ["minillm", "torch", "F.rms_norm"]


def test_ceilings_are_bytes_read_and_written_and_flops_per_second(monkeypatch):
    clock = HostClock()
    monkeypatch.setattr(clock, "in_turns", lambda sides, rounds: {name: [0.5, 0.25, 9.0] for name in sides})
    assert ceilings(clock, 3, square=16, copied=100) == {
        "copy": 2 * 100 / 0.5, "bfloat16": 2 * 16**3 / 0.5, "float32": 2 * 8**3 / 0.5
    }  # fmt: skip


@pytest.mark.skipif(torch.cuda.is_available(), reason="the GPU would be timed")
def test_without_a_gpu_the_benchmark_prints_one_sentence(monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["kernels.py"])
    with pytest.raises(SystemExit) as end:
        kernels.run(kernels.main, kernels.__doc__)
    assert end.value.code == 2
    printed = capsys.readouterr().err
    assert printed.startswith("benchmark: timing kernels needs a CUDA device")
    assert len(printed.splitlines()) == 1
