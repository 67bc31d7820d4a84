"""RLPR's probability reward (arXiv 2506.18254, github.com/OpenBMB/RLPR): how likely reasoning makes the right answer.

A completion is reasoning and then an answer in `<answer>` tags. With the reference answer in place of the completion's
own, the reward is how much more likely the reasoning makes it:

    reward = clip(p - p0, 0, 1)
    p: the mean over the reference answer's tokens of their probabilities, behind prompt and reasoning
    p0: the same behind the prompt alone

and 0 for a completion that does not come to an answer. No verifier reads the completion's own answer. The policy that
has sampled the completions computes all of it: a group's reasonings, and the empty one of p0, share their prompt (and
clip) in one forward. The published code takes p0 once, from the policy's start and of the answer without tags. Within a
group p0 is a constant, so that it counts only where the difference falls below 0.
"""

from __future__ import annotations

import bisect
import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from r1_aqa_repro.data.answers import OPENING, answer_begins, in_tags
from r1_aqa_repro.grpo.rollout import Rollout
from r1_aqa_repro.grpo.scoring import score_plain, score_shared
from r1_aqa_repro.model.inputs import attention_mask_left, pad_left, pad_right
from r1_aqa_repro.model.plain_text import plain
from r1_aqa_repro.rewards.arguments import ANSWER_PROBABILITY

# log-probabilities of a rollout's rows: (rollout, input_ids, attention_mask, completion_length, pad_token_id, scored)
Score = Callable[[Rollout, torch.Tensor, torch.Tensor, int, int, torch.Tensor], torch.Tensor]
Row = tuple[list[int], list[bool]]  # token ids, and which of them are the reference answer's


def answer_probabilities(
    score: Score,
    tokenizer: PreTrainedTokenizerBase,
    rollout: Rollout,
    completion_ids: Sequence[Sequence[int]],
    references: Sequence[str | None],
    styles: Sequence[str],
    positions: int,
) -> tuple[list[float | None], dict[str, float]]:
    """The reward of N completions, None where there is no reference answer, and what to log of it.

    Args:
        score: of the policy, without gradients. It is called exactly once, whatever the completions are: under ZeRO-3
            all processes gather the weights together.
        tokenizer: the policy's.
        rollout: what the completions belong to; its `group` has the rows of a question one after the other.
        completion_ids, references, styles: of each of the N rows; a style is that of the row's prompt.
        positions: tokens that the policy can take. A row that would be longer does not come to an answer.
    """
    prompts, firsts = rollout.inputs.prompt_ids, range(0, len(references), rollout.num_generations)
    completions = zip(completion_ids, references, styles, strict=True)
    rows = [None if gold is None else with_reference(tokenizer, ids, gold, style) for ids, gold, style in completions]
    rows += [None if (gold := references[first]) is None else reference_row(tokenizer, gold) for first in firsts]
    group = torch.cat([rollout.group, torch.arange(len(prompts), device=rollout.group.device)])
    before = [prompts[index] for index in group.tolist()]
    fitting = [
        row if row is not None and len(ids) + len(row[0]) <= positions else None
        for ids, row in zip(before, rows, strict=True)
    ]

    device, pad = group.device, tokenizer.pad_token_id
    tail = pad_right([row[0] if row else [pad] for row in fitting], pad)  # [N + U, C]
    mask = pad_right([[1] * len(row[0]) if row else [0] for row in fitting], 0)
    scored = pad_right([row[1] if row else [False] for row in fitting], False).to(device)
    log_probs = score(
        replace(rollout, group=group),
        torch.cat([pad_left(before, pad), tail], dim=1).to(device),
        torch.cat([attention_mask_left(before), mask], dim=1).to(device),
        tail.size(1),
        pad,
        scored,
    )
    likely = mean_probabilities(log_probs, scored)
    reasoned, alone = likely[: len(references)], likely[len(references) :][rollout.group]
    answered = torch.tensor([row is not None for row in fitting[: len(references)]], device=device)
    rewards = (reasoned - alone).clamp(0, 1) * answered
    applies = [gold is not None for gold in references]
    figures = {}
    if any(applies):
        share = torch.tensor(applies, device=device)
        figures = {
            "answer_probability/with_reasoning": reasoned[share].mean().item(),
            "answer_probability/without_reasoning": alone[share].mean().item(),
            "answer_probability/no_answer": 1 - answered[share].float().mean().item(),
        }
    return [value if own else None for value, own in zip(rewards.tolist(), applies, strict=True)], figures


