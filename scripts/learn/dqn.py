"""Deep Q-learning on CartPole: a network in the place of the table, with a memory and a target that stands still.

    python scripts/learn/dqn.py --out runs/learn/dqn [--seed N]

Mnih and others (2015, doi 10.1038/nature14236), written by hand. A pole on a cart is kept upright by pushes to the left
and to the right; each step pays 1, an episode ends when the pole falls or after 500 steps. A network gives the values
of both actions. It learns from random steps of a memory, whose targets come from a copy of the network that is renewed
now and then.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # the project also without an installation

from r1_aqa_repro.common.errors import EXIT_DONE, answer_at_once, command
from scripts.learn.lesson import CART_POLE, environments, options, report, running_mean, threshold

answer_at_once(__name__, options(__doc__).parse_args)

import copy

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from r1_aqa_repro.common.console import say
from scripts.learn.networks import evaluated, network
from scripts.shown import plotted, table

STEPS = 50_000  # of all environments together
ENVIRONMENTS, ROUND = 8, 32  # each takes so many steps between two rounds of learning
BATCH, UPDATES = 64, 128  # updates of a round
GAMMA, LEARNING_RATE = 0.99, 1e-3
MEMORY, FIRST = 50_000, 1000  # steps that are remembered, and that are taken before anything is learned
EXPLORE, EXPLORE_LESS = 1.0, 0.04  # share of random steps, at the beginning and from `UNTIL` on
UNTIL = 8000
ROUNDS_OF_TARGET = 1  # after so many rounds the copy is renewed
PICTURE = "learning_curve.png"


class Memory:
    """The last steps, in arrays: states, actions, rewards, next states, whether the episode ended for good. The oldest
    are overwritten first."""

    def __init__(self, size: int, width: int):
        states, after = np.empty((size, width), np.float32), np.empty((size, width), np.float32)
        rewards, ended = np.empty(size, np.float32), np.empty(size, np.float32)
        self.kept: tuple[NDArray[Any], ...] = (states, np.empty(size, np.int64), rewards, after, ended)
        self.size, self.count = size, 0

    def __len__(self) -> int:
        return min(self.count, self.size)

    def add(self, *steps: NDArray[Any]) -> None:
        """Remember steps, in the order of the arrays."""
        places = np.arange(self.count, self.count + len(steps[0])) % self.size
        for kept, new in zip(self.kept, steps, strict=True):
            kept[places] = new
        self.count += len(places)

    def sample(self, number: int, rng: np.random.Generator) -> list[torch.Tensor]:
        """So many of the remembered steps, by chance."""
        places = rng.integers(len(self), size=number)
        return [torch.from_numpy(each[places]) for each in self.kept]


@torch.no_grad()
def targets(rewards: torch.Tensor, after: torch.Tensor, ended: torch.Tensor, frozen: nn.Module) -> torch.Tensor:
    """What the values of actions should be, [B]. Where time ran out, there would have been more to come."""
    best = frozen(after).max(dim=1).values
    return rewards + GAMMA * (1 - ended) * best


def update(q: nn.Module, frozen: nn.Module, batch: Sequence[torch.Tensor], optimizer: torch.optim.Optimizer) -> float:
    """One step of gradient descent on Huber's loss between values and targets; the loss."""
    states, actions, rewards, after, ended = batch
    values = q(states).gather(1, actions[:, None])[:, 0]
    loss = nn.functional.smooth_l1_loss(values, targets(rewards, after, ended, frozen))
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    return loss.item()


def share_of_random(step: int) -> float:
    """The share of random steps after so many steps: falls in a straight line."""
    return max(EXPLORE_LESS, EXPLORE + (EXPLORE_LESS - EXPLORE) * step / UNTIL)


def learn(seed: int, steps: int) -> tuple[nn.Module, list[tuple[int, float]], float]:
    """Train a network.

    Returns:
        The network; of each finished episode the step at which it ended and its return; the value of the start.
    """
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    games = environments(CART_POLE, ENVIRONMENTS, seed)
    q = network(outputs=2)
    frozen = copy.deepcopy(q)
    optimizer = torch.optim.Adam(q.parameters(), lr=LEARNING_RATE)
    memory, episodes = Memory(MEMORY, 4), []
    states, _ = games.reset()
    totals, fresh = np.zeros(ENVIRONMENTS), np.ones(ENVIRONMENTS, bool)  # fresh: the next step is one of an episode
    for round_ in range(steps // (ENVIRONMENTS * ROUND)):
        for number in range(ROUND):
            step = ENVIRONMENTS * (ROUND * round_ + number)
            with torch.no_grad():
                best = q(torch.from_numpy(states)).argmax(dim=1).numpy()
            explore = rng.random(ENVIRONMENTS) < share_of_random(step)
            actions = np.where(explore, rng.integers(2, size=ENVIRONMENTS), best)
            after, rewards, terminated, truncated, _ = games.step(actions)
            memory.add(states[fresh], actions[fresh], rewards[fresh], after[fresh], terminated[fresh])
            totals += rewards
            over = terminated | truncated
            episodes += [(step, float(total)) for total in totals[over]]
            totals[over] = 0
            states, fresh = after, ~over  # of those that are over the next step only begins a new episode
        if len(memory) >= FIRST:
            for _ in range(UPDATES):
                update(q, frozen, memory.sample(BATCH, rng), optimizer)
        if round_ % ROUNDS_OF_TARGET == 0:
            frozen.load_state_dict(q.state_dict())
    with torch.no_grad():
        start = float(q(torch.zeros(1, 4)).max())
    return q, episodes, start


@command
def main(argv: list[str]) -> int:
    """Train and report. Returns the exit code."""
    own = options(__doc__).parse_args(argv)
    torch.set_num_threads(1)
    say(f"DQN, {STEPS:,} steps")
    q, episodes, start = learn(own.seed, STEPS)
    returns = evaluated(lambda states: q(states).argmax(dim=1), own.seed)
    late = [total for step, total in episodes if step >= 0.8 * STEPS]
    found = {
        "return": float(np.mean(returns)),
        "worst": float(np.min(returns)),
        "late": float(np.mean(late)),
        "start_value": start,
        "highest_value": 1 / (1 - GAMMA),
    }
    at, each = zip(*episodes, strict=True)
    smooth = running_mean(each, 20)
    with plotted(own.out / PICTURE, "DQN on CartPole") as (axis,):
        axis.plot(at, each, ".", markersize=2, alpha=0.4, label="episode")
        axis.plot(at, smooth, label="mean of 20")
        axis.axhline(threshold(CART_POLE), color="black", linestyle="--", linewidth=1, label="solved")
        axis.set(ylabel="return")
    rows = {
        "DQN": {
            "return": f"{found['return']:.1f}",
            "worst": f"{found['worst']:.0f}",
            "while learning": f"{found['late']:.1f}",
            "Q of the start": f"{found['start_value']:.1f}",
            "at most": f"{found['highest_value']:.1f}",
        }
    }
    sentence = (
        f"Return: of {len(returns)} new episodes, each step the best by Q; solved from {threshold(CART_POLE):.0f} on. "
        "While learning: of the last fifth. Q of the start: for an upright pole at rest; at most 1 / (1 - gamma)."
    )
    results = {"seed": own.seed, "steps": STEPS, "dqn": found}
    report(own.out, PICTURE, results, table(f"CartPole after {STEPS:,} steps", rows), sentence)
    return EXIT_DONE


if __name__ == "__main__":
    main()
