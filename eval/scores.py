"""From predictions to figures: `scores.json` and `verdicts.jsonl`."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from eval.matcher import MATCHERS, verdicts
from eval.predictions import Prediction
from eval.statistics import wilson
from r1_aqa_repro.answers import follows_format
from r1_aqa_repro.benchmark import MMAU_VERSIONS as MMAU_VERSIONS
from r1_aqa_repro.benchmark import baselines
from r1_aqa_repro.benchmark import version_of as version_of
from r1_aqa_repro.schema import AudioQuestion

_ORDER = ("sound", "music", "speech", "easy", "medium", "hard")


def score(
    questions: Sequence[AudioQuestion], predictions: Mapping[str, Prediction], style: str, version: str
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Score predictions against the questions' answers.

    Args:
        questions: every question that was to be answered, each with its answer. One without a prediction is wrong.
        predictions: by question id.
        style: prompt style, which decides what format a completion should have.
        version: label for `scores["version"]`.

    Returns:
        The content of scores.json (accuracies and intervals 0-100, format_rate 0-1) and the records of verdicts.jsonl,
        one a question in their order.
    """
    records: list[dict[str, Any]] = []
    well_formed = 0
    for question in questions:
        assert question.answer is not None  # `schema.with_answers` has refused the others
        prediction = predictions.get(question.id)
        answer = prediction.answer if prediction else None
        records.append({"id": question.id, "repeat": 0, **verdicts(answer, question.answer, question.choices)})
        well_formed += prediction is not None and follows_format(prediction.completion or "", style)
    right = [record["official"] for record in records]
    statuses = [predictions[question.id].status if question.id in predictions else "absent" for question in questions]
    scores = {
        "version": version,
        "matcher": "official",
        "n": len(questions),
        "missing": statuses.count("absent") + statuses.count("no_audio"),
        "unparsed": statuses.count("unparsed"),
        "total": tally(right),
        "task": _by(questions, right, lambda question: question.task),
        "difficulty": _by(questions, right, lambda question: question.difficulty),
        "category": _by(questions, right, lambda question: question.category),
        "sub_category": _by(questions, right, lambda question: question.sub_category),
        "matchers": {name: tally([record[name] for record in records]) for name in MATCHERS},
        "format_rate": well_formed / len(questions),
        "baselines": baselines(questions),
        "no_audio": [question.id for question, status in zip(questions, statuses, strict=True) if status == "no_audio"],
    }
    return scores, records


def tally(right: Sequence[bool]) -> dict[str, Any]:
    """Correct, n, accuracy and its 95 % Wilson interval, the latter two in percent."""
    low, high = wilson(sum(right), len(right))
    return {
        "correct": sum(right),
        "n": len(right),
        "accuracy": 100 * sum(right) / len(right),
        "ci95": [100 * low, 100 * high],
    }


def read_verdicts(path: str | os.PathLike[str]) -> dict[str, dict[str, bool]]:
    """A verdicts.jsonl, as {question id: {matcher: right}} in question order."""
    with open(path, encoding="utf-8") as file:
        records = [json.loads(line) for line in file]
    return {record["id"]: {name: record[name] for name in MATCHERS} for record in records}


def _by(
    questions: Sequence[AudioQuestion], right: Sequence[bool], label_of: Callable[[AudioQuestion], str | None]
) -> dict[str, dict[str, Any]]:
    """A tally for each label, in the benchmark's order; questions without a label are in none."""
    groups: dict[str, list[bool]] = {}
    for question, is_right in zip(questions, right, strict=True):
        label = label_of(question)
        if label is not None:
            groups.setdefault(label, []).append(is_right)
    in_order = sorted(groups, key=lambda label: (_ORDER.index(label) if label in _ORDER else len(_ORDER), label))
    return {label: tally(groups[label]) for label in in_order}
