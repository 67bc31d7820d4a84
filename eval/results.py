"""The files that scoring writes: scores.json, verdicts.jsonl, report.md, report.html and submission.json."""

from __future__ import annotations

from pathlib import Path

from eval.evaluation import Evaluation
from eval.report.markdown import markdown_report
from eval.report.page import write_page
from eval.submission import submission
from r1_aqa_repro.common.files import write_atomically, write_json, write_lines
from r1_aqa_repro.data.mmau_versions import MMAU_VERSIONS


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
