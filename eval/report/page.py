"""`report.html`: one file that opens offline, with charts and a list of all questions that can be searched and heard.

With `--embed-audio` the clips are inside the page, as the model heard them (16 kHz, one channel), so that it can be
handed on alone.

What a model or a data set wrote stands in the page as text: escaped by the template (but for charts, which are XML, and
the parts that are the page's own), or as JSON that the page's own script puts in through `textContent`. The page allows
no other script, by its hash.
"""

from __future__ import annotations

import base64
import hashlib
import io
import json
import os
import re
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any
from urllib.parse import quote

import soundfile
from jinja2 import Environment, PackageLoader, StrictUndefined

from eval.evaluation import Evaluation
from eval.matcher import MATCHERS, named_choice
from eval.predictions import Prediction
from eval.report.charts import GUESSING, bars, curve, inline_svg
from eval.scores import choices_as_asked
from eval.targets import EMBEDDED_HEADING, TASKS, Comparison, against_published
from r1_aqa_repro.common.files import write_atomically
from r1_aqa_repro.data.questions import AudioQuestion

REPORT, SWEEP = "report.html", "sweep.json"
_GROUPS = (
    ("task", "task"),
    ("difficulty", "difficulty"),
    ("category", "category"),
    ("sub_category", "sub-category"),
)
_LAZY = {
    "chance": GUESSING,
    "always_first": "always the first choice",
    "most_frequent": "always the choice that is the answer most often in this question set",
}
_UNSAFE = re.compile("[<>&\u2028\u2029]")  # what would end JSON early in a script element, or look like markup


