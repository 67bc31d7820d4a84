"""Clips encoded once a run, for training that leaves the audio encoder as it is."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import replace
from math import ceil
from pathlib import Path

import torch
from accelerate import Accelerator
from safetensors.torch import load_file, save
from torch import nn
from transformers import Qwen2AudioEncoderConfig
from transformers.integrations.deepspeed import is_deepspeed_zero3_enabled

from r1_aqa_repro.common.files import write_atomically
from r1_aqa_repro.data.questions import AudioQuestion
from r1_aqa_repro.model.audio_encoder import TrimmableAudioEncoder
from r1_aqa_repro.model.inputs import ModelInputs, stack_clips

ENCODED = "encoded_audio"  # folder inside the run folder, one file a clip


def encoded_bytes(seconds: Iterable[float], config: Qwen2AudioEncoderConfig, bf16: bool) -> int:
    """Of the outputs for clips of these lengths on a disk: 25 tokens a second, of the 30 s that the window takes."""
    tokens = sum(min(ceil(25 * length), config.max_source_positions // 2) for length in seconds)
    return tokens * config.d_model * (2 if bf16 else 4)


def is_frozen(module: nn.Module) -> bool:
    """Whether nothing in it is trained."""
    return not any(parameter.requires_grad for parameter in module.parameters())


class EncodedAudio:
    """A folder of encoder outputs, filled as clips are met: 0.64 MB in bfloat16 for 10 s and Qwen2-Audio-7B's encoder.

    A clip is encoded alone, so that its features don't depend on its neighbours in a batch, and a resumed run, which
    finds them in the folder, is exact. Under bfloat16 autocast they are kept as the projector will take them.

    The folder belongs to one run and its frozen encoder, whose shards are gathered under ZeRO-3: by all processes.
    """

    def __init__(self, folder: Path, encoder: TrimmableAudioEncoder, accelerator: Accelerator):
        self.folder, self.encoder, self.accelerator = folder, encoder, accelerator

    @classmethod
    def of_run(cls, folder: str, encoder: TrimmableAudioEncoder, accelerator: Accelerator) -> EncodedAudio | None:
        """That of the run in this folder; None if the run trains its encoder."""
        return cls(Path(folder) / ENCODED, encoder, accelerator) if is_frozen(encoder) else None

    def __call__(self, inputs: ModelInputs, questions: Sequence[AudioQuestion], channel: str) -> ModelInputs:
        """`inputs` with encoded clips. Every process calls it, with at least one question."""
        files = [self._file(question, channel) for question in questions]
        missing = list({file: row for row, file in enumerate(files) if not file.is_file()}.values())
        if is_deepspeed_zero3_enabled():  # all processes gather the encoder's weights equally often
            counts = self.accelerator.gather(torch.tensor([len(missing)], device=self.accelerator.device))
            missing += [0] * (int(counts.max()) - len(missing))
        for row in missing:
            with torch.no_grad(), self.accelerator.autocast():
                encoded = self.encoder.encode(
                    inputs.input_features[row : row + 1], inputs.feature_attention_mask[row : row + 1]
                )
            if self.accelerator.mixed_precision == "bf16":
                encoded = encoded.bfloat16()
            write_atomically(files[row], save({"encoded": encoded.contiguous().cpu()}))
        clips = [load_file(file)["encoded"] for file in files]
        return replace(inputs, input_features=stack_clips(clips), encoded=True)

    def _file(self, question: AudioQuestion, channel: str) -> Path:
        name = hashlib.sha256(f"{channel} {Path(question.audio_path).absolute()}".encode()).hexdigest()
        return self.folder / name[:2] / f"{name}.safetensors"
