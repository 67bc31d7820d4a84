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
from transformers import AttentionInterface, AttentionMaskInterface, Cache, PreTrainedConfig, PreTrainedModel
from transformers.cache_utils import CacheLayerMixin
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

_NAME = "shared_prefix_sdpa"
_ALIGNMENT = 16  # slots: CUDA copies a mask whose strides are no multiples of this
_attention_and_weight = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu  # and its log-sum-exp


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


class SharedPrefixLayer(CacheLayerMixin):
    """One layer's cache of U prompts and N = U * K rows that go on from them.

    The first update brings the keys and values of the prompts, every later one those of the next token of all rows. The
    layer itself is what the rows' queries attend to (`attend`).

    Args:
        rows: the rows of the cache.
    """

    is_sliding = False
    is_initialized: bool

    def __init__(self, rows: Rows):
        super().__init__()
        self.rows = rows

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor | SharedPrefixLayer, torch.Tensor]:
        """Take [U, kv_heads, P, head_dim], later [N, kv_heads, 1, head_dim]; returns what to attend to."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
            self.is_initialized = True
            return key_states, value_states
        if self is self.rows.first_layer:
            self.rows.begin_step()
        self.add(key_states, value_states)
        return self, value_states

    def add(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        """Keep the keys and values of a token of every row, [N, kv_heads, 1, head_dim]."""
        raise NotImplementedError

    def attend(self, query: torch.Tensor, scaling: float) -> torch.Tensor:
        """Attention of the rows' new tokens: [N, heads, 1, head_dim] -> [N, 1, heads, head_dim]."""
        raise NotImplementedError

    def get_seq_length(self) -> int:
        return self.is_initialized * (self.rows.prefix_length + self.rows.tokens)

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.get_seq_length() + query_length, 0

    def get_max_length(self) -> int:
        return -1


class Rows:
    """What the layers of a cache have in common: whose rows they hold, and how many tokens each has by now.

    Args:
        prefix_mask: [U, P], 1 on the prompts' real positions.
        num_rows: N; rows u * K ... u * K + K - 1 go on from prompt u, K > 1.
        groups: g, query heads of a key head.
        room: M, the most tokens that a row will have.
        dtype: in which attention is computed, under autocast its own.

    Attributes:
        mask: [U, 1, K * g, P] of `dtype`, 0 on real positions, -inf elsewhere.
        tokens: that each row has, that of the step at work included.
        first_layer: begins a step; set by `shared_cache`.
    """

    first_layer: SharedPrefixLayer

    def __init__(self, prefix_mask: torch.Tensor, num_rows: int, groups: int, room: int, dtype: torch.dtype):
        self.num_prompts, self.prefix_length = prefix_mask.shape
        self.per_prompt, self.groups, self.room, self.tokens = num_rows // self.num_prompts, groups, room, 0
        mask = prefix_mask.new_full(prefix_mask.shape, float("-inf"), dtype=dtype).masked_fill(prefix_mask.bool(), 0)
        self.mask = mask[:, None, None].repeat(1, 1, self.per_prompt * groups, 1)

    def begin_step(self) -> None:
        """Count the new token of every row."""
        self.tokens += 1

    def by_prompt(self, values: torch.Tensor) -> torch.Tensor:
        """[N, kv_heads * g, 1, x] -> [U, kv_heads, K * g, x]: the rows of a prompt as positions of one query."""
        kv_heads = values.size(1) // self.groups  # query heads of a key head are neighbours
        split = values.view(self.num_prompts, self.per_prompt, kv_heads, self.groups, -1)
        return split.transpose(1, 2).reshape(self.num_prompts, kv_heads, self.per_prompt * self.groups, -1)

    def by_row(self, values: torch.Tensor) -> torch.Tensor:
        """The inverse, with the heads behind: [U, kv_heads, K * g, x] -> [N, 1, kv_heads * g, x]."""
        split = values.view(*values.shape[:2], self.per_prompt, self.groups, -1).transpose(1, 2)
        return split.reshape(self.num_prompts * self.per_prompt, 1, values.size(1) * self.groups, -1)


