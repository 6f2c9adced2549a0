"""Dropout in torch equals numpy's, given the same mask; and draws masks as it says."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from minillm.ops import dropout as ops
from minillm.reference import dropout as reference
from tests.rungs import check_against_torch
from tests.strategies import leading_axes, randoms, sizes


@given(leading_axes, sizes, st.sampled_from((0.1, 0.7)), randoms)
def test_dropout_equals_numpys(leading, width, probability, random):
    hidden = random.normal(size=(*leading, width))
    inputs = {"hidden": hidden, "probability": probability, "keep": random.random(hidden.shape) >= probability}
    check_against_torch(ops.dropout, reference.dropout_forward, reference.dropout_backward, inputs, random)


def test_dropout_drops_its_share_and_keeps_the_mean():
    torch.manual_seed(0)
    out = ops.dropout(torch.ones(100, 1000), 0.3)
    assert abs((out == 0).float().mean() - 0.3) < 0.01
    assert abs(out.mean() - 1) < 0.01


def test_no_dropout_is_the_very_same_tensor():
    hidden = torch.randn(2, 3)
    assert ops.dropout(hidden, 0.0) is hidden
