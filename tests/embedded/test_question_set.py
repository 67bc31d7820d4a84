"""The synthetic question set: deterministic, restartable, and answerable by listening only."""

from __future__ import annotations

import json
import shutil
from collections import Counter, defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from r1_aqa_repro.common.errors import Refused
from r1_aqa_repro.data.questions import read_questions
from r1_aqa_repro.embedded import question_set
from r1_aqa_repro.embedded.families import FAMILIES, MAX_SCENE_SECONDS
from r1_aqa_repro.embedded.question_set import make_question, write_question_set
from tests.files import contents

NUM_FAMILIES = sum(map(len, FAMILIES.values()))
Questions = list[tuple[dict[str, Any], np.ndarray]]
SIZES: dict[str, Any] = {"seed": 3, "num_train": 70, "num_held_out": 10, "progress": False}


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("set") / "embedded"
    write_question_set(out, workers=1, **SIZES)
    return out


@pytest.fixture(scope="module")
def questions() -> Questions:
    return [make_question(0, "train", index) for index in range(1200)]


def test_the_bytes_do_not_depend_on_the_number_of_workers(written: Path, tmp_path: Path) -> None:
    write_question_set(tmp_path / "two", workers=2, **SIZES)
    assert contents(tmp_path / "two") == contents(written)


def test_an_interrupted_writing_ends_as_an_uninterrupted_one_and_a_complete_set_is_left_alone(
    written: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "set"
    shutil.copytree(written, out)
    (out / "question_set.json").rename(out / "question_set.partial.json")
    (out / "train" / "manifest.jsonl").unlink()
    clips = sorted((out / "train" / "audio").glob("*.wav"))
    for clip in clips[::2]:
        clip.unlink()
    clips[0].with_suffix(".partial").write_bytes(b"RIFF, and then the power went")
    kept = clips[1].stat().st_mtime_ns
    write_question_set(out, workers=1, **SIZES)
    assert contents(out) == contents(written)
    assert clips[1].stat().st_mtime_ns == kept
    monkeypatch.setattr(question_set, "ProcessPoolExecutor", None)  # would fail if anything were to be written
    write_question_set(out, workers=1, **SIZES)


@pytest.mark.parametrize("marker", ["question_set.json", "question_set.partial.json"])
def test_another_set_is_not_overwritten(written: Path, tmp_path: Path, marker: str) -> None:
    shutil.copy(written / "question_set.json", tmp_path / marker)
    with pytest.raises(Refused, match=f"{marker}: seed was 3, now it is 4"):
        write_question_set(tmp_path, workers=1, **(SIZES | {"seed": 4}))


def test_files_are_what_the_rest_of_the_project_reads(written: Path) -> None:
    for file, count in (("train/manifest.jsonl", 70), ("held_out/mmau_format.json", 10)):
        read = read_questions(written / file)
        assert not read.problems
        assert len(read.records) == count
        for question in read.records:
            info = soundfile.info(str(question.audio_path))
            assert (info.samplerate, info.channels, info.subtype) == (16_000, 1, "PCM_16")
            assert question.dataset == "embedded"
    records = json.loads((written / "held_out" / "mmau_format.json").read_text())
    mmau_keys = {"id", "audio_id", "question", "choices", "answer", "dataset", "task", "split", "category"}
    assert all(set(record) == mmau_keys | {"sub-category", "difficulty"} for record in records)


def test_no_clip_is_in_both_splits_or_in_the_set_of_another_seed(written: Path) -> None:
    train, held_out = (set(contents(written / split / "audio").values()) for split in ("train", "held_out"))
    assert (len(train), len(held_out)) == (70, 10)
    assert not train & held_out
    waves = [make_question(seed, "train", index)[1] for seed in (3, 4) for index in range(12)]
    assert len({wave.tobytes() for wave in waves}) == 24 and waves[0].dtype == np.float32


def test_questions_are_well_formed_and_balanced(questions: Questions) -> None:
    for record, wave in questions:
        assert record["answer"] in record["choices"]
        assert 2 <= len(record["choices"]) == len(set(record["choices"])) <= 4
        words = [frozenset(choice.lower().replace("-", " ").split()) for choice in record["choices"]]
        assert len(set(words)) == len(words), "the official matcher compares sets of words"
        assert MAX_SCENE_SECONDS < len(wave) / 16_000 <= 3.0
        assert np.abs(wave).max() < 1, "would be clipped in 16 bits"
    assert len({record["sub_category"] for record, _ in questions}) == NUM_FAMILIES
    assert len(set(Counter(record["task"] for record, _ in questions).values())) == 1
    assert min(Counter(record["difficulty"] for record, _ in questions).values()) > 300
    chance = np.mean([1 / len(record["choices"]) for record, _ in questions])
    assert 0.27 < chance < 0.32
    for place in range(4):  # within 4 standard errors of what shuffled choices give
        hits = [
            record["choices"].index(record["answer"]) == place for record, _ in questions if len(record["choices"]) == 4
        ]
        assert abs(np.mean(hits) - 0.25) < 4 * np.sqrt(0.25 * 0.75 / len(hits))


def gain_over_chance(questions: Questions, learn: Callable[[Questions], Callable[..., str]]) -> float:
    """Accuracy above chance, on the second half, of the guess at (record, wave) that is learnt from the first."""
    half = len(questions) // 2
    guess = learn(questions[:half])
    hits = [guess(record, wave) == record["answer"] for record, wave in questions[half:]]
    return float(np.mean(hits) - np.mean([1 / len(record["choices"]) for record, _ in questions[half:]]))


@pytest.mark.parametrize("describe", [len, lambda wave: np.log(np.sqrt(np.mean(wave**2)))], ids=["length", "level"])
def test_length_and_level_do_not_tell_the_answer(questions: Questions, describe: Callable[..., float]) -> None:
    """Each question's answers are told apart by the mean of one feature."""

    def learn(known: Questions) -> Callable[..., str]:
        values: dict[tuple[str, str], list[float]] = defaultdict(list)
        for record, wave in known:
            values[record["question"], record["answer"]].append(describe(wave))

        def nearest(record: dict[str, Any], wave: np.ndarray) -> str:
            value = describe(wave)
            distance = {c: abs(np.mean(values[record["question"], c] or np.inf) - value) for c in record["choices"]}
            return min(distance, key=lambda choice: distance[choice])

        return nearest

    assert gain_over_chance(questions, learn) < 0.05


def test_a_blind_guess_from_question_and_choices_does_not_beat_chance(questions: Questions) -> None:
    def learn(known: Questions) -> Callable[..., str]:
        counts = Counter((record["question"], record["answer"]) for record, _ in known)
        return lambda record, wave: max(record["choices"], key=lambda choice: counts[record["question"], choice])

    assert gain_over_chance(questions, learn) < 0.05
