"""From REINFORCE to PPO on CartPole, five settings of the same code: the functions that train Qwen2.

    python scripts/learn/policy_gradients.py --out runs/learn/policy_gradients [--seed N ...]

Each rollout plays whole episodes, which lie in a batch as the completions of a language model do: one row each, padded,
with a mask. Advantages and losses are those of r1_aqa_repro/ppo/objectives.py. REINFORCE has no critic; the baseline is
one; an actor-critic believes it about what is to come, from the next step on or more and more with each step; PPO does
the latter and uses each rollout several times, with the clip. Of each estimator of the gradient, how much it varies is
measured too.

The settings were chosen with seeds 0, 1 and 2; seeds 3, 4 and 5 were run once they stood.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # the project also without an installation

from r1_aqa_repro.common.errors import EXIT_DONE, answer_at_once, command
from scripts.learn.lesson import CART_POLE, environments, options, report, running_mean, threshold

SEEDS = (1, 2, 3, 4, 5)
answer_at_once(__name__, options(__doc__, SEEDS).parse_args)

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from r1_aqa_repro.common.console import say
from r1_aqa_repro.ppo.objectives import clipped_policy_loss, clipped_value_loss, generalized_advantages, whiten
from scripts.learn.networks import evaluated, network
from scripts.shown import plotted, table

STEPS = 60_000  # of a training
EPISODES = 8  # of a rollout
GAMMA, CLIP = 0.99, 0.2
MANY = 128  # episodes from which the gradient's variance is estimated
ABLE = 100  # mean return of a policy for that: it fails now and then
WINDOW = 40  # episodes over which returns are averaged
PICTURE = "learning_curves.png"


@dataclass(frozen=True)
class Method:
    """What tells the five from each other."""

    critic: bool  # whether there is a baseline
    lam: float  # 1: the whole return; 0: one reward, then the critic
    epochs: int  # how often a rollout is used
    batch: int | None  # steps of an update; None: all of them
    learning_rate: float  # falls to 0 in a straight line


METHODS = {
    "REINFORCE": Method(critic=False, lam=1.0, epochs=1, batch=None, learning_rate=1e-2),
    "with baseline": Method(critic=True, lam=1.0, epochs=1, batch=None, learning_rate=1e-2),
    "actor-critic": Method(critic=True, lam=0.9, epochs=1, batch=None, learning_rate=1e-2),
    "one-step actor-critic": Method(critic=True, lam=0.0, epochs=1, batch=None, learning_rate=1e-2),
    "PPO": Method(critic=True, lam=0.95, epochs=10, batch=512, learning_rate=2e-3),
}


@dataclass(frozen=True)
class Rollout:
    """N whole episodes of up to C steps, padded on the right. Rewards are in units of 1 / (1 - gamma): values are
    between 0 and 1."""

    states: torch.Tensor  # [N, C, 4]
    actions: torch.Tensor  # [N, C]
    log_probs: torch.Tensor  # [N, C], of the actions
    rewards: torch.Tensor  # [N, C]
    mask: torch.Tensor  # bool [N, C], True on the steps of an episode
    last: torch.Tensor  # [N, 4], the state after the last step
    cut: torch.Tensor  # bool [N], whether time ran out

    @property
    def returns(self) -> NDArray[np.float64]:
        """Undiscounted, [N]: one for each step."""
        return self.mask.sum(dim=1).double().numpy()


def log_probs_of(actor: nn.Module, states: torch.Tensor, actions: torch.Tensor) -> torch.Tensor:
    """log pi(action | state): [..., 4] and [...] -> [...]."""
    return actor(states).log_softmax(dim=-1).gather(-1, actions[..., None])[..., 0]


def drawn(actor: nn.Module, states: torch.Tensor, chance: torch.Generator) -> torch.Tensor:
    """An action for each state, [N, 4] -> [N], drawn from the policy."""
    return torch.multinomial(actor(states).softmax(dim=-1), 1, generator=chance)[:, 0]


@torch.no_grad()
def roll_out(games: Any, actor: nn.Module, chance: torch.Generator) -> Rollout:
    """Play one episode in each of the games."""
    states, _ = games.reset()
    going, cut, last = np.ones(len(states), bool), np.zeros(len(states), bool), np.zeros_like(states)
    steps = []
    while going.any():
        actions = drawn(actor, torch.from_numpy(states), chance)
        after, rewards, terminated, truncated, _ = games.step(actions.numpy())
        steps.append([torch.from_numpy(states), actions, torch.from_numpy(rewards), torch.from_numpy(going.copy())])
        over = going & (terminated | truncated)
        last[over], cut[over] = after[over], ~terminated[over]
        states, going = after, going & ~over
    state, action, reward, mask = (torch.stack(each, dim=1) for each in zip(*steps, strict=True))
    log_probs = log_probs_of(actor, state, action)
    rewards = (1 - GAMMA) * reward * mask
    return Rollout(state, action, log_probs, rewards, mask, torch.from_numpy(last), torch.from_numpy(cut))


@torch.no_grad()
def estimates(
    rollout: Rollout, critic: nn.Module | None, lam: float
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Advantages, returns and values of every step, each [N, C].

    An episode that was cut off would have gone on: what the critic expects of its last state joins the last reward.
    """
    if critic is None:
        values, to_come = torch.zeros_like(rollout.rewards), torch.zeros(len(rollout.rewards))
    else:
        values, to_come = critic(rollout.states)[..., 0], GAMMA * critic(rollout.last)[..., 0] * rollout.cut
    ends = rollout.mask.sum(dim=1, keepdim=True) - 1
    rewards = rollout.rewards.scatter_add(1, ends, to_come[:, None])
    advantages, returns = generalized_advantages(rewards, values, rollout.mask, GAMMA, lam)
    return advantages, returns, values


