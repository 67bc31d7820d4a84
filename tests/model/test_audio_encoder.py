"""A clip's own frames give the features that 30 s of padding give."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import Qwen2AudioForConditionalGeneration
from transformers.models.qwen2_audio.modeling_qwen2_audio import Qwen2AudioEncoder

from r1_aqa_repro.model import loading
from r1_aqa_repro.model.audio_encoder import make_trimmable, trim_frames
from r1_aqa_repro.model.inputs import num_audio_tokens

WINDOW = 150  # frames of the test model: 3 s of 20 ms


def clips(lengths: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
    """Random log-mel features of the given numbers of frames; padding is as large as sound, so that it shows."""
    features = torch.randn(len(lengths), 80, WINDOW, generator=torch.Generator().manual_seed(0))
    mask = torch.zeros(len(lengths), WINDOW, dtype=torch.long)
    for row, length in enumerate(lengths):
        mask[row, :length] = 1
    return features, mask


def embeddings(
    model: Qwen2AudioForConditionalGeneration, features: torch.Tensor, mask: torch.Tensor
) -> list[torch.Tensor]:
    """What the language model receives for each clip: [tokens of the clip, hidden]."""
    received = []
    hook = model.model.multi_modal_projector.register_forward_hook(lambda module, args, output: received.append(output))
    tokens = num_audio_tokens(mask).tolist()
    ids = torch.full((len(tokens), max(tokens) + 1), 5)
    for row, count in enumerate(tokens):
        ids[row, :count] = model.config.audio_token_id
    with torch.no_grad():
        model(input_ids=ids, attention_mask=torch.ones_like(ids), input_features=features, feature_attention_mask=mask)
    hook.remove()
    return [rows[:count] for rows, count in zip(received[0], tokens, strict=True)]


@pytest.mark.parametrize(
    "lengths",
    [[40], [41], [42], [43], [7], [WINDOW - 1], [WINDOW], [80, 9, 23]],
    ids=lambda lengths: "+".join(map(str, lengths)),
)
def test_trimmed_features_are_the_untrimmed_ones(lengths: list[int], model_folder: Path) -> None:
    """Every remainder of 4, the shortest and the longest clip, and a batch; against transformers' own encoder."""
    features, mask = clips(lengths)
    original = Qwen2AudioForConditionalGeneration.from_pretrained(model_folder)
    assert type(original.model.audio_tower) is Qwen2AudioEncoder
    expected = embeddings(original, features, mask)
    trimmed = trim_frames(features, mask)
    assert trimmed[0].size(-1) == trimmed[1].size(-1) == min(WINDOW, -(-(max(lengths) + 2) // 4) * 4)
    found = embeddings(loading.load_model(model_folder), *trimmed)
    for one, other in zip(found, expected, strict=True):
        # float32 attention sums over another number of (masked) columns
        torch.testing.assert_close(one, other, atol=1e-5, rtol=0)


def test_a_narrower_margin_would_change_features(model_folder: Path) -> None:
    """The two frames of margin are needed: without them the last real position hears zeros instead of padding."""
    features, mask = clips([40])
    model = loading.load_model(model_folder)
    whole = embeddings(model, features, mask)[0]
    cut = embeddings(model, features[..., :40], mask[..., :40])[0]
    assert (whole - cut)[-1].abs().max() > 1e-3


def test_random_layer_drop_is_refused(model_folder: Path) -> None:
    model = Qwen2AudioForConditionalGeneration.from_pretrained(model_folder)
    model.model.audio_tower.layerdrop = 0.1
    with pytest.raises(ValueError, match="layerdrop"):
        make_trimmable(model)
