"""Positions in numpy."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from minillm.reference.positions import rotary_forward, rotary_tables, sinusoidal, token_positions
from tests.strategies import randoms
from tests.tolerances import assert_close

even_widths = st.sampled_from((2, 6, 10))


@given(st.integers(0, 50), st.integers(0, 50), st.integers(0, 50), even_widths, randoms)
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
