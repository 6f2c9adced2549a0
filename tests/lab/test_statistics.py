"""Paired tests equal scipy's or an enumeration, and are not too often significant where there is no difference."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binom, binomtest, t
from sklearn.calibration import calibration_curve

from minillm.lab.statistics import bootstrap, calibration, compare_all, holm, mcnemar, over_seeds, right_of

pytestmark = pytest.mark.checked

COUNTS = st.integers(0, 40)
SHARES = st.lists(st.floats(0, 1), min_size=1, max_size=12)


def discordant(one, two, both=3):
    """Two methods, with so many rows on which only the first, only the second, and both are right."""
    first = np.array([True] * one + [False] * two + [True] * both)
    return first, np.array([False] * one + [True] * two + [True] * both)


@given(COUNTS, COUNTS)
def test_mcnemar_is_a_binomial_test_of_the_rows_on_which_one_method_is_right(one, two):
    expected = binomtest(one, one + two).pvalue if one + two else 1
    assert mcnemar(*discordant(one, two)) == pytest.approx(expected, rel=1e-12)
    assert mcnemar(*discordant(one, two, both=9)) == mcnemar(*discordant(two, one))


def test_mcnemar_by_hand():
    # Of 5 rows, all for the first method: 2 of 32 outcomes are as extreme. 1 of 5: (1 + 5) * 2 of 32.
    assert [mcnemar(*discordant(*counts)) for counts in ((5, 0), (1, 4), (3, 3), (0, 0))] == [2 / 32, 12 / 32, 1, 1]


@pytest.mark.parametrize("rows", [1, 5, 16, 33])
def test_without_a_difference_the_p_value_of_mcnemar_is_uniform_or_larger(rows):
    values = np.array([mcnemar(*discordant(one, rows - one)) for one in range(rows + 1)])
    probabilities = binom.pmf(np.arange(rows + 1), rows, 0.5)
    for value in values:
        assert probabilities[values <= value].sum() <= value * (1 + 1e-12)


def test_bootstrap_samples_have_the_distribution_of_an_enumeration():
    (shares,) = bootstrap([np.array([[True, False, False, True, True]])])
    for count, probability in enumerate(binom.pmf(np.arange(6), 5, 0.6)):
        # 0.02 is four standard errors of 10,000 samples; the random seed is fixed.
        assert np.isclose(shares, count / 5).mean() == pytest.approx(probability, abs=0.02)


def test_the_rows_are_the_same_for_all_methods_and_seeds_add_noise():
    first = np.random.default_rng(1).random((1, 50)) < 0.7
    one, two = bootstrap([first, first])
    assert (one == two).all()
    # Three seeds that predict the same have no noise of their own.
    assert bootstrap([first.repeat(3, 0)])[0] == pytest.approx(one)
    # All rows of a seed are right or wrong, so that samples of them are equal: the noise is that of the seeds.
    (shares,) = bootstrap([np.array([[True] * 90, [False] * 90, [False] * 90])])
    error = math.sqrt((1 / 3 - 1 / 3 / 90) / 3)
    for level in (0.1, 0.75, 0.95):
        assert np.quantile(shares, level) - 1 / 3 == pytest.approx(t.ppf(level, 2) * error, rel=0.05)


def compare(first, second):
    return compare_all({"first": first[None], "second": second[None]})[0]


@settings(max_examples=8)
@given(st.integers(2, 12), st.integers(0, 99))
def test_compare_is_antisymmetric(rows, seed):
    first, second = np.random.default_rng(seed).random((2, rows)) < 0.6
    there, back = compare(first, second), compare(second, first)
    assert there["p"] == back["p"]
    assert there["difference"] == pytest.approx(first.mean() - second.mean())
    assert (there["low"], there["high"]) == pytest.approx((-back["high"], -back["low"]))
    assert there["low"] <= there["difference"] <= there["high"]
    same = compare(first, first)
    assert (same["difference"], same["low"], same["high"], same["p"]) == (0, 0, 0, 1)


def test_the_interval_is_that_of_the_normal_approximation_for_many_rows():
    random = np.random.default_rng(2)
    first, second = random.random(500) < 0.7, random.random(500) < 0.66
    found, error = compare(first, second), np.std(first * 1.0 - second) / math.sqrt(500)
    assert found["high"] - found["low"] == pytest.approx(2 * 1.96 * error, rel=0.05)


def test_without_a_difference_few_pairs_of_methods_with_three_seeds_are_significant():
    """Half of the rows are equally difficult for all, and seeds differ by points; the p-values are not yet adjusted."""
    random = np.random.default_rng(3)
    difficulty = np.where(random.random(200) < 0.5, random.random(200) < 0.8, 0.8)
    right = random.random((20, 3, 200)) < difficulty + random.normal(0, 0.02, (20, 3, 1))
    pairs = compare_all({str(n): one for n, one in enumerate(right)})
    assert len(pairs) == 20 * 19 / 2
    assert np.mean([pair["p"] < 0.05 for pair in pairs]) <= 0.05
    assert not [pair for pair in pairs if pair["verdict"] == "larger than noise"]


def test_a_large_difference_is_larger_than_noise_and_a_small_one_is_not():
    random = np.random.default_rng(4)
    shares = {"a": (3, 0.9), "b": (1, 0.88), "c": (1, 0.5)}
    right = {name: random.random((seeds, 300)) < share for name, (seeds, share) in shares.items()}
    found = compare_all(right)
    assert [(pair["first"], pair["second"], pair["verdict"]) for pair in found] == [
        ("a", "b", "not distinguishable"), ("a", "c", "larger than noise"), ("b", "c", "larger than noise"),
    ]  # fmt: skip
    assert found[2]["p"] == mcnemar(right["b"][0], right["c"][0])
    assert [pair["holm_p"] for pair in found] == holm([pair["p"] for pair in found])


def test_holm_by_hand():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([]) == []


@given(SHARES, st.randoms(use_true_random=False))
def test_holm_is_monotone_at_least_the_raw_p_value_and_independent_of_the_order(p, random):
    adjusted = holm(p)
    assert all(raw <= one <= min(1, len(p) * raw) for raw, one in zip(p, adjusted, strict=True))
    order = sorted(range(len(p)), key=lambda n: p[n])
    assert [adjusted[n] for n in order] == sorted(adjusted)
    random.shuffle(order)
    assert holm([p[n] for n in order]) == [adjusted[n] for n in order]


def test_calibration_equals_that_of_scikit_learn():
    random = np.random.default_rng(5)
    confidence, right = random.uniform(0.3, 1, 500), random.random(500) < 0.7
    found = calibration(confidence, right)
    accuracy, share = calibration_curve(right, confidence, n_bins=15)
    assert [point["accuracy"] for point in found["reliability"]] == pytest.approx(accuracy)
    assert [point["confidence"] for point in found["reliability"]] == pytest.approx(share)
    assert sum(point["rows"] for point in found["reliability"]) == 500


def test_the_calibration_error_by_hand():
    found = calibration(np.array([1.0, 0.95, 0.51, 0.52]), np.array([True, True, False, True]))
    assert [point["rows"] for point in found["reliability"]] == [2, 2]
    assert found["calibration_error"] == pytest.approx(0.5 * (1 - 0.975) + 0.5 * (0.515 - 0.5))


def test_several_seeds_are_one_result():
    common = {"train_seconds": 2.0, "eval_seconds": 1.0, "tokens_per_second": 10.0, "precision": "float32"}
    runs = [
        {**common, "accuracy": 0.75, "predicted": [0, 1, 1, 0], "confidence": [0.9] * 4},
        {**common, "accuracy": 0.25, "predicted": [1, 0, 1, 0], "confidence": [0.6] * 4, "train_seconds": 4.0},
    ]
    found, labels = over_seeds(runs, [0, 1, 1, 1], 2), [0, 1, 1, 1]
    assert right_of(runs, labels).tolist() == [[True, True, True, False], [False, False, True, False]]
    assert (found["accuracy"], found["train_seconds"], found["predicted"]) == (0.5, 3, [0, 1, 1, 0])
    # The variance of a mean of two seeds, 0.125 / 2, plus that of a share of four rows.
    assert found["standard_error"] == pytest.approx(math.sqrt(0.125 / 2 + 0.25 / 4))
    assert found["confusion"] == [[1, 1], [3, 3]]
    assert found["calibration_error"] == pytest.approx((abs(0.9 - 0.75) + abs(0.6 - 0.25)) / 2)
    assert (found["precision"], found["runs"]) == ("float32", runs)
    assert over_seeds(runs[:1], labels, 2)["standard_error"] == pytest.approx(math.sqrt(0.75 * 0.25 / 4))
