"""Qwen2-Audio's encoder on the frames that a clip has, instead of on 30 s of padding."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.modeling_outputs import BaseModelOutput
from transformers.models.qwen2_audio.modeling_qwen2_audio import Qwen2AudioEncoder

_MARGIN = 2  # padding frames that the last real position sees through the two convolutions of width 3
_MULTIPLE = 4  # frames that become one audio token: stride 2, then a pooling of 2


class TrimmableAudioEncoder(Qwen2AudioEncoder):
    """Qwen2AudioEncoder that takes any number of frames up to its window.

    Qwen2-Audio pads every clip to the window (30 s) and masks what is padding; with `trim_frames` the same features
    come from the clip's own frames: a third of the work for 10-s clips. Positions are looked up through the embedding
    module and not its weight, so that ZeRO-3 gathers them.
    """

    def forward(
        self, input_features: torch.Tensor, attention_mask: torch.Tensor | None = None, **kwargs: Any
    ) -> BaseModelOutput:
        """Features [U, frames // 4, d_model] of log-mel `input_features` [U, num_mel_bins, frames].

        Features that `encode` has computed before, [U, d_model, tokens], are passed on.

        Args:
            attention_mask: bool or float [U, 1, frames // 2, frames // 2], as Qwen2AudioModel makes it.
        """
        if input_features.size(1) == self.config.d_model:
            return BaseModelOutput(last_hidden_state=input_features.transpose(1, 2).to(self.conv1.weight.dtype))
        features = input_features.to(dtype=self.conv1.weight.dtype, device=self.conv1.weight.device)
        features = nn.functional.gelu(self.conv1(features))
        features = nn.functional.gelu(self.conv2(features)).transpose(1, 2)
        hidden_states = features + self.embed_positions(torch.arange(features.size(1), device=features.device))
        hidden_states = nn.functional.dropout(hidden_states, p=self.dropout, training=self.training)
        for layer in self.layers:
            hidden_states = layer(hidden_states, attention_mask, **kwargs)
        pooled = self.avg_pooler(hidden_states.transpose(1, 2)).transpose(1, 2)
        return BaseModelOutput(last_hidden_state=self.layer_norm(pooled))

    def encode(self, input_features: torch.Tensor, feature_attention_mask: torch.Tensor) -> torch.Tensor:
        """Features [d_model, tokens] of one clip, [1, num_mel_bins, frames] and [1, frames], for later forwards."""
        input_features, feature_attention_mask = trim_frames(input_features, feature_attention_mask)
        _, tokens = self._get_feat_extract_output_lengths(int(feature_attention_mask.sum()))
        mask = self._attention_mask(feature_attention_mask.to(self.device))
        return self(input_features.to(self.device), attention_mask=mask).last_hidden_state[0, :tokens].T

    def _attention_mask(self, feature_attention_mask: torch.Tensor) -> torch.Tensor:
        """bool [U, 1, frames // 2, frames // 2] of [U, frames]: which positions are a clip's own."""
        positions, _ = self._get_feat_extract_output_lengths(feature_attention_mask.sum(-1))
        length = feature_attention_mask.size(-1) // 2
        mask = torch.arange(length, device=positions.device) < positions[:, None, None, None]
        return mask.expand(-1, 1, length, -1)


def make_trimmable(model: PreTrainedModel) -> None:
    """Let the encoder of a Qwen2-Audio (not wrapped by PEFT) take trimmed features. Weights and names stay as they are.

    Called with `clip_of_row`, int64 [N], the model takes the features of U clips for N rows, and encodes each once.

    Raises:
        ValueError: the encoder drops whole layers at random, which the published Qwen2-Audio does not, or its width is
            the number of mel bins, so that encoded clips could not be told from those that are not.
    """
    encoder = model.model.audio_tower
    if type(encoder) is not Qwen2AudioEncoder:  # done before, or wrapped by PEFT since
        return
    if encoder.config.d_model == encoder.config.num_mel_bins:
        raise ValueError(f"the encoder's width and the number of mel bins are both {encoder.config.d_model}")
    if encoder.layerdrop > 0:
        raise ValueError(f"encoder_layerdrop is {encoder.layerdrop}: only 0 is supported")
    encoder.__class__ = TrimmableAudioEncoder
    model.model.register_forward_pre_hook(_encode_each_clip_once, with_kwargs=True)


def _encode_each_clip_once(
    module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
    """Give the rows of a Qwen2AudioModel, which takes one clip for each, what the encoder makes of their clips.

    Inside the model's own forward, so that DDP, autocast and whatever else wraps it act on the encoder too.
    """
    if "clip_of_row" not in kwargs:
        return None
    clip_of_row, features, mask = (
        kwargs.pop(key) for key in ("clip_of_row", "input_features", "feature_attention_mask")
    )
    encoder: TrimmableAudioEncoder = module.audio_tower  # type: ignore[assignment]
    encoded = encoder(features, attention_mask=encoder._attention_mask(mask)).last_hidden_state  # [U, tokens, d_model]
    rows = {"input_features": encoded[clip_of_row].transpose(1, 2), "feature_attention_mask": mask[clip_of_row]}
    return args, kwargs | rows


def trim_frames(
    input_features: torch.Tensor, feature_attention_mask: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Cut [U, mel bins, frames] features and their mask [U, frames] to the longest clip, without changing its features.

    Two frames of padding stay: the last real position of the encoder sees them through its convolutions.
    """
    frames = trimmed_length(int(feature_attention_mask.sum(-1).max()), input_features.size(-1))
    return input_features[..., :frames], feature_attention_mask[..., :frames]


def trimmed_length(longest: int, window: int) -> int:
    """Frames that `trim_frames` leaves of a window of so many, by those of the longest clip."""
    return min(-(-(longest + _MARGIN) // _MULTIPLE) * _MULTIPLE, window)
