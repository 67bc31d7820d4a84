"""A reward model's scores of conversations, and the model as a reward function."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from tqdm import tqdm
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from r1_aqa_repro.data.conversations import Message, answer
from r1_aqa_repro.model.inputs import pad_right, token_ids
from r1_aqa_repro.rewards.rules import Completion, completion_text

BATCH_SIZE = 64  # conversations


def score_conversations(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    conversations: Sequence[Sequence[Message]],
    batch_size: int = BATCH_SIZE,
    progress: str | None = None,
) -> list[float]:
    """The scalar that the model gives each whole conversation, read at its last token.

    Conversations of like length are scored together. Padding is on the right, so that no token sees it. With a text as
    `progress` a bar of this name appears if it takes long.
    """
    rows = token_ids(tokenizer, conversations, complete=True)
    order = sorted(range(len(rows)), key=lambda row: len(rows[row]))
    scores = [0.0] * len(rows)
    was_training = model.training
    model.eval()
    with torch.no_grad():
        starts = range(0, len(order), batch_size)
        for start in tqdm(starts, progress, unit="batch", delay=5, disable=progress is None):
            picked = order[start : start + batch_size]
            logits = model(
                input_ids=pad_right([rows[row] for row in picked], tokenizer.pad_token_id).to(model.device),
                attention_mask=pad_right([[1] * len(rows[row]) for row in picked], 0).to(model.device),
            ).logits  # [batch, 1]
            for row, score in zip(picked, logits[:, 0].float().tolist(), strict=True):
                scores[row] = score
    model.train(was_training)
    return scores


class RewardModel:
    """A reward model as a reward function: TRL scores one that it is given as a module in the same way."""

    __name__ = "reward_model"

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, batch_size: int = BATCH_SIZE):
        self.model, self.tokenizer, self.batch_size = model, tokenizer, batch_size

    def __call__(self, prompts: Sequence[list[Message]], completions: Sequence[Completion], **_: Any) -> list[float]:
        """Scores of N completions of N prompts."""
        conversations = [
            [*prompt, *answer(completion_text(completion))]
            for prompt, completion in zip(prompts, completions, strict=True)
        ]
        return score_conversations(self.model, self.tokenizer, conversations, self.batch_size)
