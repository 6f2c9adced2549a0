"""The kernels of the norms: stripes of many rows, and registration with torch."""

import pytest
import torch

from minillm.kernels import norm as kernels
from tests.kernels.against_numpy import DEVICE, opcheck


def test_a_stripe_of_many_rows_sums_all_of_them(monkeypatch):
    """More rows than the backward pass has programs: each loops over several blocks, the last one not full."""
    monkeypatch.setattr(kernels, "STRIPES", 2)
    monkeypatch.setattr(kernels, "BLOCK_NUMBERS", 256)
    hidden = torch.randn(29, 61, device=DEVICE)
    weight = torch.ones(61, device=DEVICE, requires_grad=True)
    kernels.rms_norm(hidden, weight, 1e-5).sum().backward()
    normed = hidden / (hidden.square().mean(-1, keepdim=True) + 1e-5).sqrt()
    assert torch.allclose(weight.grad, normed.sum(0), atol=1e-5)


@pytest.mark.parametrize("layer", [pytest.param(False, marks=pytest.mark.slow), True])
def test_the_norm_is_a_registered_torch_operation(layer):
    hidden = torch.randn(5, 13, device=DEVICE, requires_grad=True)
    weight, bias = (torch.randn(13, device=DEVICE, requires_grad=True) for _ in range(2))
    opcheck(kernels._norm, hidden, weight, bias if layer else None, 1e-5)
