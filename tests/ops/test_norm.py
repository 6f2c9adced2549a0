"""The norms in torch equal numpy's, and keep the dtype that they are given."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from minillm.ops import norm as ops
from minillm.reference import norm as reference
from tests.rungs import check_against_torch
from tests.strategies import leading_axes, randoms, sizes

# A small eps and a large one: where in the formula it stands matters only for the large one.
epsilons = st.sampled_from((1e-5, 0.3))


@given(leading_axes, sizes, epsilons, randoms)
def test_layer_norm_equals_numpys(leading, width, eps, random):
    hidden, weight, bias = (random.normal(size=shape) for shape in ((*leading, width), width, width))
    inputs = {"hidden": hidden, "weight": weight, "bias": bias, "eps": eps}
    check_against_torch(ops.layer_norm, reference.layer_norm_forward, reference.layer_norm_backward, inputs, random)


@given(leading_axes, sizes, epsilons, randoms)
def test_rms_norm_equals_numpys(leading, width, eps, random):
    inputs = {"hidden": random.normal(size=(*leading, width)), "weight": random.normal(size=width), "eps": eps}
    check_against_torch(ops.rms_norm, reference.rms_norm_forward, reference.rms_norm_backward, inputs, random)


@given(leading_axes, sizes, epsilons, randoms)
def test_add_and_norm_equals_numpys(leading, width, eps, random):
    """Both results go on, so that the gradient of what is added comes from both."""
    shapes = {"hidden": (*leading, width), "update": (*leading, width), "weight": width, "bias": width}
    inputs = {name: random.normal(size=shape) for name, shape in shapes.items()} | {"eps": eps}
    for name in ("add_layer_norm", "add_rms_norm"):
        if "rms" in name:
            del inputs["bias"]
        forward, backward = (getattr(reference, f"{name}_{way}") for way in ("forward", "backward"))
        check_against_torch(_stacked(getattr(ops, name)), _stacked_forward(forward), backward, inputs, random)


def _stacked(operation):
    return lambda **inputs: torch.stack(operation(**inputs))


def _stacked_forward(forward):
    def both(**inputs):
        results, cache = forward(**inputs)
        return np.stack(results), cache

    return both


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_a_norm_keeps_the_dtype_and_does_not_overflow_in_half_precision(dtype):
    hidden, weight = torch.full((1, 8), 1000.0, dtype=dtype), torch.ones(8, dtype=dtype)
    out = ops.rms_norm(hidden, weight, 1e-5)
    assert out.dtype == dtype
    assert torch.allclose(out.double(), torch.ones(1, 8).double(), atol=1e-2)
    assert ops.layer_norm(hidden, weight, torch.zeros_like(weight), 1e-5).dtype == dtype
