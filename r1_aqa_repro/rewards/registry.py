"""Rewards of completions to text prompts, by the names that a configuration gives them, and the checks of what they
need."""

from __future__ import annotations

import functools
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from r1_aqa_repro.common.errors import Problem, Refused, collecting
from r1_aqa_repro.data.conversations import TextPrompt
from r1_aqa_repro.data.prompts import PROMPT_STYLES
from r1_aqa_repro.model.text_loading import check_reward_model, load_reward_model, load_tokenizer
from r1_aqa_repro.rewards.arguments import ANSWER_PROBABILITY, REWARD_MODEL, RewardArguments
from r1_aqa_repro.rewards.code import are_tests, check_sandbox, code_reward
from r1_aqa_repro.rewards.persona import persona_reward
from r1_aqa_repro.rewards.reward_model import BATCH_SIZE, RewardModel
from r1_aqa_repro.rewards.rules import Completion, RewardFunction, answer_probability, format_reward, random_reward
from r1_aqa_repro.rewards.text_rules import (
    is_gold_expression,
    length_penalty,
    math_reward,
    python_syntax_reward,
    safety_reward,
)

# what TRL hands to reward functions beside the columns of the prompts
RESERVED = {
    *("question", "prompts", "completions", "completion", "completion_ids", "trainer_state", "log_extra", "log_metric"),
    *("image", "images"),  # of which TRL makes prompts with parts
}


CODE = "code"


@dataclass(frozen=True)
class Rule:
    """A rule reward."""

    make: Callable[[Any], RewardFunction]  # of a configuration
    column: str | None = None  # the rule does not apply to a prompt without it; None: it applies to all
    accepts: Callable[[Mapping[str, Any]], bool] = lambda columns: True  # of a prompt that has `column`
    remedy: str = ""  # what to write into `column` instead

    def reward(self, args: Any) -> RewardFunction:
        """The reward function of a configuration, for files of prompts that mix tasks."""
        made = self.make(args)
        return made if self.column is None else where_given(self.column, made)


RULES: dict[str, Rule] = {
    "math": Rule(
        lambda args: math_reward,
        "answer",
        lambda columns: is_gold_expression(columns["answer"]),
        'Give a number or an expression as a text, such as "12.5", "-3/4" or "7,000".',
    ),
    "python_syntax": Rule(lambda args: python_syntax_reward),
    CODE: Rule(
        lambda args: code_reward(args.code_timeout, args.code_memory_mb),
        "test_cases",
        lambda columns: are_tests(columns["test_cases"]),
        'Give a list of statements, such as "assert f(1) == 2", or of {"input": "1", "output": "2"}.',
    ),
    "length_penalty": Rule(lambda args: length_penalty(args.max_completion_length, args.length_penalty_cache)),
    "format": Rule(
        lambda args: format_reward,
        "prompt_style",
        lambda columns: columns["prompt_style"] in PROMPT_STYLES,
        f"Choose among {', '.join(PROMPT_STYLES)}.",
    ),
    "persona": Rule(lambda args: persona_reward(args.persona_rubric)),
    "safety": Rule(
        lambda args: safety_reward,
        "harmful",
        lambda columns: isinstance(columns["harmful"], bool),
        "Write true or false.",
    ),
    ANSWER_PROBABILITY: Rule(
        lambda args: answer_probability,
        "answer",
        lambda columns: _has_reference(columns) and columns.get("prompt_style") in (None, "answer", "think"),
        "Give the right answer as a text, and prompt_style as answer or think, or leave that out; not direct.",
    ),
    "random": Rule(lambda args: random_reward),
}


def _has_reference(columns: Mapping[str, Any]) -> bool:
    return isinstance(columns["answer"], str) and bool(columns["answer"].strip())


def where_given(column: str, reward_function: RewardFunction) -> RewardFunction:
    """The reward function for rows that have something in a column; None for the others, which TRL leaves out of the
    sum."""

    @functools.wraps(reward_function)
    def reward(completions: Sequence[Completion], **columns: Any) -> list[float | None]:
        given = columns.get(column) or [None] * len(completions)
        rows = [row for row, value in enumerate(given) if value is not None]
        picked = {
            name: [values[row] for row in rows] if isinstance(values, list) else values
            for name, values in columns.items()
        }
        rewards = iter(reward_function([completions[row] for row in rows], **picked) if rows else [])
        return [None if value is None else next(rewards) for value in given]

    return reward


def check_names(names: Sequence[str], weights: Sequence[float] | None, known: Collection[str]) -> list[Problem]:
    """A problem for each reward that does not exist, and if the weights are not one a reward."""
    problems = [
        Problem("reward_funcs", f"there is no reward {name!r}", f"Choose among {', '.join(known)}.")
        for name in names
        if name not in known
    ]
    if weights is not None and len(weights) != len(names):
        what = f"{len(weights)} weights for {len(names)} rewards"
        problems.append(Problem("reward_weights", what, "Give one weight a reward."))
    return problems


