"""The one record of the project, `AudioQuestion`, and every file format it is read from.

Three formats are understood and told apart by their keys, never by the file name:

- `manifest.jsonl`, this project's own: one AudioQuestion a line, `audio_path` relative to the manifest;
- R1-AQA's JSONL lines (AVQA records with `dataset_name` and `audio_path`, `answer` a 0-based index);
- MMAU's JSON list (`audio_id`, `sub-category`; `answer` as text).

A bad record never stops the reading: it becomes a `Problem` that names the file and the line, and the caller
decides whether that refuses the run or drops the record.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from r1_aqa_repro.errors import Problem, Refused
from r1_aqa_repro.files import write_atomically


@dataclass(frozen=True)
class AudioQuestion:
    """One multiple-choice question about one clip. `audio_path` is absolute once read from a file."""

    id: str
    audio_path: Path
    question: str
    choices: tuple[str, ...]
    answer: str | None
    dataset: str | None = None
    split: str | None = None
    task: str | None = None
    difficulty: str | None = None
    category: str | None = None
    sub_category: str | None = None
    version: str | None = None
    source_video: str | None = None
    flags: tuple[str, ...] = ()


@dataclass(frozen=True)
class QuestionFile:
    """What reading a file gave: the good records in file order, and a problem for each bad one."""

    questions: list[AudioQuestion]
    problems: list[Problem]


class BadRecord(Exception):
    def __init__(self, what: str, remedy: str):
        super().__init__(what)
        self.what, self.remedy = what, remedy


def read_questions(path: str | os.PathLike[str], audio_dir: str | os.PathLike[str] | None = None) -> QuestionFile:
    """Read a manifest, R1-AQA lines or an MMAU JSON file.

    Args:
        path: the file.
        audio_dir: folder that the audio paths of an MMAU file are relative to (default: the file's own folder). A
            path is looked up there as it stands and, where that is absent, by its file name.

    Raises:
        Refused: the file is absent, empty, or of no known format.
    """
    file = Path(path)
    if not file.is_file():
        raise Refused.because(
            str(file), "there is no such file", "Give the path of a manifest, JSONL or MMAU JSON file."
        )
    questions: list[AudioQuestion] = []
    problems: list[Problem] = []
    first_seen: dict[str, str] = {}
    for where, record in read_records(file):
        try:
            if isinstance(record, BadRecord):
                raise record
            question = _to_question(record, file, Path(audio_dir) if audio_dir else None)
            check_question(question)
            if question.id in first_seen:
                raise BadRecord(f"id {question.id!r} was already used at {first_seen[question.id]}", "Make ids unique.")
            first_seen[question.id] = where
            questions.append(question)
        except BadRecord as bad:
            problems.append(Problem(f"{file}:{where}", bad.what, bad.remedy))
    if not questions and not problems:
        raise Refused.because(str(file), "the file holds no records", "Check that it was written completely.")
    return QuestionFile(questions, problems)


def write_manifest(path: str | os.PathLike[str], questions: Iterable[AudioQuestion]) -> None:
    """Write a manifest whole or not at all; audio paths are stored relative to it, absent fields are left out."""
    file = Path(path)
    lines = []
    for question in questions:
        record: dict[str, Any] = {field.name: getattr(question, field.name) for field in fields(question)}
        record["audio_path"] = os.path.relpath(question.audio_path, file.parent)
        lines.append(json.dumps({k: v for k, v in record.items() if v is not None and v != ()}, ensure_ascii=False))
    write_atomically(file, "".join(line + "\n" for line in lines))


def read_records(file: Path) -> Iterator[tuple[str, Any]]:
    """Yield (`line N` or `record N`, JSON value or BadRecord) for a JSON list or a JSONL file.

    Lines are read one by one: a large file is not held in memory as one text. A file whose first sign is `[` is a list.

    Raises:
        Refused: the file is not UTF-8, or a JSON list that breaks off.
    """
    with open(file, "rb") as source:  # divided at line feeds alone: other separators may stand inside a JSON text
        lines = ((number, _decoded(file, number, raw)) for number, raw in enumerate(source, start=1))
        is_first = True
        for number, line in lines:
            if not line.strip():
                continue
            if is_first and line.lstrip().startswith("["):
                yield from _list_records(file, "\n" * (number - 1) + line + "".join(text for _, text in lines))
                return
            is_first = False
            yield f"line {number}", _line_record(line)


def _decoded(file: Path, number: int, line: bytes) -> str:
    try:
        return line.decode("utf-8-sig" if number == 1 else "utf-8")
    except UnicodeDecodeError as error:
        what = f"not UTF-8 text ({error.reason} at byte {error.start} of the line)"
        raise Refused.because(f"{file}:line {number}", what, "Convert the file.") from None


def _list_records(file: Path, text: str) -> Iterator[tuple[str, Any]]:
    try:
        records = json.loads(text)
    except (ValueError, RecursionError) as error:
        where = f"{file}:line {error.lineno}" if isinstance(error, json.JSONDecodeError) else str(file)
        remedy = "The file may have been cut off: fetch or write it again."
        raise Refused.because(where, f"malformed JSON ({_json_problem(error)})", remedy) from None
    yield from ((f"record {number}", record) for number, record in enumerate(records, start=1))


def _line_record(line: str) -> Any:
    try:
        return json.loads(line)
    except (ValueError, RecursionError) as error:
        return BadRecord(f"malformed JSON ({_json_problem(error)})", "Each line must be one JSON object.")


def _json_problem(error: ValueError | RecursionError) -> str:
    if isinstance(error, RecursionError):
        return "nested too deeply"
    return error.msg if isinstance(error, json.JSONDecodeError) else "a number has too many digits"


def _to_question(record: Any, file: Path, audio_dir: Path | None) -> AudioQuestion:
    if not isinstance(record, dict):
        raise BadRecord(f"expected an object, found {type(record).__name__}", "Each record must be a JSON object.")
    if "multi_choice" in record:
        return _from_r1_aqa(record, file)
    if "audio_id" in record:
        return _from_mmau(record, file, audio_dir)
    if "audio_path" in record and "choices" in record:
        return question_from_manifest(record, file)
    raise BadRecord(
        f"unknown record format with keys {sorted(record)}",
        "A manifest line has audio_path and choices, an R1-AQA line multi_choice, an MMAU record audio_id.",
    )


def question_from_manifest(record: dict[str, Any], file: Path) -> AudioQuestion:
    known = {field.name for field in fields(AudioQuestion)}
    unknown = sorted(set(record) - known)
    if unknown:
        raise BadRecord(f"unknown keys {unknown}", f"A manifest line has the keys {sorted(known)}.")
    optional = {
        key: _text(record, key) for key in known - {"choices", "flags", "audio_path"} if record.get(key) is not None
    }
    required: dict[str, Any] = {"id": _text(record, "id"), "question": _text(record, "question")}
    return AudioQuestion(
        **{"answer": None, **optional, **required},
        audio_path=(file.parent / _text(record, "audio_path")).absolute(),
        choices=_texts(record, "choices"),
        flags=_texts(record, "flags") if "flags" in record else (),
    )


def _from_r1_aqa(record: dict[str, Any], file: Path) -> AudioQuestion:
    choices = _texts(record, "multi_choice")
    index = record.get("answer")
    if not isinstance(index, int) or isinstance(index, bool):
        raise BadRecord(f"answer is {index!r}, not an index", "R1-AQA lines give the answer as a 0-based integer.")
    if not 0 <= index < len(choices):
        raise BadRecord(
            f"answer index {index} is out of range for {len(choices)} choices", "Indices count from 0; correct it."
        )
    audio_path = Path(_text(record, "audio_path"))
    if not audio_path.is_absolute():
        # R1-AQA resolves paths against the working directory; most files that travel are relative to themselves.
        beside, here = (file.parent / audio_path).absolute(), audio_path.absolute()
        is_beside, is_here = os.path.exists(beside), os.path.exists(here)  # False also for what cannot be a path
        if beside != here and is_beside and is_here:
            raise BadRecord(f"{audio_path} is found both at {beside} and at {here}", "Give an absolute path.")
        audio_path = here if is_here and not is_beside else beside
    question_id = record.get("id")
    return AudioQuestion(
        id=str(question_id) if isinstance(question_id, int) else _text(record, "id"),
        audio_path=audio_path,
        question=_text(record, "question_text"),
        choices=choices,
        answer=choices[index],
        dataset=_optional_text(record, "dataset_name") or "AVQA",
        task=_optional_text(record, "question_relation"),
        category=_optional_text(record, "question_type"),
        source_video=_optional_text(record, "video_name"),
    )


def _from_mmau(record: dict[str, Any], file: Path, audio_dir: Path | None) -> AudioQuestion:
    root = audio_dir or file.parent
    audio_path = root / _text(record, "audio_id")
    if not os.path.exists(audio_path):  # False also for what cannot be a path
        by_name = root / audio_path.name
        audio_path = by_name if os.path.exists(by_name) else audio_path
    category = record.get("category")
    if isinstance(category, list) and len(category) == 1:  # 13 records of test-mini have it so
        category = category[0]
    return AudioQuestion(
        id=_text(record, "id"),
        audio_path=audio_path.absolute(),
        question=_text(record, "question"),
        choices=_texts(record, "choices"),
        answer=_optional_text(record, "answer"),
        dataset=_optional_text(record, "dataset"),
        split=_optional_text(record, "split"),
        task=_optional_text(record, "task"),
        difficulty=_optional_text(record, "difficulty"),
        category=_optional_text({"category": category}, "category") if isinstance(category, str) else None,
        sub_category=_optional_text(record, "sub-category"),
    )


def check_question(question: AudioQuestion) -> None:
    if not question.question.strip():
        raise BadRecord("the question is empty", "Give its text.")
    if len(question.choices) < 2:
        raise BadRecord(f"only {len(question.choices)} choice(s)", "A question needs at least 2 choices.")
    if any(not choice.strip() for choice in question.choices):
        raise BadRecord("a choice is empty", "Give every choice a text.")
    if question.answer is not None and question.answer not in question.choices:
        raise BadRecord(
            f"answer {question.answer!r} is not among the choices {list(question.choices)}",
            "The answer must be one of the choices, character by character.",
        )


def _text(record: dict[str, Any], key: str) -> str:
    value = record.get(key)
    if not isinstance(value, str) or not value:
        raise BadRecord(f"{key} is {'absent' if key not in record else repr(value)}", f"Give {key} as a text.")
    _require_unicode(key, value)
    return value


def _optional_text(record: dict[str, Any], key: str) -> str | None:
    return None if record.get(key) in (None, "") else _text(record, key)


def _texts(record: dict[str, Any], key: str) -> tuple[str, ...]:
    value = record.get(key)
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise BadRecord(f"{key} is {'absent' if key not in record else repr(value)}", f"Give {key} as a list of texts.")
    _require_unicode(key, "".join(value))
    return tuple(value)


def _require_unicode(key: str, text: str) -> None:
    r"""JSON may hold `\ud800` alone, which no file can be written with."""
    try:
        text.encode()
    except UnicodeEncodeError:
        raise BadRecord(f"{key} is no valid Unicode (half of a surrogate pair)", "Correct the text.") from None


def with_answers(questions: Iterable[AudioQuestion], file: str | os.PathLike[str]) -> list[Problem]:
    """A problem for each question that has no answer: training and scoring need one."""
    return [
        Problem(f"{file}: {question.id}", "the question has no answer", "Use a split with answers.")
        for question in questions
        if question.answer is None
    ]


def limited(questions: list[AudioQuestion], limit: int | None) -> list[AudioQuestion]:
    """The first `limit` questions, or all."""
    return questions if limit is None else questions[:limit]
