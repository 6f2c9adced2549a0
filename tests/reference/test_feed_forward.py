"""The non-linearities in numpy."""

import numpy as np
from hypothesis import given

from minillm.reference.feed_forward import (
    gelu_backward,
    gelu_forward,
    relu_backward,
    relu_forward,
    swiglu_backward,
    swiglu_forward,
)
from tests.rungs import check_gradient_by_differences
from tests.strategies import leading_axes, randoms, sizes
from tests.tolerances import assert_close


@given(leading_axes, sizes, randoms)
def test_relus_gradient_is_its_slope_away_from_the_kink(leading, width, random):
    up = random.normal(size=(*leading, width))
    check_gradient_by_differences(relu_forward, relu_backward, {"up": up + 0.01 * np.sign(up)}, random)


@given(leading_axes, sizes, randoms)
def test_gelus_gradient_is_its_slope(leading, width, random):
    inputs = {"up": 2 * random.normal(size=(*leading, width))}
    check_gradient_by_differences(gelu_forward, gelu_backward, inputs, random)


@given(leading_axes, sizes, randoms)
def test_swiglus_gradients_are_its_slopes(leading, width, random):
    inputs = {name: 2 * random.normal(size=(*leading, width)) for name in ("gate", "up")}
    check_gradient_by_differences(swiglu_forward, swiglu_backward, inputs, random)


def test_large_inputs_overflow_nothing():
    for forward, backward in ((relu_forward, relu_backward), (gelu_forward, gelu_backward)):
        out, cache = forward(np.array([-1e3, 1e3]))
        assert_close(out, [0.0, 1e3], "law")
        assert_close(backward(np.ones(2), cache)["up"], [0.0, 1.0], "law")
    assert_close(swiglu_forward(np.array([-1e3, 1e3]), np.ones(2))[0], [0.0, 1e3], "law")
