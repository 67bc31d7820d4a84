"""Attention of a group's completions over one copy of their prompt, while generating and while scoring.

Both ways are exact: the same softmax over the same keys as attention over rows that carry their own prompt. They are
reached through transformers' attention interface; whatever is not a group of completions goes to PyTorch's attention.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, AttentionMaskInterface, Cache, DynamicCache, PreTrainedModel
from transformers.cache_utils import CacheLayerMixin
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

_NAME = "shared_prefix_sdpa"
_BLOCK = 64  # tokens by which a layer's room for its rows' own keys and values grows


def share_prefixes(model: PreTrainedModel) -> None:
    """Let the language model of `model` work on shared caches and packed rows. Nothing else that it does changes.

    It attends through this module: for good, because with activation checkpointing a layer runs again in the backward.
    And called with `scored=mask` [U, T] it hands only those positions to its head, as one row: TRL's fused head skips
    the others on devices with Triton only, and would compute the logits of the whole prompt everywhere else.
    """
    model.config.get_text_config()._attn_implementation = _NAME
    if _keep_scored not in model.base_model._forward_hooks.values():  # TRL gives a reference model the name alone
        model.base_model.register_forward_hook(_keep_scored, with_kwargs=True)


def _keep_scored(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
    if (scored := kwargs.get("scored")) is not None:
        output.last_hidden_state = output.last_hidden_state[scored][None]


@dataclass(frozen=True)
class SharedStates:
    """Keys or values while generating: those of U prompts once, and those of N = U * K rows' own tokens.

    prefix: [U, kv_heads, P, head_dim].
    own: [N, kv_heads, c, head_dim].
    prefix_mask: bool [U, 1, 1, P], True on real positions.
    """

    prefix: torch.Tensor
    own: torch.Tensor
    prefix_mask: torch.Tensor


class SharedPrefixLayer(CacheLayerMixin):
    """One layer's cache of U prompts and N rows that go on from them.

    The prompts' keys are kept in float32, in which attention scores are formed (see `_decode`).
    """

    is_sliding = False

    def __init__(self, keys: torch.Tensor, values: torch.Tensor, prefix_mask: torch.Tensor, num_rows: int):
        super().__init__()
        self.prefix_keys, self.prefix_values, self.prefix_mask = keys.float(), values, prefix_mask
        room = (num_rows, keys.size(1), 0, keys.size(3))
        self.own_keys, self.own_values = keys.new_empty(room), values.new_empty(room)
        self.length = 0  # of the rows' own tokens
        self.is_initialized = True

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        """Nothing to do: a layer is made from its prompts."""

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[SharedStates, SharedStates]:
        """Add the next token of every row, [N, kv_heads, 1, head_dim]."""
        if self.length == self.own_keys.size(2):
            room = list(key_states.shape)
            room[2] = _BLOCK
            self.own_keys = torch.cat([self.own_keys, key_states.new_empty(room)], dim=2)
            self.own_values = torch.cat([self.own_values, value_states.new_empty(room)], dim=2)
        self.own_keys[:, :, self.length] = key_states[:, :, 0]
        self.own_values[:, :, self.length] = value_states[:, :, 0]
        self.length += 1
        return (
            SharedStates(self.prefix_keys, self.own_keys[:, :, : self.length], self.prefix_mask),
            SharedStates(self.prefix_values, self.own_values[:, :, : self.length], self.prefix_mask),
        )

    def get_seq_length(self) -> int:
        return self.prefix_keys.size(2) + self.length

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.get_seq_length() + query_length, 0

    def get_max_length(self) -> int:
        return -1


def share_cache(prompts: DynamicCache, prefix_mask: torch.Tensor, num_rows: int) -> Cache:
    """The cache with which `generate()` goes on, in N = U * K rows, from prompts that were run once.

    Args:
        prompts: cache of U prompts.
        prefix_mask: [U, P], 1 on their real positions.
        num_rows: N; rows u * K ... u * K + K - 1 go on from prompt u.
    """
    mask = prefix_mask.bool()[:, None, None]
    return Cache(layers=[SharedPrefixLayer(layer.keys, layer.values, mask, num_rows) for layer in prompts.layers])


def _decode(query: torch.Tensor, key: SharedStates, value: SharedStates, scaling: float) -> torch.Tensor:
    """Attention of one new token a row: [N, heads, 1, head_dim] -> [N, 1, heads, head_dim].

    Scores are formed and normalised in float32, as fused kernels do: rounded to bfloat16, large ones (Qwen2's keys have
    a bias) would sample from another distribution than the one that is scored.
    """
    with torch.autocast(query.device.type, enabled=False):
        return _attend(query, key, value, scaling)


def _attend(query: torch.Tensor, key: SharedStates, value: SharedStates, scaling: float) -> torch.Tensor:
    num_rows, heads, _, head_dim = query.shape
    num_prompts, kv_heads = key.prefix.shape[:2]
    query = query.reshape(num_rows, kv_heads, heads // kv_heads, head_dim)  # query heads of a key head are neighbours

    def by_prompt(rows: torch.Tensor) -> torch.Tensor:  # [N, kv_heads, g, x] -> [U, kv_heads, K * g, x]
        return rows.unflatten(0, (num_prompts, -1)).transpose(1, 2).flatten(2, 3)

    def by_row(prompts: torch.Tensor) -> torch.Tensor:  # the inverse
        return prompts.unflatten(2, (num_rows // num_prompts, -1)).transpose(1, 2).flatten(0, 1)

    exact = query.float() * scaling
    to_prefix = by_prompt(exact) @ key.prefix.transpose(2, 3)
    to_prefix = to_prefix.masked_fill(~key.prefix_mask, float("-inf"))
    to_own = exact @ key.own.float().transpose(2, 3)
    weights = torch.cat([by_row(to_prefix), to_own], dim=-1).softmax(-1).to(value.own.dtype)
    prefix_weights, own_weights = weights.split([key.prefix.size(2), key.own.size(2)], dim=-1)
    output = by_row(by_prompt(prefix_weights) @ value.prefix) + own_weights @ value.own
    return output.reshape(num_rows, 1, heads, head_dim)


@dataclass(frozen=True)
class PackedAttention:
    """How packed rows [U, P + K * C] (see `grpo.shared_prefix`) divide, for masks smaller than their size squared.

    The model's `attention_mask` is then the segments': bool [U or 1, 1, C, P + C], from a segment's positions to the
    prefix and to the segment itself.

    prefix_mask: bool [U, 1, P, P], or None (causal) if no prompt is padded.
    num_segments: K.
    """

    prefix_mask: torch.Tensor | None
    num_segments: int


def score_packed(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    segment_mask: torch.Tensor,
    packed: PackedAttention,
    **options: Any,
) -> torch.Tensor:
    """Attention of packed rows in two calls: the prefix with itself, and every segment with the prefix and itself.

    Args:
        query, key, value: [U, heads or kv_heads, P + K * C, head_dim].
        **options: of `scaled_dot_product_attention`.

    Returns:
        [U, P + K * C, heads, head_dim].
    """
    segment_length = segment_mask.size(2)
    prefix_length = segment_mask.size(3) - segment_length
    # with a mask, GPUs have no fused kernel for fewer key heads
    key, value = (states.repeat_interleave(query.size(1) // states.size(1), dim=1) for states in (key, value))

    def parts(states: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:  # [U, h, P, d] and [U, K, h, C, d]
        prefix, segments = states.split([prefix_length, states.size(2) - prefix_length], dim=2)
        return prefix, segments.unflatten(2, (packed.num_segments, segment_length)).transpose(1, 2)

    def with_prefix(prefix: torch.Tensor, segments: torch.Tensor) -> torch.Tensor:  # [U * K, h, P + C, d]
        every = prefix[:, None].expand(-1, packed.num_segments, -1, -1, -1)
        return torch.cat([every, segments], dim=3).flatten(0, 1)

    prefix_query, segment_query = parts(query)
    prefix_key, segment_key = parts(key)
    prefix_value, segment_value = parts(value)
    prefix_output = scaled_dot_product_attention(
        prefix_query,
        prefix_key,
        prefix_value,
        attn_mask=packed.prefix_mask,
        is_causal=packed.prefix_mask is None,
        **options,
    )  # [U, heads, P, head_dim]
    if len(segment_mask) > 1:
        segment_mask = segment_mask.repeat_interleave(packed.num_segments, dim=0)
    segment_output = scaled_dot_product_attention(
        segment_query.flatten(0, 1),
        with_prefix(prefix_key, segment_key),
        with_prefix(prefix_value, segment_value),
        attn_mask=segment_mask,
        **options,
    )  # [U * K, heads, C, head_dim]
    segments = segment_output.unflatten(0, (-1, packed.num_segments)).permute(0, 1, 3, 2, 4).flatten(1, 2)
    return torch.cat([prefix_output.transpose(1, 2), segments], dim=1)


def _attention(
    module: nn.Module,
    query: torch.Tensor,
    key: Any,
    value: Any,
    attention_mask: Any,
    dropout: float = 0.0,
    scaling: Any = None,
    packed: PackedAttention | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """transformers' attention interface: [batch, heads, length, head_dim] -> [batch, length, heads, head_dim]."""
    if isinstance(key, SharedStates):
        return _decode(query, key, value, scaling), None
    if packed is not None:
        return score_packed(query, key, value, attention_mask, packed, dropout_p=dropout, scale=scaling), None
    return sdpa_attention_forward(module, query, key, value, attention_mask, dropout, scaling, **kwargs)


AttentionInterface.register(_NAME, _attention)
AttentionMaskInterface.register(_NAME, sdpa_mask)
