"""How many seeds or questions would decide: by hand, and what is said where no number would."""

from __future__ import annotations

import math

import pytest

from eval.reproduction.power import needed
from r1_aqa_repro.common.intervals import Variances, would_tell

# see tests/common/test_intervals.py: variances 8/3 of questions, 0 of seeds, 2 of the rest
GAINS = [[4.0, 0, 4, 0], [2, 2, 2, -2]]
STANDARD_ERRORS = 1.959963984540054 + 0.8416212335729143


def test_needed_by_hand():
    """Questions take (8/3 + 2/2) / k <= (margin / 2.80)^2, seeds (8/3 + 2/s) / 4 <= the same; margin 2.5: 0.7963."""
    one = needed(GAINS, range(4), 2.5)
    assert math.ceil(11 / 3 / (2.5 / STANDARD_ERRORS) ** 2) == 5
    assert (one["questions"], one["further_questions"]) == (5, 1)
    assert (one["seeds"], one["further_seeds"]) == (4, 2)  # 2 / (4 * 0.7963 - 8/3) = 3.86
    assert one["notes"] == [] and "arXiv 2411.00640" in one["method"]
    two_a_clip = needed([[gain for gain in row for _ in range(2)] for row in GAINS], "aabbccdd", 2.5)
    assert (two_a_clip["questions"], two_a_clip["seeds"]) == (10, 4)


def test_no_number_of_seeds_makes_up_for_too_few_questions():
    """Questions alone: 8/3 / 4 = 0.67 of variance, above (1.5 / 2.80)^2 = 0.29."""
    one = needed(GAINS, range(4), 1.5)
    assert one["seeds"] is None and one["further_seeds"] is None
    assert one["questions"] == 13  # 11/3 / 0.28666 = 12.8
    assert one["notes"] == ["No number of further seeds would decide on these questions."]


def test_no_number_of_questions_makes_up_for_seeds_that_differ():
    """Seeds alone: 0.84 sqrt(18 / 2) = 2.5 points."""
    one = needed([[1.0, 2, 3, 4], [7, 8, 9, 10]], range(4), 2.5)
    assert one["questions"] is None
    assert one["notes"] == ["No number of further questions would decide with these seeds."]
    assert one["seeds"] == next(
        count for count in range(3, 99) if would_tell(2.5, Variances(5 / 3, 18, 0, 4), count, 4)
    )


@pytest.mark.parametrize(
    ("gains", "clips", "margin", "said"),
    [
        (GAINS[:1], range(4), 2.5, "One seed does not tell"),
        (GAINS, range(4), 0.0, "on the line"),
        (GAINS, "aaaa", 2.5, "one clip"),
    ],
)
def test_what_cannot_be_told_is_said(gains, clips, margin, said):
    one = needed(gains, clips, margin)
    assert one["seeds"] is None and said in one["notes"][0]
    assert (one["questions"] is None) == (said != "One seed does not tell")
