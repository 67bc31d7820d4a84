"""The advantages of one group of completions, as one works them out by hand: for learning, training has TRL's.

    python -m r1_aqa_repro.grpo.by_hand 1 0 0 1 0 0 0 0

prints what each completion's reward amounts to: as R1-AQA has it, as many notes write it, and with `scale_rewards:
none`.

Exit codes: 0 done; 2 refused: fewer than two rewards, or one that is not a number.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Sequence
from statistics import mean, pstdev, stdev

from rich.console import Console
from rich.table import Table

from r1_aqa_repro.common.console import Options
from r1_aqa_repro.common.errors import EXIT_DONE, Refused, command

Spread = Callable[[Sequence[float]], float]


def advantages(rewards: Sequence[float], std: Spread = stdev, epsilon: float = 1e-4) -> list[float]:
    """How much better each completion is than its group, in standard deviations of the group's rewards.

    With the sample's standard deviation (divisor G - 1) and 1e-4 these are the advantages of TRL, with which R1-AQA was
    trained. The paper of GRPO (arXiv 2402.03300, section 4.1.2) leaves both open.

    Args:
        rewards: of the G completions of one prompt, at least two.
        std: `stdev` or `pstdev`.
        epsilon: keeps the quotient finite if all rewards are equal.
    """
    centre, spread = mean(rewards), std(rewards)
    return [(reward - centre) / (spread + epsilon) for reward in rewards]


def unscaled(rewards: Sequence[float]) -> list[float]:
    """The advantages with `scale_rewards: none`: rewards less their mean (Dr. GRPO, arXiv 2503.20783)."""
    centre = mean(rewards)
    return [reward - centre for reward in rewards]


@command
def main(argv: list[str]) -> int:
    """Run the command; returns its exit code."""
    rewards: list[float] = _parser().parse_args(argv).rewards
    if len(rewards) < 2:
        remedy = "Give the rewards of at least two completions of the same prompt."
        raise Refused.because("command line", "one completion has no group to be compared with", remedy)
    _print(rewards)
    return EXIT_DONE


def _print(rewards: Sequence[float]) -> None:
    of_r1_aqa, of_notes = advantages(rewards), advantages(rewards, pstdev, 1e-8)
    table = Table("completion", title="advantages of one group")
    for column in ("reward", "sample std\n+ 1e-4", "population std\n+ 1e-8", "scale_rewards\nnone"):
        table.add_column(column, justify="right")
    for number, row in enumerate(zip(rewards, of_r1_aqa, of_notes, unscaled(rewards), strict=True), start=1):
        table.add_row(str(number), f"{row[0]:g}", *(f"{value + 0.0:+.4f}" for value in row[1:]))
    console = Console(width=80, highlight=False)
    console.print(table)
    sample, population = stdev(rewards), pstdev(rewards)
    console.print(f"mean {mean(rewards):.4f}, sample std {sample:.4f}, population std {population:.4f}")
    if sample:
        ratio = (sample + 1e-4) / (population + 1e-8)
        console.print(f"The advantages by the population std are {ratio:.4f} times those by the sample std.")
    else:
        console.print("All rewards are equal: every advantage is 0, as in every zero-variance group.")


def _number(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise argparse.ArgumentTypeError(f"{text} is not a finite number")
    return number


def _parser() -> Options:
    parser = Options(__doc__, "python -m r1_aqa_repro.grpo.by_hand")
    parser.add_argument("rewards", nargs="+", type=_number, metavar="REWARD", help="one a completion")
    return parser


if __name__ == "__main__":
    main()
