"""Clips are decoded once before a run; those that fail in mid-run teach nothing, and change nothing else."""

from __future__ import annotations

import shutil
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from transformers import ProcessorMixin

from r1_aqa_repro import train_grpo
from r1_aqa_repro.common.errors import Failed
from r1_aqa_repro.data.audio import measure_audio
from r1_aqa_repro.data.questions import AudioQuestion, write_manifest
from r1_aqa_repro.model.inputs import load_clip
from r1_aqa_repro.rewards.rules import REWARDS, Completion, completion_text
from r1_aqa_repro.run import clips as module
from r1_aqa_repro.run import loop
from r1_aqa_repro.run.callbacks import StopOnSignal
from r1_aqa_repro.run.clips import SKIPPED, Clips, LostClip
from r1_aqa_repro.run.kinds import AudioQuestions
from tests.bad_clips import BAD_CLIPS, restore
from tests.conftest import make_questions
from tests.files import read_json
from tests.run.conftest import AUDIO, Killed, Start, kill_at

BREAK_AFTER, STEPS = 2, 12  # of 48 questions, 8 a step: two epochs
SIZES = {
    "audio grpo": ["--prompts_per_step", "8", "--max_prompts_per_device", "4", "--reward_funcs", "hashed"],
    "audio sft": ["--examples_per_step", "8", "--max_examples_per_device", "4"],
}


def hashed_reward(completions: Sequence[Completion], **_: Any) -> list[float]:
    """0 to 1 by the text, so that other completions give other rewards."""
    return [zlib.crc32(completion_text(completion).encode()) % 101 / 100 for completion in completions]


@dataclass
class World:
    """A run whose clips break after its second step: `run(folder)`; the sound ones are kept beside."""

    name: str
    start: Start
    folder: Path
    questions: list[AudioQuestion]
    patch: pytest.MonkeyPatch

    @property
    def bad(self) -> dict[str, AudioQuestion]:
        """The question whose clip breaks, by kind."""
        return dict(zip(BAD_CLIPS, self.questions[5:], strict=False))

    def sound(self, question: AudioQuestion) -> Path:
        return self.folder / "sound" / question.audio_path.name

    def damage(self) -> None:
        for kind, question in self.bad.items():
            BAD_CLIPS[kind](question.audio_path)

    def restore(self, question: AudioQuestion) -> None:
        restore(question.audio_path, self.sound(question))

    def run(self, folder: Path, *more: str, damage: bool = True, kill_after: int = 0) -> int:
        world = self

        class Break(StopOnSignal):
            def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
                super().on_step_end(args, state, control, **kwargs)
                if damage and state.global_step == BREAK_AFTER:
                    world.damage()
                if state.global_step == kill_after:
                    raise Killed

        self.patch.setattr(loop, "StopOnSignal", Break)
        given = ["--train_file", str(self.folder / "manifest.jsonl"), "--max_bad_clips", "48", "--logging_steps", "1"]
        steps = ["--max_steps", str(STEPS), "--save_steps", "4"]
        return self.start(self.name, folder, *SIZES[self.name], *given, *steps, *more)


