"""What PPO computes from a rollout, as pure functions: rewards, advantages, the clipped losses, and what is watched.

A rollout has N completions of up to C tokens, padded on the right. Everything here is per token, [N, C], and
`mask`, bool [N, C], is True on the tokens of a completion, its end-of-sequence token among them. The state of token t
is the prompt and the tokens before it, the action is the token itself.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

Total = Callable[[torch.Tensor], torch.Tensor]


def kl_penalised_rewards(
    scores: torch.Tensor,
    log_probs: torch.Tensor,
    reference_log_probs: torch.Tensor,
    mask: torch.Tensor,
    kl_coef: float,
) -> torch.Tensor:
    """Reward of every token: a toll for leaving the reference, and the score of the whole completion at its last token.

        r_t = -kl_coef (log pi(t) - log pi_ref(t)) + score [t is the last token]

    Summed over a completion this is R(x, y) = score - kl_coef log(pi(y|x) / pi_ref(y|x)): Ziegler et al.
    (arXiv 1909.08593), equation 2; InstructGPT (arXiv 2203.02155), equation 2 without its pretraining term.

    Args:
        scores: [N], of the reward model or the reward functions.
        log_probs: [N, C], of the policy that sampled the tokens.
        reference_log_probs: [N, C], of the frozen start.
        mask: [N, C], at least one token a row.
        kl_coef: beta of the papers.

    Returns:
        [N, C], 0 on padding.
    """
    rewards = (-kl_coef * (log_probs - reference_log_probs)).masked_fill(~mask, 0.0)
    last = mask.sum(dim=1, keepdim=True) - 1
    return rewards.scatter_add(1, last, scores[:, None].to(rewards.dtype))


def adapted_kl_coef(kl_coef: float, kl: float, target_kl: float, samples: int, horizon: int) -> float:
    """The next rollout's price of a nat: Ziegler et al.'s controller (arXiv 1909.08593, section 2.2), as TRL had it.

        error   = clip(kl / target_kl - 1, -0.2, 0.2)
        kl_coef <- kl_coef (1 + error samples / horizon)

    The paper's gain, 0.1 a step, is TRL's samples / horizon.

    Args:
        kl: nats an answer from the reference, the mean of a rollout.
        target_kl: what it is to be, above 0.
        samples: completions of the rollout.
        horizon: completions in which a constant error of 0.2 multiplies the price by e^0.2, about 1.2.
    """
    error = min(max(kl / target_kl - 1, -0.2), 0.2)
    return kl_coef * (1 + error * samples / horizon)


def generalized_advantages(
    rewards: torch.Tensor, values: torch.Tensor, mask: torch.Tensor, gamma: float, lam: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Generalised advantage estimation (arXiv 1506.02438, equations 10 and 16) over finite episodes.

        delta_t = r_t + gamma V_{t+1} - V_t
        A_t     = delta_t + gamma lam A_{t+1}     (= sum over l of (gamma lam)^l delta_{t+l})

    The episode ends with the last token: V and A are 0 after it. That holds for a completion cut off at the length
    limit too. Its score is of the text as it stands, so that nothing is to come that a value could stand for, and a
    policy that is to finish in time has to feel the limit.

    Args:
        rewards: [N, C].
        values: [N, C], the critic's V of each token's state.
        mask: [N, C].
        gamma: discount.
        lam: 1 gives the discounted return minus the value (no bias), 0 the one-step temporal difference (least
            variance).

    Returns:
        Advantages and returns, both [N, C] and 0 on padding. The returns A_t + V_t are what the critic learns.
    """
    rewards, values = rewards.masked_fill(~mask, 0.0), values.masked_fill(~mask, 0.0)
    next_value = next_advantage = torch.zeros_like(values[:, 0])
    backwards = []
    for t in reversed(range(values.size(1))):
        delta = rewards[:, t] + gamma * next_value - values[:, t]
        # on padding rewards and values are 0, and what is carried stays 0 until the last token
        next_value, next_advantage = values[:, t], delta + gamma * lam * next_advantage
        backwards.append(next_advantage)
    advantages = torch.stack(backwards[::-1], dim=1)
    return advantages, advantages + values


