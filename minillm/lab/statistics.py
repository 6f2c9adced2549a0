"""How sure a measured share is."""

import math


def standard_error(share: float, count: int) -> float:
    """The standard error of a share of `count` independent rows: sqrt(p (1 - p) / n)."""
    return math.sqrt(share * (1 - share) / count)