@pytest.fixture
def world(request: pytest.FixtureRequest, start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    questions = make_questions(tmp_path / "clips", 48)
    shutil.copytree(tmp_path / "clips", tmp_path / "sound")
    write_manifest(tmp_path / "manifest.jsonl", questions)
    monkeypatch.setitem(REWARDS, "hashed", hashed_reward)
    return World(getattr(request, "param", "audio grpo"), start, tmp_path, questions, monkeypatch)


def weights(run: Path) -> bytes:
    return (run / "final" / "model.safetensors").read_bytes()


def log_of(run: Path, *keys: str) -> list[tuple[float, ...]]:
    entries = read_json(run / f"checkpoint-{STEPS}" / "trainer_state.json")["log_history"]
    return [tuple(entry[key] for key in keys) for entry in entries if "grad_norm" in entry]


SETTINGS = [
    ("audio grpo", []),
    ("audio grpo", ["--trained_parts", "no_encoder", "--loss_type", "dapo", "--scale_rewards", "batch"]),
    ("audio grpo", ["--sharing", "off", "--loss_type", "dr_grpo", "--dynamic_sampling", "2"]),
    ("audio sft", []),
    ("audio sft", ["--trained_parts", "no_encoder", "--dataloader_num_workers", "1"]),
]


@pytest.mark.parametrize(("world", "settings"), SETTINGS, indirect=["world"], ids=str)
def test_clips_that_break_in_mid_run_are_named_and_the_rest_is_the_run_without_them(
    world: World, settings: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The run without them has all clips, hears them all, and lets the rows of these count for nothing."""
    run = tmp_path / "broken"
    assert world.run(run, *settings) == 0
    listed = {each["clip"]: LostClip(**each) for each in read_json(run / SKIPPED)}
    bad = {str(question.audio_path): question.id for question in world.bad.values()}
    assert len(bad) == len(BAD_CLIPS) >= 20
    assert len(read_json(run / SKIPPED)) == len(bad) and {clip: lost.id for clip, lost in listed.items()} == bad
    steps = {lost.step for lost in listed.values()}
    assert min(steps) > BREAK_AFTER and max(steps) > STEPS // 2  # some were heard in the first epoch
    printed = capsys.readouterr().err
    assert all(printed.count(f"nothing is learned from question {name}: ") == 1 for name in bad.values())

    def hear(
        self: Clips, question: AudioQuestion, channel: str, processor: ProcessorMixin, step: int | None = None
    ) -> tuple[np.ndarray, str | None]:
        lost = listed.get(str(question.audio_path))
        is_lost = lost is not None and step is not None and lost.step <= step
        return load_clip(question, channel, processor), "it broke" if is_lost else None

    def are_lost(self: Clips, questions: list[AudioQuestion], reasons: Any, step: int) -> list[bool]:
        lost = [listed.get(str(question.audio_path)) for question in questions]
        return [each is not None and each.step <= step for each in lost]

    for question in world.bad.values():
        world.restore(question)
    world.patch.setattr(Clips, "hear", hear)
    world.patch.setattr(Clips, "are_lost", are_lost)
    assert world.run(tmp_path / "without", *settings, damage=False) == 0
    assert weights(run) == weights(tmp_path / "without")
    figures = [
        "loss",
        "grad_norm",
        *(["kl", "reward", "rewards/hashed/mean"] if world.name != "audio sft" else []),
    ]
    assert log_of(run, *figures) == log_of(tmp_path / "without", *figures)


@pytest.mark.parametrize("world", AUDIO, indirect=True)
def test_a_run_that_is_killed_goes_on_to_the_same_weights_though_what_it_lost_is_back(
    world: World, tmp_path: Path
) -> None:
    assert world.run(tmp_path / "whole") == 0
    for question in world.bad.values():
        world.restore(question)
    with pytest.raises(Killed):
        world.run(tmp_path / "killed", kill_after=6)  # a checkpoint is at 4
    listed = [each["id"] for each in read_json(tmp_path / "killed" / SKIPPED)]
    back = [question for question in world.bad.values() if question.id in listed]
    assert 3 < len(back) < len(BAD_CLIPS)
    for question in back:
        world.restore(question)
    assert world.run(tmp_path / "killed", damage=False) == 0
    assert weights(tmp_path / "whole") == weights(tmp_path / "killed")
    assert read_json(tmp_path / "whole" / SKIPPED) == read_json(tmp_path / "killed" / SKIPPED)


def test_too_many_end_the_run_which_goes_on_once_they_are_back(
    world: World, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    assert world.run(run, "--max_bad_clips", "5", "--save_steps", "2") == 1
    printed = capsys.readouterr().err
    listed = read_json(run / SKIPPED)
    assert len(listed) > 5
    message = printed[printed.index("error: ") :]
    assert f"{len(listed)} clips have failed in mid-run, more than max_bad_clips (5)" in message
    assert all(f"{each['clip']}: {each['reason']}" in message for each in listed)
    assert "Traceback" not in printed and not (run / "final").exists()
    assert (run / f"checkpoint-{BREAK_AFTER}" / "optimizer.pt").is_file()

    for question in world.bad.values():
        world.restore(question)
    (run / SKIPPED).unlink()
    assert world.run(run, "--max_bad_clips", "5", "--save_steps", "2", damage=False) == 0
    assert not (run / SKIPPED).exists()


@pytest.mark.parametrize(
    ("most", "seen", "allowed"), [(None, 0, 8), (None, 800, 8), (None, 2_050.0, 20), (3, 2_050, 3), (0, 9, 0)]
)
def test_by_default_one_per_cent_of_the_clips_seen_may_fail_and_always_eight(
    tmp_path: Path, most: int | None, seen: float, allowed: int
) -> None:
    def lose(count: int) -> None:
        clips = Clips(tmp_path, most=most)
        broken = [AudioQuestion(str(index), Path(f"{index}.wav"), "Why?", ("a", "b"), "a") for index in range(count)]
        clips.are_lost(broken, ["gone"] * count, step=1)
        clips.share_lost(1, seen)

    lose(allowed)
    with pytest.raises(Failed, match=rf"{allowed + 1} clips .* more than max_bad_clips \({allowed}\)"):
        lose(allowed + 1)


def test_every_clip_is_decoded_before_the_run_and_once_only(world: World, tmp_path: Path) -> None:
    world.patch.setattr(train_grpo, "run_training", lambda *_: 0)
    read: list[Path] = []

    def measure(path: Path, shortest: float, decode: bool) -> int:
        read.extend([path] if decode else [])
        return measure_audio(path, shortest, decode)

    world.patch.setattr(module, "measure_audio", measure)
    world.damage()
    run, bad = tmp_path / "run", {question.audio_path for question in world.bad.values()}
    assert world.run(run) == 2 and not run.exists()
    assert not read  # what headers tell is said first

    assert world.run(run, "--skip_bad_records", "true") == 0
    left_out = read_json(run / SKIPPED)
    assert len(left_out) == len(bad)
    for question in world.bad.values():
        assert sum(f": {question.id}: {question.audio_path}: " in line for line in left_out) == 1
    assert len(read) == len(set(read)) and {question.audio_path for question in world.questions} - bad < set(read)

    read.clear()
    assert world.run(run, "--skip_bad_records", "true") == 0  # the run goes on
    assert not read
    assert world.run(run, "--skip_bad_records", "true", "--overwrite", "true") == 0
    assert set(read) < bad  # those with a sound header
    assert read_json(run / SKIPPED) == left_out
    world.questions[0].audio_path.touch()  # another time of change: it may be another clip
    read.clear()
    assert world.run(run, "--skip_bad_records", "true", "--overwrite", "true") == 0
    assert world.questions[0].audio_path in read


def test_a_run_keeps_the_questions_that_it_began_with(world: World, tmp_path: Path) -> None:
    """Those left out stay so though their clips are back, and those it has stay though their clips are gone: another
    number of questions would be another order."""
    asked: list[list[AudioQuestion]] = []
    world.patch.setattr(train_grpo, "AudioQuestions", lambda *arguments: Watched(*arguments))
    world.patch.setattr(train_grpo, "run_training", lambda *_: 0)

    class Watched(AudioQuestions):
        def sound(self, records: list[AudioQuestion], file: str) -> Any:
            found = super().sound(records, file)
            asked.append(found[0])
            return found

    first, second = world.questions[:2]
    first.audio_path.unlink()
    assert world.run(tmp_path / "run", "--skip_bad_records", "true") == 0
    world.restore(first)
    second.audio_path.unlink()
    assert world.run(tmp_path / "run", "--skip_bad_records", "true") == 0
    assert asked[0] == asked[2] == world.questions[1:]  # of train_file; each start asks about eval_file too
    [left_out] = read_json(tmp_path / "run" / SKIPPED)
    assert "no such audio file" in left_out


def test_a_run_that_was_moved_with_its_data_goes_on(
    start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    questions = make_questions(tmp_path / "here" / "clips", 8)
    write_manifest(tmp_path / "here" / "manifest.jsonl", questions)
    command = ("audio sft", "run", "--train_file", "manifest.jsonl", "--max_steps", "4")
    monkeypatch.chdir(tmp_path / "here")
    with monkeypatch.context() as patched, pytest.raises(Killed):
        patched.setattr(loop, "StopOnSignal", kill_at(3))
        start(*command)
    (tmp_path / "here").rename(tmp_path / "there")
    monkeypatch.chdir(tmp_path / "there")
    assert start(*command) == 0
    measured = read_json(Path("run/measured_clips.json"))["clips"]
    assert {Path(name) for name in measured} == {
        tmp_path / "there" / "clips" / each.audio_path.name for each in questions
    }


@pytest.mark.parametrize("check", ["decode", "headers"])
def test_only_decoding_finds_what_a_sound_header_hides(world: World, tmp_path: Path, check: str) -> None:
    world.patch.setattr(train_grpo, "run_training", lambda *_: 0)
    BAD_CLIPS["NaN"](world.questions[3].audio_path)
    assert world.run(tmp_path / "run", "--check_audio", check) == (2 if check == "decode" else 0)
