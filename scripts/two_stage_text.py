"""Post-training in two stages, as that of Qwen2.5 (arXiv 2412.15115, sections 4.2 and 4.3), on the embedded text set.

    python scripts/two_stage_text.py [--variant best_of_n] [--output_dir DIR] [--seed N]

The offline stage is DPO on maths and code: the start answers each prompt several times, rule rewards judge, and the
best answer is preferred to the worst. The online stage is GRPO for helpfulness and safety: the reward model, which has
learned from preferences, and a rule reward for safety judge. As a variant the second stage is DPO too, on pairs that
the same rewards have made of the policy's own answers, as that of Qwen2 (arXiv 2407.10671, section 4.3). Each stage is
also carried out alone, from the start, so that the table shows whether the two together end above each of them.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

os.environ["CUDA_VISIBLE_DEVICES"] = ""  # the model is too small for a GPU
os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")  # a bar for every thousand short lines
ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))  # `r1_aqa_repro` also without an installation

from rich.console import Console  # noqa: E402
from rich.table import Table  # noqa: E402

from r1_aqa_repro import best_of_n, train_dpo, train_grpo_text  # noqa: E402
from r1_aqa_repro.common.console import Options, say  # noqa: E402
from r1_aqa_repro.common.errors import EXIT_DONE, command  # noqa: E402
from r1_aqa_repro.common.files import write_json  # noqa: E402
from r1_aqa_repro.common.intervals import paired_gain  # noqa: E402
from r1_aqa_repro.data.conversations import read_prompts  # noqa: E402
from r1_aqa_repro.data.yaml_file import read_yaml  # noqa: E402
from scripts.workshop import (  # noqa: E402
    MAX_NEW_TOKENS,
    Interrupted,
    Workshop,
    chance_of,
    judged,
    results,
)

VARIANTS = ("grpo", "best_of_n")
ONLINE = "grpo_text_assist_embedded"  # config of the second stage
START, OFFLINE, ASSIST, BOTH = "start", "offline alone", "online alone", "both stages"


@command
def main(argv: list[str]) -> int:
    """Carry out what is not done yet. Returns the exit code."""
    own = _parser().parse_args(argv)
    folder = own.output_dir or Path("runs") / (
        "two_stage_text" if own.variant == "grpo" else "two_stage_text_best_of_n"
    )
    workshop = Workshop(folder.parent, own.seed)
    say(f"two stages in {folder}, seed {own.seed}, second stage by {own.variant}")
    pipeline = Pipeline(workshop, folder, own.variant)
    try:
        checkpoints = pipeline.checkpoints()
    except Interrupted as interrupted:
        return interrupted.code
    data = workshop.data()
    prompts = [
        prompt
        for name in ("assist", "objective")
        for prompt in read_prompts(data / f"{name}_prompts_held_out.jsonl").records
    ]
    with workshop.stages(f"{folder.name}: evaluation"):
        blocks = {name: judged(checkpoint, prompts, own.seed) for name, checkpoint in checkpoints.items()}
    gains = gains_over_parts(blocks)
    stages = {name: {key: value for key, value in block.items() if key != "rewards"} for name, block in blocks.items()}
    summary = results(chance_of(prompts, own.seed), blocks[START], blocks[BOTH], workshop)
    summary |= {"stages": stages, "gains_over_parts": gains, "variant": own.variant}
    write_json(folder / "results.json", summary)
    print_stages(summary, folder)
    say(f"{sum(workshop.stages.asked_for.values()):.0f} s in all, set-up aside")
    return EXIT_DONE


class Pipeline:
    """The trainings of a run, each kept in a folder of its own below the run's.

    Args:
        workshop: gives what they start from.
        folder: of the run.
        variant: how the second stage is done, one of `VARIANTS`.
    """

    def __init__(self, workshop: Workshop, folder: Path, variant: str):
        self.workshop, self.folder = workshop, folder
        self.second: Callable[[str, Path], Path] = self._grpo if variant == "grpo" else self._best_of_n

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
        judges = ["--rewards", "math", "python_syntax"]
        pairs = self._pairs("offline_pairs", start, self.workshop.data() / "objective_prompts_train.jsonl", judges)
        return self._train("offline", train_dpo, "dpo_objective_embedded", start, pairs)

    def _grpo(self, name: str, model: Path) -> Path:
        """GRPO with the reward model and the rule for safety."""
        judge = ["--reward_model_name_or_path", str(self.workshop.reward_model())]
        prompts = self.workshop.data() / "assist_prompts_train.jsonl"
        return self._train(name, train_grpo_text, ONLINE, model, prompts, judge)

    def _best_of_n(self, name: str, model: Path) -> Path:
        """DPO on pairs that the same rewards have made of a model's own answers."""
        online = read_yaml(str(ROOT / "configs" / f"{ONLINE}.yaml"))
        judges = ["--reward-model", str(self.workshop.reward_model()), "--rewards", *online["reward_funcs"][1:]]
        judges += ["--reward-weights", *map(str, online["reward_weights"])]
        pairs = self._pairs(f"{name}_pairs", model, self.workshop.data() / "assist_prompts_train.jsonl", judges)
        return self._train(name, train_dpo, "dpo_embedded", model, pairs)

    def _pairs(self, name: str, model: Path, prompts: Path, judges: Sequence[str]) -> Path:
        out = self.folder / name
        options = ["--max-new-tokens", str(MAX_NEW_TOKENS), "--batch-size", "64", "--seed", str(self.workshop.seed)]
        with self.workshop.stages(f"{self.folder.name}: {name}"):
            code = best_of_n.main(
                ["--model", str(model), "--prompts", str(prompts), "--out", str(out), *judges, *options]
            )
        if code != EXIT_DONE:
            raise Interrupted(code)
        return out / "pairs.jsonl"

    def _train(
        self, name: str, entry: Any, config: str, model: Path, data: Path, overrides: Sequence[str] = ()
    ) -> Path:
        stage, folder = f"{self.folder.name}: {name}", f"{self.folder.name}/{name}"
        return self.workshop.train(stage, entry, config, folder, model, data, overrides)


