"""The files that scoring writes: scores.json, verdicts.jsonl, report.md, report.html and submission.json."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from eval.evaluation import Evaluation
from eval.report.markdown import markdown_report
from eval.report.page import write_page
from eval.scores import Predictions
from r1_aqa_repro.common.errors import Refused
from r1_aqa_repro.common.files import write_atomically, write_json, write_lines
from r1_aqa_repro.data.questions import AudioQuestion
from r1_aqa_repro.data.records import parse_records
from r1_aqa_repro.data.versions import MMAU_VERSIONS

SOURCE = "source.jsonl"  # as `data_prep.mmau` names it
PREDICTED = ("model_prediction", "model_output")  # the first is R1-AQA's and the benchmark's older name


def write_results(evaluation: Evaluation, embed_audio: bool = False) -> None:
    """Score an evaluation and write scores, verdicts, reports and, of MMAU, submission.json to its folder.

    If the answers are withheld, there are only the report, which says so, and the submission.

    Args:
        evaluation: what to write about.
        embed_audio: put the clips into the page, see `report.page`.

    Raises:
        Refused: some questions have answers and others have none.
    """
    out = evaluation.folder
    if not evaluation.is_withheld:
        write_json(out / "scores.json", evaluation.scores)
        write_lines(out / "verdicts.jsonl", evaluation.verdicts)
        write_page(evaluation, embed_audio)
    if evaluation.is_withheld or evaluation.version in MMAU_VERSIONS.values():
        content = submission(Path(evaluation.paths["data"]), evaluation.questions, evaluation.predictions)
        write_json(out / "submission.json", content)
    write_atomically(out / "report.md", markdown_report(evaluation))


def submission(data: Path, questions: Sequence[AudioQuestion], predictions: Predictions) -> list[dict[str, Any]]:
    """The records of submission.json: the benchmark's own with the parsed answer as both fields that its scripts read.

    The answer is that of the first repeat. If there is none, it is the empty text, which the benchmark's script counts
    as wrong; it would leave a record without the fields out of the count.

    Args:
        data: the file of the questions; the records of an MMAU file, or of the one that a manifest was prepared from
            (`data_prep.mmau` keeps them in source.jsonl), are kept as they are.
        questions: those asked.
        predictions: by question id and repeat.
    """
    answers = {one.id: one.answer for one in predictions.values() if one.repeat == 0}
    originals = _official_records(data.with_name(SOURCE)) | _official_records(data)
    return [
        (originals.get(question.id) or _as_official(question))
        | {field: answers.get(question.id) or "" for field in PREDICTED}
        for question in questions
    ]


def _official_records(file: Path) -> dict[str, dict[str, Any]]:
    """The records of a file that are as the benchmark writes them, by id."""
    try:
        records = [record for _, record in parse_records(file, lambda record, _: record) if isinstance(record, dict)]
    except Refused:  # absent, or of another format that questions are read from
        return {}
    return {str(record["id"]): record for record in records if {"id", "audio_id"} <= set(record)}


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
