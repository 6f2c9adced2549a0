"""The one comparison of numbers, and the one table of how near they must be."""

import numpy as np

TOLERANCES = {
    "difference": 1e-6,  # central differences against a gradient: what their truncation leaves
    "twin": 1e-9,  # the same mathematics in two programs, float64
    "law": 1e-12,  # two ways through the same program, float64
    "law in float32": 1e-5,
}

# A gradient that is 0 by mathematics is 1e-17 by arithmetic: below this size, errors are measured absolutely.
SMALLEST = 1e-3


def relative_error(actual, expected):
    """The largest error, as a share of the largest number that was expected."""
    actual, expected = _array(actual), _array(expected)
    assert actual.shape == expected.shape, f"the shape is {actual.shape}, and should be {expected.shape}"
    if not expected.size:
        return 0.0
    return np.abs(actual - expected).max() / max(np.abs(expected).max(), SMALLEST)


def assert_close(actual, expected, rung="twin", what="the result", steps=1):
    """Each optimizer step may add an error of its own."""
    error, tolerance = relative_error(actual, expected), steps * TOLERANCES[rung]
    # A NaN is not within any tolerance, so it must not pass by being incomparable.
    assert error <= tolerance, f"{what} is off by {error:.1e} of its size ({rung}: {tolerance:.0e})"


def _array(numbers):
    return np.asarray(numbers.detach() if hasattr(numbers, "detach") else numbers)
