"""A tiny checkpoint with random weights and a few questions with clips."""

import json
import shutil
from pathlib import Path

import pytest
import soundfile
import torch

from r1_aqa_repro.data.audio import SAMPLING_RATE
from r1_aqa_repro.embedded.question_set import make_question
from r1_aqa_repro.embedded.tiny_model import TEST, build_tiny_qwen2_audio
from r1_aqa_repro.model.loading import load_model

NUM_QUESTIONS = 12


@pytest.fixture(scope="session")
def made_once(tmp_path_factory) -> Path:
    """A folder with `model` and `held_out`, shared by all tests: copy before changing."""
    folder = tmp_path_factory.mktemp("evaluation")
    records = []
    for index in range(NUM_QUESTIONS):
        record, clip = make_question(0, "held_out", index)
        path = folder / "held_out" / "audio" / f"{record['id']}.wav"
        path.parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(path, clip, SAMPLING_RATE)
        records.append({**record, "audio_path": f"audio/{path.name}"})
    manifest = folder / "held_out" / "manifest.jsonl"
    manifest.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    texts = [" ".join([record["question"], *record["choices"]]) for record in records]
    build_tiny_qwen2_audio(folder / "model", texts=texts, seed=0, geometry=TEST)
    _make_attentive(folder / "model")
    return folder


def _make_attentive(folder: Path) -> None:
    """Enlarge the random weights until every question and every clip gets an answer of its own."""
    model = load_model(folder)
    with torch.no_grad():
        for name, weights in model.named_parameters():
            if weights.ndim == 2 and "embed_positions" not in name:
                weights.mul_(160 if "projector" in name else 16)
    model.save_pretrained(folder)


@pytest.fixture
def checkpoint(made_once, tmp_path) -> Path:
    """A copy of the tiny checkpoint."""
    return Path(shutil.copytree(made_once / "model", tmp_path / "run" / "checkpoint-1"))


@pytest.fixture
def manifest(made_once, tmp_path) -> Path:
    """A copy of the question set's manifest, with its clips beside it."""
    return Path(shutil.copytree(made_once / "held_out", tmp_path / "held_out")) / "manifest.jsonl"
