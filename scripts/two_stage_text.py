"""Post-training in two stages, as that of Qwen2.5 (arXiv 2412.15115, sections 4.2 and 4.3), on the embedded text set.

    python scripts/two_stage_text.py [--variant best_of_n] [--output_dir DIR] [--seed N]

The offline stage is DPO on maths and code: the start answers each prompt several times, rule rewards score the
answers, and the best one is preferred to the worst. The online stage is GRPO for helpfulness and safety, rewarded by
the reward model, which has learned from preferences, and by a rule for safety. As a variant the second stage is DPO
too, on pairs that the same rewards have made of the policy's own answers, as that of Qwen2 (arXiv 2407.10671, section
4.3). Each stage is also carried out alone, from the start: the table shows whether both together end above each.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # the project also without an installation

from rich.table import Table

from r1_aqa_repro import train_dpo, train_grpo_text
from r1_aqa_repro.common.console import say
from r1_aqa_repro.common.errors import EXIT_DONE
from r1_aqa_repro.data.yaml_file import read_yaml
from scripts.workshop import (
    ROOT,
    Block,
    TextWorkshop,
    chance_of,
    command_of_stages,
    evaluated,
    gain,
    interval,
    options_of_run,
    results,
    table,
    without_rewards,
)

FOLDERS = {"grpo": "two_stage_text", "best_of_n": "two_stage_text_best_of_n"}  # by variant
ONLINE = "grpo_text_assist_embedded"  # config of the second stage
START, OFFLINE, ASSIST, BOTH = "start", "offline alone", "online alone", "both stages"


@command_of_stages
def main(argv: list[str]) -> int:
    """Carry out what is not done yet. Returns the exit code."""
    parser = options_of_run(__doc__, "runs/two_stage_text")
    parser.add_argument("--variant", choices=FOLDERS, default="grpo", help="the second stage (default: grpo)")
    own = parser.parse_args(argv)
    folder = own.output_dir or Path("runs") / FOLDERS[own.variant]
    workshop = TextWorkshop(folder.parent, own.seed)
    say(f"two stages in {folder}, seed {own.seed}, second stage by {own.variant}")
    checkpoints = Pipeline(workshop, folder, own.variant).checkpoints()
    prompts = [p for name in ("assist", "objective") for p in workshop.prompts(f"{name}_prompts_held_out")]
    with workshop.stages(f"{folder.name}: evaluation"):
        blocks = {name: evaluated(checkpoint, prompts, own.seed) for name, checkpoint in checkpoints.items()}
    summary = results(
        workshop,
        chance_of(prompts, own.seed),
        blocks[START],
        blocks[BOTH],
        stages={name: without_rewards(block) for name, block in blocks.items()},
        gains_over_parts=gains_over_parts(blocks),
        variant=own.variant,
    )
    files = f"Results: {folder}/results.json; model: {folder}/both/final"
    workshop.report(folder, summary, of_stages(summary["stages"]), sentence(summary["gains_over_parts"]), files)
    return EXIT_DONE


class Pipeline:
    """The trainings of a run, each kept in a folder of its own below the run's.

    Args:
        workshop: gives what they start from.
        folder: of the run.
        variant: how the second stage is done, a key of `FOLDERS`.
    """

    def __init__(self, workshop: TextWorkshop, folder: Path, variant: str):
        self.workshop, self.folder = workshop, folder
        self.second = self._grpo if variant == "grpo" else self._best_of_n

    def checkpoints(self) -> dict[str, Path]:
        """The start, each stage alone and both, by name.

        Raises:
            Interrupted: one of them ended before it was done.
        """
        start = self.workshop.policy()
        offline = self._objective(start)
        return {
            START: start,
            OFFLINE: offline,
            ASSIST: self.second("online_alone", start),
            BOTH: self.second("both", offline),
        }

    def _objective(self, start: Path) -> Path:
        """DPO on pairs that rule rewards have made of the start's own answers to maths and code."""
        pairs = self._pairs("offline_pairs", start, "objective", ["--rewards", "math", "python_syntax"])
        return self._train("offline", train_dpo, "dpo_objective_embedded", start, pairs)

    def _grpo(self, name: str, model: Path) -> Path:
        """GRPO with the reward model and the rule for safety."""
        rewards = ["--reward_model_name_or_path", str(self.workshop.reward_model())]
        prompts = self.workshop.data() / "assist_prompts_train.jsonl"
        return self._train(name, train_grpo_text, ONLINE, model, prompts, rewards)

    def _best_of_n(self, name: str, model: Path) -> Path:
        """DPO on pairs that the same rewards have made of a model's own answers."""
        online = read_yaml(str(ROOT / "configs" / f"{ONLINE}.yaml"))
        rewards = ["--reward-model", str(self.workshop.reward_model()), "--rewards", *online["reward_funcs"][1:]]
        rewards += ["--reward-weights", *map(str, online["reward_weights"])]
        pairs = self._pairs(f"{name}_pairs", model, "assist", rewards)
        return self._train(name, train_dpo, "dpo_embedded", model, pairs)

    def _pairs(self, name: str, model: Path, prompts: str, rewards: Sequence[str]) -> Path:
        file = self.workshop.data() / f"{prompts}_prompts_train.jsonl"
        options = [*rewards, "--batch-size", "64"]
        return self.workshop.pairs(f"{self.folder.name}: {name}", model, file, self.folder / name, options)

    def _train(
        self, name: str, entry: Any, config: str, model: Path, data: Path, overrides: Sequence[str] = ()
    ) -> Path:
        stage = f"{self.folder.name}: {name}"
        return self.workshop.train(stage, entry, config, self.folder / name, model, data, overrides)


def gains_over_parts(blocks: Mapping[str, Block]) -> dict[str, Block]:
    """What both stages gain over each of them alone on the same prompts, with 95 % bootstrap intervals."""
    gains = {part: gain(blocks[part], blocks[BOTH]) for part in (OFFLINE, ASSIST)}
    return {part: block | {"above": block["ci95"][0] > 0} for part, block in gains.items()}


def of_stages(stages: Mapping[str, Block]) -> Table:
    """What the model is worth after each stage, by task."""
    tasks = list(stages[START]["by_task"])
    shown = table("true reward on held-out prompts, sampled at temperature 1", "", *tasks, "all", "95 % interval")
    for name, block in stages.items():
        values = [*(block["by_task"][task]["true_reward"] for task in tasks), block["true_reward"]]
        shown.add_row(name, *(f"{value:.3f}" for value in values), interval(block))
    return shown


def sentence(gains: Mapping[str, Block]) -> str:
    """Whether the two stages end above each of their parts, in words."""
    texts: dict[bool, list[str]] = {True: [], False: []}
    for part, block in gains.items():
        low, high = block["ci95"]
        text = f"{part} ({block['true_reward']:+.3f}, 95 % interval {low:+.3f} to {high:+.3f})"
        texts[block["above"]].append(text)
    parts = [f"end above {' and above '.join(texts[True])}"] if texts[True] else []
    parts += [f"do not end above {' nor above '.join(texts[False])}"] if texts[False] else []
    return f"The two stages {' but '.join(parts)}."


if __name__ == "__main__":
    main()
