"""What judges completions of text prompts: rule rewards and reward models by name, and the checks of what they need."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from r1_aqa_repro.common.errors import Problem, Refused
from r1_aqa_repro.data.conversations import TextPrompt
from r1_aqa_repro.data.prompts import PROMPT_STYLES
from r1_aqa_repro.embedded.text_tasks import TASKS, true_reward
from r1_aqa_repro.grpo.checks import check_weights
from r1_aqa_repro.model.text_loading import check_reward_model
from r1_aqa_repro.rewards.persona import persona_reward
from r1_aqa_repro.rewards.rules import Completion, RewardFunction, completion_text, format_reward, random_reward
from r1_aqa_repro.rewards.text_rules import (
    check_harmful,
    check_math_answers,
    length_penalty,
    math_reward,
    python_syntax_reward,
    safety_reward,
)
from r1_aqa_repro.run.text_config import RewardArguments

REWARD_MODEL = "reward_model"


def check_styles(prompts: Sequence[TextPrompt], file: str) -> list[Problem]:
    """A problem for each prompt whose `prompt_style` is none."""
    return [
        Problem(f"{file}: {prompt.id}", f"prompt_style is {style!r:.80}", f"Choose among {', '.join(PROMPT_STYLES)}.")
        for prompt in prompts
        if (style := prompt.columns["prompt_style"]) not in PROMPT_STYLES
    ]


def check_embedded(prompts: Sequence[TextPrompt], file: str) -> list[Problem]:
    """A problem for each prompt of a task whose true reward is not known."""
    remedy = "The reward true is for the embedded text set alone."
    return [
        Problem(f"{file}: {prompt.id}", "task and columns are none of the embedded text set's", remedy)
        for prompt in prompts
        if not _is_embedded(prompt.columns)
    ]


def _is_embedded(columns: dict[str, Any]) -> bool:
    try:
        task = TASKS[columns["task"]]
        return task.reward(columns, task.good(columns, np.random.default_rng(0))) == 1
    except (KeyError, TypeError, ValueError):  # another task; columns that are absent or hold something else
        return False


# by name, from the configuration
RULES: dict[str, Callable[[Any], RewardFunction]] = {
    "math": lambda args: where_given("answer", math_reward),
    "python_syntax": lambda args: python_syntax_reward,
    "length_penalty": lambda args: length_penalty(args.max_completion_length, args.length_penalty_cache),
    "format": lambda args: where_given("prompt_style", format_reward),
    "persona": lambda args: persona_reward(args.persona_rubric),
    "safety": lambda args: where_given("harmful", safety_reward),
    "true": lambda args: where_given("task", embedded_true_reward),
    "random": lambda args: random_reward,
}
# the column without which a rule does not judge a prompt, and the check of its values
_NEEDS: dict[str, tuple[str, Callable[[Sequence[TextPrompt], str], list[Problem]]]] = {
    "math": ("answer", check_math_answers),
    "safety": ("harmful", check_harmful),
    "format": ("prompt_style", check_styles),
    "true": ("task", check_embedded),
}
# what TRL hands to rewards beside the columns
_TAKEN = {
    *("question", "prompts", "completions", "completion", "completion_ids", "trainer_state", "log_extra", "log_metric"),
    *("image", "images"),  # of which TRL makes prompts with parts
}


def where_given(column: str, rule: RewardFunction) -> RewardFunction:
    """The rule for rows that have something in a column; None, which TRL leaves out of the sum, for the others.

    So one file of prompts can mix tasks.
    """

    @functools.wraps(rule)
    def reward(completions: Sequence[Completion], **columns: Any) -> list[float | None]:
        given = columns.get(column) or [None] * len(completions)
        rows = [row for row, value in enumerate(given) if value is not None]
        picked = {
            name: [values[row] for row in rows] if isinstance(values, list) else values
            for name, values in columns.items()
        }
        rewards = iter(rule([completions[row] for row in rows], **picked) if rows else [])
        return [None if value is None else next(rewards) for value in given]

    return reward


def embedded_true_reward(completions: Sequence[Completion], **columns: Sequence[Any]) -> list[float]:
    """What the prompts of the embedded text set are really about (`text_tasks.true_reward`).

    With weight 0 beside a reward model it shows whether the model's rewards lead to better answers.
    """
    names = [name for name in columns if name not in _TAKEN]
    return [
        true_reward({name: columns[name][row] for name in names}, completion_text(completion))
        for row, completion in enumerate(completions)
    ]


def check_judges(args: RewardArguments) -> list[Problem]:
    """A problem for each reward that does not exist or lacks what it needs, and for weights that do not fit."""
    names, weights = args.reward_funcs, getattr(args, "reward_weights", None)
    problems = [
        Problem("reward_funcs", f"there is no reward {name!r}", f"Choose among {', '.join([REWARD_MODEL, *RULES])}.")
        for name in names
        if name not in RULES and name != REWARD_MODEL
    ]
    if not names:
        problems.append(Problem("reward_funcs", "nothing judges the completions", "Name one reward or several."))
    if len(set(names)) < len(names):
        problems.append(Problem("reward_funcs", f"{names} has a reward twice", "Give it once, with a weight."))
    problems += check_weights(weights, names)
    for name, key in ((REWARD_MODEL, "reward_model_name_or_path"), ("persona", "persona_rubric")):
        value = getattr(args, key)
        if name in names and value is None:
            problems.append(Problem(key, f"the reward {name} needs it", "Set it, or leave the reward out."))
        if name not in names and value is not None:
            problems.append(Problem(key, "no reward uses it", f"Add {name} to reward_funcs, or leave the key out."))
    try:
        if REWARD_MODEL in names and args.reward_model_name_or_path is not None:
            check_reward_model(args.reward_model_name_or_path)
        if "length_penalty" in names and getattr(args, "max_completion_length", None) is None:
            raise Refused.because("max_completion_length", "the reward length_penalty needs it", "Set it.")
        for name in names:
            if name in RULES and (name != "persona" or args.persona_rubric is not None):
                RULES[name](args)
    except Refused as refusal:
        problems += refusal.problems
    return problems


def check_prompts(args: RewardArguments, prompts: Sequence[TextPrompt], file: str) -> list[Problem]:
    """A problem for each prompt that lacks what a reward reads of it, or has a column of a name that TRL uses."""
    problems = [
        Problem(
            f"{file}: {prompt.id}", f"the column {name} has a name that rewards get something else by", "Rename it."
        )
        for prompt in prompts
        for name in prompt.columns
        if name in _TAKEN
    ]
    problems += [
        Problem(f"{file}: {prompt.id}", f"task is {task!r:.80}", "Give it as a text, or leave it out.")
        for prompt in prompts
        if not isinstance(task := prompt.columns.get("task"), str | None)
    ]
    for name in args.reward_funcs:
        if name in _NEEDS:
            column, check = _NEEDS[name]
            problems += check([prompt for prompt in prompts if prompt.columns.get(column) is not None], file)
    if args.reward_funcs and all(name in _NEEDS for name in args.reward_funcs):
        columns = [_NEEDS[name][0] for name in args.reward_funcs]
        problems += [
            Problem(f"{file}: {prompt.id}", "no reward judges it", f"Give it {' or '.join(columns)}.")
            for prompt in prompts
            if all(prompt.columns.get(column) is None for column in columns)
        ]
    return problems


def check_uses(args: RewardArguments, prompts: Sequence[TextPrompt], file: str) -> list[Problem]:
    """A problem for each reward that judges not one of the prompts: its column may be misspelt."""
    return [
        Problem(
            file,
            f"no prompt has {column!r}, without which the reward {name} judges nothing",
            "Name the column so, or leave the reward out.",
        )
        for name, (column, _) in _NEEDS.items()
        if name in args.reward_funcs and prompts and all(prompt.columns.get(column) is None for prompt in prompts)
    ]


def positions_of_judge(args: RewardArguments) -> int | None:
    """The longest conversation that the reward model was made for; None without one that can be read."""
    if REWARD_MODEL not in args.reward_funcs or args.reward_model_name_or_path is None:
        return None
    try:
        return int(check_reward_model(args.reward_model_name_or_path).max_position_embeddings)
    except Refused:  # `check_judges` says why
        return None


def rule_rewards(args: RewardArguments) -> dict[str, RewardFunction]:
    """The rule rewards that a configuration names."""
    return {name: RULES[name](args) for name in args.reward_funcs if name in RULES}
