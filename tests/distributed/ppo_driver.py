"""The real PPO entry point with a reward for the letter a, and with completions that are a function of their prompts.

    torchrun --nproc-per-node 2 -m tests.distributed.ppo_driver [--free] --any_key value ...

--free: completions are sampled as usual.
"""

from __future__ import annotations

import random
import sys

from r1_aqa_repro import train_ppo_text
from r1_aqa_repro.common.errors import leave
from r1_aqa_repro.model.inputs import PromptInputs
from r1_aqa_repro.ppo.trainer import PPOTrainer
from r1_aqa_repro.rewards import registry
from tests.text_world import letter_reward


class FixedTrainer(PPOTrainer):
    """Completions of random tokens and lengths, always the same for the same prompt."""

    def _generate(self, inputs: PromptInputs) -> list[list[int]]:
        ends = {*self.generation_config.eos_token_id, *self.processing_class.all_special_ids}
        words = [word for word in range(len(self.processing_class)) if word not in ends]
        completions = []
        for prompt in inputs.prompt_ids:
            rng = random.Random(str(prompt))
            completions.append([rng.choice(words) for _ in range(rng.randint(1, self.args.max_completion_length))])
        return completions


def main(argv: list[str]) -> int:
    registry.RULES["letter"] = registry.Rule(lambda args: letter_reward)
    if argv[:1] == ["--free"]:
        return train_ppo_text.main(argv[1:])
    train_ppo_text.PPOTrainer = FixedTrainer  # type: ignore[misc]
    return train_ppo_text.main(argv)


if __name__ == "__main__":
    leave(main(sys.argv[1:]))
