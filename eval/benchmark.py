"""Evaluate a checkpoint on a benchmark: MMAU, MMAR, MMSU, or the part of MMAU-Pro that can be scored here.

    python -m eval.benchmark mmar --ckpt runs/my-run/checkpoint-500 --data MMAR-meta.jsonl --audio-dir audio

does what `python -m eval.mmau` does for MMAU, with all of its options: the headline is the benchmark's own rule over
all questions, in its own groups; published figures stand beside it where they are on the same questions. A file of
another benchmark is refused.

    mmau      test-mini in both versions, and test, whose answers are withheld
    mmar      1,000 questions, by modality, category, sub-category and language
    mmsu      5,000 questions, by category, sub-category and task (47)
    mmau_pro  of MMAU-Pro only the questions with choices about one clip of at most 30 s, by MMAU's token rule: its own
              scoring needs NV-Embed-v2 and a language model as a judge. Never the MMAU-Pro score

    python -m eval.benchmark mmar --predictions theirs.jsonl --data MMAR-meta.jsonl --out scores

scores predictions that are already there: a predictions.jsonl, or the benchmark's records with an answer in the field
that its own script reads (MMAR: answer_prediction, MMSU: response), or in `model_prediction` or `model_output`.

Exit codes: 0 done; 2 refused before anything was generated; 3 done, but some clips could not be read and their
questions count as wrong (the report lists them), or more than half of the answers are missing; 130 interrupted.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from eval.benchmarks import BENCHMARKS
from eval.benchmarks.record import Benchmark
from eval.settings import NAMES, EvalSettings, add_options
from r1_aqa_repro.common.console import Options, say
from r1_aqa_repro.common.errors import EXIT_DONE, EXIT_LOSSES, command

_WITH_PREDICTIONS = ("predictions", "data", "out", "audio_dir", "prompt_style", "limit", "embed_audio")


@command
def main(argv: list[str]) -> int:
    """Run the command; returns its exit code."""
    parser = Options(__doc__, "python -m eval.benchmark")
    parser.add_argument("name", choices=tuple(BENCHMARKS), metavar="NAME", help=", ".join(BENCHMARKS))
    return evaluate(parser, argv)


def evaluate(parser: Options, argv: list[str], benchmark: Benchmark | None = None) -> int:
    """Evaluate, or score predictions; returns the exit code.

    Args:
        parser: of the command, which gets the options here.
        argv: its arguments.
        benchmark: that is evaluated on; None if it is the parser's `name`.
    """
    source = parser.add_mutually_exclusive_group(required=True)
    add_options(source, ["ckpt"])
    source.add_argument("--predictions", type=Path, metavar="FILE", help="score these, without a model")
    add_options(parser, [name for name in NAMES if name != "ckpt"])
    arguments = parser.parse_args(argv)
    if benchmark is None:
        benchmark = BENCHMARKS[arguments.name]
        del arguments.name
    if arguments.predictions is not None:
        return _score(parser, arguments, benchmark)
    del arguments.predictions

    from eval.processes import joined  # after the arguments: --help and mistakes are answered at once
    from eval.report.markdown import print_report
    from eval.run import carry_out, prepare

    with joined() as processes:
        plan = processes.from_main(lambda: prepare(EvalSettings(**vars(arguments)), benchmark))
        scores = carry_out(plan, processes)
    if not processes.is_main:
        return EXIT_DONE
    print_report(plan.evaluation.folder / "report.md")
    return tell_losses(scores, plan.evaluation.folder)


def _score(parser: argparse.ArgumentParser, arguments: argparse.Namespace, benchmark: Benchmark) -> int:
    """Score a file of predictions; returns the exit code."""
    given = vars(arguments)
    for name, value in given.items():
        if name not in _WITH_PREDICTIONS and value != parser.get_default(name):
            parser.error(f"argument --{name.replace('_', '-')}: not allowed with argument --predictions")

    from eval.report.markdown import print_report
    from eval.score_predictions import score_file

    scored = score_file(**{name: given[name] for name in _WITH_PREDICTIONS}, benchmark=benchmark)
    print_report(scored.folder / "report.md")
    return tell_losses(scored.scores, scored.folder)


def tell_losses(scores: Mapping[str, Any], folder: Path) -> int:
    """Say what is missing, if it matters; returns the exit code."""
    from eval.scores import mostly_missing

    if scores["no_audio"]:
        say(f"{len(scores['no_audio'])} questions had no readable audio: see {folder}/report.md")
    if said := mostly_missing(scores):
        say(said)
    return EXIT_LOSSES if scores["no_audio"] or said else EXIT_DONE


if __name__ == "__main__":
    main()
