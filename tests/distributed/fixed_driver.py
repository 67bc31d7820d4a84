"""The real PPO or RLOO entry point with a reward for the letter a, and completions that depend on their prompts alone.

    torchrun --nproc-per-node 2 -m tests.distributed.fixed_driver ppo|rloo [--free] --any_key value ...

--free: completions are sampled as usual.
"""

from __future__ import annotations

import random
import sys
from typing import Any

from r1_aqa_repro import train_ppo_text, train_rloo_text
from r1_aqa_repro.common.errors import leave
from r1_aqa_repro.grpo.rloo import TextRLOOTrainer
from r1_aqa_repro.model.inputs import PromptInputs
from r1_aqa_repro.ppo.trainer import PPOTrainer
from r1_aqa_repro.rewards import registry
from tests.text_world import letter_reward


def fixed(prompt_ids: list[list[int]], words: list[int], longest: int) -> list[list[int]]:
    """Completions of random tokens and lengths, always the same for the same prompt and its same place among others."""
    completions = []
    for row, prompt in enumerate(prompt_ids):
        rng = random.Random(f"{prompt}/{prompt_ids[:row].count(prompt)}")
        completions.append([rng.choice(words) for _ in range(rng.randint(1, longest))])
    return completions


class FixedPPOTrainer(PPOTrainer):
    def _generate(self, inputs: PromptInputs) -> list[list[int]]:
        ends = {*self.generation_config.eos_token_id, *self.processing_class.all_special_ids}
        words = [word for word in range(len(self.processing_class)) if word not in ends]
        return fixed(inputs.prompt_ids, words, self.args.max_completion_length)


class FixedRLOOTrainer(TextRLOOTrainer):
    def _generate_single_turn(self, prompt_ids: list[list[int]], *_: Any) -> list[list[int]]:
        words = [
            word for word in range(len(self.processing_class)) if word not in self.processing_class.all_special_ids
        ]
        return fixed(prompt_ids, words, self.args.max_completion_length)


def main(argv: list[str]) -> int:
    registry.RULES["letter"] = registry.Rule(lambda args: letter_reward)
    kind, *keys = argv
    entry = {"ppo": train_ppo_text, "rloo": train_rloo_text}[kind]
    if keys[:1] == ["--free"]:
        return entry.main(keys[1:])
    train_ppo_text.PPOTrainer = FixedPPOTrainer  # type: ignore[misc]
    train_rloo_text.TextRLOOTrainer = FixedRLOOTrainer  # type: ignore[misc]
    return entry.main(keys)


if __name__ == "__main__":
    leave(main(sys.argv[1:]))
