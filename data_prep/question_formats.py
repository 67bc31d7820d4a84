"""The formats in which people publish multiple-choice questions about audio, and what they become.

- AudioMCQ (Harland/AudioMCQ-StrongAC-GeminiCoT's data.jsonl, inclusionAI/AudioMCQ; arXiv 2509.21060): `question_type`,
  `audio_path`, `question`, `choices`, `answer` as text, and `source_dataset`, `id`, `audio-contribution` where they are
  there;
- DCASE-2025, task 5, parts 1 to 3 (arXiv 2505.07365): `audio_url`, `question`, `choice` with letters, `answer` with its
  letter, `question_type`; a file a question, or a list of them;
- ms-swift's multimodal lines: `messages`, of which the user's has the question and its choices, `audios` with one path,
  and `solution`, or the answer as the assistant's message.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from data_prep.lettered import LETTER, meant, spelled_out
from r1_aqa_repro.data.answers import answers_of
from r1_aqa_repro.data.benchmark_records import without_letters
from r1_aqa_repro.data.conversations import messages_from
from r1_aqa_repro.data.prompts import SPECIAL_TOKEN, prompt_text, target_text
from r1_aqa_repro.data.questions import AudioQuestion, check_question, question_from_manifest
from r1_aqa_repro.data.records import BadRecord, id_of, optional_text, text, texts

# a record is of the first format all of whose keys it has
_KEYS = {
    "ms-swift": ("messages",),
    "DCASE-2025": ("audio_url", "choice"),
    "AudioMCQ": ("question_type", "audio_path", "choices"),
}
_DCASE_PARTS = {"1": "bioacoustics", "2": "temporal soundscapes", "3": "complex"}
_OWN = tuple(field.name for field in fields(AudioQuestion) if field.name != "audio_path")
_AUDIO = "<audio>"  # where ms-swift puts the clip (docs/source_en/Customization/Custom-dataset.md of its repository)
_TAG = re.compile("<(?:audio|image|video)>")
_OTHER_MEDIA = ("image", "images", "video", "videos")
_LISTED = "Please choose the answer from the following options: "  # and Python's own list, see `prompts.prompt_text`
_LITERAL = r"""(?:'(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*")"""
_LIST = re.compile(rf"(\[{_LITERAL}(?:, {_LITERAL})*\])\.", re.DOTALL)
_INSTRUCTION = re.compile(r"\banswer\b", re.IGNORECASE)


@dataclass(frozen=True)
class Published:
    """A question as it was published.

    Attributes:
        question: without the path of its clip.
        file: where it stands.
        audio: path of the clip as it stands, from the file or from elsewhere.
        format: name of the format.
        left_out: what has no place in a manifest, mostly keys.
    """

    question: AudioQuestion
    file: Path
    audio: str
    format: str
    left_out: tuple[str, ...]


def published(record: dict[str, Any], where: str, file: Path) -> Published:
    """The question of a record in any of the formats; its keys tell which.

    Raises:
        BadRecord: no format has the keys, or a field is not what the format has there; or see `check_question`.
    """
    present = {key for key, value in record.items() if value is not None}
    name = _format_of(present) or _format_of(set(record))
    if name is None:
        known = "; ".join(f"{name} has {', '.join(keys)}" for name, keys in _KEYS.items())
        remedy = "AVQA (multi_choice) is prepared by `python -m data_prep.avqa`, MMAU (audio_id) by `data_prep.mmau`."
        raise BadRecord(f"unknown format with the keys {sorted(record)}", f"{known}. {remedy}")
    question, audio, read = _READERS[name](record, f"{file.name}:{where}")
    if name == "DCASE-2025" and file.suffix == ".json" and where in ("object", "line 1"):
        # a file of one question is named as the challenge's answers name it; of the ids inside some stand twice
        question = replace(question, id=file.stem, task=_dcase_part(file.stem))
    check_question(question)
    lost = {"a system message" if key == "messages" else key for key in present - read}
    return Published(question, file, audio, name, tuple(sorted(lost)))


def _format_of(keys: set[str]) -> str | None:
    return next((name for name, needed in _KEYS.items() if keys.issuperset(needed)), None)


def ms_swift_line(question: AudioQuestion, style: str) -> dict[str, Any]:
    """What `swift rlhf --rlhf_type grpo` reads: the prompt of a style, the clip by its absolute path, and what is right
    as `solution`. Reward functions are given the question's other fields too, and `published` reads them again.

    Raises:
        BadRecord: there is no answer, or a text spells a tag or a token that ms-swift would take for more.
    """
    prompt = prompt_text(question, style)
    if spelled := _TAG.search(prompt) or SPECIAL_TOKEN.search(prompt):
        what = f"question or choices spell {spelled[0]}, which ms-swift takes for more than text"
        raise BadRecord(what, "Write it otherwise, or leave the question out.")
    if question.answer is None:
        raise BadRecord("the question has no answer", "Use a split with answers.")
    solution = target_text(question, style)
    if answers_of(solution) != (question.answer.strip(),):
        what = f"the answer spells a tag: of {solution!r:.200} another part would be right"
        raise BadRecord(what, "Write it otherwise, or leave the question out.")
    others = {key: getattr(question, key) for key in _OWN if key not in ("id", "answer")}
    return {
        "id": question.id,
        "messages": [{"role": "user", "content": f"{_AUDIO}{prompt}"}],
        "audios": [str(question.audio_path)],
        "solution": solution,
        **{key: value for key, value in others.items() if value not in (None, ())},
    }


_Parts = tuple[AudioQuestion, str, set[str]]  # question, path of the clip, keys that were read


def _from_audiomcq(record: dict[str, Any], place: str) -> _Parts:
    """`id` is that of a source's clip: only with the source and the type of the question it is one question's."""
    source, kind = optional_text(record, "source_dataset"), text(record, "question_type")
    question = AudioQuestion(
        id="_".join(part for part in (kind, source, id_of(record, place)) if part),
        audio_path=Path(),
        question=text(record, "question"),
        choices=texts(record, "choices"),
        answer=text(record, "answer"),
        dataset="AudioMCQ",
        task=kind,
        source=source,
        contribution=optional_text(record, "audio-contribution"),
    )
    others = {"id", "source_dataset", "question", "answer", "audio-contribution"}
    return question, text(record, "audio_path"), {*_KEYS["AudioMCQ"], *others}


def _from_dcase(record: dict[str, Any], place: str) -> _Parts:
    listed, answer = texts(record, "choice"), optional_text(record, "answer")
    choices, _ = without_letters(listed, None, LETTER)
    own_id = id_of(record, place)
    question = AudioQuestion(
        id=own_id,
        audio_path=Path(),
        question=text(record, "question"),
        choices=choices,
        answer=meant(answer, choices) if answer and choices != listed else answer,
        dataset="DCASE-2025",
        task=_dcase_part(own_id),
        category=optional_text(record, "question_type"),
    )
    return question, text(record, "audio_url"), {*_KEYS["DCASE-2025"], "id", "question", "answer", "question_type"}


def _dcase_part(name: str) -> str | None:
    """`part1_dev_0007` -> `bioacoustics`"""
    part = re.match("part([123])(?=_|$)", name)
    return _DCASE_PARTS[part[1]] if part else None


def _from_ms_swift(record: dict[str, Any], place: str) -> _Parts:
    """The question's own fields if the line has them, as `ms_swift_line` writes it; else what its prompt says."""
    prompt, reply, has_system = _turns(record)
    own = {key: record[key] for key in _OWN if record.get(key) is not None} | {"id": id_of(record, place)}
    said = record["solution"] if record.get("solution") is not None else reply
    if said is not None:
        answers = set(answers_of(text({"solution": said}, "solution")))
        if len(answers) > 1:
            raise BadRecord(f"the solution has {len(answers)} different answers in tags", "Give one.")
        own["answer"] = answers.pop()  # without the spaces around it, which a choice may have
    if not {"question", "choices"} <= own.keys():
        question, choices, is_lettered = _asked(prompt)
        own |= {"question": question, "choices": list(choices)}
        if is_lettered and "answer" in own:
            own["answer"] = meant(text(own, "answer"), choices)
    same = {choice for choice in texts(own, "choices") if choice.strip() == own.get("answer")}
    own |= {"answer": same.pop()} if len(same) == 1 else {}
    read = {*_OWN, "audios", "audio", "solution"} | (set() if has_system else {"messages"})
    return question_from_manifest(own, Path()), _only_clip(record), read


def _turns(record: dict[str, Any]) -> tuple[str, str | None, bool]:
    """What the user asks, without the tag of the clip; what the assistant answers; whether a system message is lost."""
    messages = messages_from(record["messages"], "messages")
    roles, turns = [message["role"] for message in messages], [message["content"] for message in messages]
    if has_system := roles[0] == "system":
        roles, turns = roles[1:], turns[1:]
    if roles not in (["user"], ["user", "assistant"]):
        what = f"the messages are of {', '.join(message['role'] for message in messages)}"
        raise BadRecord(what, "Give one of the user, and perhaps a system message before and an answer after it.")
    if (tags := _TAG.findall(turns[0])) not in ([], [_AUDIO]):
        raise BadRecord(f"the prompt has the tags {', '.join(tags)}", "A question is about one clip.")
    return turns[0].replace(_AUDIO, "").strip(), turns[1] if len(turns) > 1 else None, has_system


def _asked(prompt: str) -> tuple[str, tuple[str, ...], bool]:
    """Question and choices of a prompt, and whether the choices have letters in it."""
    question, is_listed, rest = prompt.partition(_LISTED)
    if is_listed:
        found = _LIST.match(rest)
        try:
            choices = ast.literal_eval(found[1]) if found else None
        except (SyntaxError, ValueError):  # of what a backslash stands before
            choices = None
        if choices is None:
            what = f"after `{_LISTED.strip()}` comes no list such as `['dog', 'cat'].` but {rest!r:.200}"
            raise BadRecord(what, "Give the columns question and choices.")
        return question.rstrip(), tuple(choices), False
    spelled = spelled_out(prompt)
    if spelled.rest and not _INSTRUCTION.search(spelled.rest):
        what = f"nothing tells whether {spelled.rest!r:.200} belongs to the last choice"
        raise BadRecord(what, "Give the columns question and choices.")
    return spelled.question, spelled.choices, True


def _only_clip(record: dict[str, Any]) -> str:
    if others := [key for key in _OTHER_MEDIA if record.get(key)]:
        raise BadRecord(f"{', '.join(others)} would be lost", "A question is about one clip and nothing else.")
    clips = record["audio"] if record.get("audios") is None and "audio" in record else record.get("audios")
    listed = [clips] if isinstance(clips, str) else clips
    if not isinstance(listed, list) or len(listed) != 1:
        raise BadRecord(f"audios is {clips!r:.200}, not the path of one clip", "Give it as a list of one path.")
    return text({"audios": listed[0]}, "audios")


_READERS: dict[str, Callable[[dict[str, Any], str], _Parts]] = {
    "ms-swift": _from_ms_swift,
    "DCASE-2025": _from_dcase,
    "AudioMCQ": _from_audiomcq,
}
