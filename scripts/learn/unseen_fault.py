"""A fault that no pair shows: what a reward model cannot know, and greedy decoding finds.

    python scripts/learn/unseen_fault.py --out runs/learn/unseen_fault [--seed N] [--runs DIR]

In three of five pairs on lists the worse answer is the better one with members that it names again, as in "1. plum
2. plum". Here these pairs are left out. A reward model that learns from the others cannot tell such answers apart, and
what is trained on them or by it repeats itself: seldom where answers are sampled, all the more where the most probable
token is taken each time. Beside it the same runs with all pairs: scripts/train_reward_model.sh, train_dpo.sh and
train_grpo_text.sh. answers.txt has greedy answers to read.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # the project also without an installation

from r1_aqa_repro import train_dpo, train_grpo_text, train_reward_model
from r1_aqa_repro.common.errors import EXIT_DONE
from r1_aqa_repro.common.files import write_lines
from r1_aqa_repro.data.conversations import TextPrompt, read_pairs
from r1_aqa_repro.embedded.text_tasks import names_again
from r1_aqa_repro.model.text_loading import load_reward_model, load_tokenizer
from r1_aqa_repro.score import pair_accuracy, pair_scores
from scripts.learn.lesson import report, text_options, write_answers
from scripts.shown import plotted, table
from scripts.workshop import Block, TextWorkshop, answers_of, command_of_stages, true_rewards, worth

PICTURE, ANSWERS = "unseen_fault.png", "answers.txt"
READ = 12  # prompts of answers.txt
SHOWN, HIDDEN = "with repetition in the pairs", "without"


@command_of_stages
def main(argv: list[str]) -> int:
    """Train, evaluate and report. Returns the exit code."""
    own = text_options(__doc__).parse_args(argv)
    workshop = TextWorkshop(own.runs, own.seed)
    seen = workshop.data() / "pairs_train.jsonl"
    unseen = own.out / "pairs_without_repetition.jsonl"
    write_lines(unseen, without_repetition(seen))
    models = {"start": workshop.policy()}
    models |= trained(workshop, own.runs, seen, SHOWN) | trained(workshop, own.out, unseen, HIDDEN)
    judges = {SHOWN: own.runs / "train_reward_model" / "final", HIDDEN: own.out / "train_reward_model" / "final"}
    found = {
        "seed": own.seed,
        "reward_models": {name: of_judge(workshop, judge) for name, judge in judges.items()},
        "models": of_policies(workshop, models, own.out / ANSWERS),
    }
    draw(own.out / PICTURE, found["models"])
    judged = {
        name: {kind: f"{block['pair_accuracy']:.3f}" for kind, block in blocks.items()}
        for name, blocks in found["reward_models"].items()
    }
    lists = {
        name: {
            "sampled": f"{block['true_reward']:.3f}",
            "that repeat": f"{block['repeat']:.3f}",
            "greedy": f"{block['greedy']:.3f}",
            "greedy that repeat": f"{block['greedy_repeat']:.3f}",
        }
        for name, block in found["models"].items()
    }
    tables = table("pair accuracy on held-out pairs", judged), table("lists: true reward, and how many repeat", lists)
    report(own.out, PICTURE, found, *tables, f"To read: {own.out}/{ANSWERS}")
    return EXIT_DONE


def without_repetition(pairs: Path) -> list[dict[str, Any]]:
    """The pairs of a file of the text set in which no list names anything twice."""
    records = [json.loads(line) for line in pairs.read_text(encoding="utf-8").splitlines()]
    return [each for each in records if not (each["task"] == "list" and names_again(each["rejected"][0]["content"]))]


def trained(workshop: TextWorkshop, folder: Path, pairs: Path, name: str) -> dict[str, Path]:
    """Policies trained on pairs, and by a reward model that has learned from them, below a folder, by name."""
    start, prompts = workshop.policy(), workshop.data() / "assist_prompts_train.jsonl"
    judge, dpo, grpo = (folder / run for run in ("train_reward_model", "train_dpo", "train_grpo_text"))
    reward_model = workshop.train(
        train_reward_model, "reward_model_embedded", judge, start, pairs, stage=f"reward model, {name}"
    )
    given = ["--reward_model_name_or_path", str(reward_model)]
    return {
        f"DPO, {name}": workshop.train(train_dpo, "dpo_embedded", dpo, start, pairs, stage=f"DPO, {name}"),
        f"GRPO, {name}": workshop.train(
            train_grpo_text, "grpo_text_embedded", grpo, start, prompts, given, stage=f"GRPO, {name}"
        ),
    }


def of_judge(workshop: TextWorkshop, judge: Path) -> dict[str, Block]:
    """The accuracy of a reward model on held-out pairs of lists with a repetition, and on the others."""
    pairs = read_pairs(workshop.data() / "pairs_held_out.jsonl").records
    tokenizer = load_tokenizer(judge)
    model = load_reward_model(judge, tokenizer)
    kinds: dict[str, list[TextPrompt]] = {"repetition": [], "other faults": []}
    for pair in pairs:
        repeats = pair.columns["task"] == "list" and names_again(pair.answers["rejected"])
        kinds["repetition" if repeats else "other faults"].append(pair)
    return {kind: pair_accuracy(*pair_scores(model, tokenizer, own)) for kind, own in kinds.items()}


def of_policies(workshop: TextWorkshop, models: Mapping[str, Path], to_read: Path) -> dict[str, Block]:
    """What models are worth on held-out prompts for lists, and how many of their answers name something twice."""
    prompts = [p for p in workshop.prompts("assist_prompts_held_out") if p.columns["task"] == "list"]
    found: dict[str, Block] = {}
    answers: dict[str, Sequence[str]] = {}
    for name, model in models.items():
        sampled, greedy = (answers_of(model, prompts, workshop.seed, greedy=greedy) for greedy in (False, True))
        block = worth(prompts, true_rewards(prompts, sampled), true_rewards(prompts, greedy))
        found[name] = {key: block[key] for key in ("true_reward", "ci95", "greedy", "greedy_ci95", "n")}
        found[name] |= {"repeat": repeating(sampled), "greedy_repeat": repeating(greedy)}
        answers[name] = greedy[:READ]
    write_answers(to_read, [prompt.messages[-1]["content"] for prompt in prompts[:READ]], answers)
    return found


def repeating(lists: Sequence[str]) -> float:
    """The share of lists that name something twice."""
    return sum(map(names_again, lists)) / len(lists)


def draw(path: Path, found: Mapping[str, Block]) -> None:
    """True reward of lists with 95 % intervals, sampled and greedy."""
    with plotted(path, "lists, sampled", "lists, greedy") as axes:
        for axis, figure, ci95 in zip(axes, ("true_reward", "greedy"), ("ci95", "greedy_ci95"), strict=True):
            for place, block in enumerate(found.values()):
                value, (low, high) = block[figure], block[ci95]
                axis.errorbar([value], [-place], xerr=[[value - low], [high - value]], fmt="o", capsize=3)
            axis.set(xlabel="true reward", yticks=[-place for place in range(len(found))], yticklabels=list(found))
            axis.set(xlim=(0, 1))
        axes[1].set(yticklabels=[])


if __name__ == "__main__":
    main()
