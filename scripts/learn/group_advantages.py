"""GRPO's advantages worked by hand: three groups of answers, their rewards by rules, what a step would learn from each.

    python scripts/learn/group_advantages.py --out runs/learn/group_advantages

"What is 2 + 2?" is answered four times and judged right or wrong; an equation five times, with half a point for a
fraction that was not reduced; a question to a lighthouse keeper four times, judged by a rubric. No model takes part:
the answers stand below. The filters are those of GRPO's key `advantage_filter`.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping, Sequence
from fractions import Fraction
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # the project also without an installation

import torch
from rich.table import Table

from r1_aqa_repro.common.console import Options
from r1_aqa_repro.common.errors import EXIT_DONE, command
from r1_aqa_repro.common.files import output_folder
from r1_aqa_repro.grpo.selection import better_completions
from r1_aqa_repro.rewards.persona import persona_parts, read_rubric
from r1_aqa_repro.rewards.text_rules import math_reward
from scripts.learn.lesson import report
from scripts.shown import plotted, table

RUBRIC = Path(__file__).resolve().parents[2] / "configs" / "personas" / "lighthouse_keeper.yaml"
PICTURE = "advantages.png"
SUM, EQUATION, KEEPER = "What is 2 + 2?", "Solve 3x + 5 = 20.", "You keep the light. Who is out tonight?"
ANSWERS = {
    SUM: ("4", "5", "It is 4.", "22"),
    EQUATION: ("x = 5", "x = 15/3", "x is a letter.", "x = 20", "3x = 15, so x = 5"),
    KEEPER: (
        "As an AI language model I keep no lamp.",
        "Nobody.",
        "I see nobody.",
        "I have lit the lamp and wound the clock. With this fog and the tide so high I would see nobody pass the rock.",
    ),
}
TOP = 0.6  # share of a group that the soft filter keeps


def graded(text: str, solution: Fraction) -> float:
    """1 for the solution, 0.5 for it as a fraction that can be reduced, 0 for anything else; the last number counts."""
    written = re.findall(r"-?\d+(?:/\d+)?", text)
    if not written or Fraction(written[-1]) != solution:
        return 0.0
    return 1.0 if written[-1] == str(solution) else 0.5


def rewards_of(question: str, answers: Sequence[str]) -> list[float]:
    """What the rules of a question pay for answers."""
    if question == SUM:
        return math_reward([[{"role": "assistant", "content": text}] for text in answers], ["4"] * len(answers))
    if question == EQUATION:
        return [graded(text, Fraction(5)) for text in answers]
    rubric = read_rubric(str(RUBRIC))
    return [sum(persona_parts(text, rubric).values()) for text in answers]


def advantages(rewards: torch.Tensor) -> torch.Tensor:
    """Of a group, rewards [G]: arXiv 2402.03300, section 4.1.2, with the divisor and the small number of TRL."""
    return (rewards - rewards.mean()) / (rewards.std() + 1e-4)


def with_population_std(rewards: torch.Tensor) -> torch.Tensor:
    """The same with the standard deviation of the group as all there is, as many notes have it."""
    return (rewards - rewards.mean()) / (rewards.std(correction=0) + 1e-8)


def worked(question: str) -> dict[str, list[float]]:
    """Rewards, advantages and what the filters keep (1 or 0), one value an answer."""
    rewards = torch.tensor(rewards_of(question, ANSWERS[question]), dtype=torch.float64)
    kept = {name: better_completions(rewards, len(rewards), name, TOP) for name in ("above_mean", "top_fraction")}
    columns = {
        "reward": rewards,
        "advantage": advantages(rewards),
        "population std": with_population_std(rewards),
        "undivided": rewards - rewards.mean(),
        **{name: rows.double() for name, rows in kept.items()},
    }
    return {name: [round(value, 6) for value in column.tolist()] for name, column in columns.items()}


@command
def main(argv: list[str]) -> int:
    """Work the groups, draw and report. Returns the exit code."""
    parser = Options(__doc__)
    parser.add_argument("--out", type=output_folder, required=True, metavar="DIR", help="where to write")
    own = parser.parse_args(argv)
    groups = {question: worked(question) for question in ANSWERS}
    draw(own.out / PICTURE, groups)
    shown = [figures_of(question, group) for question, group in groups.items()]
    said = (
        "Population: divided by the standard deviation of the group as all there is, plus 1e-8. Undivided: "
        "scale_rewards none. Hard and soft: kept by advantage_filter above_mean, and by top_fraction with "
        f"advantage_top_fraction {TOP}."
    )
    by_name = dict(zip(("sum", "equation", "keeper"), groups.values(), strict=True))
    report(own.out, PICTURE, {"groups": by_name}, *shown, said)
    return EXIT_DONE


def figures_of(question: str, group: Mapping[str, Sequence[float]]) -> Table:
    """The answers of a group, one a row."""
    marks = {0.0: "-", 1.0: "yes"}
    rows = {
        text if len(text) <= 20 else f"{text[:17]}...": {
            "reward": f"{group['reward'][nth]:.2f}",
            "advantage": f"{group['advantage'][nth]:+.4f}",
            "population": f"{group['population std'][nth]:+.4f}",
            "undivided": f"{group['undivided'][nth]:+.4f}",
            "hard": marks[group["above_mean"][nth]],
            "soft": marks[group["top_fraction"][nth]],
        }
        for nth, text in enumerate(ANSWERS[question])
    }
    return table(question, rows)


def draw(path: Path, groups: Mapping[str, Mapping[str, Sequence[float]]]) -> None:
    """Rewards and the mean, which is the baseline; the advantages are the distances from it, in units of the spread."""
    with plotted(path, *groups) as axes:
        for axis, group in zip(axes, groups.values(), strict=True):
            rewards, numbers = group["reward"], range(1, len(group["reward"]) + 1)
            mean = sum(rewards) / len(rewards)
            colours = ["C2" if value > 0 else "C3" if value < 0 else "C7" for value in group["advantage"]]
            axis.bar(numbers, [reward - mean for reward in rewards], bottom=mean, color=colours, width=0.6)
            axis.axhline(mean, color="black", linewidth=1, label="mean of the group")
            for number, reward, value in zip(numbers, rewards, group["advantage"], strict=True):
                axis.annotate(f"{value:+.2f}", (number, reward), ha="center", va="bottom" if value >= 0 else "top")
            axis.margins(y=0.25)
            axis.set(xlabel="answer", ylabel="reward; on the bars the advantage", xticks=list(numbers))


if __name__ == "__main__":
    main()