def update(
    rollout: Rollout,
    actor: nn.Module,
    critic: nn.Module | None,
    method: Method,
    optimizer: torch.optim.Optimizer,
    chance: torch.Generator,
) -> None:
    """Learn from a rollout."""
    advantages, returns, values = estimates(rollout, critic, method.lam)
    if method.epochs > 1:  # the clip wants advantages of one size
        advantages = whiten(advantages, rollout.mask)
    kept = (rollout.states, rollout.actions, rollout.log_probs, advantages, returns, values)
    steps = [each[rollout.mask] for each in kept]  # without the padding: [steps, ...]
    for _ in range(method.epochs):
        order = torch.randperm(len(steps[0]), generator=chance)
        for chosen in order.split(method.batch or len(order)):
            states, actions, old_log_probs, advantage, target, old_values = (each[chosen] for each in steps)
            log_probs = log_probs_of(actor, states, actions)
            loss = clipped_policy_loss(log_probs, old_log_probs, advantage, CLIP)[0].mean()
            if critic is not None:
                loss = loss + clipped_value_loss(critic(states)[..., 0], old_values, target, CLIP)[0].mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()


@dataclass(frozen=True)
class Trained:
    """What a training has led to: of each episode the steps of all until then, and its return."""

    actor: nn.Module
    critic: nn.Module | None
    steps: list[int]
    returns: list[float]


def train(method: Method, seed: int, steps: int, until: float = float("inf")) -> Trained:
    """Train for so many steps of the game, or until a rollout has this mean return."""
    torch.manual_seed(seed)
    chance = torch.Generator().manual_seed(seed)
    games = environments(CART_POLE, EPISODES, seed)
    actor, critic = network(outputs=2), network(outputs=1) if method.critic else None
    parameters = [*actor.parameters(), *(critic.parameters() if critic is not None else [])]
    optimizer = torch.optim.Adam(parameters, lr=method.learning_rate)
    taken: list[int] = []
    returns: list[float] = []
    while not taken or (taken[-1] < steps and np.mean(returns[-EPISODES:]) < until):
        rollout = roll_out(games, actor, chance)
        for group in optimizer.param_groups:
            group["lr"] = method.learning_rate * (1 - (taken[-1] if taken else 0) / steps)
        update(rollout, actor, critic, method, optimizer, chance)
        taken += list((taken[-1] if taken else 0) + rollout.returns.cumsum().astype(int))
        returns += list(rollout.returns)
    return Trained(actor, critic, taken, returns)


