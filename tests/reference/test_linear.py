"""A Linear in numpy."""

from hypothesis import given
from hypothesis import strategies as st

from minillm.reference.linear import linear_backward, linear_forward
from tests.rungs import check_gradient_by_differences
from tests.strategies import leading_axes, randoms, sizes


@given(leading_axes, sizes, sizes, st.booleans(), randoms)
def test_a_linears_gradients_are_its_slopes(leading, inner, outer, has_bias, random):
    inputs = {"x": random.normal(size=(*leading, inner)), "weight": random.normal(size=(outer, inner))}
    if has_bias:
        inputs["bias"] = random.normal(size=outer)
    check_gradient_by_differences(linear_forward, linear_backward, inputs, random)
