"""Softmax in numpy."""

import numpy as np

from minillm.reference.softmax import log_softmax_forward, softmax_forward
from tests.tolerances import assert_close


def test_scores_of_a_thousand_do_not_overflow():
    probabilities, _ = softmax_forward(np.array([1000.0, 1000.0, -1000.0]))
    assert_close(probabilities, [0.5, 0.5, 0.0], "law")
    logarithms, _ = log_softmax_forward(np.array([1000.0, -1000.0]))
    assert_close(logarithms, [0.0, -2000.0], "law")
