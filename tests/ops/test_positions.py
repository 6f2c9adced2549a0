"""Positions in torch equal numpy's."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from minillm.ops import positions as ops
from minillm.reference import positions as reference
from tests.rungs import check_against_torch
from tests.strategies import masks, randoms, sizes
from tests.tolerances import assert_close

even_widths = st.sampled_from((2, 6, 10))


@given(st.data(), sizes, sizes, st.integers(0, 7))
def test_token_positions_equal_numpys(data, batch, tokens, start):
    mask = data.draw(masks(batch, tokens))
    assert np.array_equal(ops.token_positions(torch.from_numpy(mask), start), reference.token_positions(mask, start))


@given(sizes, sizes, even_widths, st.sampled_from((100.0, 100_000.0)), randoms)
def test_sinusoids_and_rotary_tables_equal_numpys(batch, tokens, width, theta, random):
    positions = random.integers(0, 8000, (batch, tokens))
    tensor = torch.from_numpy(positions)
    assert_close(ops.sinusoidal(tensor, width, torch.float64), reference.sinusoidal(positions, width))
    tables = ops.rotary_tables(tensor, width, theta, torch.float64)
    for actual, expected in zip(tables, reference.rotary_tables(positions, width, theta), strict=True):
        assert_close(actual, expected)


@given(sizes, sizes, sizes, even_widths, st.booleans(), randoms)
def test_rotary_equals_numpys(batch, heads, tokens, width, by_row, random):
    positions = random.integers(0, 50, (batch, tokens) if by_row else tokens)
    cos, sin = reference.rotary_tables(positions, width, 100.0)
    inputs = {"vectors": random.normal(size=(batch, heads, tokens, width)), "cos": cos, "sin": sin}
    check_against_torch(ops.rotary, reference.rotary_forward, reference.rotary_backward, inputs, random)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_a_far_position_is_not_rounded_in_half_precision(dtype):
    """2049 has no float16 of its own: the angle must be computed wider than the table is kept."""
    cos, sin = ops.rotary_tables(torch.tensor([2049]), 2, 100.0, dtype)
    assert cos.dtype == sin.dtype == dtype
    assert abs(cos.item() - np.cos(2049)) < 0.01
    assert abs(sin.item() - np.sin(2049)) < 0.01
