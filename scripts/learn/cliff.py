"""SARSA and Q-learning walk along a cliff: the same code but for one line, and two different paths.

    python scripts/learn/cliff.py --out runs/learn/cliff [--seed N]

CliffWalking of gymnasium, example 6.6 of Sutton and Barto. Both explore: one step in ten is random. Q-learning learns
what the best actions are worth and ends on the shortest path, along the edge. SARSA learns what its own actions are
worth, the random ones among them, and keeps away from the edge. Where both lead in the long run is known: the best
policy of all, and the best of those that explore.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # the project also without an installation

from r1_aqa_repro.common.errors import EXIT_DONE, command
from scripts.learn.dynamic_programming import (
    CLIFF,
    Model,
    action_values,
    draw_grid,
    greedy,
    model_of,
    path_of,
    solve,
    value_iteration,
)
from scripts.learn.lesson import environment, options, report, running_mean
from scripts.shown import plotted, table

ALPHA, EPSILON = 0.5, 0.1  # as in the book
EPISODES, RUNS = 500, 30
LATE = 100  # episodes at the end, over which returns are averaged
PICTURE = "paths.png"

Array = NDArray[np.float64]


def choose(values: list[float], epsilon: float, rng: np.random.Generator) -> int:
    """One of the best actions by chance; with probability `epsilon` any action."""
    if rng.random() < epsilon:
        return int(rng.integers(len(values)))
    highest = max(values)
    best = [action for action, value in enumerate(values) if value == highest]
    return best[0] if len(best) == 1 else int(rng.choice(best))


def learn(game: Any, on_policy: bool, episodes: int, rng: np.random.Generator) -> tuple[Array, list[float]]:
    """Learn the values of actions: SARSA if `on_policy`, otherwise Q-learning; gamma is 1.

    Returns:
        Q [S, A] and the return of each episode.
    """
    q = [[0.0] * game.action_space.n for _ in range(game.observation_space.n)]
    returns = []
    for _ in range(episodes):
        state, _ = game.reset()
        action, total, over = choose(q[state], EPSILON, rng), 0.0, False
        while not over:
            after, reward, over, _, _ = game.step(action)
            following = choose(q[after], EPSILON, rng)
            to_come = q[after][following] if on_policy else max(q[after])
            target = reward + (0.0 if over else to_come)
            q[state][action] += ALPHA * (target - q[state][action])
            state, action, total = after, following, total + reward
        returns.append(total)
    return np.array(q), returns


def exploring(policy: Array, epsilon: float) -> Array:
    """The policy [S, A] that follows another one but for a share `epsilon` of random steps."""
    return (1 - epsilon) * policy + epsilon / policy.shape[1]


def best_known(model: Model, moves: Any, epsilon: float) -> dict[str, Any]:
    """The best policy of those that take a share `epsilon` of their steps at random, computed: its path without such
    steps, and its return with the share of them that is explored here."""
    q = action_values(model, value_iteration(model, CLIFF.gamma, epsilon)[-1], CLIFF.gamma)
    path = path_of(moves, np.round(q, 8), CLIFF.start)
    acting = exploring(greedy(q), EPSILON)
    return {"path": path, "steps": len(path) - 1, "return": float(solve(model, acting, CLIFF.gamma)[CLIFF.start])}


@command
def main(argv: list[str]) -> int:
    """Learn and report. Returns the exit code."""
    own = options(__doc__).parse_args(argv)
    found: dict[str, dict[str, Any]] = {}
    curves: dict[str, Array] = {}
    for name, on_policy, epsilon in (("Q-learning", False, 0.0), ("SARSA", True, EPSILON)):
        rng = np.random.default_rng(own.seed)
        game = environment(CLIFF.name, own.seed).unwrapped  # without the checks of every step
        each = [learn(game, on_policy, EPISODES, rng) for _ in range(RUNS)]
        path = path_of(game.P, np.mean([q for q, _ in each], axis=0), CLIFF.start)
        returns = np.array([returns for _, returns in each])  # [runs, episodes]
        curves[name] = returns.mean(axis=0)
        known = best_known(model_of(game.P), game.P, epsilon)
        found[name] = {
            "path": path,
            "steps": len(path) - 1,
            "row": highest_row(path),
            "return": float(returns[:, -LATE:].mean()),
            "falls": float((returns[:, -LATE:] <= -100).mean()),
            "known": known,
        }
    draw(own.out / PICTURE, found, curves)
    rows = {
        name: {
            "steps": str(one["steps"]),
            "steps, known": str(one["known"]["steps"]),
            "return": f"{one['return']:.1f}",
            "return, known": f"{one['known']['return']:.1f}",
            "falls": f"{100 * one['falls']:.0f} %",
        }
        for name, one in found.items()
    }
    sentence = (
        f"Steps: of the path of the best actions, by the mean Q of {RUNS} runs of {EPISODES} episodes. Return and "
        f"episodes with a fall: of the last {LATE}, {100 * EPSILON:.0f} % of the steps at random. Known: of the best "
        "policy of all, and for SARSA of the best of those that take so many steps at random."
    )
    results = {"seed": own.seed, "runs": RUNS, "episodes": EPISODES, "methods": found}
    report(own.out, PICTURE, results, table("two ways along the cliff", rows), sentence)
    return EXIT_DONE


def highest_row(path: list[int]) -> int:
    """How many rows above the cliff a path keeps at most."""
    return CLIFF.shape[0] - 1 - min(divmod(state, CLIFF.shape[1])[0] for state in path)


def draw(path: Path, found: Mapping[str, Mapping[str, Any]], curves: Mapping[str, Array]) -> None:
    """Both paths on the grid, and the returns while learning."""
    rows, columns = CLIFF.shape
    ground = np.zeros(CLIFF.shape)
    ground[-1, 1:-1] = 1
    with plotted(path, "their paths, above the cliff", "return while exploring") as (grid, returns):
        draw_grid(grid, ground, "Greys")
        grid.text(columns / 2 - 0.5, rows - 1, "cliff: -100", ha="center", va="center", color="w")
        for shift, (name, one) in zip((0.08, -0.08), found.items(), strict=True):
            across = [state % columns + shift for state in one["path"]]
            down = [state // columns + shift for state in one["path"]]
            grid.plot(across, down, ".-", linewidth=2, label=name)
        for name, curve in curves.items():
            returns.plot(running_mean(curve, 20), label=name)
        returns.set(xlabel="episode", ylabel=f"mean of {RUNS} runs and 20 episodes", ylim=(-100, 0))


if __name__ == "__main__":
    main()
