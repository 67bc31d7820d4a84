"""The files that scoring writes: scores.json, verdicts.jsonl, report.md, report.html and submission.json."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from eval.predictions import PREDICTIONS, SETTINGS, Prediction, recorded_clips
from eval.report import markdown_report, unscored_report
from eval.scores import MMAU_VERSIONS, score, surviving
from eval.submission import submission
from r1_aqa_repro.common.errors import Refused
from r1_aqa_repro.common.files import write_atomically, write_json, write_lines
from r1_aqa_repro.data.questions import AudioQuestion, with_answers

BLIND = "-no-audio"  # what the default folder of a blind evaluation ends with


def write_results(
    out: Path,
    questions: Sequence[AudioQuestion],
    predictions: Mapping[Any, Prediction],
    settings: Mapping[str, Any],
    paths: Mapping[str, str],
    version: str,
    blind: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Score predictions and write scores.json, verdicts.jsonl, reports and, for MMAU, submission.json to `out`.

    Where the answers of all questions are withheld, as in MMAU's test split, there are only the report, which says so,
    and the submission.

    Args:
        out: the folder.
        questions: those that were to be answered.
        predictions: by any key.
        settings: what the predictions depend on, as in settings.json.
        paths: where `data`, and `checkpoint` or `predictions`, were found.
        version: see `scores.version_of`.
        blind: scores of the same model without audio, see `blind_scores_beside`.

    Returns:
        The content of scores.json, or what of it needs no answers.

    Raises:
        Refused: some questions have answers and others have none.
    """
    withheld = with_answers(questions, paths["data"])
    if withheld and len(withheld) < len(questions):
        raise Refused(withheld)
    scores: dict[str, Any]
    if withheld:
        heard = {one.id for one in predictions.values() if one.status != "no_audio"}
        scores = {
            "version": version,
            "n": len(questions),
            "missing": sum(question.id not in heard for question in questions),
            "unparsed": len({one.id for one in predictions.values() if one.status == "unparsed"}),
            "no_audio": sorted({one.id for one in predictions.values() if one.status == "no_audio"}),
        }
        report = unscored_report(scores, settings, paths)
    else:
        scores, verdicts = score(questions, predictions, settings.get("prompt_style"), version, times_asked(settings))
        if blind is not None:
            scores["blind"] = surviving(scores, blind)
        write_json(out / "scores.json", scores)
        write_lines(out / "verdicts.jsonl", verdicts)
        report = markdown_report(scores, settings, paths, questions, predictions)
        from eval.html_report import write_html  # it brings a plotting library, which only a scored evaluation needs

        write_html(out, questions, predictions, verdicts, scores, settings, paths)
    if withheld or version in MMAU_VERSIONS.values():
        write_json(out / "submission.json", submission(Path(paths["data"]), questions, predictions))
    write_atomically(out / "report.md", report)
    return scores


def times_asked(settings: Mapping[str, Any]) -> int:
    """How often each question was to be asked: in so many orders of its choices, so many times each."""
    return int(settings.get("repeats", 1)) * int(settings.get("permute_choices", 1))


def blind_scores_beside(folder: Path, settings: Mapping[str, Any]) -> dict[str, Any] | None:
    """The scores of the same evaluation without audio where an evaluation puts it by default; None where there is none,
    or where it is not complete or heard the length of other clips."""
    blind = folder.with_name(folder.name + BLIND)
    if settings.get("no_audio") or not is_complete(blind, dict(settings) | {"no_audio": True}):
        return None
    if recorded_clips(blind) != recorded_clips(folder):
        return None
    return dict(json.loads((blind / "scores.json").read_text(encoding="utf-8")))


def is_complete(folder: Path, settings: Mapping[str, Any] | None = None) -> bool:
    """Whether an evaluation, with these settings, has all of its answers, and its scores are of all of them."""
    try:
        made = json.loads((folder / SETTINGS).read_text(encoding="utf-8"))["settings"]
        scores = json.loads((folder / "scores.json").read_text(encoding="utf-8"))
        answers = (folder / PREDICTIONS).read_bytes().count(b"\n")
        all_there = scores["n"] == made["questions"] and answers == scores["n"] * times_asked(made)
        all_scored = scores["missing_ids"] == scores["no_audio"]
    except (OSError, ValueError, KeyError):
        return False
    return all_there and all_scored and settings in (None, made)
