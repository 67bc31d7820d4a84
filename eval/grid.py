"""What is put to the model: every question as often, and with its choices in as many orders, as an evaluation wants."""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

from r1_aqa_repro.data.questions import AudioQuestion

T = TypeVar("T")
Key = tuple[str, int]  # the id of a question and the number of a repeat: what one prediction is of


@dataclass(frozen=True)
class AudioPrompt:
    """A question in one order of its choices, and how many completions it gets.

    Attributes:
        question: with its choices in the order in which they are asked.
        first_repeat: number of its first completion among all of the question's.
        repeats: completions of this prompt.
        permuted: whether the evaluation asks in several orders, so that the order belongs in the record.
    """

    question: AudioQuestion
    first_repeat: int = 0
    repeats: int = 1
    permuted: bool = False

    @property
    def keys(self) -> list[Key]:
        """Of its completions, in their order."""
        return [(self.question.id, self.first_repeat + number) for number in range(self.repeats)]


def prompts_of(questions: Sequence[AudioQuestion], repeats: int = 1, orders: int = 1) -> list[AudioPrompt]:
    """Every question in `orders` orders of its choices, each to be answered `repeats` times."""
    return [
        AudioPrompt(replace(question, choices=choices), number * repeats, repeats, orders > 1)
        for question in questions
        for number, choices in enumerate(choice_orders(question, orders))
    ]


def choice_orders(question: AudioQuestion, count: int) -> list[tuple[str, ...]]:
    """Orders of a question's choices, the first as the file has them and the others drawn with its id as the seed.

    They differ as texts, until there are no further ones: two choices have two orders, which then come in turn.
    """
    choices = question.choices
    possible = math.factorial(len(choices)) // math.prod(math.factorial(n) for n in Counter(choices).values())
    rng = random.Random(question.id)
    orders = [choices]
    while len(orders) < min(count, possible):
        order = tuple(rng.sample(choices, len(choices)))
        if order not in orders:
            orders.append(order)
    return [orders[number % possible] for number in range(count)]


def batches(prompts: Sequence[AudioPrompt], size: int, seconds: Mapping[Path, float]) -> list[list[AudioPrompt]]:
    """The fixed grid over all prompts: a prompt's neighbours, and so its padding, are always the same.

    Long clips come first and clips of a length together, so that little is padding, and a batch that does not fit
    into memory is met at the beginning.

    Args:
        prompts: what is asked.
        size: prompts in a batch.
        seconds: the length of each clip, see `seconds_of`.
    """
    in_order = sorted(prompts, key=lambda one: -seconds[one.question.audio_path])  # stable: otherwise as they were
    return [in_order[start : start + size] for start in range(0, len(in_order), size)]


def share_of(batches: Sequence[T], rank: int, count: int, in_step: bool) -> list[T]:
    """What process `rank` of `count` generates; `in_step` all of them generate equally often.

    As they must if each holds a part of the model (ZeRO-3): who has no batch left in the last round repeats one.
    """
    if not in_step:
        return list(batches[rank::count])
    return [batches[(first + rank) % len(batches)] for first in range(0, len(batches), count)]


def seconds_of(clips: Iterable[Path]) -> dict[Path, float]:
    """The length of each clip, by its header; 0 of one that cannot be read."""
    from r1_aqa_repro.data.audio import AudioError, read_header  # slow to import, and needed here only

    lengths = dict.fromkeys(clips, 0.0)
    for path in lengths:
        with suppress(AudioError):
            lengths[path] = read_header(path).seconds
    return lengths
