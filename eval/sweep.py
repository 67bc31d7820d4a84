"""Evaluate every checkpoint of a run, for one table and one curve.

    python -m eval.sweep runs/my-run --data mmau-test-mini.json --audio-dir test-mini-audios

writes sweep.json, sweep.md and sweep.svg to RUN_DIR/sweep/STEM_OF_DATA, and beside them a folder a checkpoint with
what `eval.mmau` writes. An evaluation that was made with the same settings and data is not repeated: one while training
(RUN_DIR/eval/step-N), or the checkpoint's own (checkpoint-N/eval/STEM_OF_DATA). `final` is evaluated only where it is
not the last checkpoint. The same command goes on with a sweep that was interrupted, and several GPUs share it as they
share `eval.mmau`.

Exit codes: 0 done; 2 refused; 3 done, but some clips could not be read; 130 interrupted.
"""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from eval.mmau import auto_or_positive
from r1_aqa_repro.common.console import Options, positive, say
from r1_aqa_repro.common.errors import EXIT_DONE, EXIT_LOSSES, Refused, command
from r1_aqa_repro.data.prompts import PROMPT_STYLES

if TYPE_CHECKING:
    from eval.processes import Processes
    from eval.run import EvalSettings, Plan

_CHECKPOINT = re.compile(r"checkpoint-(\d+)")
FINAL = "final"
# what tells apart the evaluations of one sweep, and an evaluation while training from one of the saved checkpoint
_OF_THE_MODEL = ("checkpoint_sha256", "training_step")
_CAUTION = (
    "The best is picked on the very questions that its accuracy is of, which flatters it: pick on questions set apart, "
    "and report here what was picked there, or the last, which nobody picked."
)


@command
def main(argv: list[str]) -> int:
    """Run the command; returns its exit code."""
    arguments = vars(_parser().parse_args(argv))

    from eval.processes import joined  # after the arguments: --help and mistakes are answered at once
    from eval.report.markdown import print_report
    from eval.run import EvalSettings

    run, out = arguments.pop("run"), arguments.pop("out")
    with joined() as processes:
        folder, lost = sweep(run, EvalSettings(ckpt=str(run), **arguments), out, processes)
    if not processes.is_main:
        return EXIT_DONE
    print_report(folder / "sweep.md")
    if lost:
        say(f"{lost} questions had no readable audio: see the report.md of each checkpoint")
        return EXIT_LOSSES
    return EXIT_DONE


def sweep(run: Path, settings: EvalSettings, out: Path | None, processes: Processes) -> tuple[Path, int]:
    """Evaluate what is not evaluated yet, and write the results.

    Args:
        run: folder of a run.
        settings: of every evaluation; its `ckpt` and `out` are not used.
        out: folder to write to. Default: see the module.
        processes: that share the work; all call this.

    Returns:
        The folder, and how many questions had no readable audio.

    Raises:
        Refused: no checkpoints; what `run.prepare` and `run.carry_out` refuse; questions without answers.
    """
    from eval.run import carry_out

    plans: list[tuple[Plan, Path | None]] = processes.from_main(lambda: _plans(run, settings, out))
    evaluated = []
    for number, (plan, done) in enumerate(plans, start=1):
        if processes.is_main:
            say(f"[{number}/{len(plans)}] {plan.folder}" + (f": evaluated already, in {done}" if done else ""))
        if done is None:
            carry_out(plan, processes)
        evaluated.append((plan, done or plan.out))
    folder = plans[0][0].out.parent
    lost = processes.from_main(lambda: _write(run, folder, evaluated))
    return folder, lost


def _plans(run: Path, settings: EvalSettings, out: Path | None) -> list[tuple[Plan, Path | None]]:
    """A plan for each model of the run in the order of steps, and the folder where its evaluation is done already."""
    from eval.run import prepare
    from r1_aqa_repro.data.questions import with_answers

    steps = sorted((int(match[1]), path) for path in run.glob("*") if (match := _CHECKPOINT.fullmatch(path.name)))
    folders = [path for _, path in steps] + [run / FINAL] * (run / FINAL).is_dir()
    if not folders:
        what = "the folder holds no checkpoint-N and no final"
        raise Refused.because(str(run), what, "Give the folder of a run, such as runs/my-run.")
    plans: list[tuple[Plan, Path | None]] = []
    for folder in folders:
        plan = prepare(replace(settings, ckpt=str(folder), out=None))
        if not plans and (problems := with_answers(plan.questions, plan.paths["data"])):
            raise Refused(problems)
        if folder.name == FINAL and plans and _model(plans[-1][0]) == _model(plan):
            continue
        while_training = run / "eval" / folder.name.replace("checkpoint-", "step-")
        done = next((candidate for candidate in (while_training, plan.out) if _is_done(candidate, plan)), None)
        target = (out or run / "sweep" / plan.out.name) / folder.name
        plans.append((replace(plan, out=target), done))
    return plans


