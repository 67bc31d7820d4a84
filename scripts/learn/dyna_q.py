"""Dyna-Q: Q-learning that also learns what the world does, and practises in its memory between real steps.

    python scripts/learn/dyna_q.py --out runs/learn/dyna_q [--seed N]

After each real step on CliffWalking, n remembered steps are taken once more, from a model of what each action has led
to so far (Sutton 1990). More planning needs fewer real steps; it does not need fewer updates.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # the project also without an installation

from r1_aqa_repro.common.errors import EXIT_DONE, command
from r1_aqa_repro.common.intervals import mean_interval
from scripts.learn.cliff import choose
from scripts.learn.dynamic_programming import CLIFF, path_of
from scripts.learn.lesson import environment, options, report
from scripts.shown import plotted, table

PLANNING = (0, 5, 50)  # steps in the model after each real one
ALPHA, EPSILON = 0.5, 0.1
EPISODES, RUNS = 60, 20
SHORTEST = 13  # steps
PICTURE = "planning.png"

Model = dict[tuple[int, int], tuple[float, int, bool]]  # state and action -> reward, next state, whether it was the end


def update(q: list[list[float]], state: int, action: int, reward: float, after: int, over: bool) -> None:
    """One step of Q-learning; gamma is 1."""
    target = reward + (0.0 if over else max(q[after]))
    q[state][action] += ALPHA * (target - q[state][action])


def plan(q: list[list[float]], model: Model, remembered: Iterable[tuple[int, int]]) -> None:
    """Take remembered steps once more."""
    for state, action in remembered:
        update(q, state, action, *model[state, action])


def learn(game: Any, planning: int, episodes: int, rng: np.random.Generator) -> dict[str, Any]:
    """Learn the values of actions.

    Returns:
        `steps`: of each episode; `to_shortest`: real steps until the best actions lead along a shortest path, None if
        they never do, counted at the ends of episodes.
    """
    q = [[0.0] * game.action_space.n for _ in range(game.observation_space.n)]
    model: Model = {}
    seen: list[tuple[int, int]] = []  # the keys of the model
    steps: list[int] = []
    to_shortest = None
    for _ in range(episodes):
        state, _ = game.reset()
        count, over = 0, False
        while not over:
            action = choose(q[state], EPSILON, rng)
            after, reward, over, _, _ = game.step(action)
            update(q, state, action, reward, after, over)
            if (state, action) not in model:
                seen.append((state, action))
            model[state, action] = reward, after, over
            plan(q, model, [seen[number] for number in rng.integers(len(seen), size=planning)])
            state, count = after, count + 1
        steps.append(count)
        if to_shortest is None and is_shortest(path_of(game.P, np.array(q), CLIFF.start)):
            to_shortest = sum(steps)
    return {"steps": steps, "to_shortest": to_shortest}


def is_shortest(path: Sequence[int]) -> bool:
    """Whether a path leads to the goal in the fewest steps."""
    return path[-1] == CLIFF.shape[0] * CLIFF.shape[1] - 1 and len(path) - 1 == SHORTEST


@command
def main(argv: list[str]) -> int:
    """Learn and report. Returns the exit code."""
    own = options(__doc__).parse_args(argv)
    found: dict[str, dict[str, Any]] = {}
    curves: dict[str, Any] = {}
    for planning in PLANNING:
        rng, game = np.random.default_rng(own.seed), environment(CLIFF.name, own.seed).unwrapped
        each = [learn(game, planning, EPISODES, rng) for _ in range(RUNS)]
        needed = [one["to_shortest"] for one in each if one["to_shortest"] is not None]
        name = f"{planning} planning steps"
        mean, low, high = mean_interval(needed)
        found[name] = {
            "real_steps": mean,
            "ci95": [low, high],
            "updates": mean * (1 + planning),
            "found": len(needed),
            "first_episode": float(np.mean([one["steps"][0] for one in each])),
        }
        curves[name] = np.mean([one["steps"] for one in each], axis=0)
    draw(own.out / PICTURE, curves)
    rows = {
        name: {
            "runs that find it": f"{one['found']} of {RUNS}",
            "real steps": f"{one['real_steps']:.0f}",
            "95 % interval": f"{one['ci95'][0]:.0f} to {one['ci95'][1]:.0f}",
            "updates": f"{one['updates']:.0f}",
        }
        for name, one in found.items()
    }
    sentence = f"Means of {RUNS} runs of {EPISODES} episodes; the shortest path has {SHORTEST} steps."
    results = {"seed": own.seed, "runs": RUNS, "episodes": EPISODES, "planning": found}
    report(own.out, PICTURE, results, table("until the best actions are the shortest path", rows), sentence)
    return EXIT_DONE


def draw(path: Path, curves: Mapping[str, Any]) -> None:
    """Real steps of each episode."""
    with plotted(path, "real steps of an episode", "all real steps until then") as (steps, total):
        for name, curve in curves.items():
            steps.semilogy(np.arange(1, len(curve) + 1), curve, label=name)
            total.plot(np.arange(1, len(curve) + 1), np.cumsum(curve), label=name)
        steps.axhline(SHORTEST, color="black", linewidth=1, linestyle="--", label="shortest path")
        for axis in (steps, total):
            axis.set(xlabel="episode")


if __name__ == "__main__":
    main()
