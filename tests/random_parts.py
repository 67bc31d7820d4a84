"""A Whisper and a Qwen2 with random weights, as they lie in folders, and the command that composes them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import WhisperConfig, WhisperFeatureExtractor, WhisperForConditionalGeneration, WhisperModel
from transformers.models.whisper.modeling_whisper import sinusoids

from r1_aqa_repro.data.prompts import prompt_text
from r1_aqa_repro.data.questions import AudioQuestion
from r1_aqa_repro.embedded.tiny_qwen2 import TextGeometry, build_qwen2, build_text_tokenizer
from r1_aqa_repro.model.files import save_whole


@dataclass(frozen=True)
class Parts:
    """The sizes of random parts."""

    mel_bins: int
    tied: bool
    key_value_heads: int
    padding_rows: int  # of the vocabulary, behind the tokenizer's tokens
    whole_whisper: bool = True  # with the decoder's head, as published, or a WhisperModel
    sharded: bool = False
    window: int = 3


GEOMETRIES = (
    Parts(mel_bins=80, tied=True, key_value_heads=1, padding_rows=0),
    Parts(mel_bins=128, tied=False, key_value_heads=2, padding_rows=40, whole_whisper=False, sharded=True, window=2),
    Parts(mel_bins=80, tied=True, key_value_heads=2, padding_rows=2, window=5),
)


def make_whisper(folder: Path, parts: Parts) -> None:
    """Random weights in float16; 8 s instead of 30."""
    config = WhisperConfig(
        vocab_size=60, num_mel_bins=parts.mel_bins, d_model=32, encoder_layers=2, encoder_attention_heads=4,
        encoder_ffn_dim=64, decoder_layers=1, decoder_attention_heads=2, decoder_ffn_dim=32, max_source_positions=400,
        max_target_positions=16, pad_token_id=0, bos_token_id=1, eos_token_id=1, decoder_start_token_id=1,
        begin_suppress_tokens=None, suppress_tokens=None, init_std=0.2,
    )  # fmt: skip
    torch.manual_seed(1)
    model = (WhisperForConditionalGeneration if parts.whole_whisper else WhisperModel)(config)
    positions = model.get_encoder().embed_positions.weight
    with torch.no_grad():
        positions.copy_(sinusoids(*positions.shape))
    model.half().save_pretrained(folder)
    WhisperFeatureExtractor(feature_size=parts.mel_bins, chunk_length=8).save_pretrained(folder)


def make_language_model(folder: Path, parts: Parts, questions: Sequence[AudioQuestion]) -> None:
    geometry = TextGeometry(
        max_vocabulary=320, hidden=32, layers=2, heads=2, key_value_heads=parts.key_value_heads, intermediate=64
    )
    tokenizer = build_text_tokenizer(geometry, [prompt_text(question, "answer") for question in questions])
    model = build_qwen2(tokenizer, geometry, seed=2)
    torch.manual_seed(3)
    if parts.tied:
        model.config.tie_word_embeddings = True
    model.resize_token_embeddings(len(tokenizer) + parts.padding_rows, mean_resizing=False)
    model.tie_weights()
    save_whole(folder, model.to(torch.bfloat16), tokenizer)
    if parts.sharded:
        (folder / "model.safetensors").unlink()
        model.save_pretrained(folder, max_shard_size="20KB")
        assert len(list(folder.glob("*.safetensors"))) > 2


@dataclass(frozen=True)
class Composed:
    encoder: Path
    language_model: Path
    out: Path
    window: int

    @property
    def argv(self) -> list[str]:
        return [
            *("--encoder", str(self.encoder), "--language-model", str(self.language_model)),
            *("--window-seconds", str(self.window), "--out", str(self.out)),
        ]


def made(folder: Path, parts: Parts, questions: Sequence[AudioQuestion]) -> Composed:
    folder.mkdir(parents=True, exist_ok=True)
    composed = Composed(folder / "whisper", folder / "qwen2", folder / "composed", parts.window)
    make_whisper(composed.encoder, parts)
    make_language_model(composed.language_model, parts, questions)
    return composed
