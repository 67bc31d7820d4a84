"""Best of n, DPO, PPO and GRPO side by side: the same start, the same task, the same number of samples.

    python -m scripts.compare_algorithms [--output-dir runs/compare_algorithms] [--seed 0] [--samples 6400]

The task is the part of the embedded text set that has to be learned from preferences (lists and safety); all four go
by one reward model. Each may sample the same number of completions: GRPO and PPO while they train; DPO before, as the
pairs of best of n; best of n itself learns nothing and samples n completions for every answer that it gives. Writes
comparison.json and comparison.png.

After an interruption the same command goes on. On one CPU core, with a model too small for a GPU.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # the project also without an installation

import numpy as np
import torch
from rich.table import Table

from r1_aqa_repro import train_dpo, train_grpo_text, train_ppo_text
from r1_aqa_repro.common.claim import claim
from r1_aqa_repro.common.console import positive, say
from r1_aqa_repro.common.errors import EXIT_DONE, Refused
from r1_aqa_repro.data.conversations import TextPrompt
from r1_aqa_repro.data.samples import Sampled, kl_bound
from r1_aqa_repro.grpo.divergence import token_kls
from r1_aqa_repro.model.inputs import text_inputs
from r1_aqa_repro.model.text_loading import load_policy, load_tokenizer
from r1_aqa_repro.run.checkpoints import FINAL
from scripts.shown import plotted
from scripts.workshop import (
    MAX_NEW_TOKENS,
    Block,
    TextWorkshop,
    command_of_stages,
    evaluated,
    gain,
    interval,
    log_of,
    mean_reward,
    options_of_run,
    table,
    without_rewards,
)

NUM = 8  # completions of a group and of best of n
GRPO_PROMPTS, PPO_PROMPTS = 16, 64  # of a step
STEP = max(NUM * GRPO_PROMPTS, PPO_PROMPTS)  # samples; the larger is a multiple of the other
BEST_OF_N, DPO, PPO, GRPO = "best of n", "DPO", "PPO", "GRPO"
FOLDER = Path("runs") / "compare_algorithms"


@command_of_stages
def main(argv: list[str]) -> int:
    """Carry out what is not done yet. Returns the exit code."""
    parser = options_of_run(__doc__, f"{FOLDER}; start and reward model are kept beside it")
    parser.add_argument("--samples", type=positive, default=6400, metavar="N",
                        help="completions that each may sample (default: 6400)")  # fmt: skip
    own = parser.parse_args(argv)
    if own.samples % STEP:
        what = f"{own.samples} is no multiple of {STEP}"
        raise Refused.because("--samples", what, "Choose one: they make whole steps.")
    folder = own.output_dir or FOLDER
    workshop = TextWorkshop(folder.parent, own.seed)
    say(f"comparison in {folder}, seed {own.seed}, {own.samples} samples each")
    prompts = len(workshop.prompts("assist_prompts_train"))
    if own.samples > NUM * prompts:
        what = f"DPO could not use {own.samples}: there are {NUM} for each of the {prompts} prompts to train on"
        raise Refused.because("--samples", what, f"Choose at most {NUM * prompts // STEP * STEP}.")
    settings = {"seed": own.seed, "samples": own.samples}
    claim(folder / "settings.json", settings, "Choose another --output-dir, or delete this one.")
    carry_out(workshop, folder, own.samples)
    with workshop.stages(f"{folder.name}: evaluation"):
        comparison = settings | compared(workshop, folder)
    comparison["seconds"] = workshop.stages.asked_for
    plot(folder / "comparison.png", comparison)
    files = f"Results: {folder}/comparison.json, {folder}/comparison.png"
    workshop.report(folder, comparison, figures_of(comparison), sentence(comparison), files, file="comparison.json")
    return EXIT_DONE


def carry_out(workshop: TextWorkshop, folder: Path, samples: int) -> None:
    """Sample and train what is not done yet, each algorithm in a folder of its own below the comparison's.

    Raises:
        Interrupted: a part ended before it was done, and has said why.
    """
    start, reward_model, data = workshop.policy(), workshop.reward_model(), workshop.data()
    prompts, held_out = (data / f"assist_prompts_{split}.jsonl" for split in ("train", "held_out"))
    sampling = ["--reward-model", str(reward_model), "--num", str(NUM), "--batch-size", "16"]
    true = ["--rewards", "true", "--reward-weights", "1", "0"]
    workshop.pairs(start, held_out, folder / "best_of_n", [*sampling, *true])
    for_dpo = ["--limit", str(samples // NUM), "--reward-weights", "1"]
    pairs = workshop.pairs(start, prompts, folder / "pairs", [*sampling, *for_dpo])
    rewarded = ["--reward_model_name_or_path", str(reward_model)]
    ppo = ["--max_steps", str(samples // PPO_PROMPTS), "--prompts_per_step", str(PPO_PROMPTS)]
    grpo = ["--max_steps", str(samples // (NUM * GRPO_PROMPTS)), "--prompts_per_step", str(GRPO_PROMPTS)]
    grpo += ["--num_generations", str(NUM)]
    workshop.train(train_dpo, "dpo_embedded", folder / "dpo", start, pairs)
    workshop.train(train_ppo_text, "ppo_text_embedded", folder / "ppo", start, prompts, [*rewarded, *ppo])
    workshop.train(train_grpo_text, "grpo_text_embedded", folder / "grpo", start, prompts, [*rewarded, *grpo])


def compared(workshop: TextWorkshop, folder: Path) -> dict[str, Any]:
    """What the start and each of the algorithms are worth on held-out prompts, and what they took."""
    seed, start, reward_model = workshop.seed, workshop.policy(), workshop.reward_model()
    prompts = workshop.prompts("assist_prompts_held_out")
    before = evaluated(start, prompts, seed, reward_model)
    rewards, scores = best_answers(folder / "best_of_n" / "samples.jsonl")
    spent = {part: workshop.stages.asked_for[f"{folder.name}/{part}"] for part in ("best_of_n", "pairs")}
    best = mean_reward(rewards) | {"rewards": rewards, "model_reward": float(np.mean(scores))}
    best |= {"seconds": spent["best_of_n"], "seconds_a_step": spent["best_of_n"] / len(rewards)}
    blocks = {BEST_OF_N: best | {"kl": {"nats_an_answer": kl_bound(NUM)}}}
    for name in (DPO, PPO, GRPO):
        run = folder / name.lower()
        seconds = sum(json.loads((run / "run.json").read_text(encoding="utf-8"))["seconds"].values())
        steps = int(log_of(run).index[-1])
        blocks[name] = evaluated(run / FINAL, prompts, seed, reward_model)
        blocks[name] |= {"seconds": seconds, "steps": steps, "seconds_a_step": seconds / steps}
        blocks[name]["kl"] = divergence(run / FINAL, start, prompts, seed)
    blocks[DPO]["seconds"] += spent["pairs"]
    return {
        "algorithms": {name: without_rewards(block) | {"gain": gain(before, block)} for name, block in blocks.items()},
        "start": without_rewards(before),
    }


def divergence(final: Path, start: Path, prompts: Sequence[TextPrompt], seed: int) -> dict[str, float]:
    """KL(final || start) in nats, a whole answer and a token; exact over the vocabulary at each token."""
    tokenizer = load_tokenizer(final)
    inputs = text_inputs(tokenizer, [prompt.messages for prompt in prompts])
    answers = token_kls(load_policy(final), load_policy(start), tokenizer, inputs, MAX_NEW_TOKENS, seed)
    return {
        "nats_an_answer": float(torch.stack([answer.sum() for answer in answers]).mean()),
        "nats_a_token": float(torch.cat(answers).mean()),
    }


def best_answers(samples: Path) -> tuple[list[float], list[float]]:
    """True reward and score of the answer with the highest score to each prompt, from a samples.jsonl."""
    rewards, scores = [], []
    for line in samples.read_text(encoding="utf-8").split("\n")[:-1]:
        sampled = Sampled(**json.loads(line))
        best = int(np.argmax(sampled.scores))
        rewards.append(sampled.rewards["true"][best])
        scores.append(sampled.scores[best])
    return rewards, scores


def figures_of(comparison: Mapping[str, Any]) -> Table:
    """The algorithms, one a row."""
    rows = {
        name: {
            "true reward": f"{block['true_reward']:.3f}",
            "95 % interval": interval(block),
            "gain": f"{block['gain']['true_reward']:+.3f}",
            "model reward": f"{block['model_reward']:.2f}",
            "KL": ("≤ " if name == BEST_OF_N else "") + f"{block['kl']['nats_an_answer']:.2f}",
            "seconds": f"{block['seconds']:.0f}",
            "a step": f"{block['seconds_a_step']:.3f}",
        }
        for name, block in comparison["algorithms"].items()
    }
    return table(f"the same start, task and {comparison['samples']} samples", rows)


def sentence(comparison: Mapping[str, Any]) -> str:
    """What the start is worth, and what the table's columns mean."""
    start = comparison["start"]
    return (
        f"The start: true reward {start['true_reward']:.3f} ({interval(start)}), model reward "
        f"{start['model_reward']:.2f}. KL to it in nats an answer. DPO's seconds are with the sampling of its pairs. A "
        "step is an update of DPO, a rollout with its updates of PPO and GRPO, and an answer of best of n."
    )


def plot(path: Path, comparison: Mapping[str, Any]) -> None:
    """Draw true reward over KL."""
    start: Block = comparison["start"] | {"kl": {"nats_an_answer": 0.0}}
    with plotted(path, "true reward, 95 % intervals") as (axis,):
        for name, block in ({"start": start} | comparison["algorithms"]).items():
            value, (low, high), kl = block["true_reward"], block["ci95"], block["kl"]["nats_an_answer"]
            axis.errorbar([kl], [value], [[value - low], [high - value]], fmt="o", capsize=3, label=name)
        axis.set(xlabel="KL to the start, nats an answer")


if __name__ == "__main__":
    main()
