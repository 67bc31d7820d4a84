"""Best of n, DPO, PPO and GRPO side by side: the same start, the same task, the same number of samples.

    python -m scripts.compare_algorithms [--output-dir runs/compare_algorithms] [--seed 0 1 2] [--samples 6400]

The task is the part of the embedded text set that has to be learned from preferences (lists and safety); all four go
by one reward model. Each may sample the same number of completions: GRPO and PPO while they train; DPO before, as the
pairs of best of n; best of n itself learns nothing and samples n completions for every answer that it gives. Writes
comparison.json and comparison.png.

What a step takes is measured apart, on the first seed: FLOPs counted over two steps, and the process's memory at its
highest, as the configs have it and with a quarter of the rows at once.

After an interruption the same command goes on. On one CPU core, with a model too small for a GPU.
"""

from __future__ import annotations

import gc
import json
import math
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # the project also without an installation

import numpy as np
from rich.table import Table
from torch.utils.flop_counter import FlopCounterMode

from r1_aqa_repro import best_of_n, train_dpo, train_grpo_text, train_ppo_text, train_reward_model
from r1_aqa_repro.common.claim import claim
from r1_aqa_repro.common.console import positive, say
from r1_aqa_repro.common.errors import EXIT_DONE, Refused
from r1_aqa_repro.common.files import read_json, write_json
from r1_aqa_repro.data.conversations import TextPrompt
from r1_aqa_repro.data.samples import PAIRS, Sampled, kl_bound
from r1_aqa_repro.data.yaml_file import read_yaml
from r1_aqa_repro.model.text_loading import load_policy
from r1_aqa_repro.planning.counting import LiveBytes
from r1_aqa_repro.run.checkpoints import FINAL
from r1_aqa_repro.run.folder import RUN
from scripts.bench_grpo_step import KERNELS
from scripts.shown import plotted, show
from scripts.workshop import (
    MAX_NEW_TOKENS,
    ROOT,
    Block,
    TextWorkshop,
    by_task,
    command_of_stages,
    divergence,
    evaluated,
    gain,
    log_of,
    options_of_run,
    table,
    with_half_width,
    without_rewards,
    worth,
)

NUM = 8  # completions of a group and of best of n
GRPO_PROMPTS, PPO_PROMPTS = 16, 64  # of a step
STEP = max(NUM * GRPO_PROMPTS, PPO_PROMPTS)  # samples; the larger is a multiple of the other
SAMPLED_AT_ONCE = 16  # prompts of best of n
BEST_OF_N, DPO, PPO, GRPO, REWARD_MODEL = "best of n", "DPO", "PPO", "GRPO", "reward model"


@dataclass(frozen=True)
class Training:
    """What is trained, and what decides its memory.

    at_once: the key that bounds what is on a device at once, and `rows`, the completions of one of it.
    trained, frozen: its models, with gradients and an optimizer and without.
    """

    entry: Any
    config: str
    at_once: str
    rows: int
    trained: int
    frozen: int

    @property
    def file(self) -> Path:
        return ROOT / "configs" / f"{self.config}.yaml"

    def of_config(self, key: str, default: int = 1) -> int:
        """A whole number of the config."""
        return int(read_yaml(str(self.file)).get(key, default))


TRAININGS = {
    DPO: Training(train_dpo, "dpo_embedded", "max_examples_per_device", rows=2, trained=1, frozen=1),
    PPO: Training(train_ppo_text, "ppo_text_embedded", "max_prompts_per_device", rows=1, trained=2, frozen=2),
    GRPO: Training(train_grpo_text, "grpo_text_embedded", "max_prompts_per_device", rows=NUM, trained=1, frozen=2),
    REWARD_MODEL: Training(train_reward_model, "reward_model_embedded", "max_examples_per_device", 2, 1, 0),
}
COUNTED = 2  # steps
FEWER = 4  # a fraction of the rows at once
TRAINED, FROZEN = 16, 4  # bytes a parameter: weight, gradient and Adam's two moments in float32; the weight alone
MB = 1e6
MEANS = ("model_reward", "seconds", "steps", "updates")  # over the seeds
FOLDER = Path("runs") / "compare_algorithms"


