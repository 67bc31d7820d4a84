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
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # the project also without an installation

import numpy as np
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
from scripts.workshop import (
    Block,
    Workshop,
    command_of_stages,
    interval,
    options_of_run,
    plotted,
    results,
    table,
    trainer_state,
)


@dataclass(frozen=True)
class Run:
    """What differs from the config: completions of a group, and how many groups a step may sample after the first."""

    group: int
    further: int = 0

    @property
    def overrides(self) -> list[str]:
        return ["--num_generations", str(self.group), "--dynamic_sampling", str(self.further)]


RUNS = {"small groups": Run(8), "dynamic sampling": Run(8, further=15), "large groups": Run(64)}
PLAIN = "small groups"
EARLY, REACHED = 20, 0.5  # steps; accuracy
WINDOW = 10  # steps over which accuracy is averaged
BLOCK = 15  # steps of a column of the table
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
    guessing = workshop.train("sft", train_sft_text, "sft_text_sparse_embedded", folder / "sft", start, guesses)
    finals = {}
    for name, run in RUNS.items():
        out, config = folder / name.replace(" ", "_"), "grpo_text_sparse_embedded"
        finals[name] = workshop.train(name, train_grpo_text, config, out, guessing, prompts, run.overrides)
    with workshop.stages("evaluation"):
        before = accuracy_of(guessing, held_out, own.seed)
        after = {name: accuracy_of(final, held_out, own.seed) for name, final in finals.items()}
    curves = {name: curve_of(finals[name].parent, run.group) for name, run in RUNS.items()}
    plot_curves(folder / "learning_curve.png", curves)
    chance = {"accuracy": 1 / CODES, "ci95": [1 / CODES, 1 / CODES], "n": before["n"]}
    runs = {name: after[name] | figures(curves[name]) for name in RUNS}
    summary = results(workshop, chance, before, after[PLAIN], runs=runs)
    files = f"Results: {folder}/results.json, {folder}/learning_curve.png"
    workshop.report(folder, summary, *tables(runs), sentence(before), files, width=100)
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


def curve_of(run: Path, group: int) -> dict[str, np.ndarray]:
    """What a run with such groups has logged, an array [steps] each: `accuracy` of what was sampled first, whether that
    group had `zero_variance`, and the `completions` sampled up to and with each step."""
    log = [entry for entry in trainer_state(run)["log_history"] if "reward" in entry]
    groups = [1 + entry.get("dynamic_sampling/drawn", 0) for entry in log]
    return {
        "accuracy": np.array([entry["reward"] for entry in log]),
        "zero_variance": np.array([entry["frac_reward_zero_std"] for entry in log]),
        "completions": group * np.cumsum(groups),
    }


def averaged(values: np.ndarray) -> np.ndarray:
    """The mean of each step and the `WINDOW - 1` before it, of fewer at the beginning: [steps]."""
    sums = np.concatenate([[0.0], np.cumsum(values)])
    steps = np.arange(1, len(values) + 1)
    first = np.maximum(steps - WINDOW, 0)
    return (sums[steps] - sums[first]) / (steps - first)


def figures(curve: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """How long a run has waited: its first share of zero-variance groups, and when half of its answers were right."""
    reached = np.flatnonzero(averaged(curve["accuracy"]) >= REACHED)
    first = int(reached[0]) if len(reached) else None
    return {
        "silent_at_first": float(curve["zero_variance"][:EARLY].mean()),
        "steps_to_half": None if first is None else first + 1,
        "completions_to_half": None if first is None else int(curve["completions"][first]),
        "completions": int(curve["completions"][-1]),
        "accuracy_by_steps": {
            str(first + BLOCK): float(curve["accuracy"][first : first + BLOCK].mean())
            for first in range(0, len(curve["accuracy"]), BLOCK)
        },
    }


def plot_curves(path: Path, curves: Mapping[str, Mapping[str, np.ndarray]]) -> None:
    """Draw accuracy over steps and over completions, and the share of zero-variance groups over steps."""
    titles = ("accuracy over steps", "accuracy over completions", "zero-variance groups")
    with plotted(path, *titles) as (over_steps, over_completions, zero_variance):
        for name, curve in curves.items():
            accuracy, steps = averaged(curve["accuracy"]), np.arange(1, len(curve["accuracy"]) + 1)
            over_steps.plot(steps, accuracy, linewidth=1, label=name)
            over_completions.plot(curve["completions"], accuracy, linewidth=1)
            zero_variance.plot(steps, averaged(curve["zero_variance"]), linewidth=1)
        over_completions.set(xlabel="completions sampled", xscale="log")
        for axis in (over_steps, over_completions, zero_variance):
            axis.set(ylim=(-0.02, 1.02))


def tables(runs: Mapping[str, Mapping[str, Any]]) -> Iterator[Table]:
    """How long each run has waited, and its accuracy over steps."""
    title = "an answer that is right once in a hundred times"
    waited = table(title, "run", "zero variance", "steps to half", "samples to half", "accuracy", "95 % interval")
    title = "accuracy of what was sampled, by the last step of each block"
    over_steps = table(title, "run", *runs[PLAIN]["accuracy_by_steps"])
    for name, run in runs.items():
        half = [str(run[key] or "never") for key in ("steps_to_half", "completions_to_half")]
        waited.add_row(name, f"{100 * run['silent_at_first']:.0f} %", *half, f"{run['accuracy']:.3f}", interval(run))
        over_steps.add_row(name, *(f"{value:.2f}" for value in run["accuracy_by_steps"].values()))
    yield waited
    yield over_steps


def sentence(before: Block) -> str:
    """What the tables' columns mean, and how accurate the start was."""
    return (
        f"Accuracy on held-out prompts; before {before['accuracy']:.3f} ({interval(before)}), by chance {1 / CODES}. "
        f"Zero variance: groups of steps 1 to {EARLY} without any difference. Half: of {WINDOW} steps' samples. A step "
        f"samples one group of {RUNS[PLAIN].group}; with dynamic sampling up to {RUNS['dynamic sampling'].further} "
        f"more until one has variance; large groups are of {RUNS['large groups'].group}."
    )


if __name__ == "__main__":
    main()
