"""Embedding in numpy."""

import numpy as np
from hypothesis import given

from minillm.reference.embedding import embedding_backward, embedding_forward
from tests.rungs import check_gradient_by_differences
from tests.strategies import randoms, sizes
from tests.tolerances import assert_close


@given(sizes, sizes, sizes, sizes, randoms)
def test_the_tables_gradient_is_its_slope(batch, tokens, width, vocabulary, random):
    inputs = {"ids": random.integers(0, vocabulary, (batch, tokens)), "weight": random.normal(size=(vocabulary, width))}
    check_gradient_by_differences(embedding_forward, embedding_backward, inputs, random)


def test_a_token_that_occurs_twice_learns_twice():
    _, cache = embedding_forward(np.array([[1, 1, 2]]), np.zeros((3, 1)))
    gradients = embedding_backward(np.ones((1, 3, 1)), cache)
    assert_close(gradients["weight"], [[0.0], [2.0], [1.0]], "law")
