"""Sampling in numpy: the distributions are correct, and the samples follow them."""

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
# The 99.99 % quantiles of the chi-square distribution by degrees of freedom.
CHI_SQUARE = {1: 15.14, 2: 18.42, 3: 21.11, 4: 23.51}


def test_a_temperature_of_one_is_softmax_and_zero_is_greedy():
    assert_close(next_token_distribution(LOGITS, 1.0), [[0.1, 0.4, 0.05, 0.25, 0.2]], "law")
    assert next_token_distribution(LOGITS, 0).tolist() == [[0, 1, 0, 0, 0]]


def test_a_temperature_of_one_half_squares_the_odds():
    squares = np.array([[0.1, 0.4, 0.05, 0.25, 0.2]]) ** 2
    assert_close(next_token_distribution(LOGITS, 0.5), squares / squares.sum(), "law")


def test_top_k_leaves_the_k_most_likely_tokens():
    assert_close(next_token_distribution(LOGITS, 1.0, top_k=2), [[0, 0.4 / 0.65, 0, 0.25 / 0.65, 0]], "law")
    assert_close(next_token_distribution(LOGITS, 1.0, top_k=9), next_token_distribution(LOGITS, 1.0), "law")


def test_top_p_leaves_the_smallest_set_with_probability_p():
    assert_close(next_token_distribution(LOGITS, 1.0, top_p=0.3), [[0, 1.0, 0, 0, 0]], "law")
    assert_close(next_token_distribution(LOGITS, 1.0, top_p=0.6), [[0, 0.4 / 0.65, 0, 0.25 / 0.65, 0]], "law")
    assert_close(next_token_distribution(LOGITS, 1.0, top_p=0.7), [[0, 0.4 / 0.85, 0, 0.25 / 0.85, 0.2 / 0.85]], "law")
    assert_close(next_token_distribution(LOGITS, 1.0, top_p=1.0), next_token_distribution(LOGITS, 1.0), "law")


def test_top_p_applies_to_the_tokens_left_by_top_k():
    both = next_token_distribution(LOGITS, 1.0, top_k=3, top_p=0.7)
    assert_close(both, [[0, 0.4 / 0.65, 0, 0.25 / 0.65, 0]], "law")


@given(
    st.sampled_from((0.3, 1.0, 2.0)), st.sampled_from((None, 1, 3, 50)), st.sampled_from((None, 0.2, 0.9, 1.0)), randoms
)
def test_torch_has_the_same_distribution(temperature, top_k, top_p, random):
    logits = 2 * random.normal(size=(3, 11))
    expected = next_token_distribution(logits, temperature, top_k, top_p)
    assert_close(torch_distribution(torch.from_numpy(logits), temperature, top_k, top_p), expected)


@pytest.mark.parametrize("choice", [{}, {"top_k": 3}, {"top_p": 0.7}, {"top_k": 4, "top_p": 0.9}], ids=str)
@pytest.mark.parametrize("temperature", [0.7, 1.0, 1.5])
def test_samples_follow_the_distribution_by_a_chi_square_test(temperature, choice):
    expected = next_token_distribution(LOGITS, temperature, **choice)[0]
    assert _chi_square(expected, expected) < 1
    assert _chi_square(expected, next_token_distribution(LOGITS, temperature * 1.2, **choice)[0]) > 1


def _chi_square(claimed, drawn_from, draws=20_000):
    """The statistic of samples from one distribution under another, relative to its quantile: above 1, they differ."""
    uniform = np.random.default_rng(0).random(draws)
    counts = np.bincount(sample(np.broadcast_to(drawn_from, (draws, 5)), uniform), minlength=5)
    possible = claimed > 0
    if counts[~possible].any():
        return np.inf
    statistic = ((counts - draws * claimed)[possible] ** 2 / (draws * claimed[possible])).sum()
    return statistic / CHI_SQUARE[possible.sum() - 1]


def test_every_uniform_number_falls_into_the_interval_of_its_token():
    probabilities = np.broadcast_to([0.25, 0.0, 0.5, 0.25], (5, 4))
    assert sample(probabilities, np.array([0.0, 0.2499, 0.25, 0.7499, 0.999999])).tolist() == [0, 0, 2, 2, 3]
