"""Evaluate every checkpoint of a run, for one table and one curve.

    python -m eval.sweep runs/my-run --data mmau-test-mini.json --audio-dir test-mini-audios

writes sweep.json, sweep.md and sweep.svg to RUN_DIR/sweep/STEM_OF_DATA, and beside them a folder a checkpoint with
what `eval.mmau` writes. An evaluation that was made with the same settings and data is not repeated: one while training
(RUN_DIR/eval/step-N), or the checkpoint's own (checkpoint-N/eval/STEM_OF_DATA). `final` is evaluated only if it is not
the last checkpoint. The same command goes on with a sweep that was interrupted, and several GPUs share it as they share
`eval.mmau`.

Exit codes: 0 done; 2 refused; 3 done, but some clips could not be read; 130 interrupted.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from eval.benchmarks import BENCHMARKS, MMAU
from eval.benchmarks.record import Benchmark
from eval.evaluation import Evaluation, is_complete
from eval.predictions import clip_hashes, recorded_clips
from eval.processes import joined
from eval.report.markdown import print_report
from eval.report.rendering import render
from eval.scores import mostly_missing, read_verdicts
from eval.settings import AUTO, EvalSettings, add_options
from eval.targets import EMBEDDED_HEADING, GUESSING, against_published, reference_lines
from r1_aqa_repro.common.console import Options, say
from r1_aqa_repro.common.errors import EXIT_DONE, EXIT_LOSSES, Refused, command
from r1_aqa_repro.common.escaping import one_line
from r1_aqa_repro.common.files import LOCK, output_folder, read_json, sole_use, whole_file, write_atomically, write_json
from r1_aqa_repro.common.intervals import paired_gain
from r1_aqa_repro.data.questions import with_answers

if TYPE_CHECKING:
    from eval.run import Plan

_CHECKPOINT = re.compile(r"checkpoint-(\d+)")
_FINAL = "final"
_OPTIONS = (
    "data", "audio_dir", "prompt_style", "batch_size", "limit", "no_audio", "max_new_tokens", "dtype", "device",
)  # fmt: skip
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
        return read_json(self.evaluation.folder / "scores.json", "Give the same command again.")

    def right(self) -> list[float]:
        """The official verdict on each question."""
        return [one["official"] for one in read_verdicts(self.evaluation.folder / "verdicts.jsonl").values()]


@command
def main(argv: list[str]) -> int:
    """Run the command; returns its exit code."""
    arguments = vars(_parser().parse_args(argv))
    run, out = arguments.pop("run"), arguments.pop("out")
    settings = EvalSettings(ckpt=str(run), **arguments)

    from eval.run import carry_out  # after the arguments: --help and mistakes are answered at once

    with joined() as processes:
        folder, points = processes.from_main(lambda: _points(run, settings, out))
        for number, point in enumerate(points, start=1):
            done = f": evaluated already, in {point.evaluation.folder}" if point.reused else ""
            say(f"[{number}/{len(points)}] {point.plan.settings.ckpt}{done}")
            if not point.reused:
                carry_out(point.plan, processes)
        lost = processes.from_main(lambda: write_sweep(run, folder, points))
    if not processes.is_main:
        return EXIT_DONE
    print_report(folder / "sweep.md")
    for point in points:
        if said := mostly_missing(point.scores):
            say(f"{point.name}: {said}")
    if lost:
        say(f"{lost} questions had no readable audio: see the report.md of each checkpoint")
        return EXIT_LOSSES
    return EXIT_DONE


def _points(run: Path, settings: EvalSettings, out: Path | None) -> tuple[Path, list[Point]]:
    """The folder of the sweep, and each model of the run in the order of steps.

    An evaluation is there already if it was made with the same settings, of the same clips. With `auto` the batch size
    may be any. A model in training had no digest yet: it was saved as the checkpoint of that step.
    """
    from eval.run import prepare

    steps = {path: int(match[1]) for path in run.glob("*") if (match := _CHECKPOINT.fullmatch(path.name))}
    folders = sorted(steps, key=steps.__getitem__) + [run / _FINAL] * (run / _FINAL).is_dir()
    if not folders:
        what = "the folder holds no checkpoint-N and no final"
        raise Refused.because(str(run), what, "Give the folder of a run, such as runs/my-run.")
    points: list[Point] = []
    for model in folders:
        plan, step = prepare(replace(settings, ckpt=str(model), out=None)), steps.get(model)
        own, digest = plan.evaluation, "checkpoint_sha256"
        if not points:
            folder = out or run / "sweep" / own.folder.name
            clips = clip_hashes({question.id: question.audio_path for question in own.questions})
            if problems := with_answers(own.questions, own.paths["data"]):
                raise Refused(problems)
        elif step is None and points[-1].evaluation.settings[digest] == own.settings[digest]:
            continue
        candidates = {own.folder: own.settings}
        if step is not None:
            of_the_step = {key: value for key, value in own.settings.items() if key != digest}
            candidates = {run / "eval" / f"step-{step}": of_the_step | {"training_step": step}} | candidates
        free = {"batch_size"} if settings.batch_size == AUTO else set()
        done = [
            place
            for place, made_with in candidates.items()
            if is_complete(place, made_with, free) and recorded_clips(place) == clips
        ]
        evaluation = replace(own, folder=done[0] if done else folder / model.name)
        points.append(Point(model.name, step, replace(plan, evaluation=evaluation), bool(done)))
    return folder, points


def write_sweep(run: Path, folder: Path, points: Sequence[Point]) -> int:
    """Write the results to `folder`; the number of questions without readable audio."""
    found = summary(run, folder, points)
    with sole_use(folder / LOCK, "Choose another --out."):
        write_json(folder / "sweep.json", found)
        write_atomically(folder / "sweep.md", markdown(found))
        if len(found["points"]) > 1:
            write_curve(folder / "sweep.svg", found)
    return max(len(point.scores["no_audio"]) for point in points)


def summary(run: Path, folder: Path, points: Sequence[Point]) -> dict[str, Any]:
    """The content of sweep.json, which docs/evaluation.md describes.

    Args:
        run: folder of the run.
        folder: of the sweep, which paths are relative to.
        points: every evaluated model, by step.
    """
    checkpoints = [point for point in points if point.step is not None]
    ranked = checkpoints or list(points)
    best = max(ranked, key=lambda point: point.scores["total"]["accuracy"])  # of equals the earliest
    last = ranked[-1]
    own_final = [_record(point, folder) for point in points if point.step is None]
    final = own_final[0] if own_final else last.name if (run / _FINAL).is_dir() else None
    clips = [question.audio_path for question in last.evaluation.questions]
    gain, low, high = (100 * value for value in paired_gain(last.right(), best.right(), clips))
    scores, evaluation = last.scores, points[-1].evaluation
    benchmark = evaluation.benchmark
    compared = against_published(scores, evaluation.settings, benchmark)
    sentences = [f"{_said('Best', best)}; {_said('last', last)}."]
    if best is not last:
        bootstrap = "paired bootstrap over clips" if "clips" in scores["total"] else "paired bootstrap"
        sentences.append(
            f"On the same questions the best is {gain:+.1f} points from the last, 95 % interval "
            f"[{low:+.1f}, {high:+.1f}] ({bootstrap}, which does not allow for the picking)."
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
        **({} if benchmark.dataset is None else {"benchmark": benchmark.name}),
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
    key = _benchmark(found).main_group
    return render("sweep.md.j2", **found, rows=rows, key=key, tasks=_tasks(rows, key), marks=marks)


def write_curve(path: Path, found: Mapping[str, Any]) -> None:
    """Draw accuracy over steps, from the content of sweep.json: in total with the band of its interval, and by task.

    The same figures give the same bytes.
    """
    import matplotlib
    from matplotlib.figure import Figure

    points, key = found["points"], _benchmark(found).main_group
    steps = [point["step"] for point in points]
    low, high = zip(*(point["total"]["ci95"] for point in points), strict=True)
    with matplotlib.rc_context({"svg.hashsalt": "sweep", "text.parse_math": False}):  # a dollar sign is a dollar sign
        figure = Figure(figsize=(7.2, 4.2), layout="constrained")
        axis = figure.add_subplot(xlabel="optimizer step", ylabel="accuracy, %")
        axis.fill_between(steps, low, high, color="black", alpha=0.13, label="95 % interval of the total")
        axis.plot(steps, [point["total"]["accuracy"] for point in points], "o-", color="black", label="total")
        axis.set_prop_cycle(marker=list("s^Dv*Pxphd"), color=matplotlib.color_sequences["petroff10"])
        for task in _tasks(points, key):
            accuracies = [point[key].get(task, {}).get("accuracy", float("nan")) for point in points]
            axis.plot(steps, accuracies, label=one_line(task)[:40])
        for label, value in found["lines"].items():
            axis.axhline(value, color="black", linestyle=":" if label == GUESSING else "--", label=label)
        figure.legend(loc="outside lower center", ncols=2, frameon=False, fontsize=8)
        with whole_file(path) as file:
            figure.savefig(file, format="svg", metadata={"Date": None})


def _benchmark(found: Mapping[str, Any]) -> Benchmark:
    return BENCHMARKS[found.get("benchmark", MMAU.name)]


def _tasks(points: Sequence[Mapping[str, Any]], key: str) -> list[str]:
    """Every task, or other label of the benchmark's first group `key`, that any of the points has."""
    return list(dict.fromkeys(task for point in points for task in point[key]))


def _record(point: Point, folder: Path) -> dict[str, Any]:
    main_group = point.evaluation.benchmark.main_group
    return {
        "name": point.name,
        "step": point.step,
        "folder": os.path.relpath(point.evaluation.folder, folder),
        "reused": point.reused,
        **{key: point.scores[key] for key in ("total", main_group, "unparsed", "missing", "format_rate")},
    }


def _said(which: str, point: Point) -> str:
    return f"{which}: {point.name}, {point.scores['total']['accuracy']:.2f} %"


def _parser() -> Options:
    parser = Options(__doc__, "python -m eval.sweep")
    what = "folder of a run, which holds checkpoint-N and final"
    parser.add_argument("run", type=Path, metavar="RUN_DIR", help=what)
    where = "where to write (default: RUN_DIR/sweep/STEM_OF_DATA, of another benchmark than mmau its name)"
    parser.add_argument("--out", type=output_folder, metavar="DIR", help=where)
    add_options(parser, _OPTIONS)
    return parser


if __name__ == "__main__":
    main()
