"""Evaluate a checkpoint on MMAU, or on the embedded held-out set it was trained with.

    python -m eval.mmau --ckpt runs/my-run/checkpoint-500 --data mmau-test-mini.json --audio-dir test-mini-audios

writes predictions.jsonl, scores.json, verdicts.jsonl, report.md and settings.json, and prints the report. The same
command goes on with an evaluation that was interrupted.

Exit codes: 0 done; 2 refused before anything was generated; 3 done, but some clips could not be read and their
questions count as wrong (the report lists them); 130 interrupted.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from r1_aqa_repro.console import with_hyphens
from r1_aqa_repro.errors import EXIT_DONE, EXIT_LOSSES, command
from r1_aqa_repro.prompts import PROMPT_STYLES


@command
def main(argv: list[str]) -> int:
    """Run the command; returns its exit code."""
    arguments = _parser().parse_args(with_hyphens(argv))

    from eval.report import print_report  # after the arguments: --help and mistakes are answered at once
    from eval.run import EvalSettings, carry_out, prepare

    plan = prepare(EvalSettings(**vars(arguments)))
    scores = carry_out(plan)
    print_report(plan.out / "report.md")
    if scores["no_audio"]:
        print(f"{len(scores['no_audio'])} questions had no readable audio: see {plan.out}/report.md", file=sys.stderr)
        return EXIT_LOSSES
    return EXIT_DONE


def _parser() -> argparse.ArgumentParser:
    description, _, rest = (__doc__ or "").partition("\n\n")
    parser = argparse.ArgumentParser(
        prog="python -m eval.mmau",
        description=description,
        epilog=rest,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("--ckpt", required=True, metavar="DIR_OR_HUB_ID", help="checkpoint folder or hub id")
    add("--data", type=Path, metavar="FILE", help="manifest or MMAU JSON file (default: data/mmau/manifest.jsonl, "
        "else the embedded held-out set of the checkpoint)")  # fmt: skip
    add("--audio-dir", type=Path, metavar="DIR", help="folder of an MMAU file's clips (default: the file's own)")
    add("--out", type=Path, metavar="DIR", help="where to write (default: CKPT/eval/STEM_OF_DATA)")
    add("--prompt-style", choices=PROMPT_STYLES, help="default: answer (embedded set: its own)")
    add("--batch-size", type=_positive, default=16, metavar="N", help="questions at once (default: 16)")
    add("--limit", type=_positive, metavar="N", help="only the first N questions")
    add("--no-audio", action="store_true", help="silence of the same length in place of every clip")
    add("--max-new-tokens", type=_positive, default=256, metavar="N", help="longest completion (default: 256)")
    add("--audio-channel", choices=("first", "mean"), default="first", help="of several channels (default: first)")
    add("--strict", action="store_true", help="refuse to start where a clip cannot be read")
    add("--dtype", choices=("float32", "bfloat16"), help="default: bfloat16 on a GPU, otherwise float32")
    add("--device", metavar="DEVICE", help="such as cpu, cuda, cuda:1 (default: the GPU where there is one)")
    return parser


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text} is not a positive number")
    return number


if __name__ == "__main__":
    sys.exit(main(None))
