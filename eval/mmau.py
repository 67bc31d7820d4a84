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

It is `python -m eval.benchmark mmau`; that command also evaluates on MMAR, MMSU and a part of MMAU-Pro.

Exit codes: 0 done; 2 refused before anything was generated; 3 done, but some clips could not be read and their
questions count as wrong (the report lists them), or more than half of the answers are missing; 130 interrupted.
"""

from __future__ import annotations

from eval.benchmark import evaluate
from eval.benchmarks import MMAU
from r1_aqa_repro.common.console import Options
from r1_aqa_repro.common.errors import command


@command
def main(argv: list[str]) -> int:
    """Run the command; returns its exit code."""
    parser = Options(__doc__, "python -m eval.mmau")
    return evaluate(parser, argv, MMAU)


if __name__ == "__main__":
    main()
