"""The real GRPO entry point for text with answers in the style think: a model at random never comes to one.

torchrun --nproc-per-node 2 -m tests.distributed.answering_driver --any_key value ...
"""

from __future__ import annotations

import sys
from typing import Any

from r1_aqa_repro import train_grpo_text
from r1_aqa_repro.common.errors import leave
from r1_aqa_repro.grpo.trainer import TextGRPOTrainer

REASONINGS = ("3 + 1", "one more", "", "no")


class AnsweringTrainer(TextGRPOTrainer):
    """Its completions are a function of their place in the group, whatever the policy would say."""

    def _generate_single_turn(self, prompt_ids: list[Any], *_: Any, **__: Any) -> tuple[list[list[int]], None]:
        texts = [f"<think>{text}</think><answer>3</answer>" for text in REASONINGS]
        ids = self._tokenizer(texts, add_special_tokens=False)["input_ids"]
        return [[*ids[row % len(ids)], self._tokenizer.eos_token_id] for row in range(len(prompt_ids))], None


def main(argv: list[str]) -> int:
    train_grpo_text.TextGRPOTrainer = AnsweringTrainer  # type: ignore[misc]
    return train_grpo_text.main(argv)


if __name__ == "__main__":
    leave(main(sys.argv[1:]))
