"""The kernels of the non-linearities: strides, dtypes, and no writes out of bounds."""

import pytest
import torch

from minillm.kernels import feed_forward as kernels
from tests.kernels.against_numpy import DEVICE, opcheck
from tests.kernels.fenced import assert_nothing_else_is_written


def test_a_transposed_gate_is_multiplied_with_the_right_elements():
    gate, up, dout = torch.randn(3, 5, 7, device=DEVICE)
    gate = gate.T.contiguous().T.requires_grad_()
    (gradient,) = torch.autograd.grad(kernels.swiglu(gate, up), gate, dout.T.contiguous().T)
    (expected,) = torch.autograd.grad(torch.nn.functional.silu(gate) * up, gate, dout)
    assert torch.allclose(gradient, expected, atol=1e-6)


def test_the_wider_of_two_dtypes_is_returned_as_torch_does():
    gate, up = torch.randn(7, device=DEVICE).bfloat16().requires_grad_(), torch.randn(7, device=DEVICE)
    out = kernels.swiglu(gate, up)
    out.sum().backward()
    assert (out.dtype, gate.grad.dtype) == (torch.float32, torch.bfloat16)


@pytest.mark.parametrize("gated", [False, True])
def test_nothing_is_written_out_of_bounds(gated):
    dout, inner, factor = torch.randn(3, 1027, device=DEVICE)
    assert_nothing_else_is_written(kernels._feed_forward, inner, factor if gated else None)
    assert_nothing_else_is_written(kernels._feed_forward_backward, dout, inner, factor if gated else None)


@pytest.mark.slow
@pytest.mark.parametrize("gated", [False, True])
def test_a_non_linearity_is_a_registered_torch_operation(gated):
    inner, factor = (torch.randn(5, 13, device=DEVICE, requires_grad=True) for _ in range(2))
    opcheck(kernels._feed_forward, inner, factor if gated else None)
