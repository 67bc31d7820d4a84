"""The bandit's strategies by hand, and what their regret is known to be."""

from __future__ import annotations

import math

import numpy as np
import pytest

from scripts.learn.bandit import ARMS, Beliefs, best, epsilon_greedy, least_regret, play, thompson, ucb1, ucb1_bound


def beliefs(counts: list[float], means: list[float], runs: int = 1) -> Beliefs:
    made = Beliefs(runs, len(counts))
    made.counts[:], made.means[:] = counts, means
    return made


def test_a_mean_is_corrected_by_its_share_of_the_surprise() -> None:
    made = beliefs([2, 0], [0.5, 0.0])
    made.update(np.array([0]), np.array([1.0]))  # 0.5 + (1 - 0.5) / 3
    assert made.means[0] == pytest.approx([2 / 3, 0])
    assert made.counts[0].tolist() == [3, 0]


def test_each_run_learns_of_its_own_arm() -> None:
    made = Beliefs(2, 3)
    made.update(np.array([2, 0]), np.array([1.0, 1.0]))
    assert made.means.tolist() == [[0, 0, 1], [1, 0, 0]]


def test_ucb1_adds_what_is_not_known_yet() -> None:
    rng = np.random.default_rng(0)
    # 0.5 + sqrt(2 ln 5 / 3) = 1.536 against 0.4 + sqrt(2 ln 5 / 1) = 2.194
    assert ucb1(beliefs([3, 1], [0.5, 0.4]), 5, rng).tolist() == [1]
    # 0.9 + sqrt(2 ln 100 / 50) = 1.329 against 0.4 + sqrt(2 ln 100 / 50) = 0.829
    assert ucb1(beliefs([50, 50], [0.9, 0.4]), 100, rng).tolist() == [0]
    assert ucb1(beliefs([9, 0], [1.0, 0.0]), 10, rng).tolist() == [1]  # an arm that was never pulled goes first


@pytest.mark.parametrize(("epsilon", "share"), [(0.0, 1.0), (0.3, 0.7 + 0.3 / 4), (1.0, 0.25)])
def test_epsilon_greedy_takes_the_best_arm_but_for_its_share(epsilon: float, share: float) -> None:
    made = beliefs([9, 9, 9, 9], [0.1, 0.9, 0.5, 0.5], runs=20_000)
    chosen = epsilon_greedy(epsilon)(made, 1, np.random.default_rng(0))
    # a share of 20,000 draws has a standard deviation of 0.0033 at most: four of them
    assert float((chosen == 1).mean()) == pytest.approx(share, abs=0.0133)


def test_thompson_draws_from_the_posterior() -> None:
    rng = np.random.default_rng(0)
    sure = beliefs([10_000, 10_000], [0.4, 0.6], runs=200)
    assert thompson(sure, 1, rng).tolist() == [1] * 200
    # Beta(2, 1) beats Beta(1, 1): the integral of 2x * x over 0 to 1 is 2/3; standard deviation 0.0033
    chosen = thompson(beliefs([1, 0], [1.0, 0.0], runs=20_000), 1, rng)
    assert float((chosen == 0).mean()) == pytest.approx(2 / 3, abs=0.0133)


def test_among_equals_chance_decides() -> None:
    chosen = best(np.ones((3000, 3)), np.random.default_rng(0))
    assert np.bincount(chosen) == pytest.approx([1000] * 3, abs=104)  # four standard deviations


def test_bounds_by_hand() -> None:
    arms = np.array([0.5, 0.9])  # KL(0.5 || 0.9) = 0.5 ln(0.5 / 0.9) + 0.5 ln(0.5 / 0.1) = 0.5108
    assert least_regret(arms) == pytest.approx(0.4 / 0.510826, rel=1e-5)
    assert ucb1_bound(arms, 1000) == pytest.approx(8 * math.log(1000) / 0.4 + (1 + math.pi**2 / 3) * 0.4)


def test_regret_is_what_the_best_arm_would_have_paid_more() -> None:
    regret, _ = play(lambda beliefs, pull, rng: np.zeros(3, int), np.array([0.2, 0.7]), 4, 3, 0)
    assert regret == pytest.approx(np.tile([0.5, 1.0, 1.5, 2.0], (3, 1)))


def test_strategies_that_never_stop_learning_lose_less() -> None:
    pulls, means = 1500, {}
    for name, strategy in {"greedy": epsilon_greedy(0), "ucb1": ucb1, "thompson": thompson}.items():
        regret, _ = play(strategy, ARMS, pulls, 60, seed=1)
        means[name] = regret[:, -1].mean()
    assert 2 * means["thompson"] < means["ucb1"] < means["greedy"]
    assert means["ucb1"] < ucb1_bound(ARMS, pulls)


def test_the_same_seed_plays_the_same() -> None:
    first, second, other = (play(thompson, ARMS, 50, 4, seed)[0] for seed in (7, 7, 8))
    assert (first == second).all() and not (first == other).all()
