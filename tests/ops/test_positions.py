"""Positions in torch are exact for large positions."""

import numpy as np
import pytest
import torch

from minillm.ops.positions import rotary_tables


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_a_large_position_is_not_rounded_in_half_precision(dtype):
    """float16 cannot represent 2049: the angle must be computed in a wider dtype than that of the table."""
    cos, sin = rotary_tables(torch.tensor([2049]), 2, 100.0, dtype)
    assert cos.dtype == sin.dtype == dtype
    assert abs(cos.item() - np.cos(2049)) < 0.01
    assert abs(sin.item() - np.sin(2049)) < 0.01
