"""The one record of the project, `AudioQuestion`, and every file format it is read from.

These formats are understood and told apart by their keys, never by the file name:

- `manifest.jsonl`, this project's own: one AudioQuestion a line, `audio_path` relative to the manifest;
- R1-AQA's JSONL lines (AVQA records with `dataset_name` and `audio_path`, `answer` a 0-based index);
- MMAU's JSON list (`audio_id`, `sub-category`; `answer` as text);
- MMAR's records (`modality` with `sub-category` and `answer` as text, or with `subcategory` and `answer` as a letter);
- MMSU's records (`choice_a` to `choice_d`; `answer` as text or as a letter);
- MMAU-Pro's records (`sub-cat`; `answer` as text or as a letter), of which some are no questions with choices.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from r1_aqa_repro.common.errors import Problem
from r1_aqa_repro.common.files import as_lines, write_atomically
from r1_aqa_repro.data.benchmark_records import (
    DOTTED,
    NO_CHOICES,
    ONE_CHOICE,
    SEVERAL_CLIPS,
    NotAsked,
    chosen,
    clip_paths,
    only_clip,
    without_letters,
)
from r1_aqa_repro.data.records import BadRecord, Read, id_of, label, optional_text, read_file, text, texts

CONTRIBUTIONS = ("weak", "strong")

HEARD_SECONDS = 30.0  # of a clip, from its beginning: the window of Qwen2-Audio's feature extractor

# flags of a question: its clip goes on after HEARD_SECONDS; a choice is empty, and was published so
LONGER, EMPTY_CHOICE = "longer_than_30_s", "empty_choice"

_LETTERED = {"A": "choice_a", "B": "choice_b", "C": "choice_c", "D": "choice_d"}  # MMSU's keys
_PART = "Prepare the file with `python -m data_prep.mmau_pro`, which names all that it leaves out."


@dataclass(frozen=True)
class AudioQuestion:
    """One multiple-choice question about one clip. `audio_path` is absolute once read from a file.

    `modality` is what the clip holds (`speech`, `mix-sound-music`), `language` the one that is spoken in it, as its
    benchmark has them. `source_video` is the recording that the clip was cut from, `source` the collection or library
    that has it, and `licence` the clip's. `contribution` is one of `CONTRIBUTIONS`: whether the audio is needed to
    answer, as AudioMCQ labels its questions (arXiv 2509.21060).
    """

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
    modality: str | None = None
    language: str | None = None
    version: str | None = None
    source_video: str | None = None
    source: str | None = None
    licence: str | None = None
    contribution: str | None = None
    flags: tuple[str, ...] = ()


def read_questions(
    path: str | os.PathLike[str], audio_dir: str | os.PathLike[str] | None = None
) -> Read[AudioQuestion]:
    """Read a manifest, R1-AQA lines or a benchmark's file; see `records.read_file`.

    The audio paths of a benchmark's file are relative to `audio_dir` (default: the file's own folder): a path is looked
    up there as it stands and, if that is absent, by its file name.
    """

    def parse(record: dict[str, Any], where: str) -> AudioQuestion:
        question = question_of(record, Path(path), Path(audio_dir) if audio_dir else None)
        check_question(question)
        return question

    return read_file(path, parse, "a manifest, JSONL or MMAU JSON file")


def write_manifest(path: str | os.PathLike[str], questions: Iterable[AudioQuestion]) -> None:
    """Write a manifest whole or not at all; audio paths are stored relative to it."""
    file = Path(path)
    lines = (manifest_line(question, os.path.relpath(question.audio_path, file.parent)) for question in questions)
    write_atomically(file, "".join(lines))


def manifest_line(question: AudioQuestion, audio_path: str) -> str:
    """The line of a question, without the fields that it has no value for; `audio_path`, relative to the manifest,
    stands in for its own."""
    record = {field.name: getattr(question, field.name) for field in fields(question)} | {"audio_path": audio_path}
    return as_lines([{k: v for k, v in record.items() if v is not None and v != ()}])


def question_of(record: dict[str, Any], file: Path, audio_dir: Path | None) -> AudioQuestion:
    """The question of a record of a file in any of these formats.

    Raises:
        BadRecord: it is in none of them, or a field is absent or of another kind.
    """
    if "multi_choice" in record:
        return question_from_avqa(record, _path_in_r1_aqa(record, file))
    root = audio_dir or file.parent
    if "audio_id" in record:
        return question_from_mmau(record, _path_below(root, text(record, "audio_id")))
    if not record.keys().isdisjoint(_LETTERED.values()):
        return question_from_mmsu(record, _clip_below(root, record))
    if "sub-cat" in record:
        return replace(question_from_mmau_pro(record, Path()), audio_path=_clip_below(root, record))
    if "modality" in record and not record.keys().isdisjoint(("sub-category", "subcategory")):
        return question_from_mmar(record, _clip_below(root, record))
    if "audio_path" in record and "choices" in record:
        return question_from_manifest(record, (file.parent / text(record, "audio_path")).absolute())
    raise BadRecord(
        f"unknown record format with keys {sorted(record)}",
        "A manifest line has audio_path and choices, an R1-AQA line multi_choice, an MMAU record audio_id, one of MMAR "
        "modality and sub-category, one of MMSU choice_a, one of MMAU-Pro sub-cat.",
    )


def question_from_manifest(record: dict[str, Any], audio_path: Path) -> AudioQuestion:
    """The question of a record as a manifest has it.

    Raises:
        BadRecord: a field is absent or of another kind, or no question has it.
    """
    known = {field.name for field in fields(AudioQuestion)}
    unknown = sorted(set(record) - known)
    if unknown:
        raise BadRecord(f"unknown keys {unknown}", f"A manifest line has the keys {sorted(known)}.")
    needed = {"id", "question"}
    optional = {key for key in known - {"choices", "flags", "audio_path"} if record.get(key) is not None}
    values: dict[str, Any] = {"answer": None} | {key: text(record, key) for key in sorted(needed | optional)}
    return AudioQuestion(
        **values,
        audio_path=audio_path,
        choices=texts(record, "choices"),
        flags=texts(record, "flags") if "flags" in record else (),
    )


def question_from_avqa(record: dict[str, Any], audio_path: Path, otherwise: str | None = None) -> AudioQuestion:
    """The question of a record as AVQA's annotations and R1-AQA's lines have it; `otherwise` is the id of one that has
    none and need not have one.

    Raises:
        BadRecord: a field is absent or of another kind.
    """
    choices = texts(record, "multi_choice")
    index = record.get("answer")
    if not isinstance(index, int) or isinstance(index, bool):
        raise BadRecord(f"answer is {index!r:.200}, not an index", "R1-AQA lines give the answer as a 0-based integer.")
    if not 0 <= index < len(choices):
        what = f"answer index {index} is out of range for {len(choices)} choices"
        raise BadRecord(what, "Indices count from 0; correct it.")
    return AudioQuestion(
        id=id_of(record, otherwise),
        audio_path=audio_path,
        question=text(record, "question_text"),
        choices=choices,
        answer=choices[index],
        dataset=optional_text(record, "dataset_name") or "AVQA",
        task=optional_text(record, "question_relation"),
        category=optional_text(record, "question_type"),
        source_video=optional_text(record, "video_name"),
    )


def _path_in_r1_aqa(record: dict[str, Any], file: Path) -> Path:
    """R1-AQA resolves paths against the working directory; most files that travel are relative to themselves."""
    audio_path = Path(text(record, "audio_path"))
    beside, here = (file.parent / audio_path).absolute(), audio_path.absolute()
    is_beside, is_here = os.path.exists(beside), os.path.exists(here)  # False also for what cannot be a path
    if beside != here and is_beside and is_here:
        raise BadRecord(f"{audio_path} is found both at {beside} and at {here}", "Give an absolute path.")
    return here if is_here and not is_beside else beside


def question_from_mmau(record: dict[str, Any], audio_path: Path) -> AudioQuestion:
    """The question of a record as MMAU's files have it; an answer that is withheld is absent or empty.

    Raises:
        BadRecord: a field is absent or of another kind.
    """
    return AudioQuestion(
        id=id_of(record),
        audio_path=audio_path,
        question=text(record, "question"),
        choices=texts(record, "choices"),
        answer=optional_text(record, "answer"),
        dataset=label(record, "dataset"),
        split=label(record, "split"),
        task=label(record, "task"),
        difficulty=label(record, "difficulty"),
        category=label(record, "category"),  # 13 records of test-mini have it as a list of one
        sub_category=label(record, "sub-category"),
    )


def question_from_mmar(record: dict[str, Any], audio_path: Path) -> AudioQuestion:
    """The question of a record as MMAR's own file has it, or as ngqtrung/mmar does: the choices with letters
    (`A. Man`), of which the answer is one. Four of the 1,000 have an empty choice, which is kept and flagged.

    Raises:
        BadRecord: a field is absent or of another kind, or no record of MMAR is like this.
    """
    _require_mark(record, "modality", "MMAR")
    listed = texts(record, "choices")
    (choices, _), answer = without_letters(listed, None, DOTTED), text(record, "answer")
    return AudioQuestion(
        id=id_of(record),
        audio_path=audio_path,
        question=text(record, "question"),
        choices=choices,
        answer=answer if choices == listed else chosen(answer, choices),
        dataset="MMAR",
        category=label(record, "category"),
        sub_category=label(record, "sub-category") or label(record, "subcategory"),
        modality=label(record, "modality"),
        language=label(record, "language"),
        source=label(record, "source"),
        flags=(EMPTY_CHOICE,) if any(not choice.strip() for choice in choices) else (),
    )


def question_from_mmsu(record: dict[str, Any], audio_path: Path) -> AudioQuestion:
    """The question of a record as MMSU's files have it.

    Of `choice_a` to `choice_d` those that are null or empty are no choices: some questions have two, in any of the four
    places, whose letters stay theirs. The answer, `answer` or `answer_gt`, is a choice's text or its letter. A record
    without an id has its clip's name.

    Raises:
        BadRecord: a field is absent or of another kind, or the answer names no choice or might name two.
    """
    if absent := [key for key in _LETTERED.values() if key not in record]:
        raise BadRecord(f"{' and '.join(absent)} absent", "Give all four; null where there is no choice.")
    given = {letter: optional_text(record, key) for letter, key in _LETTERED.items()}
    by_letter = {letter: choice for letter, choice in given.items() if choice is not None}
    choices = tuple(by_letter.values())
    clip = only_clip(record)
    return AudioQuestion(
        id=id_of(record, Path(clip).stem if clip else None),
        audio_path=audio_path,
        question=text(record, "question"),
        choices=choices,
        answer=chosen(text(record, "answer" if "answer" in record else "answer_gt"), choices, "".join(by_letter)),
        dataset="MMSU",
        task=label(record, "task_name"),
        category=label(record, "category"),
        sub_category=label(record, "sub-category") or label(record, "sub_category"),
    )


def question_from_mmau_pro(record: dict[str, Any], audio_path: Path) -> AudioQuestion:
    """The question of a record as MMAU-Pro's file has it; the answer is a choice's text or its letter.

    How long its clip is does not show in the record, see `data_prep.mmau_pro`.

    Raises:
        NotAsked: it is about several clips, or has no choices or only one.
        BadRecord: a field is absent or of another kind, the answer names no choice or might name two, or no record of
            MMAU-Pro is like this.
    """
    _require_mark(record, "sub-cat", "MMAU-Pro")
    if (number := len(clip_paths(record))) > 1:
        raise NotAsked(SEVERAL_CLIPS, f"it is about {number} clips", _PART)
    if "choices" in record and record["choices"] in (None, []):
        raise NotAsked(NO_CHOICES, "it has no choices", _PART)
    choices = texts(record, "choices")
    if len(choices) == 1:
        raise NotAsked(ONE_CHOICE, f"it has the one choice {choices[0]!r:.200}", _PART)
    return AudioQuestion(
        id=id_of(record),
        audio_path=audio_path,
        question=text(record, "question"),
        choices=choices,
        answer=chosen(text(record, "answer"), choices),
        dataset="MMAU-Pro",
        category=label(record, "category"),
        sub_category=label(record, "sub-cat"),
    )


def _require_mark(record: dict[str, Any], key: str, benchmark: str) -> None:
    """Other benchmarks have the remaining keys too, and their questions would become this one's."""
    if key not in record:
        raise BadRecord(f"{key} is absent, which every record of {benchmark} has", f"Give {benchmark}'s own file.")


