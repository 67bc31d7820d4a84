"""PPO's formulas against numbers worked out by hand, against independent formulations, and by their invariants.

Random inputs are float64: where two formulations are compared, what is left between them is rounding, some 1e-15 of
values of the order of 1 to 10, and 1e-12 leaves room for the order of the sums.
"""

from __future__ import annotations

import math
from itertools import product

import pytest
import torch

from r1_aqa_repro.ppo.objectives import (
    approximate_kl,
    clipped_policy_loss,
    clipped_value_loss,
    explained_variance,
    generalized_advantages,
    kl_penalised_rewards,
    masked_mean,
    whiten,
)

LENGTHS = (1, 5, 3, 7)  # tokens of the completions


def assert_exact(one: torch.Tensor, other: torch.Tensor) -> None:
    torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)


def random(seed: int, rows: int = len(LENGTHS), columns: int = max(LENGTHS)) -> torch.Tensor:
    return torch.randn(rows, columns, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def mask() -> torch.Tensor:
    return torch.arange(max(LENGTHS)) < torch.tensor(LENGTHS)[:, None]


def tensor(*rows: list[float]) -> torch.Tensor:
    return torch.tensor(rows, dtype=torch.float64)


# --- Rewards


def test_rewards_by_hand() -> None:
    log_probs = tensor([-1.0, -2.0, -3.0], [-1.0, -1.0, -7.0])
    reference = tensor([-1.5, -2.0, -1.0], [-2.0, -3.0, -9.0])
    mask = torch.tensor([[True, True, True], [True, True, False]])
    rewards = kl_penalised_rewards(torch.tensor([10.0, 20.0]), log_probs, reference, mask, kl_coef=0.1)
    # log-ratios 0.5, 0, -2 and 1, 2: the score joins the last token's toll; nothing on the padding
    assert_exact(rewards, tensor([-0.05, 0.0, 0.2 + 10.0], [-0.1, -0.2 + 20.0, 0.0]))


# --- Advantages


def test_advantages_by_hand() -> None:
    """Three tokens, a score of 1 at the end, gamma 0.9, lambda 0.5.

    delta_2 = 1 + 0.9 * 0   - 0.8 =  0.2     A_2 =  0.2
    delta_1 = 0 + 0.9 * 0.8 - 0.6 =  0.12    A_1 =  0.12 + 0.45 * 0.2  = 0.21
    delta_0 = 0 + 0.9 * 0.6 - 0.5 =  0.04    A_0 =  0.04 + 0.45 * 0.21 = 0.1345
    """
    rewards, values = tensor([0.0, 0.0, 1.0]), tensor([0.5, 0.6, 0.8])
    advantages, returns = generalized_advantages(rewards, values, torch.ones(1, 3, dtype=torch.bool), 0.9, 0.5)
    assert_exact(advantages, tensor([0.1345, 0.21, 0.2]))
    assert_exact(returns, tensor([0.6345, 0.81, 1.0]))


def discounted_deltas(rewards: torch.Tensor, values: torch.Tensor, gamma: float, lam: float) -> list[float]:
    """Equation 16 as it is printed: for each t, the sum over l of (gamma lam)^l delta_{t+l}. [C] of one completion."""
    r, v = rewards.tolist(), [*values.tolist(), 0.0]
    delta = [r[t] + gamma * v[t + 1] - v[t] for t in range(len(r))]
    return [sum((gamma * lam) ** (k - t) * delta[k] for k in range(t, len(r))) for t in range(len(r))]


@pytest.mark.parametrize(("gamma", "lam"), list(product((1.0, 0.97), (0.0, 0.5, 0.95, 1.0))))
def test_advantages_are_sums_of_discounted_deltas(mask: torch.Tensor, gamma: float, lam: float) -> None:
    rewards, values = random(3), random(4)
    advantages, returns = generalized_advantages(rewards, values, mask, gamma, lam)
    for row, length in enumerate(LENGTHS):
        expected = discounted_deltas(rewards[row, :length], values[row, :length], gamma, lam)
        assert_exact(advantages[row, :length], torch.tensor(expected, dtype=torch.float64))
        assert not advantages[row, length:].any() and not returns[row, length:].any()
    assert_exact(returns[mask], (advantages + values)[mask])


# --- Losses


def policy_loss(new: float, old: float, advantage: float, cliprange: float) -> tuple[float, bool]:
    """Equation 7 for one token, case by case: (loss, whether the gradient is cut off)."""
    ratio = math.exp(new - old)
    if advantage > 0 and ratio > 1 + cliprange:
        return -(1 + cliprange) * advantage, True
    if advantage < 0 and ratio < 1 - cliprange:
        return -(1 - cliprange) * advantage, True
    return -ratio * advantage, False


def value_loss(new: float, old: float, target: float, cliprange: float) -> tuple[float, bool]:
    """The value clip for one token, case by case."""
    moved = min(max(new, old - cliprange), old + cliprange)
    if (moved - target) ** 2 > (new - target) ** 2:
        return (moved - target) ** 2 / 2, True
    return (new - target) ** 2 / 2, False


@pytest.mark.parametrize("which", ["policy", "value"])
def test_clipped_losses_token_by_token(which: str) -> None:
    old, target = random(9, 20, 20), random(10, 20, 20)
    new = old + 0.5 * random(8, 20, 20)  # steps of half: about two of three beyond the clip at 0.2
    vectorised, scalar = (clipped_policy_loss, policy_loss) if which == "policy" else (clipped_value_loss, value_loss)
    loss, clipped = vectorised(new, old, target, 0.2)
    tokens = list(zip(new.flatten().tolist(), old.flatten().tolist(), target.flatten().tolist(), strict=True))
    expected = [scalar(*token, 0.2) for token in tokens]
    assert_exact(loss.flatten(), torch.tensor([e[0] for e in expected], dtype=torch.float64))
    assert clipped.flatten().tolist() == [e[1] for e in expected]
    assert 50 < clipped.sum() < 350  # of 400: both sides are met


def test_the_first_update_follows_the_policy_gradient(mask: torch.Tensor) -> None:
    """At ratio 1 PPO is REINFORCE with these advantages: the same gradient in the logits, not only in the log-probs."""
    logits = torch.randn(*mask.shape, 11, dtype=torch.float64, generator=torch.Generator().manual_seed(14))
    actions = torch.randint(11, mask.shape, generator=torch.Generator().manual_seed(15))
    advantages = random(16)
    logits.requires_grad_()
    log_probs = logits.log_softmax(-1).gather(-1, actions[..., None])[..., 0]
    loss, clipped = clipped_policy_loss(log_probs, log_probs.detach(), advantages, 0.2)
    (ppo,) = torch.autograd.grad(masked_mean(loss, mask), logits, retain_graph=True)
    (reinforce,) = torch.autograd.grad(-(advantages * log_probs)[mask].mean(), logits)
    assert not clipped.any()
    assert_exact(ppo, reinforce)
    assert ppo[mask].any() and not ppo[~mask].any()


# --- What is watched


def test_approximate_kl_is_the_kl_on_average() -> None:
    """Averaged over all tokens with their old probabilities, the estimate is the exact divergence."""
    old, new = random(17, 1, 50).log_softmax(-1), random(18, 1, 50).log_softmax(-1)
    estimate = approximate_kl(new, old)
    exact = (old.exp() * (old - new)).sum()
    assert_exact((old.exp() * estimate).sum(), exact)
    assert (estimate >= 0).all() and exact > 0.1
    assert not approximate_kl(old, old).any()


def test_whitened_values_have_mean_0_and_variance_1(mask: torch.Tensor) -> None:
    values = 5 + 3 * random(19)
    whitened = whiten(values, mask)
    assert float(whitened[mask].mean()) == pytest.approx(0, abs=1e-12)
    # the 1e-8 under the root changes a variance of about 9 by 1e-9 of it
    assert float(whitened[mask].var(correction=0)) == pytest.approx(1, abs=1e-8)
    shifted = whiten(values, mask, keep_mean=True)
    assert_exact((shifted - whitened)[mask], values[mask].mean().expand(int(mask.sum())))
    assert not whiten(torch.full_like(values, 0.25), mask).any()  # all equal: nothing to learn from, not NaN


def test_explained_variance() -> None:
    returns = tensor([1.0, 2.0, 3.0, 4.0])
    mask = torch.ones(1, 4, dtype=torch.bool)
    assert float(explained_variance(returns, returns, mask)) == 1
    assert float(explained_variance(returns + 7, returns, mask)) == pytest.approx(1)  # an offset is not variance
    assert float(explained_variance(torch.zeros_like(returns), returns, mask)) == 0
    # errors -1, 1, -1, 1 have variance 1, the returns 1.25
    assert float(explained_variance(tensor([2.0, 1.0, 4.0, 3.0]), returns, mask)) == pytest.approx(1 - 1 / 1.25)
    assert float(explained_variance(-returns, returns, mask)) == pytest.approx(-3)  # worse than a constant


@pytest.mark.parametrize("garbage", [1e6, -1e6, float("nan"), float("inf")])
def test_padding_never_matters(mask: torch.Tensor, garbage: float) -> None:
    inputs = [random(seed) for seed in range(30, 34)]
    soiled = [values.masked_fill(~mask, garbage) for values in inputs]
    scores = random(34)[:, 0]

    def everything(a: torch.Tensor, b: torch.Tensor, c: torch.Tensor, d: torch.Tensor) -> list[torch.Tensor]:
        advantages, returns = generalized_advantages(a, b, mask, 0.9, 0.8)
        return [
            kl_penalised_rewards(scores, a, b, mask, 0.2),
            advantages,
            returns,
            whiten(a, mask),
            explained_variance(a, b, mask),
            *(masked_mean(loss, mask) for loss in clipped_policy_loss(a, b, c, 0.2)),
            *(masked_mean(loss, mask) for loss in clipped_value_loss(b, c, d, 0.2)),
            masked_mean(approximate_kl(a, b), mask),
        ]

    for clean, dirty in zip(everything(*inputs), everything(*soiled), strict=True):
        assert torch.equal(clean, dirty)
