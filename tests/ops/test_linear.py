"""A Linear in torch equals numpy's, and the quick product in float32 is one in float32."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from torch import nn

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


def test_within_quick_products_a_modules_linear_is_ours_and_outside_it_is_pytorchs(monkeypatch):
    calls = []
    monkeypatch.setattr(ops, "linear", lambda *arguments: calls.append(1) or F.linear(*arguments))
    module, x = nn.Linear(3, 2), torch.randn(4, 3)
    with ops.QuickProducts():
        module(x)
        assert len(calls) == 1
        assert_close(torch.relu(x), np.maximum(x.numpy(), 0))
    module(x)
    assert len(calls) == 1


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_other_dtypes_and_empty_batches_are_pytorchs(dtype):
    x, weight = torch.randn(4, 3, dtype=dtype), torch.randn(2, 3, dtype=dtype)
    assert torch.equal(ops.linear(x, weight), F.linear(x, weight))
    assert ops.linear(torch.zeros(0, 3), torch.zeros(2, 3)).shape == (0, 2)
    with torch.autocast("cpu", torch.bfloat16):
        assert ops.linear(torch.randn(4, 3), torch.randn(2, 3)).dtype == torch.bfloat16
