"""`report.html`: one file that opens offline, with charts and a list of all questions to search, read and listen to.

With `--embed-audio` the clips are inside the page, as the model heard them (16 kHz, one channel), so that it can be
handed on alone.

What a model or a data set wrote stands in the page as text: escaped by the template (or by matplotlib, in charts), or
as JSON that the page's own script puts in through `textContent`. The page allows no other script, by its hash.
"""

from __future__ import annotations

import base64
import hashlib
import io
import json
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any
from urllib.parse import quote

import soundfile

from eval.evaluation import Evaluation
from eval.matcher import MATCHERS
from eval.predictions import Prediction
from eval.report.charts import bars, curve, inline_svg
from eval.report.rendering import render, shared_values
from eval.scores import GROUPS, choice_named, choices_as_asked
from eval.targets import TASKS, Comparison, reference_lines
from r1_aqa_repro.common.files import write_atomically
from r1_aqa_repro.data.questions import AudioQuestion

REPORT, SWEEP = "report.html", "sweep.json"


def write_page(evaluation: Evaluation, embed_audio: bool = False) -> Path:
    """Write report.html to the folder of an evaluation; returns its path.

    The curve of a sweep is in it if a sweep.json beside or above the folder names it.

    Args:
        evaluation: of questions with answers.
        embed_audio: put the clips into the page instead of linking them relative to it.
    """
    values = shared_values(evaluation)
    labels = {
        key: list(dict.fromkeys(label for one in evaluation.questions if (label := getattr(one, key)) is not None))
        for key in GROUPS
    }
    labels_by_key = [(key, name, labels[key]) for key, name in GROUPS.items() if labels[key]]
    listed = [_listed(evaluation, question, labels, embed_audio) for question in evaluation.questions]
    templates = resources.files("eval.report") / "templates"
    script, css = ((templates / name).read_text("utf-8") for name in ("report.js", "report.css"))
    sweep_chart, sweep_text = _sweep(evaluation.folder)
    page = render(
        "report.html.j2",
        **values,
        policy=_policy(script),
        charts=_charts(evaluation.scores, values["compared"]),
        positions=positions(evaluation.questions, evaluation.of_question),
        labels_by_key=labels_by_key,
        sweep_chart=sweep_chart,
        sweep_text=sweep_text,
        script=script,
        css=css,
        data={"matchers": list(MATCHERS), "labels": labels_by_key, "questions": listed},
    )
    write_atomically(evaluation.folder / REPORT, page)
    return evaluation.folder / REPORT


def positions(questions: Sequence[AudioQuestion], given: Mapping[str, Sequence[Prediction]]) -> dict[str, list[int]]:
    """Answers by the place of the right choice, as asked, and by that of the choice they name.

    Args:
        questions: with their answers.
        given: the predictions of each question.

    Returns:
        For each place from 1 that the right choice had, and for `anywhere`, how many answers name the first choice,
        the second, ..., and last how many name no choice. Empty without answers.
    """
    counts: dict[int, Counter[int | None]] = {}
    longest = 0
    for question in questions:
        for one in given.get(question.id, ()):
            if one.status != "no_audio":
                choices = list(choices_as_asked(question, one))
                longest = max(longest, len(choices))
                counts.setdefault(choices.index(str(question.answer)), Counter())[_chosen(question, one)] += 1
    rows = {str(place + 1): counts[place] for place in sorted(counts)}
    if rows:
        rows["anywhere"] = sum(counts.values(), Counter())
    return {place: [row[chosen] for chosen in (*range(longest), None)] for place, row in rows.items()}


def _chosen(question: AudioQuestion, prediction: Prediction) -> int | None:
    """Place, from 0 and as asked, of the choice that an answer names; None if it names no choice."""
    named = choice_named(question, prediction)
    return None if named is None else list(choices_as_asked(question, prediction)).index(named)


