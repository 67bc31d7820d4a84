"""Completions of a checkpoint for batches of prompts: each prompt is run once, however many completions it gets."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch
from transformers import (
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    PreTrainedModel,
    ProcessorMixin,
)

from eval.grid import AudioPrompt, Key
from eval.settings import EvalSettings
from r1_aqa_repro.common.distributed import num_local_processes
from r1_aqa_repro.common.errors import Problem, Refused
from r1_aqa_repro.data.audio import AudioError
from r1_aqa_repro.data.prompts import build_messages, prompt_text
from r1_aqa_repro.data.questions import AudioQuestion
from r1_aqa_repro.model import generation, loading
from r1_aqa_repro.model.inputs import load_clip, process, too_long
from r1_aqa_repro.model.plain_text import say_spelled

_LARGEST = {"cpu": 16, "cuda": 64}  # questions at once: more would gain little
_TEXT_TOKENS = 256  # of a prompt, beside its audio
_SHARE = 0.5  # of the free memory: the rest is for what the estimate leaves out, and for fragmentation


@dataclass(frozen=True)
class Generator:
    """A model in evaluation mode that answers questions.

    Attributes:
        model, processor: of the checkpoint.
        config: lengths, special tokens and what else is not sampling.
        style: see `prompts.PROMPT_STYLES`.
        audio_channel: see `audio.load_audio`.
        no_audio: put silence of the same length in place of every clip.
        autocast: makes the mixed-precision context to generate in.
        warpers: make the distribution that completions are drawn from; None takes the likeliest token each time.
    """

    model: PreTrainedModel
    processor: ProcessorMixin
    config: GenerationConfig
    style: str
    audio_channel: str = "first"
    no_audio: bool = False
    autocast: Callable[[], AbstractContextManager[object]] = nullcontext
    warpers: LogitsProcessorList | None = None

    @classmethod
    def load(cls, settings: EvalSettings, own_decoding: Mapping[str, Any] | None = None) -> Generator:
        """Load a checkpoint.

        Args:
            settings: with the folder of the model and its processor, `dtype`, `device` and `prompt_style`.
            own_decoding: decode as these say (`checkpoints.decoding_settings`) instead of greedily.

        Raises:
            Refused: see `loading.load`; there is no such device.
        """
        folder, adapter = Path(settings.ckpt), settings.adapter
        processor = loading.load_processor(folder)
        model = loading.load_model(adapter or folder, str(settings.dtype), base=folder if adapter else None)
        loading.check_pair(model.config, processor, str(folder))
        try:
            model = model.to(settings.device)
        except (RuntimeError, AssertionError) as error:  # torch without CUDA asserts
            what = f"the model cannot be put on the device ({str(error).splitlines()[0]})"
            remedy = "Give cpu or a device this machine has."
            raise Refused.because(f"--device {settings.device}", what, remedy) from None
        return cls.of(model.eval(), processor, settings, own_decoding)

    @classmethod
    def of(
        cls,
        model: PreTrainedModel,
        processor: ProcessorMixin,
        settings: EvalSettings,
        own_decoding: Mapping[str, Any] | None = None,
    ) -> Generator:
        """A model that is loaded already, asked as these settings say; see `load`."""
        config, warpers = generation.greedy_config(model, processor, settings.max_new_tokens), None
        if own_decoding is not None:
            config, warpers = checkpoint_config(config, own_decoding)
        style, channel = str(settings.prompt_style), settings.audio_channel
        return cls(model, processor, config, style, channel, settings.no_audio, warpers=warpers)

    @property
    def window_seconds(self) -> float:
        """What the model hears of a clip, from its beginning."""
        return float(self.processor.feature_extractor.chunk_length)

    def answer(self, prompts: Sequence[AudioPrompt], warn: Callable[[str], None]) -> list[list[str | None]]:
        """The completions of each prompt, in order; None each, and a warning, if its clip cannot be used.

        A sampled completion depends on its question, the number of its repeat and the model alone, not on what else
        is in the batch, as far as the arithmetic is exact: in float32, in practice.

        Args:
            prompts: all with equally many repeats.
            warn: is told of each clip that cannot be used.
        """
        readable: list[AudioPrompt] = []
        clips: list[np.ndarray] = []
        for one in prompts:
            try:
                clips.append(load_clip(one.question, self.audio_channel, self.processor, self.no_audio))
                readable.append(one)
            except AudioError as error:
                if one.first_repeat == 0:
                    warn(f"question {one.question.id} has no audio and counts as wrong: {error}")
        keys = [key for one in readable for key in one.keys]
        texts: list[str] = []
        if readable:
            inputs = process(self.processor, [build_messages(one.question, self.style) for one in readable], clips)
            rows = torch.arange(len(readable)).repeat_interleave(len(keys) // len(readable))
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
        return [[completions.get(key) for key in one.keys] for one in prompts]

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
        The configuration without what shapes the sampling, and that; None if the checkpoint does not sample.
    """
    values = greedy.to_diff_dict() | {name: value for name, value in own.items() if name not in generation.WARPERS}
    values["suppress_tokens"] = [*greedy.suppress_tokens, *(own.get("suppress_tokens") or [])]
    config = GenerationConfig(**values | {"do_sample": False})  # `Draw` draws
    if not own["do_sample"]:
        return config, None
    return config, generation.warpers_of(own)


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


