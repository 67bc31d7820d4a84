"""The FLOPs that a GRPO step on audio cannot avoid: every distinct position once in each pass, by its formulas."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from transformers import Qwen2AudioConfig

from r1_aqa_repro.model.inputs import num_audio_tokens


@dataclass(frozen=True)
class Prompt:
    """Tokens of a prompt (its audio tokens among them), and mel frames of its clip."""

    tokens: int
    frames: int


@dataclass(frozen=True)
class Forward:
    """FLOPs of one pass over a prompt and its completions, by what their backward pass costs.

    first: the first convolution, whose input needs no gradient. encoder: the rest up to the language model, projector
    and attention included. linear: matrix products with the language model's weights, `entry` of them the first
    layer's q, k, v. attention: the language model's. head: lm_head. adapters: LoRA's on q, k, v, o,
    `adapter_entry` of them the products of the first layer's inputs.
    """

    first: int
    encoder: int
    linear: int
    entry: int
    attention: int
    head: int
    adapters: int
    adapter_entry: int

    @property
    def base(self) -> int:
        """Without adapters."""
        return self.first + self.encoder + self.linear + self.attention + self.head

    @property
    def full_backward(self) -> int:
        """Every weight trained: a product costs two more (gradients of its input and of its weight)."""
        return 2 * self.base - self.first

    @property
    def lora_backward(self) -> int:
        """Adapters trained: nothing before the language model, frozen weights pass on the gradient of their input."""
        frozen = self.linear - self.entry + self.head
        return frozen + 2 * self.attention + 2 * self.adapters - self.adapter_entry


def forward_of(
    config: Qwen2AudioConfig, prompt: Prompt, num_completions: int, completion_tokens: int, rank: int = 0
) -> Forward:
    """One pass that computes every distinct position once; a multiplication and an addition are two operations.

    The encoder gets the clip's own frames. The language model runs the prompt once and each completion without its
    last token (which predicts nothing). A position attends to itself and what precedes it in its own completion and
    in the prompt: also the work of decoding with a key-value cache. lm_head runs where a token is drawn or scored,
    for the first token once a prompt. As in `FlopCounterMode`, only matrix products and convolutions count.
    """
    audio, text = config.audio_config, config.text_config
    width, frames = audio.d_model, prompt.frames
    positions = (frames - 1) // 2 + 1  # after the second convolution
    features = int(num_audio_tokens(torch.ones(1, frames)))
    conv1 = 2 * frames * width * audio.num_mel_bins * 3
    conv2 = 2 * positions * width * width * 3
    layer = 2 * positions * (4 * width * width + 2 * width * audio.encoder_ffn_dim) + 4 * positions**2 * width
    projector = 2 * features * width * text.hidden_size

    hidden = text.hidden_size
    head_dim = hidden // text.num_attention_heads
    queries, keys = text.num_attention_heads * head_dim, text.num_key_value_heads * head_dim
    fed = completion_tokens - 1
    tokens = prompt.tokens + num_completions * fed
    pairs = prompt.tokens * (prompt.tokens + 1) // 2 + num_completions * (fed * prompt.tokens + fed * (fed + 1) // 2)
    entry = 2 * tokens * hidden * (queries + 2 * keys)
    rest = 2 * tokens * (queries * hidden + 3 * hidden * text.intermediate_size)
    adapter_inputs = 2 * tokens * rank * hidden * 3
    adapters = adapter_inputs + 2 * tokens * rank * (queries + 2 * keys + queries + hidden)
    return Forward(
        first=conv1,
        encoder=conv2 + audio.encoder_layers * layer + projector,
        linear=text.num_hidden_layers * (entry + rest),
        entry=entry,
        attention=text.num_hidden_layers * 4 * pairs * queries,
        head=2 * (1 + num_completions * fed) * hidden * text.vocab_size,
        adapters=text.num_hidden_layers * adapters,
        adapter_entry=adapter_inputs,
    )


def step_floor(
    config: Qwen2AudioConfig,
    prompts: Sequence[Prompt],
    num_completions: int,
    completion_tokens: int,
    lora_rank: int | None = None,
) -> int:
    """FLOPs of a step that computes nothing twice: one pass for the rollout, one for the reference (without adapters),
    one for the policy and its backward pass.

    With adapters the trainer needs less: the encoder is frozen, and a clip that an earlier step met is not encoded
    again.
    """
    total = 0
    for prompt in prompts:
        forward = forward_of(config, prompt, num_completions, completion_tokens, lora_rank or 0)
        backward = forward.full_backward if lora_rank is None else forward.lora_backward
        total += 3 * forward.base + 2 * forward.adapters + backward
    return total
