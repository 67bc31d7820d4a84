"""`report.md`: the figures of one evaluation with everything needed to read them, for people."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markdown import Markdown

from eval.predictions import Prediction
from r1_aqa_repro.schema import AudioQuestion

EMBEDDED_HEADING = "embedded set, not MMAU: no comparison with 64.5"
MMAU_QUESTIONS = 1000
TARGET = 64.5
# arXiv 2503.11197 and the MMAU leaderboard: accuracy in percent on the `original` test-mini
PUBLISHED = (
    ("Direct inference (MMAU leaderboard)", 54.95, 50.98, 42.04, 49.20),
    ("Zero-shot CoT", 61.68, 56.29, 55.26, 57.80),
    ("Audio-Reasoner (CoTA)", 60.06, 64.30, 60.70, 61.71),
    ("SFT, full, prompt 1", 60.96, 49.19, 45.35, 51.80),
    ("SFT, LoRA, prompt 1", 58.26, 58.08, 52.58, 56.40),
    ("GRPO, prompt 2 (the target)", 69.37, 66.77, 57.36, TARGET),
    ("GRPO, prompt 3 (with thinking)", 66.67, 62.87, 53.75, 61.10),
    ("GRPO, leaderboard model (several trainings)", 68.77, 64.37, 63.66, 65.60),
)
_LISTED = 20  # questions listed by id, and the characters shown of each completion
_SHOWN_CHARACTERS = 120
_MARKUP = re.compile(r"([\\`*_{}\[\]<>#|~&$!:])")


def markdown_report(
    scores: Mapping[str, Any],
    settings: Mapping[str, Any],
    paths: Mapping[str, str],
    questions: Sequence[AudioQuestion],
    predictions: Mapping[str, Prediction],
) -> str:
    """The report as GitHub-flavoured Markdown.

    Args:
        scores: as `scores.score` returns them.
        settings: what the predictions depend on, as in settings.json.
        paths: `checkpoint` and `data`.
        questions: the questions, for the lists of lost and unparsed ones.
        predictions: by question id.
    """
    total = scores["total"]
    sections = [
        f"# Evaluation of {escape(paths['checkpoint'])}",
        f"**{EMBEDDED_HEADING}**" if scores["version"] == "embedded" else "",
        "**Blind: the model heard silence instead of every clip.**" if settings["no_audio"] else "",
        f"**Accuracy {total['accuracy']:.2f} %**: {total['correct']} of {total['n']}, 95 % interval {_interval(total)}",
        _facts(scores, settings, paths),
        _comparison(scores, settings),
        *(
            f"## By {name}\n\n{_tallies(name, scores[key])}"
            for key, name in (
                ("task", "task"),
                ("difficulty", "difficulty"),
                ("category", "category"),
                ("sub_category", "sub-category"),
            )
            if scores[key]
        ),
        f"## By matcher\n\n{_tallies('matcher', scores['matchers'])}",
        _unanswered(questions, predictions),
    ]
    return "\n\n".join(section for section in sections if section) + "\n"


def print_report(path: str | os.PathLike[str]) -> None:
    """Show a report.md on the terminal, followed by where it is."""
    console = Console()
    console.print(Markdown(Path(path).read_text(encoding="utf-8")))
    console.print(f"\n{path}", markup=False, highlight=False, soft_wrap=True)


def escape(text: str) -> str:
    """Text written by a model or a data set, as one line of Markdown that shows it and does nothing else."""
    line = "".join(character if character.isprintable() else " " for character in text)
    return _MARKUP.sub(r"\\\1", " ".join(line.split()))


def _facts(scores: Mapping[str, Any], settings: Mapping[str, Any], paths: Mapping[str, str]) -> str:
    baselines = scores["baselines"]
    facts = {
        "data": f"{paths['data']} (version {scores['version']})",
        "matcher": scores["matcher"],
        "prompt style": settings["prompt_style"],
        "decoding": f"{settings['decoding']}, at most {settings['max_new_tokens']} new tokens",
        "batch size": settings["batch_size"],
        "computed in": f"{settings['dtype']} on {settings['device']}",
        "audio": "silence" if settings["no_audio"] else f"{settings['audio_channel']} channel",
        "unparsed": f"{scores['unparsed']} of {scores['n']}",
        "missing": f"{scores['missing']} of {scores['n']} (count as wrong)",
        "right format": f"{100 * scores['format_rate']:.1f} %",
        "guessing at random": f"{baselines['chance']:.2f} %",
        "always the first choice": f"{baselines['always_first']:.2f} %",
    }
    if "checkpoint_sha256" in settings:  # a model in training has none yet
        facts["checkpoint hash"] = settings["checkpoint_sha256"][:16]
    return _table(("what", "value"), ([name, escape(str(value))] for name, value in facts.items()))


def _comparison(scores: Mapping[str, Any], settings: Mapping[str, Any]) -> str:
    """The paper's table with this run, where the two can be compared; otherwise why they cannot."""
    if scores["version"] == "embedded":
        return ""
    reason = ""
    if scores["version"] != "original":
        reason = f"the published figures are on version original, this run is on version {scores['version']}"
    elif scores["n"] != MMAU_QUESTIONS:
        reason = f"the published figures are on all {MMAU_QUESTIONS} questions, this run is on {scores['n']}"
    elif settings["no_audio"]:
        reason = "this run heard no audio"
    title = "## Compared with the paper"
    if reason:
        return f"{title}\n\nNot compared with {TARGET}: {reason}."
    ours = [scores["task"][task]["accuracy"] for task in ("sound", "music", "speech")] + [scores["total"]["accuracy"]]
    rows = [[name, *(f"{value:.2f}" for value in values)] for name, *values in PUBLISHED]
    rows.append(["**this run**", *(f"**{value:.2f}**" for value in ours)])
    low, high = (bound - TARGET for bound in scores["total"]["ci95"])
    distance = (
        f"Distance to {TARGET}: {scores['total']['accuracy'] - TARGET:+.2f} points, 95 % interval of this run "
        f"[{low:+.2f}, {high:+.2f}]. The published figure has an interval of its own, about +-3.0 points."
    )
    return f"{title}\n\n{_table(('model', 'sound', 'music', 'speech', 'average'), rows)}\n\n{distance}"


