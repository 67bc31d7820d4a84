"""What the published forms of benchmarks have in common: lettered choices, answers as letters, clips in several forms.

The forms themselves are read in `questions`.
"""

from __future__ import annotations

import re
import string
from collections.abc import Sequence
from typing import Any

from r1_aqa_repro.data.records import BadRecord, optional_text

BRACKETED = re.compile(r"\(([A-Z])\) ?")  # `(A) Man`, MMAU's copy on the Hugging Face hub
DOTTED = re.compile(r"([A-Z])\. ?")  # `A. Man`, MMAR's (ngqtrung/mmar)
AUDIO_KEYS = ("audio_path", "audio")  # what names or holds the clip of a record
NOT_ASKED = SEVERAL_CLIPS, NO_CHOICES, ONE_CHOICE = "several clips", "no choices", "only one choice"


class NotAsked(BadRecord):
    """Raised for a sound record that is no question about one clip with choices: `reason` is one of `NOT_ASKED`."""

    def __init__(self, reason: str, what: str, remedy: str):
        super().__init__(what, remedy)
        self.reason = reason


def without_letters(
    choices: tuple[str, ...], answer: str | None, letter: re.Pattern[str] = BRACKETED
) -> tuple[tuple[str, ...], str | None]:
    """`(A) Man`, `(B) Woman` -> `Man`, `Woman`, if every choice has its own letter; of the answer likewise."""
    found = [letter.match(choice) for choice in choices]
    letters = "".join(match[1] for match in found if match)
    if not letters or letters != string.ascii_uppercase[: len(choices)]:
        return choices, answer
    clean = tuple(choice[match.end() :] for choice, match in zip(choices, found, strict=True) if match)
    meant = (one for one, choice in zip(clean, choices, strict=True) if answer and choice.strip() == answer.strip())
    return clean, next(meant, answer)


def chosen(answer: str, choices: Sequence[str], letters: str = string.ascii_uppercase) -> str:
    """The text of the choice that an answer names by its text or by its letter.

    Args:
        answer: as it stands in the record.
        choices: their texts.
        letters: those of the choices, in their order.

    Raises:
        BadRecord: it names none, or is the text of one and the letter of another.
    """
    own = letters[: len(choices)]
    by_letter = choices[own.index(answer)] if len(answer) == 1 and answer in own else None
    if answer not in choices and by_letter is None:
        what = f"answer {answer!r:.200} is neither one of the choices {list(choices)} nor a letter of {', '.join(own)}"
        raise BadRecord(what, "Give the text of a choice, character by character, or its letter.")
    if answer in choices and by_letter not in (None, answer):
        what = f"answer {answer!r} is the text of one choice and the letter of another, {by_letter!r}"
        raise BadRecord(what, "Give the letter of the choice that has this text, or the text of the other one.")
    return answer if by_letter is None else by_letter


def clip_paths(record: dict[str, Any]) -> list[str | None]:
    """The path of each of a record's clips, or None for one without a path, whose audio is embedded or absent.

    `audio_path` or `audio` is a path, the bytes, what the hub's parquet files have (`{bytes, path}`), or a list of any
    of these; of both `audio_path` counts.

    Raises:
        BadRecord: the record has neither key, names no clip, or has something else there.
    """
    there = [key for key in AUDIO_KEYS if key in record]
    if not there:
        raise BadRecord("there is neither audio_path nor audio", "Give the path of the clip, or embed it.")
    key = next((key for key in there if record[key] is not None), there[0])
    clips = record[key] if isinstance(record[key], list) else [record[key]]
    if not clips:
        raise BadRecord(f"{key} is an empty list", "Name the clip that the question is about.")
    return [_clip_path(key, clip) for clip in clips]


def _clip_path(key: str, clip: Any) -> str | None:
    if isinstance(clip, dict):
        return optional_text(clip, "path")
    if not isinstance(clip, str | bytes | None) or clip == "":
        what = f"{key} holds {clip!r:.200}, not a path, bytes or both"
        raise BadRecord(what, "Give the path of the clip, or embed it.")
    return clip if isinstance(clip, str) else None


def only_clip(record: dict[str, Any]) -> str | None:
    """The path of the clip of a record that may have no more than one; see `clip_paths`.

    Raises:
        BadRecord: it has several, or see there.
    """
    path, *others = clip_paths(record)
    if others:
        raise BadRecord(f"it names {len(others) + 1} clips", "A question is about one clip: name the one it is about.")
    return path
