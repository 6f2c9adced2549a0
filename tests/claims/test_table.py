"""The table of claims: the verdicts, and that README.md has the table of the recorded results."""

from pathlib import Path

import numpy as np
import pytest

from benchmarks.claims import CLAIMS, COMMANDS, PAR, RESULTS, Figure, chosen, nats, over_seeds, points, table, verdict
from minillm.errors import InputError

README = Path(__file__).parents[2] / "README.md"


@pytest.mark.parametrize(
    ("value", "low", "high", "half", "bound", "expected"),
    [
        (3.0, 1.0, 5.0, 2.0, 0.0, "confirmed"),
        (-3.0, -5.0, -1.0, 2.0, 0.0, "refuted"),
        # An interval of ±2 around 1 must become half as wide: four times the rows.
        (1.0, -1.0, 3.0, 2.0, 0.0, "undecided (400 rows)"),
        (1.0, -9.0, 9.0, 0.5, 0.0, "undecided (more seeds)"),
        (0.0, -1.5, 1.5, 1.5, PAR, "confirmed"),
        (-1.0, -3.0, 1.0, 2.0, PAR, "undecided (400 rows)"),
        (-5.0, -7.0, -3.0, 2.0, PAR, "refuted"),
        (0.0, -2.0, 2.0, 2.0, 0.0, "undecided (no difference)"),
    ],
)
def test_a_verdict_compares_the_interval_with_the_bound(value, low, high, half, bound, expected):
    assert verdict(Figure(value, low, high, "points", 100, half), bound) == expected


def test_a_difference_in_points_is_paired():
    """Where two methods are right in the same rows but one, the interval is that of the one row."""
    first = np.arange(100)[None] % 2 == 0
    second = first.copy()
    second[0, 0] = False
    found = points(first, second)
    assert (found.value, found.rows) == (pytest.approx(1.0), 100)
    assert 0 <= found.low < 1 < found.high <= 4
    # Two seeds, of which one is always right: the rows are a small part of the noise.
    seeds = points(np.concatenate((first, np.ones_like(first))), np.full((1, 100), 0.5))
    assert 0 < seeds.half < (seeds.high - seeds.low) / 20
    alone = points(first, np.full((1, 100), 0.25))
    assert alone.value == pytest.approx(25)
    assert (alone.low, alone.high) == (pytest.approx(25 - 9.8, abs=1.1), pytest.approx(25 + 9.8, abs=1.1))


def test_a_trial_that_the_budget_left_out_is_named():
    with pytest.raises(InputError, match=r"rank\.json has no trial with \{'r': 99\}; run `minillm lab rank"):
        chosen("rank", r=99)


def test_losses_are_compared_on_the_same_texts_and_ratios_over_seeds():
    found = nats([(3.0, 10), (1.0, 10)], [(1.0, 10), (1.0, 10)])
    assert (found.value, (found.high - found.low) / 2) == pytest.approx((0.1, 1.96 * 0.1))
    found = over_seeds([1.0, 2.0, 3.0], "times")
    assert (found.value, found.high - found.low) == pytest.approx((2.0, 2 * 4.30 / 3**0.5))


@pytest.mark.slow
def test_the_readme_has_the_table_of_the_recorded_results():
    text = README.read_text("utf-8")
    assert table() in text
    for run in {claim.run for claim in CLAIMS}:
        assert (RESULTS / f"{run}.json").exists()
        assert f"minillm {COMMANDS[run]}" in text
