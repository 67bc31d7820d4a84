"""AudioSFTTrainer: cross-entropy on the answer's tokens, everything before them given."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from transformers import PreTrainedModel, ProcessorMixin, Trainer
from transformers.loss.loss_utils import ForCausalLMLoss

from r1_aqa_repro.data.prompts import build_messages
from r1_aqa_repro.data.questions import AudioQuestion
from r1_aqa_repro.model.inputs import IGNORE, pad_right, process, target_ids
from r1_aqa_repro.run.callbacks import StopAtLoss
from r1_aqa_repro.run.checkpoints import ResumableTrainer
from r1_aqa_repro.run.clips import Clips, ClipWatch
from r1_aqa_repro.run.config import AudioSFTConfig
from r1_aqa_repro.run.evaluating import EvaluatingTrainer
from r1_aqa_repro.run.part_rates import PartRatesTrainer


class SFTCollator:
    """Questions to a batch: prompt, target and end of turn, padded on the right; only target and end are labelled.

    Beside the tensors it holds the `questions` and, for each, why its clip is not heard (`reasons`), which the trainer
    takes out: whoever loads batches ahead, in a process of its own, does not know in which step they will be learned.
    """

    def __init__(self, processor: ProcessorMixin, prompt_style: str, audio_channel: str, clips: Clips):
        self.processor, self.prompt_style, self.audio_channel = processor, prompt_style, audio_channel
        self.clips = clips

    def __call__(self, questions: list[AudioQuestion]) -> dict[str, Any]:
        clips = [self.clips.hear(question, self.audio_channel, self.processor) for question in questions]
        conversations = [build_messages(question, self.prompt_style) for question in questions]
        inputs = process(self.processor, conversations, [samples for samples, _ in clips])
        tokenizer = self.processor.tokenizer
        targets = [target_ids(tokenizer, question, self.prompt_style) for question in questions]
        rows = list(zip(inputs.prompt_ids, targets, strict=True))
        return {
            "input_ids": pad_right([prompt + target for prompt, target in rows], tokenizer.pad_token_id),
            "attention_mask": pad_right([[1] * (len(prompt) + len(target)) for prompt, target in rows], 0),
            "labels": pad_right([[IGNORE] * len(prompt) + target for prompt, target in rows], IGNORE),
            **inputs.audio("cpu"),
            "questions": questions,
            "reasons": [reason for _, reason in clips],
        }


class AudioSFTTrainer(PartRatesTrainer, EvaluatingTrainer, ResumableTrainer, Trainer):
    """Trainer whose loss is the mean cross-entropy over all labelled tokens of the optimizer step, of clips heard."""

    def __init__(
        self,
        model: PreTrainedModel | PeftModel,
        args: AudioSFTConfig,
        questions: Sequence[AudioQuestion],
        processing_class: ProcessorMixin,
        prompt_style: str,
        audio_channel: str = "first",
        clips: Clips | None = None,
        **kwargs: Any,
    ):
        self.clips = clips or Clips(Path(str(args.output_dir)))
        super().__init__(
            model=model,
            args=args,
            train_dataset=questions,
            data_collator=SFTCollator(processing_class, prompt_style, audio_channel, self.clips),
            processing_class=processing_class,
            compute_loss_func=token_loss,
            **kwargs,
        )
        if args.stop_at_loss is not None:
            self.add_callback(StopAtLoss(args.stop_at_loss))
        self.add_callback(ClipWatch(self.clips, len(questions)))

    def _get_num_items_in_batch(
        self, batch_samples: list[dict[str, Any]], device: torch.device
    ) -> torch.Tensor | int | None:
        """Labelled tokens of an optimizer step, on all processes; those of lost clips are labelled no more."""
        for batch in batch_samples:
            lost = self.clips.are_lost(batch.pop("questions"), batch.pop("reasons"), self.state.global_step + 1)
            batch["labels"][torch.tensor(lost)] = IGNORE
        return super()._get_num_items_in_batch(batch_samples, device)


def token_loss(
    outputs: Any, labels: torch.Tensor, num_items_in_batch: torch.Tensor | int | None = None
) -> torch.Tensor:
    """Sum over this batch's labelled tokens, divided by those of the whole step on all processes.

    Qwen2-Audio's own loss averages over the batch at hand and ignores `num_items_in_batch`, which Trainer takes every
    model with keyword arguments to honour: with accumulation its gradient would be too large.
    """
    if num_items_in_batch is not None:  # none at all, if every clip of a step is lost
        num_items_in_batch = torch.as_tensor(num_items_in_batch).clamp(min=1)
    return ForCausalLMLoss(outputs.logits, labels, outputs.logits.size(-1), num_items_in_batch)
