"""A Linear in torch equals numpy's, and the quick product in float32 is one in float32."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from torch.utils.checkpoint import checkpoint

from minillm.ops import linear as ops
from minillm.reference import linear as reference
from tests.rungs import check_against_torch
from tests.strategies import leading_axes, randoms, sizes
from tests.tolerances import assert_close


@given(leading_axes, sizes, sizes, randoms)
def test_a_linear_equals_numpys(leading, inner, outer, random):
    for bias in (None, random.normal(size=outer)):
        inputs = {"x": random.normal(size=(*leading, 3, inner)), "weight": random.normal(size=(outer, inner))}
        check_against_torch(
            ops.linear, reference.linear_forward, reference.linear_backward, inputs | {"bias": bias}, random
        )  # fmt: skip


@given(leading_axes, sizes, sizes, randoms)
def test_in_float32_the_output_and_every_gradient_are_as_near_to_the_truth_as_mkls(leading, inner, outer, random):
    """Also of inputs that are views: transposed, or every other row. (Positive numbers, so that no sum cancels.)"""
    wide = [random.uniform(0.5, 2.0, size=shape) for shape in ((*leading, 6, inner), (outer, inner), outer)]
    truth = _with_gradients(F.linear, [torch.tensor(side)[..., ::2, :] if i == 0 else torch.tensor(side)
                                       for i, side in enumerate(wide)])  # fmt: skip
    single = [torch.tensor(side, dtype=torch.float32) for side in wide]
    found = _with_gradients(ops.linear, [single[0][..., ::2, :], single[1].T.contiguous().T, single[2]])
    for actual, expected in zip(found, truth, strict=True):
        assert actual.dtype == torch.float32
        assert_close(actual.double(), expected, "law in float32")


def _with_gradients(function, operands):
    operands = [side.detach().requires_grad_() for side in operands]
    out = function(*operands)
    out.backward(torch.linspace(1, 2, out.numel(), dtype=out.dtype).view(out.shape))
    return out.detach(), *(side.grad for side in operands)


def test_only_what_wants_a_gradient_gets_one():
    x, weight = torch.randn(3, 2), torch.randn(5, 2, requires_grad=True)
    ops.linear(x, weight).sum().backward()
    assert x.grad is None
    assert_close(weight.grad, x.sum(0).expand(5, 2), "law in float32")


def test_a_frozen_matrix_keeps_nothing_of_what_it_read():
    """A decoder of frozen Linears would else hold the input of each of them until the backward pass."""
    kept = []
    x, weight = torch.randn(4, 3, requires_grad=True), torch.randn(2, 3)
    with torch.autograd.graph.saved_tensors_hooks(
        lambda tensor: kept.append(tensor.shape) or tensor, lambda kept: kept
    ):
        ops.linear(x, weight)
        assert (4, 3) not in kept
        ops.linear(x, weight.requires_grad_())
    assert (4, 3) in kept


def test_a_product_that_is_made_again_for_its_gradient_is_made_alike():
    """PyTorch refuses to go on where the second pass saves other tensors than the first one did."""
    x, weight = torch.randn(4, 3, requires_grad=True), torch.randn(2, 3, requires_grad=True)
    checkpoint(ops.linear, x, weight, use_reentrant=False).sum().backward()
    assert_close(weight.grad, x.detach().sum(0).expand(2, 3), "law in float32")


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_other_dtypes_and_empty_batches_are_pytorchs(dtype):
    x, weight = torch.randn(4, 3, dtype=dtype), torch.randn(2, 3, dtype=dtype)
    assert torch.equal(ops.linear(x, weight), F.linear(x, weight))
    assert ops.linear(torch.zeros(0, 3), torch.zeros(2, 3)).shape == (0, 2)
    with torch.autocast("cpu", torch.bfloat16):
        assert ops.linear(torch.randn(4, 3), torch.randn(2, 3)).dtype == torch.bfloat16
