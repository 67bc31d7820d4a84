"""Completions of a checkpoint for batches of questions: each prompt is run once, however many completions it gets."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import (
    EpsilonLogitsWarper,
    EtaLogitsWarper,
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    MinPLogitsWarper,
    PreTrainedModel,
    ProcessorMixin,
    TemperatureLogitsWarper,
    TopHLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
    TypicalLogitsWarper,
)

from eval.asking import Asked, Key, ask
from r1_aqa_repro.common.errors import Problem, Refused
from r1_aqa_repro.data.audio import AudioError
from r1_aqa_repro.data.prompts import build_messages
from r1_aqa_repro.data.questions import AudioQuestion
from r1_aqa_repro.model import generation, loading
from r1_aqa_repro.model.generation import greedy_config
from r1_aqa_repro.model.inputs import load_clip, process

# What shapes the distribution that is sampled from, in the order in which `generate()` applies it: the value that
# changes nothing, and the class.
_WARPERS: dict[str, tuple[float | None, type[LogitsProcessor]]] = {
    "temperature": (1.0, TemperatureLogitsWarper),
    "top_h": (None, TopHLogitsWarper),
    "top_k": (0, TopKLogitsWarper),
    "top_p": (1.0, TopPLogitsWarper),
    "min_p": (None, MinPLogitsWarper),
    "typical_p": (1.0, TypicalLogitsWarper),
    "epsilon_cutoff": (0.0, EpsilonLogitsWarper),
    "eta_cutoff": (0.0, EtaLogitsWarper),
}


@dataclass(frozen=True)
class Hearing:
    """How clips are heard: `channel` as in `audio.load_audio`; `blind` hears silence of the same length instead."""

    channel: str = "first"
    blind: bool = False


@dataclass(frozen=True)
class Generator:
    """A model in evaluation mode that answers questions.

    `warpers` make the distribution that completions are drawn from; None takes the likeliest token each time.
    """

    model: PreTrainedModel
    processor: ProcessorMixin
    config: GenerationConfig
    style: str
    hearing: Hearing
    autocast: Callable[[], AbstractContextManager[object]] = nullcontext
    warpers: LogitsProcessorList | None = None

    @classmethod
    def load(
        cls,
        folder: Path,
        *,
        dtype: str,
        device: str,
        style: str,
        hearing: Hearing,
        max_new_tokens: int,
        adapter: Path | None = None,
        own_settings: Mapping[str, Any] | None = None,
    ) -> Generator:
        """Load a checkpoint.

        Args:
            folder: model and processor.
            adapter: a LoRA adapter on top of them.
            own_settings: decode as these say (`checkpoints.decoding_settings`) instead of greedily.

        Raises:
            Refused: see `loading.load`; a device that is not there.
        """
        processor = loading.load_processor(folder)
        model = loading.load_model(adapter or folder, dtype, base=folder if adapter else None)
        loading.check_pair(model.config, processor, str(folder))
        try:
            model = model.to(device)
        except (RuntimeError, AssertionError) as error:  # torch without CUDA asserts
            what = f"the model cannot be put on the device ({str(error).splitlines()[0]})"
            raise Refused.because(f"--device {device}", what, "Give cpu or a device this machine has.") from None
        config, warpers = greedy_config(model, processor, max_new_tokens), None
        if own_settings is not None:
            config, warpers = checkpoint_config(config, own_settings)
        return cls(model.eval(), processor, config, style, hearing, warpers=warpers)

    def complete(self, questions: Sequence[AudioQuestion], warn: Callable[[str], None]) -> list[str | None]:
        """One completion a question, in order; None, and a warning, where its clip cannot be used."""
        return [completions[0] for completions in self.answer(ask(questions), warn)]

    def answer(self, asked: Sequence[Asked], warn: Callable[[str], None]) -> list[list[str | None]]:
        """The completions of each prompt, in order; None each, and a warning, where its clip cannot be used.

        A sampled completion depends on its question, the number of its repeat and the model alone, not on what else
        is in the batch, as far as the arithmetic is exact: in float32, in practice.

        Args:
            asked: prompts, all with equally many repeats.
            warn: is told of each clip that cannot be used.
        """
        heard: list[Asked] = []
        clips: list[np.ndarray] = []
        for one in asked:
            try:
                clips.append(load_clip(one.question, self.hearing.channel, self.processor, self.hearing.blind))
                heard.append(one)
            except AudioError as error:
                if one.first_repeat == 0:
                    warn(f"question {one.question.id} has no audio and counts as wrong: {error}")
        keys = [key for one in heard for key in one.keys]
        texts: list[str] = []
        if heard:
            inputs = process(self.processor, [build_messages(one.question, self.style) for one in heard], clips)
            rows = torch.arange(len(heard)).repeat_interleave(len(keys) // len(heard))
            token_ids = generation.generate(
                self.model,
                inputs,
                rows,
                self.config,
                autocast=self.autocast(),
                logits_processor=self._sampling(keys, max(map(len, inputs.prompt_ids))),
            )
            texts = self.processor.tokenizer.batch_decode(token_ids, skip_special_tokens=True)
        completions = dict(zip(keys, texts, strict=True))
        return [[completions.get(key) for key in one.keys] for one in asked]

    def _sampling(self, keys: Sequence[Key], prompt_length: int) -> LogitsProcessorList | None:
        if self.warpers is None:
            return None
        draws = torch.tensor(np.stack([draws_of(key, self.config.max_new_tokens) for key in keys]))
        return LogitsProcessorList([*self.warpers, Draw(draws.to(self.model.device), prompt_length)])


def checkpoint_config(
    greedy: GenerationConfig, own: Mapping[str, Any]
) -> tuple[GenerationConfig, LogitsProcessorList | None]:
    """A checkpoint's own way of decoding, as `generate()` alone would do it.

    Args:
        greedy: what the checkpoint does not decide: lengths and special tokens.
        own: its settings, see `checkpoints.decoding_settings`.

    Returns:
        The configuration without what shapes the sampling, and that; None where the checkpoint does not sample.
    """
    values = greedy.to_diff_dict() | {name: value for name, value in own.items() if name not in _WARPERS}
    values["suppress_tokens"] = [*greedy.suppress_tokens, *(own.get("suppress_tokens") or [])]
    config = GenerationConfig(**values | {"do_sample": False})  # the drawing is done by `Draw`
    if not own["do_sample"]:
        return config, None
    return config, LogitsProcessorList(
        kind(own[name]) for name, (neutral, kind) in _WARPERS.items() if own.get(name, neutral) != neutral
    )


class Draw(LogitsProcessor):
    """Leaves one token a row: the one that a number drawn beforehand falls on.

    `generate()` draws from one random state for the whole batch, so that a completion would depend on its neighbours.

    Args:
        draws: float64 [N, max_new_tokens], uniform in [0, 1).
        prompt_length: tokens of the padded prompts.
    """

    def __init__(self, draws: torch.Tensor, prompt_length: int):
        self.draws, self.prompt_length = draws, prompt_length

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """[N, length so far] and [N, vocabulary] -> [N, vocabulary], 0 at the drawn token and -inf elsewhere."""
        cumulative = scores.double().softmax(-1).cumsum(-1)
        draws = self.draws[:, input_ids.size(1) - self.prompt_length, None] * cumulative[:, -1:]
        tokens = torch.searchsorted(cumulative, draws, right=True)  # [N, 1], never one of probability 0
        return torch.full_like(scores, float("-inf")).scatter(1, tokens, 0.0)


def draws_of(key: Key, count: int) -> np.ndarray:
    """The numbers that decide the completion of a question and repeat: float64 [count], uniform in [0, 1)."""
    seed = hashlib.sha256(f"{key[1]} {key[0]}".encode()).digest()
    return np.random.default_rng(int.from_bytes(seed, "big")).random(count)


def require_audio(folder: Path, questions: Iterable[AudioQuestion], hearing: Hearing) -> None:
    """Decode every clip before any is needed.

    Raises:
        Refused: naming every clip that cannot be used.
    """
    processor = loading.load_processor(folder)
    problems = []
    for question in questions:
        try:
            load_clip(question, hearing.channel, processor)
        except AudioError as error:
            problems.append(Problem(question.id, str(error), "Repair the file, or evaluate without --strict."))
    if problems:
        raise Refused(problems)
