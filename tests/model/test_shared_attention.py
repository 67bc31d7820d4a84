"""Attention over shared prompts against softmax written out, row by row, with every prompt copied."""

from __future__ import annotations

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention
from transformers import Qwen2Config

from r1_aqa_repro.grpo.shared_prefix import PackedGroups, pack_groups
from r1_aqa_repro.model.shared_attention import PackedAttention, SharedPrefixLayer, score_packed, shared_cache

TOLERANCE = 1e-5  # float32 sums of up to 200 terms of size 1


def softmax_attention(query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    """One query [heads, d] over keys and values [kv_heads, L, d] -> [heads, d]."""
    repeats = query.size(0) // keys.size(0)
    keys, values = keys.repeat_interleave(repeats, 0), values.repeat_interleave(repeats, 0)
    weights = ((keys @ query[..., None])[..., 0] * query.size(-1) ** -0.5).softmax(-1)
    return (weights[..., None] * values).sum(1)


def layer_of(
    interleaved: bool, mask: torch.Tensor, num_rows: int, heads: tuple[int, int], room: int, block: int = 1
) -> SharedPrefixLayer:
    """The one layer of a cache in float32, or in bfloat16 under autocast."""
    dtype = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else torch.float32
    config = Qwen2Config(num_hidden_layers=1, num_attention_heads=heads[0], num_key_value_heads=heads[1])
    cache = shared_cache(config, mask, num_rows, room, dtype, interleaved=interleaved, block=block)
    return cache.layers[0]


@pytest.mark.parametrize("kv_heads", [4, 2, 1], ids=["multi-head", "grouped-query", "one key head"])
@pytest.mark.parametrize(
    ("interleaved", "block"),
    [(False, 1), (True, 1), (True, 8), (True, 512)],
    ids=["apart", "growing", "blocks", "fixed"],
)
def test_decoding(interleaved: bool, block: int, kv_heads: int) -> None:
    """Two prompts of 5 and 3 tokens, three rows each."""
    torch.manual_seed(0)
    lengths, rows, new = (5, 3), 3, 20
    keys, values = torch.randn(2, 2, kv_heads, 5, 8)
    mask = torch.tensor([[1, 1, 1, 1, 1], [0, 0, 1, 1, 1]])
    layer = layer_of(interleaved, mask, 2 * rows, (4, kv_heads), new, block)
    assert layer.update(keys, values)[0] is keys, "the prompts are run as ever"
    own_keys, own_values = torch.randn(2, 2 * rows, kv_heads, new, 8)
    for token in range(new):
        query = torch.randn(2 * rows, 4, 1, 8)
        layer.update(own_keys[:, :, token : token + 1], own_values[:, :, token : token + 1])
        output = layer.attend(query, 8**-0.5)
        for row in range(2 * rows):
            prompt = row // rows
            real = slice(5 - lengths[prompt], 5)
            expected = softmax_attention(
                query[row, :, 0],
                torch.cat([keys[prompt][:, real], own_keys[row, :, : token + 1]], 1),
                torch.cat([values[prompt][:, real], own_values[row, :, : token + 1]], 1),
            )
            torch.testing.assert_close(output[row, 0], expected, atol=TOLERANCE, rtol=0)
    assert layer.get_seq_length() == 5 + new


@pytest.mark.parametrize("interleaved", [False, True], ids=["apart", "interleaved"])
@pytest.mark.parametrize("bias", [0.0, 10.0], ids=["", "key bias"])
def test_decoding_in_bfloat16_is_as_exact_as_a_fused_kernel(bias: float, interleaved: bool) -> None:
    """The error against float64 on the same bfloat16 inputs, beside that of PyTorch's own attention over rows with
    their own prompts: a tenth more at most, since the sums are formed in another order.

    A common bias of the keys, as Qwen2 has, makes scores large: rounded to bfloat16 they would be off by 0.1 and more.
    """
    torch.manual_seed(0)
    keys, values = torch.randn(2, 8, 2, 40, 64).bfloat16()
    keys = keys + bias * torch.randn(64).bfloat16()
    query, own = torch.randn(32, 2, 1, 64).bfloat16() * 2, torch.randn(2, 32, 2, 1, 64).bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        layer = layer_of(interleaved, torch.ones(8, 40), 32, (2, 2), 1)
        layer.update(keys, values)
        layer.update(own[0].float(), own[1])  # under autocast, rotary embeddings return keys in float32
        output = layer.attend(query.float(), 64**-0.5)
    assert output.dtype == torch.bfloat16
    rows = [
        torch.cat([prompts.repeat_interleave(4, 0), token], 2) for prompts, token in ((keys, own[0]), (values, own[1]))
    ]
    fused = scaled_dot_product_attention(query, rows[0], rows[1]).transpose(1, 2)
    exact = scaled_dot_product_attention(query.double(), rows[0].double(), rows[1].double()).transpose(1, 2)
    for size in (torch.Tensor.max, torch.Tensor.mean):
        assert size((output - exact).abs()) <= 1.1 * size((fused - exact).abs())


def packed_rows(padded: bool) -> PackedGroups:
    """Two prompts, the second one padded or not; three completions for the first and two for the second, ragged."""
    group = torch.tensor([0, 1, 0, 1, 0])
    attention_mask = torch.ones(5, 6 + 4, dtype=torch.long)
    if padded:
        attention_mask[group == 1, :2] = 0
    attention_mask[2, -2:] = 0
    return pack_groups(torch.ones(5, 10, dtype=torch.long), attention_mask, group, 4, 0)


@pytest.mark.parametrize("padded", [False, True], ids=["full", "padded"])
@pytest.mark.parametrize("kv_heads", [4, 2], ids=["multi-head", "grouped-query"])
def test_scoring_equals_softmax_over_what_the_joint_mask_allows(padded: bool, kv_heads: int) -> None:
    torch.manual_seed(0)
    packed = packed_rows(padded)
    total = packed.input_ids.size(1)
    query = torch.randn(2, 4, total, 8)
    keys, values = torch.randn(2, 2, kv_heads, total, 8)
    prefix_mask, segment_mask = packed.split_masks()
    assert (prefix_mask is None) == (not padded)
    attention = PackedAttention(prefix_mask, packed.num_slots)
    output = score_packed(query, keys, values, segment_mask, attention, scale=8**-0.5)
    allowed = packed.joint_mask()
    for row, position in packed.real.nonzero().tolist():
        seen = allowed[row, 0, position]
        expected = softmax_attention(query[row, :, position], keys[row][:, seen], values[row][:, seen])
        torch.testing.assert_close(output[row, position], expected, atol=TOLERANCE, rtol=0)
    assert not output.isnan().any()


def test_the_shape_decides() -> None:
    """Long completions: two masks, of which neither has the packed row's size squared. Short ones: one mask."""

    def attention(prompt: int, completion: int) -> dict[str, torch.Tensor]:
        ids = torch.ones(8, prompt + completion, dtype=torch.long)
        return pack_groups(ids, ids, torch.zeros(8, dtype=torch.long), completion, 0).attention()

    assert attention(351, 16)["attention_mask"].shape == (1, 1, 350 + 128, 350 + 128)
    assert attention(351, 512)["attention_mask"].shape == (1, 1, 512, 350 + 512)
