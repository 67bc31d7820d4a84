"""Optimizer steps whose loss or gradient is not finite: not taken, counted, and ended at the third in a row.

A single NaN that reaches a weight is in every answer from then on.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from typing import Any

import torch
from tqdm import tqdm
from transformers import TrainerCallback, TrainerState

from r1_aqa_repro.common.distributed import is_main_process
from r1_aqa_repro.common.errors import Failed

MOST = 3  # in a row


class FiniteSteps(TrainerCallback):
    """Counts the steps that were skipped, in run.json as `skipped_steps` and in the log by the same name.

    Every process decides alike: the norm of a gradient is that of all of them, and a loss that is not finite on one of
    them is made to show in it (`shown_by_gradient`).

    Args:
        last_good: says which checkpoint is the last good one.

    Attributes:
        skipped: steps, each as often as it had updates that were skipped.
        note: keeps `skipped_steps` in run.json, if there is one.
    """

    note: Callable[..., None] | None = None

    def __init__(self, last_good: Callable[[], str]):
        self.last_good = last_good
        self.skipped: list[int] = []
        self._in_a_row = self._logged_at = 0

    def on_train_begin(self, args: Any, state: TrainerState, control: Any, **kwargs: Any) -> None:
        """Forget what an interrupted run has skipped after the checkpoint that it goes on from."""
        self._logged_at, before = state.global_step, self.skipped
        self.skipped = [step for step in before if step <= state.global_step]
        if self.skipped != before:
            self._note()

    def may_be_taken(self, norm: float, step: int, *, is_taken: bool = False) -> bool:
        """Whether an update may be taken, the norm of its gradient being this; `step` counts from 1.

        Raises:
            Failed: it is the third in a row that may not, or one that must not have been taken.
        """
        if math.isfinite(norm):
            self._in_a_row = 0
            return True
        self._in_a_row += 1
        self.skipped.append(step)
        if is_main_process():
            tqdm.write(f"warning: step {step}: its loss or gradient is not finite; the weights stay", sys.stderr)
        self._note()
        if is_taken:
            raise Failed(f"step {step}: its gradient is not finite, and DeepSpeed has taken it: use ZeRO 1, 2 or 3")
        if self._in_a_row == MOST:
            raise Failed(
                f"the loss or its gradient was not finite {MOST} times in a row, up to step {step}: nothing can be "
                f"learned so. {self.last_good()}"
            )
        return False

    def _note(self) -> None:
        if self.note is not None and is_main_process():
            self.note(skipped_steps=self.skipped)

    def amended(self, logs: dict[str, float], step: int) -> dict[str, float]:
        """The figures of the steps since the last log, with what was skipped of them.

        Of steps that were all skipped transformers logs the loss 0.
        """
        since, self._logged_at = self._logged_at, step
        if not self.skipped:
            return logs
        if "loss" in logs and len({each for each in self.skipped if each > since}) >= step - since:
            logs = logs | {"loss": math.nan}
        return logs | {"skipped_steps": len(self.skipped)}

    def on_log(self, args: Any, state: TrainerState, control: Any, **kwargs: Any) -> None:
        """Write null for what is not finite into the log that trainer_state.json keeps: JSON has no NaN."""
        entry = state.log_history[-1]
        bad = [name for name, value in entry.items() if isinstance(value, float) and not math.isfinite(value)]
        entry.update(dict.fromkeys(bad))


def shown_by_gradient(loss: torch.Tensor) -> torch.Tensor:
    """The loss; if it is not finite, one whose gradient is not either. Nothing waits for the device."""
    return loss * torch.where(loss.detach().isfinite(), 1.0, torch.nan)
