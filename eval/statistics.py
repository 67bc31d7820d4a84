"""Intervals for accuracies and for the gain of one run over another on the same questions."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

_Z95 = 1.959963984540054  # 97.5 % quantile of the normal distribution


def wilson(correct: int, n: int) -> tuple[float, float]:
    """95 % Wilson score interval of a proportion, as fractions 0-1.

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


def paired_gain(
    before: Sequence[bool], after: Sequence[bool], resamples: int = 10_000, seed: int = 0
) -> tuple[float, float, float]:
    """How much more of the same questions is right after than before, with a 95 % bootstrap interval over questions.

    Args:
        before: verdicts of the first run, one a question.
        after: verdicts of the second run, in the same order.
        resamples: number of bootstrap samples.
        seed: of the resampling.

    Returns:
        (difference, low, high), fractions -1 to 1.

    Raises:
        ValueError: the lists are empty or differ in length.
    """
    if not before or len(before) != len(after):
        raise ValueError(f"verdicts of the same questions are needed, not {len(before)} and {len(after)}")
    n = len(before)
    gains = np.asarray(after, dtype=int) - np.asarray(before, dtype=int)  # [n], each -1, 0 or 1
    # a gain has three values only, so n draws with replacement are one draw of how often each value comes
    shares = np.array([np.mean(gains == value) for value in (-1, 0, 1)])
    counts = np.random.default_rng(seed).multinomial(n, shares, size=resamples)  # [resamples, 3]
    low, high = np.quantile((counts[:, 2] - counts[:, 0]) / n, [0.025, 0.975])
    return float(gains.mean()), float(low), float(high)