class InterleavedRows(Rows):
    """Which slots of one buffer a prompt the rows see, and which the step at work fills.

    The prompt takes the first P slots; token t (from 0) of row k lies in slot P + t * K + k, so that a step fills K
    neighbouring slots.

    Args:
        block: tokens by which the slots that are looked at grow; the steps in between have one shape.

    Attributes:
        mask: [U, 1, K * g, S], S = P + M * K, rounded up.
        new: int64 [K], the slots of the step at work.
    """

    def __init__(self, *args: Any, block: int = 1):
        super().__init__(*args)
        self.block, dtype, device = block, self.mask.dtype, self.mask.device
        size = -(-(self.prefix_length + self.room * self.per_prompt) // _ALIGNMENT) * _ALIGNMENT
        self.mask = torch.nn.functional.pad(self.mask, (0, size - self.prefix_length), value=float("-inf"))
        self.new = torch.arange(self.prefix_length - self.per_prompt, self.prefix_length, device=device)
        own = torch.eye(self.per_prompt, dtype=dtype, device=device).log()  # 0 and -inf
        self._own = own.repeat_interleave(self.groups, 0).expand(self.num_prompts, 1, -1, -1)

    def begin_step(self) -> None:
        super().begin_step()
        self.new += self.per_prompt
        self.mask.index_copy_(3, self.new, self._own)

    def seen(self, tokens: int) -> int:
        """Slots to look at once each row has so many tokens."""
        own = -(-tokens // self.block) * self.block * self.per_prompt
        return min(self.prefix_length + own, self.mask.size(3))


class InterleavedLayer(SharedPrefixLayer):
    """One buffer a prompt, [U, kv_heads, S, head_dim], and one attention call over it; for GPUs.

    The rows of a prompt are query positions of the call, and the mask leaves each its prompt and every K-th slot behind
    it: each key is read once, at the price of scores with other rows' keys.
    """

    rows: InterleavedRows

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        """Room for all tokens, of zeros: a weight of 0 times what is not finite would not be 0."""
        mask, prefix = self.rows.mask, slice(self.rows.prefix_length)
        shape = (*key_states.shape[:2], mask.size(3), key_states.size(3))
        self.keys, self.values = (key_states.new_zeros(shape, dtype=mask.dtype) for _ in range(2))
        self.keys[:, :, prefix], self.values[:, :, prefix] = key_states, value_states

    def add(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        for buffer, states in ((self.keys, key_states), (self.values, value_states)):
            new = states.to(buffer.dtype).view(-1, self.rows.per_prompt, *buffer.shape[1::2])  # [U, K, kv_heads, d]
            buffer.index_copy_(2, self.rows.new, new.transpose(1, 2))

    def attend(self, query: torch.Tensor, scaling: float) -> torch.Tensor:
        seen = self.rows.seen(self.rows.tokens)
        keys, values, mask = self.keys[:, :, :seen], self.values[:, :, :seen], self.rows.mask[..., :seen]
        query = self.rows.by_prompt(query.to(keys.dtype))
        return self.rows.by_row(scaled_dot_product_attention(query, keys, values, attn_mask=mask, scale=scaling))


class SeparateLayer(SharedPrefixLayer):
    """The prompts' keys and the rows' own apart, and a call for each; for CPUs, where scores in vain cost time.

    Their log-sum-exps join the two to the one softmax over both. In float32: the parts would be rounded before they are
    joined.
    """

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        rows = self.rows
        self.mask, self.dtype = rows.mask.float(), rows.mask.dtype
        self.keys, self.values = key_states.float(), value_states.float()
        shape = (rows.num_prompts * rows.per_prompt, key_states.size(1), rows.room, key_states.size(3))
        self.own_keys, self.own_values = (self.keys.new_empty(shape) for _ in range(2))

    def add(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        for buffer, states in ((self.own_keys, key_states), (self.own_values, value_states)):
            buffer[:, :, self.rows.tokens - 1] = states[:, :, 0]

    def attend(self, query: torch.Tensor, scaling: float) -> torch.Tensor:
        rows, query = self.rows, query.float()
        prefix, prefix_weight = _attention_and_weight(
            rows.by_prompt(query), self.keys, self.values, attn_mask=self.mask, scale=scaling
        )
        own_keys, own_values = self.own_keys[:, :, : rows.tokens], self.own_values[:, :, : rows.tokens]
        grouped = query[:, :, 0].unflatten(1, (-1, rows.groups))  # [N, kv_heads, g, head_dim]
        own, own_weight = _attention_and_weight(grouped, own_keys, own_values, scale=scaling)
        own, own_weight = own.flatten(1, 2)[:, None], own_weight.flatten(1, 2)[:, None, :, None]
        share = (own_weight - rows.by_row(prefix_weight[..., None])).sigmoid()
        return torch.lerp(rows.by_row(prefix), own, share).to(self.dtype)


def shared_cache(
    config: PreTrainedConfig,
    prefix_mask: torch.Tensor,
    num_rows: int,
    room: int,
    dtype: torch.dtype,
    *,
    interleaved: bool,
    block: int = 1,
) -> Cache:
    """An empty cache for U prompts that are run once, and rows that go on from them.

    Args:
        config: of the language model.
        prefix_mask, num_rows, room, dtype: see `Rows`.
        interleaved: of `InterleavedLayer`s, else of `SeparateLayer`s; both give the same.
        block: see `InterleavedRows`.
    """
    described = (prefix_mask, num_rows, config.num_attention_heads // config.num_key_value_heads, room, dtype)
    rows: Rows
    if interleaved:
        rows, kind = InterleavedRows(*described, block=block), InterleavedLayer
    else:
        rows, kind = Rows(*described), SeparateLayer
    layers = [kind(rows) for _ in range(config.num_hidden_layers)]
    rows.first_layer = layers[0]
    return Cache(layers=layers)


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
    if isinstance(key, SharedPrefixLayer):
        return key.attend(query, scaling), None
    if packed is not None:
        return score_packed(query, key, value, attention_mask, packed, dropout_p=dropout, scale=scaling), None
    return sdpa_attention_forward(module, query, key, value, attention_mask, dropout, scaling, **kwargs)


AttentionInterface.register(_NAME, _attention)
AttentionMaskInterface.register(_NAME, sdpa_mask)
