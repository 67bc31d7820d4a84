"""Greedy completions of a checkpoint for batches of questions."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from transformers import GenerationConfig, PreTrainedModel, ProcessorMixin

from r1_aqa_repro import generation, modeling
from r1_aqa_repro.audio import AudioError
from r1_aqa_repro.errors import Problem, Refused
from r1_aqa_repro.inputs import load_clip, process
from r1_aqa_repro.prompts import build_messages
from r1_aqa_repro.schema import AudioQuestion


@dataclass(frozen=True)
class Hearing:
    """How clips are heard: `channel` as in `audio.load_audio`; `blind` hears silence of the same length instead."""

    channel: str = "first"
    blind: bool = False


@dataclass(frozen=True)
class Generator:
    """A model in evaluation mode that answers questions greedily."""

    model: PreTrainedModel
    processor: ProcessorMixin
    config: GenerationConfig
    style: str
    hearing: Hearing
    autocast: Callable[[], AbstractContextManager[object]] = nullcontext

    @classmethod
    def load(
        cls, folder: Path, *, dtype: str, device: str, style: str, hearing: Hearing, max_new_tokens: int
    ) -> Generator:
        """Load a checkpoint.

        Raises:
            Refused: see `modeling.load`; a device that is not there.
        """
        model, processor = modeling.load(folder, dtype)
        try:
            model = model.to(device)
        except (RuntimeError, AssertionError) as error:  # torch without CUDA asserts
            what = f"the model cannot be put on the device ({str(error).splitlines()[0]})"
            raise Refused.because(f"--device {device}", what, "Give cpu or a device this machine has.") from None
        config = greedy_config(model, processor, max_new_tokens)
        return cls(model.eval(), processor, config, style, hearing)

    def complete(self, questions: Sequence[AudioQuestion], warn: Callable[[str], None]) -> list[str | None]:
        """One completion a question, in order; None, and a warning, where its clip cannot be used."""
        clips: dict[int, np.ndarray] = {}
        for index, question in enumerate(questions):
            try:
                clips[index] = load_clip(question, self.hearing.channel, self.processor, self.hearing.blind)
            except AudioError as error:
                warn(f"question {question.id} has no audio and counts as wrong: {error}")
        completions: list[str | None] = [None] * len(questions)
        if clips:
            conversations = [build_messages(questions[index], self.style) for index in clips]
            inputs = process(self.processor, conversations, list(clips.values()))
            rows = torch.arange(len(clips))
            token_ids = generation.generate(self.model, inputs, rows, self.config, autocast=self.autocast())
            texts = self.processor.tokenizer.batch_decode(token_ids, skip_special_tokens=True)
            for index, text in zip(clips, texts, strict=True):
                completions[index] = text
        return completions


def greedy_config(model: PreTrainedModel, processor: ProcessorMixin, max_new_tokens: int) -> GenerationConfig:
    """Greedy decoding up to any of the model's end-of-sequence tokens, whatever its own settings say."""
    return GenerationConfig(
        do_sample=False,
        num_beams=1,
        max_new_tokens=max_new_tokens,
        eos_token_id=modeling.eos_token_ids(model, processor),
        pad_token_id=processor.tokenizer.pad_token_id,
        # a generated placeholder would stand for a clip that does not exist
        suppress_tokens=[model.config.audio_token_id],
    )


def require_audio(folder: Path, questions: Iterable[AudioQuestion], hearing: Hearing) -> None:
    """Decode every clip before any is needed.

    Raises:
        Refused: naming every clip that cannot be used.
    """
    processor = modeling.load_processor(folder)
    problems = []
    for question in questions:
        try:
            load_clip(question, hearing.channel, processor)
        except AudioError as error:
            problems.append(Problem(question.id, str(error), "Repair the file, or evaluate without --strict."))
    if problems:
        raise Refused(problems)
