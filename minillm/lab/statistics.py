"""How sure a measured share is, and a mean of repeated runs."""

import math
import statistics
from collections.abc import Sequence


def standard_error(share: float, count: int) -> float:
    """The standard error of a share of `count` independent rows: sqrt(p (1 - p) / n)."""
    return math.sqrt(share * (1 - share) / count)


def standard_error_of_mean(values: Sequence[float]) -> float:
    """How far the mean of two or more independent values may be off: their spread (of n - 1) over sqrt(n)."""
    return statistics.stdev(values) / math.sqrt(len(values))
