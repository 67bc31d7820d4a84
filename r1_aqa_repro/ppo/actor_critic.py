"""Policy and critic in one module, and what they say of the tokens of a completion."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from peft import PeftModel, load_peft_weights, set_peft_model_state_dict
from torch import nn
from transformers import PreTrainedModel
from trl.trainer.utils import entropy_from_logits, selective_log_softmax

from r1_aqa_repro.common.errors import Failed
from r1_aqa_repro.model.inputs import position_ids_of
from r1_aqa_repro.model.loading import base_of


class ActorCritic(nn.Module):
    """Policy and critic as one module: wrapped once, with one optimizer and one backward pass for both.

    Args:
        policy: a causal language model, or a PEFT model of one.
        critic: a reward model of one output, or a PEFT model of one, read at every token instead of at the last alone.
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
        critic = base_of(self.critic)  # with its adapter inside
        hidden = critic.base_model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids_of(attention_mask),
            use_cache=False,
        ).last_hidden_state
        # a token's value is read where the token is predicted: one position before it
        values = critic.score(hidden[:, -completion_length - 1 : -1])[..., 0].float()
        return log_probs, entropies, values

    def activation_checkpointing_enable(self, **options: Any) -> None:
        for network in (self.policy, self.critic):
            network.activation_checkpointing_enable(**options)
            if isinstance(network, PeftModel):  # nothing before the first adapter would need a gradient
                network.enable_input_require_grads()

    def num_parameters(self) -> int:
        return self.policy.num_parameters() + self.critic.num_parameters()

    def get_base_model(self) -> PreTrainedModel:
        """The policy without its adapter: what a model card describes."""
        return base_of(self.policy)


def restore_adapter(network: PeftModel, folder: Path) -> None:
    """Load the weights of an adapter, and of what is trained beside it, as `save_pretrained` wrote them.

    Raises:
        Failed: they are not all there, or others are.
    """
    saved = load_peft_weights(str(folder), device="cpu")
    found = set_peft_model_state_dict(network, saved)
    trained = {name for name, parameter in network.named_parameters() if parameter.requires_grad}
    if wrong := sorted(trained & set(found.missing_keys)) + list(found.unexpected_keys):
        raise Failed(
            f"{folder} does not hold the adapter that is trained: {wrong[0]} and {len(wrong) - 1} others differ"
        )


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
