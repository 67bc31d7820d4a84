"""What a run says about the published figures of its benchmark."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from eval.benchmarks import MMAU
from eval.benchmarks.record import Benchmark, Row, Version
from r1_aqa_repro.common.intervals import detectable_difference, unpaired_difference

GUESSING = "guessing at random"  # the label of that figure
EMBEDDED_HEADING = "embedded set, not MMAU: no comparison with 64.5"


@dataclass(frozen=True)
class Comparison:
    """A run compared with published figures of the same version.

    Attributes:
        source: what the published figures are of.
        columns: labels that rows have figures for, between a model's name and its average.
        rows: the published figures, the run's own last.
        sentences: the distance to the target and what can be concluded; empty if `rows` is.
        reason: why there is nothing to compare with; empty otherwise.
        warning: what the figures must not be compared with; may be empty.
        target: that one of the rows which the run is measured against.
    """

    source: str
    columns: tuple[str, ...] = ()
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


def against_published(
    scores: Mapping[str, Any], settings: Mapping[str, Any], benchmark: Benchmark = MMAU
) -> Comparison | None:
    """Compare a run with the published figures of its version; None for the embedded set.

    Args:
        scores: as `scores.score` returns them.
        settings: of the run.
        benchmark: that the questions are of.
    """
    version, source = scores["version"], benchmark.source
    if version == "embedded":
        return None
    if benchmark.part is not None:
        return Comparison(source, reason=f"{benchmark.part}.")
    first = benchmark.versions[0]
    target = first.target[-1]
    own = next((one for one in benchmark.versions if one.name == version), None)
    reason = ""
    if own is None:
        reason = (
            f"the published figures are on version {first.name}, this run is on version {version}: its questions are "
            "those of no published file, whatever version its records name"
        )
    elif scores["n"] != own.questions:
        reason = f"the published figures are on all {own.questions} questions, this run is on {scores['n']}"
    elif settings.get("no_audio"):
        reason = "this run was without audio"
    elif "permutation" in scores:
        reason = "this run was asked every question with its choices in several orders"
    if reason or own is None:
        return Comparison(source, reason=f"Not compared with {target}: {reason}.")
    total, groups = scores["total"], scores[benchmark.main_group]
    by_label = [groups[name]["accuracy"] if name in groups else None for name in benchmark.columns]
    warning = ""
    if own is not first:
        warning = (
            f"Not compared with {target}: that is a figure on version {first.name}, this run is on version {version}, "
            f"of which {own.differs}. The figures below are on the same version as this run."
        )
    return Comparison(
        source,
        columns=benchmark.columns,
        rows=(*own.rows, ("this run", *by_label, total["accuracy"])),
        sentences=_conclusion(own, total),
        warning=warning,
        target=own.target,
    )


def _conclusion(version: Version, total: Mapping[str, Any]) -> tuple[str, ...]:
    """The distance of a tally to the published target of its version, and what it proves."""
    target = version.target[-1]
    low, high = (bound - target for bound in total["ci95"])
    points = total["accuracy"] - target
    sample = target / 100 * version.questions, version.questions
    both = [100 * bound for bound in unpaired_difference(total["correct"], total["n"], *sample)[1:]]
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
