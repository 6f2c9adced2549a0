"""The loss in torch: in one chunk or in many, and in half precision."""

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from minillm.fast import linear_cross_entropy as fast
from minillm.lab.check_operations import operation_case
from minillm.lab.trust import against_numpy
from minillm.operations import FAST
from minillm.ops import linear_cross_entropy as plain
from tests.tolerances import assert_good

pytestmark = pytest.mark.checked


def test_chunks_change_nothing():
    random, rows = np.random.default_rng(0), 2 * fast.CHUNK + 17
    case = operation_case(
        "linear_cross_entropy", "linear_cross_entropy", hidden=random.normal(size=(rows, 3)),
        weight=random.normal(size=(5, 3)), labels=random.integers(0, 5, rows),
    )  # fmt: skip
    assert_good(against_numpy(case, random, FAST), "numpy vs torch, float64")


@pytest.mark.parametrize("loss", [plain.linear_cross_entropy, fast.linear_cross_entropy], ids=["plain", "fast"])
def test_the_loss_of_half_precision_is_summed_in_float32(loss):
    hidden, weight, labels = torch.randn(257, 8), torch.randn(11, 8), torch.randint(0, 11, (257,))
    # bfloat16 cannot represent the sum of 257 losses of about 2 to the next loss.
    half = loss(hidden.bfloat16(), weight.bfloat16(), labels)
    rounded = loss(hidden.bfloat16().double(), weight.bfloat16().double(), labels)
    assert half.dtype == torch.float32
    assert abs(half.double() - rounded) / rounded < 1e-3


@pytest.mark.parametrize(("trained", "per_logit"), [((True, True), 6), ((True, False), 4), ((False, False), 2)])
def test_no_logit_is_computed_twice(trained, per_logit):
    hidden, weight = torch.randn(2 * fast.CHUNK, 3), torch.randn(7, 3)
    hidden.requires_grad_(trained[0])
    weight.requires_grad_(trained[1])
    with FlopCounterMode(display=False) as counter:
        loss = fast.linear_cross_entropy(hidden, weight, torch.zeros(len(hidden), dtype=torch.long))
        if any(trained):
            loss.backward()
    assert counter.get_total_flops() == per_logit * len(hidden) * 7 * 3


def test_all_logits_are_never_in_memory_together():
    """Of 64 MB of logits and their softmax, one chunk is in memory at a time: autograd saves only the gradients."""
    hidden, weight, saved = torch.randn(8 * fast.CHUNK, 3).requires_grad_(), torch.randn(2048, 3).requires_grad_(), []
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: saved.append(tensor.numel()) or tensor, lambda t: t):
        fast.linear_cross_entropy(hidden, weight, torch.zeros(8 * fast.CHUNK, dtype=torch.long))
    assert max(saved) < fast.CHUNK * 2048 / 16


def test_under_autocast_the_gradients_of_the_chunks_are_summed_in_float32():
    hidden, weight = torch.randn(9 * fast.CHUNK, 4), torch.randn(5, 4, requires_grad=True)
    labels = torch.zeros(len(hidden), dtype=torch.long)
    with torch.autocast("cpu", torch.bfloat16):
        (found,) = torch.autograd.grad(fast.linear_cross_entropy(hidden, weight, labels), weight)
        parts = [
            torch.autograd.grad(fast.linear_cross_entropy(rows, weight, targets), weight)[0]
            for rows, targets in zip(hidden.split(fast.CHUNK), labels.split(fast.CHUNK), strict=True)
        ]
    assert torch.allclose(found, torch.stack(parts).sum(0), rtol=1e-5)
