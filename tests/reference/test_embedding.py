"""Embedding in numpy."""

import numpy as np

from minillm.reference.embedding import embedding_backward, embedding_forward
from tests.tolerances import assert_close


def test_a_token_that_occurs_twice_has_the_sum_of_both_gradients():
    _, cache = embedding_forward(np.array([[1, 1, 2]]), np.zeros((3, 1)))
    gradients = embedding_backward(np.ones((1, 3, 1)), cache)
    assert_close(gradients["weight"], [[0.0], [2.0], [1.0]], "law")
