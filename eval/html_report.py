"""`report.html`: one file that opens offline, with charts and a list of all questions that can be searched and heard.

    python -m eval.html_report runs/my-run/final/eval/manifest

makes it anew from the files of an evaluation, or of scored `--predictions`, which has written one already. With
`--embed-audio` the clips are inside the page, as the model heard them (16 kHz, one channel), so that it can be handed
on alone.

What a model or a data set wrote stands in the page as text: escaped by the template (but for charts, which are XML, and
the parts that are the page's own), or as JSON that the page's own script puts in through `textContent`. The page allows
no other script, by its hash.

Exit codes: 0 done; 2 refused: no scores in the folder, or other questions or predictions than they were made of.
"""

from __future__ import annotations

import base64
import hashlib
import io
import json
import os
import re
import sys
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any
from urllib.parse import quote

import soundfile
from jinja2 import Environment, PackageLoader, StrictUndefined

from eval.charts import GUESSING, bars, curve, inline_svg
from eval.matcher import MATCHERS, named_choice
from eval.official import read_predictions
from eval.predictions import PREDICTIONS, SETTINGS, Prediction, by_question
from eval.scores import choices_as_asked
from eval.targets import EMBEDDED_HEADING, TASKS, Comparison, against_published
from r1_aqa_repro.common.console import Options, say
from r1_aqa_repro.common.errors import EXIT_DONE, Refused, command
from r1_aqa_repro.common.files import sha256_of, write_atomically
from r1_aqa_repro.data.questions import AudioQuestion, limited, read_questions

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


@command
def main(argv: list[str]) -> int:
    """Run the command; returns its exit code."""
    arguments = _parser().parse_args(argv)
    path = rewrite_html(arguments.folder, arguments.data, arguments.audio_dir, arguments.embed_audio)
    say(f"wrote {path} ({path.stat().st_size / 1e6:.2f} MB)")
    return EXIT_DONE


def rewrite_html(
    folder: Path, data: Path | None = None, audio_dir: Path | None = None, embed_audio: bool = False
) -> Path:
    """`write_html` from the files of an evaluation, or of predictions that were scored.

    Args:
        folder: of their scores.
        data, audio_dir: in place of those that its settings.json names.
        embed_audio: see `write_html`.

    Raises:
        Refused: files are missing or damaged, or the data file or the predictions are not those that were scored.
    """
    try:
        recorded = json.loads((folder / SETTINGS).read_text(encoding="utf-8"))
        settings, paths = recorded["settings"], recorded["paths"]
        scores = json.loads((folder / "scores.json").read_text(encoding="utf-8"))
        lines = (folder / "verdicts.jsonl").read_text(encoding="utf-8").split("\n")[:-1]
        verdicts = [json.loads(line) for line in lines]
    except (OSError, ValueError, KeyError) as error:
        remedy = "Give a folder that eval.mmau has written scores to."
        raise Refused.because(str(folder), f"no scored evaluation can be read there ({error!r})", remedy) from None
    data = data or Path(paths["data"])
    found = read_questions(data, audio_dir or paths.get("audio_dir"))
    if sha256_of(data) != settings.get("data_sha256", ""):
        raise Refused.because(str(data), f"not the file that {folder} was made with", "Give that one as --data.")
    source = Path(paths.get("predictions", folder / PREDICTIONS))  # the latter of an evaluation
    predictions = read_predictions(source, found.records, settings.get("prompt_style"))
    if "predictions_sha256" in settings and sha256_of(source) != settings["predictions_sha256"]:
        raise Refused.because(str(source), f"it has changed since {folder} was made", "Score it again with eval.mmau.")
    questions = limited(found.records, scores["n"])
    return write_html(folder, questions, predictions, verdicts, scores, settings, paths, embed_audio)


def write_html(
    folder: Path,
    questions: Sequence[AudioQuestion],
    predictions: Mapping[Any, Prediction],
    verdicts: Sequence[Mapping[str, Any]],
    scores: Mapping[str, Any],
    settings: Mapping[str, Any],
    paths: Mapping[str, str],
    embed_audio: bool = False,
) -> Path:
    """Write report.html to `folder`; returns its path.

    The curve of a sweep is in it where the folder is one of those that a sweep.json beside or above it names.

    Args:
        folder: of the evaluation; clips are linked relative to it.
        questions: with their answers.
        predictions: by any key.
        verdicts: the records of verdicts.jsonl.
        scores: the content of scores.json.
        settings: what the predictions depend on, as in settings.json; what it lacks is not known.
        paths: `data`, and `checkpoint` or, of predictions made elsewhere, `predictions`.
        embed_audio: put the clips into the page instead of linking them.
    """
    comparison = against_published(scores, settings)
    given = by_question(predictions.values())
    listed, labels = _listed(folder, questions, given, verdicts, embed_audio)
    templates = resources.files("eval") / "templates"
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
        "positions": positions(questions, given),
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
        loader=PackageLoader("eval"), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
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


def _listed(
    folder: Path,
    questions: Sequence[AudioQuestion],
    given: Mapping[str, Sequence[Prediction]],
    verdicts: Sequence[Mapping[str, Any]],
    embed_audio: bool,
) -> tuple[list[dict[str, Any]], dict[str, list[str]]]:
    """The questions as the page's script reads them, and the labels that they refer to by number."""
    labels = {
        key: list(dict.fromkeys(label for one in questions if (label := getattr(one, key)) is not None))
        for key, _ in _GROUPS
    }
    verdicts_of: dict[str, list[Mapping[str, Any]]] = {}
    for record in verdicts:
        verdicts_of.setdefault(record["id"], []).append(record)
    listed = []
    for question in questions:
        by_repeat = {one.repeat: one for one in given.get(question.id, ())}
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
        notices.append("Blind: the model heard silence instead of every clip. The players give the clips themselves.")
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


def _parser() -> Options:
    parser = Options(__doc__, "python -m eval.html_report")
    add = parser.add_argument
    add("folder", type=Path, metavar="FOLDER", help="of an evaluation: scores.json and the files beside it")
    add("--embed-audio", action="store_true", help="put the clips into the page instead of linking them")
    add("--data", type=Path, metavar="FILE", help="the data file, where it is no longer where it was")
    add("--audio-dir", type=Path, metavar="DIR", help="folder of an MMAU file's clips, where it has moved")
    return parser


if __name__ == "__main__":
    sys.exit(main(None))
