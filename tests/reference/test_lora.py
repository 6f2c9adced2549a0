"""LoRA in numpy."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from minillm.reference.linear import linear_forward
from minillm.reference.lora import (
    lora_backward,
    lora_by_row_backward,
    lora_by_row_forward,
    lora_forward,
    updated_norms_backward,
    updated_norms_forward,
)
from tests.rungs import check_gradient_by_differences
from tests.strategies import leading_axes, randoms, sizes


@given(leading_axes, sizes, sizes, sizes, st.booleans(), st.booleans(), randoms)
def test_loras_gradients_are_its_slopes(leading, inner, outer, rank, has_bias, has_dropped, random):
    inputs = lora_inputs(leading, inner, outer, rank, has_bias, random, has_dropped)
    check_gradient_by_differences(lora_forward, lora_backward, inputs, random)


@given(sizes, sizes, sizes, sizes, sizes, sizes, st.booleans(), randoms)
def test_the_slopes_of_rows_with_adapters_of_their_own(batch, tokens, inner, outer, rank, members, has_bias, random):
    inputs = by_row_inputs(batch, tokens, inner, outer, rank, members, has_bias, random)
    check_gradient_by_differences(lora_by_row_forward, lora_by_row_backward, inputs, random)


@given(sizes, sizes, sizes, sizes, sizes, sizes, st.booleans(), randoms)
def test_each_row_is_what_its_adapter_makes_of_it(batch, tokens, inner, outer, rank, members, has_bias, random):
    inputs = by_row_inputs(batch, tokens, inner, outer, rank, members, has_bias, random)
    out, _ = lora_by_row_forward(**inputs)
    x, weight, bias = inputs["x"], inputs["weight"], inputs["bias"]
    for row, member in enumerate(inputs["adapter"]):
        alone, _ = linear_forward(x[row], weight, bias)
        if member >= 0:
            alone, _ = lora_forward(x[row], weight, bias, inputs["a"][member], inputs["b"][member], 1)
        assert np.allclose(out[row], alone, rtol=1e-12, atol=1e-12)


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


def by_row_inputs(batch, tokens, inner, outer, rank, members, has_bias, random):
    shapes = {
        "x": (batch, tokens, inner), "weight": (outer, inner), "a": (members, rank, inner), "b": (members, outer, rank),
    }  # fmt: skip
    inputs = {name: random.normal(size=shape) for name, shape in shapes.items()}
    bias = random.normal(size=outer) if has_bias else None
    return inputs | {"bias": bias, "adapter": random.integers(-1, members, batch)}


def norms_inputs(inner, outer, rank, random):
    """Rows that are not short: the length has a kink at 0."""
    shapes = {"weight": (outer, inner), "a": (rank, inner), "b": (outer, rank)}
    inputs = {name: 0.1 * random.normal(size=shape) for name, shape in shapes.items()}
    return inputs | {"weight": inputs["weight"] + 1, "scale": 1.7}
