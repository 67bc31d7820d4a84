"""Rollout: one batch on its way through the GRPO trainer, from the rows of the data set to the loss."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from datasets import Dataset

from r1_aqa_repro.grpo.selection import informative_groups
from r1_aqa_repro.model.inputs import PromptInputs


@dataclass
class Rollout:
    """N = U * G completions: G of each of U questions, and everything that is known of them.

    inputs: prompts, and clips if any, of the U questions, computed once each.
    group: int64 [N], the question of each row, in the row order of whoever works on the rollout.
    rows: N rows of the data set (`rows_of`), those of a question one after the other.
    rewards: [N, R], a column for each reward function. Set once the completions are rewarded, as the next two.
    reward: [N], their weighted sums, as TRL forms them: rows of equal rewards have equal sums, to the bit.
    output: what TRL makes of the completions, by name: token ids, masks, advantages, log-probabilities.
    """

    inputs: PromptInputs
    group: torch.Tensor
    rows: list[dict[str, Any]] = field(default_factory=list)
    rewards: torch.Tensor = field(init=False)
    reward: torch.Tensor = field(init=False)
    output: dict[str, Any] = field(init=False)

    @property
    def num_generations(self) -> int:
        """G."""
        return len(self.group) // len(self.inputs.prompt_ids)

    @property
    def informative(self) -> torch.Tensor:
        """bool [U], which groups have different rewards."""
        return informative_groups(self.reward, self.num_generations)

    def take_informative_groups(self, further: Rollout, pad_token_id: int) -> int:
        """Replace zero-variance groups by informative ones of `further`, in their order, as far as both reach.

        Returns:
            How many were replaced.
        """
        places, groups = (mask.nonzero().flatten().tolist() for mask in (~self.informative, further.informative))
        pairs = list(zip(places, groups, strict=False))
        self.inputs = self.inputs.with_questions_of(further.inputs, pairs)
        self.output = replace_groups(self.output, further.output, pairs, self.num_generations, pad_token_id)
        for place, group in pairs:
            mine, theirs = (_rows_of_group(index, self.num_generations) for index in (place, group))
            self.rows[mine] = further.rows[theirs]
            self.rewards[mine], self.reward[mine] = further.rewards[theirs], further.reward[theirs]
        return len(pairs)


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
            merged[key][_rows_of_group(place, num_generations)] = theirs[_rows_of_group(group, num_generations)]
    return merged


def _rows_of_group(index: int, num_generations: int) -> slice:
    return slice(index * num_generations, (index + 1) * num_generations)


def _pad_alike(one: torch.Tensor, other: torch.Tensor, fill: int, left: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """Both tensors [rows, width] (or [rows]) with the width of the wider one."""
    if one.dim() == 1:
        return one, other
    width = max(one.size(1), other.size(1))

    def pad(values: torch.Tensor) -> torch.Tensor:
        missing = width - values.size(1)
        return torch.nn.functional.pad(values, (missing, 0) if left else (0, missing), value=fill)

    return pad(one), pad(other)


def rows_of(questions: Sequence[Any], columns: dict[str, Callable[[Any], Any]]) -> Dataset:
    """A Dataset with a row for each question: the question itself and these columns of it.

    The rows are made when they are read, once a question however often a batch has it. Kept in Arrow, a message's text
    part would get an `audio` key that is None, which the chat template counts as a second clip.
    """

    def rows(batch: dict[str, list[int]]) -> dict[str, list[Any]]:
        picked = {index: questions[index] for index in batch["index"]}
        made = {name: {index: column(each) for index, each in picked.items()} for name, column in columns.items()}
        return {name: [of[index] for index in batch["index"]] for name, of in (made | {"question": picked}).items()}

    return Dataset.from_dict({"index": list(range(len(questions)))}).with_transform(rows)


def group_rows(questions: Sequence[Any], num_generations: int) -> tuple[list[Any], torch.Tensor]:
    """The U distinct questions of N = U * num_generations consecutive rows, and the question index of each row [N].

    Groups are the sampler's consecutive rows, never guessed from equal text: neighbours may ask the same about
    different clips.

    Raises:
        ValueError: the rows are not whole groups of one question (and its one clip).
    """
    if len(questions) % num_generations:
        raise ValueError(f"{len(questions)} rows are not whole groups of {num_generations}")
    distinct = list(questions[::num_generations])
    group = torch.arange(len(distinct)).repeat_interleave(num_generations)
    for row, question in enumerate(questions):
        leader = distinct[row // num_generations]
        if question != leader:
            raise ValueError(f"row {row} belongs to question {question.id}, its group to {leader.id}")
    return distinct, group
