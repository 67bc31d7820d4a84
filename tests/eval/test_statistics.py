"""Intervals against published values and against resampling done the slow way."""

import numpy as np
import pytest

from eval.statistics import paired_gain, wilson


@pytest.mark.parametrize(
    ("correct", "n", "low", "high"),
    [  # Newcombe 1998, table I, method 3
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
        (20, 20, 0.8389, 1.0),
    ],
)
def test_wilson(correct, n, low, high):
    assert wilson(correct, n) == pytest.approx((low, high), abs=5e-5)


def test_wilson_bounds_are_exact_at_the_ends():
    for n in range(1, 200):
        assert wilson(0, n)[0] == 0.0
        assert wilson(n, n)[1] == 1.0


@pytest.mark.parametrize(("correct", "n"), [(0, 0), (-1, 5), (6, 5)])
def test_wilson_refuses_what_is_no_proportion(correct, n):
    with pytest.raises(ValueError, match="no proportion"):
        wilson(correct, n)


def test_paired_gain_is_the_bootstrap_over_questions():
    rng = np.random.default_rng(1)
    before = rng.random(300) < 0.5
    after = before ^ (rng.random(300) < 0.2)
    difference, low, high = paired_gain(before.tolist(), after.tolist())
    assert difference == pytest.approx(after.mean() - before.mean())
    drawn = rng.integers(300, size=(10_000, 300))
    resampled = (after[drawn].astype(int) - before[drawn]).mean(axis=1)
    assert (low, high) == pytest.approx(np.quantile(resampled, [0.025, 0.975]), abs=0.005)
    assert paired_gain(before.tolist(), after.tolist()) == (difference, low, high)


def test_paired_gain_of_equal_and_of_opposite_runs():
    assert paired_gain([True, False], [True, False]) == (0.0, 0.0, 0.0)
    assert paired_gain([False] * 5, [True] * 5) == (1.0, 1.0, 1.0)


def test_paired_gain_refuses_other_questions():
    with pytest.raises(ValueError, match="same questions"):
        paired_gain([True], [True, False])
    with pytest.raises(ValueError, match="same questions"):
        paired_gain([], [])
