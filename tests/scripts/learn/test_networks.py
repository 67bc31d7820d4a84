"""DQN's memory and targets; rollouts and estimates of the policy gradients, by hand and through the project's PPO."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from r1_aqa_repro.ppo.objectives import generalized_advantages
from scripts.learn import dqn
from scripts.learn import policy_gradients as pg
from scripts.learn.lesson import CART_POLE, environments
from scripts.learn.networks import JUDGED, evaluated, network
from scripts.learn.td_prediction import td_0


class Fixed(nn.Module):
    """The same outputs for every state."""

    def __init__(self, *outputs: float):
        super().__init__()
        self.outputs = nn.Parameter(torch.tensor(outputs))

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        return self.outputs.expand(*states.shape[:-1], -1)


# --- DQN


def test_a_target_is_the_reward_and_the_best_that_follows() -> None:
    rewards, ended = torch.tensor([1.0, 1.0]), torch.tensor([0.0, 1.0])
    found = dqn.targets(rewards, torch.zeros(2, 4), ended, Fixed(3.0, 5.0))
    assert found.tolist() == pytest.approx([1 + 0.99 * 5, 1])  # after the end nothing follows


def test_an_update_moves_the_value_of_the_action_taken_alone() -> None:
    q = Fixed(0.0, 0.0)
    optimizer = torch.optim.SGD(q.parameters(), lr=1.0)
    batch = [torch.zeros(1, 4), torch.tensor([1]), torch.tensor([0.5]), torch.zeros(1, 4), torch.tensor([1.0])]
    loss = dqn.update(q, Fixed(9.0, 9.0), batch, optimizer)
    assert loss == pytest.approx(0.5 * 0.5**2)  # Huber's loss is the square's below 1
    assert q.outputs.tolist() == [0, 0.5]


def test_a_memory_forgets_the_oldest_first() -> None:
    memory = dqn.Memory(3, width=1)
    for number in range(5):
        one = np.array([number])
        memory.add(np.array([[number]]), one, one, np.array([[number + 1]]), one * 0)
    assert len(memory) == 3 and sorted(memory.kept[1]) == [2, 3, 4]
    states, actions, rewards, after, ended = memory.sample(100, np.random.default_rng(0))
    assert set(actions.tolist()) == {2, 3, 4} and not ended.any()
    assert (states[:, 0] == actions).all() and (after[:, 0] == rewards + 1).all()  # a step stays together


def test_random_steps_become_fewer_in_a_straight_line() -> None:
    middle = (dqn.EXPLORE + dqn.EXPLORE_LESS) / 2
    shares = [dqn.share_of_random(step) for step in (0, dqn.UNTIL // 2, dqn.UNTIL, 10 * dqn.UNTIL)]
    assert shares == pytest.approx([dqn.EXPLORE, middle, dqn.EXPLORE_LESS, dqn.EXPLORE_LESS])


def test_dqn_remembers_only_steps_of_episodes(monkeypatch: pytest.MonkeyPatch) -> None:
    kept = []
    monkeypatch.setattr(dqn.Memory, "add", lambda self, *steps: kept.append(steps))
    _, episodes, _ = dqn.learn(0, 2048)
    rewards, ended = (np.concatenate([steps[place] for steps in kept]) for place in (2, 4))
    assert (rewards == 1).all()  # gymnasium pays 0 for the step that begins a new episode
    assert sum(ended) == len(episodes) and sum(total for _, total in episodes) <= len(rewards)


# --- Rollouts


def games(count: int = 3, seed: int = 0) -> Any:
    return environments(CART_POLE, count, seed)


def rolled(actor: nn.Module, count: int = 3) -> pg.Rollout:
    return pg.roll_out(games(count), actor, torch.Generator().manual_seed(0))


def test_a_rollout_holds_whole_episodes() -> None:
    torch.manual_seed(0)
    actor = network(2)
    rollout = rolled(actor, 6)
    lengths = rollout.mask.sum(dim=1)
    assert rollout.mask.shape[1] == lengths.max() < 500 and not rollout.cut.any()
    assert rollout.returns.tolist() == lengths.tolist()
    for row, length in enumerate(lengths):
        assert rollout.mask[row, :length].all() and not rollout.mask[row, length:].any()
        position, _, angle, _ = rollout.last[row]
        assert abs(angle) > 0.2094 or abs(position) > 2.4  # 12 degrees: it has fallen
        assert rollout.states[row, :length, 2].abs().max() < 0.2096  # and not before
    expected = actor(rollout.states).softmax(-1).gather(-1, rollout.actions[..., None])[..., 0].log()
    torch.testing.assert_close(rollout.log_probs, expected.detach())
    assert rollout.rewards.sum().item() == pytest.approx(0.01 * lengths.sum().item())


def test_always_left_falls_soon() -> None:
    rollout = rolled(Fixed(50.0, -50.0))
    assert not rollout.actions[rollout.mask].any()
    assert rollout.returns.min() >= 7 and rollout.returns.max() <= 11
    assert evaluated(lambda states: torch.zeros(len(states), dtype=torch.long), 0).max() <= 11


def two_steps(cut: bool) -> pg.Rollout:
    """One episode of two steps and one of padding."""
    zeros = torch.zeros(1, 3)
    mask = torch.tensor([[True, True, False]])
    rewards = torch.tensor([[0.01, 0.01, 0.0]])
    return pg.Rollout(
        zeros[..., None].expand(1, 3, 4), zeros.long(), zeros, rewards, mask, torch.zeros(1, 4), torch.tensor([cut])
    )


def test_without_a_critic_an_advantage_is_the_discounted_reward_to_go() -> None:
    advantages, returns, values = pg.estimates(two_steps(cut=False), None, lam=1.0)
    assert advantages[0].tolist() == pytest.approx([0.01 * (1 + 0.99), 0.01, 0.0])
    assert torch.equal(returns, advantages) and not values.any()


def test_estimates_by_hand() -> None:
    critic = Fixed(0.5)
    fallen, _, _ = pg.estimates(two_steps(cut=False), critic, lam=0.0)
    assert fallen[0].tolist() == pytest.approx([0.01 + 0.99 * 0.5 - 0.5, 0.01 - 0.5, 0], abs=1e-6)
    cut, returns, _ = pg.estimates(two_steps(cut=True), critic, lam=0.0)  # it would have gone on
    assert cut[0].tolist() == pytest.approx([0.005, 0.005, 0], abs=1e-6)
    assert returns[0].tolist() == pytest.approx([0.505, 0.505, 0], abs=1e-6)
    whole, _, _ = pg.estimates(two_steps(cut=False), critic, lam=1.0)
    assert whole[0].tolist() == pytest.approx([0.01 * 1.99 - 0.5, 0.01 - 0.5, 0], abs=1e-6)


def test_the_td_error_is_the_advantage_with_lambda_0() -> None:
    episode, values = [(2, 0.0, 1), (1, 0.0, 0), (0, 0.5, None)], [0.2, 0.3, 0.7]
    before = list(values)
    td_0(values, [episode[0]], alpha=1.0, gamma=0.9)
    of = torch.tensor([[before[state] for state, _, _ in episode]])
    rewards, mask = torch.tensor([[0.0, 0.0, 0.5]]), torch.ones(1, 3, dtype=torch.bool)
    advantages, _ = generalized_advantages(rewards, of, mask, gamma=0.9, lam=0.0)
    assert advantages[0, 0].item() == pytest.approx(values[2] - before[2])  # 0.9 * 0.3 - 0.7


def test_one_update_follows_the_policy_gradient() -> None:
    """REINFORCE through the clipped loss: a step of gradient ascent on the mean of A log pi."""
    torch.manual_seed(0)
    actor = network(2)
    rollout = rolled(actor)
    advantages, _, _ = pg.estimates(rollout, None, 1.0)
    objective = (advantages * pg.log_probs_of(actor, rollout.states, rollout.actions))[rollout.mask].mean()
    gradients = torch.autograd.grad(objective, list(actor.parameters()))
    expected = [p.detach() + 0.1 * g for p, g in zip(actor.parameters(), gradients, strict=True)]
    optimizer = torch.optim.SGD(actor.parameters(), lr=0.1)
    pg.update(rollout, actor, None, pg.METHODS["REINFORCE"], optimizer, torch.Generator().manual_seed(0))
    for parameter, one in zip(actor.parameters(), expected, strict=True):
        torch.testing.assert_close(parameter.detach(), one)


def test_only_a_method_with_a_critic_learns_values() -> None:
    torch.manual_seed(0)
    actor, critic = network(2), network(1)
    rollout = rolled(actor)
    before = [p.detach().clone() for p in critic.parameters()]
    optimizer = torch.optim.Adam([*actor.parameters(), *critic.parameters()], lr=0.01)
    chance = torch.Generator().manual_seed(0)
    pg.update(rollout, actor, None, pg.METHODS["REINFORCE"], optimizer, chance)
    assert all(torch.equal(*both) for both in zip(before, critic.parameters(), strict=True))
    pg.update(rollout, actor, critic, pg.METHODS["PPO"], optimizer, chance)
    assert not any(torch.equal(*both) for both in zip(before, critic.parameters(), strict=True))


def test_ppo_learns_to_balance() -> None:
    trained = pg.train(replace(pg.METHODS["PPO"], epochs=4), seed=0, steps=150_000, until=150)
    assert np.mean(trained.returns[:20]) < 40 and np.mean(trained.returns[-8:]) >= 150
    assert trained.steps[-1] == sum(trained.returns) < 60_000


def test_training_is_repeatable() -> None:
    one, two, other = (pg.train(pg.METHODS["actor-critic"], seed, 2000).returns for seed in (0, 0, 1))
    assert one == two != other


def test_judging_counts_each_episode_once() -> None:
    assert len(evaluated(lambda states: (states[:, 2] > 0).long(), 0)) == JUDGED
