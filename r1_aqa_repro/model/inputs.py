"""The only processor call: conversations and waveforms become token ids and audio features.

Prompts are returned unpadded; `pad_left` and `pad_right` make batches. Row `i` of the features belongs to prompt `i`,
and every prompt is checked on its own: a check of the batch's total would miss rows that swapped their audio.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedConfig, PreTrainedTokenizerBase, ProcessorMixin

from r1_aqa_repro.data.audio import SAMPLING_RATE, AudioError, load_audio, measure_audio
from r1_aqa_repro.data.prompts import END_OF_TURN, build_messages, prompt_text, target_text
from r1_aqa_repro.data.questions import AudioQuestion
from r1_aqa_repro.model.audio_encoder import trim_frames
from r1_aqa_repro.model.plain_text import plain

IGNORE = -100  # label of a position that is not scored, as PyTorch's and transformers' losses have it
AUDIO_KEYS = ("input_features", "feature_attention_mask")
_TOKENS_A_BYTE = 3  # of a text, at most: a token holds a byte or more, and Unicode's NFC makes three of one at most


@dataclass(frozen=True)
class PromptInputs:
    """Prompts of U questions, text alone."""

    prompt_ids: list[list[int]]  # U lists of token ids, no padding

    def audio(
        self, device: torch.device | str, rows: torch.Tensor | None = None, trim: bool = True
    ) -> dict[str, torch.Tensor]:
        """What the model is given beside the prompts: nothing."""
        return {}

    def picked(self, further: Any, indices: Sequence[int]) -> PromptInputs:
        """These questions of these inputs and then `further` ones."""
        both = self.prompt_ids + further.prompt_ids
        return PromptInputs([both[index] for index in indices])


@dataclass(frozen=True)
class ModelInputs(PromptInputs):
    """Prompts of U questions about clips, audio placeholders expanded, and the clips.

    input_features: float32 [U, num_mel_bins, num_frames], log-mel, padded on the right to the encoder's window.
    feature_attention_mask: int64 [U, num_frames], 1 on real frames.
    encoded: `input_features` are a frozen encoder's output instead, [U, d_model, tokens].
    """

    input_features: torch.Tensor
    feature_attention_mask: torch.Tensor
    encoded: bool = False

    def audio(
        self, device: torch.device | str, rows: torch.Tensor | None = None, trim: bool = True
    ) -> dict[str, torch.Tensor]:
        """The audio tensors as keyword arguments of the model, optionally for `rows` [N] of the U prompts.

        `trim` cuts them to the longest of these clips, which changes no feature (`audio_encoder.trim_frames`).
        """
        tensors = [getattr(self, key) for key in AUDIO_KEYS]
        if rows is not None:
            tensors = [tensor[rows.to(tensor.device)] for tensor in tensors]
        if trim and not self.encoded:
            tensors = list(trim_frames(*tensors))
        return {key: tensor.to(device) for key, tensor in zip(AUDIO_KEYS, tensors, strict=True)}

    def picked(self, further: Any, indices: Sequence[int]) -> ModelInputs:
        clips = [*self.input_features, *further.input_features]
        mask = torch.cat([self.feature_attention_mask, further.feature_attention_mask])[list(indices)]
        prompt_ids = super().picked(further, indices).prompt_ids
        return ModelInputs(prompt_ids, stack_clips([clips[index] for index in indices]), mask, self.encoded)


def stack_clips(clips: Sequence[torch.Tensor]) -> torch.Tensor:
    """Features [channels, length] of U clips, padded on the right to the longest: [U, channels, longest]."""
    longest = max(clip.size(-1) for clip in clips)
    return torch.stack([torch.nn.functional.pad(clip, (0, longest - clip.size(-1))) for clip in clips])


def process(
    processor: ProcessorMixin, conversations: Sequence[list[dict[str, Any]]], waveforms: Sequence[np.ndarray]
) -> ModelInputs:
    """Render U conversations with the chat template and extract the features of their U clips.

    A waveform is float32 [num_samples] at 16 kHz. What lies beyond the feature extractor's window (30 s of Qwen2-Audio)
    is not heard.

    Raises:
        ValueError: a prompt whose number of audio placeholders is not what its clip gives.
    """
    texts = [_rendered(processor, conversation) for conversation in conversations]
    outputs = processor(text=texts, audio=list(waveforms), sampling_rate=SAMPLING_RATE)
    inputs = ModelInputs(
        prompt_ids=[list(map(int, ids)) for ids in outputs["input_ids"]],
        input_features=torch.as_tensor(np.asarray(outputs["input_features"]), dtype=torch.float32),
        feature_attention_mask=torch.as_tensor(np.asarray(outputs["feature_attention_mask"]), dtype=torch.long),
    )
    audio_token_id = processor.tokenizer.convert_tokens_to_ids(processor.audio_token)
    expected = num_audio_tokens(inputs.feature_attention_mask).tolist()
    for row, (ids, features) in enumerate(zip(inputs.prompt_ids, expected, strict=True)):
        if (tokens := ids.count(audio_token_id)) != features:
            raise ValueError(f"prompt {row} holds {tokens} audio tokens, its clip gives {features} features")
    return inputs


def _rendered(processor: ProcessorMixin, conversation: list[dict[str, Any]]) -> str:
    return str(processor.apply_chat_template(conversation, add_generation_prompt=True, tokenize=False))


def num_audio_tokens(feature_attention_mask: torch.Tensor) -> torch.Tensor:
    """Tokens a clip takes: two convolutions and a pooling, as Qwen2AudioEncoder computes them. [U, frames] -> [U]."""
    after_convolutions = (feature_attention_mask.sum(-1) - 1) // 2 + 1
    return (after_convolutions - 2) // 2 + 1


def load_clip(question: AudioQuestion, channel: str, processor: ProcessorMixin, blind: bool = False) -> np.ndarray:
    """The waveform of a question, or silence of the same length.

    Raises:
        AudioError: the clip cannot be decoded, or is shorter than `minimum_seconds`.
    """
    samples = load_audio(question.audio_path, channel)
    seconds = len(samples) / SAMPLING_RATE
    if seconds < minimum_seconds(processor):
        raise AudioError(question.audio_path, f"the clip is too short ({seconds:.3f} s)")
    return np.zeros_like(samples) if blind else samples


def minimum_seconds(processor: ProcessorMixin) -> float:
    """Shortest usable clip: 0.1 s, and at least the 7 frames that give two audio tokens.

    A prompt with a single audio token is taken by transformers for one that still has to be expanded, which merges
    its features by another rule and cannot take the shared-prefix mask.
    """
    return max(0.1, 7 * processor.feature_extractor.hop_length / SAMPLING_RATE)


def question_inputs(
    processor: ProcessorMixin,
    questions: Sequence[AudioQuestion],
    style: str,
    channel: str = "first",
    blind: bool = False,
) -> ModelInputs:
    """From questions to model inputs: what training and evaluation both call."""
    clips = [load_clip(question, channel, processor, blind) for question in questions]
    return process(processor, [build_messages(question, style) for question in questions], clips)


def target_ids(tokenizer: PreTrainedTokenizerBase, question: AudioQuestion, style: str) -> list[int]:
    """Token ids of what supervised fine-tuning teaches: the answer, and the end of the turn."""
    ids: list[int] = tokenizer(plain(tokenizer, target_text(question, style)) + END_OF_TURN)["input_ids"]
    return ids


def too_long(
    processor: ProcessorMixin,
    config: PreTrainedConfig,
    questions: Iterable[AudioQuestion],
    style: str,
    room: int,
    taught: bool = False,
) -> Iterator[tuple[AudioQuestion, str]]:
    """The questions that a model has too few positions for, each with what is wrong.

    What is short by its bytes is not tokenised, and its clip not asked for its length. Those whose clip cannot be heard
    are not put to the model.

    Args:
        processor, config: of the model.
        questions, style: what is asked, and how.
        room: tokens of a completion.
        taught: the right answer needs its room, too.
    """
    tokenizer, extractor = processor.tokenizer, processor.feature_extractor
    positions = config.get_text_config().max_position_embeddings
    nothing = [{"role": "user", "content": [{"type": "audio", "audio": ""}, {"type": "text", "text": ""}]}]
    template = _rendered(processor, nothing)
    window = int(num_audio_tokens(torch.tensor([extractor.nb_max_frames])))
    for question in questions:
        prompt, answer = prompt_text(question, style), target_text(question, style) if taught else ""
        most, most_answered = (_TOKENS_A_BYTE * len(text.encode()) for text in (template + prompt, answer))
        if most + window + max(room, most_answered) <= positions:
            continue
        try:
            frames = -(-measure_audio(question.audio_path, minimum_seconds(processor)) // extractor.hop_length)
        except AudioError:
            continue
        clip = int(num_audio_tokens(torch.tensor([min(frames, extractor.nb_max_frames)])))
        ids = tokenizer(_rendered(processor, build_messages(question, style)))["input_ids"]
        length = len(ids) - 1 + clip  # the clip's own token becomes so many
        length += max(room, len(target_ids(tokenizer, question, style)) if taught else 0)
        if length > positions:
            yield question, f"prompt, clip and completion take {length:,} tokens, the model has {positions:,} positions"


def text_inputs(tokenizer: PreTrainedTokenizerBase, conversations: Sequence[list[dict[str, str]]]) -> PromptInputs:
    """Prompts of U conversations about text, up to where the assistant's turn begins."""
    return PromptInputs(token_ids(tokenizer, conversations, complete=False))


