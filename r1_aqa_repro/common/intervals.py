"""Intervals for accuracies and for differences of accuracies, and what so many questions can tell apart.

Questions about one clip are no independent draws. Where questions share a clip, or anything else that makes them alike,
say so through `clusters`: of each question the key of its cluster. Questions that share none count as they are.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

_Z95 = 1.959963984540054  # 97.5 % quantile of the normal distribution
_Z80 = 0.8416212335729143  # 80 % quantile


def wilson(correct: float, n: int, size: float | None = None) -> tuple[float, float]:
    """95 % Wilson score interval of a proportion, as fractions 0-1.

    `correct` is a sum of shares if questions were asked repeatedly; `n` is still the number of questions, because the
    answers to one question are no independent draws. Shares vary less from question to question than verdicts of the
    same mean do, so that the interval is on the safe side. Questions that share clips are no independent draws either:
    `size` is the `effective_size` of such a sample (default: `n`).

    Raises:
        ValueError: `n` is not positive or `correct` is not in 0..n.
    """
    if n <= 0 or not 0 <= correct <= n:
        raise ValueError(f"{correct} correct of {n} is no proportion")
    size = n if size is None else size
    share, weight = correct / n, _Z95**2 / size
    centre = (share + weight / 2) / (1 + weight)
    half = _Z95 * math.sqrt(share * (1 - share) / size + weight / (4 * size)) / (1 + weight)
    # at 0 and at n a bound is the share itself, which rounding must not miss
    return max(0.0, min(share, centre - half)), min(1.0, max(share, centre + half))


def clopper_pearson(correct: int, n: int, error: float = 0.05) -> tuple[float, float]:
    """Exact interval of a proportion, as fractions 0-1, which misses it with a probability of `error` at most
    (Clopper & Pearson 1934).

    Raises:
        ValueError: `n` is not positive or `correct` is not in 0..n.
    """
    from scipy.special import betaincinv  # slow to import

    if n <= 0 or not 0 <= correct <= n:
        raise ValueError(f"{correct} correct of {n} is no proportion")
    low = betaincinv(correct, n - correct + 1, error / 2) if correct else 0.0
    high = betaincinv(correct + 1, n - correct, 1 - error / 2) if correct < n else 1.0
    return float(low), float(high)


def effective_size(shares: Sequence[float], clusters: Sequence[Hashable]) -> float:
    """How many independent questions would tell as much about the mean as these do; never more than there are.

    The number n of questions, divided by the design effect (Rao and Scott 1992, Biometrics 48): the variance of their
    mean as a ratio of two sums over k clusters, linearised, over the variance of the mean of n independent questions;
    at least 1. As the variance is an estimate from k clusters, the size is also multiplied by (t(n - 1) / t(k - 1))^2,
    the 97.5 % quantiles of Student's t (Korn and Graubard 1998, Survey Methodology 24). If no cluster is shared, the
    result is n. Of intervals for such a size Franco and others 2019 (Journal of Survey Statistics and Methodology 7)
    recommend Wilson's.

    If all shares are equal, or there is a single cluster, there is no such estimate. The questions of a cluster are
    then taken to be right or wrong together, the worst case: clusters of equal size count as one question each.

    Args:
        shares: of each question's answers, how many are right, 0-1.
        clusters: of each question the key of its cluster.

    Returns:
        A number of questions, above 0 and at most n; it need not be whole.

    Raises:
        ValueError: the lists are empty or differ in length.
    """
    values, of = np.asarray(shares, dtype=float), _numbered(clusters, len(shares))  # [n], [n]
    sizes = np.bincount(of)  # [k]
    n, k = len(values), len(sizes)
    if k == n:
        return n
    if k == 1 or np.ptp(values) == 0:
        return float(n**2 / np.sum(sizes**2))
    from scipy.special import stdtrit  # slow to import, and needed here only

    residuals = values - values.mean()
    independent = n / (n - 1) * np.sum(residuals**2)  # both are variances of the sum over questions
    clustered = k / (k - 1) * np.sum(np.bincount(of, weights=residuals) ** 2)
    few = stdtrit(n - 1, 0.975) / stdtrit(k - 1, 0.975)
    return float(n / max(1.0, clustered / independent) * few**2)


def unpaired_difference(correct: float, n: int, other_correct: float, other_n: int) -> tuple[float, float, float]:
    """Difference of two proportions of independent samples with its 95 % interval (Newcombe 1998, method 10).

    Returns:
        (first - other, low, high), fractions -1 to 1.
    """
    share, other = correct / n, other_correct / other_n
    low, high = wilson(correct, n)
    other_low, other_high = wilson(other_correct, other_n)
    difference = share - other
    below = math.hypot(share - low, other_high - other)
    above = math.hypot(high - share, other - other_low)
    return difference, difference - below, difference + above


def detectable_difference(share: float, n: int) -> float:
    """The smallest true difference, as a fraction, from a fixed `share` that `n` questions reveal in 4 of 5 runs.

    Two-sided test at 5 %, power 80 %, normal approximation.
    """
    return (_Z95 + _Z80) * math.sqrt(share * (1 - share) / n)


@dataclass(frozen=True)
class Variances:
    """What the differences between two runs vary by, over questions and over seeds.

    Attributes:
        question: between clusters of questions, in what all seeds gain on them; of one seed the residual is in it. None
            if there is a single cluster.
        seed: between seeds, in what they gain on all questions; None of one seed.
        residual: what is left, of one seed on one cluster; None of one seed.
        clusters: how many these are estimates from.
    """

    question: float | None
    seed: float | None
    residual: float | None
    clusters: int


def variances(gains: Sequence[Sequence[float]], clusters: Sequence[Hashable]) -> Variances:
    """The components of variance of gains, [seeds][questions], in their unit squared.

    They are those of a two-way analysis of variance with random effects, clusters of questions by seeds, one value a
    cell (Searle, Casella and McCulloch 1992, Variance Components); an estimate below 0 is 0. The value of a cluster is
    the sum over its questions of their distances from the mean, over the mean number of questions of a cluster: the
    mean of all questions, linearised as the ratio of two sums that it is.

    Args:
        gains: of each seed, on each question in the same order.
        clusters: of each question the key of its cluster.

    Raises:
        ValueError: the lists are empty or differ in length.
    """
    table = np.asarray(gains, dtype=np.float64)  # [S, n]
    of = _numbered(clusters, table.shape[1])  # [n]
    sizes = np.bincount(of)  # [k]
    sums = np.stack([np.bincount(of, weights=row) for row in table - table.mean()])
    values = sums / sizes.mean()  # [S, k], their mean is 0
    seeds, k = values.shape
    if k == 1:
        return Variances(None, None, None, k)
    of_cluster, of_seed = values.mean(axis=0), values.mean(axis=1)
    between = seeds * float(np.sum(of_cluster**2)) / (k - 1)  # mean squares, here and below
    if seeds == 1:
        return Variances(between, None, None, k)
    left = float(np.sum((values - of_cluster - of_seed[:, None]) ** 2)) / ((k - 1) * (seeds - 1))
    across = k * float(np.sum(of_seed**2)) / (seeds - 1)
    return Variances(max(0.0, (between - left) / seeds), max(0.0, (across - left) / k), left, k)


def would_tell(margin: float, found: Variances, seeds: int, clusters: int) -> bool:
    """Whether a study of so many seeds and clusters tells a true difference from a line in 4 of 5 repetitions.

    Two-sided at 5 %, power 80 %, normal approximation (for paired evaluations: Miller 2024, arXiv 2411.00640). The
    interval is over questions, with the seeds as they are: its bound is 1.96 of its standard errors away. The
    difference itself varies with the seeds too: it is at least 0.84 of its own standard errors farther in 4 of 5.

    Args:
        margin: how far the true difference is from the line.
        found: variances in the unit of the margin squared; the question's has to be known.
        seeds, clusters: how many the study has.
    """
    if found.question is None:
        raise ValueError("a single cluster has no variance")
    interval = (found.question + (found.residual or 0.0) / seeds) / clusters
    return margin >= _Z95 * math.sqrt(interval) + _Z80 * math.sqrt(interval + (found.seed or 0.0) / seeds)


def paired_gain(
    before: Sequence[float],
    after: Sequence[float],
    clusters: Sequence[Hashable] | None = None,
    resamples: int = 10_000,
    seed: int = 0,
) -> tuple[float, float, float]:
    """How much more of the same questions is right after than before, with a 95 % percentile bootstrap interval.

    A resample draws as many clusters as there are, each with all of its questions; its gain is what they gained
    together over how many questions they are. Where clusters are shared, the percentiles are those of the expanded
    interval (Hesterberg 2015, The American Statistician 69), as the plain ones are too narrow for few clusters; a
    single cluster tells nothing. To pool several seeds, put their verdicts one after the other, each clip under the
    same key in all of them.

    Args:
        before, after: verdicts, one a question, in the same order; a share 0-1 if it was asked repeatedly.
        clusters: of each question the key of its cluster (default: each question is its own).
        resamples: of the bootstrap.
        seed: of the bootstrap.

    Returns:
        (difference, low, high), fractions -1 to 1.

    Raises:
        ValueError: the lists are empty or differ in length.
    """
    gains = _gains(before, after)  # [n]
    of = _numbered(range(len(gains)) if clusters is None else clusters, len(gains))
    totals = np.stack([np.bincount(of, weights=gains), np.bincount(of)], axis=1)  # [k, (gain, questions)]
    # few of them differ (-1, 0, 1 of one question without repeats), so k draws with replacement are one draw of how
    # often each comes
    values, counts = np.unique(totals, axis=0, return_counts=True)
    k, tail = len(totals), 0.025
    if k < len(gains):
        if k == 1:
            return float(gains.mean()), -1.0, 1.0
        from scipy.special import ndtr, stdtrit  # slow to import, and needed here only

        tail = ndtr(math.sqrt(k / (k - 1)) * stdtrit(k - 1, tail))
    drawn = np.random.default_rng(seed).multinomial(k, counts / k, size=resamples)  # [resamples, values]
    low, high = np.quantile(drawn @ values[:, 0] / (drawn @ values[:, 1]), [tail, 1 - tail])
    return float(gains.mean()), float(low), float(high)


def paired_test(before: Sequence[float], after: Sequence[float], clusters: Sequence[Hashable] | None = None) -> float:
    """Two-sided exact p-value of two runs on the same questions, if each question is better, worse or the same.

    McNemar's exact test, and with repeats the sign test. With clusters, Fisher's randomisation test (1935) that swaps
    whole clusters (whole-block exchangeability: Winkler and others 2014, NeuroImage 92): if the runs are equally good,
    all verdicts on a cluster might as well have been the other run's. The p-value is the share of the 2^k ways to swap
    k clusters that give an excess of better over worse questions, or the reverse, as large as the one seen: McNemar's
    if no cluster has an excess above one.

    Args:
        before, after: verdicts, one a question, in the same order; a share 0-1 if it was asked repeatedly.
        clusters: of each question the key of its cluster (default: each question is its own).

    Raises:
        ValueError: the lists are empty or differ in length.
    """
    signs = np.sign(_gains(before, after))
    of = _numbered(range(len(signs)) if clusters is None else clusters, len(signs))
    excess = np.bincount(of, weights=signs).astype(int)  # [k]
    if np.abs(excess).max() <= 1:
        return mcnemar(int(np.sum(excess < 0)), int(np.sum(excess > 0)))
    seen, largest = abs(int(excess.sum())), int(np.abs(excess).sum())
    if seen == 0:
        return 1.0
    probability = np.zeros(2 * largest + 1)  # of each sum, from -largest to largest
    probability[largest] = 1.0
    for size in np.abs(excess[excess != 0]):
        # no sum is beyond the largest, so that nothing but zeros comes around the ends
        probability = (np.roll(probability, size) + np.roll(probability, -size)) / 2
    return min(1.0, float(2 * probability[largest + seen :].sum()))


def mcnemar(only_first: int, only_second: int) -> float:
    """Two-sided exact p-value of McNemar's test: how probable so uneven a split of the questions that one run alone has
    right is if both are equally good."""
    from scipy.stats import binomtest  # slow to import, and needed here only

    n = only_first + only_second
    return float(binomtest(only_first, n).pvalue) if n else 1.0


def mean_interval(values: Sequence[float]) -> tuple[float, float, float]:
    """Mean of independent values with its 95 % interval by the normal approximation: (mean, low, high).

    Raises:
        ValueError: fewer than two values.
    """
    if len(values) < 2:
        raise ValueError(f"{len(values)} values have no spread")
    array = np.asarray(values, dtype=np.float64)
    mean, half = float(array.mean()), _Z95 * float(array.std(ddof=1)) / math.sqrt(len(array))
    return mean, mean - half, mean + half


def _gains(before: Sequence[float], after: Sequence[float]) -> NDArray[np.float64]:
    if not before or len(before) != len(after):
        raise ValueError(f"verdicts of the same questions are needed, not {len(before)} and {len(after)}")
    return np.asarray(after, dtype=np.float64) - np.asarray(before, dtype=np.float64)


def _numbered(clusters: Sequence[Hashable], n: int) -> NDArray[np.int64]:
    """Of each of `n` questions the number of its cluster, [n], in the order in which clusters come first."""
    if not n or len(clusters) != n:
        raise ValueError(f"of each question a cluster is needed, not {len(clusters)} of {n}")
    numbers: dict[Hashable, int] = {}
    return np.array([numbers.setdefault(key, len(numbers)) for key in clusters])
