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

import re
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from eval.settings import AUTO, EvalSettings, add_options
from r1_aqa_repro.common.console import Options, say
from r1_aqa_repro.common.errors import EXIT_DONE, EXIT_LOSSES, Refused, command

if TYPE_CHECKING:
    from eval.processes import Processes
    from eval.sweep_results import Point

_CHECKPOINT = re.compile(r"checkpoint-(\d+)")
_FINAL = "final"
_OPTIONS = (
    "data", "audio_dir", "prompt_style", "batch_size", "limit", "no_audio", "max_new_tokens", "dtype", "device",
)  # fmt: skip


@command
def main(argv: list[str]) -> int:
    """Run the command; returns its exit code."""
    arguments = vars(_parser().parse_args(argv))

    from eval.processes import joined  # after the arguments: --help and mistakes are answered at once
    from eval.report.markdown import print_report

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
    from eval.sweep_results import write_sweep

    folder, points = processes.from_main(lambda: _points(run, settings, out))
    for number, point in enumerate(points, start=1):
        done = f": evaluated already, in {point.evaluation.folder}" if point.reused else ""
        say(f"[{number}/{len(points)}] {point.plan.settings.ckpt}{done}")
        if not point.reused:
            carry_out(point.plan, processes)
    lost = processes.from_main(lambda: write_sweep(run, folder, points, (run / _FINAL).is_dir()))
    return folder, lost


def _points(run: Path, settings: EvalSettings, out: Path | None) -> tuple[Path, list[Point]]:
    """The folder of the sweep, and each model of the run in the order of steps.

    An evaluation is there already if it was made with the same settings, of the same clips. With `auto` the batch size
    may be any. A model in training had no digest yet: it was saved as the checkpoint of that step.
    """
    from eval.evaluation import is_complete
    from eval.predictions import clip_hashes, recorded_clips
    from eval.run import prepare
    from eval.sweep_results import Point
    from r1_aqa_repro.data.questions import with_answers

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


def _parser() -> Options:
    parser = Options(__doc__, "python -m eval.sweep")
    what = "folder of a run, which holds checkpoint-N and final"
    parser.add_argument("run", type=Path, metavar="RUN_DIR", help=what)
    where = "where to write (default: RUN_DIR/sweep/STEM_OF_DATA)"
    parser.add_argument("--out", type=Path, metavar="DIR", help=where)
    add_options(parser, _OPTIONS)
    return parser


if __name__ == "__main__":
    main()