def check_rewards(args: RewardArguments) -> list[Problem]:
    """A problem for each reward that does not exist or lacks what it needs, and for weights that do not fit."""
    names = args.reward_funcs
    problems = check_names(names, getattr(args, "reward_weights", None), [REWARD_MODEL, *RULES])
    if not names:
        problems.append(Problem("reward_funcs", "there is no reward", "Name one or several."))
    if len(set(names)) < len(names):
        problems.append(Problem("reward_funcs", f"{names} has a reward twice", "Give it once, with a weight."))
    for name, key in ((REWARD_MODEL, "reward_model_name_or_path"), ("persona", "persona_rubric")):
        value = getattr(args, key)
        if name in names and value is None:
            problems.append(Problem(key, f"the reward {name} needs it", "Set it, or leave the reward out."))
        if name not in names and value is not None:
            remedy = f"Add {name} to reward_funcs, or leave the key out (--{key} '')."
            problems.append(Problem(key, "no reward uses it", remedy))
    if ANSWER_PROBABILITY in names and not hasattr(args, "sharing"):
        what = f"{ANSWER_PROBABILITY} is computed by the policy that GRPO trains"
        problems.append(Problem("reward_funcs", what, "Use train_grpo_text, or another reward."))
    if CODE in names:
        problems += check_sandbox()
    with collecting(problems):
        if REWARD_MODEL in names and args.reward_model_name_or_path is not None:
            check_reward_model(args.reward_model_name_or_path)
        if "length_penalty" in names and getattr(args, "max_completion_length", None) is None:
            raise Refused.because("max_completion_length", "the reward length_penalty needs it", "Set it.")
        for name in names:
            if name in RULES and (name != "persona" or args.persona_rubric is not None):
                RULES[name].reward(args)
    return problems


def check_prompts(args: RewardArguments, prompts: Sequence[TextPrompt], file: str) -> list[Problem]:
    """A problem for each prompt that a reward cannot work with, or that has a column of a name that TRL uses."""
    rules = [RULES[name] for name in args.reward_funcs if name in RULES]
    columns = [RULES[name].column if name in RULES else None for name in args.reward_funcs]
    problems = []
    for prompt in prompts:
        own, place = prompt.columns, f"{file}: {prompt.id}"
        for name in [name for name in own if name in RESERVED]:
            what = f"the column {name} has a name that is taken"
            problems.append(Problem(place, what, "Rename it."))
        if not isinstance(task := own.get("task"), str | None):
            problems.append(Problem(place, f"task is {task!r:.80}", "Give it as a text, or leave it out."))
        for rule in rules:
            if rule.column is not None and own.get(rule.column) is not None and not rule.accepts(own):
                problems.append(Problem(place, f"{rule.column} is {own[rule.column]!r:.80}", rule.remedy))
        if columns and all(column is not None and own.get(column) is None for column in columns):
            problems.append(Problem(place, "no reward applies to it", f"Give it {' or '.join(map(str, columns))}."))
    return problems


def check_uses(args: RewardArguments, prompts: Sequence[TextPrompt], file: str) -> list[Problem]:
    """A problem for each reward that applies to not one of the prompts: its column may be misspelt."""
    used = {name: RULES[name].column for name in args.reward_funcs if name in RULES}
    return [
        Problem(
            file,
            f"no prompt has {column!r}, without which the reward {name} does not apply",
            "Name the column so, or leave the reward out.",
        )
        for name, column in used.items()
        if column is not None and prompts and all(prompt.columns.get(column) is None for prompt in prompts)
    ]


def reward_model_positions(args: RewardArguments) -> int | None:
    """The longest conversation that the reward model was made for; None if there is no readable one."""
    if REWARD_MODEL not in args.reward_funcs or args.reward_model_name_or_path is None:
        return None
    try:
        return int(check_reward_model(args.reward_model_name_or_path).max_position_embeddings)
    except Refused:  # `check_rewards` says why
        return None


def load_rewards(
    args: RewardArguments, dtype: str = "auto", device: str = "cpu", batch_size: int = BATCH_SIZE
) -> dict[str, RewardFunction]:
    """All reward functions that a configuration names, in its order; `batch_size` is that of the reward model."""
    found = {name: RULES[name].reward(args) for name in args.reward_funcs if name in RULES}
    if REWARD_MODEL in args.reward_funcs:
        folder = str(args.reward_model_name_or_path)
        tokenizer = load_tokenizer(folder)
        found[REWARD_MODEL] = RewardModel(load_reward_model(folder, tokenizer, dtype).to(device), tokenizer, batch_size)
    return {name: found[name] for name in args.reward_funcs}


def trl_rewards(args: RewardArguments) -> dict[str, list[Any]]:
    """What TRL's online trainers take of them: `reward_funcs`, by name, and `reward_processing_classes`. TRL itself
    scores with a reward model."""
    rewards = load_rewards(args)
    return {
        "reward_funcs": [(name, getattr(reward, "model", reward)) for name, reward in rewards.items()],
        "reward_processing_classes": [getattr(reward, "tokenizer", None) for reward in rewards.values()],
    }
