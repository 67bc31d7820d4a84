"""How many seeds or questions would decide what a study has left undecided."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Sequence
from typing import Any

from r1_aqa_repro.common.intervals import variances, would_tell

METHOD = (
    "Normal approximation, two-sided at 5 %, decided in 4 of 5 repetitions if the true difference is the one observed "
    "(Miller 2024, arXiv 2411.00640): its distance from the line is 1.96 standard errors of the interval over "
    "questions and 0.84 of the difference with seeds drawn anew. Variances of questions, seeds and the rest: two-way "
    "analysis of variance (Searle, Casella and McCulloch 1992)."
)
_MOST_SEEDS, _MOST_CLIPS = 10_000, 10_000_000  # what takes more is never decided


def needed(gains: Sequence[Sequence[float]], clips: Sequence[Hashable], margin: float) -> dict[str, Any]:
    """How many seeds on the same questions, or questions with the same seeds, would decide.

    Args:
        gains: in points, [seeds][questions], of a study that did not decide: fewer never will.
        clips: the clip of each question.
        margin: how many points the observed difference is from the line that the interval would have to leave.

    Returns:
        `seeds` and `questions`, totals, `further_seeds` and `further_questions`; None where no number would decide or
        nothing tells, which a sentence of `notes` says; `margin`; the `components` of variance in points squared;
        `method`.
    """
    seeds, questions, found = len(gains), len(clips), variances(gains, clips)
    notes: list[str] = []
    of_seeds = of_clips = None
    if found.question is None:
        notes.append("All questions share one clip: nothing tells how much clips differ.")
    elif margin <= 0:
        notes.append("The difference lies on the line itself: no number of seeds or questions decides that.")
    else:
        of_clips = _first(lambda count: would_tell(margin, found, seeds, count), found.clusters, _MOST_CLIPS)
        if of_clips is None:
            notes.append("No number of further questions would decide with these seeds.")
        if seeds == 1:
            notes.append(
                "One seed does not tell how much seeds differ: the number of questions is for this seed alone, and no "
                "number of seeds can be given."
            )
        else:
            of_seeds = _first(lambda count: would_tell(margin, found, count, found.clusters), seeds, _MOST_SEEDS)
            if of_seeds is None:
                notes.append("No number of further seeds would decide on these questions.")
    total = None if of_clips is None else math.ceil(of_clips * questions / found.clusters)
    return {
        "seeds": of_seeds,
        "further_seeds": None if of_seeds is None else of_seeds - seeds,
        "questions": total,
        "further_questions": None if total is None else total - questions,
        "margin": margin,
        "components": {"question": found.question, "seed": found.seed, "residual": found.residual},
        "method": METHOD,
        "notes": notes,
    }


def _first(decides: Callable[[int], bool], above: int, most: int) -> int | None:
    """The smallest number above `above` that decides; None if none up to `most` does. Any larger one decides too."""
    low, high = above, above + 1
    while not decides(high):
        if high >= most:
            return None
        low, high = high, min(2 * high, most)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if decides(middle) else (middle, high)
    return high
