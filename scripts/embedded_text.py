"""One embedded text run: from nothing to a trained model and what it gained on held-out data, on one CPU core.

    python scripts/embedded_text.py train_dpo [--any key of its config]        # or another entry point

What the run starts from is made first if it is not there: the text set, a small Qwen2, the common start by supervised
fine-tuning, and for GRPO, RLOO and PPO the reward model, each in a folder beside the run's own. After an interruption
the same command goes on.
"""

from __future__ import annotations

import json
import random
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # the project also without an installation

from transformers import set_seed

from r1_aqa_repro import (
    train_dpo,
    train_grpo_text,
    train_kto,
    train_ppo_text,
    train_reward_model,
    train_rloo_text,
    train_sft_text,
)
from r1_aqa_repro.common.console import say
from r1_aqa_repro.common.errors import EXIT_DONE
from r1_aqa_repro.common.files import as_lines, write_atomically
from r1_aqa_repro.data.conversations import TextPrompt, read_pairs
from r1_aqa_repro.model.text_loading import load_reward_model, load_tokenizer
from r1_aqa_repro.run.samples import samples_of
from r1_aqa_repro.score import pair_accuracy, pair_scores
from scripts.shown import plotted
from scripts.workshop import (
    Block,
    TextWorkshop,
    chance_of,
    command_of_stages,
    evaluated,
    figure_of,
    log_of,
    options_of_run,
    outcome,
    results,
)

STAGES: dict[str, tuple[Any, str, str]] = {  # by entry point: its module, config, and file of the text set
    "train_sft_text": (train_sft_text, "sft_text_embedded", "sft.jsonl"),
    "train_reward_model": (train_reward_model, "reward_model_embedded", "pairs_train.jsonl"),
    "train_dpo": (train_dpo, "dpo_embedded", "pairs_train.jsonl"),
    "train_kto": (train_kto, "kto_embedded", "pairs_train.jsonl"),
    "train_grpo_text": (train_grpo_text, "grpo_text_embedded", "assist_prompts_train.jsonl"),
    "train_rloo_text": (train_rloo_text, "rloo_text_embedded", "assist_prompts_train.jsonl"),
    "train_ppo_text": (train_ppo_text, "ppo_text_embedded", "assist_prompts_train.jsonl"),
}
JUDGED = ("train_grpo_text", "train_rloo_text", "train_ppo_text")  # by the reward model
CURVES = (  # a panel each, of what was logged
    ("loss",),
    ("accuracy",),
    ("margin",),
    ("rewards/chosen", "rewards/rejected"),
    ("logps/chosen", "logps/rejected"),
    ("rewards/reward_model/mean", "rewards/true/mean"),
    ("rewards/reward_model", "rewards/true"),
    ("kl_per_answer",),
    ("kl",),
    ("loss/value",),
    ("entropy",),
)


@command_of_stages
def main(argv: list[str]) -> int:
    """Carry out what is not done yet of one run. Returns the exit code."""
    parser = options_of_run(__doc__, "runs/<entry point>")
    parser.add_argument("stage", choices=STAGES)
    own, overrides = parser.parse_known_args(argv)
    folder = own.output_dir or Path("runs") / own.stage
    workshop = TextWorkshop(folder.parent, own.seed)
    say(f"embedded run in {folder}, seed {own.seed}")
    run = reward_model_run if own.stage == "train_reward_model" else policy_run
    summary = run(own.stage, workshop, folder, overrides)
    log = log_of(folder)
    panels = [names for names in CURVES if names[0] in log]
    with plotted(folder / "learning_curve.png", *map(", ".join, panels)) as axes:
        for axis, names in zip(axes, panels, strict=True):
            for name in names:
                axis.plot(log[name].dropna(), linewidth=0.9, label=name)
    shown = outcome(f"{figure_of(summary['after']).replace('_', ' ')} on held-out data", summary)
    files = f"Results: {folder}/results.json, {folder}/learning_curve.png; model: {folder}/final"
    workshop.report(folder, summary, shown, *score_sentence(summary), files)
    return EXIT_DONE


def policy_run(stage: str, workshop: TextWorkshop, folder: Path, overrides: Sequence[str]) -> dict[str, Any]:
    """Train a policy; what it is worth before and after, on the same held-out prompts."""
    entry, config, data = STAGES[stage]
    start = workshop.start() if stage == "train_sft_text" else workshop.policy()
    reward_model = workshop.reward_model() if stage in JUDGED else None
    given = ["--reward_model_name_or_path", str(reward_model)] if reward_model else []
    final = workshop.train(entry, config, folder, start, workshop.data() / data, [*given, *overrides])
    with workshop.stages(f"{folder.name}: evaluation"):
        prompts = workshop.prompts("assist_prompts_held_out")
        before, after = (evaluated(model, prompts, workshop.seed, reward_model) for model in (start, final))
    return results(workshop, chance_of(prompts, workshop.seed), before, after, samples=samples_of(folder))


def reward_model_run(stage: str, workshop: TextWorkshop, folder: Path, overrides: Sequence[str]) -> dict[str, Any]:
    """Train a reward model, and another one on pairs whose labels mean nothing; pair accuracy on held-out pairs."""
    (entry, config, name), start, data = STAGES[stage], workshop.policy(), workshop.data()
    shuffled = folder / "pairs_shuffled.jsonl"
    final = workshop.train(entry, config, folder, start, data / name, overrides)
    write_atomically(shuffled, with_shuffled_labels((data / name).read_text(encoding="utf-8"), workshop.seed))
    control = workshop.train(entry, config, folder / "shuffled_labels", start, shuffled, overrides)
    pairs = read_pairs(data / "pairs_held_out.jsonl").records
    with workshop.stages(f"{folder.name}: evaluation"):
        set_seed(workshop.seed)  # of the head that the start lacks
        before, after, control_after = (held_out_accuracy(model, pairs) for model in (start, final, control))
    chance = {"pair_accuracy": 0.5, "ci95": [0.5, 0.5], "n": len(pairs)}
    controls = {"shuffled_labels": control_after}
    return results(workshop, chance, before, after, controls=controls, samples=samples_of(folder))


def with_shuffled_labels(lines: str, seed: int) -> str:
    """Preference pairs, a line each, with the two answers of a random half of them swapped."""
    pairs = [json.loads(line) for line in lines.split("\n")[:-1]]
    rng = random.Random(seed)
    for pair in rng.sample(pairs, len(pairs) // 2):
        pair["chosen"], pair["rejected"] = pair["rejected"], pair["chosen"]
    return as_lines(pairs)


def held_out_accuracy(checkpoint: Path, pairs: Sequence[TextPrompt]) -> Block:
    """Pair accuracy of a reward model, or of a policy with a fresh head."""
    tokenizer = load_tokenizer(checkpoint)
    model = load_reward_model(checkpoint, tokenizer, new_head=True)
    return pair_accuracy(*pair_scores(model, tokenizer, pairs))


def score_sentence(summary: Mapping[str, Any]) -> list[str]:
    """What the reward model says of the answers of a policy that learned from it; nothing of others."""
    before, after = summary["before"], summary["after"]
    if "model_reward" not in after:
        return []
    return [
        f"The reward model's own mean score: {before['model_reward']:.2f} before and {after['model_reward']:.2f} after."
    ]


if __name__ == "__main__":
    main()
