"""Dropout in numpy."""

import numpy as np

from minillm.reference.dropout import dropout_forward


def test_dropout_preserves_the_expectation():
    keep = np.random.default_rng(0).random(100_000) >= 0.3
    assert abs(dropout_forward(np.ones(100_000), 0.3, keep)[0].mean() - 1) < 0.01
