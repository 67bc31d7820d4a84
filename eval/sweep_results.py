"""What a sweep over the checkpoints of a run leaves: sweep.json, sweep.md and sweep.svg."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.figure import Figure

from eval.evaluation import Evaluation
from eval.report.rendering import one_line, render
from eval.run import Plan
from eval.scores import read_verdicts
from eval.targets import EMBEDDED_HEADING, GUESSING, against_published, reference_lines
from r1_aqa_repro.common.files import whole_file, write_atomically, write_json
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
    write_json(folder / "sweep.json", found)
    if len(found["points"]) > 1:
        write_curve(folder / "sweep.svg", found)
    write_atomically(folder / "sweep.md", markdown(found))
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


def markdown(found: Mapping[str, Any]) -> str:
    """The content of sweep.md, from that of sweep.json."""
    rows = [*found["points"], *([found["final"]] if isinstance(found["final"], dict) else [])]
    marks = {one["name"]: [word for word in ("best", "last") if found[word] == one["name"]] for one in rows}
    return render("sweep.md.j2", **found, rows=rows, tasks=_tasks(rows), marks=marks)


def write_curve(path: Path, found: Mapping[str, Any]) -> None:
    """Draw accuracy over steps, from the content of sweep.json: in total with the band of its interval, and by task.

    The same figures give the same bytes.
    """
    points = found["points"]
    steps = [point["step"] for point in points]
    low, high = zip(*(point["total"]["ci95"] for point in points), strict=True)
    with matplotlib.rc_context({"svg.hashsalt": "sweep", "text.parse_math": False}):  # a dollar sign is a dollar sign
        figure = Figure(figsize=(7.2, 4.2), layout="constrained")
        axis = figure.add_subplot(xlabel="optimizer step", ylabel="accuracy, %")
        axis.fill_between(steps, low, high, color="black", alpha=0.13, label="95 % interval of the total")
        axis.plot(steps, [point["total"]["accuracy"] for point in points], "o-", color="black", label="total")
        axis.set_prop_cycle(marker=list("s^Dv*Pxphd"), color=matplotlib.color_sequences["petroff10"])
        for task in _tasks(points):
            accuracies = [point["task"].get(task, {}).get("accuracy", float("nan")) for point in points]
            axis.plot(steps, accuracies, label=one_line(task)[:40])
        for label, value in found["lines"].items():
            axis.axhline(value, color="black", linestyle=":" if label == GUESSING else "--", label=label)
        figure.legend(loc="outside lower center", ncols=2, frameon=False, fontsize=8)
        with whole_file(path) as file:
            figure.savefig(file, format="svg", metadata={"Date": None})


def _tasks(points: Sequence[Mapping[str, Any]]) -> list[str]:
    """Every task that any of the points has."""
    return list(dict.fromkeys(task for point in points for task in point["task"]))


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