def _model(plan: Plan) -> str:
    return str(plan.effective["checkpoint_sha256"])


def _is_done(folder: Path, plan: Plan) -> bool:
    """Whether a scored evaluation with these settings, of these clips, is in the folder.

    The batch size may be any where `auto` is wanted. Of a model in training there is no hash: it was saved as the
    checkpoint of that step.
    """
    from eval.evaluation import is_complete
    from eval.predictions import clip_hashes, recorded_clips

    wanted = plan.effective
    try:
        made = json.loads((folder / "settings.json").read_text(encoding="utf-8"))["settings"]
    except (OSError, ValueError, KeyError):
        return False
    free = set(_OF_THE_MODEL) if "training_step" in made else set()
    free |= {"batch_size"} if wanted["batch_size"] == "auto" else set()
    same = all(made.get(key) == wanted.get(key) for key in {*made, *wanted} - free)
    clips = {question.id: question.audio_path for question in plan.questions}
    return same and is_complete(folder) and recorded_clips(folder) == clip_hashes(clips)


def _write(run: Path, folder: Path, evaluated: Sequence[tuple[Plan, Path]]) -> int:
    """Write the results to `folder`; the number of questions without readable audio."""
    from eval.predictions import PREDICTIONS
    from eval.report.charts import curve, svg_file
    from eval.report.page import SWEEP
    from eval.score_predictions import score_file
    from r1_aqa_repro.common.files import write_atomically, write_json

    found = summary(run, folder, evaluated)
    write_json(folder / SWEEP, found)
    curved = len(found["points"]) > 1
    if curved:
        write_atomically(folder / "sweep.svg", svg_file(curve(found["points"], found["lines"])))
    write_atomically(folder / "sweep.md", markdown(found, curved))
    for plan, where in evaluated:
        if where == plan.out:
            audio_dir = Path(plan.paths["audio_dir"]) if "audio_dir" in plan.paths else None
            # its page shows the curve now
            score_file(where / PREDICTIONS, Path(plan.paths["data"]), audio_dir=audio_dir)
    return max(len(_scores(where)["no_audio"]) for _, where in evaluated)


def summary(run: Path, folder: Path, evaluated: Sequence[tuple[Plan, Path]]) -> dict[str, Any]:
    """The content of sweep.json: accuracies and intervals 0-100.

    `points` are the checkpoints by step; `final` is None where there is none, the name of the last checkpoint where it
    is the same model, and a point of its own without step otherwise. `gain` is what the best has over the last, in
    points, with the interval of a bootstrap over the questions.

    Args:
        run: folder of the run.
        folder: of the sweep, which paths are relative to.
        evaluated: every plan with the folder that holds its evaluation, by step.
    """
    from eval.scores import read_verdicts
    from eval.targets import EMBEDDED_HEADING, against_published, reference_lines
    from r1_aqa_repro.common.intervals import paired_gain

    everything = [_point(plan, where, folder) for plan, where in evaluated]
    points = [point for point in everything if point["step"] is not None]
    rows = points or everything
    best = max(rows, key=lambda point: point["total"]["accuracy"])  # of equals the earliest
    last = rows[-1]
    own_final = [point for point in everything if point["step"] is None]
    final = own_final[0] if own_final else last["name"] if (run / FINAL).is_dir() else None
    places = {plan.folder.name: where for plan, where in evaluated}
    right = {
        point["name"]: [one["official"] for one in read_verdicts(places[point["name"]] / "verdicts.jsonl").values()]
        for point in (best, last)
    }
    gain, low, high = (100 * value for value in paired_gain(right[last["name"]], right[best["name"]]))
    scores = _scores(places[last["name"]])
    compared = against_published(scores, evaluated[-1][0].effective)
    sentences = [f"{_said('Best', best)}; {_said('last', last)}."]
    if best is not last:
        sentences.append(
            f"On the same questions the best is {gain:+.1f} points from the last, 95 % interval "
            f"[{low:+.1f}, {high:+.1f}] (paired bootstrap, which does not allow for the picking)."
        )
    if len(rows) > 1:
        sentences.append(_CAUTION)
    if isinstance(final, str):
        sentences.append(f"`final` is the same model as {final}.")
    reused = [point["name"] for point in everything if point["reused"]]
    if reused:
        sentences.append(f"Taken over from evaluations with the same settings and data: {', '.join(reused)}.")
    if compared is None:
        sentences.append(f"{EMBEDDED_HEADING[0].upper()}{EMBEDDED_HEADING[1:]}.")
    else:
        sentences += [text for text in (compared.reason, compared.warning) if text]
    plan = evaluated[-1][0]
    return {
        "run": str(run),
        "version": scores["version"],
        "n": scores["n"],
        "settings": {key: value for key, value in plan.effective.items() if key not in _OF_THE_MODEL},
        "paths": {key: value for key, value in plan.paths.items() if key != "checkpoint"},
        "points": points,
        "final": final,
        "best": best["name"],
        "last": last["name"],
        "gain": {"points": gain, "ci95": [low, high]},
        "lines": reference_lines(scores, compared),
        "sentences": sentences,
    }


