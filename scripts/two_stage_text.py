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
from collections.abc import Callable, Mapping
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # the project also without an installation

from r1_aqa_repro import train_dpo, train_grpo_text
from r1_aqa_repro.common.console import say
from r1_aqa_repro.common.errors import EXIT_DONE
from r1_aqa_repro.data.yaml_file import read_yaml
from r1_aqa_repro.run.samples import samples_of
from scripts.shown import plotted
from scripts.workshop import (
    ROOT,
    Block,
    TextWorkshop,
    by_task,
    chance_of,
    command_of_stages,
    evaluated,
    gain,
    interval,
    options_of_run,
    results,
    without_rewards,
)

PICTURE = "stages.png"
ONLINE, PROMPTS = "grpo_text_assist_embedded", "assist_prompts_train.jsonl"  # of the second stage
Second = Callable[[TextWorkshop, Path, Path], Path]  # trains into a folder, from a model
START, OFFLINE, ASSIST, BOTH = "start", "offline alone", "online alone", "both stages"


@command_of_stages
def main(argv: list[str]) -> int:
    """Carry out what is not done yet. Returns the exit code."""
    parser = options_of_run(__doc__, "runs/two_stage_text")
    parser.add_argument("--variant", choices=BY_VARIANT, default="grpo", help="the second stage (default: grpo)")
    own = parser.parse_args(argv)
    folder = own.output_dir or Path("runs") / f"two_stage_text{'' if own.variant == 'grpo' else '_best_of_n'}"
    workshop = TextWorkshop(folder.parent, own.seed)
    say(f"two stages in {folder}, seed {own.seed}, second stage by {own.variant}")
    models = checkpoints(workshop, folder, BY_VARIANT[own.variant])
    prompts = [p for name in ("assist", "objective") for p in workshop.prompts(f"{name}_prompts_held_out")]
    with workshop.stages(f"{folder.name}: evaluation"):
        blocks = {name: evaluated(model, prompts, own.seed) for name, model in models.items()}
    summary = results(
        workshop,
        chance_of(prompts, own.seed),
        blocks[START],
        blocks[BOTH],
        stages={name: without_rewards(block) for name, block in blocks.items()},
        gains_over_parts={part: gain(blocks[part], blocks[BOTH]) for part in (OFFLINE, ASSIST)},
        variant=own.variant,
        samples=[
            last | {"before": first["before"]}  # the second stage begins with the end of the first
            for first, last in zip(samples_of(folder / "offline"), samples_of(folder / "both"), strict=True)
        ],
    )
    plot(folder / PICTURE, summary["stages"])
    sampled = by_task("true reward on held-out prompts, sampled at temperature 1", summary["stages"])
    greedy = by_task("true reward on held-out prompts, greedy", summary["stages"], greedy=True)
    files = f"Results: {folder}/results.json, {folder}/{PICTURE}; model: {folder}/both/final"
    workshop.report(folder, summary, sampled, greedy, sentence(summary["gains_over_parts"]), files)
    return EXIT_DONE


def checkpoints(workshop: TextWorkshop, folder: Path, second: Second) -> dict[str, Path]:
    """The start, each stage alone and both, by name; each kept in a folder of its own below the run's.

    Raises:
        Interrupted: one of them ended before it was done.
    """
    start, prompts = workshop.policy(), workshop.data() / "objective_prompts_train.jsonl"
    rules = ["--rewards", "math", "python_syntax", "--batch-size", "64"]
    pairs = workshop.pairs(start, prompts, folder / "offline_pairs", rules)
    offline = workshop.train(train_dpo, "dpo_objective_embedded", folder / "offline", start, pairs)
    return {
        START: start,
        OFFLINE: offline,
        ASSIST: second(workshop, folder / "online_alone", start),
        BOTH: second(workshop, folder / "both", offline),
    }


def by_grpo(workshop: TextWorkshop, out: Path, model: Path) -> Path:
    """GRPO with the reward model and the rule for safety."""
    rewards = ["--reward_model_name_or_path", str(workshop.reward_model())]
    return workshop.train(train_grpo_text, ONLINE, out, model, workshop.data() / PROMPTS, rewards)


def by_best_of_n(workshop: TextWorkshop, out: Path, model: Path) -> Path:
    """DPO on pairs that the same rewards have made of a model's own answers."""
    online = read_yaml(str(ROOT / "configs" / f"{ONLINE}.yaml"))
    rewards = ["--reward-model", str(workshop.reward_model()), "--rewards", *online["reward_funcs"][1:]]
    rewards += ["--reward-weights", *map(str, online["reward_weights"]), "--batch-size", "64"]
    pairs = workshop.pairs(model, workshop.data() / PROMPTS, out.with_name(f"{out.name}_pairs"), rewards)
    return workshop.train(train_dpo, "dpo_embedded", out, model, pairs)


BY_VARIANT: dict[str, Second] = {"grpo": by_grpo, "best_of_n": by_best_of_n}


def sentence(gains: Mapping[str, Block]) -> str:
    """What the two stages gain over each of their parts."""
    sampled = [f"{block['true_reward']:+.3f} ({interval(block)}) over {part}" for part, block in gains.items()]
    greedy = [f"{block['greedy']:+.3f} ({interval(block, 'greedy_ci95')})" for block in gains.values()]
    return f"Both stages gain {' and '.join(sampled)}; greedy {' and '.join(greedy)}."


def plot(path: Path, stages: Mapping[str, Block]) -> None:
    """Draw the true reward of each task after each stage, with 95 % intervals."""
    tasks = list(stages[START]["by_task"])
    with plotted(path, "true reward by task") as (axis,):
        for nth, (name, block) in enumerate(stages.items()):
            for place, task in enumerate(tasks):
                value, (low, high) = block["by_task"][task]["true_reward"], block["by_task"][task]["ci95"]
                at, bars = [place + 0.12 * (nth - 1.5)], [[value - low], [high - value]]
                label = name if task == tasks[0] else None
                axis.errorbar(at, [value], bars, fmt="o", capsize=2, color=f"C{nth}", label=label)
        axis.set(xlabel="", xticks=range(len(tasks)), xticklabels=tasks, ylim=(0, 1.05))


if __name__ == "__main__":
    main()
