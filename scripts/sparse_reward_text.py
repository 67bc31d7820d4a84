"""What a sparse reward needs is patience: GRPO from a model whose answer is right once in a hundred times.

    python scripts/sparse_reward_text.py [--output_dir DIR] [--seed N]

The model guesses the code of a safe, a number from 0 to 99; the reward is 1 for the code and 0 for anything else. A
group of G completions without a single right one has no spread in its rewards, hence no advantages: it is silent, and
its step teaches nothing. With a success rate p that is so in (1 - p)^G of the groups, 92 % for G = 8 and p = 0.01.
Three runs from the same start wait in different ways: for a success to come, step after step; by asking further prompts
within a step in the place of silent groups (`dynamic_sampling`, after arXiv 2503.14476, section 3.2); by larger groups.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ["CUDA_VISIBLE_DEVICES"] = ""  # the model is too small for a GPU
os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")  # a bar for every thousand short lines
ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))  # `r1_aqa_repro` also without an installation

import matplotlib  # noqa: E402
import numpy as np  # noqa: E402
from rich.console import Console  # noqa: E402
from rich.table import Table  # noqa: E402

from r1_aqa_repro import train_grpo_text, train_sft_text  # noqa: E402
from r1_aqa_repro.best_of_n import Sampler  # noqa: E402
from r1_aqa_repro.common.console import Options, say  # noqa: E402
from r1_aqa_repro.common.errors import EXIT_DONE, command  # noqa: E402
from r1_aqa_repro.common.files import open_locked, write_json  # noqa: E402
from r1_aqa_repro.common.intervals import wilson  # noqa: E402
from r1_aqa_repro.common.stopwatch import Stages  # noqa: E402
from r1_aqa_repro.data.conversations import read_prompts  # noqa: E402
from r1_aqa_repro.embedded.sparse_reward import CODES, vocabulary_texts, write_sparse_set  # noqa: E402
from r1_aqa_repro.embedded.tiny_qwen2 import build_tiny_qwen2  # noqa: E402
from r1_aqa_repro.model.text_loading import load_policy, load_tokenizer  # noqa: E402
from r1_aqa_repro.rewards.text_rules import math_reward  # noqa: E402
from r1_aqa_repro.run.checkpoints import last_checkpoint  # noqa: E402
from scripts.workshop import Interrupted, train_with  # noqa: E402


@dataclass(frozen=True)
class Run:
    """What differs from the config: completions of a group, and how many groups a step may add to a silent one."""

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


@command
def main(argv: list[str]) -> int:
    """Carry out what is not done yet. Returns the exit code."""
    own = _parser().parse_args(argv)
    folder = own.output_dir
    say(f"sparse reward in {folder}, seed {own.seed}")
    lock = open_locked(folder / ".lock", "Choose another --output_dir.")  # of two starts one would disturb the other
    stages = Stages(folder / "stages.json")
    data, start, sft = folder / "data", folder / "start", folder / "sft"
    with stages("data"):
        write_sparse_set(data, seed=own.seed)
        if not start.is_dir():
            build_tiny_qwen2(start, texts=vocabulary_texts(), seed=own.seed)
    try:
        with stages("sft"):
            guessing = train_with(
                train_sft_text, "sft_text_sparse_embedded", sft, start, data / "guesses.jsonl", own.seed
            )
        finals = {}
        for name, each in RUNS.items():
            out, prompts = folder / name.replace(" ", "_"), data / "prompts_train.jsonl"
            with stages(name):
                finals[name] = train_with(
                    train_grpo_text, "grpo_text_sparse_embedded", out, guessing, prompts, own.seed, each.overrides
                )
    except Interrupted as interrupted:
        return interrupted.code
    with stages("evaluation"):
        before = accuracy_of(guessing, data / "prompts_held_out.jsonl", own.seed)
        after = {name: accuracy_of(final, data / "prompts_held_out.jsonl", own.seed) for name, final in finals.items()}
    curves = {name: curve_of(finals[name].parent, each.group) for name, each in RUNS.items()}
    plot_curves(folder / "learning_curve.png", curves)
    summary = {
        "chance": {"accuracy": 1 / CODES, "ci95": [1 / CODES, 1 / CODES], "n": before["n"]},
        "before": before,
        "after": after[PLAIN],
        "runs": {name: after[name] | figures(curves[name]) for name in RUNS},
        "seconds": stages.seconds,
        "seed": own.seed,
    }
    write_json(folder / "results.json", summary)
    print_runs(summary, folder)
    say(f"{sum(stages.seconds.values()):.0f} s in all, set-up aside")
    lock.close()
    return EXIT_DONE


def accuracy_of(checkpoint: Path, prompts: Path, seed: int) -> dict[str, Any]:
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
    group was `silent`, and the `completions` sampled up to and with each step."""
    checkpoint = last_checkpoint(run)
    assert checkpoint is not None, "a finished training leaves its last checkpoint"
    state = json.loads((checkpoint / "trainer_state.json").read_text(encoding="utf-8"))
    log = [entry for entry in state["log_history"] if "reward" in entry]
    groups = [1 + entry.get("dynamic_sampling/drawn", 0) for entry in log]
    return {
        "accuracy": np.array([entry["reward"] for entry in log]),
        "silent": np.array([entry["frac_reward_zero_std"] for entry in log]),
        "completions": group * np.cumsum(groups),
    }


