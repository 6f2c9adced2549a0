"""SwiGLU saves only its inputs for the backward pass."""

import pytest
import torch

from minillm.fast.feed_forward import swiglu

pytestmark = pytest.mark.checked


def test_only_the_inputs_are_saved():
    gate, up, saved = torch.randn(5, requires_grad=True), torch.randn(5, requires_grad=True), []
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: saved.append(tensor) or tensor, lambda t: t):
        swiglu(gate, up)
    assert [tensor.data_ptr() for tensor in saved] == [gate.data_ptr(), up.data_ptr()]