def markdown(found: Mapping[str, Any], curved: bool) -> str:
    """The content of sweep.md.

    Args:
        found: the content of sweep.json.
        curved: whether there is a sweep.svg.
    """
    from eval.report.markdown import markdown_table
    from eval.report.rendering import escape

    rows_of = [*found["points"], *([found["final"]] if isinstance(found["final"], dict) else [])]
    tasks = list(dict.fromkeys(task for point in rows_of for task in point["task"]))
    rows = []
    for point in rows_of:
        low, high = point["total"]["ci95"]
        marks = [word for word in ("best", "last") if point["name"] == found[word]]
        by_task = [f"{point['task'][task]['accuracy']:.2f}" if task in point["task"] else "" for task in tasks]
        total = f"{point['total']['accuracy']:.2f}"
        name = escape(point["name"]) + (f" ({', '.join(marks)})" if marks else "")
        cells = [total, f"{low:.1f} to {high:.1f}", str(point["unparsed"]), str(point["missing"])]
        rows.append([name, *by_task, *cells])
    header = ("model", *map(escape, tasks), "total %", "95 % interval", "unparsed", "missing")
    lines = [f"{escape(label)}: {value:.2f} %." for label, value in found["lines"].items()]
    parts = [
        f"# Checkpoints of {escape(found['run'])}",
        f"Version {found['version']}, {found['n']} questions, prompt style {found['settings']['prompt_style']}"
        + (", silence in place of every clip." if found["settings"]["no_audio"] else "."),
        markdown_table(header, rows),
        "\n".join(f"- {sentence}" for sentence in [*found["sentences"], *lines]),
        "![accuracy over steps](sweep.svg)" if curved else "",
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _point(plan: Plan, where: Path, folder: Path) -> dict[str, Any]:
    match = _CHECKPOINT.fullmatch(plan.folder.name)
    scores = _scores(where)
    kept = ("total", "task", "unparsed", "missing", "format_rate")
    return {
        "name": plan.folder.name,
        "step": int(match[1]) if match else None,
        "folder": os.path.relpath(where, folder),
        "reused": where != plan.out,
        **{key: scores[key] for key in kept},
    }


def _said(which: str, point: Mapping[str, Any]) -> str:
    return f"{which}: {point['name']}, {point['total']['accuracy']:.2f} %"


def _scores(folder: Path) -> dict[str, Any]:
    return dict(json.loads((folder / "scores.json").read_text(encoding="utf-8")))


def _parser() -> Options:
    parser = Options(__doc__, "python -m eval.sweep")
    add = parser.add_argument
    add("run", type=Path, metavar="RUN_DIR", help="folder of a run, which holds checkpoint-N and final")
    add("--data", type=Path, metavar="FILE", help="as of eval.mmau")
    add("--audio-dir", type=Path, metavar="DIR", help="as of eval.mmau")
    add("--out", type=Path, metavar="DIR", help="where to write (default: RUN_DIR/sweep/STEM_OF_DATA)")
    add("--prompt-style", choices=PROMPT_STYLES, help="default: answer (embedded set: its own)")
    add(
        "--batch-size",
        type=auto_or_positive,
        default="auto",
        metavar="auto|N",
        help="questions at once (default: auto)",
    )
    add("--limit", type=positive, metavar="N", help="only the first N questions")
    add("--no-audio", action="store_true", help="silence of the same length in place of every clip")
    add("--max-new-tokens", type=positive, default=256, metavar="N", help="longest completion (default: 256)")
    add("--dtype", choices=("float32", "bfloat16"), help="default: bfloat16 on a GPU, otherwise float32")
    add("--device", metavar="DEVICE", help="such as cpu, cuda, cuda:1 (default: the GPU where there is one)")
    return parser


if __name__ == "__main__":
    sys.exit(main(None))
