"""One embedded text run: from nothing to a trained model and what it gained on held-out data, on one CPU core.

    python scripts/embedded_text.py {sft,reward_model,dpo,grpo,ppo} [--any key of the stage's config]

What the run starts from is made first where it is not there: the text set, a small Qwen2, the common start by
supervised fine-tuning, and for GRPO and PPO the reward model, each in a folder beside the run's own. Interrupted, the
same command goes on.
"""

from __future__ import annotations

import json
import os
import random
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ["CUDA_VISIBLE_DEVICES"] = ""  # the model is too small for a GPU
os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")  # a bar for every thousand short lines
ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))  # `r1_aqa_repro` also without an installation

from transformers import set_seed  # noqa: E402

from r1_aqa_repro import train_dpo, train_grpo_text, train_ppo_text, train_reward_model, train_sft_text  # noqa: E402
from r1_aqa_repro.common.console import Options, say  # noqa: E402
from r1_aqa_repro.common.errors import EXIT_DONE, command  # noqa: E402
from r1_aqa_repro.common.files import write_atomically, write_json  # noqa: E402
from r1_aqa_repro.data.conversations import PreferencePair, read_pairs, read_prompts  # noqa: E402
from r1_aqa_repro.model.text_loading import load_reward_model, load_tokenizer  # noqa: E402
from r1_aqa_repro.run.checkpoints import last_checkpoint  # noqa: E402
from r1_aqa_repro.score import pair_accuracy, pair_scores  # noqa: E402
from scripts.text_report import plot_log, print_gain  # noqa: E402
from scripts.workshop import Interrupted, Workshop, chance_of, judged, results  # noqa: E402


@dataclass(frozen=True)
class Stage:
    """A training.

    entry, config, data: its entry point, its config, and its file of the text set.
    curves: what its learning curve shows: the logged figures of each panel, by the panel's title.
    by_reward_model: whether the reward model judges while it trains.
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


@command
def main(argv: list[str]) -> int:
    """Carry out what is not done yet of one run. Returns the exit code."""
    own, overrides = _parser().parse_known_args(argv)
    folder = own.output_dir or Path("runs") / Path(STAGES[own.stage].entry.__name__.rpartition(".")[2])
    workshop = Workshop(folder.parent, own.seed)
    say(f"embedded run in {folder}, seed {own.seed}")
    run = reward_model_run if own.stage == "reward_model" else policy_run
    try:
        summary = run(own.stage, workshop, folder, overrides)
    except Interrupted as interrupted:
        return interrupted.code
    checkpoint = last_checkpoint(folder)
    assert checkpoint is not None, "a finished training leaves its last checkpoint"
    log = json.loads((checkpoint / "trainer_state.json").read_text(encoding="utf-8"))["log_history"]
    plot_log(folder / "learning_curve.png", log, STAGES[own.stage].curves)
    write_json(folder / "results.json", summary)
    print_gain(summary, folder)
    say(f"{sum(workshop.stages.asked_for.values()):.0f} s in all, set-up aside")
    return EXIT_DONE


def policy_run(name: str, workshop: Workshop, folder: Path, overrides: Sequence[str]) -> dict[str, Any]:
    """Train a policy; what it is worth before and after, on the same held-out prompts."""
    stage = STAGES[name]
    start = workshop.start() if name == "sft" else workshop.policy()
    judge = workshop.reward_model() if stage.by_reward_model else None
    given = [] if judge is None else ["--reward_model_name_or_path", str(judge)]
    data = workshop.data()
    final = workshop.train(name, stage.entry, stage.config, folder.name, start, data / stage.data, [*given, *overrides])
    with workshop.stages(f"{name}_evaluation"):
        prompts = read_prompts(data / "assist_prompts_held_out.jsonl").records
        before, after = (judged(model, prompts, workshop.seed, judge) for model in (start, final))
    return results(chance_of(prompts, workshop.seed), before, after, workshop)


def reward_model_run(name: str, workshop: Workshop, folder: Path, overrides: Sequence[str]) -> dict[str, Any]:
    """Train a reward model, and another one on pairs whose labels mean nothing; pair accuracy on held-out pairs."""
    stage, start, data = STAGES[name], workshop.policy(), workshop.data()
    shuffled = folder / "pairs_shuffled.jsonl"

    def trained(stage_name: str, folder_name: str, pairs: Path) -> Path:
        return workshop.train(stage_name, stage.entry, stage.config, folder_name, start, pairs, overrides)

    final = trained(name, folder.name, data / stage.data)
    write_atomically(shuffled, with_shuffled_labels((data / stage.data).read_text(encoding="utf-8"), workshop.seed))
    control = trained(f"{name}_control", f"{folder.name}/shuffled_labels", shuffled)
    pairs = read_pairs(data / "pairs_held_out.jsonl").records
    with workshop.stages(f"{name}_evaluation"):
        set_seed(workshop.seed)  # of the head that the start lacks
        before = held_out_accuracy(start, pairs)
        after, control_after = held_out_accuracy(final, pairs), held_out_accuracy(control, pairs)
    return {
        "chance": {"pair_accuracy": 0.5, "ci95": [0.5, 0.5], "n": len(pairs)},
        "before": before,
        "after": after,
        "controls": {"shuffled_labels": control_after},
        "seconds": workshop.stages.asked_for,
        "seed": workshop.seed,
    }


def with_shuffled_labels(lines: str, seed: int) -> str:
    """Preference pairs, a line each, with the two answers of a random half of them swapped."""
    pairs = [json.loads(line) for line in lines.splitlines()]
    rng = random.Random(seed)
    for pair in rng.sample(pairs, len(pairs) // 2):
        pair["chosen"], pair["rejected"] = pair["rejected"], pair["chosen"]
    return "".join(json.dumps(pair, ensure_ascii=False) + "\n" for pair in pairs)


def held_out_accuracy(checkpoint: Path, pairs: Sequence[PreferencePair]) -> dict[str, Any]:
    """Pair accuracy of a reward model, or of a policy with a fresh head."""
    tokenizer = load_tokenizer(checkpoint)
    model = load_reward_model(checkpoint, tokenizer, new_head=True)
    return pair_accuracy(*pair_scores(model, tokenizer, pairs))


def _parser() -> Options:
    parser = Options(__doc__)
    add = parser.add_argument
    add("stage", choices=STAGES)
    add("--output-dir", type=Path, help="folder of the run (default: runs/<entry point>)")
    add("--seed", type=int, default=0, help="of the text set and of every training")
    return parser


if __name__ == "__main__":
    main()
