"""Which questions a step asks, and which of their completions it learns from."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from trl.trainer.utils import RepeatSampler


class EpochRepeatSampler(RepeatSampler):
    """TRL's RepeatSampler with a shuffle that is seeded with `seed + epoch`: a resumed run sees the same rows.

    TRL 1.16's own draws each epoch's order from one running generator: a run resumed in epoch 2 starts that generator
    anew and replays the order of epoch 1. Accelerate's loaders call `set_epoch` before every pass.
    """

    epoch = 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __iter__(self) -> Iterator[int]:
        if self.shuffle:
            self.generator.manual_seed(self.seed + self.epoch)
        return super().__iter__()


def draw_further(num_questions: int, exclude: Sequence[int], count: int, *seed: int) -> list[int]:
    """`count` indices of questions not in `exclude`: a function of the seeds, so that a resumed run draws the same."""
    others = np.setdiff1d(np.arange(num_questions), exclude)
    return np.random.default_rng(seed).choice(others, size=count, replace=False).tolist()


def informative_groups(rewards: torch.Tensor, num_generations: int) -> torch.Tensor:
    """bool [U], False for zero-variance groups: those whose completions [U * G] all got the same reward.

    Decided by the rewards: the advantages of equal ones are only nearly zero if their mean has to be rounded.
    """
    grouped = rewards.view(-1, num_generations)
    return grouped.amax(dim=1) > grouped.amin(dim=1)


def better_completions(
    rewards: torch.Tensor, num_generations: int, advantage_filter: str, top_fraction: float
) -> torch.Tensor:
    """bool [U * G], the completions that a filter keeps.

    Args:
        rewards: [U * G], rows of a group one after the other.
        num_generations: G.
        advantage_filter: `none` keeps all; `above_mean` those with a reward above their group's mean;
            `top_fraction` the best of each group, earlier ones first among equals.
        top_fraction: share of a group that `top_fraction` keeps, rounded, at least one.
    """
    grouped = rewards.view(-1, num_generations)
    if advantage_filter == "none":
        return torch.ones_like(rewards, dtype=torch.bool)
    if advantage_filter == "above_mean":
        above = grouped > grouped.mean(dim=1, keepdim=True)
        return (above & informative_groups(rewards, num_generations)[:, None]).flatten()
    kept = max(1, round(top_fraction * num_generations))
    rank = grouped.argsort(dim=1, descending=True, stable=True).argsort(dim=1)
    return (rank < kept).flatten()
