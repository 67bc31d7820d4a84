"""The unavoidable FLOPs against PyTorch's own counter, and by hand."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from transformers import (
    DynamicCache,
    Qwen2AudioConfig,
    Qwen2AudioEncoderConfig,
    Qwen2AudioForConditionalGeneration,
    Qwen2Config,
)

from r1_aqa_repro.planning.floor import Prompt, forward_of, step_floor
from r1_aqa_repro.planning.geometries import mid_config

LORA = LoraConfig(r=16, target_modules=r".*language_model.*\.(q|k|v|o)_proj", task_type="CAUSAL_LM")
SMALL = Qwen2AudioConfig(
    audio_config=Qwen2AudioEncoderConfig(
        num_mel_bins=10,
        d_model=16,
        encoder_layers=2,
        encoder_attention_heads=2,
        encoder_ffn_dim=24,
        max_source_positions=20,
    ),
    text_config=Qwen2Config(
        vocab_size=50,
        hidden_size=32,
        intermediate_size=40,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        tie_word_embeddings=False,
        bos_token_id=None,
    ),
)
WINDOW = 2 * SMALL.audio_config.max_source_positions  # frames


def heard(model: Qwen2AudioForConditionalGeneration) -> torch.Tensor:
    """The projected features of a clip that fills the window: [1, positions // 2, hidden]."""
    features = torch.randn(1, SMALL.audio_config.num_mel_bins, WINDOW)
    return model.model.multi_modal_projector(model.model.audio_tower(features).last_hidden_state)


def count(work: Callable[[], Any]) -> int:
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        work()
    return counter.get_total_flops()


def test_forward_is_what_decoding_with_a_cache_costs() -> None:
    """Fed one token at a time, a cache makes PyTorch compute exactly the visible pairs."""
    model = Qwen2AudioForConditionalGeneration(SMALL)
    prompt, num_completions, completion_tokens = Prompt(9, WINDOW), 3, 4

    @torch.no_grad()
    def decode() -> None:
        heard(model)
        cache = DynamicCache(config=SMALL.text_config)
        embeds = torch.randn(num_completions, 1, SMALL.text_config.hidden_size)
        language = model.model.language_model
        for _ in range(prompt.tokens):
            hidden = language(inputs_embeds=embeds[:1], past_key_values=cache, use_cache=True).last_hidden_state
        model.lm_head(hidden)
        cache.batch_select_indices(torch.zeros(num_completions, dtype=torch.long))
        for _ in range(completion_tokens - 1):
            hidden = language(inputs_embeds=embeds, past_key_values=cache, use_cache=True).last_hidden_state
            model.lm_head(hidden)

    assert count(decode) == forward_of(SMALL, prompt, num_completions, completion_tokens).base


@pytest.mark.parametrize("lora", [False, True], ids=["every weight", "LoRA"])
def test_step_is_what_one_token_costs(lora: bool) -> None:
    """A prompt of one token: nothing is masked, so PyTorch counts exactly the floor, backward passes included."""
    model = Qwen2AudioForConditionalGeneration(SMALL)
    adapted = get_peft_model(model, LORA) if lora else None

    def score() -> torch.Tensor:
        embeds = heard(model).mean(1, keepdim=True)
        return model.lm_head(model.model.language_model(inputs_embeds=embeds).last_hidden_state).sum()

    def step() -> None:
        with torch.no_grad():
            score()  # rollout
            with adapted.disable_adapter() if adapted else nullcontext():
                score()  # reference
        score().backward()

    floor = step_floor(
        SMALL, [Prompt(1, WINDOW)], num_completions=8, completion_tokens=1, lora_rank=16 if lora else None
    )
    assert count(step) == floor


def test_floor_of_mid() -> None:
    """The share of the parts, by hand: encoder 250 tokens of audio, language model 351 + 8 x 15 positions."""
    forward = forward_of(mid_config(), Prompt(351, 1000), 8, 16)
    tokens = 351 + 8 * 15
    assert forward.linear == 2 * tokens * 8 * (4 * 512 * 512 + 3 * 512 * 1408)
    assert forward.attention == 8 * 4 * 512 * (351 * 352 // 2 + 8 * (15 * 351 + 15 * 16 // 2))
    assert forward.head == 2 * (1 + 8 * 15) * 512 * 8192
    assert forward.first == 2 * 1000 * 256 * 128 * 3
    layer = 2 * 500 * (4 * 256**2 + 2 * 256 * 1024) + 4 * 500**2 * 256
    assert forward.encoder == 2 * 500 * 256 * 256 * 3 + 4 * layer + 2 * 250 * 256 * 512
