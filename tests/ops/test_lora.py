"""LoRA in torch equals numpy's, and leaves the frozen matrix alone."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from minillm.ops import lora as ops
from minillm.reference import lora as reference
from tests.reference.test_lora import by_row_inputs, lora_inputs, norms_inputs
from tests.rungs import check_against_torch
from tests.strategies import leading_axes, randoms, sizes
from tests.tolerances import assert_close


@given(leading_axes, sizes, sizes, sizes, st.booleans(), st.booleans(), randoms)
def test_lora_equals_numpys(leading, inner, outer, rank, has_bias, has_dropped, random):
    inputs = lora_inputs(leading, inner, outer, rank, has_bias, random, has_dropped)
    twins = reference.lora_forward, reference.lora_backward
    check_against_torch(ops.lora, *twins, inputs, random, constants=("weight",))


@given(sizes, sizes, sizes, sizes, sizes, sizes, st.booleans(), randoms)
def test_lora_by_row_equals_numpys(batch, tokens, inner, outer, rank, members, has_bias, random):
    inputs = by_row_inputs(batch, tokens, inner, outer, rank, members, has_bias, random)
    twins = reference.lora_by_row_forward, reference.lora_by_row_backward
    check_against_torch(ops.lora_by_row, *twins, inputs, random, constants=("weight", "adapter"))


@given(sizes, sizes, sizes, randoms)
def test_updated_norms_equal_numpys_and_are_those_of_the_formed_matrix(inner, outer, rank, random):
    inputs = norms_inputs(inner, outer, rank, random)
    twins = reference.updated_norms_forward, reference.updated_norms_backward
    check_against_torch(ops.updated_norms, *twins, inputs, random, constants=("weight",))
    formed = inputs["weight"] + inputs["scale"] * inputs["b"] @ inputs["a"]
    assert_close(twins[0](**inputs)[0], np.linalg.norm(formed, axis=1))


def test_a_frozen_matrix_gets_no_gradient_and_a_bias_gets_one_if_it_wants_it():
    x, weight, a, b = (torch.randn(shape, requires_grad=True) for shape in ((3, 5), (7, 5), (2, 5), (7, 2)))
    bias = torch.randn(7, requires_grad=True)
    ops.lora(x, weight, bias, a, b, 0.5).sum().backward()
    assert weight.grad is None
    assert torch.equal(bias.grad, torch.full((7,), 3.0))
    assert all(tensor.grad is not None for tensor in (x, a, b))


def test_a_row_without_an_adapter_is_the_linears_whatever_the_adapters_hold():
    x, weight, bias = torch.randn(2, 3, 5), torch.randn(7, 5, requires_grad=True), torch.randn(7, requires_grad=True)
    a, b = torch.full((1, 2, 5), torch.nan), torch.full((1, 7, 2), torch.inf)
    out = ops.lora_by_row(x, weight, bias, a, b, torch.tensor([-1, 0]))
    out[0].sum().backward()
    assert torch.allclose(out[0], x[0] @ weight.T + bias, atol=1e-6)
    assert out[1].isnan().all()
    assert weight.grad is None
    assert torch.equal(bias.grad, torch.full((7,), 3.0))


@pytest.mark.parametrize("kept", [torch.float32, torch.bfloat16])
def test_rows_are_computed_in_the_matrixs_dtype_or_in_autocasts(kept):
    x, weight = torch.randn(2, 3, 5), torch.randn(7, 5).to(kept)
    a, b = torch.randn(1, 2, 5, requires_grad=True), torch.randn(1, 7, 2, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16, enabled=kept == torch.float32):
        out = ops.lora_by_row(x, weight, None, a, b, torch.tensor([0, 0]))
    out.sum().backward()
    assert out.dtype == torch.bfloat16
    assert a.grad.dtype == b.grad.dtype == torch.float32
    assert torch.allclose(out.float(), x @ (weight.float() + b[0] @ a[0]).T, atol=0.2)


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


@pytest.mark.parametrize("inside", [False, True])
def test_autocast_computes_a_wide_matrix_in_its_own_dtype_and_a_double_one_as_it_is(inside):
    torch.manual_seed(0)
    x, weight, bias, a, b = (torch.randn(shape) for shape in ((3, 5), (7, 5), (7,), (2, 5), (7, 2)))
    a.requires_grad_()
    with torch.autocast("cpu", torch.bfloat16, enabled=inside):
        out = ops.lora(x, weight, bias, a, b, 0.5)
        double = ops.lora(*(tensor.double() for tensor in (x, weight, bias, a, b)), 0.5)
        norms = ops.updated_norms(weight, a, b, 0.5)
    out.sum().backward()
    assert out.dtype == (torch.bfloat16 if inside else torch.float32)
    assert double.dtype == torch.float64
    assert a.grad.dtype == torch.float32
    assert torch.allclose(norms, (weight + 0.5 * b @ a).norm(dim=1), rtol=1e-6)
    assert torch.allclose(out.double(), double, atol=0.2 if inside else 1e-5)


@pytest.mark.parametrize("wants", ["x", "a", "b", "dropped"])
def test_each_gradient_is_right_alone(wants):
    """A gradient that nobody wants is not computed, and the others do not need it."""
    torch.manual_seed(0)
    shapes = {"x": (3, 5), "weight": (7, 5), "a": (2, 5), "b": (7, 2), "dropped": (3, 5)}
    inputs = {name: torch.randn(shape).double() for name, shape in shapes.items()}
    inputs[wants].requires_grad_()
    expected = inputs["x"] @ inputs["weight"].T + 0.5 * inputs["dropped"] @ inputs["a"].T @ inputs["b"].T
    (slope,) = torch.autograd.grad(expected.square().sum(), inputs[wants])
    ops.lora(**inputs, bias=None, scale=0.5).square().sum().backward()
    assert_close(inputs[wants].grad, slope, "law")
