"""Log-probabilities of a rollout's completions by one forward of the model, with and without sharing their prompts."""

from __future__ import annotations

import torch

from r1_aqa_repro.grpo.rollout import Rollout
from r1_aqa_repro.grpo.shared_prefix import pack_groups
from r1_aqa_repro.model.inputs import IGNORE


def score_shared(
    model: torch.nn.Module,
    rollout: Rollout,
    input_ids: torch.Tensor,
    attention_mask: torch.Tensor,
    completion_length: int,
    pad_token_id: int,
    scored: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """One packed row a group, one forward of the wrapped model: DDP, ZeRO and PEFT hooks fire as usual.

    Args:
        model: policy or reference, wrapped or not.
        rollout: what the rows belong to, and the clips.
        input_ids: int64 [N, L + C], prompts padded on the left, completions on the right.
        attention_mask: the same shape; rows without any completion token are not computed.
        completion_length: C.
        pad_token_id: fills packed rows.
        scored: bool [N, C], the completion tokens whose log-probabilities are wanted; all unless given.

    Returns:
        Log-probabilities of the completion tokens, [N, C], 0 on padding and on what is not scored, and entropies, if
        the model gives them.
    """
    rows = attention_mask[:, -completion_length:].any(dim=1).nonzero().squeeze(1)  # the others are masked out
    rows = rows if len(rows) else rows.new_zeros(1)  # every process must call the model
    present, group = rollout.group[rows].unique(return_inverse=True)
    wanted = None if scored is None else scored[rows]
    packed = pack_groups(input_ids[rows], attention_mask[rows], group, completion_length, pad_token_id, wanted)
    output = model(
        input_ids=packed.input_ids,
        position_ids=packed.position_ids,
        **packed.attention(),
        shift_labels=packed.shift_labels[packed.scored][None],
        scored=packed.scored,
        fused_lm_head=True,
        **rollout.inputs.audio(input_ids.device, present),
    )

    def of_rows(values: torch.Tensor) -> torch.Tensor:
        unpacked = packed.unpack(values[0])
        return unpacked.new_zeros(len(input_ids), completion_length).index_copy(0, rows, unpacked)

    entropy = getattr(output, "entropy", None)
    return of_rows(output.log_probs), None if entropy is None else of_rows(entropy)


def score_plain(
    model: torch.nn.Module,
    rollout: Rollout,
    input_ids: torch.Tensor,
    attention_mask: torch.Tensor,
    completion_length: int,
    pad_token_id: int,
    scored: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """The same from every row with its own prompt and its own clip, as TRL does it: the comparison for sharing."""
    labels = input_ids.masked_fill(attention_mask == 0, IGNORE)
    labels[:, :-completion_length] = IGNORE
    if scored is not None:
        labels[:, -completion_length:].masked_fill_(~scored, IGNORE)
    output = model(
        input_ids=input_ids,
        attention_mask=attention_mask,
        labels=labels,
        fused_lm_head=True,
        **rollout.inputs.audio(input_ids.device, rollout.group, trim=False),
    )
    entropy = getattr(output, "entropy", None)
    kept = slice(-completion_length, None)
    return output.log_probs[:, kept], None if entropy is None else entropy[:, kept]