def _listed(
    evaluation: Evaluation, question: AudioQuestion, labels: Mapping[str, list[str]], embed_audio: bool
) -> dict[str, Any]:
    """A question as the page's script reads it; it refers to its labels by number."""
    by_repeat = {one.repeat: one for one in evaluation.of_question.get(question.id, ())}
    clip = quote(os.path.relpath(question.audio_path, evaluation.folder), errors="replace")
    return {
        "id": question.id,
        "question": question.question,
        "choices": question.choices,
        "answer": question.answer,
        "audio": _embedded(question) if embed_audio else clip,
        "flags": question.flags,
        **{key: labels[key].index(label) for key in GROUPS if (label := getattr(question, key)) is not None},
        "answers": [
            _answer(question, by_repeat.get(record["repeat"]), record)
            for record in evaluation.verdicts_of.get(question.id, ())
        ],
    }


def _answer(question: AudioQuestion, prediction: Prediction | None, verdict: Mapping[str, Any]) -> dict[str, Any]:
    answer = {"repeat": verdict["repeat"], "verdicts": [verdict[name] for name in MATCHERS]}
    if prediction is None:
        return answer | {"status": "missing", "completion": None, "answer": None, "chosen": None}
    return {
        **answer,
        "status": prediction.status,
        "completion": prediction.completion,
        "answer": prediction.answer,
        "chosen": _chosen(question, prediction),
        **({"order": prediction.order} if prediction.order else {}),
    }


def _embedded(question: AudioQuestion) -> str:
    """The clip as a data URL, as the model heard it; a clip that cannot be read is an empty one."""
    from r1_aqa_repro.data.audio import SAMPLING_RATE, AudioError, load_audio  # slow to import, and needed here only

    compressed = io.BytesIO()
    try:
        soundfile.write(compressed, load_audio(question.audio_path), SAMPLING_RATE, format="MP3")
    except AudioError:
        compressed = io.BytesIO()
    return "data:audio/mpeg;base64," + base64.b64encode(compressed.getvalue()).decode("ascii")


def _charts(scores: Mapping[str, Any], compared: Comparison | None) -> dict[str, tuple[dict[str, Any], str]]:
    """The tallies and the chart of each way of grouping; the total, and published figures, stand with the tasks."""
    lines = reference_lines(scores, compared)
    charts = {}
    for key, name in GROUPS.items():
        tallies, marks = dict(scores[key]), {}
        if not tallies:
            continue
        if key == "task":
            tallies["total"] = scores["total"]
            if compared is not None and compared.target is not None:
                published = zip((*TASKS, "total"), compared.target[1:], strict=True)
                marks = {label: value for label, value in published if value is not None and label in tallies}
        described = "; ".join(f"{label} {tally['accuracy']:.1f} %" for label, tally in tallies.items())
        chart = inline_svg(bars(tallies, lines, marks), f"by{key}", f"Accuracy by {name}: {described}")
        charts[key] = tallies, chart
    return charts


def _sweep(folder: Path) -> tuple[str, str]:
    """The curve of the sweep that this evaluation belongs to, and what the sweep says; empty if there is no sweep."""
    for file in (folder / SWEEP, folder.parent / SWEEP):
        if file.is_file():
            sweep = json.loads(file.read_text(encoding="utf-8"))
            if folder.resolve() in [(file.parent / point["folder"]).resolve() for point in sweep["points"]]:
                described = "; ".join(f"step {one['step']} {one['total']['accuracy']:.1f} %" for one in sweep["points"])
                chart = inline_svg(curve(sweep["points"], sweep["lines"]), "sweep", f"Accuracy by step: {described}")
                return chart, " ".join(sweep["sentences"])
    return "", ""


def _policy(script: str) -> str:
    """The page's own script, styles, clips, and nothing else. `file:` is for the clips of a page opened from disk."""
    digest = base64.b64encode(hashlib.sha256(script.encode("utf-8")).digest()).decode("ascii")
    return (
        f"default-src 'none'; script-src 'sha256-{digest}'; style-src 'unsafe-inline'; media-src 'self' file: data:; "
        "base-uri 'none'; form-action 'none'"
    )
