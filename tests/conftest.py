"""Fixtures shared by all tests: a few clips and questions, and a real Qwen2-Audio small enough to build in a second."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import pytest
import soundfile
import torch
from transformers import ProcessorMixin

from r1_aqa_repro.data.prompts import prompt_text
from r1_aqa_repro.data.questions import AudioQuestion, write_manifest
from r1_aqa_repro.embedded.tiny_model import TEST, build_tiny_qwen2_audio
from r1_aqa_repro.model.loading import load_processor

ROOT = Path(__file__).resolve().parent.parent
SHARED_MMAU = ROOT.parent / "shared" / "data" / "mmau"
OF_OTHER_COMMANDS = ("align_", "reproduce_", "small_", "suite")
TRAINING_CONFIGS = sorted(p for p in (ROOT / "configs").glob("*.yaml") if not p.stem.startswith(OF_OTHER_COMMANDS))
MMAR_FILE = ROOT.parent / "shared" / "data" / "mmar" / "MMAR-meta.jsonl"

pytest_plugins = ["tests.generations", "tests.text_world"]

torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))

# Runs of minutes that the tests of several files look at, by the beginnings of the names of these tests.
COURSE = "tests/slow/test_learn_docs.py::test_commands_print_what_is_shown_and_run_what_is_quoted"
SHARED_RUNS = {
    "audio": ("tests/slow/test_embedded_run.py", f"{COURSE}[6."),
    "lessons": (f"{COURSE}[1.", f"{COURSE}[2.1", f"{COURSE}[2.2", f"{COURSE}[2.3"),
    "text": (COURSE, "tests/slow/test_text_runs.py"),
}


def shared_run(nodeid: str) -> str | None:
    return next((run for run, names in SHARED_RUNS.items() if nodeid.startswith(names)), None)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """On several cores (scripts/test.sh) the tests of a file, or of a run, stay together, with what fixtures made."""
    from xdist.scheduler import LoadFileScheduling

    class Scheduling(LoadFileScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return shared_run(nodeid) or super()._split_scope(nodeid)

    return Scheduling(config, log)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The long runs begin first, then all else that is slow, so that all cores end at about the same time."""
    items.sort(key=lambda item: (shared_run(item.nodeid) is None, item.get_closest_marker("slow") is None))


def make_questions(folder: Path, count: int) -> list[AudioQuestion]:
    """Questions with tones of different lengths (0.5 to 2.9 s) and pitches, choices and texts of different lengths."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    questions = []
    for index in range(count):
        seconds = 0.5 + 2.4 * index / max(1, count - 1)
        time = np.arange(int(seconds * 16_000)) / 16_000
        wave = 0.3 * np.sin(2 * np.pi * (200 + 37 * index) * time) + 0.01 * rng.standard_normal(len(time))
        path = folder / f"clip-{index}.wav"
        soundfile.write(path, wave, 16_000)
        choices = ("low", "high", "a rising tone", "silence")[: 2 + index % 3]
        questions.append(
            AudioQuestion(
                id=f"q{index}",
                audio_path=path,
                question="What is heard?" if index % 2 else "Which of these describes the sound in the clip best?",
                choices=choices,
                answer=choices[index % len(choices)],
                task=("sound", "music", "speech")[index % 3],
            )
        )
    return questions


@pytest.fixture(scope="session")
def questions(tmp_path_factory: pytest.TempPathFactory) -> list[AudioQuestion]:
    return make_questions(tmp_path_factory.mktemp("clips"), 24)


@pytest.fixture(scope="session")
def manifest(questions: list[AudioQuestion], tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("data") / "manifest.jsonl"
    write_manifest(path, questions)
    return path


@pytest.fixture(scope="session")
def model_folder(questions: list[AudioQuestion], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A saved Qwen2-Audio with random weights, as users have it on disk."""
    folder = tmp_path_factory.mktemp("models") / "tiny"
    texts = [prompt_text(question, "answer") for question in questions]
    build_tiny_qwen2_audio(folder, texts=texts, seed=0, geometry=TEST)
    return folder


@pytest.fixture(scope="session")
def processor(model_folder: Path) -> ProcessorMixin:
    """The model's processor; shared, so change a copy only."""
    return load_processor(model_folder)
