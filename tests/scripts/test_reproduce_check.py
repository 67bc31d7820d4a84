"""What `--check` finds before a reproduction starts, all of it at once, and nothing where all is well."""

from __future__ import annotations

import shutil
from collections import namedtuple
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from r1_aqa_repro.common.errors import Refused
from r1_aqa_repro.data.questions import AudioQuestion, write_manifest
from scripts.reproduce.check import check, check_overlap
from scripts.reproduce.settings import Study, merged, read_study
from scripts.reproduce_r1_aqa import CONFIG

Usage = namedtuple("Usage", "total used free")


def study(folder: Path, model: Path, questions: list[AudioQuestion], **more: Any) -> Study:
    """The real configuration with two arms on a small model, and questions that are there."""
    train, test = folder / "train.jsonl", folder / "test.jsonl"
    if not train.exists():
        half = len(questions) // 2
        write_manifest(train, [replace(one, source_video=f"video-{one.id}") for one in questions[:half]])
        write_manifest(test, [replace(one, source_video=f"other-{one.id}") for one in questions[half:]])
    content = yaml.safe_load(CONFIG.read_text(encoding="utf-8"))
    content["arms"] = {name: content["arms"][name] for name in ("sft_lora", "grpo")}
    own = {
        "model": str(model), "output_dir": str(folder / "study"), "prepare": {}, "suite": None,
        "train": str(train), "test": str(test),
        "keys": {"sft": {"report_to": "none"}, "grpo": {"report_to": "none", "max_completion_length": 8}},
    }  # fmt: skip
    file = folder / "study.yaml"
    file.write_text(yaml.safe_dump(merged(merged(content, own), more)), encoding="utf-8")
    return read_study(file, rehearse=False)


def test_nothing_is_wrong_with_a_sound_one(
    tmp_path: Path, model_folder: Path, questions: list[AudioQuestion], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda _: Usage(10**13, 0, 10**13))
    check(study(tmp_path, model_folder, questions))
    assert not (tmp_path / "study").exists(), "a check writes nothing"


def test_everything_is_found_at_once(
    tmp_path: Path, model_folder: Path, questions: list[AudioQuestion], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda _: Usage(10**6, 10**6, 0))
    bare = shutil.copytree(model_folder, tmp_path / "bare")
    (bare / "preprocessor_config.json").unlink()
    (bare / "processor_config.json").unlink(missing_ok=True)
    study(tmp_path, bare, questions)  # writes the files
    half = len(questions) // 2
    lost = replace(questions[0], audio_path=tmp_path / "gone.wav", source_video="video")
    write_manifest(tmp_path / "train.jsonl", [lost, *questions[1:half]])
    copied = Path(shutil.copy(questions[1].audio_path, tmp_path / "copied.wav"))
    write_manifest(tmp_path / "test.jsonl", [replace(questions[half], audio_path=copied), *questions[half + 1 :]])
    wrong = study(
        tmp_path,
        bare,
        questions,
        processes=3,
        gpu_memory=0.001,
        arms={
            "grpo": {"processes": 3, "keys": {"report_to": "wandb"}},
            "sft_lora": {"processes": 2},  # whose batch divides, so that its memory is counted
        },
    )
    with pytest.raises(Refused) as refusal:
        check(wrong)
    said = str(refusal.value)
    for part in (
        "prompts_per_step: 16 does not divide among 3 processes",
        "gone.wav",
        "preprocessor_config.json",
        "gpu_memory: LoRA, ZeRO-2 takes",
        "the checkpoints of 6 runs need",
        "wandb is not installed",
        f"{questions[half].id}: its clip is trained on ({questions[1].id}",
    ):
        assert part in said, f"{part} is not in\n{said}"


def test_a_video_or_a_clip_on_both_sides_is_named(tmp_path: Path, questions: list[AudioQuestion]) -> None:
    one, other, *rest = questions[:6]
    same = replace(other, id="same", audio_path=one.audio_path)
    video = replace(rest[0], id="video", source_video="abcdefghijk_000020")
    trained = [one, replace(rest[1], source_video="abcdefghijk_000030")]
    found = [problem.where for problem in check_overlap(trained, [same, video, rest[2]])]
    assert found == ["same", "video"]
