"""The reward `true`: what the prompts of the embedded text set are really about, which only a made-up world knows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from r1_aqa_repro.embedded.text_tasks import TASKS, true_reward
from r1_aqa_repro.rewards.registry import RESERVED, RULES, Rule
from r1_aqa_repro.rewards.rules import Completion, completion_text


def register() -> None:
    """Make the reward known by name. A command that takes rewards by name calls this first."""
    remedy = "The reward true is for the embedded text set alone: it reads the task and its columns."
    RULES["true"] = Rule(lambda args: embedded_true_reward, "task", _is_embedded, remedy)


def embedded_true_reward(completions: Sequence[Completion], **columns: Sequence[Any]) -> list[float]:
    """`text_tasks.true_reward` as a reward function.

    With weight 0 beside a reward model it shows whether the model's rewards lead to better answers.
    """
    names = [name for name in columns if name not in RESERVED]
    return [
        true_reward({name: columns[name][row] for name in names}, completion_text(completion))
        for row, completion in enumerate(completions)
    ]


def _is_embedded(columns: Mapping[str, Any]) -> bool:
    try:
        task = TASKS[columns["task"]]
        return task.reward(dict(columns), task.good(dict(columns), np.random.default_rng(0))) == 1
    except (KeyError, TypeError, ValueError):  # another task; columns that are absent or hold something else
        return False
