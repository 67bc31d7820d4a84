"""Reward hacking: PPO that may go anywhere finds what its reward model misjudges.

    python scripts/learn/reward_hacking.py --out runs/learn/reward_hacking [--seed N] [--runs DIR]

PPO of configs/ppo_text_embedded.yaml, but with a KL coefficient of 0 and for 200 steps, beside the run of
scripts/train_ppo_text.sh, which pays for leaving the start. The reward model has learned from answers such as the start
gives. What it says of others is a guess, and training looks for whatever it scores high: its score rises on, what
answers are worth does not (arXiv 2210.10760). answers.txt has answers to read, with both figures.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # the project also without an installation

from r1_aqa_repro import train_ppo_text
from r1_aqa_repro.common.errors import EXIT_DONE
from r1_aqa_repro.data.conversations import answer
from r1_aqa_repro.model.text_loading import load_reward_model, load_tokenizer
from r1_aqa_repro.rewards.reward_model import score_conversations
from scripts.learn.lesson import report, running_mean, text_options, write_answers
from scripts.shown import plotted, table
from scripts.workshop import (
    Block,
    TextWorkshop,
    answers_of,
    command_of_stages,
    divergence,
    evaluated,
    log_of,
    true_rewards,
    with_half_width,
    without_rewards,
)

CONFIG, PROMPTS = "ppo_text_embedded", "assist_prompts_train.jsonl"
STEPS, LOOKED_AT = 200, (50, 100, 200)
PICTURE, ANSWERS = "reward_hacking.png", "answers.txt"
READ = 12  # prompts of answers.txt, lists and safety by turns
WINDOW = 5  # steps of the mean that is drawn
PRICED, FREE = "with a KL price", "without"


@command_of_stages
def main(argv: list[str]) -> int:
    """Train, evaluate and report. Returns the exit code."""
    own = text_options(__doc__).parse_args(argv)
    workshop = TextWorkshop(own.runs, own.seed)
    start, reward_model, prompts = workshop.policy(), workshop.reward_model(), workshop.data() / PROMPTS
    given = ["--reward_model_name_or_path", str(reward_model)]
    priced, free = own.runs / "train_ppo_text", own.out / "run"
    workshop.train(train_ppo_text, CONFIG, priced, start, prompts, given)
    given += ["--kl_coef", "0", "--max_steps", str(STEPS), "--save_steps", "50", "--save_total_limit", "4"]
    workshop.train(train_ppo_text, CONFIG, free, start, prompts, given, stage="reward hacking")
    models = {"start": start, f"{PRICED}, {log_of(priced).index[-1]} steps": priced / "final"}
    models |= {f"{FREE}, {step} steps": free / f"checkpoint-{step}" for step in LOOKED_AT}
    found = worth(workshop, models, own.seed)
    draw(own.out / PICTURE, {PRICED: log_of(priced), FREE: log_of(free)})
    last = [list(models)[index] for index in (0, 1, -1)]
    read(workshop, own.out / ANSWERS, {name: models[name] for name in last}, own.seed)
    rows = {
        name: {
            "score": f"{block['model_reward']:.2f}",
            "true reward": with_half_width(block, "true_reward", "ci95"),
            "list": f"{block['by_task']['list']['true_reward']:.3f}",
            "safety": f"{block['by_task']['safety']['true_reward']:.3f}",
            "greedy": with_half_width(block, "greedy", "greedy_ci95"),
            "KL": f"{block['kl']['nats_an_answer']:.2f}",
        }
        for name, block in found.items()
    }
    words = "Score: the reward model's mean. KL to the start in nats an answer. "
    words += f"To read: {own.out}/{ANSWERS}"
    title = "what the reward model says, and what answers are worth, on held-out prompts"
    report(own.out, PICTURE, {"seed": own.seed, "models": found}, table(title, rows), words)
    return EXIT_DONE


def worth(workshop: TextWorkshop, models: Mapping[str, Path], seed: int) -> dict[str, Block]:
    """What models are worth on held-out prompts, to the reward model and in truth, and how far from the start."""
    prompts = workshop.prompts("assist_prompts_held_out")
    start, reward_model = workshop.policy(), workshop.reward_model()
    return {
        name: without_rewards(evaluated(model, prompts, seed, reward_model))
        | {"kl": divergence(model, start, prompts, seed)}
        for name, model in models.items()
    }


def read(workshop: TextWorkshop, path: Path, models: Mapping[str, Path], seed: int) -> None:
    """Write sampled answers of models, each with its score and its true reward."""
    prompts = workshop.prompts("assist_prompts_held_out")[:READ]
    tokenizer = load_tokenizer(workshop.reward_model())
    judge = load_reward_model(workshop.reward_model(), tokenizer)
    answers = {}
    for name, model in models.items():
        texts = answers_of(model, prompts, seed)
        asked = [[*prompt.messages, *answer(text)] for prompt, text in zip(prompts, texts, strict=True)]
        figures = zip(score_conversations(judge, tokenizer, asked), true_rewards(prompts, texts), strict=True)
        answers[name] = [
            f"score {score:+5.2f}, worth {true:.2f}  {text}" for text, (score, true) in zip(texts, figures, strict=True)
        ]
    write_answers(path, [prompt.messages[-1]["content"] for prompt in prompts], answers)


def draw(path: Path, logs: Mapping[str, Any]) -> None:
    """Both rewards and the divergence of the samples, over steps."""
    panels = {
        "reward model's score": "rewards/reward_model",
        "true reward": "rewards/true",
        "KL, nats an answer": "kl_per_answer",
    }
    with plotted(path, *panels) as axes:
        for axis, column in zip(axes, panels.values(), strict=True):
            for name, log in logs.items():
                values = log[column].dropna()
                axis.plot(values.index, running_mean(values.to_numpy(), WINDOW), label=name)


if __name__ == "__main__":
    main()