def token_ids(
    tokenizer: PreTrainedTokenizerBase, conversations: Sequence[Sequence[dict[str, str]]], complete: bool
) -> list[list[int]]:
    """Conversations about text as the model sees them; incomplete ones with the beginning of the assistant's turn."""
    texts = [
        tokenizer.apply_chat_template(list(messages), tokenize=False, add_generation_prompt=not complete)
        for messages in conversations
    ]
    return tokenizer(texts, add_special_tokens=False)["input_ids"]


def pad_left(sequences: Sequence[Sequence[int]], value: int) -> torch.Tensor:
    """Pad lists of ids on the left to one int64 tensor [N, longest]."""
    longest = max(map(len, sequences))
    return torch.tensor([[value] * (longest - len(ids)) + list(ids) for ids in sequences])


def pad_right(sequences: Sequence[Sequence[int]], value: int) -> torch.Tensor:
    """Pad lists of ids on the right to one int64 tensor [N, longest]."""
    longest = max(map(len, sequences))
    return torch.tensor([list(ids) + [value] * (longest - len(ids)) for ids in sequences])


def attention_mask_left(sequences: Sequence[Sequence[int]]) -> torch.Tensor:
    """1 on the ids that `pad_left` keeps, 0 on its padding: int64 [N, longest]."""
    return pad_left([[1] * len(ids) for ids in sequences], 0)


def position_ids_of(attention_mask: torch.Tensor) -> torch.Tensor:
    """Positions that count real tokens only: [N, L] -> [N, L], 0 on leading padding."""
    return (attention_mask.long().cumsum(-1) - 1).clamp(min=0)
