"""Best of n, DPO, PPO and GRPO side by side: the same start, the same task, the same number of samples.

    python -m scripts.compare_algorithms [--output-dir runs/compare_algorithms] [--seed 0] [--samples 6400]

The task is the part of the embedded text set that has to be learned from preferences (lists and safety); all four go
by one reward model. Each may sample the same number of completions: GRPO and PPO while they train; DPO before, as the
pairs of best of n; best of n itself learns nothing and samples n completions for every answer that it gives. Writes
comparison.json and comparison.png.

After an interruption the same command goes on. On one CPU core, with a model too small for a GPU.

Exit codes: 0 done; 1 a training failed; 2 refused; 130 interrupted.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
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
from r1_aqa_repro.model.text_loading import load_policy, load_reward_model, load_tokenizer
from r1_aqa_repro.run.checkpoints import FINAL
from scripts.workshop import (
    MAX_NEW_TOKENS,
    Block,
    TextWorkshop,
    command_of_stages,
    evaluated,
    gain,
    interval,
    mean_reward,
    options_of_run,
    plotted,
    table,
    trainer_state,
    without_rewards,
)

NUM = 8  # completions of a group and of best of n
GRPO_PROMPTS, PPO_PROMPTS = 16, 64  # of a step
STEP = max(NUM * GRPO_PROMPTS, PPO_PROMPTS)  # samples; the larger is a multiple of the other
BEST_OF_N, DPO, PPO, GRPO = "best of n", "DPO", "PPO", "GRPO"
FOLDER = Path("runs") / "compare_algorithms"


@dataclass(frozen=True)
class Known:
    """What is known of an algorithm beforehand.

    models: in memory while it samples or trains.
    trained: those of them that are trained, `policy` and `critic`.
    literature: what is said of it.
    """

    models: str
    trained: tuple[str, ...]
    literature: str


KNOWN = {
    BEST_OF_N: Known(
        "policy, reward model",
        (),
        "No training. A strong baseline for its divergence, at n samples for every answer (arXiv 2112.09332); gains "
        "level off, and turn, as n grows against a learned reward (arXiv 2210.10760).",
    ),
    DPO: Known(
        "sampling: policy, reward model; training: policy, reference",
        ("policy",),
        "No reward model and no sampling while it trains; simple and stable (arXiv 2305.18290). Offline: it may favour "
        "answers that the pairs do not cover, and fell behind a well-tuned PPO (arXiv 2404.10719).",
    ),
    PPO: Known(
        "policy, critic, reference, reward model",
        ("policy", "critic"),
        "The method of InstructGPT (arXiv 2203.02155). Four models and many settings that matter (arXiv 2403.17031).",
    ),
    GRPO: Known(
        "policy, reference, reward model",
        ("policy",),
        "No critic: the other completions of a group are the baseline, which saves memory and computation "
        "(arXiv 2402.03300).",
    ),
}


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
    contest = Contest(workshop, folder, own.samples)
    contest.carry_out()
    with workshop.stages(f"{folder.name}: evaluation"):
        comparison = contest.evaluate()
    comparison["seconds"] = workshop.stages.asked_for
    plot(folder / "comparison.png", comparison)
    first, files = figures_of(comparison), f"Results: {folder}/comparison.json, {folder}/comparison.png"
    said = (first, sentence(comparison["start"]), literature(), files)
    workshop.report(folder, comparison, *said, file="comparison.json", width=110)
    return EXIT_DONE


class Contest:
    """The four algorithms, each with a folder of its own below the comparison's.

    Args:
        workshop: gives what they start from.
        folder: of the comparison.
        samples: that each may draw.

    Raises:
        Refused: there are too few prompts for so many samples, or the folder is another comparison's.
    """

    def __init__(self, workshop: TextWorkshop, folder: Path, samples: int):
        self.workshop, self.folder, self.samples = workshop, folder, samples
        prompts = len(workshop.prompts("assist_prompts_train"))
        if samples > NUM * prompts:
            what = f"DPO could not use {samples}: there are {NUM} for each of the {prompts} prompts to train on"
            raise Refused.because("--samples", what, f"Choose at most {NUM * prompts // STEP * STEP}.")
        settings = {"seed": workshop.seed, "samples": samples}
        claim(folder / "settings.json", settings, "Choose another --output-dir, or delete this one.")
        self.start, self.reward_model = workshop.policy(), workshop.reward_model()

    def carry_out(self) -> None:
        """Sample and train what is not done yet.

        Raises:
            Interrupted: a part ended before it was done, and has said why.
        """
        prompts = self.workshop.data() / "assist_prompts_train.jsonl"
        held_out = self.workshop.data() / "assist_prompts_held_out.jsonl"
        self._best_of_n("best_of_n", held_out, ["--rewards", "true", "--reward-weights", "1", "0"])
        pairs = self._best_of_n("pairs", prompts, ["--limit", str(self.samples // NUM), "--reward-weights", "1"])
        rewards = ["--reward_model_name_or_path", str(self.reward_model)]
        ppo = ["--max_steps", str(self.samples // PPO_PROMPTS), "--prompts_per_step", str(PPO_PROMPTS)]
        grpo = ["--max_steps", str(self.samples // (NUM * GRPO_PROMPTS)), "--prompts_per_step", str(GRPO_PROMPTS)]
        grpo += ["--num_generations", str(NUM)]
        self._train(DPO, train_dpo, "dpo_embedded", pairs, [])
        self._train(PPO, train_ppo_text, "ppo_text_embedded", prompts, [*rewards, *ppo])
        self._train(GRPO, train_grpo_text, "grpo_text_embedded", prompts, [*rewards, *grpo])

    def _stage(self, part: str) -> str:
        return f"{self.folder.name}: {part}"

    def _best_of_n(self, name: str, prompts: Path, more: Sequence[str]) -> Path:
        options = ["--reward-model", str(self.reward_model), "--num", str(NUM), "--batch-size", "16", *more]
        return self.workshop.pairs(self._stage(name), self.start, prompts, self.folder / name, options)

    def _train(self, name: str, entry: Any, config: str, data: Path, more: Sequence[str]) -> None:
        out = self.folder / name.lower()
        self.workshop.train(self._stage(name.lower()), entry, config, out, self.start, data, more)

    def evaluate(self) -> dict[str, Any]:
        """The content of comparison.json, but for the seconds of all stages."""
        seed, prompts = self.workshop.seed, self.workshop.prompts("assist_prompts_held_out")
        before = evaluated(self.start, prompts, seed, self.reward_model)
        critic = load_reward_model(self.reward_model, load_tokenizer(self.reward_model))
        parameters = {"policy": load_policy(self.start).num_parameters(), "critic": critic.num_parameters()}
        blocks = {BEST_OF_N: self._best_answers()}
        for name in (DPO, PPO, GRPO):
            final = self.folder / name.lower() / FINAL
            blocks[name] = evaluated(final, prompts, seed, self.reward_model) | self._costs(name.lower())
            blocks[name]["kl"] = divergence(final, self.start, prompts, seed)
        blocks[DPO]["sampling_seconds"] = self.workshop.stages.asked_for[self._stage("pairs")]
        algorithms = {
            name: without_rewards(block)
            | {
                "gain": gain(before, block),
                "samples": 0 if name == BEST_OF_N else self.samples,
                "samples_an_answer": NUM if name == BEST_OF_N else 1,
                "models": KNOWN[name].models,
                "trainable_parameters": sum(parameters[part] for part in KNOWN[name].trained),
                "literature": KNOWN[name].literature,
            }
            for name, block in blocks.items()
        }
        return {
            "algorithms": algorithms,
            "start": without_rewards(before),
            "samples": self.samples,
            "seed": seed,
            "how": {
                "true_reward": "held-out prompts, one answer each, sampled at temperature 1; 95 % intervals",
                "kl": "to the start, on held-out answers of the trained model; at each token exact over the vocabulary",
                "seconds": "of training, or of the whole sampling",
            },
        }

    def _best_answers(self) -> Block:
        rewards, scores = best_answers(self.folder / "best_of_n" / "samples.jsonl")
        seconds = self.workshop.stages.asked_for[self._stage("best_of_n")]
        return mean_reward(rewards) | {
            "rewards": rewards,
            "model_reward": sum(scores) / len(scores),
            "kl": {"nats_an_answer": kl_bound(NUM), "upper_bound": True},
            "seconds": seconds,
            "seconds_a_step": seconds / len(rewards),
        }

    def _costs(self, name: str) -> Block:
        run = json.loads((self.folder / name / "run.json").read_text(encoding="utf-8"))
        steps, seconds = trainer_state(self.folder / name)["global_step"], sum(run["seconds"].values())
        return {"seconds": seconds, "steps": steps, "seconds_a_step": seconds / steps}


def divergence(final: Path, start: Path, prompts: Sequence[TextPrompt], seed: int) -> dict[str, float]:
    """KL(final || start) in nats, a whole answer and a token."""
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


def _gain(block: Block) -> str:
    low, high = block["gain"]["ci95"]
    return f"{block['gain']['true_reward']:+.3f}\n{low:+.3f} to {high:+.3f}"


def _kl(block: Block) -> str:
    return f"{'at most ' if block['kl'].get('upper_bound') else ''}{block['kl']['nats_an_answer']:.2f}"


def _seconds(block: Block) -> str:
    sampling = f" + {block['sampling_seconds']:.0f} sampling" if "sampling_seconds" in block else ""
    return f"{block['seconds']:.0f}{sampling}"


_ROWS = {
    "models in memory": lambda block: block["models"].replace("; ", "\n"),
    "trainable parameters": lambda block: f"{block['trainable_parameters']:,}",
    "seconds": _seconds,
    "seconds a step": lambda block: f"{block['seconds_a_step']:.3f}",
    "samples in training": lambda block: f"{block['samples']:,}",
    "samples an answer": lambda block: str(block["samples_an_answer"]),
    "true reward": lambda block: f"{block['true_reward']:.3f}\n{interval(block)}",
    "gain over the start": _gain,
    "model reward": lambda block: f"{block['model_reward']:.2f}",
    "KL to the start, nats an answer": _kl,
}


def figures_of(comparison: Mapping[str, Any]) -> Table:
    """The algorithms as columns, one row a figure."""
    algorithms = comparison["algorithms"]
    shown = table(f"the same start, task and {comparison['samples']} samples", "", *algorithms)
    for label, show in _ROWS.items():
        shown.add_row(label, *(show(block) for block in algorithms.values()))
    return shown


def sentence(start: Block) -> str:
    """What the start is worth, and what a step is."""
    return (
        f"The start: true reward {start['true_reward']:.3f} ({interval(start)}), model reward "
        f"{start['model_reward']:.2f}. A step is an update of DPO, a rollout with its updates of PPO and GRPO, and an "
        "answer of best of n."
    )


def literature() -> Table:
    """What the literature says of each algorithm."""
    said = Table("", "", title="what the literature says", title_style="bold", show_lines=True)
    for name, known in KNOWN.items():
        said.add_row(name, known.literature)
    return said


def plot(path: Path, comparison: Mapping[str, Any]) -> None:
    """Draw true reward over KL, and seconds as bars."""
    algorithms, start = comparison["algorithms"], comparison["start"]
    with plotted(path, "true reward, 95 % intervals", "seconds") as (reward, seconds):
        for name, block in ({"start": start | {"kl": {"nats_an_answer": 0.0}}} | algorithms).items():
            value, (low, high), kl = block["true_reward"], block["ci95"], block["kl"]["nats_an_answer"]
            reward.errorbar([kl], [value], [[value - low], [high - value]], fmt="o", capsize=3, label=name)
        reward.set(xlabel="KL to the start, nats an answer")
        spent = [block["seconds"] for block in algorithms.values()]
        seconds.bar(list(algorithms), spent, label="training or answering")
        sampled = [block.get("sampling_seconds", 0.0) for block in algorithms.values()]
        seconds.bar(list(algorithms), sampled, bottom=spent, label="sampling")
        seconds.set(xlabel="")


if __name__ == "__main__":
    main()
