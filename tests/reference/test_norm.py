"""The norms in numpy."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from minillm.reference.norm import (
    add_layer_norm_backward,
    add_layer_norm_forward,
    add_rms_norm_backward,
    add_rms_norm_forward,
    layer_norm_backward,
    layer_norm_forward,
    rms_norm_backward,
    rms_norm_forward,
)
from tests.rungs import check_gradient_by_differences
from tests.strategies import leading_axes, randoms
from tests.tolerances import assert_close

widths = st.sampled_from((2, 3, 5, 7))
# A small eps and a large one: where in the formula it stands matters only for the large one.
epsilons = st.sampled_from((1e-5, 0.3))


@given(leading_axes, widths, epsilons, randoms)
def test_layer_norms_gradients_are_its_slopes(leading, width, eps, random):
    inputs = {"hidden": _spread(random, leading, width), "weight": random.normal(size=width)}
    inputs |= {"bias": random.normal(size=width), "eps": eps}
    check_gradient_by_differences(layer_norm_forward, layer_norm_backward, inputs, random)


@given(leading_axes, widths, epsilons, randoms)
def test_rms_norms_gradients_are_its_slopes(leading, width, eps, random):
    inputs = {"hidden": _spread(random, leading, width), "weight": random.normal(size=width), "eps": eps}
    check_gradient_by_differences(rms_norm_forward, rms_norm_backward, inputs, random)


@given(leading_axes, widths, epsilons, randoms)
def test_add_and_norms_gradients_are_its_slopes(leading, width, eps, random):
    inputs = {"hidden": _spread(random, leading, width), "update": random.uniform(0, 0.1, (*leading, width))}
    inputs |= {"weight": random.normal(size=width), "eps": eps}
    check_gradient_by_differences(_both(add_rms_norm_forward), add_rms_norm_backward, inputs, random)
    inputs["bias"] = random.normal(size=width)
    check_gradient_by_differences(_both(add_layer_norm_forward), add_layer_norm_backward, inputs, random)


def _both(forward):
    """The sum and its norm as one array."""

    def stacked(**inputs):
        results, cache = forward(**inputs)
        return np.stack(results), cache

    return stacked


def test_a_layer_norm_ignores_a_shift_and_an_rms_norm_does_not():
    hidden, weight = np.array([[1.0, -2.0, 4.0]]), np.ones(3)
    (layer, _), (shifted_layer, _) = (layer_norm_forward(x, weight, np.zeros(3), 1e-9) for x in (hidden, hidden + 5))
    assert_close(shifted_layer, layer)
    (rms, _), (shifted_rms, _) = (rms_norm_forward(x, weight, 1e-9) for x in (hidden, hidden + 5))
    with pytest.raises(AssertionError):
        assert_close(shifted_rms, rms)


def _spread(random, leading, width):
    """Numbers at least 0.5 apart: where they nearly agree, a norm is too steep for differences."""
    order = random.permuted(np.broadcast_to(np.arange(width), (*leading, width)), axis=-1)
    return order + random.uniform(0, 0.5, (*leading, width))