def check_prompts(questions: Sequence[AudioQuestion], settings: EvalSettings, file: str) -> None:
    """Say which questions of a file spell special tokens, before any is put to the model.

    Raises:
        Refused: naming every question that the model has no room for.
    """
    processor, style = loading.load_processor(settings.ckpt), str(settings.prompt_style)
    say_spelled(processor.tokenizer, file, ((question.id, prompt_text(question, style)) for question in questions))
    remedy = "Shorten its texts, or lower --max-new-tokens."
    found = too_long(processor, loading.check_model_folder(settings.ckpt), questions, style, settings.max_new_tokens)
    problems = [Problem(f"{file}: {question.id}", what, remedy) for question, what in found]
    if problems:
        raise Refused(problems)


def require_audio(questions: Iterable[AudioQuestion], settings: EvalSettings) -> None:
    """Decode every clip before any is needed.

    Raises:
        Refused: naming every clip that cannot be used.
    """
    processor = loading.load_processor(settings.ckpt)
    problems = []
    for question in questions:
        try:
            load_clip(question, settings.audio_channel, processor)
        except AudioError as error:
            problems.append(Problem(question.id, str(error), "Repair the file, or evaluate without --strict."))
    if problems:
        raise Refused(problems)


def starting_batch_size(model: PreTrainedModel, repeats: int, max_new_tokens: int) -> int:
    """The batch size that `auto` begins with: a power of two.

    It is the largest of 64 questions on a GPU and 16 on a CPU that half of the free memory holds, by
    `bytes_a_question`. On a CPU it stays at that unless an allocation fails; on a GPU running out of memory is noticed,
    and halves it.
    """
    if model.device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(model.device)
    else:
        free = psutil.virtual_memory().available // num_local_processes()
    size = _LARGEST.get(model.device.type, 16)
    while size > 1 and size * bytes_a_question(model, repeats, max_new_tokens) > _SHARE * free:
        size //= 2
    return size


def bytes_a_question(model: PreTrainedModel, repeats: int, max_new_tokens: int) -> int:
    """An estimate of what one question with the longest clip takes: the sum of keys and values, the encoder's and the
    language model's widest activations in the prefill, and the scores that a token is chosen from."""
    audio, text = model.config.audio_config, model.config.get_text_config()
    number = model.dtype.itemsize
    kept = 4 if model.device.type == "cpu" else number  # bytes of a key or value
    tokens = audio.max_source_positions // 2 + _TEXT_TOKENS
    head_dim = text.hidden_size // text.num_attention_heads
    cache = 2 * text.num_hidden_layers * text.num_key_value_heads * head_dim * (tokens + repeats * max_new_tokens)
    encoder = 2 * audio.max_source_positions * (4 * audio.d_model + 2 * audio.encoder_ffn_dim)
    prefill = tokens * (6 * text.hidden_size + 3 * text.intermediate_size)
    scores = 6 * repeats * text.vocab_size * torch.float32.itemsize
    return kept * cache + number * (encoder + prefill) + scores
