"""The configurations of models that the benchmarks and the planner build without a download."""

from __future__ import annotations

from collections.abc import Callable

from transformers import PreTrainedConfig, Qwen2AudioConfig, Qwen2AudioEncoderConfig, Qwen2Config

QWEN2_AUDIO_7B_INSTRUCT = "Qwen/Qwen2-Audio-7B-Instruct"


def mid_config() -> Qwen2AudioConfig:
    """38 M parameters, untied: large enough that matrix products dominate, small enough for one CPU core.

    The window is Qwen2-Audio's own: 128 mel bins, 30 s, 3000 frames, 1500 encoder positions, 750 audio tokens.
    """
    return Qwen2AudioConfig(
        audio_config=Qwen2AudioEncoderConfig(
            num_mel_bins=128,
            d_model=256,
            encoder_layers=4,
            encoder_attention_heads=4,
            encoder_ffn_dim=1024,
            max_source_positions=1500,
        ),
        text_config=Qwen2Config(
            vocab_size=8192,
            hidden_size=512,
            intermediate_size=1408,
            num_hidden_layers=8,
            num_attention_heads=8,
            num_key_value_heads=8,
            max_position_embeddings=8192,
            tie_word_embeddings=False,
            bos_token_id=None,
            eos_token_id=1,
            pad_token_id=0,
        ),
        audio_token_index=2,
    )


def qwen2_audio_7b_config(layers: int = 32) -> Qwen2AudioConfig:
    """Qwen2-Audio-7B-Instruct's own sizes, as its public config.json and transformers' defaults give them.

    With fewer `layers`, of encoder and language model, only the widths are its own.
    """
    return Qwen2AudioConfig(
        audio_config=Qwen2AudioEncoderConfig(encoder_layers=layers),
        text_config=Qwen2Config(
            vocab_size=156_032,
            hidden_size=4096,
            intermediate_size=11_008,
            num_hidden_layers=layers,
            num_attention_heads=32,
            num_key_value_heads=32,
            max_position_embeddings=8192,
            rms_norm_eps=1e-5,
            tie_word_embeddings=False,
            bos_token_id=151_643,
            eos_token_id=151_645,
        ),
        audio_token_index=151_646,
    )


def qwen2_7b_config() -> Qwen2Config:
    """Qwen2-7B-Instruct's sizes, as its public config.json has them."""
    return Qwen2Config(
        vocab_size=152_064,
        hidden_size=3584,
        intermediate_size=18_944,
        num_hidden_layers=28,
        num_attention_heads=28,
        num_key_value_heads=4,
        tie_word_embeddings=False,
    )


def qwen2_0_5b_config() -> Qwen2Config:
    """Qwen2-0.5B-Instruct's sizes, as its public config.json has them."""
    return Qwen2Config(
        vocab_size=151_936,
        hidden_size=896,
        intermediate_size=4864,
        num_hidden_layers=24,
        num_attention_heads=14,
        num_key_value_heads=2,
        tie_word_embeddings=True,
    )


# the models of configs/, by their names
KNOWN: dict[str, Callable[[], PreTrainedConfig]] = {
    QWEN2_AUDIO_7B_INSTRUCT: qwen2_audio_7b_config,
    "Qwen/Qwen2-7B-Instruct": qwen2_7b_config,
    "Qwen/Qwen2-0.5B-Instruct": qwen2_0_5b_config,
}
