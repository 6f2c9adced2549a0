"""The non-linearities' kernels equal numpy's, output and every gradient."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from minillm.kernels import feed_forward as kernels
from tests.kernels.against_numpy import DEVICE, assert_the_kernel_is_right, dtypes, examples, opcheck, rows, widths
from tests.kernels.fenced import assert_nothing_else_is_written
from tests.strategies import randoms

leading = st.one_of(st.just(()), st.tuples(rows), st.tuples(st.just(3), rows))
# A sigmoid is hardly more than a line near 0, and hardly more than a step far out.
spreads = st.sampled_from((0.1, 1.0, 10.0))


@examples
@given(leading, widths, spreads, dtypes, randoms)
def test_gelus_kernel_equals_numpys(leading, width, spread, dtype, random):
    up = spread * random.normal(size=(*leading, width))
    assert_the_kernel_is_right("feed_forward", "gelu", random, dtype, up=up)


@examples
@given(leading, widths, spreads, dtypes, randoms)
def test_swiglus_kernel_equals_numpys(leading, width, spread, dtype, random):
    gate, up = spread * random.normal(size=(*leading, width)), random.normal(size=(*leading, width))
    assert_the_kernel_is_right("feed_forward", "swiglu", random, dtype, gate=gate, up=up)


def test_a_transposed_gate_gates_its_own_numbers():
    gate, up, dout = torch.randn(3, 5, 7, device=DEVICE)
    gate = gate.T.contiguous().T.requires_grad_()
    (slope,) = torch.autograd.grad(kernels.swiglu(gate, up), gate, dout.T.contiguous().T)
    (expected,) = torch.autograd.grad(torch.nn.functional.silu(gate) * up, gate, dout)
    assert torch.allclose(slope, expected, atol=1e-6)


def test_the_wider_of_two_dtypes_is_returned_as_torch_does():
    gate, up = torch.randn(7, device=DEVICE).bfloat16().requires_grad_(), torch.randn(7, device=DEVICE)
    out = kernels.swiglu(gate, up)
    out.sum().backward()
    assert (out.dtype, gate.grad.dtype) == (torch.float32, torch.bfloat16)


@pytest.mark.parametrize("gated", [False, True])
def test_nothing_is_written_beyond_the_last(gated):
    dout, inner, factor = torch.randn(3, 1027, device=DEVICE)
    assert_nothing_else_is_written(kernels._feed_forward, inner, factor if gated else None)
    assert_nothing_else_is_written(kernels._feed_forward_backward, dout, inner, factor if gated else None)


@pytest.mark.parametrize("gated", [False, True])
def test_a_non_linearity_is_an_operation_of_torchs(gated):
    inner, factor = (torch.randn(5, 13, device=DEVICE, requires_grad=True) for _ in range(2))
    opcheck(kernels._feed_forward, inner, factor if gated else None)
