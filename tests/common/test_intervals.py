"""Intervals against published values and against resampling done the slow way."""

import itertools
import math
from fractions import Fraction

import numpy as np
import pytest
from scipy.stats import norm, t

from r1_aqa_repro.common.intervals import (
    Variances,
    clopper_pearson,
    detectable_difference,
    effective_size,
    mcnemar,
    mean_interval,
    paired_gain,
    paired_test,
    unpaired_difference,
    variances,
    wilson,
    would_tell,
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


# squared ratios of the 97.5 % quantiles of Student's t: 2.5706 / 4.3027, 3.1824 / 12.7062, 2.3646 / 3.1824
T5_T2, T3_T1, T7_T3 = 0.3569359, 0.0627322, 0.5520801


@pytest.mark.parametrize(
    ("shares", "clusters", "size"),
    [
        # mean 1/2; sums of residuals 1, -1, 0: (3/2 * 2) / (6/5 * 6/4) = 5/3
        ([1, 1, 0, 0, 1, 0], "aabbcc", 6 / (5 / 3) * T5_T2),
        # mean 3/4; sums of residuals 3/4, -3/4: (2 * 9/8) / (4/3 * 3/4) = 9/4
        ([1, 1, 1, 0], "aaab", 4 / (9 / 4) * T3_T1),
        # shares 1/2, 1/2, 0, 1: mean 1/2; sums of residuals 0, -1/2, 1/2: (3/2 * 1/2) / (4/3 * 1/2) = 9/8
        ([0.5, 0.5, 0, 1], "aabc", 4 / (9 / 8) * (3.1824463 / 4.3026527) ** 2),
        # every cluster has one of two right, less variance than chance gives: no more questions than there are
        ([1, 0] * 4, "aabbccdd", 8 * T7_T3),
        ([1, 1, 1, 1], "aaab", 16 / 10),  # all right: (3 + 1)^2 / (3^2 + 1^2)
        ([0] * 6, "aabbcc", 3),
        ([1, 0, 0, 1], "aaaa", 1),
        ([1, 0, 0, 1], "abcd", 4),
        ([1, 1], "ab", 2),
    ],
)
def test_effective_size_by_hand(shares, clusters, size):
    assert effective_size(shares, clusters) == pytest.approx(size, rel=1e-6)  # the quantiles have seven digits
    backwards = effective_size(shares[::-1], clusters[::-1])
    assert backwards == pytest.approx(size, rel=1e-6)


@pytest.mark.parametrize("correct", [0, 20, 37.5, 60])
def test_wilson_of_a_smaller_sample_has_the_same_share_and_the_width_of_that_sample(correct):
    assert wilson(correct, 60, 60.0) == wilson(correct, 60)
    assert wilson(correct, 60, 20) == pytest.approx(wilson(correct / 3, 20), abs=1e-12)
    low, high = wilson(correct, 60, 0.3)  # two clips can have so small a size
    assert 0 <= low <= correct / 60 <= high <= 1


def drawn(rng):
    """Sixty clusters of 1 to 7 questions each: their numbers, one a question, and whether two equally good runs are
    right, [2, n]. The mean is 0.7, the correlation of two questions of a cluster 1 / (1 + 1.4 + 0.6) = 1/3."""
    of = np.repeat(np.arange(60), rng.integers(1, 8, size=60))
    probabilities = rng.beta(1.4, 0.6, size=(2, 60))
    return of.tolist(), (rng.random((2, len(of))) < probabilities[:, of]).astype(float).tolist()


def test_intervals_of_clusters_cover_and_those_of_questions_do_not():
    """Standard error of a coverage of 0.95 in 1,500 samples: 0.006; the naive ones miss by far more."""
    rng, covered = np.random.default_rng(3), []
    for _ in range(1500):
        of, (right, _) = drawn(rng)
        both = (wilson(sum(right), len(of)), wilson(sum(right), len(of), effective_size(right, of)))
        covered.append([low <= 0.7 <= high for low, high in both])
    naive, clustered = np.mean(covered, axis=0)
    assert naive < 0.87
    assert 0.93 <= clustered <= 0.97


def test_paired_intervals_and_tests_of_clusters_hold_and_those_of_questions_do_not():
    """Two equally good runs. Standard error of a share of 0.95 or 0.05 in 1,000 samples: 0.007."""
    rng, covered, rejected = np.random.default_rng(4), [], []
    for _ in range(1000):
        of, (before, after) = drawn(rng)
        intervals = [paired_gain(before, after, key, resamples=400)[1:] for key in (None, of)]
        covered.append([low <= 0 <= high for low, high in intervals])
        rejected.append([paired_test(before, after, key) < 0.05 for key in (None, of)])
    naive, clustered = np.mean(covered, axis=0)
    assert naive < 0.87
    assert 0.93 <= clustered <= 0.97
    naive, clustered = np.mean(rejected, axis=0)
    assert naive > 0.1
    assert clustered < 0.07


def test_every_question_twice_about_its_clip_is_worth_half_as_many():
    rng = np.random.default_rng(6)
    before, after = rng.integers(2, size=(2, 200)).astype(float)
    twice_before, twice_after, clips = (np.repeat(one, 2).tolist() for one in (before, after, np.arange(200)))
    size = effective_size(twice_before, clips)
    # (n - 1) / n of an unbiased variance, once for 400 and once for 200, and t of 399 and of 199 degrees
    assert size == pytest.approx(400 * 199 / 399 * (1.965927 / 1.971957) ** 2, rel=1e-6)
    bounds = wilson(sum(twice_before), 400, size)
    assert bounds == pytest.approx(wilson(before.sum(), 200), abs=0.001)  # of 0.068 to either side
    once = paired_gain(before.tolist(), after.tolist())
    # resamples are the same, percentiles are expanded by 1.0086 = sqrt(200 / 199) * 1.971957 / 1.959964
    difference, low, high = paired_gain(twice_before, twice_after, clips)
    assert difference == once[0]
    assert high - low == pytest.approx(1.0086 * (once[2] - once[1]), rel=0.03)  # the resamples are of steps of 0.005
    once = paired_test(before.tolist(), after.tolist())
    assert paired_test(twice_before, twice_after, clips) == pytest.approx(once, rel=1e-9)


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


@pytest.mark.parametrize(
    ("answers", "gain"),
    [  # as before clusters were known
        (1, (0.04, -0.03341666666666659, 0.11666666666666667)),
        (3, (0.018888888888888886, -0.04, 0.07888888888888888)),
    ],
)
@pytest.mark.parametrize("clusters", [None, list(range(300))])
def test_paired_gain_without_shared_clusters_is_to_the_bit_that_over_questions(answers, gain, clusters):
    before, after = (np.random.default_rng(8).integers(answers + 1, size=(2, 300)) / answers).tolist()
    assert paired_gain(before, after, clusters, seed=5) == gain


@pytest.mark.parametrize("answers", [1, 3])
def test_paired_gain_of_clusters_is_the_bootstrap_over_clusters(answers):
    rng = np.random.default_rng(2)
    before, after = rng.integers(answers + 1, size=(2, 300)) / answers
    of = rng.integers(90, size=300)
    keys = [f"clip {number}" for number in of]
    difference, low, high = paired_gain(before.tolist(), after.tolist(), keys)
    assert difference == pytest.approx(after.mean() - before.mean())
    clusters = [after[of == number] - before[of == number] for number in np.unique(of)]
    resampled = [
        np.concatenate([clusters[place] for place in places]).mean()
        for places in rng.integers(len(clusters), size=(3000, len(clusters)))
    ]
    k = len(clusters)
    tail = norm.cdf(math.sqrt(k / (k - 1)) * t.ppf(0.025, k - 1))  # expanded
    # of 0.08 to either side; a quantile of 3,000 draws has a standard error of 0.002
    assert (low, high) == pytest.approx(np.quantile(resampled, [tail, 1 - tail]), abs=0.007)


def test_paired_gain_on_a_single_clip_bounds_nothing():
    assert paired_gain([0, 0, 1], [1, 1, 1], "aaa") == (pytest.approx(2 / 3), -1.0, 1.0)


def test_seeds_are_pooled_by_clip():
    """Three seeds of one outcome tell no more than one; three that differ tell more, but not as other clips would."""
    rng = np.random.default_rng(9)
    before, after = rng.integers(2, size=(2, 100)).astype(float).tolist()
    clips = (np.arange(100) // 2).tolist()
    one = paired_gain(before, after, clips)
    assert paired_gain(before * 3, after * 3, clips * 3) == pytest.approx(one, abs=1e-12)
    assert paired_test(before * 3, after * 3, clips * 3) == pytest.approx(paired_test(before, after, clips), rel=1e-9)
    _, low, high = paired_gain(before * 3, after * 3)
    assert high - low < 0.7 * (one[2] - one[1])


def test_paired_gain_of_equal_and_of_opposite_runs():
    assert paired_gain([True, False], [True, False]) == (0.0, 0.0, 0.0)
    assert paired_gain([False] * 5, [True] * 5) == (1.0, 1.0, 1.0)


@pytest.mark.parametrize(("before", "after"), [([True], [True, False]), ([], [])])
def test_paired_gain_refuses_other_questions(before, after):
    for compared in (paired_gain, paired_test):
        with pytest.raises(ValueError, match="same questions"):
            compared(before, after)


def test_a_cluster_is_needed_of_each_question():
    for refused in (
        lambda: paired_gain([1, 0], [0, 1], "a"),
        lambda: paired_test([1, 0], [0, 1], "abc"),
        lambda: effective_size([1, 0], "a"),
        lambda: effective_size([], ""),
    ):
        with pytest.raises(ValueError, match="of each question a cluster is needed"):
            refused()


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


@pytest.mark.parametrize(
    ("excess", "p"),  # of better over worse questions in each cluster
    [
        ((2, 1), Fraction(2, 4)),  # sums 3, 1, -1, -3: two of four are as far from 0
        ((3, -1), Fraction(4, 4)),  # sums 4, 2, -2, -4: all are as far as 2
        ((2, 2, 1, -1), Fraction(6, 16)),  # 6 in one way and 4 in two, and as many below 0
        ((4,), Fraction(1)),
        ((2, -2, 0), Fraction(1)),
        ((1, 1, 1, 1, 1, 0), Fraction(2, 32)),
    ],
)
def test_paired_test_by_hand(excess, p):
    pairs = [(size > 0, cluster) for cluster, size in enumerate(excess) for _ in range(abs(size))]
    better, clusters = [one for one, _ in pairs], [cluster for _, cluster in pairs]
    assert paired_test([not one for one in better], better, clusters) == pytest.approx(float(p), rel=1e-12)


@pytest.mark.parametrize("seed", range(6))
def test_paired_test_is_the_share_of_all_swaps_of_clusters(seed):
    rng = np.random.default_rng(seed)
    before, after = rng.integers(3, size=(2, 30)) / 2  # of two answers; a gain counts whole, however large
    of = rng.integers(10, size=30)
    excess = np.bincount(of, np.sign(after - before))
    sums = [abs(np.dot(signs, excess)) for signs in itertools.product((-1, 1), repeat=len(excess))]
    p = np.mean(np.array(sums) >= abs(excess.sum()))
    assert paired_test(before.tolist(), after.tolist(), of.tolist()) == pytest.approx(p, rel=1e-12)
    assert paired_test(after.tolist(), before.tolist(), of.tolist()) == pytest.approx(p, rel=1e-12)


def test_paired_test_without_shared_clusters_is_mcnemars():
    before, after = (np.random.default_rng(1).integers(3, size=(2, 200)) / 2).tolist()
    split = [sum(one > other for one, other in zip(*pair, strict=True)) for pair in ((before, after), (after, before))]
    assert paired_test(before, after) == paired_test(before, after, range(200)) == mcnemar(*split)


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


# Mean squares by hand: the mean is 1.5; of questions 2 (1.5^2 + 0.5^2 + 1.5^2 + 2.5^2) / 3 = 22 / 3, of seeds
# 4 (0.5^2 + 0.5^2) / 1 = 2, of what is left (30 - 22 - 2) / 3 = 2
GAINS = [[4.0, 0, 4, 0], [2, 2, 2, -2]]


def test_variances_by_hand():
    assert variances(GAINS, range(4)) == Variances(pytest.approx((22 / 3 - 2) / 2), 0, pytest.approx(2), 4)
    # seeds that differ everywhere by 6: 4 (3^2 + 3^2) / 1 = 72, and nothing left
    apart = variances([[1.0, 2, 3, 4], [7, 8, 9, 10]], range(4))
    assert (apart.seed, apart.residual) == (pytest.approx(72 / 4), pytest.approx(0, abs=1e-12))
    assert apart.question == pytest.approx(5 / 3)
    # one seed: the plain variance of its gains
    assert variances(GAINS[:1], range(4)) == Variances(pytest.approx(16 / 3), None, None, 4)
    assert variances(GAINS, "aaaa") == Variances(None, None, None, 1)


def test_questions_that_repeat_their_clip_add_nothing():
    doubled = [[gain for gain in row for _ in range(2)] for row in GAINS]
    assert variances(doubled, "aabbccdd") == variances(GAINS, "abcd")


def test_a_study_of_the_size_that_is_named_decides_in_four_of_five():
    """Drawn from known variances, at the smallest number of questions that `would_tell` takes. 2,000 draws: their share
    is within 0.036 of 0.8 but for 1 in 16,000."""
    known, margin, seeds, rng = Variances(9.0, 0.02, 4.0, 0), 1.0, 3, np.random.default_rng(0)
    clips = next(count for count in range(2, 10_000) if would_tell(margin, known, seeds, count))
    assert not would_tell(margin, known, seeds, clips - 1)
    decided = 0
    for _ in range(2_000):
        of_question = rng.normal(0, 3, clips)
        of_seed = rng.normal(0, 0.02**0.5, (seeds, 1))
        gains = margin + of_question + of_seed + rng.normal(0, 2, (seeds, clips))  # [S, k]
        of_each = gains.mean(axis=0)
        decided += of_each.mean() > 1.96 * of_each.std(ddof=1) / clips**0.5
    assert decided / 2_000 == pytest.approx(0.8, abs=0.036)
