"""What hypothesis draws: prime sizes, so that no wrong axis fits by luck, and the numbers to fill them with."""

from typing import NamedTuple

import numpy as np
from hypothesis import strategies as st

sizes = st.sampled_from((1, 2, 3, 5))
randoms = st.integers(0, 2**32 - 1).map(np.random.default_rng)
leading_axes = st.lists(sizes, max_size=2).map(tuple)


class AttentionCase(NamedTuple):
    """Arguments of attention by name, the prefix as plain arrays (key, value, gate) or None."""

    arrays: dict
    mask: np.ndarray | None
    prefix: tuple | None
    random: np.random.Generator


@st.composite
def attention_cases(draw):
    """Grouped heads, queries at the end of more keys, padding on either side, prefixes of every kind."""
    random = draw(randoms)
    batch, queries, width, groups, sharing = (draw(sizes) for _ in range(5))
    keys = queries + (draw(sizes) if draw(st.booleans()) else 0)
    heads = groups * sharing
    arrays = {
        "query": random.normal(size=(batch, heads, queries, width)),
        "key": random.normal(size=(batch, groups, keys, width)),
        "value": random.normal(size=(batch, groups, keys, width)),
    }
    mask = draw(masks(batch, keys)) if draw(st.booleans()) else None
    prefix = None
    if draw(st.booleans()):
        shape = (draw(st.sampled_from((1, batch))), groups, draw(sizes), width)
        gate = random.normal(size=heads) if draw(st.booleans()) else None
        prefix = (random.normal(size=shape), random.normal(size=shape), gate)
    return AttentionCase(arrays, mask, prefix, random)


@st.composite
def masks(draw, batch, tokens):
    """Rows of real tokens with padding on the left, on the right, on both sides or on none."""
    mask = np.zeros((batch, tokens), bool)
    for row in mask:
        left = draw(st.integers(0, tokens - 1))
        right = draw(st.integers(0, tokens - 1 - left))
        row[left : tokens - right] = True
    return mask


@st.composite
def labels(draw, rows, classes, ignored=-100):
    """Some rows have no label; perhaps none has."""
    drawn = np.array(draw(st.lists(st.integers(-1, classes - 1), min_size=rows, max_size=rows)), int)
    return np.where(drawn < 0, ignored, drawn)