def clipped_policy_loss(
    log_probs: torch.Tensor, old_log_probs: torch.Tensor, advantages: torch.Tensor, cliprange: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """PPO's clipped surrogate (arXiv 1707.06347, equation 7) as a loss for each token.

        ratio = exp(log pi(t) - log pi_old(t))
        loss  = -min(ratio A, clip(ratio, 1 - cliprange, 1 + cliprange) A)

    If the clip binds, the gradient is 0: the ratio has gone as far in the advantage's direction as it may. At
    ratio 1, as in the first update after a rollout, the gradient is the policy gradient -A grad log pi.

    Returns:
        The loss and whether the clip binds, both [N, C].
    """
    ratio = (log_probs - old_log_probs).exp()
    unclipped = -advantages * ratio
    clipped = -advantages * ratio.clamp(1 - cliprange, 1 + cliprange)
    return torch.maximum(unclipped, clipped), clipped > unclipped


def clipped_value_loss(
    values: torch.Tensor, old_values: torch.Tensor, returns: torch.Tensor, cliprange: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Half the squared error of the critic for each token; no gain from moving further than `cliprange` a rollout.

        clipped = V_old + clip(V - V_old, -cliprange, cliprange)
        loss    = max((V - return)^2, (clipped - return)^2) / 2

    Not in the paper: OpenAI's baselines clip the value so, and the RLHF implementations after them.

    Returns:
        The loss and whether the clip binds, both [N, C].
    """
    error = (values - returns).square()
    clipped_error = (old_values + (values - old_values).clamp(-cliprange, cliprange) - returns).square()
    return 0.5 * torch.maximum(error, clipped_error), clipped_error > error


def approximate_kl(log_probs: torch.Tensor, old_log_probs: torch.Tensor) -> torch.Tensor:
    """KL(old || new) at each token, [N, C], estimated from tokens that the old policy sampled.

    ratio - 1 - log ratio: unbiased, never negative, and of low variance (k3 of http://joschu.net/blog/kl-approx.html).
    """
    log_ratio = log_probs - old_log_probs
    return log_ratio.exp() - 1 - log_ratio


def masked_mean(values: torch.Tensor, mask: torch.Tensor, total: Total = lambda part: part) -> torch.Tensor:
    """Mean over the tokens, whatever stands on the padding.

    Args:
        values: [N, C].
        mask: [N, C].
        total: sums a number over all processes, for the mean of a rollout that is spread over them.
    """
    return total(values.masked_fill(~mask, 0.0).sum()) / total(mask.sum())


def whiten(
    values: torch.Tensor, mask: torch.Tensor, total: Total = lambda part: part, keep_mean: bool = False
) -> torch.Tensor:
    """`values` [N, C] with mean 0 (or their own, `keep_mean`) and variance 1 over the tokens; 0 on padding."""
    mean = masked_mean(values, mask, total)
    variance = masked_mean((values - mean).square(), mask, total)
    whitened = (values - mean) * torch.rsqrt(variance + 1e-8)  # all equal: 0, not 0 / 0
    return (whitened + mean if keep_mean else whitened).masked_fill(~mask, 0.0)


def explained_variance(
    values: torch.Tensor, returns: torch.Tensor, mask: torch.Tensor, total: Total = lambda part: part
) -> torch.Tensor:
    """1 - Var(return - V) / Var(return) over the tokens: 1 is a perfect critic, 0 one no better than a constant."""

    def variance(of: torch.Tensor) -> torch.Tensor:
        return masked_mean((of - masked_mean(of, mask, total)).square(), mask, total)

    return 1 - variance(returns - values) / variance(returns)
