"""Which questions a step asks, and which of their completions it learns from."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from statistics import fmean
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from transformers import TrainerCallback, TrainerState
from transformers.trainer_callback import ExportableState
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


def informative_groups(rewards: torch.Tensor, num_generations: int, least_std: float = 0.0) -> torch.Tensor:
    """bool [U], False for zero-variance groups: those whose completions [U * G] all got the same reward.

    Decided by the rewards: the advantages of equal ones are only nearly zero if their mean has to be rounded. False too
    for groups whose rewards have a standard deviation below `least_std` (`StdFilter`).
    """
    grouped = rewards.view(-1, num_generations)
    varied = grouped.amax(dim=1) > grouped.amin(dim=1)
    return varied & (grouped.std(dim=1) >= least_std) if least_std else varied


class StdFilter(TrainerCallback, ExportableState):
    """RLPR's filter by standard deviation (arXiv 2506.18254): what is nearly always or never answered
    teaches little.

    From step `start_step` on, groups whose rewards have a standard deviation below `beta` times a moving average of it
    are not learned from. The average begins as the mean of the steps from `ema_start_step` on; from `start_step` on
    each step's mean, over all groups that were sampled, enters by 1 - `ema_ratio`. So in the published code
    (`verl/trainer/ppo/ray_trainer.py`: `filter_mode: EMA`). It is kept in the checkpoints' `trainer_state.json`.

    Args:
        beta, ema_ratio, ema_start_step, start_step: the keys `std_filter_*`.
        total: the sum of a tensor over all processes.
    """

    def __init__(
        self,
        beta: float,
        ema_ratio: float,
        ema_start_step: int,
        start_step: int,
        total: Callable[[torch.Tensor], torch.Tensor],
    ):
        self.beta, self.ema_ratio = beta, ema_ratio
        self.ema_start_step, self.start_step, self.total = ema_start_step, start_step, total
        self.average: float | None = None
        self.steps: list[float] = []  # means of those before `start_step`
        self._stds: list[torch.Tensor] = []  # of this step's groups

    @classmethod
    def of(cls, args: Any, accelerator: Accelerator) -> StdFilter | None:
        """That of a configuration; None without `std_filter_beta`."""
        if not args.std_filter_beta:
            return None
        return cls(
            args.std_filter_beta,
            args.std_filter_ema_ratio,
            args.std_filter_ema_start_step,
            args.std_filter_start_step,
            partial(accelerator.reduce, reduction="sum"),
        )

    def count(
        self, rewards: torch.Tensor, num_generations: int, step: int, log: Callable[[dict[str, float]], None]
    ) -> float:
        """Let groups [U * G] of a step enter the average, and return the step's threshold: 0 until the filter starts.

        All processes call it together; U may be 0.
        """
        stds = rewards.view(-1, num_generations).std(dim=1)
        self._stds.append(stds.double())
        least = self.beta * self.average if step >= self.start_step and self.average is not None else 0.0
        below, groups = self.total(stds.new_tensor([(stds < least).sum(), len(stds)])).tolist()
        log({"std_filter/threshold": least, "std_filter/below": below / max(1, groups)})
        return least

    def state(self) -> dict[str, Any]:
        return {"args": {}, "attributes": {"average": self.average, "steps": self.steps}}

    def on_train_begin(self, args: Any, state: TrainerState, control: Any, **kwargs: Any) -> None:
        kept: Any = (state.stateful_callbacks or {}).get(type(self).__name__)
        if kept is not None and state.global_step:
            self.average, self.steps = kept["attributes"]["average"], kept["attributes"]["steps"]

    def on_step_end(self, args: Any, state: TrainerState, control: Any, **kwargs: Any) -> None:
        if not self._stds:  # a step that goes on with the rollout of the one before
            return
        stds = torch.cat(self._stds)
        self._stds.clear()
        total, groups = self.total(torch.stack([stds.sum(), stds.new_tensor(len(stds))])).tolist()
        if state.global_step < self.ema_start_step or not groups:
            return
        if state.global_step < self.start_step:
            self.steps.append(total / groups)
            self.average = fmean(self.steps)
        elif self.average is None:
            self.average = total / groups
        else:
            self.average = self.ema_ratio * self.average + (1 - self.ema_ratio) * total / groups


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
