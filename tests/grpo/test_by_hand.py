"""Advantages by hand: those of the trainer, and what is printed of them."""

from __future__ import annotations

import math
from pathlib import Path
from statistics import pstdev
from typing import Any

import pytest
import torch

from r1_aqa_repro.data.questions import AudioQuestion
from r1_aqa_repro.grpo.by_hand import advantages, main, unscaled
from r1_aqa_repro.rewards.rules import REWARDS
from tests.paper import paper_trainer

GROUPS = [
    [1.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 0.0],
    [2.0, 1.0, 0.0, 1.0, 2.0, 2.0, 1.0, 0.0],
    [0.1] * 8,
    [-0.5, 0.25, 3.0, 0.125, -2.0, 1.0, 1.0, 0.0],
]


@pytest.mark.parametrize("scale", ["group", "none"])
def test_they_are_the_trainers(
    scale: str, model_folder: Path, questions: list[AudioQuestion], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = [reward for group in GROUPS for reward in group]
    monkeypatch.setitem(REWARDS, "accuracy", lambda completions, **_: given)
    monkeypatch.setitem(REWARDS, "format", lambda completions, **_: [0.0] * len(completions))
    short = ("--max_completion_length", "2")  # what is said does not matter where the rewards are given
    trainer = paper_trainer(tmp_path / "run", model_folder, questions, "--scale_rewards", scale, *short)
    rows = [trainer.train_dataset[index] for index in range(len(GROUPS)) for _ in range(8)]
    found = trainer._generate_and_score_completions(rows)["advantages"].view(-1, 8).tolist()
    by_hand = advantages if scale == "group" else unscaled
    for values, group in zip(found, GROUPS, strict=True):
        # float32: a few operations on values up to 2.5; for 0.1, which it rounds by 1e-9, that over 1e-4 counts too
        assert values == pytest.approx(by_hand(group), abs=2e-4 if group == GROUPS[2] else 1e-5)


def test_by_hand() -> None:
    """Two of eight right: mean 1/4, sum of squares 2 (3/4)^2 + 6 (1/4)^2 = 3/2."""
    sample, population = math.sqrt(1.5 / 7), math.sqrt(1.5 / 8)
    right, wrong = 0.75, -0.25
    assert advantages(GROUPS[0])[:2] == pytest.approx([right / (sample + 1e-4), wrong / (sample + 1e-4)])
    assert advantages(GROUPS[0], pstdev, 1e-8)[:2] == pytest.approx([right / population, wrong / population])
    assert unscaled(GROUPS[0]) == [right, wrong, wrong, right, wrong, wrong, wrong, wrong]


@pytest.mark.parametrize("reward", [0.0, 1.0, 0.1, -7.3])
def test_equal_rewards_give_exactly_nothing(reward: float) -> None:
    for values in (advantages([reward] * 7), advantages([reward] * 7, pstdev, 1e-8), unscaled([reward] * 7)):
        assert not any(values)


def test_in_float32_a_tiny_epsilon_makes_advantages_of_rounding_alone() -> None:
    """What docs/learn.md says of equal rewards whose mean has to be rounded, whatever the order of the sum is here."""
    rewards = torch.tensor([0.3, 0.7, 0.9, 1.3, -7.3]).repeat_interleave(8).view(-1, 8)
    centred = rewards - torch.nanmean(rewards, dim=1, keepdim=True)  # as TRL takes it
    assert 0 < centred.abs().max() < 1e-6
    assert (centred / (rewards.std(dim=1, correction=0, keepdim=True) + 1e-8)).abs().max() > 0.5
    assert (centred / (rewards.std(dim=1, keepdim=True) + 1e-4)).abs().max() < 0.01


def test_what_is_printed(capsys: Any) -> None:
    assert main(["1", "0", "0", "1", "0", "0", "0", "0"]) == 0
    rows = [line.split("│")[1:-1] for line in capsys.readouterr().out.splitlines() if line.startswith("│")]
    assert [[cell.strip() for cell in row] for row in rows[:2]] == [
        ["1", "1", "+1.6198", "+1.7321", "+0.7500"],
        ["2", "0", "-0.5399", "-0.5774", "-0.2500"],
    ]
    assert main(["-1.5", "-1.5"]) == 0
    assert "every advantage is 0" in capsys.readouterr().out


@pytest.mark.parametrize("rewards", [["1"], ["1", "nan"], ["1", "inf"], ["1", "right"]])
def test_what_is_no_group_is_refused(rewards: list[str]) -> None:
    try:
        code: object = main(rewards)
    except SystemExit as refusal:  # argparse's own
        code = refusal.code
    assert code == 2
