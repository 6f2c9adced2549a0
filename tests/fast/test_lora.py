"""LoRA's own backward pass: each gradient alone, and inputs of every layout."""

import pytest
import torch

from minillm.fast.lora import lora
from tests.tolerances import assert_close

pytestmark = pytest.mark.checked


@pytest.mark.parametrize("wants", ["x", "a", "b", "dropped", "bias"])
def test_each_gradient_is_right_alone(wants):
    """A gradient that is not needed is not computed, and the others do not depend on it."""
    shapes = {"x": (3, 5), "weight": (7, 5), "a": (2, 5), "b": (7, 2), "dropped": (3, 5), "bias": (7,)}
    inputs = {name: torch.randn(shape).double() for name, shape in shapes.items()}
    inputs[wants].requires_grad_()
    update = inputs["dropped"] @ inputs["a"].T @ inputs["b"].T
    expected = inputs["x"] @ inputs["weight"].T + inputs["bias"] + 0.5 * update
    (gradient,) = torch.autograd.grad(expected.square().sum(), inputs[wants])
    lora(**inputs, scale=0.5).square().sum().backward()
    assert_close(inputs[wants].grad, gradient, "law", terms=7)


def test_inputs_may_have_any_layout():
    x, weight, a, b = (torch.randn(shape).double() for shape in ((5, 3, 2), (7, 5), (2, 5), (7, 2)))
    strided = x.permute(2, 1, 0).requires_grad_()
    out = lora(strided, weight, None, a, b, 0.5)
    dout = torch.randn(7, 3, 2).double().permute(2, 1, 0)
    merged = weight + 0.5 * b @ a
    assert_close(out, strided @ merged.T, "law", terms=7)
    (dx,) = torch.autograd.grad(out, strided, dout)
    assert_close(dx, dout @ merged, "law", terms=7)
