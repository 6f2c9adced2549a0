"""The prefix MLP in numpy, by differences; `tests/adapt/test_prefix_tuning.py` compares torch's with it."""

import numpy as np
from hypothesis import given

from minillm.reference.prefix import prefix_backward, prefix_forward
from minillm.reference.tower import KeyValues
from tests.rungs import slope_by_differences
from tests.strategies import randoms, sizes
from tests.tolerances import assert_close


def _inputs(random, length, width, inner, layers, groups, head_width):
    outer = layers * 2 * groups * head_width
    shapes = {"embeddings": (length, width), "inner_weight": (inner, width), "inner_bias": inner}
    shapes |= {"outer_weight": (outer, inner), "outer_bias": outer}
    return {name: random.normal(size=shape) for name, shape in shapes.items()}


@given(sizes, sizes, sizes, sizes, randoms)
def test_the_mlps_gradients_are_those_of_differences(length, width, layers, groups, random):
    inputs = _inputs(random, length, width, 3, layers, groups, 2)
    out, cache = prefix_forward(**inputs, layers=layers, groups=groups)
    assert out.keys.shape == out.values.shape == (layers, 1, groups, length, 2)
    dout = KeyValues(*random.normal(size=(2, *out.keys.shape)))
    gradients = prefix_backward(dout, cache)
    assert gradients.keys() == inputs.keys()

    def loss():
        written, _ = prefix_forward(**inputs, layers=layers, groups=groups)
        return (written.keys * dout.keys + written.values * dout.values).sum()

    for name, gradient in gradients.items():
        assert_close(gradient, slope_by_differences(loss, inputs[name]), "difference", name)


def test_a_position_of_the_prefix_is_made_from_its_own_row_alone():
    inputs = _inputs(np.random.default_rng(0), 5, 7, 3, 2, 3, 2)
    before, _ = prefix_forward(**inputs, layers=2, groups=3)
    inputs["embeddings"][2] += 1
    after, _ = prefix_forward(**inputs, layers=2, groups=3)
    changed = (before.keys != after.keys).any((0, 1, 2, 4)) | (before.values != after.values).any((0, 1, 2, 4))
    assert changed.tolist() == [False, False, True, False, False]
