"""Evaluate a checkpoint on MMAU, or on the embedded held-out set it was trained with.

    python -m eval.mmau --ckpt runs/my-run/checkpoint-500 --data mmau-test-mini.json --audio-dir test-mini-audios

writes predictions.jsonl, settings.json, clips.json, scores.json, verdicts.jsonl, report.md and report.html, and prints
the report. The same command goes on with an evaluation that was interrupted, and asks again what could not be read then
and can be now. Several GPUs share the questions:

    python -m r1_aqa_repro.launch --standalone --nproc-per-node 8 -m eval.mmau --ckpt ...

and an interrupted evaluation goes on with any number of processes. --decoding checkpoint --repeats K says how far
sampling moves the result, --permute-choices K how far the order of the choices does, --no-audio how much of it is
left without audio: the report of the evaluation with audio shows the one without.

    python -m eval.mmau --predictions theirs.json --data mmau-test-mini.json --out scores

scores predictions that are already there, anybody's, without a model: a predictions.jsonl or a JSON list of MMAU
records with `model_prediction` or `model_output`. If the answers are withheld there is a submission.json and no score.

Exit codes: 0 done; 2 refused before anything was generated; 3 done, but some clips could not be read and their
questions count as wrong (the report lists them), or more than half of the answers are missing; 130 interrupted.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from eval.settings import NAMES, EvalSettings, add_options
from r1_aqa_repro.common.console import Options, say
from r1_aqa_repro.common.errors import EXIT_DONE, EXIT_LOSSES, command

_WITH_PREDICTIONS = ("predictions", "data", "out", "audio_dir", "prompt_style", "limit", "embed_audio")


@command
def main(argv: list[str]) -> int:
    """Run the command; returns its exit code."""
    parser = _parser()
    arguments = parser.parse_args(argv)
    if arguments.predictions is not None:
        return _score(parser, arguments)
    del arguments.predictions

    from eval.processes import joined  # after the arguments: --help and mistakes are answered at once
    from eval.report.markdown import print_report
    from eval.run import carry_out, prepare

    with joined() as processes:
        plan = processes.from_main(lambda: prepare(EvalSettings(**vars(arguments))))
        scores = carry_out(plan, processes)
    if not processes.is_main:
        return EXIT_DONE
    print_report(plan.evaluation.folder / "report.md")
    return _tell_losses(scores, plan.evaluation.folder)


def _score(parser: argparse.ArgumentParser, arguments: argparse.Namespace) -> int:
    """Score a file of predictions; returns the exit code."""
    given = vars(arguments)
    for name, value in given.items():
        if name not in _WITH_PREDICTIONS and value != parser.get_default(name):
            parser.error(f"argument --{name.replace('_', '-')}: not allowed with argument --predictions")

    from eval.report.markdown import print_report
    from eval.score_predictions import score_file

    scored = score_file(**{name: given[name] for name in _WITH_PREDICTIONS})
    print_report(scored.folder / "report.md")
    return _tell_losses(scored.scores, scored.folder)


def _tell_losses(scores: Mapping[str, Any], folder: Path) -> int:
    """Say what is missing, if it matters; returns the exit code."""
    from eval.scores import mostly_missing

    if scores["no_audio"]:
        say(f"{len(scores['no_audio'])} questions had no readable audio: see {folder}/report.md")
    if said := mostly_missing(scores):
        say(said)
    return EXIT_LOSSES if scores["no_audio"] or said else EXIT_DONE


def _parser() -> Options:
    parser = Options(__doc__, "python -m eval.mmau")
    source = parser.add_mutually_exclusive_group(required=True)
    add_options(source, ["ckpt"])
    source.add_argument("--predictions", type=Path, metavar="FILE", help="score these, without a model")
    add_options(parser, [name for name in NAMES if name != "ckpt"])
    return parser


if __name__ == "__main__":
    main()
