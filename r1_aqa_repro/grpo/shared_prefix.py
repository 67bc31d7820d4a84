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
from typing import Any

import torch

from r1_aqa_repro.model.inputs import IGNORE, position_ids_of
from r1_aqa_repro.model.shared_attention import PackedAttention

# One mask up to this many times the pairs of positions that have to be computed, two beyond.
SPLIT_FROM = 2.0


@dataclass(frozen=True)
class PackedGroups:
    """U packed rows of T = P + K * C positions (P: prompt length less one, C: longest completion, K: largest group).

    input_ids: int64 [U, T].
    real: bool [U, T], False on padding.
    position_ids: int64 [U, T].
    shift_labels: int64 [U, T], the token that each position predicts, -100 if it is not scored.
    group, slot: int64 [N], where each of the N completions lies: its packed row and its segment in it.
    prefix_length, num_slots: P and K.
    """

    input_ids: torch.Tensor
    real: torch.Tensor
    position_ids: torch.Tensor
    shift_labels: torch.Tensor
    group: torch.Tensor
    slot: torch.Tensor
    prefix_length: int
    num_slots: int

    @property
    def scored(self) -> torch.Tensor:
        """bool [U, T], the S positions that predict a completion's token."""
        return self.shift_labels != IGNORE

    @property
    def segment_length(self) -> int:
        """C."""
        return (self.real.size(1) - self.prefix_length) // self.num_slots

    def attention(self) -> dict[str, Any]:
        """The model's keyword arguments that keep completions apart: one mask [U, 1, T, T], or two smaller ones.

        With one mask all T * T pairs of positions are computed, most of them in vain if completions are long. With
        two, keys and values of the prefix are copied to every segment.
        """
        if self.pairs_of_one_mask() <= SPLIT_FROM:
            return {"attention_mask": self.joint_mask()}
        prefix_mask, segment_mask = self.split_masks()
        return {"attention_mask": segment_mask, "packed": PackedAttention(prefix_mask, self.num_slots)}

    def pairs_of_one_mask(self) -> float:
        """Pairs of positions that one mask computes, over those of two: at least 1."""
        prefix, segment = self.prefix_length, self.segment_length
        return self.real.size(1) ** 2 / (prefix**2 + self.num_slots * segment * (prefix + segment))

    def joint_mask(self) -> torch.Tensor:
        """bool [U, 1, T, T], True if the row's position may attend to the column's.

        The diagonal is always allowed: a padding row without any allowed column would give NaN in the softmax.
        """
        device = self.real.device
        segment = torch.cat(
            [
                torch.zeros(self.prefix_length, dtype=torch.long, device=device),
                torch.arange(1, self.num_slots + 1, device=device).repeat_interleave(self.segment_length),
            ]
        )  # 0 in the prefix, k in segment k
        visible = (segment[None, :] == 0) | (segment[:, None] == segment[None, :])
        return _causal(self.real, visible.tril())

    def split_masks(self) -> tuple[torch.Tensor | None, torch.Tensor]:
        """The prefix's own mask, bool [U, 1, P, P], and that of a segment, bool [U or 1, 1, C, P + C].

        If no prompt is padded, the first is None (causal) and the second the same for all rows. Padding at the end of
        a segment needs no mask: nothing real comes after it.
        """
        prefix, length, device = self.prefix_length, self.segment_length, self.real.device
        own = torch.ones(length, length, dtype=torch.bool, device=device).tril()
        if bool(self.real[:, :prefix].all()):
            return None, torch.cat([own.new_ones(length, prefix), own], dim=1)[None, None]
        real = self.real[:, :prefix]
        to_prefix = real[:, None, None].expand(-1, 1, length, -1)
        causal = torch.ones(prefix, prefix, dtype=torch.bool, device=device).tril()
        return _causal(real, causal), torch.cat([to_prefix, own.expand(len(real), 1, -1, -1)], dim=3)

    def unpack(self, values: torch.Tensor) -> torch.Tensor:
        """Values of the scored positions [S] as per-token values of the N completions [N, C], 0 on their padding.

        The completions come in their original order. With no scored position at all the result still depends on
        `values`, so that a backward through it works.
        """
        scored = self.scored
        spread = values.new_zeros(scored.shape).masked_scatter(scored, values)
        segments = spread[:, self.prefix_length :].unflatten(1, (self.num_slots, -1))  # [U, K, C]
        return segments[self.group, self.slot]


def pack_groups(
    input_ids: torch.Tensor,
    attention_mask: torch.Tensor,
    group: torch.Tensor,
    completion_length: int,
    pad_token_id: int,
    scored: torch.Tensor | None = None,
) -> PackedGroups:
    """Pack N completions by their group.

    Args:
        input_ids: int64 [N, L + C], prompts padded on the left to L, completions padded on the right to C.
        attention_mask: [N, L + C], 1 on real tokens.
        group: int64 [N], values in 0..U-1, each at least once; rows of a group hold the same prompt, in any order.
        completion_length: C.
        pad_token_id: fills the segments of groups with fewer than K completions.
        scored: bool [N, C], the completion tokens to score; all unless given.
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
    wanted = mask[:, prompt_length:] if scored is None else mask[:, prompt_length:] & scored
    completion = input_ids[:, prompt_length:].masked_fill(~wanted, IGNORE)

    real = torch.cat([prefix_mask, segment_mask.flatten(1)], dim=1)  # [U, T]
    offsets = torch.arange(completion_length, device=device).repeat(num_slots)  # [K * C]
    return PackedGroups(
        input_ids=torch.cat([input_ids[first_row, :prefix_length], segment_ids.flatten(1)], dim=1),
        real=real,
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


def _causal(real: torch.Tensor, visible: torch.Tensor) -> torch.Tensor:
    """[U, T] real positions and who may see whom [T, T] -> bool [U, 1, T, T] with its diagonal allowed."""
    diagonal = torch.eye(len(visible), dtype=torch.bool, device=real.device)
    return ((visible[None] & real[:, None, :]) | diagonal)[:, None]
