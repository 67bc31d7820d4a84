"""Policy and critic in one module, and what they say of the tokens of a completion."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel
from trl.trainer.utils import entropy_from_logits, selective_log_softmax

from r1_aqa_repro.model.inputs import position_ids_of


class ActorCritic(nn.Module):
    """Policy and critic as one module: wrapped once, with one optimizer and one backward pass for both.

    Args:
        policy: a causal language model.
        critic: a reward model of one output, read at every token instead of at the last alone.
    """

    is_gradient_checkpointing = False  # what TRL asks before it generates; nothing is checkpointed in eval mode

    def __init__(self, policy: PreTrainedModel, critic: PreTrainedModel):
        super().__init__()
        self.policy, self.critic = policy, critic
        self.config = policy.config  # read by Trainer, DeepSpeed and TensorBoard

    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        completion_length: int,
        temperature: float,
        entropy_gradient: bool = False,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Log-probabilities, entropies and values of the last `completion_length` tokens, float32 [N, C] each."""
        log_probs, entropies = score_tokens(
            self.policy, input_ids, attention_mask, completion_length, temperature, entropy_gradient
        )
        hidden = self.critic.base_model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids_of(attention_mask),
            use_cache=False,
        ).last_hidden_state
        # a token's value is read where the token is predicted: one position before it
        values = self.critic.score(hidden[:, -completion_length - 1 : -1])[..., 0].float()
        return log_probs, entropies, values

    def activation_checkpointing_enable(self, **options: Any) -> None:
        self.policy.activation_checkpointing_enable(**options)
        self.critic.activation_checkpointing_enable(**options)

    def num_parameters(self) -> int:
        return self.policy.num_parameters() + self.critic.num_parameters()


def score_tokens(
    policy: nn.Module,
    input_ids: torch.Tensor,
    attention_mask: torch.Tensor,
    completion_length: int,
    temperature: float,
    entropy_gradient: bool = False,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Log-probabilities and entropies of the last `completion_length` tokens under a policy, float32 [N, C].

    Args:
        policy: a causal language model, wrapped or not.
        input_ids: [N, P + C], prompts padded on the left, completions on the right.
        attention_mask: the same shape.
        completion_length: C.
        temperature: divides the logits, as in sampling.
        entropy_gradient: whether the entropies are to be differentiated; it takes memory.
    """
    output = policy(
        input_ids=input_ids,
        attention_mask=attention_mask,
        position_ids=position_ids_of(attention_mask),
        use_cache=False,
        logits_to_keep=completion_length + 1,
    )
    return of_logits(output.logits[:, :-1], input_ids[:, -completion_length:], temperature, entropy_gradient)


def of_logits(
    logits: torch.Tensor, token_ids: torch.Tensor, temperature: float, entropy_gradient: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    """What logits [N, C, V] say of the tokens [N, C] that followed: log-probabilities and entropies, see
    `score_tokens`."""
    logits = logits.float() / temperature
    log_probs = selective_log_softmax(logits, token_ids)
    return log_probs, entropy_from_logits(logits if entropy_gradient else logits.detach())
