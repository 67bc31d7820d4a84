"""What a sweep over the checkpoints of a run leaves: sweep.json, sweep.md and sweep.svg."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from eval.evaluation import Evaluation
from eval.plan import Plan
from eval.predictions import PREDICTIONS
from eval.report.charts import curve, svg_file
from eval.report.page import SWEEP
from eval.report.rendering import render
from eval.score_predictions import score_file
from eval.scores import read_verdicts
from eval.targets import EMBEDDED_HEADING, against_published, reference_lines
from r1_aqa_repro.common.files import write_atomically, write_json
from r1_aqa_repro.common.intervals import paired_gain

_CAUTION = (
    "The best is picked on the very questions that its accuracy is of, which flatters it: pick on questions set apart, "
    "and report here what was picked there, or the last, which nobody picked."
)


@dataclass(frozen=True)
class Point:
    """A model of a run.

    Attributes:
        name: of its folder.
        step: of its checkpoint; None for the final model.
        plan: of its evaluation, which names the folder that holds it.
        reused: whether the evaluation was there already.
    """

    name: str
    step: int | None
    plan: Plan
    reused: bool

    @property
    def evaluation(self) -> Evaluation:
        return self.plan.evaluation

    @cached_property
    def scores(self) -> dict[str, Any]:
        return dict(json.loads((self.evaluation.folder / "scores.json").read_text(encoding="utf-8")))

    def right(self) -> list[float]:
        """The official verdict on each question."""
        return [one["official"] for one in read_verdicts(self.evaluation.folder / "verdicts.jsonl").values()]


def write_sweep(run: Path, folder: Path, points: Sequence[Point], has_final: bool) -> int:
    """Write the results to `folder`; the number of questions without readable audio."""
    found = summary(run, folder, points, has_final)
    write_json(folder / SWEEP, found)
    has_curve = len(found["points"]) > 1
    if has_curve:
        write_atomically(folder / "sweep.svg", svg_file(curve(found["points"], found["lines"])))
    write_atomically(folder / "sweep.md", markdown(found, has_curve))
    for point in points:
        if not point.reused:  # its page shows the curve now
            paths = point.evaluation.paths
            audio_dir = Path(paths["audio_dir"]) if "audio_dir" in paths else None
            score_file(point.evaluation.folder / PREDICTIONS, Path(paths["data"]), audio_dir=audio_dir)
    return max(len(point.scores["no_audio"]) for point in points)


def summary(run: Path, folder: Path, points: Sequence[Point], has_final: bool) -> dict[str, Any]:
    """The content of sweep.json: accuracies and intervals 0-100.

    `points` are the checkpoints by step; `final` is None if there is no final model, the name of the last checkpoint if
    it is the same model, and a point of its own without step otherwise. `gain` is what the best has over the last, in
    points, with the interval of a bootstrap over the questions.

    Args:
        run: folder of the run.
        folder: of the sweep, which paths are relative to.
        points: every evaluated model, by step.
        has_final: whether the run has a final model.
    """
    checkpoints = [point for point in points if point.step is not None]
    ranked = checkpoints or list(points)
    best = max(ranked, key=lambda point: point.scores["total"]["accuracy"])  # of equals the earliest
    last = ranked[-1]
    own_final = [_record(point, folder) for point in points if point.step is None]
    final = own_final[0] if own_final else last.name if has_final else None
    gain, low, high = (100 * value for value in paired_gain(last.right(), best.right()))
    scores, evaluation = last.scores, points[-1].evaluation
    compared = against_published(scores, evaluation.settings)
    sentences = [f"{_said('Best', best)}; {_said('last', last)}."]
    if best is not last:
        sentences.append(
            f"On the same questions the best is {gain:+.1f} points from the last, 95 % interval "
            f"[{low:+.1f}, {high:+.1f}] (paired bootstrap, which does not allow for the picking)."
        )
    if len(ranked) > 1:
        sentences.append(_CAUTION)
    if isinstance(final, str):
        sentences.append(f"`final` is the same model as {final}.")
    reused = [point.name for point in points if point.reused]
    if reused:
        sentences.append(f"Taken over from evaluations with the same settings and data: {', '.join(reused)}.")
    if compared is None:
        sentences.append(f"{EMBEDDED_HEADING[0].upper()}{EMBEDDED_HEADING[1:]}.")
    else:
        sentences += [text for text in (compared.reason, compared.warning) if text]
    return {
        "run": str(run),
        "version": scores["version"],
        "n": scores["n"],
        "settings": {key: value for key, value in evaluation.settings.items() if key != "checkpoint_sha256"},
        "paths": {key: value for key, value in evaluation.paths.items() if key != "checkpoint"},
        "points": [_record(point, folder) for point in checkpoints],
        "final": final,
        "best": best.name,
        "last": last.name,
        "gain": {"points": gain, "ci95": [low, high]},
        "lines": reference_lines(scores, compared),
        "sentences": sentences,
    }


def markdown(found: Mapping[str, Any], has_curve: bool) -> str:
    """The content of sweep.md.

    Args:
        found: the content of sweep.json.
        has_curve: whether there is a sweep.svg.
    """
    rows = [*found["points"], *([found["final"]] if isinstance(found["final"], dict) else [])]
    tasks = list(dict.fromkeys(task for point in rows for task in point["task"]))
    marks = {one["name"]: [word for word in ("best", "last") if found[word] == one["name"]] for one in rows}
    return render("sweep.md.j2", **found, rows=rows, tasks=tasks, marks=marks, has_curve=has_curve)


def _record(point: Point, folder: Path) -> dict[str, Any]:
    return {
        "name": point.name,
        "step": point.step,
        "folder": os.path.relpath(point.evaluation.folder, folder),
        "reused": point.reused,
        **{key: point.scores[key] for key in ("total", "task", "unparsed", "missing", "format_rate")},
    }


def _said(which: str, point: Point) -> str:
    return f"{which}: {point.name}, {point.scores['total']['accuracy']:.2f} %"
