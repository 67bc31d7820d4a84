"""What a sparse reward needs is patience: GRPO from a model whose answer is right once in a hundred times.

    python scripts/sparse_reward_text.py [--output_dir DIR] [--seed N]

The model guesses the code of a safe, a number from 0 to 99; the reward is 1 for the code and 0 for anything else. The
rewards of a group of G completions without a single right one have no variance: such a group gives no advantages, and
its step teaches nothing. With a success rate p that is so in (1 - p)^G of the groups, 92 % for G = 8 and p = 0.01.
Three runs from the same start wait in different ways: for a success to come, step after step; by asking further prompts
within a step in place of zero-variance groups (`dynamic_sampling`, after arXiv 2503.14476, section 3.2); by larger
groups.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # the project also without an installation

import pandas
from rich.table import Table

from r1_aqa_repro import train_grpo_text, train_sft_text
from r1_aqa_repro.best_of_n import Sampler
from r1_aqa_repro.common.console import say
from r1_aqa_repro.common.errors import EXIT_DONE
from r1_aqa_repro.common.intervals import wilson
from r1_aqa_repro.data.conversations import read_prompts
from r1_aqa_repro.embedded.sparse_reward import CODES, vocabulary_texts, write_sparse_set
from r1_aqa_repro.embedded.tiny_qwen2 import build_tiny_qwen2
from r1_aqa_repro.model.text_loading import load_policy, load_tokenizer
from r1_aqa_repro.rewards.text_rules import math_reward
from scripts.shown import plotted
from scripts.workshop import (
    Block,
    Workshop,
    command_of_stages,
    interval,
    log_of,
    options_of_run,
    results,
    table,
)

# completions of a group, and how many groups a step may sample after the first
RUNS = {"small groups": (8, 0), "dynamic sampling": (8, 15), "large groups": (64, 0)}
PLAIN = "small groups"
EARLY, REACHED = 20, 0.5  # steps; accuracy
WINDOW = 10  # steps over which accuracy is averaged
ANSWERS = 20  # to each held-out prompt
FOLDER = Path("runs") / "sparse_reward_text"


@command_of_stages
def main(argv: list[str]) -> int:
    """Carry out what is not done yet. Returns the exit code."""
    own = options_of_run(__doc__, str(FOLDER)).parse_args(argv)
    folder = own.output_dir or FOLDER
    workshop = Workshop(folder, own.seed)
    say(f"sparse reward in {folder}, seed {own.seed}")
    data, start = folder / "data", folder / "start"
    with workshop.stages("data"):
        write_sparse_set(data, seed=own.seed)
        if not start.is_dir():
            build_tiny_qwen2(start, texts=vocabulary_texts(), seed=own.seed)
    guesses, prompts, held_out = (data / f"{name}.jsonl" for name in ("guesses", "prompts_train", "prompts_held_out"))
    guessing = workshop.train(train_sft_text, "sft_text_sparse_embedded", folder / "sft", start, guesses)
    finals = {}
    for name, (group, further) in RUNS.items():
        out, sizes = folder / name.replace(" ", "_"), {"num_generations": group, "dynamic_sampling": further}
        keys = [part for key, size in sizes.items() for part in (f"--{key}", str(size))]
        finals[name] = workshop.train(train_grpo_text, "grpo_text_sparse_embedded", out, guessing, prompts, keys)
    with workshop.stages("evaluation"):
        before = accuracy_of(guessing, held_out, own.seed)
        after = {name: accuracy_of(final, held_out, own.seed) for name, final in finals.items()}
    curves = {name: curve_of(finals[name].parent, group) for name, (group, _) in RUNS.items()}
    with plotted(folder / "learning_curve.png", "accuracy", "zero-variance groups") as axes:
        for axis in axes:
            for name, curve in curves.items():
                axis.plot(averaged(curve[axis.get_title()]), linewidth=1, label=name)
    chance = {"accuracy": 1 / CODES, "ci95": [1 / CODES, 1 / CODES], "n": before["n"]}
    runs = {name: after[name] | waited(curves[name]) for name in RUNS}
    summary = results(workshop, chance, before, after[PLAIN], runs=runs)
    files = f"Results: {folder}/results.json, {folder}/learning_curve.png"
    workshop.report(folder, summary, of_runs(runs), sentence(before), files)
    return EXIT_DONE


def accuracy_of(checkpoint: Path, prompts: Path, seed: int) -> Block:
    """How often sampled answers to prompts that no training has asked are right, as a block of results.json.

    The answers are independent draws from the same policy to the same few prompts: `n` counts them.
    """
    tokenizer, model = load_tokenizer(checkpoint), load_policy(checkpoint).eval()
    sampler = Sampler(model, tokenizer, {"math": math_reward}, [1.0], num=ANSWERS, max_new_tokens=8)
    right = [score for sampled in sampler(read_prompts(prompts).records, seed) for score in sampled.scores]
    low, high = wilson(sum(right), len(right))
    return {"accuracy": sum(right) / len(right), "ci95": [low, high], "n": len(right)}


def curve_of(run: Path, group: int) -> pandas.DataFrame:
    """What a run with such groups has logged, by step: accuracy of what was sampled first, whether that group had no
    variance, and the completions sampled up to and with the step."""
    log = log_of(run).dropna(subset="reward")
    further = log.get("dynamic_sampling/drawn", 0 * log["reward"]).fillna(0)
    return pandas.DataFrame(
        {
            "accuracy": log["reward"],
            "zero-variance groups": log["frac_reward_zero_std"],
            "completions": group * (1 + further).cumsum(),
        }
    )


def averaged(values: pandas.Series) -> pandas.Series:
    """The mean of each step and the `WINDOW - 1` before it, of fewer at the beginning."""
    return values.rolling(WINDOW, min_periods=1).mean()


def waited(curve: pandas.DataFrame) -> dict[str, Any]:
    """How long a run has waited: its first share of zero-variance groups, and when half of its answers were right."""
    half = curve.index[averaged(curve["accuracy"]) >= REACHED]
    return {
        "silent_at_first": float(curve["zero-variance groups"].iloc[:EARLY].mean()),
        "steps_to_half": int(half[0]) if len(half) else None,
        "completions_to_half": int(curve["completions"][half[0]]) if len(half) else None,
    }


def of_runs(runs: Mapping[str, Mapping[str, Any]]) -> Table:
    """How long each run has waited, and how accurate it is in the end."""
    rows = {
        name: {
            "zero variance": f"{100 * run['silent_at_first']:.0f} %",
            "steps to half": str(run["steps_to_half"] or "never"),
            "samples to half": str(run["completions_to_half"] or "never"),
            "accuracy": f"{run['accuracy']:.3f}",
            "95 % interval": interval(run),
        }
        for name, run in runs.items()
    }
    return table("an answer that is right once in a hundred times", rows)


def sentence(before: Block) -> str:
    """What the table's columns mean, and how accurate the start was."""
    return (
        f"Accuracy on held-out prompts; before {before['accuracy']:.3f} ({interval(before)}), by chance {1 / CODES}. "
        f"Zero variance: groups of steps 1 to {EARLY} without any difference. Half: of {WINDOW} steps' samples. A step "
        f"samples one group of {RUNS[PLAIN][0]}; with dynamic sampling up to {RUNS['dynamic sampling'][1]} "
        f"more until one has variance; large groups are of {RUNS['large groups'][0]}."
    )


if __name__ == "__main__":
    main()
