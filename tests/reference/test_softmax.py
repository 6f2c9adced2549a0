"""Softmax in numpy."""

import numpy as np
from hypothesis import given

from minillm.reference.softmax import log_softmax_backward, log_softmax_forward, softmax_backward, softmax_forward
from tests.rungs import check_gradient_by_differences
from tests.strategies import leading_axes, randoms, sizes
from tests.tolerances import assert_close


@given(leading_axes, sizes, randoms)
def test_softmaxs_gradient_is_its_slope(leading, width, random):
    inputs = {"scores": random.normal(size=(*leading, width))}
    check_gradient_by_differences(softmax_forward, softmax_backward, inputs, random)


@given(leading_axes, sizes, randoms)
def test_log_softmaxs_gradient_is_its_slope(leading, width, random):
    inputs = {"scores": random.normal(size=(*leading, width))}
    check_gradient_by_differences(log_softmax_forward, log_softmax_backward, inputs, random)


def test_a_thousand_is_not_too_much_for_exp():
    probabilities, _ = softmax_forward(np.array([1000.0, 1000.0, -1000.0]))
    assert_close(probabilities, [0.5, 0.5, 0.0], "law")
    logarithms, _ = log_softmax_forward(np.array([1000.0, -1000.0]))
    assert_close(logarithms, [0.0, -2000.0], "law")
