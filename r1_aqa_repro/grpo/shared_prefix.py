"""Packing a group's completions behind one copy of their prompt: pure functions on tensors.

A group of up to K completions of one prompt becomes one row

    [ prompt without its last token | segment 1 | ... | segment K ]
      segment k = [ last prompt token, completion k without its last token ]

A segment attends to the whole prompt and, causally, to itself; never to another segment. Positions start again after
the prompt in every segment. Since each segment has its own copy of the last prompt token, every completion token has
its own predicting position, and the row is scored by a single forward of the model. The log-probabilities are those
of the plain forward, at P + K * C positions instead of K * (P + C).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from r1_aqa_repro.inputs import IGNORE, position_ids_of


@dataclass(frozen=True)
class PackedGroups:
    """U packed rows of T = P + K * C positions (P: prompt length less one, C: longest completion, K: largest group).

    input_ids: int64 [U, T].
    attention_mask: bool [U, 1, T, T], True where the row's position may attend to the column's.
    position_ids: int64 [U, T].
    shift_labels: int64 [U, T], the token that each position predicts, -100 where it is not scored.
    group, slot: int64 [N], where each of the N completions lies: its packed row and its segment in it.
    prefix_length, num_slots: P and K.
    """

    input_ids: torch.Tensor
    attention_mask: torch.Tensor
    position_ids: torch.Tensor
    shift_labels: torch.Tensor
    group: torch.Tensor
    slot: torch.Tensor
    prefix_length: int
    num_slots: int

    def unpack(self, values: torch.Tensor) -> torch.Tensor:
        """Per-position values [U, T] as per-token values of the N completions [N, C], in their original order."""
        segments = values[:, self.prefix_length :].unflatten(1, (self.num_slots, -1))  # [U, K, C]
        return segments[self.group, self.slot]


def pack_groups(
    input_ids: torch.Tensor,
    attention_mask: torch.Tensor,
    group: torch.Tensor,
    completion_length: int,
    pad_token_id: int,
) -> PackedGroups:
    """Pack N completions by their group.

    Args:
        input_ids: int64 [N, L + C], prompts padded on the left to L, completions padded on the right to C.
        attention_mask: [N, L + C], 1 on real tokens.
        group: int64 [N], values in 0..U-1, each at least once; rows of a group hold the same prompt, in any order.
        completion_length: C.
        pad_token_id: fills the segments of groups with fewer than K completions.
    """
    device = input_ids.device
    prompt_length = input_ids.size(1) - completion_length  # L
    prefix_length = prompt_length - 1  # P
    num_rows = int(group.max()) + 1  # U
    same_group = group[None, :] == group[:, None]  # [N, N]
    slot = same_group.tril(-1).sum(1)  # a row's rank within its group
    num_slots = int(slot.max()) + 1  # K
    first_row = (slot == 0).nonzero().squeeze(1)  # one row of each group: its prompt is the group's
    first_row = first_row[group[first_row].argsort()]  # [U]

    def segments(values: torch.Tensor, fill: int) -> torch.Tensor:  # [N, C] -> [U, K, C]
        packed = values.new_full((num_rows, num_slots, completion_length), fill)
        packed[group, slot] = values
        return packed

    mask = attention_mask.bool()
    prefix_mask = mask[first_row, :prefix_length]  # [U, P]
    inside = slice(
        prefix_length, prefix_length + completion_length
    )  # last prompt token ... last completion token but one
    segment_ids = segments(input_ids[:, inside], pad_token_id)
    segment_mask = segments(mask[:, inside], 0)
    completion = input_ids[:, prompt_length:].masked_fill(~mask[:, prompt_length:], IGNORE)

    real = torch.cat([prefix_mask, segment_mask.flatten(1)], dim=1)  # [U, T]
    offsets = torch.arange(completion_length, device=device).repeat(num_slots)  # [K * C]
    return PackedGroups(
        input_ids=torch.cat([input_ids[first_row, :prefix_length], segment_ids.flatten(1)], dim=1),
        attention_mask=_attention_mask(real, prefix_length, num_slots, completion_length),
        position_ids=torch.cat([position_ids_of(prefix_mask), prefix_mask.sum(1, keepdim=True) + offsets], dim=1),
        shift_labels=torch.cat(
            [
                torch.full((num_rows, prefix_length), IGNORE, device=device),
                segments(completion, IGNORE).flatten(1),
            ],
            dim=1,
        ),
        group=group,
        slot=slot,
        prefix_length=prefix_length,
        num_slots=num_slots,
    )


def _attention_mask(real: torch.Tensor, prefix_length: int, num_slots: int, segment_length: int) -> torch.Tensor:
    """[U, T] real positions -> bool [U, 1, T, T].

    The diagonal is always allowed: a padding row without any allowed column would give NaN in the softmax.
    """
    device = real.device
    segment = torch.cat(
        [
            torch.zeros(prefix_length, dtype=torch.long, device=device),
            torch.arange(1, num_slots + 1, device=device).repeat_interleave(segment_length),
        ]
    )  # 0 in the prefix, k in segment k
    index = torch.arange(len(segment), device=device)
    causal = index[:, None] >= index[None, :]
    visible = (segment[None, :] == 0) | (segment[:, None] == segment[None, :])
    diagonal = torch.eye(len(segment), dtype=torch.bool, device=device)
    return (((causal & visible)[None] & real[:, None, :]) | diagonal[None])[:, None]
