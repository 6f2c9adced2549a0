"""Softmax in torch equals numpy's."""

import numpy as np
import torch
from hypothesis import given

from minillm.ops import softmax as ops
from minillm.reference import softmax as reference
from tests.rungs import check_against_torch
from tests.strategies import leading_axes, randoms, sizes


@given(leading_axes, sizes, randoms)
def test_softmax_equals_numpys(leading, width, random):
    inputs = {"scores": 3 * random.normal(size=(*leading, width))}
    check_against_torch(ops.softmax, reference.softmax_forward, reference.softmax_backward, inputs, random)


@given(leading_axes, sizes, randoms)
def test_log_softmax_equals_numpys(leading, width, random):
    inputs = {"scores": 3 * random.normal(size=(*leading, width))}
    check_against_torch(ops.log_softmax, reference.log_softmax_forward, reference.log_softmax_backward, inputs, random)


def test_a_thousand_is_not_too_much_for_exp():
    scores = torch.tensor([1000.0, 1000.0, -1000.0], dtype=torch.float64)
    assert ops.softmax(scores).tolist() == [0.5, 0.5, 0.0]
    assert np.allclose(ops.log_softmax(scores), [-np.log(2), -np.log(2), -2000 - np.log(2)], rtol=1e-12)
