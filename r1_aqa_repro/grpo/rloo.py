"""TextRLOOTrainer: TRL's RLOOTrainer on text prompts, with the rewards of this project.

RLOO (arXiv 2402.14740) is REINFORCE with the mean reward of the other completions of the prompt for a baseline. Beside
GRPO it does not divide by the standard deviation of a group, and its KL price is part of the reward: a whole answer's
log-ratio to the start. Sampling and scoring are TRL's own; nothing is shared between the completions of a prompt.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from datasets import Dataset
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from trl import RLOOTrainer

from r1_aqa_repro.data.conversations import TextPrompt
from r1_aqa_repro.grpo.rollout import rows_of
from r1_aqa_repro.grpo.selection import EpochRepeatSampler
from r1_aqa_repro.model.loading import base_of, check_reference, widen_adapter
from r1_aqa_repro.model.text_loading import take_rope
from r1_aqa_repro.rewards.rules import RewardFunction, completion_text, finite, require_finite
from r1_aqa_repro.run.checkpoints import ResumableTrainer
from r1_aqa_repro.run.completion_table import CompletionTable
from r1_aqa_repro.run.config import TextRLOOConfig


class TextRLOOTrainer(ResumableTrainer, RLOOTrainer):
    """TRL's RLOOTrainer, whose interrupted runs continue exactly.

    Args:
        model: a Qwen2ForCausalLM.
        args: the configuration.
        prompts: every column that any of them has reaches the rewards, as None for a prompt without it.
        processing_class: the model's tokenizer.
        reward_funcs: names, each with a reward function or a reward model as TRL takes them.
        **kwargs: passed on, among them `reward_processing_classes`, the reward models' tokenizers.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        args: TextRLOOConfig,
        prompts: Sequence[TextPrompt],
        processing_class: PreTrainedTokenizerBase,
        reward_funcs: Sequence[tuple[str, RewardFunction | PreTrainedModel]],
        **kwargs: Any,
    ):
        names = sorted({name for prompt in prompts for name in prompt.columns})
        super().__init__(
            model=model,
            args=args,
            reward_funcs=[one if isinstance(one, torch.nn.Module) else finite(name, one) for name, one in reward_funcs],
            train_dataset=rows_of(
                prompts, lambda prompt: {name: prompt.columns.get(name) for name in names} | {"prompt": prompt.messages}
            ),
            processing_class=processing_class,
            **kwargs,
        )
        self.reward_func_names = [name for name, _ in reward_funcs]  # TRL calls a model by its folder
        self._completions = CompletionTable(args.output_dir)
        policy = base_of(self.accelerator.unwrap_model(self.model))
        if self.ref_model is not None:  # TRL loads it itself
            reference = self.accelerator.unwrap_model(self.ref_model)
            take_rope(reference, policy.config)
            check_reference(policy, reference)
        widen_adapter(self.accelerator.unwrap_model(self.model))

    def _get_train_sampler(self, dataset: Dataset | None = None) -> EpochRepeatSampler:
        sampler = super()._get_train_sampler(dataset)
        sampler.__class__ = EpochRepeatSampler
        return sampler

    def _calculate_rewards(
        self, inputs: list[dict[str, Any]], prompts: list[Any], completions: list[Any], completion_ids_list: list[Any]
    ) -> torch.Tensor:
        """Rewards [N of all processes, R]; of a logged step the first group is written into the run folder's table."""
        rewards: torch.Tensor = super()._calculate_rewards(inputs, prompts, completions, completion_ids_list)
        own = rewards[self.accelerator.process_index * len(inputs) :][: len(inputs)]
        for name, function, column in zip(self.reward_func_names, self.reward_funcs, own.T, strict=True):
            if isinstance(function, torch.nn.Module):  # TRL has asked it by itself
                require_finite(name, column.tolist(), completions)
        step = self.state.global_step + 1
        if self.accelerator.is_main_process and self.model.training and step % self.state.logging_steps == 0:
            noted = list(zip(inputs, completions, own.tolist(), strict=True))[: self.num_generations]
            self._completions.add(
                step,
                [
                    {"id": row["question"].id, "prompt": row["prompt"][-1]["content"]}
                    | {"completion": completion_text(completion)}
                    | dict(zip(self.reward_func_names, values, strict=True))
                    for row, completion, values in noted
                ],
            )
        return rewards
