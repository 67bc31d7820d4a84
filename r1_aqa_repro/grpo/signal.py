"""Which completions teach something: groups without any difference in reward, and the better ones within a group."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from r1_aqa_repro.run.arguments import ADVANTAGE_FILTERS


def groups_with_signal(rewards: torch.Tensor, num_generations: int) -> torch.Tensor:
    """bool [U], False for groups whose completions [U * G] all got the same reward.

    Decided by the rewards: the advantages of equal ones are only nearly zero where their mean has to be rounded.
    """
    grouped = rewards.view(-1, num_generations)
    return grouped.amax(dim=1) > grouped.amin(dim=1)


def indices_of(mask: torch.Tensor) -> list[int]:
    """Where a mask [U] is True."""
    return mask.nonzero().flatten().tolist()


def better_completions(
    rewards: torch.Tensor, num_generations: int, advantage_filter: str, top_fraction: float
) -> torch.Tensor:
    """bool [U * G], the completions that a filter keeps.

    Args:
        rewards: [U * G], rows of a group one after the other.
        num_generations: G.
        advantage_filter: `none` keeps all; `above_mean` those with a reward above their group's mean;
            `top_fraction` the best of each group, earlier ones first among equals.
        top_fraction: share of a group that `top_fraction` keeps, rounded, at least one.

    Raises:
        ValueError: there is no such filter.
    """
    grouped = rewards.view(-1, num_generations)
    if advantage_filter == "none":
        return torch.ones_like(rewards, dtype=torch.bool)
    if advantage_filter == "above_mean":
        above = grouped > grouped.mean(dim=1, keepdim=True)
        return (above & groups_with_signal(rewards, num_generations)[:, None]).flatten()
    if advantage_filter == "top_fraction":
        kept = max(1, round(top_fraction * num_generations))
        rank = grouped.argsort(dim=1, descending=True, stable=True).argsort(dim=1)
        return (rank < kept).flatten()
    raise ValueError(f"no filter {advantage_filter!r}: choose among {', '.join(ADVANTAGE_FILTERS)}")


def replace_groups(
    output: dict[str, Any],
    further: dict[str, Any],
    pairs: Sequence[tuple[int, int]],
    num_generations: int,
    pad_token_id: int,
) -> dict[str, Any]:
    """`output` with its group `i` replaced by group `j` of `further`, for each pair (i, j).

    Args:
        output, further: what TRL's `_generate_and_score_completions` returns: rows of whole groups, prompts padded on
            the left, completions and all that belongs to their tokens on the right. They may be padded differently.
        num_generations: rows of a group.
        pad_token_id: pads token ids; everything else is padded with 0.
    """
    if not pairs:
        return output
    merged = dict(output)
    for key, values in output.items():
        if not torch.is_tensor(values) or values.dim() == 0:  # counts over the batch: the caller's to renew
            continue
        fill = pad_token_id if key in ("prompt_ids", "completion_ids") else 0
        mine, theirs = _pad_alike(values, further[key], fill, left=key in ("prompt_ids", "prompt_mask"))
        merged[key] = mine.clone()
        for place, group in pairs:
            rows, others = (slice(index * num_generations, (index + 1) * num_generations) for index in (place, group))
            merged[key][rows] = theirs[others]
    return merged


def draw_further(num_questions: int, exclude: Sequence[int], count: int, *seed: int) -> list[int]:
    """`count` indices of questions not in `exclude`: a function of the seeds, so that a resumed run draws the same.

    Raises:
        ValueError: there are fewer questions than that.
    """
    others = np.setdiff1d(np.arange(num_questions), exclude)
    if count > len(others):
        raise ValueError(f"dynamic_sampling draws {count} further prompts, but only {len(others)} questions are left")
    return np.random.default_rng(seed).choice(others, size=count, replace=False).tolist()


def _pad_alike(one: torch.Tensor, other: torch.Tensor, fill: int, left: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """Both tensors [rows, width] (or [rows]) with the width of the wider one."""
    if one.dim() == 1:
        return one, other
    width = max(one.size(1), other.size(1))

    def pad(values: torch.Tensor) -> torch.Tensor:
        missing = width - values.size(1)
        return torch.nn.functional.pad(values, (missing, 0) if left else (0, missing), value=fill)

    return pad(one), pad(other)
