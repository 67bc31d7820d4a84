"""What PPO keeps of the completions that it has sampled."""

from __future__ import annotations

from dataclasses import dataclass, fields

import torch


@dataclass
class Rollout:
    """N completions as they were sampled, and what the updates need to know of that moment.

    input_ids, attention_mask: [N, P + C], prompts padded on the left, completions on the right.
    mask: bool [N, C], True on the tokens of a completion, its end of sequence among them.
    log_probs, values: [N, C], of policy and critic before any update. 0 on padding, like the next two.
    advantages, returns: [N, C].
    """

    input_ids: torch.Tensor
    attention_mask: torch.Tensor
    mask: torch.Tensor
    log_probs: torch.Tensor
    values: torch.Tensor
    advantages: torch.Tensor
    returns: torch.Tensor

    def __len__(self) -> int:
        return len(self.input_ids)

    def __getitem__(self, rows: torch.Tensor) -> Rollout:
        return Rollout(*(getattr(self, each.name)[rows] for each in fields(self)))


@dataclass
class Answers:
    """N completions, one a prompt, and what they were judged to be.

    rows: `input_ids`, `attention_mask` and `mask` of a `Rollout`.
    completion_ids: of each, with its end of sequence unless it was cut off; ended: bool [N].
    by_function: rewards [N, R], NaN of one that does not apply; scores: [N], of all together.
    log_probs, reference_log_probs, values: [N, C], 0 on padding.
    """

    rows: dict[str, torch.Tensor]
    completion_ids: list[list[int]]
    by_function: torch.Tensor
    scores: torch.Tensor
    ended: torch.Tensor
    log_probs: torch.Tensor
    reference_log_probs: torch.Tensor
    values: torch.Tensor
