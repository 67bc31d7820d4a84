"""Intervals for accuracies and for differences of accuracies, and what so many questions can tell apart."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

_Z95 = 1.959963984540054  # 97.5 % quantile of the normal distribution
_Z80 = 0.8416212335729143  # 80 % quantile


def wilson(correct: float, n: int) -> tuple[float, float]:
    """95 % Wilson score interval of a proportion, as fractions 0-1.

    `correct` is a sum of shares if questions were asked repeatedly; `n` is still the number of questions, because the
    answers to one question are no independent draws. Shares vary less from question to question than verdicts of the
    same mean do, so that the interval is on the safe side.

    Raises:
        ValueError: `n` is not positive or `correct` is not in 0..n.
    """
    if n <= 0 or not 0 <= correct <= n:
        raise ValueError(f"{correct} correct of {n} is no proportion")
    share, weight = correct / n, _Z95**2 / n
    centre = (share + weight / 2) / (1 + weight)
    half = _Z95 * math.sqrt(share * (1 - share) / n + weight / (4 * n)) / (1 + weight)
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


def paired_gain(
    before: Sequence[float], after: Sequence[float], resamples: int = 10_000, seed: int = 0
) -> tuple[float, float, float]:
    """How much more of the same questions is right after than before, with a 95 % bootstrap interval over questions.

    Verdicts are one a question, in the same order; a share 0-1 if it was asked repeatedly.

    Returns:
        (difference, low, high), fractions -1 to 1.

    Raises:
        ValueError: the lists are empty or differ in length.
    """
    if not before or len(before) != len(after):
        raise ValueError(f"verdicts of the same questions are needed, not {len(before)} and {len(after)}")
    n = len(before)
    gains = np.asarray(after, dtype=float) - np.asarray(before, dtype=float)  # [n]
    # gains have few values (-1, 0, 1 without repeats), so n draws with replacement are one draw of how often each comes
    values, counts = np.unique(gains, return_counts=True)
    drawn = np.random.default_rng(seed).multinomial(n, counts / n, size=resamples)  # [resamples, values]
    low, high = np.quantile(drawn @ values / n, [0.025, 0.975])
    return float(gains.mean()), float(low), float(high)


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
