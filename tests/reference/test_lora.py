"""LoRA in numpy."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from minillm.reference.lora import lora_backward, lora_forward
from tests.rungs import check_gradient_by_differences
from tests.strategies import leading_axes, randoms, sizes


@given(leading_axes, sizes, sizes, sizes, st.booleans(), randoms)
def test_loras_gradients_are_its_slopes(leading, inner, outer, rank, has_bias, random):
    inputs = lora_inputs(leading, inner, outer, rank, has_bias, random)
    check_gradient_by_differences(lora_forward, lora_backward, inputs, random)


@given(leading_axes, sizes, sizes, sizes, randoms)
def test_lora_is_the_linear_of_the_merged_matrix(leading, inner, outer, rank, random):
    inputs = lora_inputs(leading, inner, outer, rank, True, random)
    merged = inputs["weight"] + inputs["scale"] * inputs["b"] @ inputs["a"]
    out, _ = lora_forward(**inputs)
    assert np.allclose(out, inputs["x"] @ merged.T + inputs["bias"], rtol=1e-12, atol=1e-12)


def lora_inputs(leading, inner, outer, rank, has_bias, random):
    shapes = {"x": (*leading, inner), "weight": (outer, inner), "a": (rank, inner), "b": (outer, rank)}
    inputs = {name: random.normal(size=shape) for name, shape in shapes.items()}
    return inputs | {"bias": random.normal(size=outer) if has_bias else None, "scale": 1.7}
