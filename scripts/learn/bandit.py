"""Multi-armed bandit: what does it cost to find out which arm is best?

    python scripts/learn/bandit.py --out runs/learn/bandit [--seed N]

Five slot machines pay 1 with a probability that nobody knows, else 0. Four strategies play the same number of pulls:
greedy, epsilon-greedy, UCB1 (Auer, Cesa-Bianchi and Fischer 2002) and Thompson sampling (1933). Regret is what the best
arm would have paid on average, minus what the arms pulled pay on average, summed over the pulls.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # the project also without an installation

from r1_aqa_repro.common.errors import EXIT_DONE, command
from r1_aqa_repro.common.intervals import mean_interval
from scripts.learn.lesson import options, report
from scripts.shown import plotted, table

ARMS = np.array([0.1, 0.3, 0.5, 0.7, 0.9])  # the chance of each to pay
PULLS, RUNS = 5000, 500
EPSILON = 0.1
LOOKS = (20, 500)  # pulls after which the picture shows what one run believes
PICTURE = "regret.png"

Array = NDArray[Any]


class Beliefs:
    """What several runs at once know of their arms: how often each was pulled, and its mean reward. [runs, arms]."""

    def __init__(self, runs: int, arms: int):
        self.counts, self.means = np.zeros((runs, arms)), np.zeros((runs, arms))

    def update(self, arms: Array, rewards: Array) -> None:
        """Learn what the arm pulled in each run has paid; `arms` and `rewards` are [runs]."""
        pulled = np.arange(len(arms)), arms
        self.counts[pulled] += 1
        self.means[pulled] += (rewards - self.means[pulled]) / self.counts[pulled]


Strategy = Callable[[Beliefs, int, np.random.Generator], Array]  # beliefs, number of the pull from 1 on -> arms [runs]


def best(scores: Array, rng: np.random.Generator) -> Array:
    """The arm of the highest score of each run, one by chance among equals. [runs, arms] -> [runs]."""
    ties = scores == scores.max(axis=1, keepdims=True)
    return (ties * rng.random(scores.shape)).argmax(axis=1)


def epsilon_greedy(epsilon: float) -> Strategy:
    """The arm that has paid best so far; with probability `epsilon` any arm."""

    def choose(beliefs: Beliefs, pull: int, rng: np.random.Generator) -> Array:
        runs, arms = beliefs.means.shape
        explore = rng.random(runs) < epsilon
        return np.where(explore, rng.integers(arms, size=runs), best(beliefs.means, rng))

    return choose


def ucb1(beliefs: Beliefs, pull: int, rng: np.random.Generator) -> Array:
    """The arm whose mean could be highest: optimism in the face of uncertainty. Each is pulled once to begin with."""
    bonus = np.sqrt(2 * math.log(pull) / np.maximum(beliefs.counts, 1))
    return best(np.where(beliefs.counts == 0, math.inf, beliefs.means + bonus), rng)


def thompson(beliefs: Beliefs, pull: int, rng: np.random.Generator) -> Array:
    """The arm that is best in one draw from the posterior; the prior is uniform."""
    successes = beliefs.means * beliefs.counts
    return rng.beta(1 + successes, 1 + beliefs.counts - successes).argmax(axis=1)


STRATEGIES: dict[str, Strategy] = {
    "greedy": epsilon_greedy(0),
    f"epsilon-greedy, {EPSILON}": epsilon_greedy(EPSILON),
    "UCB1": ucb1,
    "Thompson": thompson,
}


def play(strategy: Strategy, arms: Array, pulls: int, runs: int, seed: int) -> tuple[Array, dict[int, Beliefs]]:
    """Let a strategy play.

    Returns:
        The regret summed up to each pull, [runs, pulls], and what was believed after the pulls of `LOOKS`.
    """
    rng, beliefs = np.random.default_rng(seed), Beliefs(runs, len(arms))
    gaps, looks = np.empty((runs, pulls)), {}
    for pull in range(1, pulls + 1):
        chosen = strategy(beliefs, pull, rng)
        beliefs.update(chosen, rng.random(runs) < arms[chosen])
        gaps[:, pull - 1] = arms.max() - arms[chosen]
        if pull in LOOKS:
            looks[pull] = Beliefs(runs, len(arms))
            looks[pull].counts, looks[pull].means = beliefs.counts.copy(), beliefs.means.copy()
    return gaps.cumsum(axis=1), looks


def least_regret(arms: Array) -> float:
    """How much regret must grow in the long run, a unit of log(pulls), if a strategy is good on all bandits (Lai and
    Robbins 1985).

    The sum over the worse arms of their gap over the Kullback-Leibler divergence of their reward from the best arm's.
    """
    worse, top = arms[arms < arms.max()], arms.max()
    divergence = worse * np.log(worse / top) + (1 - worse) * np.log((1 - worse) / (1 - top))
    return float(((top - worse) / divergence).sum())


def ucb1_bound(arms: Array, pulls: int) -> float:
    """What the mean regret of UCB1 never exceeds (Auer, Cesa-Bianchi and Fischer 2002, theorem 1)."""
    gaps = arms.max() - arms[arms < arms.max()]
    return float(8 * math.log(pulls) * (1 / gaps).sum() + (1 + math.pi**2 / 3) * gaps.sum())


@command
def main(argv: list[str]) -> int:
    """Play and report. Returns the exit code."""
    own = options(__doc__).parse_args(argv)
    found: dict[str, dict[str, Any]] = {}
    curves: dict[str, Array] = {}
    looks: dict[str, dict[int, Beliefs]] = {}
    for name, strategy in STRATEGIES.items():
        regret, looks[name] = play(strategy, ARMS, PULLS, RUNS, own.seed)
        mean, low, high = mean_interval(list(regret[:, -1]))
        curves[name] = regret.mean(axis=0)
        found[name] = {
            "regret": mean,
            "ci95": [low, high],
            "regret_of_last_tenth": float(curves[name][-1] - curves[name][-PULLS // 10 - 1]),
        }
    bounds = {"least_regret_per_log": least_regret(ARMS), "ucb1_at_most": ucb1_bound(ARMS, PULLS)}
    draw(own.out / PICTURE, curves, looks["Thompson"], own.seed)
    rows = {
        name: {
            "regret": f"{one['regret']:.1f}",
            "95 % interval": f"{one['ci95'][0]:.1f} to {one['ci95'][1]:.1f}",
            f"of it in the last {PULLS // 10}": f"{one['regret_of_last_tenth']:.1f}",
        }
        for name, one in found.items()
    }
    slope = bounds["least_regret_per_log"]
    sentence = (
        f"Mean of {RUNS} runs. The regret of a strategy that is good on all bandits grows by {slope:.2f} log t or more "
        f"in the long run, which is {slope * math.log(10 / 9):.2f} in the last {PULLS // 10} pulls. UCB1 is proved to "
        f"stay below {bounds['ucb1_at_most']:.0f} in all."
    )
    results = {"seed": own.seed, "pulls": PULLS, "runs": RUNS, "strategies": found, "bounds": bounds}
    report(own.out, PICTURE, results, table(f"regret after {PULLS:,} pulls", rows), sentence)
    return EXIT_DONE


def draw(path: Path, curves: dict[str, Array], looks: dict[int, Beliefs], seed: int) -> None:
    """What the first run of Thompson sampling believes while it plays, and the regret of all strategies."""
    rng = np.random.default_rng(seed)
    with plotted(path, "what one Thompson run believes", "regret") as (belief, regret):
        places = np.arange(len(ARMS))
        for shift, (pull, one) in zip((-0.12, 0.12), looks.items(), strict=True):
            successes, counts = one.means[0] * one.counts[0], one.counts[0]
            draws = rng.beta(1 + successes, 1 + counts - successes, (4000, len(ARMS)))
            low, high = np.quantile(draws, (0.025, 0.975), axis=0)
            middle = draws.mean(axis=0)
            bars = [middle - low, high - middle]
            belief.errorbar(places + shift, middle, bars, fmt="o", capsize=3, label=f"95 % after {pull} pulls")
        belief.plot(places, ARMS, "k_", markersize=22, label="truth")
        belief.set(xlabel="arm", ylabel="chance to pay", xticks=places)
        pulls = np.arange(1, PULLS + 1)
        for name, curve in curves.items():
            regret.plot(pulls, curve, label=name)
        regret.plot(pulls, least_regret(ARMS) * np.log(pulls), "k--", linewidth=1, label="slope of the least")
        regret.set(xlabel="pull", ylabel="regret, summed", ylim=(0, 1.6 * float(curves["UCB1"][-1])))


if __name__ == "__main__":
    main()
