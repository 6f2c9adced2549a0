"""The comparison of arrays that all tests use, and the table of its tolerances."""

import numpy as np
import torch

from minillm.lab import trust

TOLERANCES = {
    # The truncation error of a central difference.
    "difference": (1e-6, "numpy vs differences, float64"),
    # Two programs of the same mathematics: 1e7 roundings, more than any test accumulates.
    "numpy": (1e-9, "numpy vs torch, float64"),
    # Two ways through the same program, per training step or term of the longest sum: the order of sums depends on the
    # CPU and may change every rounding, of 1e-16 of terms that are at most some thousand times as large as their sum.
    "law": (1e-12, "two ways through the same program, float64"),
    "law in float32": (1e-5, "two ways through the same program, float32"),
}


def relative_error(actual, expected):
    """The largest error divided by the largest expected number."""
    return _compared(actual, expected)[0]


def assert_close(actual, expected, rung="numpy", what="the result", terms=1):
    """`terms` is the number of training steps, or of products in the longest sum: rounding errors add up over them."""
    (limit, compared), (error, largest) = TOLERANCES[rung], _compared(actual, expected)
    assert_good(trust.Measured(what, error, limit * terms, largest), compared)


def assert_good(measured, compared):
    """The result of a rung is within its limit; None means that the rung does not apply."""
    assert measured is None or measured.good, failure(measured, compared)


def failure(measured, compared):
    """The failure message of the comparison with this name."""
    part, error, limit = measured.part.removeprefix("the "), f"{measured.error:#.2g}", f"{measured.limit:.0e}"
    return f"{part}: relative error {error} > {limit.replace('e-0', 'e-')} ({compared}){measured.largest}"


def _compared(actual, expected):
    actual, expected = _array(actual), _array(expected)
    return trust.relative_error(actual, expected, np.abs(expected).max(initial=0))


def _array(numbers):
    return np.asarray(numbers.detach().double() if isinstance(numbers, torch.Tensor) else numbers, np.float64)