def _unanswered(questions: Sequence[AudioQuestion], predictions: Mapping[str, Prediction]) -> str:
    """The questions whose clip could not be read, all of them, and the first of those without a parsed answer."""
    lost, unparsed = [], []
    for question in questions:
        prediction = predictions.get(question.id)
        if prediction is not None and prediction.status == "no_audio":
            lost.append([escape(question.id), escape(str(question.audio_path))])
        elif prediction is not None and prediction.status == "unparsed":
            unparsed.append([escape(question.id), escape((prediction.completion or "")[:_SHOWN_CHARACTERS])])
    sections = []
    if lost:
        sections.append(f"## Clips that could not be read\n\n{_table(('question', 'clip'), lost)}")
    if unparsed:
        title = f"## Unparsed completions ({min(len(unparsed), _LISTED)} of {len(unparsed)})"
        sections.append(f"{title}\n\n{_table(('question', 'completion'), unparsed[:_LISTED])}")
    return "\n\n".join(sections)


def _tallies(name: str, tallies: Mapping[str, Mapping[str, Any]]) -> str:
    rows = (
        [escape(label), str(one["correct"]), str(one["n"]), f"{one['accuracy']:.2f}", _interval(one)]
        for label, one in tallies.items()
    )
    return _table((name, "correct", "of", "accuracy %", "95 % interval"), rows)


def _interval(tally: Mapping[str, Any]) -> str:
    low, high = tally["ci95"]
    return f"{low:.1f} to {high:.1f}"


def _table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table: text on the left, figures on the right."""
    alignment = ["---"] + ["---:" if len(header) > 2 else "---"] * (len(header) - 1)
    return "\n".join("| " + " | ".join(row) + " |" for row in (header, alignment, *rows))