@command_of_stages
def main(argv: list[str]) -> int:
    """Carry out what is not done yet. Returns the exit code."""
    kept = "start and reward model of seed 0 are kept beside it, all of another seed N in seedN beside it"
    parser = options_of_run(__doc__, f"{FOLDER}; {kept}", seeds=(0, 1, 2))
    parser.add_argument("--samples", type=positive, default=6400, metavar="N",
                        help="completions that each may sample (default: 6400)")  # fmt: skip
    own = parser.parse_args(argv)
    if own.samples % STEP:
        what = f"{own.samples} is no multiple of {STEP}"
        raise Refused.because("--samples", what, "Choose one: they make whole steps.")
    folder = own.output_dir or FOLDER
    say(f"comparison in {folder}, seeds {' '.join(map(str, own.seed))}, {own.samples} samples each")
    compared: dict[int, Seed] = {}
    for seed in own.seed:
        compared[seed] = of_seed(folder, seed, own.samples)
    workshops = {seed: of.workshop for seed, of in compared.items()}
    comparison = {
        "seeds": own.seed,
        "samples": own.samples,
        **together(list(compared.values())),
        "by_seed": {str(seed): together([of]) for seed, of in compared.items()},
    }
    add_costs(comparison, workshops[own.seed[0]], folder)
    comparison["seconds"] = {str(seed): workshop.stages.asked_for for seed, workshop in workshops.items()}
    plot(folder / "comparison.png", comparison)
    write_json(folder / "comparison.json", comparison)
    show(*tables(comparison), sentence(comparison), f"Results: {folder}/comparison.json, {folder}/comparison.png")
    say(f"{sum(sum(stages.values()) for stages in comparison['seconds'].values()):.0f} s in all, set-up aside")
    return EXIT_DONE


@dataclass(frozen=True)
class Seed:
    """What was found with one seed: its held-out prompts, and what the start and each algorithm are worth on them."""

    workshop: TextWorkshop
    prompts: list[TextPrompt]
    start: Block
    algorithms: dict[str, Block]


def of_seed(folder: Path, seed: int, samples: int) -> Seed:
    """Carry out what is not done yet with a seed, and evaluate.

    Raises:
        Refused: the folder is of another comparison, or there are too few prompts for so many samples.
        Interrupted: a part ended before it was done, and has said why.
    """
    workshop = TextWorkshop(folder.parent if seed == 0 else folder.parent / f"seed{seed}", seed)
    own = workshop.folder / folder.name
    count = len(workshop.prompts("assist_prompts_train"))
    if samples > NUM * count:
        what = f"DPO could not use {samples}: there are {NUM} for each of the {count} prompts to train on"
        raise Refused.because("--samples", what, f"Choose at most {NUM * count // STEP * STEP}.")
    claim(own / "settings.json", {"seed": seed, "samples": samples}, "Choose another --output-dir, or delete this one.")
    carry_out(workshop, own, samples)
    with workshop.stages(f"{folder.name}: evaluation"):
        return compared_by(workshop, own)


