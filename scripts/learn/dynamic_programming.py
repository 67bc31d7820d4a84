"""Markov decision processes whose model is known: the Bellman equations, policy iteration and value iteration.

    python scripts/learn/dynamic_programming.py --out runs/learn/dynamic_programming [--seed N]

FrozenLake is slippery: a step goes where it should in one case of three, and to a side in the others. CliffWalking is
not; each step costs 1, one into the cliff 100, which leads back to the start. Both tell the probabilities of what
happens, so that the best policy is computed and nothing has to be tried. The values that value iteration ends with are
compared with those of its policy by linear algebra, and the policy for FrozenLake is played.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # the project also without an installation

from r1_aqa_repro.common.errors import EXIT_DONE, command
from r1_aqa_repro.common.intervals import wilson
from scripts.learn.lesson import environment, options, report, threshold
from scripts.shown import plotted, table

if TYPE_CHECKING:
    from matplotlib.axes import Axes

EPISODES = 2000  # of FrozenLake that are played with the best policy
PICTURE = "values.png"

Array = NDArray[np.float64]
Table = Mapping[int, Mapping[int, Sequence[tuple[float, int, float, bool]]]]  # as in gymnasium, see `model_of`


@dataclass(frozen=True)
class World:
    """A grid of gymnasium."""

    name: str
    shape: tuple[int, int]
    start: int
    arrows: str  # of the actions, in their order
    gamma: float


FROZEN_LAKE = World("FrozenLake-v1", (4, 4), 0, "←↓→↑", 0.99)
CLIFF = World("CliffWalking-v1", (4, 12), 36, "↑→↓←", 1.0)


@dataclass(frozen=True)
class Model:
    """What a Markov decision process does: S states, A actions.

    `transitions` [S, A, S] are the probabilities p(s' | s, a) of going on in s'; what they lack to a sum of 1 is the
    probability that the episode ends. `rewards` [S, A] are the mean rewards r(s, a).
    """

    transitions: Array
    rewards: Array


def model_of(moves: Table) -> Model:
    """The model of gymnasium's table: of each state, of each action, all (probability, next state, reward, ended)."""
    count, actions = len(moves), len(moves[0])
    transitions, rewards = np.zeros((count, actions, count)), np.zeros((count, actions))
    every = [(s, a, *outcome) for s, of in moves.items() for a, outcomes in of.items() for outcome in outcomes]
    last = {after for _, _, _, after, _, ended in every if ended}  # no action is taken there, whatever the table has
    for s, a, probability, after, reward, ended in every:
        if s not in last:
            rewards[s, a] += probability * reward
            transitions[s, a, after] += probability * (not ended)
    return Model(transitions, rewards)


def action_values(model: Model, values: Array, gamma: float) -> Array:
    """q(s, a) = r(s, a) + gamma sum over s' of p(s' | s, a) V(s'), [S, A]."""
    return model.rewards + gamma * model.transitions @ values


def greedy(q: Array) -> Array:
    """The policy that takes the first of the best actions: probabilities [S, A]. Rounding does not decide."""
    return np.eye(q.shape[1])[np.round(q, 10).argmax(axis=1)]


def solve(model: Model, policy: Array, gamma: float) -> Array:
    """The values [S] of a policy [S, A] by linear algebra: Bellman's expectation equation (I - gamma P) V = r."""
    transitions = np.einsum("sa,sat->st", policy, model.transitions)
    rewards = (policy * model.rewards).sum(axis=1)
    return np.linalg.solve(np.eye(len(rewards)) - gamma * transitions, rewards)


def value_iteration(model: Model, gamma: float, epsilon: float = 0.0, tolerance: float = 1e-12) -> list[Array]:
    """Apply Bellman's optimality equation until no value changes by more than `tolerance`.

    Args:
        epsilon: of all steps this share is taken at random, for the best policy that must explore.

    Returns:
        The values [S] after each sweep, zeros first.
    """
    sweeps = [np.zeros(len(model.rewards))]
    while len(sweeps) == 1 or np.abs(sweeps[-1] - sweeps[-2]).max() > tolerance:
        q = action_values(model, sweeps[-1], gamma)
        sweeps.append((1 - epsilon) * q.max(axis=1) + epsilon * q.mean(axis=1))
    return sweeps


def policy_iteration(model: Model, gamma: float) -> list[tuple[Array, Array]]:
    """Evaluate, act greedily on the values, and again, until the policy stays; from the policy that acts at random.

    Returns:
        Policy [S, A] and its values [S] of each round.
    """
    states, actions = model.rewards.shape
    policy, rounds = np.full((states, actions), 1 / actions), []
    while True:
        values = solve(model, policy, gamma)
        rounds.append((policy, values))
        better = greedy(action_values(model, values, gamma))
        if (better == policy).all():
            return rounds
        policy = better


def return_within(model: Model, policy: Array, steps: int) -> Array:
    """The mean of what a policy is paid in so many steps, undiscounted, from each state: [S]."""
    values = np.zeros(len(model.rewards))
    for _ in range(steps):
        values = (policy * action_values(model, values, 1.0)).sum(axis=1)
    return values


def entered(model: Model, start: int) -> NDArray[np.bool_]:
    """Whether an action is ever taken in a state, [S]: not in holes, not below the cliff, not in the goal."""
    entering = model.transitions.sum(axis=(0, 1)) > 0
    entering[start] = True
    return entering


def path_of(moves: Table, q: Array, start: int) -> list[int]:
    """The states from the start on of who always takes the best action and meets the likeliest outcome, until the
    episode ends or a state comes again."""
    path = [start]
    while True:
        _, after, _, ended = max(moves[path[-1]][int(q[path[-1]].argmax())])
        if after in path:
            return path
        path.append(int(after))
        if ended:
            return path


@command
def main(argv: list[str]) -> int:
    """Compute, play and report. Returns the exit code."""
    own = options(__doc__).parse_args(argv)
    found: dict[str, dict[str, Any]] = {}
    played: dict[str, Any] = {}
    drawn: dict[str, tuple[World, Array, Array]] = {}
    errors: dict[str, list[float]] = {}
    for world in (FROZEN_LAKE, CLIFF):
        game = environment(world.name, own.seed)
        model = model_of(game.unwrapped.P)
        sweeps, rounds = value_iteration(model, world.gamma), policy_iteration(model, world.gamma)
        values, policy = sweeps[-1], greedy(action_values(model, sweeps[-1], world.gamma))
        exact = solve(model, policy, world.gamma)
        found[world.name] = {
            "gamma": world.gamma,
            "start_value": float(values[world.start]),
            "random_start_value": float(rounds[0][1][world.start]),
            "sweeps": len(sweeps) - 1,
            "rounds": len(rounds) - 1,
            "difference": float(np.abs(values - exact).max()),
            "difference_of_policy_iteration": float(np.abs(rounds[-1][1] - exact).max()),
        }
        drawn[world.name] = (world, np.where(entered(model, world.start), values, np.nan), policy)
        errors[f"{world.name}, values"] = [float(np.abs(one - exact).max()) for one in sweeps]
        errors[f"{world.name}, policies"] = [float(np.abs(one - exact).max()) for _, one in rounds]
        if world is FROZEN_LAKE:
            limit = game.spec.max_episode_steps
            won = sum(play(game, policy) for _ in range(EPISODES))
            played = {
                "exact": float(return_within(model, policy, limit)[world.start]),
                "share": won / EPISODES,
                "ci95": list(wilson(won, EPISODES)),
                "threshold": threshold(world.name),
            }
    draw(own.out / PICTURE, drawn, errors)
    rows = {
        name: {
            "gamma": f"{one['gamma']:.2f}",
            "V, random": f"{one['random_start_value']:.3f}",
            "V, best": f"{one['start_value']:.3f}",
            "sweeps": str(one["sweeps"]),
            "rounds": str(one["rounds"]),
            "from solve": f"{max(one['difference'], one['difference_of_policy_iteration']):.0e}",
        }
        for name, one in found.items()
    }
    low, high = played["ci95"]
    sentence = (
        "V: of the start, for the policy that acts at random and for the best. Sweeps: of value iteration; rounds: of "
        "policy iteration. From solve: how far the values of either are from the linear solution. FrozenLake's best "
        f"policy reaches the goal within {limit} steps with probability {played['exact']:.3f}; played {EPISODES:,} "
        f"times: {played['share']:.3f} ({low:.3f} to {high:.3f}). gymnasium calls {played['threshold']:.2f} solved."
    )
    results = {"seed": own.seed, "worlds": found, "played": {**played, "episodes": EPISODES}}
    report(own.out, PICTURE, results, table("two known models", rows), sentence)
    return EXIT_DONE


def play(game: Any, policy: Array) -> float:
    """The return of one episode."""
    state, _ = game.reset()
    total, over = 0.0, False
    while not over:
        state, reward, terminated, truncated, _ = game.step(int(policy[state].argmax()))
        total, over = total + reward, terminated or truncated
    return total


def draw(path: Path, drawn: Mapping[str, tuple[World, Array, Array]], errors: Mapping[str, list[float]]) -> None:
    """Values and best actions of each world, and how far the values are off after each sweep or round."""
    with plotted(path, *(f"{name}: V and best action" for name in drawn), "largest error of a value") as axes:
        *grids, error = axes
        for grid, (world, values, policy) in zip(grids, drawn.values(), strict=True):
            draw_grid(grid, values.reshape(world.shape))
            for state in np.flatnonzero(~np.isnan(values)):
                row, column = divmod(int(state), world.shape[1])
                arrow = world.arrows[int(policy[state].argmax())]
                text = arrow if world is CLIFF else f"{arrow}\n{values[state]:.2f}"
                grid.text(column, row, text, ha="center", va="center", color="w")
        for name, errors_of in errors.items():
            shown = [each for each in errors_of if each > 1e-13]  # the rest is rounding
            error.loglog(1 + np.arange(len(shown)), shown, ".-" if name.endswith("policies") else "-", label=name)
        error.set(xlabel="sweep or round")


def draw_grid(axis: Axes, values: Array, colours: str = "viridis") -> None:
    """A grid [rows, columns] as an image, white where nothing (NaN) is known."""
    axis.imshow(values, cmap=colours)
    axis.grid(visible=False)
    axis.set(xlabel="", xticks=[], yticks=[])


if __name__ == "__main__":
    main()
