"""Real input: R1-AQA's own lines that point at a real MMAU clip, and a saved model."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from r1_aqa_repro import train_grpo, train_sft
from tests.conftest import SHARED_MMAU
from tests.text_world import COMMON

CLIP = SHARED_MMAU / "audio" / "3fe64f3d-282c-4bc8-a753-68f8f6c35652.wav"


@pytest.fixture
def r1_aqa_lines(tmp_path: Path) -> Path:
    """Eight different questions about the one real clip (10 s, 32 kHz)."""
    if not CLIP.is_file():
        pytest.skip("the real MMAU clip is not here")
    lines = [
        {
            "id": index,
            "video_name": f"-HG3Omg_89c_{index:06d}",
            "video_id": index,
            "question_text": f"What happened in part {index} of the video?",
            "multi_choice": ["motorboat", "Yacht consignment", "Sailboat set sail", "Consignment car"],
            "answer": index % 4,
            "question_relation": "View",
            "question_type": "Happening",
            "dataset_name": "AVQA",
            "audio_path": str(CLIP),
        }
        for index in range(8)
    ]
    path = tmp_path / "train_qa.data"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return path


@pytest.mark.slow
def test_sft_and_grpo_run_on_r1_aqa_lines(r1_aqa_lines: Path, model_folder: Path, tmp_path: Path) -> None:
    sft, grpo = tmp_path / "sft", tmp_path / "grpo"
    settings = [*COMMON, "--train_file", str(r1_aqa_lines), "--max_completion_length", "6"]
    where = ["--model_name_or_path", str(model_folder), "--output_dir", str(sft)]
    assert train_sft.main([*settings, *where, "--examples_per_step", "4"]) == 0
    where = ["--model_name_or_path", str(sft / "final"), "--output_dir", str(grpo)]
    assert train_grpo.main([*settings, *where, "--prompts_per_step", "4", "--num_generations", "2"]) == 0
    assert (grpo / "final" / "model.safetensors").is_file()
    run = json.loads((grpo / "run.json").read_text(encoding="utf-8"))
    assert {"git_commit", "dirty", "versions", "seed", "data", "hardware", "seconds"} <= run.keys()
    assert list(run["data"]) == [str(r1_aqa_lines)] and run["seconds"]["grpo"] > 0
