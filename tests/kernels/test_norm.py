"""The norms' kernels equal numpy's, output and every gradient."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from minillm.kernels import norm as kernels
from tests.kernels.against_numpy import DEVICE, assert_the_kernel_is_right, dtypes, examples, opcheck, rows, widths
from tests.strategies import randoms

leading = st.one_of(st.tuples(rows), st.tuples(st.just(3), rows))
# A small eps and a large one: where in the formula it stands matters only for the large one.
epsilons = st.sampled_from((1e-5, 0.3))


@pytest.mark.parametrize("name", ["layer_norm", "rms_norm", "add_layer_norm", "add_rms_norm"])
@examples
@given(leading, widths, epsilons, dtypes, randoms)
def test_a_norms_kernel_equals_numpys(name, leading, width, eps, dtype, random):
    arguments = {"hidden": random.normal(size=(*leading, width)), "weight": random.normal(size=width), "eps": eps}
    if "add" in name:
        arguments["update"] = random.normal(size=(*leading, width))
    if "layer" in name:
        arguments["bias"] = random.normal(size=width)
    assert_the_kernel_is_right("norm", name, random, dtype, **arguments)


def test_a_stripe_of_many_rows_sums_them_all(monkeypatch):
    """More rows than the backward pass has programs: each walks down several blocks, the last one not full."""
    monkeypatch.setattr(kernels, "STRIPES", 2)
    monkeypatch.setattr(kernels, "BLOCK_NUMBERS", 256)
    hidden = torch.randn(29, 61, device=DEVICE)
    weight = torch.ones(61, device=DEVICE, requires_grad=True)
    kernels.rms_norm(hidden, weight, 1e-5).sum().backward()
    normed = hidden / (hidden.square().mean(-1, keepdim=True) + 1e-5).sqrt()
    assert torch.allclose(weight.grad, normed.sum(0), atol=1e-5)


@pytest.mark.parametrize("adds", [False, True])
@pytest.mark.parametrize("layer", [False, True])
def test_the_norm_is_an_operation_of_torchs(adds, layer):
    hidden, update = (torch.randn(5, 13, device=DEVICE, requires_grad=True) for _ in range(2))
    weight, bias = (torch.randn(13, device=DEVICE, requires_grad=True) for _ in range(2))
    opcheck(kernels._norm, hidden, update if adds else None, weight, bias if layer else None, 1e-5)
