"""A real Qwen2-Audio small enough for a laptop: tokenizer, processor and model from configuration, no download."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import (
    Qwen2AudioConfig,
    Qwen2AudioEncoderConfig,
    Qwen2AudioForConditionalGeneration,
    Qwen2AudioProcessor,
    WhisperFeatureExtractor,
)
from transformers.models.whisper.modeling_whisper import sinusoids

from r1_aqa_repro.embedded.tiny_qwen2 import TextGeometry, random_model, train_tokenizer
from r1_aqa_repro.model.files import save_whole

_SPECIAL_TOKENS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|AUDIO|>", "<|audio_bos|>", "<|audio_eos|>"]


@dataclass(frozen=True)
class Geometry(TextGeometry):
    """The sizes of a Qwen2-Audio; the defaults are those of the embedded model."""

    # what it hears
    num_mel_bins: int = 80
    hop_length: int = 320  # samples a frame, at 16 kHz
    window_seconds: int = 3
    # encoder
    encoder_hidden: int = 96
    encoder_layers: int = 2
    encoder_heads: int = 4
    encoder_initializer_range: float = 0.15  # narrower, and its sinusoids, which are of size 1, drown what is heard
    # language model
    max_vocabulary: int = 800
    key_value_heads: int = 4
    intermediate: int = 256
    max_positions: int = 2048
    initializer_range: float = 0.06


TINY = Geometry()
TEST = Geometry(
    encoder_hidden=16,
    encoder_layers=1,
    encoder_heads=2,
    max_vocabulary=300,
    hidden=32,
    layers=1,
    heads=2,
    key_value_heads=2,
    intermediate=64,
)


def build_processor(geometry: Geometry, texts: Iterable[str]) -> Qwen2AudioProcessor:
    """A processor as Qwen2-Audio-7B-Instruct has it: ChatML template, text padded left, audio padded right.

    The tokenizer is trained on `texts`. Leave completions out: a merge such as `>getting` would join the tag to the
    answer.
    """
    extractor = WhisperFeatureExtractor(
        feature_size=geometry.num_mel_bins,
        sampling_rate=16_000,
        hop_length=geometry.hop_length,
        chunk_length=geometry.window_seconds,
        n_fft=400,
    )
    tokenizer = train_tokenizer(texts, geometry, _SPECIAL_TOKENS)
    return Qwen2AudioProcessor(feature_extractor=extractor, tokenizer=tokenizer)


def build_qwen2_audio(
    processor: Qwen2AudioProcessor, geometry: Geometry, seed: int
) -> Qwen2AudioForConditionalGeneration:
    """A randomly initialised float32 model that fits `processor`; greedy decoding, ends at `<|im_end|>`."""
    extractor = processor.feature_extractor
    audio = Qwen2AudioEncoderConfig(
        num_mel_bins=extractor.feature_size,
        d_model=geometry.encoder_hidden,
        encoder_layers=geometry.encoder_layers,
        encoder_attention_heads=geometry.encoder_heads,
        encoder_ffn_dim=4 * geometry.encoder_hidden,
        max_source_positions=extractor.nb_max_frames // 2,
        initializer_range=geometry.encoder_initializer_range,
    )
    config = Qwen2AudioConfig(audio_config=audio, text_config=geometry.config(processor.tokenizer))
    return with_random_weights(config, processor, seed)


def with_random_weights(
    config: Qwen2AudioConfig,
    processor: Qwen2AudioProcessor,
    seed: int,
    dtype: torch.dtype | None = None,
    device: torch.device | str = "cpu",
) -> Qwen2AudioForConditionalGeneration:
    """A randomly initialised model of any sizes, with the special tokens of `processor` (written into `config`).

    float32 unless `dtype` says otherwise; greedy decoding, ends at `<|im_end|>`. The vocabulary may be larger than the
    tokenizer's.
    """
    tokenizer = processor.tokenizer
    config.audio_token_id = tokenizer.convert_tokens_to_ids(processor.audio_token)
    config.text_config.eos_token_id = tokenizer.eos_token_id
    config.text_config.pad_token_id = tokenizer.pad_token_id
    model = random_model(Qwen2AudioForConditionalGeneration, config, tokenizer, seed, dtype, device)
    positions = model.model.audio_tower.embed_positions.weight  # frozen, and noise when built from a configuration
    with torch.no_grad():
        positions.copy_(sinusoids(*positions.shape))
    return model


def build_tiny_qwen2_audio(out: Path, *, texts: Iterable[str], seed: int, geometry: Geometry = TINY) -> None:
    """Save model, processor and generation config in `out`, as those of a downloaded Qwen2-Audio lie.

    Raises:
        FileExistsError: `out` exists.
    """
    processor = build_processor(geometry, texts)
    processor.tokenizer.chat_template = processor.chat_template
    save_whole(out, build_qwen2_audio(processor, geometry, seed), processor.tokenizer, processor.feature_extractor)
