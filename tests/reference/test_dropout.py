"""Dropout in numpy."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from minillm.reference.dropout import dropout_backward, dropout_forward
from tests.rungs import check_gradient_by_differences
from tests.strategies import leading_axes, randoms, sizes


@given(leading_axes, sizes, st.sampled_from((0.0, 0.1, 0.7)), randoms)
def test_dropouts_gradient_is_its_slope(leading, width, probability, random):
    hidden = random.normal(size=(*leading, width))
    inputs = {"hidden": hidden, "probability": probability, "keep": random.random(hidden.shape) >= probability}
    check_gradient_by_differences(dropout_forward, dropout_backward, inputs, random)


def test_what_is_kept_makes_up_for_what_is_dropped():
    keep = np.random.default_rng(0).random(100_000) >= 0.3
    assert abs(dropout_forward(np.ones(100_000), 0.3, keep)[0].mean() - 1) < 0.01
