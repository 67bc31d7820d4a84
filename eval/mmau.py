"""Evaluate a checkpoint on MMAU, or on the embedded held-out set it was trained with.

    python -m eval.mmau --ckpt runs/my-run/checkpoint-500 --data mmau-test-mini.json --audio-dir test-mini-audios

writes predictions.jsonl, settings.json, clips.json, scores.json, verdicts.jsonl, report.md and report.html, and prints
the report. The same command goes on with an evaluation that was interrupted, and asks again what could not be heard
then and can be now. Several GPUs share the questions:

    python -m r1_aqa_repro.launch --standalone --nproc-per-node 8 -m eval.mmau --ckpt ...

and an interrupted evaluation goes on with any number of processes. --decoding checkpoint --repeats K says how far
sampling moves the result, --permute-choices K how far the order of the choices does, --no-audio how much of it is
left without listening: the report of the evaluation that heard shows the blind one beside it.

    python -m eval.mmau --predictions theirs.json --data mmau-test-mini.json --out scores

scores predictions that are already there, anybody's, without a model: a predictions.jsonl or a JSON list of MMAU
records with `model_prediction` or `model_output`. Where the answers are withheld there is a submission.json and no
score.

Exit codes: 0 done; 2 refused before anything was generated; 3 done, but some clips could not be read and their
questions count as wrong (the report lists them); 130 interrupted.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from r1_aqa_repro.common.console import Options, positive, say
from r1_aqa_repro.common.errors import EXIT_DONE, EXIT_LOSSES, command
from r1_aqa_repro.data.prompts import PROMPT_STYLES

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
    from eval.run import EvalSettings, carry_out, prepare

    with joined() as processes:
        plan = processes.from_main(lambda: prepare(EvalSettings(**vars(arguments))))
        scores = carry_out(plan, processes)
    if not processes.is_main:
        return EXIT_DONE
    print_report(plan.out / "report.md")
    if scores["no_audio"]:
        say(f"{len(scores['no_audio'])} questions had no readable audio: see {plan.out}/report.md")
        return EXIT_LOSSES
    return EXIT_DONE


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
    return EXIT_LOSSES if scored.scores["no_audio"] else EXIT_DONE


def _parser() -> Options:
    parser = Options(__doc__, "python -m eval.mmau")
    add = parser.add_argument
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--ckpt", metavar="DIR_OR_HUB_ID", help="checkpoint folder or hub id")
    source.add_argument("--predictions", type=Path, metavar="FILE", help="score these, without a model")
    add("--adapter", type=Path, metavar="DIR", help="LoRA adapter on top of --ckpt")
    add("--data", type=Path, metavar="FILE", help="manifest, MMAU JSON or parquet file "
        "(default: data/mmau/manifest.jsonl, else the embedded held-out set of the checkpoint)")  # fmt: skip
    add("--audio-dir", type=Path, metavar="DIR", help="folder of an MMAU file's clips (default: the file's own)")
    add("--out", type=Path, metavar="DIR", help="where to write (default: CKPT/eval/STEM_OF_DATA, "
        "with -no-audio where that is set)")  # fmt: skip
    add("--prompt-style", choices=PROMPT_STYLES, help="default: answer (embedded set: its own)")
    add("--decoding", choices=("greedy", "checkpoint"), default="greedy",
        help="the likeliest token, or as the checkpoint's generation_config.json says (default: greedy)")  # fmt: skip
    add("--repeats", type=positive, default=1, metavar="K", help="completions a question (default: 1)")
    add("--permute-choices", type=positive, default=1, metavar="K",
        help="orders of the choices to ask each question in, the first being the file's (default: 1)")  # fmt: skip
    add("--batch-size", type=auto_or_positive, default="auto", metavar="auto|N", help="questions at once "
        "(default: auto, what half of the free memory holds; either is lowered where memory runs out)")  # fmt: skip
    add("--limit", type=positive, metavar="N", help="only the first N questions")
    add("--no-audio", action="store_true", help="silence of the same length in place of every clip")
    add("--max-new-tokens", type=positive, default=256, metavar="N", help="longest completion (default: 256)")
    add("--audio-channel", choices=("first", "mean"), default="first", help="of several channels (default: first)")
    add("--embed-audio", action="store_true", help="put the clips into report.html, so that it can be handed on alone")
    add("--strict", action="store_true", help="refuse to start where a clip cannot be read")
    add("--dtype", choices=("float32", "bfloat16"), help="default: bfloat16 on a GPU, otherwise float32")
    add("--device", metavar="DEVICE", help="such as cpu, cuda, cuda:1 (default: the GPU where there is one)")
    return parser


def auto_or_positive(text: str) -> int | str:
    return text if text == "auto" else positive(text)


if __name__ == "__main__":
    sys.exit(main(None))