def averaged(values: np.ndarray) -> np.ndarray:
    """The mean of each step and the `WINDOW - 1` before it, of fewer at the beginning: [steps]."""
    sums = np.concatenate([[0.0], np.cumsum(values)])
    steps = np.arange(1, len(values) + 1)
    first = np.maximum(steps - WINDOW, 0)
    return (sums[steps] - sums[first]) / (steps - first)


def figures(curve: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """How long a run has waited: its share of silent groups at first, and when half of its answers were right."""
    reached = np.flatnonzero(averaged(curve["accuracy"]) >= REACHED)
    first = int(reached[0]) if len(reached) else None
    return {
        "silent_at_first": float(curve["silent"][:EARLY].mean()),
        "steps_to_half": None if first is None else first + 1,
        "completions_to_half": None if first is None else int(curve["completions"][first]),
        "completions": int(curve["completions"][-1]),
        "accuracy_by_steps": {
            str(first + BLOCK): float(curve["accuracy"][first : first + BLOCK].mean())
            for first in range(0, len(curve["accuracy"]), BLOCK)
        },
    }


def plot_curves(path: Path, curves: Mapping[str, Mapping[str, np.ndarray]]) -> None:
    """Draw accuracy over steps and over completions, and the share of silent groups over steps."""
    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 3, figsize=(13, 3.8), layout="constrained")
    for name, curve in curves.items():
        accuracy, steps = averaged(curve["accuracy"]), np.arange(1, len(curve["accuracy"]) + 1)
        axes[0].plot(steps, accuracy, linewidth=1, label=name)
        axes[1].plot(curve["completions"], accuracy, linewidth=1)
        axes[2].plot(steps, averaged(curve["silent"]), linewidth=1)
    for axis, title, unit in (
        (axes[0], "accuracy over steps", "step"),
        (axes[1], "accuracy over completions", "completions sampled"),
        (axes[2], "silent groups", "step"),
    ):
        axis.set(title=title, xlabel=unit, ylim=(-0.02, 1.02))
        axis.grid(alpha=0.3)
    axes[1].set_xscale("log")
    axes[0].legend(fontsize="small")
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


def print_runs(summary: Mapping[str, Any], folder: Path) -> None:
    """The tables: how long each run has waited, and its accuracy over steps."""
    runs = summary["runs"]
    console = Console(width=max(100, Console().width))
    waited = Table(title="an answer that is right once in a hundred times", title_style="bold")
    waited.add_column("run")
    for column in ("silent", "steps to half", "samples to half", "accuracy", "95 % interval"):
        waited.add_column(column, justify="right")
    curves = Table(title="accuracy of what was sampled, by the last step of each block", title_style="bold")
    curves.add_column("run")
    for steps in runs[PLAIN]["accuracy_by_steps"]:
        curves.add_column(steps, justify="right")
    for name, run in runs.items():
        low, high = run["ci95"]
        figures = [str(run[key] or "never") for key in ("steps_to_half", "completions_to_half")]
        accuracy = f"{run['accuracy']:.3f}", f"{low:.3f} to {high:.3f}"
        waited.add_row(name, f"{100 * run['silent_at_first']:.0f} %", *figures, *accuracy)
        curves.add_row(name, *(f"{value:.2f}" for value in run["accuracy_by_steps"].values()))
    console.print(waited)
    console.print(curves)
    low, high = summary["before"]["ci95"]
    console.print(
        f"Accuracy on held-out prompts; before {summary['before']['accuracy']:.3f} ({low:.3f} to {high:.3f}), by "
        f"chance {1 / CODES}. Silent: groups of steps 1 to {EARLY} without any difference. Half: of {WINDOW} steps' "
        f"samples. A step samples one group of {RUNS[PLAIN].group}; with dynamic sampling up to "
        f"{RUNS['dynamic sampling'].further} more until one is not silent; large groups are of "
        f"{RUNS['large groups'].group}.",
        highlight=False,
    )
    console.print(f"Results: {folder}/results.json, {folder}/learning_curve.png", highlight=False)


def _parser() -> Options:
    parser = Options(__doc__)
    add = parser.add_argument
    out = Path("runs") / "sparse_reward_text"
    add("--output-dir", type=Path, default=out, help=f"folder of the run (default: {out})")
    add("--seed", type=int, default=0, help="of code, model and trainings (default: 0)")
    return parser


if __name__ == "__main__":
    main()
