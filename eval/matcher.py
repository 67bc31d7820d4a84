"""Whether an answer is right: by the benchmark's own rule, and by two stricter readings.

All of them are given the parsed answer (`answers.answer_of`), never the raw completion.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

from r1_aqa_repro.data.answers import is_correct, match_choice, normalise

_TOKEN = re.compile(r"\b\w+\b")


def official(answer: str, gold: str, choices: Sequence[str]) -> bool:
    """MMAU's token rule, with its quirks.

    Right is an answer that has tokens, holds all tokens of the gold text, and holds none that stands in another choice
    but not in the gold text.
    """
    said, wanted = _tokens(answer), _tokens(gold)
    forbidden = set().union(*map(_tokens, choices)) - wanted
    return bool(said) and wanted <= said and not said & forbidden


def strict(answer: str, gold: str, choices: Sequence[str]) -> bool:
    """The answer is one choice and no other, up to case, white space and surrounding punctuation: the gold one."""
    wanted = normalise(answer)
    return bool(wanted) and {choice for choice in choices if normalise(choice) == wanted} == {gold}


MATCHERS: dict[str, Callable[[str, str, Sequence[str]], bool]] = {
    "official": official,
    "strict": strict,
    "letter_aware": is_correct,  # the accuracy reward's rule: by the text or an unambiguous letter
}


def verdicts(answer: str | None, gold: str, choices: Sequence[str]) -> dict[str, bool]:
    """The verdict of every matcher; no answer (missing or unparsed) is wrong for all of them."""
    return {name: answer is not None and matches(answer, gold, choices) for name, matches in MATCHERS.items()}


def named_choice(answer: str, choices: Sequence[str]) -> str | None:
    """The text of the choice that `answer` names: as `letter_aware` reads it, otherwise the only one that `official`
    would accept; None if there is no such choice."""
    index = match_choice(answer, choices)
    if index is not None:
        return choices[index]
    accepted = {choice for choice in choices if official(answer, choice, choices)}
    return accepted.pop() if len(accepted) == 1 else None


def _tokens(text: str) -> set[str]:
    return set(_TOKEN.findall(text.lower()))
