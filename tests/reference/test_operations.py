"""Operations in numpy: masks, positions and limits written out, apart from the comparison with torch."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from minillm.reference.attention import visible_keys
from minillm.reference.feed_forward import gelu_backward, gelu_forward, relu_backward, relu_forward, swiglu_forward
from minillm.reference.linear import linear_forward
from minillm.reference.linear_cross_entropy import linear_cross_entropy_forward
from minillm.reference.lora import lora_forward
from minillm.reference.lora_by_row import lora_by_row_forward
from minillm.reference.positions import rotary_forward, rotary_tables, sinusoidal, token_positions
from tests.strategies import arguments, randoms
from tests.tolerances import assert_close


@pytest.mark.parametrize(
    ("queries", "mask", "visible"),
    [
        (3, None, [[1, 0, 0], [1, 1, 0], [1, 1, 1]]),
        (2, [True] * 5, [[1, 1, 1, 1, 0], [1, 1, 1, 1, 1]]),
        (4, [False, True, True, False], [[1, 0, 0, 0], [0, 1, 0, 0], [0, 1, 1, 0], [0, 1, 1, 1]]),
    ],
    ids=["causal", "with cached keys", "padding attends to itself"],
)
def test_a_token_attends_to_earlier_real_tokens_and_itself(queries, mask, visible):
    found = visible_keys(queries, len(visible[0]), mask and np.array([mask]))
    assert np.array_equal(found[0, 0], visible)


@pytest.mark.parametrize(("forward", "backward"), [(relu_forward, relu_backward), (gelu_forward, gelu_backward)])
def test_large_inputs_do_not_overflow(forward, backward):
    out, cache = forward(np.array([-1e3, 1e3]))
    assert_close(out, [0.0, 1e3], "law")
    assert_close(backward(np.ones(2), cache)["up"], [0.0, 1.0], "law")
    assert_close(swiglu_forward(np.array([-1e3, 1e3]), np.ones(2))[0], [0.0, 1e3], "law")


def test_a_zero_head_has_a_loss_of_the_logarithm_of_the_vocabulary():
    loss, _ = linear_cross_entropy_forward(np.ones((3, 2)), np.zeros((11, 2)), np.array([4, -100, 7]))
    assert_close(loss, 2 * np.log(11), "law")


@given(arguments("lora_by_row"))
def test_each_row_equals_lora_with_its_own_adapter(given):
    out, _ = lora_by_row_forward(**given)
    x, weight, bias = given["x"], given["weight"], given["bias"]
    for row, member in enumerate(given["adapter"]):
        alone, _ = linear_forward(x[row], weight, bias)
        if member >= 0:
            alone, _ = lora_forward(x[row], weight, bias, given["a"][member], given["b"][member], 1)
        assert_close(out[row], alone, "law", terms=sum(given["a"].shape[1:]))


@given(st.integers(0, 50), st.integers(0, 50), st.integers(0, 50), st.sampled_from((2, 6, 10)), randoms)
def test_a_rotated_product_depends_only_on_the_distance(first, second, shift, width, random):
    query, key = random.normal(size=(2, 1, 1, 1, width))

    def product(query_position, key_position):
        rotated = (
            rotary_forward(vectors, *rotary_tables(np.array([position]), width, 100.0))[0]
            for vectors, position in ((query, query_position), (key, key_position))
        )
        return np.multiply(*rotated).sum()

    assert_close(product(first + shift, second + shift), product(first, second))


def test_positions_count_real_tokens_starting_at_the_prompts_length():
    mask = np.array([[0, 0, 1, 1], [1, 1, 0, 0], [0, 1, 1, 0]], bool)
    assert np.array_equal(token_positions(mask, 5)[mask], [5, 6, 5, 6, 5, 6])


def test_a_sinusoid_begins_with_the_sine_and_cosine_of_the_position_itself():
    vectors = sinusoidal(np.array([3]), 4)
    assert_close(vectors, [[np.sin(3), np.cos(3), np.sin(0.03), np.cos(0.03)]], "law")
