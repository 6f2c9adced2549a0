"""The loss in torch equals numpy's, in one chunk or in many."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from minillm.ops import linear_cross_entropy as ops
from minillm.reference import linear_cross_entropy as reference
from tests.rungs import check_against_torch
from tests.strategies import labels, randoms, sizes
from tests.tolerances import assert_close


@given(st.data(), sizes, sizes, sizes, randoms)
def test_the_loss_equals_numpys(data, rows, width, vocabulary, random):
    inputs = {"hidden": random.normal(size=(rows, width)), "weight": random.normal(size=(vocabulary, width))}
    inputs["labels"] = data.draw(labels(rows, vocabulary))
    twins = reference.linear_cross_entropy_forward, reference.linear_cross_entropy_backward
    check_against_torch(ops.linear_cross_entropy, *twins, inputs, random)


@pytest.mark.parametrize("few", [0, ops.FEW], ids=["made again", "kept"])
def test_chunks_change_nothing(few, monkeypatch):
    monkeypatch.setattr(ops, "FEW", few)
    random = np.random.default_rng(0)
    rows = 2 * ops.CHUNK + 17
    inputs = {"hidden": random.normal(size=(rows, 3)), "weight": random.normal(size=(5, 3))}
    inputs["labels"] = random.integers(0, 5, rows)
    twins = reference.linear_cross_entropy_forward, reference.linear_cross_entropy_backward
    check_against_torch(ops.linear_cross_entropy, *twins, inputs, random)


def test_the_loss_of_half_precision_is_summed_in_float32():
    random = torch.Generator().manual_seed(0)
    hidden, weight = torch.randn(257, 8, generator=random), torch.randn(11, 8, generator=random)
    labels = torch.randint(0, 11, (257,), generator=random)
    # 257 losses of about 2 come to more than bfloat16 can tell apart.
    half = ops.linear_cross_entropy(hidden.bfloat16(), weight.bfloat16(), labels)
    rounded = ops.linear_cross_entropy(hidden.bfloat16().double(), weight.bfloat16().double(), labels)
    assert half.dtype == torch.float32
    assert abs(half.double() - rounded) / rounded < 1e-3


def test_a_batch_without_labels_has_no_loss_and_no_gradient():
    hidden, weight = torch.randn(3, 2, requires_grad=True), torch.randn(5, 2, requires_grad=True)
    loss = ops.linear_cross_entropy(hidden, weight, torch.full((3,), ops.IGNORED))
    assert_close(loss, torch.tensor(0.0))


def test_many_logits_are_never_held_together():
    """Of 64 MB of logits and their softmax, a chunk's is alive at a time: what autograd keeps is the hidden states."""
    random = torch.Generator().manual_seed(0)
    hidden = torch.randn(8 * ops.CHUNK, 3, generator=random, requires_grad=True)
    weight = torch.randn(2048, 3, generator=random, requires_grad=True)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: kept.append(tensor.numel()) or tensor, lambda t: t):
        ops.linear_cross_entropy(hidden, weight, torch.zeros(8 * ops.CHUNK, dtype=torch.long))
    assert max(kept) < ops.CHUNK * 2048 / 16
