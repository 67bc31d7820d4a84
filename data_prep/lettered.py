"""Questions whose choices are spelled out line by line with letters, and which of them an answer names.

Nothing is guessed: what can be read in two ways, or in none, is a bad record.
"""

from __future__ import annotations

import re
from itertools import takewhile
from string import ascii_uppercase
from typing import NamedTuple

from r1_aqa_repro.data.benchmark_records import chosen, without_letters
from r1_aqa_repro.data.records import BadRecord

LETTER = re.compile(r"\s*\(?([A-Z])[.):]\s*")  # `A. dog`, `A) dog`, `(A) dog`, `A: dog`
_HEADING = re.compile(r"\s*(choices|options|please choose the answer from the following options):\s*", re.IGNORECASE)


class SpelledOut(NamedTuple):
    """A question, its choices without their letters, and the lines that come after them."""

    question: str
    choices: tuple[str, ...]
    rest: str


def spelled_out(text: str) -> SpelledOut:
    """The parts of a text that lists its choices line by line: `Q\\nChoices:\\nA. dog\\nB. cat`.

    The list begins after a line such as `Choices:`, or where a line has the letter A. Empty lines do not count.

    Raises:
        BadRecord: no line has a letter, the letters are not A, B, C, ... in order, or a line among them has none.
    """
    lines = text.split("\n")
    heading = next((number for number, line in enumerate(lines) if _HEADING.fullmatch(line)), None)
    first = next((number for number, line in enumerate(lines) if _letter(line) == "A"), len(lines))
    begin, end = (first, first) if heading is None else (heading + 1, heading)
    listed = [line.strip() for line in lines[begin:] if line.strip()]
    lettered = tuple(takewhile(_letter, listed))
    rest = listed[len(lettered) :]
    if not lettered:
        raise BadRecord("the question has no `Choices:` with lines such as `A. dog`", "Give them.")
    if any(map(_letter, rest)):
        raise BadRecord(f"a line among the choices has no letter: {rest[0]!r:.200}", "Write each choice on one line.")
    choices, _ = without_letters(lettered, None, LETTER)
    if choices == lettered:
        letters = [str(_letter(line)) for line in lettered]
        what = f"the choices are lettered {', '.join(letters)}, not {', '.join(ascii_uppercase[: len(letters)])}"
        raise BadRecord(what, "Correct the letters.")
    return SpelledOut("\n".join(lines[:end]).rstrip(), choices, "\n".join(rest))


def meant(answer: str, choices: tuple[str, ...]) -> str:
    """The choice that an answer to lettered choices names: by its text, by its letter (`B`, `(B)`, `B.`), or by both
    (`B. cat`).

    Raises:
        BadRecord: it names none, or one by its text and another by its letter.
    """
    said = answer.strip()
    match = LETTER.match(said)
    if match and said not in choices:
        text = said[match.end() :]
        if not text:
            return chosen(match[1], choices)
        if choices[ascii_uppercase.index(match[1]) :][:1] == (text,):
            return text
    return chosen(said, choices)


def _letter(line: str) -> str | None:
    match = LETTER.match(line)
    return match[1] if match else None
