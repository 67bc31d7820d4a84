"""Text data: prompts, demonstrations and preference pairs, each a file of JSON lines (or a JSON list).

All are in TRL's conversational form, with the prompt apart from the answers:

- prompts: `{"prompt": [{"role": "user", "content": ...}]}`;
- demonstrations: `{"prompt": [...], "completion": [{"role": "assistant", "content": ...}]}`;
- preference pairs: `{"prompt": [...], "chosen": [...], "rejected": [...]}`, the answers written like a completion;
- judged answers: `{"prompt": [...], "completion": [...], "label": true}`, true if the answer is a good one.

A prompt is an optional system message, then turns of user and assistant, the last of them a user's. `id` may be left
out: the place in the file is then the id. Other keys are kept as columns. A bad record never stops the reading: it
becomes a `Problem` that names the file and the line.
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

from r1_aqa_repro.data.records import BadRecord, Read, id_of, read_file

Message = dict[str, str]  # role (system, user or assistant) and content

_FILE = "a file of JSON lines"
CONVERT = "Convert the file with `python -m data_prep.preferences` and give the train.jsonl that it writes."


def answer(text: str) -> list[Message]:
    """The assistant's turn."""
    return [{"role": "assistant", "content": text}]


@dataclass(frozen=True)
class TextPrompt:
    """A conversation that waits for the assistant's answer, and the answers to it that its file has: the completion of
    a demonstration, the chosen and the rejected one of a preference pair, which may say by how much (`margin`), an
    answer that was judged (`label`)."""

    id: str
    messages: list[Message]
    columns: dict[str, Any] = field(default_factory=dict)
    answers: dict[str, str] = field(default_factory=dict)  # by key
    margin: float | None = None
    label: bool | None = None

    @property
    def conversations(self) -> list[list[Message]]:
        """The prompt with each of its answers; alone if it has none."""
        return [[*self.messages, *answer(text)] for text in self.answers.values()] or [self.messages]

    def row(self) -> dict[str, Any]:
        """TRL's conversational form, without the columns."""
        judged = {"margin": self.margin, "label": self.label}
        texts = {"prompt": self.messages} | {key: answer(text) for key, text in self.answers.items()}
        return texts | {key: value for key, value in judged.items() if value is not None}


@dataclass(frozen=True)
class Spelling:
    """How a format writes a message: the keys of its role and text, and what it calls the three roles."""

    role: str
    content: str
    system: str
    user: str
    assistant: str

    @property
    def roles(self) -> dict[str, str]:
        """{the format's name of a role: ours}"""
        return {self.system: "system", self.user: "user", self.assistant: "assistant"}

    @property
    def example(self) -> str:
        """How a message is written."""
        return f'{{"{self.role}": "{self.user}" or "{self.assistant}", "{self.content}": "..."}}'


CHAT = Spelling("role", "content", "system", "user", "assistant")


def read_prompts(path: str | os.PathLike[str]) -> Read[TextPrompt]:
    """Read a file of prompts; see `records.read_file`, as for the other readers here."""
    return read_file(path, _prompt_from, _FILE)


def read_pairs(path: str | os.PathLike[str], margin: str = "none") -> Read[TextPrompt]:
    """Read a file of preference pairs in the form that `data_prep.preferences` writes; other forms are problems.

    `margin` says where a pair's margin is from: `column`, its own `margin` if it has one; `scores`, score_chosen less
    score_rejected, which a pair must have; `none`.
    """
    return read_file(path, partial(_pair_from, margin=margin), _FILE)


def read_pairs_to_score(path: str | os.PathLike[str]) -> Read[TextPrompt]:
    """Read a file of preference pairs, or one of RewardBench (arXiv 2403.13787): `prompt`, `chosen` and `rejected` as
    texts and `subset`, which is kept as a column; also as the Parquet file of its data set."""
    return read_file(path, _pair_to_score_from, "a file of JSON lines, or RewardBench's Parquet file")


def read_judged(path: str | os.PathLike[str]) -> Read[TextPrompt]:
    """Read a file of judged answers, or of preference pairs, each of which is two: chosen a good one, rejected not."""
    read = read_file(path, _judged_from, _FILE)
    return Read([each for record in read.records for each in _judgements(record)], read.problems)


def _judged_from(record: dict[str, Any], where: str) -> TextPrompt:
    if "chosen" in record or "rejected" in record:
        return _pair_from(record, where)
    judged = _prompt_from(record, where, ("completion",))
    label = judged.columns.pop("label", None)
    if not isinstance(label, bool):
        found = "absent or null" if label is None else f"{label!r:.60}"
        raise BadRecord(f"label is {found}", "Give label: true for a good answer, false for a bad one.")
    return replace(judged, label=label)


def _judgements(record: TextPrompt) -> list[TextPrompt]:
    if record.label is not None:
        return [record]
    return [
        replace(record, id=f"{record.id}/{key}", answers={"completion": text}, label=key == "chosen")
        for key, text in record.answers.items()
    ]


def read_sft(path: str | os.PathLike[str]) -> Read[TextPrompt]:
    """Read a file of demonstrations."""
    return read_file(path, partial(_prompt_from, answers=("completion",)), _FILE)


def _prompt_from(record: dict[str, Any], where: str, answers: Sequence[str] = ()) -> TextPrompt:
    messages = messages_from(record.get("prompt"), "prompt")
    require_turns(messages, "prompt")
    columns = {key: value for key, value in record.items() if key not in ("id", "prompt", *answers)}
    given = {key: answer_from(record.get(key), key) for key in answers}
    return TextPrompt(id_of(record, where), messages, columns, given)


