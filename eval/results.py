"""The files that scoring writes: scores.json, verdicts.jsonl, report.md, report.html and what is handed in."""

from __future__ import annotations

from collections.abc import Sequence, Set
from pathlib import Path
from typing import Any

from eval.benchmarks import benchmark_of
from eval.evaluation import Evaluation
from eval.report.markdown import markdown_report
from eval.report.page import write_page
from eval.scores import Predictions
from r1_aqa_repro.common.errors import Refused
from r1_aqa_repro.common.files import write_atomically, write_json, write_lines
from r1_aqa_repro.data.questions import AudioQuestion
from r1_aqa_repro.data.records import parse_records

SOURCE = "source.jsonl"  # as `data_prep.benchmarks` names it


def write_results(evaluation: Evaluation, embed_audio: bool = False) -> None:
    """Score an evaluation and write scores, verdicts, reports and the benchmark's hand-in to its folder.

    If the answers are withheld, there are only the report, which says so, and the hand-in. Of MMAU's questions, which
    do not name it, only published ones are handed in.

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
    benchmark = evaluation.benchmark
    if benchmark.hand_in is not None and (evaluation.is_withheld or benchmark.owns(evaluation.version)):
        content = submission(Path(evaluation.paths["data"]), evaluation.questions, evaluation.predictions)
        write = write_lines if benchmark.hand_in.file.endswith(".jsonl") else write_json
        write(out / benchmark.hand_in.file, content)
    write_atomically(out / "report.md", markdown_report(evaluation))


def submission(data: Path, questions: Sequence[AudioQuestion], predictions: Predictions) -> list[dict[str, Any]]:
    """The records that are handed in: the benchmark's own with the parsed answer in the fields that its script reads.

    The answer is that of the first repeat, see `HandIn.answer`.

    Args:
        data: the file of the questions; the records of a benchmark's own file, or of the one that a manifest was
            prepared from (`data_prep` keeps them in source.jsonl), are kept as they are.
        questions: those asked, of a benchmark that has a hand-in.
        predictions: by question id and repeat.
    """
    hand_in = benchmark_of(questions).hand_in
    assert hand_in is not None
    answers = {one.id: one.answer for one in predictions.values() if one.repeat == 0}
    originals = _official_records(data.with_name(SOURCE), hand_in.marks) | _official_records(data, hand_in.marks)
    records = []
    for question in questions:
        record = originals.get(question.id) or {
            key: value for key, value in hand_in.record(question).items() if value is not None
        }
        handed_in = hand_in.answer(record, question, answers.get(question.id))
        records.append(record | dict.fromkeys(hand_in.fields, handed_in))
    return records


def _official_records(file: Path, marks: Set[str]) -> dict[str, dict[str, Any]]:
    """The records of a file that have these keys, as the benchmark writes them, by id."""
    try:
        records = [record for _, record in parse_records(file, lambda record, _: record) if isinstance(record, dict)]
    except Refused:  # absent, or of another format that questions are read from
        return {}
    return {str(record["id"]): record for record in records if marks <= set(record)}
