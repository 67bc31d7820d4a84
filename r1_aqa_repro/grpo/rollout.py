"""Rollout: one batch on its way through the GRPO trainer, from the rows of the data set to the loss."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from datasets import Dataset
from torch.nn.utils.rnn import pad_sequence

from r1_aqa_repro.data.prompts import build_messages
from r1_aqa_repro.data.questions import AudioQuestion, weights_of
from r1_aqa_repro.grpo.selection import better_completions, informative_groups
from r1_aqa_repro.model.inputs import PromptInputs


@dataclass
class Rollout:
    """N = U * G completions: G of each of U questions, and everything that is known of them.

    inputs: prompts, and clips if any, of the U questions, computed once each.
    group: int64 [N], the question of each row, in the row order of whoever works on the rollout.
    rows: N rows of the data set (`rows_of`), those of a question one after the other.
    lost: bool [N], rows of questions that could not be put to the model as they are: nothing is learned from them.
    rewards: [N, R], a column for each reward function. Set once the completions are rewarded, as the next two.
    reward: [N], their weighted sums, as TRL forms them: rows of equal rewards have equal sums, to the bit.
    least_std: groups whose rewards have a smaller standard deviation are not informative.
    output: what TRL makes of the completions, by name: token ids, masks, advantages, log-probabilities.
    scored_logps: [N, C], those of the policy in the loss, in the order of `group`.
    """

    inputs: PromptInputs
    group: torch.Tensor
    rows: list[dict[str, Any]] = field(default_factory=list)
    lost: torch.Tensor = field(init=False)
    rewards: torch.Tensor = field(init=False)
    reward: torch.Tensor = field(init=False)
    output: dict[str, Any] = field(init=False)
    least_std: float = field(default=0.0, init=False)
    scored_logps: torch.Tensor = field(init=False)

    @property
    def num_generations(self) -> int:
        """G."""
        return len(self.group) // len(self.inputs.prompt_ids)

    @property
    def informative(self) -> torch.Tensor:
        """bool [U], which groups have different rewards."""
        return informative_groups(self.reward, self.num_generations, self.least_std)

    def kept(self, advantage_filter: str, top_fraction: float) -> torch.Tensor:
        """bool [N], the completions that are learned from: see `better_completions`, and none of what lies below
        `least_std`."""
        kept = better_completions(self.reward, self.num_generations, advantage_filter, top_fraction)
        return kept & self.informative.repeat_interleave(self.num_generations) if self.least_std else kept

    def take_informative_groups(self, further: Rollout, pad_token_id: int) -> int:
        """Replace zero-variance groups by informative ones of `further`, in their order, as far as both reach.

        Returns:
            How many were replaced.
        """
        places, found = (mask.nonzero().flatten().cpu() for mask in (~self.informative, further.informative))
        replaced = min(len(places), len(found))
        if replaced:
            groups = torch.arange(len(self.inputs.prompt_ids))  # of these and then the further ones
            groups[places[:replaced]] = len(groups) + found[:replaced]
            rows = (groups[:, None] * self.num_generations + torch.arange(self.num_generations)).flatten()
            self.inputs = self.inputs.picked(further.inputs, groups.tolist())
            self.output = picked_rows(self.output, further.output, rows, pad_token_id)
            both = self.rows + further.rows
            self.rows = [both[row] for row in rows.tolist()]
            self.rewards = torch.cat([self.rewards, further.rewards])[rows]
            self.reward = torch.cat([self.reward, further.reward])[rows]
        return replaced

    def weigh(self, weak: float) -> None:
        """Multiply the advantages by their questions' weights, see `weights_of`."""
        advantages = self.output["advantages"]
        weights = weights_of((row["question"] for row in self.rows), weak)
        self.output["advantages"] = advantages * advantages.new_tensor(weights)


def picked_rows(
    output: dict[str, Any], further: dict[str, Any], rows: torch.Tensor, pad_token_id: int
) -> dict[str, Any]:
    """These rows of `output` and then `further`, which may be padded differently.

    Args:
        output, further: what TRL's `_generate_and_score_completions` returns: prompts padded on the left, completions
            and all that belongs to their tokens on the right. Counts over the batch stay: they are the caller's to
            renew.
        rows: int64 [N].
        pad_token_id: pads token ids; everything else is padded with 0.
    """
    merged = dict(output)
    for key, values in output.items():
        if not torch.is_tensor(values) or values.dim() == 0:
            continue
        both = [*values, *further[key]]
        if values.dim() == 1:
            merged[key] = torch.stack(both)[rows]
        else:
            fill = pad_token_id if key in ("prompt_ids", "completion_ids") else 0
            side = "left" if key in ("prompt_ids", "prompt_mask") else "right"
            merged[key] = pad_sequence(both, batch_first=True, padding_value=fill, padding_side=side)[rows]
    return merged


def rows_of(questions: Sequence[Any], columns: Callable[[Any], dict[str, Any]]) -> Dataset:
    """A Dataset with a row for each question: the question itself and its columns.

    The rows are made when they are read, once a question however often a batch has it. Kept in Arrow, a message's text
    part would get an `audio` key that is None, which the chat template counts as a second clip.
    """

    def rows(batch: dict[str, list[int]]) -> dict[str, list[Any]]:
        indices = batch["index"]
        made = {index: columns(questions[index]) | {"question": questions[index]} for index in dict.fromkeys(indices)}
        return {name: [made[index][name] for index in indices] for name in made[indices[0]]}

    return Dataset.from_dict({"index": list(range(len(questions)))}).with_transform(rows)


def question_columns(question: AudioQuestion, prompt_style: str) -> dict[str, Any]:
    """What TRL and the rewards read of an audio question, by name."""
    return {
        "prompt": build_messages(question, prompt_style),
        "answer": question.answer,
        "choices": list(question.choices),
        "task": question.task,
        "prompt_style": prompt_style,
    }


def group_rows(questions: Sequence[Any], num_generations: int) -> torch.Tensor:
    """int64 [N], the number of the question that each of N = U * num_generations consecutive rows belongs to.

    Groups are the sampler's consecutive rows, never guessed from equal text: neighbours may ask the same about
    different clips.

    Raises:
        ValueError: the rows are not whole groups of one question (and its one clip).
    """
    group = torch.arange(len(questions)) // num_generations
    for row, index in enumerate(group.tolist()):
        if questions[row] != questions[index * num_generations]:
            raise ValueError(f"row {row} does not belong to the question of its group")
    if len(questions) % num_generations:
        raise ValueError(f"{len(questions)} rows are not whole groups of {num_generations}")
    return group