def _pair_from(record: dict[str, Any], where: str, margin: str = "none") -> TextPrompt:
    if not all(isinstance(record.get(key), list) for key in ("prompt", "chosen", "rejected")):
        expected = "expected prompt, chosen and rejected, each a list of messages"
        found = ", ".join(f"{key} ({type(value).__name__})" for key, value in sorted(record.items())) or "no keys"
        raise BadRecord(f"{expected}; found {found}", CONVERT)
    pair = _prompt_from(record, where, ("chosen", "rejected"))
    require_difference(*(text.strip() for text in pair.answers.values()))
    return replace(pair, margin=_margin_of(record, margin))


MARGINS = ("column", "scores", "none")


def _margin_of(record: dict[str, Any], source: str) -> float | None:
    if source == "none" or (source == "column" and record.get("margin") is None):
        return None
    if source == "column":
        margin = finite_number(record["margin"], "margin")
    else:
        margin = finite_number(record.get("score_chosen"), "score_chosen")
        margin -= finite_number(record.get("score_rejected"), "score_rejected")
    if margin < 0:
        raise BadRecord(f"its margin is {margin:g}: the rejected answer is the better one", "Leave the pair out.")
    return margin


def finite_number(value: Any, name: str) -> float:
    """Raise BadRecord unless it is a finite number."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        found = "absent or null" if value is None else f"{value!r:.60}"
        raise BadRecord(f"{name} is {found}, expected a number", f"Give {name} as a finite number, or leave it out.")
    return value


def _pair_to_score_from(record: dict[str, Any], where: str) -> TextPrompt:
    if not isinstance(record.get("subset"), str) or isinstance(record.get("chosen"), list):
        return _pair_from(record, where)
    prompt, chosen, rejected = (record.get(key) for key in ("prompt", "chosen", "rejected"))
    if not (isinstance(prompt, str) and isinstance(chosen, str) and isinstance(rejected, str)):
        what = f"expected RewardBench's prompt, chosen and rejected as texts beside subset, found {sorted(record)}"
        raise BadRecord(what, "Give them as its data set has them, or the pair as lists of messages.")
    # an empty answer stays: a benchmark is scored as it is. Its ids are unique in a subset at most
    name = f"{record['subset']} {id_of(record, '')}, {where}"
    columns, answers = {"subset": record["subset"]}, {"chosen": chosen, "rejected": rejected}
    return TextPrompt(name, [{"role": "user", "content": prompt}], columns, answers)


def messages_from(value: Any, name: str, spelling: Spelling = CHAT) -> list[Message]:
    """Check messages one by one, as they stand under the key `name`, and write them as TRL does.

    Raises:
        BadRecord: it is no list or an empty one, or a message is no object, has a role that is absent or unknown, a
            content that is empty or no text, or further keys: tool calls and the like would be lost.
    """
    if not isinstance(value, list) or not value:
        found = "absent or null" if value is None else f"{value!r:.60}"
        raise BadRecord(f"{name} is {found}", f"Give {name} as a list of messages {spelling.example}.")
    return [_message(message, f"{name} message {number}", spelling) for number, message in enumerate(value, start=1)]


def _message(value: Any, name: str, spelling: Spelling) -> Message:
    wanted = f"Write every message as {spelling.example}."
    if not isinstance(value, dict):
        raise BadRecord(f"{name} is {type(value).__name__}, expected an object", wanted)
    role, content = value.get(spelling.role), value.get(spelling.content)
    if not isinstance(role, str):
        raise BadRecord(f"{name} has no {spelling.role}, only {sorted(value)}", wanted)
    if role not in spelling.roles:
        what = f"{name} has the unsupported {spelling.role} {role!r}"
        raise BadRecord(what, f"Only {', '.join(spelling.roles)} are supported; leave the record out.")
    if not isinstance(content, str):
        raise BadRecord(f"{name} has {content!r:.60} as {spelling.content}, expected a text", wanted)
    if not content.strip():
        raise BadRecord(f"{name} has an empty {spelling.content}", "Give its text, or leave the record out.")
    others = sorted(key for key in value if key not in (spelling.role, spelling.content) and value[key])
    if others:
        raise BadRecord(f"{name} has the unsupported keys {others}", f"{wanted} Anything else would be lost.")
    return {"role": spelling.roles[role], "content": content}


def require_turns(messages: Sequence[Message], name: str, spelling: Spelling = CHAT) -> None:
    """Raise BadRecord unless a prompt is an optional system message, then user and assistant by turns, and ends with
    the user."""
    user, assistant = spelling.user, spelling.assistant
    order = f"After an optional {spelling.system} message {user} and {assistant} alternate, from {user} to {user}."
    first = int(messages[0]["role"] == "system")
    for index, message in enumerate(messages[first:]):
        expected = ("user", "assistant")[index % 2]
        if message["role"] != expected:
            found = getattr(spelling, message["role"])
            what = f"{name} message {first + index + 1} is of {found}, expected {getattr(spelling, expected)}"
            raise BadRecord(what, order)
    if (len(messages) - first) % 2 == 0:
        raise BadRecord(f"{name} does not end with a message of {user}", order)


def answer_from(value: Any, name: str, spelling: Spelling = CHAT) -> str:
    """The text of an answer: a list of exactly one message, the assistant's; see `messages_from`."""
    messages = messages_from(value, name, spelling)
    found = ", ".join(getattr(spelling, message["role"]) for message in messages)
    if found != spelling.assistant:
        what = f"{name} has messages of {found}, expected one message of {spelling.assistant}"
        raise BadRecord(what, "What comes before the answer belongs into the prompt alone; an answer is one turn.")
    return messages[0]["content"]


def require_difference(chosen: object, rejected: object) -> None:
    """Raise BadRecord if there is nothing to prefer."""
    if chosen == rejected:
        raise BadRecord("chosen and rejected are identical", "Leave the pair out: it says nothing.")
