"""One embedded text run: from nothing to a trained model and what it gained on held-out data, on one CPU core.

    python scripts/embedded_text.py {sft,reward_model,dpo,grpo,ppo} [--any key of the stage's config]

What the run starts from is made first if it is not there: the text set, a small Qwen2, the common start by supervised
fine-tuning, and for GRPO and PPO the reward model, each in a folder beside the run's own. After an interruption the
same command goes on.
"""

from __future__ import annotations

import json
import random
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # the project also without an installation

from rich.table import Table
from transformers import set_seed

from r1_aqa_repro import train_dpo, train_grpo_text, train_ppo_text, train_reward_model, train_sft_text
from r1_aqa_repro.common.console import say
from r1_aqa_repro.common.errors import EXIT_DONE
from r1_aqa_repro.common.files import write_atomically
from r1_aqa_repro.data.conversations import PreferencePair, read_pairs
from r1_aqa_repro.model.text_loading import load_reward_model, load_tokenizer
from r1_aqa_repro.score import pair_accuracy, pair_scores
from scripts.workshop import (
    Block,
    TextWorkshop,
    chance_of,
    command_of_stages,
    draw_log,
    evaluated,
    figure_of,
    interval,
    options_of_run,
    plotted,
    results,
    table,
    trainer_state,
)


@dataclass(frozen=True)
class Stage:
    """A training.

    entry, config, data: its entry point, its config, and its file of the text set.
    curves: what its learning curve shows: the logged figures of each panel, by the panel's title.
    by_reward_model: whether it is rewarded by the reward model.
    """

    entry: Any
    config: str
    data: str
    curves: dict[str, tuple[str, ...]]
    by_reward_model: bool = False


STAGES = {
    "sft": Stage(train_sft_text, "sft_text_embedded", "sft.jsonl", {"loss": ("loss",), "entropy": ("entropy",)}),
    "reward_model": Stage(
        train_reward_model,
        "reward_model_embedded",
        "pairs_train.jsonl",
        {"loss": ("loss",), "pair accuracy": ("accuracy",), "margin": ("margin",)},
    ),
    "dpo": Stage(
        train_dpo,
        "dpo_embedded",
        "pairs_train.jsonl",
        {
            "loss": ("loss",),
            "rewards": ("rewards/chosen", "rewards/rejected"),
            "log-probs of answers": ("logps/chosen", "logps/rejected"),
        },
    ),
    "grpo": Stage(
        train_grpo_text,
        "grpo_text_embedded",
        "assist_prompts_train.jsonl",
        {
            "reward of the model": ("rewards/reward_model/mean",),
            "true reward": ("rewards/embedded_true_reward/mean",),
            "KL to the start": ("kl",),
            "entropy": ("entropy",),
        },
        by_reward_model=True,
    ),
    "ppo": Stage(
        train_ppo_text,
        "ppo_text_embedded",
        "assist_prompts_train.jsonl",
        {
            "reward of the model": ("rewards/reward_model",),
            "true reward": ("rewards/true",),
            "KL to the start": ("kl",),
            "loss of the critic": ("loss/value",),
        },
        by_reward_model=True,
    ),
}


@command_of_stages
def main(argv: list[str]) -> int:
    """Carry out what is not done yet of one run. Returns the exit code."""
    parser = options_of_run(__doc__, "runs/<entry point>")
    parser.add_argument("stage", choices=STAGES)
    own, overrides = parser.parse_known_args(argv)
    stage = STAGES[own.stage]
    folder = own.output_dir or Path("runs") / Path(stage.entry.__name__.rpartition(".")[2])
    workshop = TextWorkshop(folder.parent, own.seed)
    say(f"embedded run in {folder}, seed {own.seed}")
    run = reward_model_run if own.stage == "reward_model" else policy_run
    summary = run(own.stage, workshop, folder, overrides)
    log = trainer_state(folder)["log_history"]
    with plotted(folder / "learning_curve.png", *stage.curves) as axes:
        for axis, names in zip(axes, stage.curves.values(), strict=True):
            draw_log(axis, log, *names)
    files = f"Results: {folder}/results.json, {folder}/learning_curve.png; model: {folder}/final"
    workshop.report(folder, summary, gains(summary), *answers_sentence(summary), files)
    return EXIT_DONE


