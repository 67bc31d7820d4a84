"""Frozen encoder, projector alone: what moves, and clips that are encoded once a run."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch

from r1_aqa_repro.data.questions import AudioQuestion
from r1_aqa_repro.model import loading
from r1_aqa_repro.model.audio_encoder import TrimmableAudioEncoder
from r1_aqa_repro.model.encoded_audio import ENCODED, EncodedAudio
from r1_aqa_repro.model.inputs import question_inputs


def moved(trainer: Any, start: dict[str, torch.Tensor]) -> set[str]:
    """Top modules with a changed weight."""
    names = [name for name, value in trainer.model.state_dict().items() if not value.equal(start[name])]
    return {name.split(".")[1] if name.startswith("model.") else name.split(".")[0] for name in names}


@pytest.mark.parametrize(
    ("parts", "expected"),
    [
        ("all", {"audio_tower", "multi_modal_projector", "language_model", "lm_head"}),
        ("no_encoder", {"multi_modal_projector", "language_model", "lm_head"}),
        ("projector", {"multi_modal_projector"}),
        ("language_model", {"language_model", "lm_head"}),
    ],
)
def test_what_moves(parts: str, expected: set[str], make_trainer: Any, model_folder: Path) -> None:
    start = loading.load_model(model_folder).state_dict()
    trainer = make_trainer(trained_parts=parts, reward_funcs=["random"])
    trainer.train()
    assert moved(trainer, start) == expected
    assert (trainer._encoded is None) == (parts == "all")


def test_each_clip_is_encoded_once_and_training_is_the_same(
    make_trainer: Any, questions: list[AudioQuestion], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Six steps over four questions: four encodings, and the weights of a run that encodes at every step."""
    encoded: list[int] = []
    encode = TrimmableAudioEncoder.encode

    def count(self: Any, *args: Any) -> torch.Tensor:
        encoded.append(1)
        return encode(self, *args)

    monkeypatch.setattr(TrimmableAudioEncoder, "encode", count)
    settings: dict[str, Any] = {
        "asked": questions[:4],
        "prompts_per_step": 2,
        "max_prompts_per_device": 2,
        "trained_parts": "no_encoder",
        "reward_funcs": ["random"],
        "beta": 0.04,
        "max_steps": 6,
        "optim": "sgd",
        "learning_rate": 0.1,
    }
    cached = make_trainer(output_dir=str(tmp_path / "cached"), **settings)
    cached.train()
    assert len(encoded) == 4
    assert len(list((tmp_path / "cached" / ENCODED).glob("*/*.safetensors"))) == 4
    plain = make_trainer(output_dir=str(tmp_path / "plain"), **settings)
    plain._encoded = None
    plain.train()
    assert len(encoded) == 4
    for name, value in plain.model.state_dict().items():
        # a clip encoded alone and in a batch differs by float32 rounding (1e-6), carried through six steps
        torch.testing.assert_close(cached.model.state_dict()[name], value, atol=2e-5, rtol=0)


def test_encoded_clips_are_kept_as_the_projector_takes_them(
    make_trainer: Any, questions: list[AudioQuestion], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Under bfloat16 autocast: half the bytes, and the projector's output is the same to the bit."""
    trainer = make_trainer()
    encoder, projector = trainer.model.model.audio_tower, trainer.model.model.multi_modal_projector
    inputs = question_inputs(trainer.processing_class, questions[:1], "answer")
    monkeypatch.setattr(trainer.accelerator.state, "_mixed_precision", "bf16")
    monkeypatch.setattr(trainer.accelerator, "autocast", lambda: torch.autocast("cpu", torch.bfloat16))
    encoded = EncodedAudio(tmp_path, encoder, trainer.accelerator)(inputs, questions[:1], "first").input_features
    assert encoded.dtype == torch.bfloat16
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        direct = encoder.encode(inputs.input_features, inputs.feature_attention_mask)
        assert projector(direct.T).equal(projector(encoded[0].T.float()))


def test_processes_may_keep_the_same_clip_at_once(
    make_trainer: Any, questions: list[AudioQuestion], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While one process is about to rename its file, another writes and renames its own."""
    trainer = make_trainer()
    keep = EncodedAudio(tmp_path, trainer.model.model.audio_tower, trainer.accelerator)
    inputs = question_inputs(trainer.processing_class, questions[:1], "answer")
    rename = os.replace

    def another_comes_first(source: Any, target: Any) -> None:
        monkeypatch.setattr(os, "replace", rename)
        monkeypatch.setenv("RANK", "1")
        keep(inputs, questions[:1], "first")
        rename(source, target)

    monkeypatch.setattr(os, "replace", another_comes_first)
    features = keep(inputs, questions[:1], "first").input_features
    assert features.equal(keep(inputs, questions[:1], "first").input_features)
    assert len([path for path in tmp_path.rglob("*") if path.is_file()]) == 1


def test_an_adapter_on_the_language_model_leaves_the_encoder_to_the_cache(make_trainer: Any) -> None:
    from peft import LoraConfig

    language_only = LoraConfig(r=2, target_modules=r".*language_model.*\.(q_proj|v_proj)")
    assert make_trainer(peft_config=language_only)._encoded is not None
    encoder_too = LoraConfig(r=2, target_modules=["q_proj", "v_proj"])
    assert make_trainer(peft_config=encoder_too)._encoded is None