def carry_out(workshop: TextWorkshop, folder: Path, samples: int) -> None:
    """Sample and train what is not done yet, each algorithm in a folder of its own below the comparison's."""
    start, reward_model, data = workshop.policy(), workshop.reward_model(), workshop.data()
    prompts, held_out = (data / f"assist_prompts_{split}.jsonl" for split in ("train", "held_out"))
    sampling = ["--reward-model", str(reward_model), "--num", str(NUM), "--batch-size", str(SAMPLED_AT_ONCE)]
    true = ["--rewards", "true", "--reward-weights", "1", "0"]
    workshop.pairs(start, held_out, folder / "best_of_n", [*sampling, *true])
    for_dpo = ["--limit", str(samples // NUM), "--reward-weights", "1"]
    pairs = workshop.pairs(start, prompts, folder / "pairs", [*sampling, *for_dpo])
    steps = {PPO: samples // PPO_PROMPTS, GRPO: samples // (NUM * GRPO_PROMPTS)}
    for name in (DPO, PPO, GRPO):
        own = ["--max_steps", str(steps[name]), *rewarded(name, reward_model)] if name in steps else []
        training = TRAININGS[name]
        workshop.train(
            training.entry, training.config, folder / name.lower(), start, pairs if name == DPO else prompts, own
        )


def rewarded(name: str, reward_model: Path) -> list[str]:
    """What an algorithm that samples while it trains is told beside its config."""
    told = ["--reward_model_name_or_path", str(reward_model)]
    if name == PPO:
        return [*told, "--prompts_per_step", str(PPO_PROMPTS)]
    return [*told, "--prompts_per_step", str(GRPO_PROMPTS), "--num_generations", str(NUM)]


def compared_by(workshop: TextWorkshop, folder: Path) -> Seed:
    """What the start and each of the algorithms are worth on held-out prompts, and what they took."""
    seed, start, reward_model = workshop.seed, workshop.policy(), workshop.reward_model()
    prompts = workshop.prompts("assist_prompts_held_out")
    rewards, scores = best_answers(folder / "best_of_n" / "samples.jsonl")
    where = folder.relative_to(workshop.folder)
    spent = {part: workshop.stages.asked_for[f"{where}/{part}"] for part in ("best_of_n", "pairs")}
    best = worth(prompts, rewards) | {"model_reward": float(np.mean(scores)), "steps": len(rewards), "updates": 0}
    blocks = {BEST_OF_N: best | {"seconds": spent["best_of_n"], "kl": {"nats_an_answer": kl_bound(NUM)}}}
    for name in (DPO, PPO, GRPO):
        run = folder / name.lower()
        seconds = sum(json.loads((run / "run.json").read_text(encoding="utf-8"))["seconds"].values())
        steps = int(log_of(run).index[-1])
        updates = math.prod(map(TRAININGS[name].of_config, ("num_ppo_epochs", "num_mini_batches", "num_iterations")))
        blocks[name] = evaluated(run / FINAL, prompts, seed, reward_model)
        blocks[name] |= {"seconds": seconds, "steps": steps, "updates": steps * updates}
        blocks[name]["kl"] = divergence(run / FINAL, start, prompts, seed)
    blocks[DPO]["seconds"] += spent["pairs"]
    return Seed(workshop, prompts, evaluated(start, prompts, seed, reward_model), blocks)


def together(seeds: Sequence[Seed]) -> dict[str, Any]:
    """What the start and the algorithms are worth with these seeds: all answers together, and means of the rest."""
    prompts = [prompt for seed in seeds for prompt in seed.prompts]

    def pooled(blocks: Sequence[Block]) -> Block:
        rewards, greedy = (
            [reward for block in blocks for reward in block[key]] if key in blocks[0] else None
            for key in ("rewards", "greedy_rewards")
        )
        assert rewards is not None
        means = {key: float(np.mean([block[key] for block in blocks])) for key in MEANS if key in blocks[0]}
        kl = {unit: float(np.mean([block["kl"][unit] for block in blocks])) for unit in blocks[0].get("kl", {})}
        return worth(prompts, rewards, greedy) | means | ({"kl": kl} if kl else {})

    start = pooled([seed.start for seed in seeds])
    algorithms = {}
    for name in seeds[0].algorithms:
        block = pooled([seed.algorithms[name] for seed in seeds])
        block |= {"seconds_a_step": block["seconds"] / block["steps"], "gain": gain(start, block)}
        algorithms[name] = without_rewards(block)
    return {"start": without_rewards(start), "algorithms": algorithms}


def best_answers(samples: Path) -> tuple[list[float], list[float]]:
    """True reward and score of the answer with the highest score to each prompt, from a samples.jsonl."""
    rewards, scores = [], []
    for line in samples.read_text(encoding="utf-8").split("\n")[:-1]:
        sampled = Sampled(**json.loads(line))
        best = int(np.argmax(sampled.scores))
        rewards.append(sampled.rewards["true"][best])
        scores.append(sampled.scores[best])
    return rewards, scores


# --- What it takes


def add_costs(comparison: dict[str, Any], workshop: TextWorkshop, folder: Path) -> None:
    """Add what each algorithm and the reward model take: FLOPs of the whole, and memory."""
    file = folder / "costs.json"
    if not file.is_file():
        with tempfile.TemporaryDirectory() as scratch:
            write_json(file, costs(workshop, folder, Path(scratch)))
    taken = read_json(file, "Delete it: what a step takes is measured again.")
    for name, block in comparison["algorithms"].items():
        tflop = taken[name]["tflop_a_step"] * block["steps"]
        if name == DPO:  # its pairs too
            tflop += taken[BEST_OF_N]["tflop_a_step"] * comparison["samples"] / NUM
        block |= {"tflop": tflop, "memory_mb": taken[name]["memory_mb"]}
    steps = int(log_of(workshop.reward_model().parent).index[-1])
    comparison["reward_model"] = {
        "pairs": steps * TRAININGS[REWARD_MODEL].of_config("examples_per_step"),
        "updates": steps,
        "tflop": taken[REWARD_MODEL]["tflop_a_step"] * steps,
        "memory_mb": taken[REWARD_MODEL]["memory_mb"],
        "seconds": sum(read_json(workshop.reward_model().parent / RUN, "")["seconds"].values()),
    }


def costs(workshop: TextWorkshop, folder: Path, scratch: Path) -> dict[str, Any]:
    """TFLOPs a step and memory in MB by what is carried out; the steps are taken in the folder `scratch`.

    `models`: weights, gradients and optimizer state; `peak`: the most that tensors hold at once; `peak_of_fewer_rows`:
    the same with a quarter of the rows at once, which accumulates gradients and changes nothing else.
    """
    start, reward_model, data = workshop.policy(), workshop.reward_model(), workshop.data()
    weights = load_policy(start).num_parameters() / MB
    prompts, pairs = data / "assist_prompts_train.jsonl", data / "pairs_train.jsonl"
    found: dict[str, Any] = {}
    for name, training in TRAININGS.items():
        own = rewarded(name, reward_model) if name in (PPO, GRPO) else []
        file = prompts if own else folder / "pairs" / PAIRS if name == DPO else pairs
        at_once, measured = training.of_config(training.at_once), []
        for count in (at_once, at_once // FEWER):
            out = scratch / f"{training.config}-{count}"
            argv = ["--config", str(training.file), "--model_name_or_path", str(start), "--train_file", str(file), *own]
            argv += ["--output_dir", str(out), "--seed", str(workshop.seed), "--max_steps", str(COUNTED)]
            work = [*argv, f"--{training.at_once}", str(count)]
            counts = counted(partial(workshop.run, f"{folder.name}/costs/{out.name}", training.entry, work))
            measured.append((*counts, training.rows * count))
        models = weights * (TRAINED * training.trained + FROZEN * training.frozen)
        found[name] = taken(measured, COUNTED, models)
    measured = []
    for count in (SAMPLED_AT_ONCE, SAMPLED_AT_ONCE // FEWER):
        argv = ["--limit", str(SAMPLED_AT_ONCE), "--reward-model", str(reward_model), "--num", str(NUM)]
        argv += ["--batch-size", str(count), "--model", str(start), "--prompts", str(prompts)]
        argv += ["--out", str(scratch / f"best-{count}"), "--max-new-tokens", str(MAX_NEW_TOKENS)]
        counts = counted(partial(workshop.run, f"{folder.name}/costs/best_of_n-{count}", best_of_n, argv))
        measured.append((*counts, NUM * count))
    found[BEST_OF_N] = taken(measured, SAMPLED_AT_ONCE, weights * FROZEN * 2)
    return found


def counted(work: Callable[[], None]) -> tuple[int, float]:
    """FLOPs of some work, and the most MB that tensors made by it held at once."""
    gc.collect()
    with LiveBytes() as live, FlopCounterMode(display=False, custom_mapping=KERNELS) as counter:
        work()
    return counter.get_total_flops(), live.peak / MB


def taken(measured: Sequence[tuple[int, float, int]], steps: int, models: float) -> dict[str, Any]:
    """What `costs` tells of one, by FLOPs, peak and rows as configured and with fewer rows."""
    (flops, peak, rows), (_, fewer, _) = measured
    memory = {"models": models, "rows_at_once": rows, "peak": peak, "peak_of_fewer_rows": fewer}
    return {"tflop_a_step": flops / steps / 1e12, "memory_mb": memory}


# --- Tables and picture


def tables(comparison: Mapping[str, Any]) -> list[Table]:
    """What the algorithms are worth, sampled and greedy, and what they took."""
    start, algorithms = comparison["start"], comparison["algorithms"]
    seeds = f"seed{'s' if len(comparison['seeds']) > 1 else ''} {', '.join(map(str, comparison['seeds']))}"
    greedy = {name: block for name, block in algorithms.items() if "greedy" in block}
    return [
        by_task(f"true reward on held-out prompts, sampled, {seeds}", {"start": start} | algorithms),
        by_task(f"true reward on held-out prompts, greedy, {seeds}", {"start": start} | greedy, greedy=True),
        table(f"gain over the start with {comparison['samples']} samples each", gains_of(comparison)),
        table("what it takes, means of the seeds; memory in MB", taken_by(comparison)),
    ]


def gains_of(comparison: Mapping[str, Any]) -> dict[str, dict[str, str]]:
    """Of each algorithm the gain of what it samples and of its greedy answers, all seeds together and one by one."""
    rows = {}
    for name, block in comparison["algorithms"].items():
        of_seeds = [each["algorithms"][name]["gain"] for each in comparison["by_seed"].values()]
        row = {}
        for decoding, figure, ci95 in (("sampled", "true_reward", "ci95"), ("greedy", "greedy", "greedy_ci95")):
            shown = figure in block["gain"]
            row[decoding] = with_half_width(block["gain"], figure, ci95, "+") if shown else ""
            if len(of_seeds) > 1:
                row[f"{decoding}, seeds"] = " ".join(f"{each[figure]:+.3f}" for each in of_seeds) if shown else ""
        rows[name] = row
    return rows


def taken_by(comparison: Mapping[str, Any]) -> dict[str, dict[str, str]]:
    """What each algorithm took, and the reward model that all of them go by."""
    rows = {}
    for name, block in {**comparison["algorithms"], REWARD_MODEL: comparison["reward_model"]}.items():
        memory = block["memory_mb"]
        rows[name] = {
            "updates": f"{block['updates']:.0f}",
            "score": f"{block['model_reward']:.2f}" if "model_reward" in block else "",
            "KL": ("≤ " if name == BEST_OF_N else "") + f"{block['kl']['nats_an_answer']:.2f}" if "kl" in block else "",
            "TFLOP": f"{block['tflop']:.2f}",
            "seconds": f"{block['seconds']:.0f}",
            "models": f"{memory['models']:.0f}",
            "peak": f"{memory['peak']:.0f}",
            "rows": str(memory["rows_at_once"]),
            f"at 1/{FEWER}": f"{memory['peak_of_fewer_rows']:.0f}",
        }
    return rows


def sentence(comparison: Mapping[str, Any]) -> str:
    """What the columns mean, and what decides the memory."""
    start = comparison["start"]
    return (
        f"Score: the reward model's, of the start {start['model_reward']:.2f}. KL to it in nats an answer. DPO's TFLOP "
        "and seconds are with the sampling of its pairs, best of n's are of its "
        f"{start['n'] // len(comparison['seeds'])} answers. Models: weights, gradients and Adam's moments. Peak: the "
        "most that tensors hold at once, with the rows that are computed at once and with a quarter of them. The "
        "models are small, so that the rows decide, not how many models there are."
    )


def plot(path: Path, comparison: Mapping[str, Any]) -> None:
    """Draw true reward over KL, sampled and greedy."""
    start: Block = comparison["start"] | {"kl": {"nats_an_answer": 0.0}}
    with plotted(path, "true reward, sampled", "true reward, greedy") as axes:
        for axis, figure, ci95 in zip(axes, ("true_reward", "greedy"), ("ci95", "greedy_ci95"), strict=True):
            for place, (name, block) in enumerate(({"start": start} | comparison["algorithms"]).items()):
                if figure in block:  # the colour is the same in both panels
                    value, (low, high), kl = block[figure], block[ci95], block["kl"]["nats_an_answer"]
                    error = [[value - low], [high - value]]
                    axis.errorbar([kl], [value], error, fmt=f"C{place}o", capsize=3, label=name)
            axis.set(xlabel="KL to the start, nats an answer")
        axes[1].sharey(axes[0])


if __name__ == "__main__":
    main()
