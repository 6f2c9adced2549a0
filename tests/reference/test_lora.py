"""LoRA in numpy."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from minillm.reference.lora import lora_backward, lora_forward, updated_norms_backward, updated_norms_forward
from tests.rungs import check_gradient_by_differences
from tests.strategies import leading_axes, randoms, sizes


@given(leading_axes, sizes, sizes, sizes, st.booleans(), st.booleans(), randoms)
def test_loras_gradients_are_its_slopes(leading, inner, outer, rank, has_bias, has_dropped, random):
    inputs = lora_inputs(leading, inner, outer, rank, has_bias, random, has_dropped)
    check_gradient_by_differences(lora_forward, lora_backward, inputs, random)


@given(sizes, sizes, sizes, randoms)
def test_the_slopes_of_updated_norms(inner, outer, rank, random):
    inputs = norms_inputs(inner, outer, rank, random)
    check_gradient_by_differences(updated_norms_forward, updated_norms_backward, inputs, random)


@given(leading_axes, sizes, sizes, sizes, randoms)
def test_lora_is_the_linear_of_the_merged_matrix(leading, inner, outer, rank, random):
    inputs = lora_inputs(leading, inner, outer, rank, True, random)
    merged = inputs["weight"] + inputs["scale"] * inputs["b"] @ inputs["a"]
    out, _ = lora_forward(**inputs)
    assert np.allclose(out, inputs["x"] @ merged.T + inputs["bias"], rtol=1e-12, atol=1e-12)


def lora_inputs(leading, inner, outer, rank, has_bias, random, has_dropped=False):
    shapes = {"x": (*leading, inner), "weight": (outer, inner), "a": (rank, inner), "b": (outer, rank)}
    inputs = {name: random.normal(size=shape) for name, shape in shapes.items()}
    if has_dropped:
        inputs["dropped"] = random.normal(size=shapes["x"])
    return inputs | {"bias": random.normal(size=outer) if has_bias else None, "scale": 1.7}


def norms_inputs(inner, outer, rank, random):
    """Rows that are not short: the length has a kink at 0."""
    shapes = {"weight": (outer, inner), "a": (rank, inner), "b": (outer, rank)}
    inputs = {name: 0.1 * random.normal(size=shape) for name, shape in shapes.items()}
    return inputs | {"weight": inputs["weight"] + 1, "scale": 1.7}
