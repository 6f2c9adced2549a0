"""`minillm profile`: FLOPs, bytes and times of the operations of a step, and their groups."""

import json

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

import minillm
from minillm import adapt
from minillm.errors import InputError
from minillm.lab import profile
from minillm.lab.plan import flop_counter
from minillm.lab.profile import ALL, OTHER, PRODUCTS, Operations, Profile, group, grouped
from minillm.operations import linear_cross_entropy
from minillm.quantised import quantised
from minillm.runtime.options import parse
from minillm.training.learners import TorchLearner
from minillm.training.schedule import TrainingSettings

CPU, TINY = torch.device("cpu"), ["--base", "tiny", "--task", "word_problems"]
METHODS = {
    "lora": lambda decoder: adapt.LoRA(decoder, r=4, alpha=8),
    "full": adapt.FineTune,
    "prefix": lambda decoder: adapt.PrefixTuning(decoder, 3),
    "soft-prompt": lambda decoder: adapt.SoftPrompt(decoder, 3),
}


def learner(method):
    decoder = minillm.load("tiny")[0]
    adapted, ids = METHODS[method](decoder).train(), torch.arange(21).view(3, 7)

    def loss(batch):
        hidden = adapted.decoder.features(ids, prefix=adapted.prefix())
        return linear_cross_entropy(hidden.flatten(0, 1), decoder.head.weight, ids.flatten()), ids.numel()

    return TorchLearner(adapted.trainable(), loss, TrainingSettings())


def step(learner):
    learner.backward([[None]])
    learner.optimizer_step(1e-3)


@pytest.fixture(params=METHODS)
def operations(request):
    """The operations of the second step of a method."""
    one = learner(request.param)
    step(one)
    with Operations(CPU) as found:
        step(one)
    return found


@pytest.mark.parametrize("method", METHODS)
def test_the_flops_are_those_of_torchs_counter(method):
    one = learner(method)
    with flop_counter() as counter:
        step(one)
    with Operations(CPU) as found:
        step(one)
    flops = sum(call.flops for call in found.calls)
    assert flops == counter.get_total_flops() > 0
    with FlopCounterMode(display=False) as counter:
        step(one)
    known = {getattr(packet, "__name__", None) for packet in counter.flop_registry}
    assert sum(call.flops for call in found.calls if call.name in known) == counter.get_total_flops()


def test_the_bytes_of_operations_are_those_of_their_tensors():
    a, b, table, total, row = (torch.zeros(shape) for shape in ((3, 5), (5, 7), (100, 2), (4,), (1, 5)))
    with Operations(CPU) as found:
        a @ b
        b.t().expand(2, 7, 5)
        row.expand(9, 5) + 1
        torch.nn.functional.embedding(torch.tensor([3, 3, 4]), table)
        total.add_(1)
        torch._foreach_add_([total, total], 1)
    moved = {call.name: call.bytes for call in found.calls}
    assert moved["mm"] == 4 * (3 * 5 + 5 * 7 + 3 * 7)
    assert moved["t"] == moved["expand"] == 0
    assert moved["add"] == 4 * (5 + 9 * 5), "an expanded tensor is read once"
    assert moved["embedding"] == 4 * 2 * (3 * 2), "the other rows of the table are not read"
    assert moved["add_"] == 4 * 2 * 4
    assert moved["_foreach_add_"] == 2 * moved["add_"]
    with Operations(CPU) as found:
        quantised(torch.zeros(8, 64), 4).t()
    assert found.calls[-1].bytes == 8 * 64 // 2 + 8 * 2 * (2 + 2) + 4 * 8 * 64, "codes, scales, offsets; the numbers"


def test_the_shape_of_a_product_is_known():
    with Operations(CPU) as found:
        torch.zeros(3, 5) @ torch.zeros(5, 7)
    assert [call.shape for call in found.calls if call.name == "mm"] == [(3, 7)]


def test_every_operation_that_moves_data_has_a_group(operations, monkeypatch):
    def left_over():
        return {call.name for call in operations.calls if call.bytes and group.__wrapped__(call.name) == OTHER}

    assert left_over() == set()
    words = profile.GROUPS[PRODUCTS].replace("addmm", "").replace("mm ", "", 1)
    monkeypatch.setitem(profile.GROUPS, PRODUCTS, words)
    assert "mm" in left_over()


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("addmm_", PRODUCTS), ("add_", "products of elements"), ("_foreach_add_", "optimizer"),
        ("_log_softmax_backward_data", "softmax and loss"), ("_fused_adamw_", "optimizer"), ("lora_backward", PRODUCTS),
        ("_scaled_dot_product_flash_attention_for_cpu_backward", "attention"), ("_to_copy", "copies and layout"),
        ("linear_cross_entropy", "softmax and loss"), ("never_seen", OTHER),
    ],
)  # fmt: skip
def test_the_group_of_an_operation_is_that_of_its_name(name, expected):
    assert group(name) == expected


def test_the_floor_is_the_larger_of_both_limits(operations):
    *groups, whole = grouped(operations.calls, rates=(1e9, 1e9), steps=1)
    assert whole["group"] == ALL
    for what in ("calls", "seconds", "flops", "bytes", "share", "floor_seconds", "gap_seconds"):
        assert sum(each[what] for each in groups) == pytest.approx(whole[what])
    for each in groups:
        least, most = sorted((each["flops"] / 1e9, each["bytes"] / 1e9))
        assert most <= each["floor_seconds"] + 1e-12 <= least + most + 2e-12


def test_a_profile_is_that_of_the_steps_of_adapt_and_nothing_is_written(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    words = "--train 12 --test 4 --batch-size 4 --threads 1 --json"
    parse(Profile, "minillm profile", [*TINY, *words.split()]).run()
    found = json.loads(capsys.readouterr().out)
    assert not list(tmp_path.iterdir())
    assert (found["method"], found["batches"], found["device"], found["threads"]) == ("lora", 3, "cpu", 1)
    assert min(found["flops_per_second"], found["bytes_per_second"], found["step_seconds"]) > 0
    *groups, whole = found["groups"]
    assert sum(each["seconds"] for each in groups) <= found["measured_step_seconds"]
    assert whole["share"] == pytest.approx(1)
    config = minillm.load("tiny")[0].config
    assert {*found["product"]} & {config.width, config.feed_forward_width}
    lines = profile.table(found).splitlines()
    assert all(line.startswith(each["group"]) for line, each in zip(lines[4:], found["groups"], strict=False))
    assert lines[-1].startswith("the largest gap is in ")


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--method", "features"], "profile measures training steps, which features does not have"),
        (["--batch-size", "0"], "batch_size must be at least 1, got 0"),
        (["--method", "full", "--r", "4"], "full has no option --r"),
    ],
)
def test_wrong_options_are_refused(words, sentence):
    with pytest.raises(InputError, match=sentence):
        parse(Profile, "minillm profile", [*TINY, *words]).run()
