"""The non-linearities in torch equal numpy's."""

from hypothesis import given

from minillm.ops import feed_forward as ops
from minillm.reference import feed_forward as reference
from tests.rungs import check_against_torch
from tests.strategies import leading_axes, randoms, sizes


@given(leading_axes, sizes, randoms)
def test_relu_equals_numpys(leading, width, random):
    inputs = {"up": random.normal(size=(*leading, width))}
    check_against_torch(ops.relu, reference.relu_forward, reference.relu_backward, inputs, random)


@given(leading_axes, sizes, randoms)
def test_gelu_equals_numpys(leading, width, random):
    inputs = {"up": 3 * random.normal(size=(*leading, width))}
    check_against_torch(ops.gelu, reference.gelu_forward, reference.gelu_backward, inputs, random)


@given(leading_axes, sizes, randoms)
def test_swiglu_equals_numpys(leading, width, random):
    inputs = {name: 3 * random.normal(size=(*leading, width)) for name in ("gate", "up")}
    check_against_torch(ops.swiglu, reference.swiglu_forward, reference.swiglu_backward, inputs, random)