def policy_run(name: str, workshop: TextWorkshop, folder: Path, overrides: Sequence[str]) -> dict[str, Any]:
    """Train a policy; what it is worth before and after, on the same held-out prompts."""
    stage = STAGES[name]
    start = workshop.start() if name == "sft" else workshop.policy()
    reward_model = workshop.reward_model() if stage.by_reward_model else None
    given = [] if reward_model is None else ["--reward_model_name_or_path", str(reward_model)]
    data = workshop.data() / stage.data
    final = workshop.train(name, stage.entry, stage.config, folder, start, data, [*given, *overrides])
    with workshop.stages(f"{name}_evaluation"):
        prompts = workshop.prompts("assist_prompts_held_out")
        before, after = (evaluated(model, prompts, workshop.seed, reward_model) for model in (start, final))
    return results(workshop, chance_of(prompts, workshop.seed), before, after)


def reward_model_run(name: str, workshop: TextWorkshop, folder: Path, overrides: Sequence[str]) -> dict[str, Any]:
    """Train a reward model, and another one on pairs whose labels mean nothing; pair accuracy on held-out pairs."""
    stage, start, data = STAGES[name], workshop.policy(), workshop.data()
    shuffled = folder / "pairs_shuffled.jsonl"

    def trained(stage_name: str, out: Path, pairs: Path) -> Path:
        return workshop.train(stage_name, stage.entry, stage.config, out, start, pairs, overrides)

    final = trained(name, folder, data / stage.data)
    write_atomically(shuffled, with_shuffled_labels((data / stage.data).read_text(encoding="utf-8"), workshop.seed))
    control = trained(f"{name}_control", folder / "shuffled_labels", shuffled)
    pairs = read_pairs(data / "pairs_held_out.jsonl").records
    with workshop.stages(f"{name}_evaluation"):
        set_seed(workshop.seed)  # of the head that the start lacks
        before, after, control_after = (held_out_accuracy(model, pairs) for model in (start, final, control))
    chance = {"pair_accuracy": 0.5, "ci95": [0.5, 0.5], "n": len(pairs)}
    return results(workshop, chance, before, after, controls={"shuffled_labels": control_after})


def with_shuffled_labels(lines: str, seed: int) -> str:
    """Preference pairs, a line each, with the two answers of a random half of them swapped."""
    pairs = [json.loads(line) for line in lines.split("\n")[:-1]]
    rng = random.Random(seed)
    for pair in rng.sample(pairs, len(pairs) // 2):
        pair["chosen"], pair["rejected"] = pair["rejected"], pair["chosen"]
    return "".join(json.dumps(pair, ensure_ascii=False) + "\n" for pair in pairs)


def held_out_accuracy(checkpoint: Path, pairs: Sequence[PreferencePair]) -> Block:
    """Pair accuracy of a reward model, or of a policy with a fresh head."""
    tokenizer = load_tokenizer(checkpoint)
    model = load_reward_model(checkpoint, tokenizer, new_head=True)
    return pair_accuracy(*pair_scores(model, tokenizer, pairs))


def gains(summary: Mapping[str, Any]) -> Table:
    """What chance, the start, the end and the controls are worth."""
    before, after = summary["before"], summary["after"]
    rows = {name: summary[name] for name in ("chance", "before", "after")}
    for task, block in after.get("by_task", {}).items():
        rows |= {f"  {task}, before": before["by_task"][task], f"  {task}, after": block}
    rows |= {f"control: {name.replace('_', ' ')}": block for name, block in summary.get("controls", {}).items()}
    if "gain" in summary:
        rows["gain"] = summary["gain"] | {"n": after["n"]}
    figure = figure_of(after)
    shown = table(f"{figure.replace('_', ' ')} on held-out data", "", "value", "95 % interval", "n")
    for name, block in rows.items():
        shown.add_row(name, f"{block[figure]:.3f}", interval(block), str(block["n"]))
    return shown


def answers_sentence(summary: Mapping[str, Any]) -> list[str]:
    """What else is known of the answers of a policy; nothing of a reward model."""
    before, after = summary["before"], summary["after"]
    if "greedy" not in after:
        return []
    sampled = f"Answers sampled at temperature 1; greedy {before['greedy']:.3f} before and {after['greedy']:.3f} after."
    if "model_reward" in after:
        sampled += f" The reward model's own mean score: {before['model_reward']:.2f} before and "
        sampled += f"{after['model_reward']:.2f} after."
    return [sampled]


if __name__ == "__main__":
    main()
