"""Dynamic programming, temporal differences, SARSA, Q-learning and Dyna-Q: by hand, and against known solutions."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest

from scripts.learn import cliff, dyna_q
from scripts.learn.dynamic_programming import (
    CLIFF,
    FROZEN_LAKE,
    World,
    action_values,
    entered,
    greedy,
    model_of,
    path_of,
    policy_iteration,
    return_within,
    solve,
    value_iteration,
)
from scripts.learn.lesson import environment, running_mean
from scripts.learn.td_prediction import EPISODES, TRUE, errors_of, monte_carlo, td_0, walk

# 0: on to 1, or to the end for 1; 1: to the end for 3, or back to 0; 2: the end, whose own moves are never taken
HAND: dict[int, dict[int, list[tuple[float, int, float, bool]]]] = {
    0: {0: [(1.0, 1, 0.0, False)], 1: [(1.0, 2, 1.0, True)]},
    1: {0: [(0.5, 2, 4.0, True), (0.5, 2, 2.0, True)], 1: [(1.0, 0, 0.0, False)]},
    2: {0: [(1.0, 0, 100.0, False)], 1: [(1.0, 0, 100.0, False)]},
}


def moves_of(world: World) -> Any:
    return environment(world.name, 0).unwrapped.P


# --- Known models


def test_a_decision_process_by_hand() -> None:
    model = model_of(HAND)
    assert model.rewards.tolist() == [[0, 1], [3, 0], [0, 0]]
    assert model.transitions[0, 0].tolist() == [0, 1, 0] and not model.transitions[2].any()
    values = value_iteration(model, gamma=0.5)[-1]
    assert values.tolist() == [1.5, 3, 0]  # max(0 + 0.5 * 3, 1), max(3, 0.5 * 1.5)
    assert greedy(action_values(model, values, 0.5))[:2].tolist() == [[1, 0], [1, 0]]
    # at random: V0 = (0.5 V1 + 1) / 2 and V1 = (3 + 0.5 V0) / 2, so V0 = 14 / 15 and V1 = 26 / 15
    assert solve(model, np.full((3, 2), 0.5), 0.5) == pytest.approx([14 / 15, 26 / 15, 0])
    assert path_of(HAND, action_values(model, values, 0.5), 0) == [0, 1, 2]


@pytest.mark.parametrize("world", [FROZEN_LAKE, CLIFF], ids=lambda world: world.name)
def test_both_iterations_end_with_the_linear_solution(world: World) -> None:
    model = model_of(moves_of(world))
    values = value_iteration(model, world.gamma)[-1]
    policy = greedy(action_values(model, values, world.gamma))
    assert np.abs(values - solve(model, policy, world.gamma)).max() < 1e-8
    rounds = policy_iteration(model, world.gamma)
    assert np.abs(values - rounds[-1][1]).max() < 1e-8
    for (_, before), (_, after) in itertools.pairwise(rounds):
        assert (after >= before - 1e-9).all()  # a round never makes a state worse, but for rounding
    # where no action is better than the policy's, it is the best of all: Bellman's optimality equation
    assert np.abs(action_values(model, values, world.gamma).max(axis=1) - values).max() < 1e-8


def test_a_sweep_brings_values_nearer_by_gamma_at_least() -> None:
    model = model_of(moves_of(FROZEN_LAKE))
    sweeps = value_iteration(model, 0.9)
    errors = [np.abs(sweep - sweeps[-1]).max() for sweep in sweeps[:50]]
    assert all(after <= 0.9 * before + 1e-11 for before, after in itertools.pairwise(errors))


def test_frozen_lake_is_won_as_often_as_gymnasium_says() -> None:
    model = model_of(moves_of(FROZEN_LAKE))
    policy = greedy(action_values(model, value_iteration(model, FROZEN_LAKE.gamma)[-1], FROZEN_LAKE.gamma))
    assert return_within(model, policy, 100)[0] == pytest.approx(0.74, abs=0.005)  # "optimum = 0.74" in its registry


def test_the_shortest_way_along_the_cliff_has_13_steps() -> None:
    moves = moves_of(CLIFF)
    model = model_of(moves)
    values = value_iteration(model, 1.0)[-1]
    path = path_of(moves, action_values(model, values, 1.0), CLIFF.start)
    assert values[CLIFF.start] == -13 and path == [36, *range(24, 36), 47]
    assert np.flatnonzero(~entered(model, CLIFF.start)).tolist() == list(range(37, 48))  # the cliff and the goal


def test_who_must_explore_keeps_one_row_more_from_the_edge() -> None:
    moves = moves_of(CLIFF)
    model = model_of(moves)
    known = cliff.best_known(model, moves, 0.1)
    assert known["path"] == [36, 24, *range(12, 24), 35, 47]
    best = cliff.best_known(model, moves, 0.0)
    assert best["steps"] == 13 and best["return"] < known["return"] < -15
    # that share of exploration is the best answer to itself: no policy but with one step more random is better
    q = action_values(model, value_iteration(model, 1.0, 0.1)[-1], 1.0)
    assert known["return"] == pytest.approx(value_iteration(model, 1.0, 0.1)[-1][CLIFF.start], abs=1e-8)
    assert cliff.exploring(greedy(q), 0.1).sum(axis=1) == pytest.approx(1)


# --- Temporal differences


def test_td_0_by_hand() -> None:
    episode = [(2, 0.0, 3), (3, 0.0, 4), (4, 1.0, None)]
    values = [0.5] * 5
    td_0(values, episode, alpha=0.1)
    assert values == pytest.approx([0.5, 0.5, 0.5, 0.5, 0.55])  # only the last step was a surprise
    td_0(values, episode, alpha=0.1)
    assert values == pytest.approx([0.5, 0.5, 0.5, 0.505, 0.595])  # it moves backwards by one state an episode


def test_monte_carlo_by_hand() -> None:
    values = [0.5] * 5
    monte_carlo(values, [(2, 0.0, 3), (3, 0.0, 4), (4, 1.0, None)], alpha=0.1)
    assert values == pytest.approx([0.5, 0.5, 0.55, 0.55, 0.55])


def test_a_walk_ends_on_either_side_as_often() -> None:
    rng = np.random.default_rng(0)
    walks = [walk(rng) for _ in range(2000)]
    assert all(one[0][0] == 2 and one[-1][2] is None for one in walks)
    # the standard deviation of the share is 0.011
    assert np.mean([one[-1][1] for one in walks]) == pytest.approx(0.5, abs=0.045)


def test_td_0_comes_nearer_to_the_truth_than_monte_carlo() -> None:
    td, mc = errors_of("TD(0)", 0.05, 20, seed=0), errors_of("Monte Carlo", 0.02, 20, seed=0)
    assert td.shape == (20, EPISODES + 1)
    assert td[:, 0] == pytest.approx(np.sqrt(np.mean((0.5 - TRUE) ** 2)))
    assert td[:, -1].mean() < 0.06 < mc[:, -1].mean()


# --- Along the cliff


@pytest.fixture(scope="module")
def walked() -> dict[str, tuple[Any, Any]]:
    """Of both methods the mean Q and the returns, [runs, episodes], of ten runs."""
    game = environment(CLIFF.name, 0).unwrapped
    found = {}
    for name, on_policy in (("Q-learning", False), ("SARSA", True)):
        rng = np.random.default_rng(0)
        each = [cliff.learn(game, on_policy, 400, rng) for _ in range(10)]
        found[name] = np.mean([q for q, _ in each], axis=0), np.array([returns for _, returns in each])
    return found


def test_q_learning_walks_along_the_edge_and_sarsa_does_not(walked: dict[str, tuple[Any, Any]]) -> None:
    moves = moves_of(CLIFF)
    edge, safe = (path_of(moves, walked[name][0], CLIFF.start) for name in ("Q-learning", "SARSA"))
    assert edge == [36, *range(24, 36), 47]
    assert safe[-1] == 47 and len(safe) - 1 in (15, 17)
    assert not set(range(25, 35)) & set(safe)  # never beside the cliff


def test_while_exploring_the_safe_path_returns_more(walked: dict[str, tuple[Any, Any]]) -> None:
    late = {name: returns[:, -100:].mean() for name, (_, returns) in walked.items()}
    assert late["SARSA"] > late["Q-learning"] + 10


def test_exploring_is_a_share_of_random_steps() -> None:
    rng = np.random.default_rng(0)
    chosen = [cliff.choose([0.0, 1.0, 0.5, 0.0], 0.2, rng) for _ in range(5000)]
    assert np.bincount(chosen) / 5000 == pytest.approx([0.05, 0.85, 0.05, 0.05], abs=0.02)  # 4 standard deviations
    among = {cliff.choose([1.0, 0.0, 1.0], 0.0, rng) for _ in range(50)}
    assert among == {0, 2}


def test_planning_by_hand() -> None:
    q = [[0.0, 0.0], [0.0, 0.0], [0.0, 0.0]]
    dyna_q.plan(q, {(0, 0): (-1.0, 1, False), (1, 0): (10.0, 2, True)}, [(1, 0), (0, 0)])
    assert q == [[2.0, 0.0], [5.0, 0.0], [0.0, 0.0]]  # half of 10, then half of -1 + 5


def test_planning_saves_real_steps() -> None:
    game = environment(CLIFF.name, 0).unwrapped
    needed = {}
    for planning in (0, 20):
        rng = np.random.default_rng(0)
        needed[planning] = [dyna_q.learn(game, planning, 60, rng)["to_shortest"] for _ in range(3)]
    assert max(needed[20]) < 0.5 * min(needed[0])


def test_running_mean() -> None:
    assert running_mean([1.0, 2.0, 6.0, 4.0], 2) == [1.0, 1.5, 4.0, 5.0]
