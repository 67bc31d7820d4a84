"""A real Qwen2-Audio small enough for a laptop: tokenizer, processor and model from configuration, no download."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import (
    GenerationConfig,
    PretrainedConfig,
    PreTrainedTokenizerBase,
    Qwen2AudioConfig,
    Qwen2AudioEncoderConfig,
    Qwen2AudioForConditionalGeneration,
    Qwen2AudioProcessor,
    Qwen2Config,
    Qwen2Tokenizer,
    WhisperFeatureExtractor,
)
from transformers.models.qwen2.tokenization_qwen2 import PRETOKENIZE_REGEX
from transformers.models.whisper.modeling_whisper import sinusoids

_SPECIAL_TOKENS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|AUDIO|>", "<|audio_bos|>", "<|audio_eos|>"]


@dataclass(frozen=True)
class Geometry:
    """The sizes of a Qwen2-Audio; the defaults are those of the embedded model."""

    # what it hears
    num_mel_bins: int = 80
    hop_length: int = 320  # samples a frame, at 16 kHz
    window_seconds: int = 3
    # encoder
    encoder_hidden: int = 96
    encoder_layers: int = 2
    encoder_heads: int = 4
    # language model
    max_vocabulary: int = 800
    text_hidden: int = 128
    text_layers: int = 2
    text_heads: int = 4
    text_intermediate: int = 256
    max_positions: int = 2048
    # Standard deviation of the weights. 0.02 suits a hidden size of thousands; in a narrow model it makes every layer
    # shrink its input, and the encoder's sinusoids, which are of size 1, drown what is heard.
    encoder_initializer_range: float = 0.15
    text_initializer_range: float = 0.06


TINY = Geometry()
TEST = Geometry(
    encoder_hidden=16,
    encoder_layers=1,
    encoder_heads=2,
    max_vocabulary=300,
    text_hidden=32,
    text_layers=1,
    text_heads=2,
    text_intermediate=64,
)


def build_processor(geometry: Geometry, texts: Iterable[str]) -> Qwen2AudioProcessor:
    """A processor as Qwen2-Audio-7B-Instruct has it: ChatML template, text padded left, audio padded right.

    Args:
        geometry: sizes.
        texts: what the tokenizer is trained on. Leave completions out: a merge such as `>getting` would join the tag
            to the answer. Bytes are its alphabet, so any text can be tokenised.
    """
    extractor = WhisperFeatureExtractor(
        feature_size=geometry.num_mel_bins,
        sampling_rate=16_000,
        hop_length=geometry.hop_length,
        chunk_length=geometry.window_seconds,
        n_fft=400,
    )
    tokenizer = train_tokenizer(texts, geometry.max_vocabulary, geometry.max_positions, _SPECIAL_TOKENS)
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
    text = Qwen2Config(
        vocab_size=len(processor.tokenizer),
        hidden_size=geometry.text_hidden,
        intermediate_size=geometry.text_intermediate,
        num_hidden_layers=geometry.text_layers,
        num_attention_heads=geometry.text_heads,
        num_key_value_heads=geometry.text_heads,
        max_position_embeddings=geometry.max_positions,
        tie_word_embeddings=False,
        initializer_range=geometry.text_initializer_range,
        bos_token_id=None,
    )
    return with_random_weights(Qwen2AudioConfig(audio_config=audio, text_config=text), processor, seed)


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


def random_model(
    architecture: Any,
    config: PretrainedConfig,
    tokenizer: PreTrainedTokenizerBase,
    seed: int,
    dtype: torch.dtype | None = None,
    device: torch.device | str = "cpu",
) -> Any:
    """A model whose weights the seed decides; it decodes greedily and ends at the tokenizer's end of a turn."""
    with torch.random.fork_rng(), torch.device(device):
        torch.manual_seed(seed)
        model = architecture._from_config(config, dtype=dtype, attn_implementation="sdpa")
    model.generation_config = GenerationConfig(
        eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id, do_sample=False
    )
    return model


def build_tiny_qwen2_audio(out: Path, *, texts: Iterable[str], seed: int, geometry: Geometry = TINY) -> None:
    """Save model, processor and generation config in `out`, in the layout of a downloaded Qwen2-Audio.

    Written under another name and then renamed, so that a folder called `out` is complete.

    Args:
        out: folder to make; must not exist.
        texts: what the tokenizer is trained on, see `build_processor`.
        seed: seed of the weights.
        geometry: sizes.

    Raises:
        FileExistsError: `out` exists.
    """
    processor = build_processor(geometry, texts)
    save_whole(out, build_qwen2_audio(processor, geometry, seed), processor)


def save_whole(out: Path, *parts: Any) -> None:
    """Save a model and what belongs to it in a new folder, which appears by one rename.

    Raises:
        FileExistsError: `out` exists.
    """
    out = Path(out)
    if out.exists():
        raise FileExistsError(f"{out} exists already")
    unfinished = out.with_name(f".{out.name}.partial")
    shutil.rmtree(unfinished, ignore_errors=True)
    for part in parts:
        part.save_pretrained(unfinished)
    os.replace(unfinished, out)


def train_tokenizer(
    texts: Iterable[str], max_vocabulary: int, max_positions: int, special_tokens: Sequence[str]
) -> Qwen2Tokenizer:
    """Byte-level BPE with Qwen2's own splitting of words; ends at `<|im_end|>`, pads left with `<|endoftext|>`.

    Args:
        texts: what it is trained on. Bytes are its alphabet, so any text can be tokenised.
        max_vocabulary: tokens at most, the special ones included.
        max_positions: longest input of the model, in tokens.
        special_tokens: in the order of their numbers, which follow those of the trained tokens.
    """
    bpe = Tokenizer(models.BPE())
    bpe.normalizer = normalizers.NFC()
    bpe.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PRETOKENIZE_REGEX), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=max_vocabulary - len(special_tokens),
        min_frequency=2,
        show_progress=False,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
    )
    bpe.train_from_iterator(texts, trainer)
    trained = json.loads(bpe.to_str())["model"]
    return Qwen2Tokenizer(
        vocab=trained["vocab"],
        merges=[tuple(merge) for merge in trained["merges"]],
        unk_token=None,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        additional_special_tokens=list(special_tokens),
        padding_side="left",
        model_max_length=max_positions,
    )
