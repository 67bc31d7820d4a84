"""MMAU's own files of records: reading them, and `submission.json` for the benchmark's scripts and leaderboard."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from eval.predictions import Prediction
from r1_aqa_repro.common.errors import Refused
from r1_aqa_repro.data.questions import AudioQuestion

SOURCE = "source.jsonl"  # as `data_prep.mmau` names it
PREDICTED = ("model_prediction", "model_output")  # the first is R1-AQA's and the benchmark's older name


def submission(
    data: Path, questions: Sequence[AudioQuestion], predictions: Mapping[Any, Prediction]
) -> list[dict[str, Any]]:
    """The records of submission.json: the benchmark's own with the parsed answer as both fields that its scripts read.

    The answer is that of the first repeat. Where there is none it is the empty text, which the benchmark's script
    counts as wrong; a record without the fields it would leave out of the count.

    Args:
        data: the file of the questions; the records of an MMAU file, or of the one that a manifest was prepared from
            (`data_prep.mmau` keeps them in source.jsonl), are kept as they are.
        questions: those asked.
        predictions: by any key.
    """
    answers = {one.id: one.answer for one in predictions.values() if one.repeat == 0}
    originals = _official_records(data.with_name(SOURCE)) | _official_records(data)
    return [
        (originals.get(question.id) or _as_official(question))
        | {field: answers.get(question.id) or "" for field in PREDICTED}
        for question in questions
    ]


def _official_records(file: Path) -> dict[str, dict[str, Any]]:
    """The records of a file that are as the benchmark writes them, by id; none where it is no such file."""
    try:
        return {str(record["id"]): record for _, record in records_of(file) if {"id", "audio_id"} <= set(record)}
    except Refused:  # absent, or of another format that questions are read from
        return {}


def _as_official(question: AudioQuestion) -> dict[str, Any]:
    """A question of a manifest as the benchmark writes it."""
    record = {
        "id": question.id,
        "audio_id": question.audio_path.name,
        "question": question.question,
        "choices": list(question.choices),
        "answer": question.answer,
        "dataset": question.dataset,
        "task": question.task,
        "split": question.split,
        "category": question.category,
        "sub-category": question.sub_category,
        "difficulty": question.difficulty,
    }
    return {key: value for key, value in record.items() if value is not None}


def records_of(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield (where, record) of a JSON list or of JSON lines.

    Raises:
        Refused: the file is not UTF-8 text, or a record is no JSON object.
    """
    remedy = "Give a predictions.jsonl, or a JSON list of MMAU records with predictions."
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise Refused.because(str(path), f"not UTF-8 text ({error.reason} at byte {error.start})", remedy) from None
    except OSError as error:
        raise Refused.because(str(path), f"cannot be read ({error.strerror})", remedy) from None
    whole = text.lstrip().startswith("[")
    # not splitlines(): other line separators may stand inside a JSON text
    parts = [text] if whole else [line for line in text.split("\n") if line.strip()]
    number = 0
    for part in parts:
        try:
            value = json.loads(part)
        except (ValueError, RecursionError) as error:
            where = "" if whole else f": line {number + 1}"
            raise Refused.because(f"{path}{where}", f"malformed JSON ({error})", remedy) from None
        for record in value if whole else [value]:
            number += 1
            where = f"{'record' if whole else 'line'} {number}"
            if not isinstance(record, dict):
                raise Refused.because(f"{path}: {where}", f"no JSON object but {type(record).__name__}", remedy)
            yield where, record
