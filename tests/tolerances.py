"""The one comparison of numbers, and the one table of how near they must be."""

import numpy as np
import torch

from minillm.lab import trust

TOLERANCES = {
    # What the truncation of a central difference leaves.
    "difference": (1e-6, "numpy vs differences, float64"),
    # The same mathematics in two programs: 1e7 roundings, which no test adds up.
    "numpy": (1e-9, "numpy vs torch, float64"),
    # Two ways through the same program, for each step or summed term of the longest sum: an order of sums and a CPU's
    # vectors may change every rounding, of 1e-16 of numbers that are at most some thousand times as large as their sum.
    "law": (1e-12, "two ways through the same program, float64"),
    "law in float32": (1e-5, "two ways through the same program, float32"),
}


def relative_error(actual, expected):
    """The largest error, as a share of the largest number that was expected."""
    return _compared(actual, expected)[0]


def assert_close(actual, expected, rung="numpy", what="the result", terms=1):
    """`terms` counts what rounding adds up over: steps of training, or products in the longest sum."""
    (limit, compared), (error, largest) = TOLERANCES[rung], _compared(actual, expected)
    assert_good(trust.Measured(what, error, limit * terms, largest), compared)


def assert_good(measured, compared):
    """A rung's result, which is None where the rung says nothing of the case."""
    assert measured is None or measured.good, measured.sentence(compared)


def _compared(actual, expected):
    actual, expected = _array(actual), _array(expected)
    return trust.relative_error(actual, expected, np.abs(expected).max(initial=0))


def _array(numbers):
    return np.asarray(numbers.detach().double() if isinstance(numbers, torch.Tensor) else numbers, np.float64)
