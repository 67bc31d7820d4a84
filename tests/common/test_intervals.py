"""Intervals against published values and against resampling done the slow way."""

import math

import numpy as np
import pytest

from r1_aqa_repro.common.intervals import (
    clopper_pearson,
    detectable_difference,
    mcnemar,
    mean_interval,
    paired_gain,
    unpaired_difference,
    wilson,
)


@pytest.mark.parametrize(
    ("correct", "n", "low", "high"),
    [  # Newcombe 1998, table I, method 3
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
        (20, 20, 0.8389, 1.0),
        (2.5, 10, 0.0809, 0.5578),  # a share of answers: (0.25 + 0.1921 -+ 1.96 sqrt(0.01875 + 0.0096)) / 1.3841
    ],
)
def test_wilson(correct, n, low, high):
    assert wilson(correct, n) == pytest.approx((low, high), abs=5e-5)


@pytest.mark.parametrize(
    ("correct", "n", "low", "high"),
    [  # Newcombe 1998, table I, method 5
        (81, 263, 0.2527, 0.3676),
        (15, 148, 0.0578, 0.1617),
        (0, 20, 0.0, 0.1684),
        (1, 29, 0.0009, 0.1776),
        (20, 20, 0.8316, 1.0),  # 0.025 ** (1 / 20)
    ],
)
def test_clopper_pearson(correct, n, low, high):
    assert clopper_pearson(correct, n) == pytest.approx((low, high), abs=5e-5)
    wider = clopper_pearson(correct, n, error=0.001)
    assert wider[0] <= low + 5e-5 and high - 5e-5 <= wider[1] and wider[1] - wider[0] > high - low


@pytest.mark.parametrize("n", [*range(1, 20), 199, 1000])
def test_wilson_bounds_are_exact_at_the_ends(n):
    assert (wilson(0, n)[0], wilson(n, n)[1]) == (0.0, 1.0)


@pytest.mark.parametrize(("correct", "n"), [(0, 0), (-1, 5), (6, 5)])
@pytest.mark.parametrize("interval", [wilson, clopper_pearson])
def test_what_is_no_proportion_is_refused(correct, n, interval):
    with pytest.raises(ValueError, match="no proportion"):
        interval(correct, n)


@pytest.mark.parametrize("answers", [1, 4])  # of four a verdict is a share; the bootstrap is still one over questions
def test_paired_gain_is_the_bootstrap_over_questions(answers):
    rng = np.random.default_rng(1)
    before, other = rng.integers(answers + 1, size=(2, 300)) / answers
    after = np.where(rng.random(300) < 0.4, other, before)
    difference, low, high = paired_gain(before.tolist(), after.tolist())
    assert difference == pytest.approx(after.mean() - before.mean())
    drawn = rng.integers(300, size=(10_000, 300))
    resampled = (after[drawn] - before[drawn]).mean(axis=1)
    assert (low, high) == pytest.approx(np.quantile(resampled, [0.025, 0.975]), abs=0.005)
    assert paired_gain(before.tolist(), after.tolist()) == (difference, low, high)


def test_paired_gain_of_equal_and_of_opposite_runs():
    assert paired_gain([True, False], [True, False]) == (0.0, 0.0, 0.0)
    assert paired_gain([False] * 5, [True] * 5) == (1.0, 1.0, 1.0)


@pytest.mark.parametrize(("before", "after"), [([True], [True, False]), ([], [])])
def test_paired_gain_refuses_other_questions(before, after):
    with pytest.raises(ValueError, match="same questions"):
        paired_gain(before, after)


@pytest.mark.parametrize(
    ("only_first", "only_second", "p"),
    [
        (0, 0, 1.0),
        (3, 3, 1.0),
        (0, 1, 1.0),
        (0, 5, 2 / 32),  # 2 * 1 / 2^5
        (1, 5, 14 / 64),  # 2 * (1 + 6) / 2^6
        (2, 8, 112 / 1024),  # 2 * (1 + 10 + 45) / 2^10
        (10, 2, 158 / 4096),  # 2 * (1 + 12 + 66) / 2^12
        (0, 1000, 2 / 2**1000),
    ],
)
def test_mcnemar(only_first, only_second, p):
    assert mcnemar(only_first, only_second) == pytest.approx(p, rel=1e-12)
    assert mcnemar(only_second, only_first) == mcnemar(only_first, only_second)


def test_unpaired_difference():
    # Newcombe 1998 (interval estimation for the difference), table II, method 10
    assert unpaired_difference(56, 70, 48, 80) == pytest.approx((0.2, 0.0524, 0.3339), abs=5e-5)
    assert unpaired_difference(9, 10, 3, 10) == pytest.approx((0.6, 0.1705, 0.8090), abs=5e-5)
    assert unpaired_difference(48, 80, 56, 70) == pytest.approx((-0.2, -0.3339, -0.0524), abs=5e-5)


def test_detectable_difference_is_found_in_four_of_five_runs():
    share, n = 0.645, 1000
    truth = share + detectable_difference(share, n)
    correct = np.random.default_rng(5).binomial(n, truth, size=4000)
    missed = [low <= share <= high for low, high in (wilson(int(one), n) for one in correct)]
    # the normal approximation and simulation error: 0.8 within 0.02 (3 standard deviations)
    assert np.mean(missed) == pytest.approx(0.2, abs=0.025)


def test_mean_interval_by_hand():
    """Values 1, 2, 3, 6: mean 3, sample variance 14/3, standard error sqrt(14/12)."""
    half = 1.959964 * math.sqrt(14 / 12)
    assert mean_interval([1.0, 2.0, 3.0, 6.0]) == pytest.approx((3.0, 3.0 - half, 3.0 + half), abs=1e-6)
    with pytest.raises(ValueError, match="no spread"):
        mean_interval([1.0])
