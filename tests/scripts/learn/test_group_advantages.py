"""GRPO's advantages by hand: the course's groups, and TRL's own numbers."""

from __future__ import annotations

from fractions import Fraction

import pytest
import torch

from scripts.learn.group_advantages import (
    EQUATION,
    KEEPER,
    SUM,
    advantages,
    graded,
    rewards_of,
    with_population_std,
    worked,
)


@pytest.mark.parametrize(
    ("text", "reward"),
    [("x = 5", 1.0), ("x = 15/3", 0.5), ("3x = 15, so x = 5", 1.0), ("x = 5/2", 0.0), ("x = -5", 0.0), ("no", 0.0)],
)
def test_an_equation_is_graded(text: str, reward: float) -> None:
    assert graded(text, Fraction(5)) == reward


def test_a_group_by_hand() -> None:
    """Rewards 1, 0.5, 0, 0, 1: the mean is 0.5, the sum of squares 1, divided by 4 or by 5."""
    group = worked(EQUATION)
    assert group["reward"] == [1.0, 0.5, 0.0, 0.0, 1.0]
    assert group["advantage"] == pytest.approx([0.9998, 0, -0.9998, -0.9998, 0.9998], abs=1e-4)
    assert group["population std"] == pytest.approx([5**0.5 / 2, 0, -(5**0.5) / 2, -(5**0.5) / 2, 5**0.5 / 2], abs=1e-6)
    assert group["undivided"] == [0.5, 0.0, -0.5, -0.5, 0.5]
    assert group["above_mean"] == [1, 0, 0, 0, 1] and group["top_fraction"] == [1, 1, 0, 0, 1]


def test_other_groups_are_ordered_as_they_should() -> None:
    assert rewards_of(SUM, ("4", "5", "It is 4.", "22")) == [1.0, 0.0, 1.0, 0.0]
    role = worked(KEEPER)["reward"]
    assert role == sorted(role) and role[0] < role[-1] / 2


@pytest.mark.parametrize("group", [5, 8])
def test_how_far_the_two_formulas_are_apart(group: int) -> None:
    """What the page says: 11.8 % for five answers, 6.9 % for eight."""
    rewards = torch.arange(group, dtype=torch.float64)
    ratio = (with_population_std(rewards) / advantages(rewards))[0].item()
    assert ratio == pytest.approx({5: 1.118, 8: 1.069}[group], abs=5e-4)
