"""The loss in numpy."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from minillm.reference.linear_cross_entropy import linear_cross_entropy_backward, linear_cross_entropy_forward
from tests.rungs import check_gradient_by_differences
from tests.strategies import labels, randoms, sizes
from tests.tolerances import assert_close


@given(st.data(), sizes, sizes, sizes, randoms)
def test_the_losss_gradients_are_its_slopes(data, rows, width, vocabulary, random):
    inputs = {"hidden": random.normal(size=(rows, width)), "weight": random.normal(size=(vocabulary, width))}
    inputs["labels"] = data.draw(labels(rows, vocabulary))
    check_gradient_by_differences(linear_cross_entropy_forward, linear_cross_entropy_backward, inputs, random)


def test_a_head_that_knows_nothing_loses_the_logarithm_of_the_vocabulary():
    loss, _ = linear_cross_entropy_forward(np.ones((3, 2)), np.zeros((11, 2)), np.array([4, -100, 7]))
    assert_close(loss, 2 * np.log(11), "law")