class AnswerProbability:
    """The reward `answer_probability` as a reward function of TRL's, for the trainer that it belongs to.

    Of the columns it reads `answer` and, where given, `prompt_style`; without one the style is `answer`.
    """

    def __init__(self, trainer: Any):
        self.trainer = trainer

    @classmethod
    def in_its_place(cls, trainer: Any, rewards: Sequence[tuple[str, Any]]) -> list[tuple[str, Any]]:
        """These rewards by name, with that of a trainer where its stand-in is (`rules.answer_probability`)."""
        return [(name, cls(trainer) if name == ANSWER_PROBABILITY else reward) for name, reward in rewards]

    def __call__(
        self,
        completion_ids: list[list[int]],
        answer: Sequence[str | None],
        log_metric: Callable[[str, float], None],
        **columns: Any,
    ) -> list[float | None]:
        """The rewards of the rollout that the trainer is at work on."""
        trainer, styles = self.trainer, columns.get("prompt_style") or [None] * len(answer)

        def score(*batch: Any) -> torch.Tensor:
            with torch.no_grad(), trainer.accelerator.autocast():
                return (score_shared if trainer.share else score_plain)(trainer.model, *batch)[0]

        rewards, figures = answer_probabilities(
            score,
            trainer._tokenizer,
            trainer._at_work[-1],
            completion_ids,
            answer,
            [style or "answer" for style in styles],
            trainer.model.config.get_text_config().max_position_embeddings,
        )
        for name, value in figures.items():
            log_metric(name, value)
        return rewards


def mean_probabilities(log_probs: torch.Tensor, scored: torch.Tensor) -> torch.Tensor:
    """The mean of the probabilities of each row's scored tokens, [M, C] and bool [M, C] -> [M]; 0 of a row without any.

    Not the product, nor the mean of logarithms: one unlikely token (a synonym) would decide alone.
    """
    return (log_probs.float().exp() * scored).sum(1) / scored.sum(1).clamp(min=1)


def with_reference(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int], reference: str, style: str) -> Row | None:
    """A completion with the reference answer in place of its own; None if it does not come to an answer.

    Its reasoning keeps the tokens that were sampled. From the `<answer>` tag on the text is tokenised anew, since tag
    and answer may share a token; the white space behind the tag stays the completion's own.
    """
    text = tokenizer.decode(ids, skip_special_tokens=True)
    at = answer_begins(text, style)
    if at is None:
        return None

    def decoded(count: int) -> str:
        return str(tokenizer.decode(ids[:count], skip_special_tokens=True))

    kept = bisect.bisect_right(range(len(ids) + 1), at, key=lambda count: len(decoded(count))) - 1
    while not text.startswith(decoded(kept)):  # the last token holds a part of a character
        kept -= 1
    before = text[len(decoded(kept)) : at]
    space = re.match(r"\s*", text[at + len(OPENING) :])
    own, counted = reference_row(tokenizer, reference, before, space[0] if space else "")
    return [*ids[:kept], *own], [False] * kept + counted


def reference_row(tokenizer: PreTrainedTokenizerBase, reference: str, before: str = "", space: str = "") -> Row:
    """The tokens of `before`, and of a reference answer in its tags; those that hold any of the answer are marked."""
    beginning, answer = plain(tokenizer, before) + OPENING + space, plain(tokenizer, reference)
    whole = beginning + answer + in_tags("").removeprefix(OPENING)
    tokens = tokenizer(whole, add_special_tokens=False, return_offsets_mapping=True)
    first, end = len(beginning), len(beginning) + len(answer)
    return tokens["input_ids"], [low < end and high > first for low, high in tokens["offset_mapping"]]
