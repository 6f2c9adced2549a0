"""LoRA in torch equals numpy's, and leaves the frozen matrix alone."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from minillm.ops import lora as ops
from minillm.reference import lora as reference
from tests.reference.test_lora import lora_inputs
from tests.rungs import check_against_torch
from tests.strategies import leading_axes, randoms, sizes


@given(leading_axes, sizes, sizes, sizes, st.booleans(), randoms)
def test_lora_equals_numpys(leading, inner, outer, rank, has_bias, random):
    inputs = lora_inputs(leading, inner, outer, rank, has_bias, random)
    twins = reference.lora_forward, reference.lora_backward
    check_against_torch(ops.lora, *twins, inputs, random, constants=("weight", "bias"))


def test_a_frozen_matrix_gets_no_gradient():
    x, weight, a, b = (torch.randn(shape, requires_grad=True) for shape in ((3, 5), (7, 5), (2, 5), (7, 2)))
    ops.lora(x, weight, None, a, b, 0.5).sum().backward()
    assert weight.grad is None
    assert all(tensor.grad is not None for tensor in (x, a, b))


def test_inputs_of_every_layout_are_taken():
    torch.manual_seed(0)
    x, weight, a, b = (torch.randn(shape).double() for shape in ((5, 3, 2), (7, 5), (2, 5), (7, 2)))
    strided = x.permute(2, 1, 0).requires_grad_()
    out = ops.lora(strided, weight, None, a, b, 0.5)
    dout = torch.randn(7, 3, 2).double().permute(2, 1, 0)
    assert torch.allclose(out, strided @ (weight + 0.5 * b @ a).T, rtol=1e-12)
    (dx,) = torch.autograd.grad(out, strided, dout)
    assert torch.allclose(dx, dout @ (weight + 0.5 * b @ a), rtol=1e-12)


@pytest.mark.parametrize("wide", [torch.float32, torch.float64])
def test_factors_may_be_wider_than_the_matrix(wide):
    x, weight = torch.randn(3, 5).bfloat16(), torch.randn(7, 5).bfloat16()
    a, b = torch.randn(2, 5, dtype=wide, requires_grad=True), torch.randn(7, 2, dtype=wide, requires_grad=True)
    out = ops.lora(x, weight, None, a, b, 0.5)
    out.sum().backward()
    assert out.dtype == torch.bfloat16
    assert a.grad.dtype == b.grad.dtype == wide
