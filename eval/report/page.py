"""`report.html`: one file that opens offline, with charts and a list of all questions to search, read and listen to.

With `--embed-audio` the clips are inside the page, as the model heard them (16 kHz, one channel), so that it can be
handed on alone.

What a model or a data set wrote stands in the page as text: escaped by the template, or as JSON that
the page's own script puts in through `textContent`. The page allows no other script, by its hash.
"""

from __future__ import annotations

import base64
import hashlib
import io
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote

from eval.evaluation import Evaluation
from eval.matcher import MATCHERS
from eval.predictions import Prediction
from eval.report.rendering import asset, render, shared_values
from eval.rules import RULES, answers_of, tallies
from eval.scores import choice_named, choices_as_asked
from eval.targets import reference_lines
from r1_aqa_repro.common.files import write_atomically
from r1_aqa_repro.data.questions import AudioQuestion

REPORT = "report.html"


def write_page(evaluation: Evaluation, embed_audio: bool = False) -> Path:
    """Write report.html to the folder of an evaluation; returns its path.

    Args:
        evaluation: of questions with answers.
        embed_audio: put the clips into the page instead of linking them relative to it.
    """
    values, groups = shared_values(evaluation), evaluation.benchmark.groups
    labels = {
        key: list(dict.fromkeys(label for one in evaluation.questions if (label := getattr(one, key)) is not None))
        for key in groups
    }
    labels_by_key = [(key, name, labels[key]) for key, name in groups.items() if labels[key]]
    listed = [_listed(evaluation, question, labels, embed_audio) for question in evaluation.questions]
    by_rule = tallies(evaluation, answers_of(evaluation))
    script = asset("report.js")
    page = render(
        "report.html.j2",
        **values,
        policy=_policy(script),
        lines=reference_lines(evaluation.scores, values["compared"]),
        labels_by_key=labels_by_key,
        rules=RULES,
        by_other_rule={name: tally for name, tally in by_rule.items() if name not in MATCHERS},
        script=script,
        css=asset("report.css"),
        data={"matchers": list(MATCHERS), "labels": labels_by_key, "questions": listed},
    )
    write_atomically(evaluation.folder / REPORT, page)
    return evaluation.folder / REPORT


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
        "audio": embedded_clip(question.audio_path) if embed_audio else clip,
        "flags": question.flags,
        **{key: labels[key].index(label) for key in labels if (label := getattr(question, key)) is not None},
        "answers": [
            _answer(question, by_repeat.get(record["repeat"]), record)
            for record in evaluation.verdicts_of.get(question.id, ())
        ],
    }


def _answer(question: AudioQuestion, prediction: Prediction | None, verdict: Mapping[str, Any]) -> dict[str, Any]:
    answer = {"repeat": verdict["repeat"], "verdicts": [verdict[name] for name in MATCHERS]}
    if prediction is None:
        return answer | {"status": "missing", "completion": None, "answer": None, "chosen": None}
    named = choice_named(question, prediction)
    return {
        **answer,
        "status": prediction.status,
        "completion": prediction.completion,
        "answer": prediction.answer,
        "chosen": None if named is None else list(choices_as_asked(question, prediction)).index(named),
        **({"order": prediction.order} if prediction.order else {}),
    }


def embedded_clip(path: Path) -> str:
    """A clip as a data URL, as the model heard it; one that cannot be read is an empty one."""
    import soundfile  # slow to import, and needed here only

    from r1_aqa_repro.data.audio import SAMPLING_RATE, AudioError, load_audio

    compressed = io.BytesIO()
    try:
        soundfile.write(compressed, load_audio(path), SAMPLING_RATE, format="MP3")
    except AudioError:
        compressed = io.BytesIO()
    return "data:audio/mpeg;base64," + base64.b64encode(compressed.getvalue()).decode("ascii")


def _policy(script: str) -> str:
    """The page's own script, styles, clips, and nothing else. `file:` is for the clips of a page opened from disk."""
    digest = base64.b64encode(hashlib.sha256(script.encode("utf-8")).digest()).decode("ascii")
    return (
        f"default-src 'none'; script-src 'sha256-{digest}'; style-src 'unsafe-inline'; media-src 'self' file: data:; "
        "base-uri 'none'; form-action 'none'"
    )