def _clip_below(root: Path, record: dict[str, Any]) -> Path:
    """Where the only clip of a benchmark's record is; without a path it has the record's name."""
    return _path_below(root, only_clip(record) or f"{id_of(record)}.wav")


def _path_below(root: Path, path: str) -> Path:
    audio_path = root / path
    by_name = root / audio_path.name
    is_by_name = not os.path.exists(audio_path) and os.path.exists(by_name)  # False also for what cannot be a path
    return (by_name if is_by_name else audio_path).absolute()


def check_question(question: AudioQuestion) -> None:
    """Raise BadRecord unless a question has a text, two choices or more, none of them empty unless it is flagged so,
    and its answer, if any, among them."""
    if not question.question.strip():
        raise BadRecord("the question is empty", "Give its text.")
    if len(question.choices) < 2:
        raise BadRecord(f"only {len(question.choices)} choice(s)", "A question needs at least 2 choices.")
    if EMPTY_CHOICE not in question.flags and any(not choice.strip() for choice in question.choices):
        raise BadRecord("a choice is empty", "Give every choice a text.")
    if question.answer is not None and question.answer not in question.choices:
        raise BadRecord(
            f"answer {question.answer!r} is not among the choices {list(question.choices)}",
            "The answer must be one of the choices, character by character.",
        )
    if question.contribution not in (None, *CONTRIBUTIONS):
        what = f"contribution is {question.contribution!r:.200}"
        raise BadRecord(what, f"It is {' or '.join(CONTRIBUTIONS)}; or leave it out.")


def with_answers(questions: Iterable[AudioQuestion], file: str | os.PathLike[str]) -> list[Problem]:
    """A problem for each question without an answer, which training and scoring need."""
    return [
        Problem(f"{file}: {question.id}", "the question has no answer", "Use a split with answers.")
        for question in questions
        if question.answer is None
    ]


def weights_of(questions: Iterable[AudioQuestion], weak: float) -> list[float]:
    """What each question counts in training: `weak` if it is labelled so, else 1."""
    return [float(weak) if question.contribution == CONTRIBUTIONS[0] else 1.0 for question in questions]
