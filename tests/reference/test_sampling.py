"""Sampling in numpy: the distributions are those that are claimed, and so are the draws."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from minillm.generation import next_token_distribution as torch_distribution
from minillm.reference.sampling import next_token_distribution, sample
from tests.strategies import randoms
from tests.tolerances import assert_close

LOGITS = np.log(np.array([[0.1, 0.4, 0.05, 0.25, 0.2]]))
# The value that a chi-square variable of so many degrees of freedom exceeds once in ten thousand times.
CHI_SQUARE = {1: 15.14, 2: 18.42, 3: 21.11, 4: 23.51}


def test_a_temperature_of_one_is_softmax_and_zero_is_greedy():
    assert_close(next_token_distribution(LOGITS, 1.0), [[0.1, 0.4, 0.05, 0.25, 0.2]], "law")
    assert next_token_distribution(LOGITS, 0).tolist() == [[0, 1, 0, 0, 0]]


def test_a_temperature_of_one_half_squares_the_odds():
    squares = np.array([[0.1, 0.4, 0.05, 0.25, 0.2]]) ** 2
    assert_close(next_token_distribution(LOGITS, 0.5), squares / squares.sum(), "law")


def test_top_k_keeps_the_k_likeliest():
    assert_close(next_token_distribution(LOGITS, 1.0, top_k=2), [[0, 0.4 / 0.65, 0, 0.25 / 0.65, 0]], "law")
    assert_close(next_token_distribution(LOGITS, 1.0, top_k=9), next_token_distribution(LOGITS, 1.0), "law")


def test_top_p_keeps_the_smallest_set_that_holds_p():
    assert_close(next_token_distribution(LOGITS, 1.0, top_p=0.3), [[0, 1.0, 0, 0, 0]], "law")
    assert_close(next_token_distribution(LOGITS, 1.0, top_p=0.6), [[0, 0.4 / 0.65, 0, 0.25 / 0.65, 0]], "law")
    assert_close(next_token_distribution(LOGITS, 1.0, top_p=0.7), [[0, 0.4 / 0.85, 0, 0.25 / 0.85, 0.2 / 0.85]], "law")
    assert_close(next_token_distribution(LOGITS, 1.0, top_p=1.0), next_token_distribution(LOGITS, 1.0), "law")


def test_top_p_reads_what_top_k_has_left():
    both = next_token_distribution(LOGITS, 1.0, top_k=3, top_p=0.7)
    assert_close(both, [[0, 0.4 / 0.65, 0, 0.25 / 0.65, 0]], "law")


@given(
    st.sampled_from((0.3, 1.0, 2.0)),
    st.sampled_from((None, 1, 3, 50)),
    st.sampled_from((None, 0.2, 0.9, 1.0)),
    randoms,
)
def test_torch_draws_from_the_same_distribution(temperature, top_k, top_p, random):
    logits = 2 * random.normal(size=(3, 11))
    expected = next_token_distribution(logits, temperature, top_k, top_p)
    assert_close(torch_distribution(torch.from_numpy(logits), temperature, top_k, top_p), expected)


@pytest.mark.parametrize("choice", [{}, {"top_k": 3}, {"top_p": 0.7}, {"top_k": 4, "top_p": 0.9}], ids=str)
@pytest.mark.parametrize("temperature", [0.7, 1.0, 1.5])
def test_draws_have_the_distribution_by_chi_square(temperature, choice):
    expected = next_token_distribution(LOGITS, temperature, **choice)[0]
    assert _chi_square(expected, expected) < 1
    assert _chi_square(expected, next_token_distribution(LOGITS, temperature * 1.2, **choice)[0]) > 1


def _chi_square(claimed, drawn_from, draws=20_000):
    """Of draws from one distribution, judged by another: above 1, they disagree."""
    uniform = np.random.default_rng(0).random(draws)
    counts = np.bincount(sample(np.broadcast_to(drawn_from, (draws, 5)), uniform), minlength=5)
    possible = claimed > 0
    if counts[~possible].any():
        return np.inf
    statistic = ((counts - draws * claimed)[possible] ** 2 / (draws * claimed[possible])).sum()
    return statistic / CHI_SQUARE[possible.sum() - 1]


def test_every_uniform_number_falls_into_its_tokens_piece():
    probabilities = np.broadcast_to([0.25, 0.0, 0.5, 0.25], (5, 4))
    assert sample(probabilities, np.array([0.0, 0.2499, 0.25, 0.7499, 0.999999])).tolist() == [0, 0, 2, 2, 3]