def gains_over_parts(blocks: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """What both stages gain over each of them alone on the same prompts, with 95 % bootstrap intervals."""
    gains = {}
    for part in (OFFLINE, ASSIST):
        gain, low, high = paired_gain(blocks[part]["rewards"], blocks[BOTH]["rewards"])
        gains[part] = {"true_reward": gain, "ci95": [low, high], "above": low > 0}
    return gains


def print_stages(summary: Mapping[str, Any], folder: Path) -> None:
    """The table of all stages, and whether both together are above each of them."""
    stages = summary["stages"]
    tasks = list(stages[START]["by_task"])
    table = Table(title="true reward on held-out prompts, sampled at temperature 1", title_style="bold")
    table.add_column("")
    for column in (*tasks, "all", "95 % interval"):
        table.add_column(column, justify="right")
    for name, block in stages.items():
        low, high = block["ci95"]
        by_task = [f"{block['by_task'][task]['true_reward']:.3f}" for task in tasks]
        table.add_row(name, *by_task, f"{block['true_reward']:.3f}", f"{low:.3f} to {high:.3f}")
    console = Console(width=max(80, Console().width))
    console.print(table)
    console.print(sentence(summary["gains_over_parts"]), highlight=False)
    console.print(f"Results: {folder}/results.json; model: {folder}/both/final", highlight=False)


def sentence(gains: Mapping[str, Mapping[str, Any]]) -> str:
    """Whether the two stages end above each of their parts, in words."""
    texts = [
        f"{part} ({gain['true_reward']:+.3f}, 95 % interval {gain['ci95'][0]:+.3f} to {gain['ci95'][1]:+.3f})"
        for part, gain in gains.items()
    ]
    above = [text for text, gain in zip(texts, gains.values(), strict=True) if gain["above"]]
    others = [text for text in texts if text not in above]
    parts = [f"end above {' and above '.join(above)}"] if above else []
    parts += [f"do not end above {' nor above '.join(others)}"] if others else []
    return f"The two stages {' but '.join(parts)}."


def _parser() -> Options:
    parser = Options(__doc__)
    add = parser.add_argument
    add("--variant", choices=VARIANTS, default="grpo", help="the second stage (default: grpo)")
    add("--output-dir", type=Path, help="folder of the run (default: runs/two_stage_text)")
    add("--seed", type=int, default=0, help="of the text set and of everything else (default: 0)")
    return parser


if __name__ == "__main__":
    main()
