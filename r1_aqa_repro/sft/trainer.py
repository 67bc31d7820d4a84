"""AudioSFTTrainer: cross-entropy on the answer's tokens, everything before them given."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from torch.nn.functional import cross_entropy, pad
from transformers import PreTrainedModel, ProcessorMixin, Trainer
from transformers.loss.loss_utils import ForCausalLMLoss

from r1_aqa_repro.data.prompts import build_messages
from r1_aqa_repro.data.questions import AudioQuestion, weights_of
from r1_aqa_repro.model.encoded_audio import EncodedAudio
from r1_aqa_repro.model.inputs import AUDIO_KEYS, IGNORE, ModelInputs, pad_right, process, target_ids
from r1_aqa_repro.model.loading import base_of
from r1_aqa_repro.run.callbacks import StopAtLoss
from r1_aqa_repro.run.checkpoints import ResumableTrainer
from r1_aqa_repro.run.clips import Clips, ClipWatch, as_heard
from r1_aqa_repro.run.config import AudioSFTConfig
from r1_aqa_repro.run.evaluating import EvaluatingTrainer
from r1_aqa_repro.run.part_rates import PartRatesTrainer


class SFTCollator:
    """Questions to a batch: prompt, target and end of turn, padded on the right; only target and end are labelled.

    Each clip is there once, whatever the number of its questions: `clip_of_row` says which belongs to which row.

    Beside the tensors it holds the `questions`, why the clip of each is not heard (`reasons`), and a question of each
    clip `as_heard`, which the trainer takes out: whoever loads batches ahead, in a process of its own, has no encoder
    and does not know in which step they will be learned. With a `weak_weight` there are `weights`, float32 [N], of the
    rows.
    """

    def __init__(
        self,
        processor: ProcessorMixin,
        prompt_style: str,
        audio_channel: str,
        clips: Clips,
        weak_weight: float | None = None,
    ):
        self.processor, self.prompt_style, self.audio_channel = processor, prompt_style, audio_channel
        self.clips, self.weak_weight = clips, weak_weight

    def __call__(self, questions: list[AudioQuestion]) -> dict[str, Any]:
        paths = [question.audio_path for question in questions]
        row_of = {path: paths.index(path) for path in paths}  # its first
        heard = {
            path: self.clips.hear(questions[row], self.audio_channel, self.processor) for path, row in row_of.items()
        }
        clips = [heard[path] for path in paths]
        conversations = [build_messages(question, self.prompt_style) for question in questions]
        inputs = process(self.processor, conversations, [samples for samples, _ in clips])
        tokenizer = self.processor.tokenizer
        targets = [target_ids(tokenizer, question, self.prompt_style) for question in questions]
        rows = list(zip(inputs.prompt_ids, targets, strict=True))
        weights = {}
        if self.weak_weight is not None:
            weights = {"weights": torch.tensor(weights_of(questions, self.weak_weight))}
        return {
            **weights,
            "input_ids": pad_right([prompt + target for prompt, target in rows], tokenizer.pad_token_id),
            "attention_mask": pad_right([[1] * (len(prompt) + len(target)) for prompt, target in rows], 0),
            "labels": pad_right([[IGNORE] * len(prompt) + target for prompt, target in rows], IGNORE),
            **inputs.audio("cpu", torch.tensor(list(row_of.values()))),
            "clip_of_row": torch.tensor([list(row_of).index(path) for path in paths]),
            "questions": questions,
            "reasons": [reason for _, reason in clips],
            "heard": [as_heard(questions[row], *heard[path]) for path, row in row_of.items()],
        }


class AudioSFTTrainer(PartRatesTrainer, EvaluatingTrainer, ResumableTrainer, Trainer):
    """Trainer whose loss is the mean cross-entropy over all labelled tokens of the optimizer step, of clips heard.

    The model, from `loading`, computes logits where a labelled token is predicted and nowhere else. A clip is encoded
    once a batch, and once a run if the encoder is not trained.

    With a `weak_weight` the cross-entropy of each token counts that many times if its question is labelled weak; the
    mean is over the same tokens.
    """

    def __init__(
        self,
        model: PreTrainedModel | PeftModel,
        args: AudioSFTConfig,
        questions: Sequence[AudioQuestion],
        processing_class: ProcessorMixin,
        prompt_style: str,
        audio_channel: str = "first",
        clips: Clips | None = None,
        weak_weight: float | None = None,
        **kwargs: Any,
    ):
        self.clips, self.audio_channel = clips or Clips(Path(str(args.output_dir))), audio_channel
        super().__init__(
            model=model,
            args=args,
            train_dataset=questions,
            data_collator=SFTCollator(processing_class, prompt_style, audio_channel, self.clips, weak_weight),
            processing_class=processing_class,
            compute_loss_func=token_loss,
            **kwargs,
        )
        if args.stop_at_loss is not None:
            self.add_callback(StopAtLoss(args.stop_at_loss))
        self.add_callback(ClipWatch(self.clips, len(questions)))
        encoder = base_of(self.model).model.audio_tower
        self._encoded = EncodedAudio.of_run(args.output_dir, encoder, self.accelerator)

    def _get_num_items_in_batch(
        self, batch_samples: list[dict[str, Any]], device: torch.device
    ) -> torch.Tensor | int | None:
        """Labelled tokens of an optimizer step, on all processes; those of lost clips are labelled no more."""
        for batch in batch_samples:
            lost = self.clips.are_lost(batch.pop("questions"), batch.pop("reasons"), self.state.global_step + 1)
            batch["labels"][torch.tensor(lost)] = IGNORE
        return super()._get_num_items_in_batch(batch_samples, device)

    def _prepare_inputs(self, inputs: dict[str, Any]) -> dict[str, Any]:
        heard = inputs.pop("heard")
        if self._encoded is not None:
            clips = ModelInputs([], *(inputs[key] for key in AUDIO_KEYS))
            inputs["input_features"] = self._encoded(clips, heard, self.audio_channel).input_features
        return super()._prepare_inputs(inputs)

    def compute_loss(self, model: torch.nn.Module, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        """Trainer's own, with `labels` as `token_loss` takes them."""
        following = inputs["labels"][:, 1:]
        is_target = following != IGNORE
        inputs["labels"] = following[is_target]
        inputs["scored"] = pad(is_target, (0, 1))  # nothing follows the last position
        if (weights := inputs.pop("weights", None)) is not None:
            of_tokens = weights[:, None].expand_as(is_target)[is_target]
            self.compute_loss_func = partial(token_loss, weights=of_tokens)
        return super().compute_loss(model, inputs, *args, **kwargs)


def token_loss(
    outputs: Any,
    labels: torch.Tensor,
    num_items_in_batch: torch.Tensor | int | None = None,
    weights: torch.Tensor | None = None,
) -> torch.Tensor:
    """Sum over this batch's labelled tokens, divided by those of the whole step on all processes.

    Args:
        outputs: with `logits` [1, S, vocabulary] of the S positions before labelled tokens.
        labels: int64 [S], those tokens.
        num_items_in_batch: labelled tokens of the step; None: of this batch.
        weights: float32 [S], how often each counts in the sum; None: once.

    Qwen2-Audio's own loss averages over the batch at hand and ignores `num_items_in_batch`, which Trainer takes every
    model with keyword arguments to honour: with accumulation its gradient would be too large.
    """
    if num_items_in_batch is not None:  # none at all, if every clip of a step is lost
        num_items_in_batch = torch.as_tensor(num_items_in_batch).clamp(min=1)
    logits = outputs.logits
    if weights is not None:
        losses = cross_entropy(logits[0].float(), labels, reduction="none")
        return (losses * weights).sum() / (max(1, len(labels)) if num_items_in_batch is None else num_items_in_batch)
    return ForCausalLMLoss(logits, None, logits.size(-1), num_items_in_batch, shift_labels=labels)
