"""Reward functions in TRL's signature: `(completions, **columns) -> list[float]`, one value a completion.

`completions` are conversations as TRL passes them (`[[{"role": "assistant", "content": text}], ...]`) or plain texts;
the columns come from the training rows: `answer`, `choices`, `prompt_style`.
"""

from __future__ import annotations

import functools
import random
import re
from collections.abc import Callable, Sequence
from typing import Any

from r1_aqa_repro.common.errors import Failed
from r1_aqa_repro.data.answers import answers_of, follows_format, is_correct, official
from r1_aqa_repro.rewards.arguments import ANSWER_PROBABILITY
from r1_aqa_repro.rewards.mathematics import are_equal

Completion = str | list[dict[str, Any]]
RewardFunction = Callable[..., Sequence[float | None]]  # None: the reward does not apply to the row
_LARGEST = 3.4e38  # of float32


def completion_text(completion: Completion) -> str:
    """The assistant's text of a completion in either of TRL's forms."""
    return completion if isinstance(completion, str) else completion[-1]["content"]


def require_finite(
    name: str, rewards: Sequence[float | None], completions: Sequence[Completion]
) -> Sequence[float | None]:
    """The rewards that a function has given to completions, if every one is a number.

    Raises:
        Failed: one is NaN, infinite, or too large for float32; the function and the completion are named.
    """
    for reward, completion in zip(rewards, completions, strict=True):
        if reward is not None and not abs(reward) <= _LARGEST:
            what = f"the reward {name} gave {float(reward)} for the completion {completion_text(completion)!r:.300}"
            raise Failed(f"{what}: a reward is a finite number, or None where it does not apply")
    return rewards


def finite(name: str, function: RewardFunction) -> RewardFunction:
    """A reward function that fails where it gives no number (`require_finite`): TRL takes NaN for one that does not
    apply."""

    @functools.wraps(function)
    def checked(completions: Sequence[Completion], **columns: Any) -> Sequence[float | None]:
        return require_finite(name, function(completions=completions, **columns), completions)

    return checked


def accuracy_reward(
    completions: Sequence[Completion], answer: Sequence[str], choices: Sequence[Sequence[str]], **_: Any
) -> list[float]:
    """1 if the completion is right for the benchmark and names the right choice and no other, else 0.

    What counts is what evaluation reads, the first `<answer>` block, or the whole completion if there is none. It must
    be right by MMAU's rule (`answers.official`) and name the choice (`answers.is_correct`): a letter alone is shorter
    than the choice's text, and would be learned although the benchmark counts it as wrong.
    """
    answers = (answers_of(completion_text(completion))[0] for completion in completions)
    return [
        float(official(text, gold, options) and is_correct(text, gold, options))
        for text, gold, options in zip(answers, answer, choices, strict=True)
    ]


def lenient_accuracy(
    completions: Sequence[Completion], answer: Sequence[str], choices: Sequence[Sequence[str]], **_: Any
) -> list[float]:
    """1 if the completion names the right choice and no other, by its text or its letter, else 0.

    The text in the `<answer>` tags counts, or the whole completion if there are none. It must be the choice after
    normalising, or its letter if that is unambiguous (`answers.match_choice`). Several blocks must all agree.
    """
    return [
        float(all(is_correct(text, gold, options) for text in answers_of(completion_text(completion))))
        for completion, gold, options in zip(completions, answer, choices, strict=True)
    ]


def format_reward(completions: Sequence[Completion], prompt_style: Sequence[str], **_: Any) -> list[float]:
    """1 if the completion is exactly what its prompt style asks for (`answers.follows_format`), else 0."""
    return [
        float(follows_format(completion_text(completion), style))
        for completion, style in zip(completions, prompt_style, strict=True)
    ]


def r1_aqa_accuracy(completions: Sequence[Completion], answer: Sequence[str], **_: Any) -> list[float]:
    """R1-AQA's accuracy reward.

    1 if the last number or formula of the completion equals that of the gold text (`mathematics`), or if the text in
    the first pair of answer tags is the gold text, both stripped of white space at the ends. Like the reference it
    takes `dog 1` for `Speaker 1`, is case-sensitive, does not see tags that hold a newline, and takes the whole
    completion if there are no tags.
    """
    rewards = []
    for completion, gold in zip(completions, answer, strict=True):
        text = completion_text(completion)
        match = re.search(r"<answer>(.*?)</answer>", text)
        is_same_text = (match.group(1) if match else text).strip() == gold.strip()
        rewards.append(float(is_same_text or are_equal(text, f"<answer>{gold}</answer>")))  # so R1-AQA writes the gold
    return rewards


def r1_aqa_format(completions: Sequence[Completion], prompt_style: Sequence[str], **_: Any) -> list[float]:
    """R1-AQA's format reward: tags in order from the first character to the last; empty or repeated ones pass."""
    patterns = {"think": r"<think>.*?</think>\s*<answer>.*?</answer>", "answer": r"<answer>.*?</answer>"}
    return [
        float(re.fullmatch(patterns.get(style, r".*"), completion_text(completion), re.DOTALL) is not None)
        for completion, style in zip(completions, prompt_style, strict=True)
    ]


def random_reward(completions: Sequence[Completion], **_: Any) -> list[float]:
    """0 or 1 by a coin: the control that shows that a gain comes from the reward and not from training as such."""
    return [float(random.random() < 0.5) for _ in completions]


def answer_probability(completions: Sequence[Completion], **_: Any) -> list[float | None]:
    """Stands for the reward that a GRPO trainer computes by its policy: `grpo.answer_probability`.

    Raises:
        TypeError: always; nothing else can compute it.
    """
    raise TypeError(f"only a GRPO trainer computes {ANSWER_PROBABILITY}")


REWARDS: dict[str, RewardFunction] = {
    "accuracy": accuracy_reward,
    "format": format_reward,
    "lenient_accuracy": lenient_accuracy,
    "r1_aqa_accuracy": r1_aqa_accuracy,
    "r1_aqa_format": r1_aqa_format,
    ANSWER_PROBABILITY: answer_probability,
    "random": random_reward,
}

# what is logged of those that judge the choice and of those that judge the form; what agrees with the benchmark is last
ACCURACY_FIGURES = tuple(f"rewards/{name}/mean" for name in ("lenient_accuracy", "r1_aqa_accuracy", "accuracy"))
FORMAT_FIGURES = tuple(f"rewards/{name}/mean" for name in ("r1_aqa_format", "format"))
