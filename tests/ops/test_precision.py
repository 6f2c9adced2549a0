"""What the formulas compute in a wider dtype than that of their input, and numbers that would overflow."""

import numpy as np
import pytest
import torch

from minillm.fast import norm as fast
from minillm.ops import norm as plain
from minillm.ops.positions import rotary_tables
from minillm.ops.softmax import log_softmax, softmax

pytestmark = pytest.mark.checked


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_a_norm_keeps_the_dtype_and_does_not_overflow_in_half_precision(dtype):
    hidden, weight = torch.full((1, 8), 1000.0, dtype=dtype), torch.ones(8, dtype=dtype)
    out = plain.rms_norm(hidden, weight, 1e-5)
    assert out.dtype == dtype
    assert torch.allclose(out.double(), torch.ones(1, 8).double(), atol=1e-2)
    hidden[0, 0] = 60_000.0
    for layer_norm in (plain.layer_norm, fast.layer_norm):
        out = layer_norm(hidden, weight, torch.zeros_like(weight), 1e-5)
        assert out.dtype == dtype
        assert torch.allclose(out[0, 0].double(), torch.tensor(7.0).double().sqrt(), rtol=1e-2)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_a_large_position_is_not_rounded_in_half_precision(dtype):
    """float16 cannot represent 2049: the angle must be computed in a wider dtype than that of the table."""
    cos, sin = rotary_tables(torch.tensor([2049]), 2, 100.0, dtype)
    assert cos.dtype == sin.dtype == dtype
    assert abs(cos.item() - np.cos(2049)) < 0.01
    assert abs(sin.item() - np.sin(2049)) < 0.01


def test_scores_of_a_thousand_do_not_overflow():
    scores = torch.tensor([1000.0, 1000.0, -1000.0], dtype=torch.float64)
    assert softmax(scores).tolist() == [0.5, 0.5, 0.0]
    assert np.allclose(log_softmax(scores), [-np.log(2), -np.log(2), -2000 - np.log(2)], rtol=1e-12)
