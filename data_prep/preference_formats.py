"""The formats in which people write preference pairs, and what they become: messages with explicit prompt."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from r1_aqa_repro.data.conversations import (
    Message,
    Spelling,
    TextPrompt,
    answer,
    answer_from,
    finite_number,
    messages_from,
    require_difference,
    require_turns,
)
from r1_aqa_repro.data.records import BadRecord, Rejected, id_of, parse_records

AUTO = "auto"
WANTED = {
    "trl": "trl: chosen and rejected, perhaps prompt",
    "sharegpt": "sharegpt: conversations, chosen, rejected, perhaps system",
    "alpaca": "alpaca: instruction, chosen, rejected, perhaps input, system, history",
}
SHAREGPT = Spelling("from", "value", "system", "human", "gpt")
TEXT_EXTRACTED = "trl texts, prompt extracted"
SCORES = {  # key: what it is called from here on; the first two are UltraFeedback's names
    **{name: name for name in ("score_chosen", "score_rejected", "margin")},
    **{"chosen_score": "score_chosen", "rejected_score": "score_rejected"},
}
_DIALOGUE = "trl texts, dialogue split into turns"
# how Anthropic's HH-RLHF, and what was made after it, write a dialogue as one text
_TURN = re.compile(r"(?:^\s*|\n\n)(Human|Assistant):")
_ROLES = {"Human": "user", "Assistant": "assistant"}

# beside chosen and rejected; the first of them tells the format
_KEYS = {
    "trl": ("prompt",),
    "sharegpt": ("conversations", "system"),
    "alpaca": ("instruction", "input", "system", "history"),
}
# what belongs to the conversation wherever it stands: a format that does not know the key would lose it
_CONTEXT = {"question", "tools", "images", "videos", "audios"}.union(*_KEYS.values())
_KEPT = ("id", "task", *SCORES)


@dataclass(frozen=True)
class Converted:
    """A pair: where it stood, how it was written (`trl texts`, `sharegpt`, ...), and which keys were left out."""

    where: str
    pair: TextPrompt
    shape: str
    left_out: list[str]


def convert(source: Path, format_name: str = AUTO) -> Iterator[Converted | Rejected]:
    """Stream the records of a file as pairs. Ids are not compared; a pair without one is named by its place.

    Raises:
        Refused: the file as a whole cannot be read.
    """
    parse = partial(_converted, source=source, format_name=format_name)
    return (record for _, record in parse_records(source, parse))


def _converted(record: dict[str, Any], where: str, source: Path, format_name: str) -> Converted:
    name = _format_of(record) if format_name == AUTO else format_name
    pair, shape = _pair(record, name, f"{source.name}:{where}")
    left_out = sorted(set(record) - {"chosen", "rejected", *_KEYS[name], *_KEPT})
    return Converted(f"{source}:{where}", pair, shape, left_out)


def _pair(record: dict[str, Any], name: str, place: str) -> tuple[TextPrompt, str]:
    """The pair of a record in a known format, and how exactly it was written."""
    missing = [key for key in ("chosen", "rejected") if record.get(key) is None]
    if missing:
        raise BadRecord(f"{' and '.join(missing)} absent or null, only {sorted(record)}", f"Expected {WANTED[name]}.")
    lost = sorted(key for key in _CONTEXT.difference(_KEYS[name]) if record.get(key))
    if lost:
        what = f"{', '.join(lost)} has no place in the format {name} and would be lost"
        raise BadRecord(what, f"Expected {WANTED[name]}. Put what matters into the prompt and remove the key.")
    shape, prompt, chosen, rejected = _CONVERTERS[name](record)
    require_difference(chosen.strip(), rejected.strip())  # a line break is nothing to prefer
    columns: dict[str, Any] = {}
    for key in _KEPT[1:]:
        if record.get(key) is not None:
            name, value = SCORES.get(key, key), _column(record, key)
            if columns.setdefault(name, value) != value:
                raise BadRecord(f"{name} is {columns[name]}, {key} is {value}", f"Give it once, as {name}.")
    answers = {"chosen": chosen, "rejected": rejected}
    return TextPrompt(id_of(record, place), prompt, columns, answers), shape


def _format_of(record: dict[str, Any]) -> str:
    """The format whose keys a record has.

    Raises:
        BadRecord: no format has them, or several do.
    """
    all_wanted = f"Known are {'; '.join(WANTED.values())}."
    if "chosen" not in record or "rejected" not in record:
        raise BadRecord(f"unknown format with the keys {sorted(record)}", all_wanted)
    found = [name for name, (key, *_) in _KEYS.items() if record.get(key) is not None]
    if len(found) > 1:
        what = f"ambiguous format: the keys {sorted(record)} are those of {' and '.join(found)}"
        raise BadRecord(what, f"{all_wanted} Remove what does not belong there.")
    return found[0] if found else "trl"


_Parts = tuple[str, list[Message], str, str]  # shape, prompt, chosen, rejected


def _from_trl(record: dict[str, Any]) -> _Parts:
    prompt, chosen, rejected = (record.get(key) for key in ("prompt", "chosen", "rejected"))
    if isinstance(chosen, str) and isinstance(rejected, str) and not isinstance(prompt, list):
        chosen, rejected = _text(chosen, "chosen"), _text(rejected, "rejected")
        if prompt is not None:
            prompt = _text(prompt, "prompt")
            asked = prompt.strip().removesuffix("\n\nAssistant:")
            if asked == prompt.strip() and not _TURN.match(prompt):
                return "trl texts", [_user(prompt)], chosen, rejected
            return _of_dialogues(f"{asked}\n\nAssistant:", chosen, rejected)
        if _TURN.search(chosen) or _TURN.search(rejected):
            return _of_dialogues("", chosen, rejected)
        end = _end_of_texts(chosen, rejected)
        answers = _text(chosen[end:], "the answer in chosen"), _text(rejected[end:], "the answer in rejected")
        return TEXT_EXTRACTED, [_user(chosen[:end])], *answers
    if not isinstance(chosen, list) or not isinstance(rejected, list):
        kinds = ", ".join(f"{key} is {_kind(record.get(key))}" for key in ("prompt", "chosen", "rejected"))
        raise BadRecord(kinds, "Expected all three as texts, or all as lists of messages; prompt may be absent.")
    if isinstance(prompt, list):
        messages = messages_from(prompt, "prompt")
        require_turns(messages, "prompt")
        return "trl messages", messages, answer_from(chosen, "chosen"), answer_from(rejected, "rejected")
    messages, better, worse = _parted(chosen, rejected)
    # as in UltraFeedback: the question once more, as a text beside the conversations that hold it
    if prompt is not None and _text(prompt, "prompt") not in (message["content"] for message in messages):
        what = "chosen and rejected do not have the prompt among their common messages"
        raise BadRecord(what, "Correct it, or remove it.")
    return "trl messages, prompt extracted", messages, better, worse


def _parted(chosen: list[Message], rejected: list[Message]) -> tuple[list[Message], str, str]:
    """What two whole conversations have in common, and the answers in which they end."""
    end = _end_of_messages(messages_from(chosen, "chosen"), messages_from(rejected, "rejected"))
    messages = messages_from(chosen[:end], "the common beginning of chosen and rejected")
    require_turns(messages, "the common beginning of chosen and rejected")
    answers = answer_from(chosen[end:], "the answer in chosen"), answer_from(rejected[end:], "the answer in rejected")
    return messages, *answers


def _of_dialogues(prompt: str, chosen: str, rejected: str) -> _Parts:
    """A pair of HH-RLHF: both texts, after the prompt if it is given apart, are dialogues with different ends.

    Raises:
        BadRecord: what stands before the first turn would be lost; or see `_parted`.
    """
    return _DIALOGUE, *_parted(_turns(prompt + chosen, "chosen"), _turns(prompt + rejected, "rejected"))


def _turns(dialogue: str, name: str) -> list[Message]:
    before, *parts = _TURN.split(dialogue)
    if before.strip():
        what = f"{name} has turns of Human and Assistant, but begins with {before.strip()!r:.60}"
        raise BadRecord(what, "Give the conversation as messages; what comes before it is one of the system.")
    turns = zip(parts[::2], parts[1::2], strict=True)
    return [{"role": _ROLES[who], "content": text.strip()} for who, text in turns]


def _end_of_texts(chosen: str, rejected: str) -> int:
    """Where the common beginning of two texts ends, as TRL's `extract_prompt` has it: one space at its end is the
    answers'. A word that both begin alike is the answers' too, which TRL cuts in two.

    Raises:
        BadRecord: there is no such beginning, or nothing else.
    """
    require_difference(chosen, rejected)
    end = _first_difference(chosen, rejected)
    remedy = "Give the prompt as a key of its own."
    if end == min(len(chosen), len(rejected)):
        what = "one of chosen and rejected is the beginning of the other, so nothing tells where the answers begin"
        raise BadRecord(what, remedy)
    if all(text[end].isalnum() for text in (chosen, rejected)):
        while end and chosen[end - 1].isalnum():
            end -= 1
    end -= chosen[:end].endswith(" ")
    if not chosen[:end].strip():
        raise BadRecord("chosen and rejected have no common prompt: they begin differently", remedy)
    return end


def _end_of_messages(chosen: list[Message], rejected: list[Message]) -> int:
    """Where the common beginning of two conversations ends: before the answers.

    Raises:
        BadRecord: they do not differ, or not first in a message of the assistant.
    """
    require_difference(chosen, rejected)
    end = _first_difference(chosen, rejected)
    if end == min(len(chosen), len(rejected)):
        what = "one of chosen and rejected goes on where the other ends"
        raise BadRecord(what, "Both must end with an answer to the same message.")
    remedy = "Everything before the answers must be the same in both."
    if {chosen[end]["role"], rejected[end]["role"]} != {"assistant"}:
        raise BadRecord(f"chosen and rejected answer different prompts: message {end + 1} differs", remedy)
    if end == 0:
        raise BadRecord("chosen and rejected have no common prompt: they begin with the answers", remedy)
    return end


def _first_difference(one: str | list[Message], other: str | list[Message]) -> int:
    shorter = min(len(one), len(other))
    return next((index for index in range(shorter) if one[index] != other[index]), shorter)


def _from_sharegpt(record: dict[str, Any]) -> _Parts:
    messages = messages_from(record.get("conversations"), "conversations", SHAREGPT)
    require_turns(messages, "conversations", SHAREGPT)
    if record.get("system"):
        if messages[0]["role"] == "system":
            raise BadRecord("system is given twice, as a key and as the first of conversations", "Remove one.")
        messages = [_system(record), *messages]
    for key in ("chosen", "rejected"):
        if not isinstance(record[key], dict):
            wanted = f'Give {key} as {{"from": "gpt", "value": "..."}}.'
            raise BadRecord(f"{key} is {_kind(record[key])}, expected an object", wanted)
    chosen, rejected = (answer_from([record[key]], key, SHAREGPT) for key in ("chosen", "rejected"))
    return "sharegpt", messages, chosen, rejected


def _from_alpaca(record: dict[str, Any]) -> _Parts:
    """Instruction and input are joined by a line break, and earlier turns come before them, as in LLaMA-Factory."""
    messages = [_system(record)] if record.get("system") else []
    history = record.get("history") or []
    if not isinstance(history, list) or not all(isinstance(turn, list) and len(turn) == 2 for turn in history):
        what = f"history is {history!r:.60}, expected a list of questions with their answers"
        raise BadRecord(what, "Give history as [[question, answer], ...].")
    for number, (question, reply) in enumerate(history, start=1):
        messages.append(_user(_text(question, f"question {number} of history")))
        messages += answer(_text(reply, f"answer {number} of history"))
    asked = [_text(record.get("instruction"), "instruction")]
    if record.get("input"):
        asked.append(_text(record["input"], "input"))
    answers = _text(record["chosen"], "chosen"), _text(record["rejected"], "rejected")
    return "alpaca", [*messages, _user("\n".join(asked))], *answers


_CONVERTERS: dict[str, Callable[[dict[str, Any]], _Parts]] = {
    "trl": _from_trl,
    "sharegpt": _from_sharegpt,
    "alpaca": _from_alpaca,
}
FORMATS = (AUTO, *_CONVERTERS)


def _user(text: str) -> Message:
    return {"role": "user", "content": text}


def _system(record: dict[str, Any]) -> Message:
    return {"role": "system", "content": _text(record["system"], "system")}


def _text(value: Any, name: str) -> str:
    if not isinstance(value, str):
        raise BadRecord(f"{name} is {_kind(value)}, expected a text", f"Give {name} as a text.")
    if not value.strip():
        raise BadRecord(f"{name} is empty", "Give its text, or leave the record out.")
    return value


def _column(record: dict[str, Any], key: str) -> str | float:
    """A key that is kept beside the pair: `task` is a text, the others are numbers."""
    value = record[key]
    return _text(value, key) if key not in SCORES else finite_number(value, key)


def _kind(value: Any) -> str:
    return "absent or null" if value is None else type(value).__name__
