"""Verdicts follow from figures, and what is undecided says what would decide it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pytest

from eval.reproduction.findings import HUMAN, Answers, findings_of
from eval.reproduction.reading import BASE, NO_SEED, Arm, Study
from r1_aqa_repro.common.intervals import paired_gain

ARMS = (
    Arm(BASE, "base", None, None, None),
    Arm("sft_full", "SFT full", "sft", None, None),
    Arm("sft_lora", "SFT LoRA", "sft", None, None),
    Arm("grpo", "GRPO", "grpo", "main", None),
    Arm("think", "GRPO think", "grpo", "thinking", None),
    Arm("coin", "GRPO coin", "grpo", "coin", None),
)
STUDY = Study("by hand", False, ("1", "2"), ARMS, None)
N = 40


def first(right: int, n: int = N) -> list[float]:
    """The first so many questions are right."""
    return [1.0] * right + [0.0] * (n - right)


def last(right: int, n: int = N) -> list[float]:
    return [0.0] * (n - right) + [1.0] * right


def found(
    rows: Mapping[str, Sequence[float] | Mapping[str, Sequence[float]]],
    version: str = "original",
    clips: Sequence[int] | None = None,
    study: Study = STUDY,
) -> dict[str, dict[str, Any]]:
    """Findings by id; the shares of a row are those of both of its seeds unless they are given by seed."""
    seeds = {name: (NO_SEED,) if name == BASE else ("1", "2") for name in rows}
    answers = {
        arm.name: Answers(arm, dict(one) if isinstance(one, Mapping) else dict.fromkeys(seeds[arm.name], one))
        for arm in ARMS
        if (one := rows.get(arm.name)) is not None
    }
    found = findings_of(study, answers, range(N) if clips is None else clips, version, 38_000)
    return {one["id"]: one for one in found}


WELL, BADLY = first(36), first(8)


@pytest.mark.parametrize(
    ("finding", "rows", "verdict"),
    [
        ("rl_beats_sft", {"grpo": WELL, "sft_full": BADLY}, "reproduced"),
        ("rl_beats_sft", {"grpo": BADLY, "sft_full": WELL}, "not reproduced"),
        ("rl_beats_sft", {"grpo": first(20), "sft_full": last(20)}, "undecided"),
        ("rl_beats_sft", {"grpo": WELL}, "not run"),
        ("rl_beats_sft", {"sft_full": WELL, "sft_lora": WELL}, "not run"),
        ("data_suffice", {"grpo": WELL, "sft_full": BADLY, BASE: BADLY}, "reproduced"),
        ("data_suffice", {"grpo": WELL, "sft_full": BADLY, BASE: first(40)}, "not reproduced"),
        ("data_suffice", {"grpo": WELL, "sft_full": BADLY, BASE: WELL}, "undecided"),
        ("data_suffice", {"grpo": WELL, "sft_full": BADLY}, "not run"),
        ("thinking_does_not_help", {"grpo": WELL, "think": BADLY}, "reproduced"),
        ("thinking_does_not_help", {"grpo": WELL, "think": WELL}, "reproduced"),  # 0 for certain, below a point
        ("thinking_does_not_help", {"grpo": BADLY, "think": WELL}, "not reproduced"),
        ("thinking_does_not_help", {"grpo": first(20), "think": last(20)}, "undecided"),
        ("thinking_does_not_help", {"think": WELL}, "not run"),
        ("far_from_human", {"grpo": first(20)}, "reproduced"),
        ("far_from_human", {"grpo": first(40)}, "not reproduced"),
        ("far_from_human", {"grpo": first(33)}, "undecided"),  # 82.5
        ("far_from_human", {"sft_full": WELL}, "not run"),
        ("reward_matters", {"grpo": WELL, "coin": BADLY}, "reproduced"),
        ("reward_matters", {"grpo": BADLY, "coin": WELL}, "not reproduced"),
        ("reward_matters", {"grpo": first(20), "coin": last(20)}, "undecided"),
        ("reward_matters", {"coin": WELL}, "not run"),
    ],
)
def test_the_verdict_follows_from_the_interval(finding, rows, verdict):
    one = found(rows)[finding]
    assert one["verdict"] == verdict
    assert (one["power"] is not None) == (verdict == "undecided")
    if verdict == "not run":
        assert one["status"] == "not run" and one["difference"] is one["ci95"] is None and one["parts"] == []
    else:
        assert one["status"] == "run" and one["why"].count("95 % interval") == len(one["parts"])


def test_figures_of_a_finding_are_those_of_its_rows():
    seeds = {"1": first(30), "2": first(24)}
    one = found({"grpo": seeds, "sft_full": first(10), "sft_lora": last(12)})["rl_beats_sft"]
    assert one["comparison"] == "GRPO - SFT LoRA" and one["rows"] == ["grpo", "sft_lora"]  # 30 %, against 25 %
    after = [(a + b) / 2 for a, b in zip(*seeds.values(), strict=True)]
    mean, low, high = paired_gain(last(12), after)
    assert one["difference"] == pytest.approx(100 * mean) == pytest.approx(37.5)
    assert one["ci95"] == pytest.approx([100 * low, 100 * high])
    assert "GRPO - SFT LoRA: +37.50 points, 95 % interval" in one["why"] and "above 0" in one["why"]


def test_seeds_are_paired_where_both_arms_have_them_and_the_base_with_all():
    rows = {"grpo": {"1": first(20), "2": first(40)}, "sft_full": {"1": first(20)}, BASE: first(20)}
    findings = found(rows)
    assert findings["rl_beats_sft"]["difference"] == 0 and findings["rl_beats_sft"]["seeds"] == 1
    assert "SFT LoRA was not run" in findings["rl_beats_sft"]["why"]
    against_base = findings["data_suffice"]["parts"][1]
    assert (against_base["difference"], against_base["seeds"]) == (25, 2)
    none = found({"grpo": {"1": WELL}, "sft_full": {"2": BADLY}})["rl_beats_sft"]
    assert none["verdict"] == "not run"


def test_an_interval_over_shared_clips_decides():
    """Three of ten clips, each with four questions, tell less than twelve of forty questions would."""
    rows = {"grpo": first(12), "sft_full": first(0)}
    assert found(rows)["rl_beats_sft"]["verdict"] == "reproduced"
    clips = [place // 12 for place in range(N)]
    one = found(rows, clips=clips)["rl_beats_sft"]
    assert one["verdict"] == "undecided" and one["parts"][0]["clips"] == 4


@pytest.mark.parametrize("version", ["embedded", "unknown", "mmar"])
def test_people_are_compared_on_their_own_benchmark_alone(version):
    one = found({"grpo": first(20)}, version)["far_from_human"]
    assert one["verdict"] == "not run" and version in one["why"]


def test_the_human_figure_is_the_earlier_versions():
    first_version, later = (
        found({"grpo": first(20)}, version)["far_from_human"] for version in ("original", "v05.15.25")
    )
    assert first_version["difference"] == later["difference"] == pytest.approx(HUMAN - 50)
    assert "the version before" in later["why"] and "the version before" not in first_version["why"]


def test_a_rehearsal_says_so_in_every_finding():
    study = Study("by hand", True, ("1", "2"), ARMS, None)
    assert found({"grpo": WELL, "sft_full": BADLY}, study=study)["rl_beats_sft"]["status"] == "rehearsed"


def test_of_two_open_comparisons_the_one_that_takes_most_tells_what_is_needed():
    one = found({"grpo": first(20), "sft_full": last(17), BASE: last(19)})["data_suffice"]
    margins = [abs(part["difference"]) for part in one["parts"]]
    assert margins == [7.5, 2.5] and one["verdict"] == "undecided"
    assert one["power"]["margin"] == 2.5
