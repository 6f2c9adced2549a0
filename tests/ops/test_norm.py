"""The norms in torch return the dtype of their input."""

import pytest
import torch

from minillm.fast import norm as fast
from minillm.ops import norm as plain


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_a_norm_keeps_the_dtype_and_does_not_overflow_in_half_precision(dtype):
    hidden, weight, none = (
        torch.full((1, 8), 1000.0, dtype=dtype),
        torch.ones(8, dtype=dtype),
        torch.zeros(8, dtype=dtype),
    )
    out = plain.rms_norm(hidden, weight, 1e-5)
    assert out.dtype == dtype
    assert torch.allclose(out.double(), torch.ones(1, 8).double(), atol=1e-2)
    hidden[0, 0] = 60_000.0
    for layer_norm in (plain.layer_norm, fast.layer_norm):
        out = layer_norm(hidden, weight, none, 1e-5)
        assert out.dtype == dtype
        assert torch.allclose(out[0, 0].double(), torch.tensor(7.0).double().sqrt(), rtol=1e-2)