def write_page(evaluation: Evaluation, embed_audio: bool = False) -> Path:
    """Write report.html to the folder of an evaluation; returns its path.

    The curve of a sweep is in it if a sweep.json beside or above the folder names it.

    Args:
        evaluation: of questions with answers.
        embed_audio: put the clips into the page instead of linking them relative to it.
    """
    scores, settings, paths, folder = evaluation.scores, evaluation.settings, evaluation.paths, evaluation.folder
    comparison = against_published(scores, settings)
    listed, labels = _listed(evaluation, embed_audio)
    templates = resources.files("eval.report") / "templates"
    script, css = ((templates / name).read_text("utf-8") for name in ("report.js", "report.css"))
    labels_by_key = [(key, name, labels[key]) for key, name in _GROUPS if labels[key]]
    sweep_chart, sweep_text = _sweep(folder)
    shown = {
        "policy": _policy(script, css),
        "title": f"Evaluation of {paths.get('checkpoint') or paths['predictions']}",
        "notices": _notices(scores, settings),
        "scores": scores,
        "permutation": scores.get("permutation"),
        "comparison": comparison,
        "groups": _groups(scores, comparison),
        "lazy": _lazy(scores),
        "positions": positions(evaluation.questions, evaluation.of_question),
        "matchers": list(MATCHERS),
        "labels_by_key": labels_by_key,
        "settings": {**paths, **settings},
        "sweep_chart": sweep_chart,
        "sweep_text": sweep_text,
        "number": lambda correct: correct if isinstance(correct, int) else f"{correct:.2f}",
        "interval": lambda tally: "{:.1f} to {:.1f}".format(*tally["ci95"]),
        "script": script,
        "css": css,
        "data": script_json({"matchers": list(MATCHERS), "labels": labels_by_key, "questions": listed}),
    }
    environment = Environment(
        loader=PackageLoader("eval.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    page = environment.get_template("report.html").render(shown)
    write_atomically(folder / REPORT, page)
    return folder / REPORT


def script_json(value: Any) -> str:
    """JSON that may stand in a script element of a page: nothing in it ends the element or looks like markup."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    return _UNSAFE.sub(lambda match: f"\\u{ord(match[0]):04x}", text)


def positions(questions: Sequence[AudioQuestion], given: Mapping[str, Sequence[Prediction]]) -> dict[str, Any]:
    """Answers by the place of the right choice, as asked, and by that of the choice they name.

    Args:
        questions: with their answers.
        given: the predictions of each question.

    Returns:
        `places`, such as [1, 2, 3, 4], and `rows`, none where there are no answers: `label`, `cells` (`count`;
        `percent` of the row as a text; `shade` 0-10; `diagonal`; the last is of answers that name none), `total`.
    """
    asked = [
        (list(choices_as_asked(question, one)), question.answer, one)
        for question in questions
        for one in given.get(question.id, ())
        if one.status != "no_audio"
    ]
    places = list(range(1, 1 + max((len(choices) for choices, *_ in asked), default=0)))
    counts = {place: dict.fromkeys([*places, 0], 0) for place in places}  # 0: names none
    for choices, gold, one in asked:
        counts[choices.index(str(gold)) + 1][_chosen(one, choices) + 1] += 1
    rows = [_row(f"{place}", counts[place], place) for place in places if sum(counts[place].values())]
    together = {place: sum(counts[row][place] for row in places) for place in [*places, 0]}
    return {"places": places, "rows": [*rows, _row("anywhere", together, None)] if rows else []}


def _row(label: str, counts: Mapping[int, int], diagonal: int | None) -> dict[str, Any]:
    total = sum(counts.values())
    cells = [
        {
            "count": count,
            "percent": f"{100 * count / total:.0f}",
            "shade": round(10 * count / total),
            "diagonal": place == diagonal,
        }
        for place, count in counts.items()
    ]
    return {"label": label, "cells": cells, "total": total}


def _chosen(prediction: Prediction, choices: Sequence[str]) -> int:
    """Index of the choice that an answer names, -1 where it names none."""
    named = None if prediction.answer is None else named_choice(prediction.answer, choices)
    return -1 if named is None else list(choices).index(named)


def _listed(evaluation: Evaluation, embed_audio: bool) -> tuple[list[dict[str, Any]], dict[str, list[str]]]:
    """The questions as the page's script reads them, and the labels that they refer to by number."""
    questions, folder = evaluation.questions, evaluation.folder
    labels = {
        key: list(dict.fromkeys(label for one in questions if (label := getattr(one, key)) is not None))
        for key, _ in _GROUPS
    }
    verdicts_of: dict[str, list[Mapping[str, Any]]] = {}
    for record in evaluation.verdicts:
        verdicts_of.setdefault(record["id"], []).append(record)
    listed = []
    for question in questions:
        by_repeat = {one.repeat: one for one in evaluation.of_question.get(question.id, ())}
        listed.append(
            {
                "id": question.id,
                "question": question.question,
                "choices": question.choices,
                "answer": question.answer,
                "audio": _embedded(question) if embed_audio else _link(question.audio_path, folder),
                "flags": question.flags,
                **{
                    key: labels[key].index(label) for key, _ in _GROUPS if (label := getattr(question, key)) is not None
                },
                "answers": [
                    _answer(question, by_repeat.get(record["repeat"]), record)
                    for record in verdicts_of.get(question.id, ())
                ],
            }
        )
    return listed, labels


def _answer(question: AudioQuestion, prediction: Prediction | None, verdict: Mapping[str, Any]) -> dict[str, Any]:
    answer: dict[str, Any] = {
        "repeat": verdict["repeat"],
        "verdicts": [verdict[name] for name in MATCHERS],
        "status": "missing",
        "completion": None,
        "answer": None,
        "chosen": None,
    }
    if prediction is not None:
        chosen = _chosen(prediction, choices_as_asked(question, prediction))
        answer |= {
            "status": prediction.status,
            "completion": prediction.completion,
            "answer": prediction.answer,
            "chosen": None if chosen < 0 else chosen,
        }
        if prediction.order:
            answer["order"] = prediction.order
    return answer


def _link(clip: Path, folder: Path) -> str:
    return quote(os.path.relpath(clip, folder), errors="replace")


def _embedded(question: AudioQuestion) -> str:
    """The clip as a data URL, as the model heard it; a clip that cannot be read is an empty one."""
    from r1_aqa_repro.data.audio import SAMPLING_RATE, AudioError, load_audio  # slow to import, and needed here only

    compressed = io.BytesIO()
    try:
        soundfile.write(compressed, load_audio(question.audio_path), SAMPLING_RATE, format="MP3")
    except AudioError:
        return "data:audio/mpeg;base64,"
    return "data:audio/mpeg;base64," + base64.b64encode(compressed.getvalue()).decode("ascii")


def _notices(scores: Mapping[str, Any], settings: Mapping[str, Any]) -> list[str]:
    notices = []
    if scores["version"] == "embedded":
        notices.append(EMBEDDED_HEADING)
    if settings.get("no_audio"):
        notices.append("Without audio: silence stood in place of every clip. The players give the clips themselves.")
    asked = scores["asked"]
    if scores["missing"]:
        lost = f"{len(scores['no_audio'])} questions had no readable audio"
        notices.append(f"{scores['missing']} of {asked} answers are missing and count as wrong; {lost}.")
    if scores["unparsed"]:
        notices.append(
            f"No answer could be taken from {scores['unparsed']} of {asked} completions; they count as wrong."
        )
    return notices


def reference_lines(scores: Mapping[str, Any], comparison: Comparison | None) -> dict[str, float]:
    """The lines of a chart, in percent by label: the published figure where the run may be compared with it, chance."""
    lines = {}
    if comparison is not None and comparison.target is not None:
        lines[f"{comparison.target}: {_target_row(comparison)[0]}, version {scores['version']}"] = comparison.target
    return lines | {GUESSING: scores["baselines"]["chance"]}


def _target_row(comparison: Comparison) -> tuple[Any, ...]:
    return next(row for row in comparison.rows[:-1] if row[-1] == comparison.target)


def _groups(scores: Mapping[str, Any], comparison: Comparison | None) -> list[dict[str, Any]]:
    """A section for each way of grouping: its name, table and chart."""
    lines = reference_lines(scores, comparison)
    groups = []
    for key, name in _GROUPS:
        if not scores[key]:
            continue
        tallies, marks = dict(scores[key]), {}
        if key == "task":
            tallies["total"] = scores["total"]
            if comparison is not None and comparison.target is not None:
                published = zip((*TASKS, "total"), _target_row(comparison)[1:], strict=True)
                marks = {label: value for label, value in published if value is not None and label in tallies}
        described = "; ".join(f"{label} {tally['accuracy']:.1f} %" for label, tally in tallies.items())
        chart = inline_svg(bars(tallies, lines, marks), f"by{key}", f"Accuracy by {name}: {described}")
        groups.append({"key": key, "name": name, "tallies": tallies, "chart": chart})
    return groups


def _lazy(scores: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """Those who do not listen, beside this run: accuracy and, where it is no exact figure, interval."""
    lazy: dict[str, Mapping[str, Any]] = {name: {"accuracy": scores["baselines"][key]} for key, name in _LAZY.items()}
    if "blind" in scores:
        lazy["this model given silence"] = scores["blind"]
    return lazy | {"this run": scores["total"]}


def _sweep(folder: Path) -> tuple[str, str]:
    """The curve of the sweep that this evaluation belongs to, where there is one, and what it says."""
    for file in (folder / SWEEP, folder.parent / SWEEP):
        if file.is_file():
            sweep = json.loads(file.read_text(encoding="utf-8"))
            if folder.resolve() in [(file.parent / point["folder"]).resolve() for point in sweep["points"]]:
                described = "; ".join(f"step {one['step']} {one['total']['accuracy']:.1f} %" for one in sweep["points"])
                chart = inline_svg(curve(sweep["points"], sweep["lines"]), "sweep", f"Accuracy by step: {described}")
                return chart, " ".join(sweep["sentences"])
    return "", ""


def _policy(script: str, css: str) -> str:
    """The page's own script and style, clips, and nothing else. `file:` is for the clips of a page opened from disk."""
    hashes = [
        "'sha256-" + base64.b64encode(hashlib.sha256(text.encode("utf-8")).digest()).decode("ascii") + "'"
        for text in (script, css)
    ]
    return (
        f"default-src 'none'; script-src {hashes[0]}; style-src {hashes[1]}; media-src 'self' file: data:; "
        "base-uri 'none'; form-action 'none'"
    )
