"""Whether an answer is right: by the benchmark's own rule, and by two stricter readings.

All of them are given the parsed answer (`answers.answer_of`), never the raw completion.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from r1_aqa_repro.data.answers import is_correct, normalise, official


def alone(answer: str, choices: Sequence[str]) -> set[str]:
    """The choices that the answer is, up to case, white space and surrounding punctuation, and nothing else."""
    wanted = normalise(answer)
    return {choice for choice in choices if wanted and normalise(choice) == wanted}


def strict(answer: str, gold: str, choices: Sequence[str]) -> bool:
    """The answer is one choice alone and no other: the gold one."""
    return alone(answer, choices) == {gold}


MATCHERS: dict[str, Callable[[str, str, Sequence[str]], bool]] = {
    "official": official,  # MMAU's; another benchmark's own takes its place, see `benchmarks`
    "strict": strict,
    "letter_aware": is_correct,  # by the text or an unambiguous letter; the reward `accuracy` asks for `official` too
}


def verdicts(
    answer: str | None, gold: str, choices: Sequence[str], rule: Callable[[str, str, Sequence[str]], bool] = official
) -> dict[str, bool]:
    """The verdict of every matcher, `rule` being the benchmark's own; no answer (missing or unparsed) is wrong for all
    of them."""
    matchers = MATCHERS | {"official": rule}
    return {name: answer is not None and matches(answer, gold, choices) for name, matches in matchers.items()}