def variances(seed: int) -> dict[str, float]:
    """How much the gradient of one episode varies about the mean of `MANY`, by the estimator of each method, in units
    of that of REINFORCE. The policy is one that was trained with a baseline until it could balance for a while."""
    trained = train(METHODS["with baseline"], seed, STEPS, until=ABLE)
    rollout = roll_out(environments(CART_POLE, MANY, seed + MANY), trained.actor, torch.Generator().manual_seed(seed))
    found = {}
    for name, method in METHODS.items():
        advantages, _, _ = estimates(rollout, trained.critic if method.critic else None, method.lam)
        gradients = []
        for row, mask in enumerate(rollout.mask):
            log_probs = log_probs_of(trained.actor, rollout.states[row, mask], rollout.actions[row, mask])
            of_row = clipped_policy_loss(log_probs, log_probs.detach(), advantages[row, mask], CLIP)[0].sum()
            parts = torch.autograd.grad(of_row, list(trained.actor.parameters()))
            gradients.append(torch.cat([part.flatten() for part in parts]))
        found[name] = float(torch.stack(gradients).var(dim=0).sum())
    return {name: variance / found["REINFORCE"] for name, variance in found.items()}


@command
def main(argv: list[str]) -> int:
    """Train and report. Returns the exit code."""
    own = options(__doc__, SEEDS).parse_args(argv)
    torch.set_num_threads(1)
    solved = threshold(CART_POLE)
    found: dict[str, dict[str, Any]] = {}
    curves: dict[str, list[Trained]] = {}
    varying = variances(own.seed[0])
    for name, method in METHODS.items():
        returns: dict[str, float] = {}
        curves[name] = []
        for seed in own.seed:
            say(f"{name}, seed {seed}")
            trained = train(method, seed, STEPS)
            chance = torch.Generator().manual_seed(seed)
            returns[str(seed)] = float(evaluated(partial(drawn, trained.actor, chance=chance), seed).mean())
            curves[name].append(trained)
        each = list(returns.values())
        found[name] = {
            "return": float(np.mean(each)),
            "worst": min(each),
            "solved": sum(one >= solved for one in each),
            "returns": returns,
            "variance": varying[name],
        }
    draw(own.out / PICTURE, curves, own.seed, solved)
    rows = {
        name: {
            "return": f"{one['return']:.1f}",
            "worst seed": f"{one['worst']:.1f}",
            "solved": f"{one['solved']} of {len(own.seed)}",
            "gradient's variance": f"{one['variance']:.3f}",
        }
        for name, one in found.items()
    }
    sentence = (
        f"Return: mean of 100 new episodes, actions drawn from the policy, over seeds {', '.join(map(str, own.seed))}; "
        f"solved from {solved:.0f} on. Gradient's variance: of one episode, of a policy that returns {ABLE}; "
        "REINFORCE's is the unit."
    )
    results = {"seeds": own.seed, "steps": STEPS, "methods": found}
    report(own.out, PICTURE, results, table(f"CartPole after {STEPS:,} steps", rows), sentence)
    return EXIT_DONE


def draw(path: Path, curves: Mapping[str, Sequence[Trained]], seeds: Sequence[int], solved: float) -> None:
    """The return of each method over the steps, mean of the seeds, and PPO's of each seed."""
    grid = np.linspace(0, STEPS, 200)
    with plotted(path, "mean of the seeds", "PPO, each seed") as (methods, each):
        for name, trainings in curves.items():
            smooth = [np.interp(grid, one.steps, running_mean(one.returns, WINDOW)) for one in trainings]
            methods.plot(grid, np.mean(smooth, axis=0), label=name)
            if name == "PPO":
                for seed, curve in zip(seeds, smooth, strict=True):
                    each.plot(grid, curve, linewidth=1, label=f"seed {seed}")
        for axis in (methods, each):
            axis.axhline(solved, color="black", linestyle="--", linewidth=1)
            axis.set(ylabel=f"return, mean of {WINDOW} episodes", ylim=(0, 510))


if __name__ == "__main__":
    main()
