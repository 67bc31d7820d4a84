"""The published figures, and what a run says about them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from r1_aqa_repro.common.intervals import detectable_difference, unpaired_difference

NUM_QUESTIONS = 1000
TARGET = 64.5
GUESSING = "guessing at random"  # the label of that figure
EMBEDDED_HEADING = "embedded set, not MMAU: no comparison with 64.5"
TASKS = ("sound", "music", "speech")

Row = tuple[str, float | None, float | None, float | None, float]  # model; sound, music, speech, average in percent

# arXiv 2503.11197, tables 1 and 2 (its first line is the MMAU leaderboard's): on the file of 25 March 2025
PUBLISHED: tuple[Row, ...] = (
    ("Direct inference (MMAU leaderboard)", 54.95, 50.98, 42.04, 49.20),
    ("Zero-shot CoT", 61.68, 56.29, 55.26, 57.80),
    ("Audio-Reasoner (CoTA)", 60.06, 64.30, 60.70, 61.71),
    ("SFT, full, prompt 1", 60.96, 49.19, 45.35, 51.80),
    ("SFT, LoRA, prompt 1", 58.26, 58.08, 52.58, 56.40),
    ("GRPO, prompt 2 (the target)", 69.37, 66.77, 57.36, TARGET),
    ("GRPO, prompt 3 (with thinking)", 66.67, 62.87, 53.75, 61.10),
    ("GRPO, leaderboard model (several trainings)", 68.77, 64.37, 63.66, 65.60),
)
# on the file of 15 May 2025; only averages are published
PUBLISHED_V05_15_25: tuple[Row, ...] = (
    ("Qwen2-Audio-7B-Instruct, not trained", None, None, None, 59.60),
    ("an independent R1-AQA-style training", None, None, None, 67.20),
)


@dataclass(frozen=True)
class Comparison:
    """A run compared with published figures of the same version.

    Attributes:
        rows: the published figures, the run's own last.
        sentences: the distance to the target and what can be concluded; empty if `rows` is.
        reason: why there is nothing to compare with; empty otherwise.
        warning: what the figures must not be compared with; may be empty.
        target: that one of the rows which the run is measured against.
    """

    rows: tuple[Row, ...] = ()
    sentences: tuple[str, ...] = ()
    reason: str = ""
    warning: str = ""
    target: Row | None = None


def reference_lines(scores: Mapping[str, Any], compared: Comparison | None) -> dict[str, float]:
    """The lines of a chart, in percent by label: the published figure if the two may be compared, and chance."""
    lines = {}
    if compared is not None and compared.target is not None:
        name, *_, average = compared.target
        lines[f"{average}: {name}, version {scores['version']}"] = average
    return lines | {GUESSING: scores["baselines"]["chance"]}


def against_published(scores: Mapping[str, Any], settings: Mapping[str, Any]) -> Comparison | None:
    """Compare a run with the published figures of its version; None for the embedded set.

    Args:
        scores: as `scores.score` returns them.
        settings: of the run.
    """
    version = scores["version"]
    if version == "embedded":
        return None
    published = {"original": PUBLISHED, "v05.15.25": PUBLISHED_V05_15_25}.get(version, ())
    reason = ""
    if not published:
        reason = (
            f"the published figures are on version original, this run is on version {version}: its questions are those "
            "of no published file, whatever version its records name"
        )
    elif scores["n"] != NUM_QUESTIONS:
        reason = f"the published figures are on all {NUM_QUESTIONS} questions, this run is on {scores['n']}"
    elif settings.get("no_audio"):
        reason = "this run was without audio"
    elif "permutation" in scores:
        reason = "this run was asked every question with its choices in several orders"
    if reason:
        return Comparison(reason=f"Not compared with {TARGET}: {reason}.")
    total = scores["total"]
    task = [scores["task"][name]["accuracy"] if name in scores["task"] else None for name in TASKS]
    target = next((row for row in published if row[-1] == TARGET), published[-1])
    warning = ""
    if version != "original":
        warning = (
            f"Not compared with {TARGET}: that is a figure on version original, this run is on version {version}, "
            "of which about a quarter of the questions differ. The figures below are on the same version as this run."
        )
    return Comparison(
        rows=(*published, ("this run", task[0], task[1], task[2], total["accuracy"])),
        sentences=_conclusion(target[-1], total),
        warning=warning,
        target=target,
    )


def _conclusion(target: float, total: Mapping[str, Any]) -> tuple[str, ...]:
    """The distance of a tally to a published figure in percent, and what it proves."""
    low, high = (bound - target for bound in total["ci95"])
    points = total["accuracy"] - target
    published = target / 100 * NUM_QUESTIONS
    both = [100 * bound for bound in unpaired_difference(total["correct"], total["n"], published, NUM_QUESTIONS)[1:]]
    measured = (
        f"Distance to {target}: {points:+.2f} points, 95 % interval of this run [{low:+.2f}, {high:+.2f}]; with the "
        f"published figure taken as a sample of its own [{both[0]:+.2f}, {both[1]:+.2f}]."
    )
    if low <= 0 <= high:
        verdict = (
            f"{target} lies in the interval of this run: {total['n']} questions do not tell the two apart, "
            "which is no proof that they are equal."
        )
    else:
        side = "better" if low > 0 else "worse"
        verdict = f"{target} lies outside the interval of this run, which is {side} than the published figure"
        if both[0] <= 0 <= both[1]:
            verdict += " if that is taken as exact; with the uncertainty of both, the difference could still be chance."
        else:
            verdict += ", by more than the choice of questions explains."
    smallest = 100 * detectable_difference(target / 100, total["n"])
    power = (
        f"With {total['n']} questions a true difference from {target} of {smallest:.1f} points is found in 4 of 5 "
        "cases (two-sided, 5 %); a smaller one is missed more often. The interval says nothing about how much another "
        "training with another seed would differ."
    )
    return measured, verdict, power
