"""Clips that were replaced, lost or mended between two calls of the same evaluation."""

import json
import os
import shutil

import numpy as np
import pytest
import soundfile

import eval.generation
import eval.predictions
from eval.mmau import main
from eval.predictions import clip_hashes, is_readable
from eval.sweep import main as sweep
from r1_aqa_repro.common.files import sha256_of
from r1_aqa_repro.data.audio import AudioError
from r1_aqa_repro.data.questions import read_questions
from tests.eval.test_mmau_command import command, contents, read_lines

BROKEN = {
    "absent": None,
    "no audio": b"no audio",
    "cut off": "half of it",
    "not finite": "NaN",
}


def clip(manifest, number):
    return read_questions(manifest).records[number].audio_path


def spoil(path, how):
    """Make a clip one that cannot be used; returns what it was."""
    good = path.read_bytes()
    if BROKEN[how] is None:
        path.unlink()
    elif how == "cut off":
        path.write_bytes(good[:30])
    elif how == "not finite":
        soundfile.write(path, np.full(8000, np.nan), 16_000, subtype="FLOAT")
    else:
        path.write_bytes(BROKEN[how])
    return good


@pytest.fixture
def model(made_once):
    return made_once / "model"


@pytest.fixture
def asked(monkeypatch):
    """The ids that are put to the model, in their order."""
    seen = []
    answer = eval.generation.Generator.answer

    def noting(self, prompts, warn):
        seen.extend(one.question.id for one in prompts)
        return answer(self, prompts, warn)

    monkeypatch.setattr(eval.generation.Generator, "answer", noting)
    return seen


def cut(out, lines):
    """Leave the first so many predictions, as an interruption would."""
    content = (out / "predictions.jsonl").read_bytes().splitlines(keepends=True)
    (out / "predictions.jsonl").write_bytes(b"".join(content[:lines]))


@pytest.mark.parametrize("lines", [12, 7])
def test_another_clip_under_the_same_name_is_refused(model, manifest, tmp_path, capsys, lines):
    out = tmp_path / "out"
    assert command(model, manifest, out) == 0
    cut(out, lines)
    before = contents(out)
    for number in (3, 5):
        shutil.copy(clip(manifest, 0), clip(manifest, number))
    assert command(model, manifest, out) == 2
    message = capsys.readouterr().err
    question = read_questions(manifest).records[3]
    what = f"of the {lines} answered clips, 2 are no longer the same, the first being {question.audio_path}"
    assert f"{what} of question '{question.id}'" in message
    assert contents(out) == before


def test_a_clip_that_has_gone_since_is_refused(model, manifest, tmp_path, capsys):
    out = tmp_path / "out"
    assert command(model, manifest, out) == 0
    clip(manifest, 3).unlink()
    assert command(model, manifest, out) == 2
    assert "12 answered clips, 1 are no longer the same" in capsys.readouterr().err


def test_the_same_bytes_are_the_same_clip(model, manifest, tmp_path):
    """Copied anew, at another time."""
    out = tmp_path / "out"
    assert command(model, manifest, out) == 0
    before = contents(out)
    for number in range(12):
        path = clip(manifest, number)
        path.write_bytes(path.read_bytes())
        os.utime(path, (0, 0))
    assert command(model, manifest, out) == 0
    assert contents(out) == before


def test_a_clip_that_was_not_heard_yet_may_change(model, manifest, tmp_path):
    out, fresh = tmp_path / "out", tmp_path / "fresh"
    assert command(model, manifest, out) == 0
    cut(out, 4)
    shutil.copy(clip(manifest, 0), clip(manifest, 9))
    assert command(model, manifest, out) == 0
    assert command(model, manifest, fresh) == 0
    assert contents(out) == contents(fresh)


@pytest.mark.parametrize("how", ["absent", "not finite"])
def test_a_mended_clip_is_asked_again_and_nothing_else(model, manifest, tmp_path, asked, capsys, how):
    out, fresh = tmp_path / "out", tmp_path / "fresh"
    good = {number: spoil(clip(manifest, number), how) for number in (2, 8)}
    assert command(model, manifest, out) == 3
    asked.clear()
    assert command(model, manifest, out) == 3
    assert asked == []  # they are still lost: nothing to do
    clip(manifest, 2).write_bytes(good[2])
    capsys.readouterr()
    assert command(model, manifest, out) == 3
    assert "can be read now: 1 of the questions" in capsys.readouterr().err
    clip(manifest, 8).write_bytes(good[8])
    assert command(model, manifest, out) == 0
    ids = [question.id for question in read_questions(manifest).records]
    assert command(model, manifest, fresh) == 0
    assert contents(out) == contents(fresh)
    again = asked[: -len(ids)]
    assert {ids[2], ids[8]} <= set(again)
    assert len(again) <= 2 * 5  # the batches that they are in; of these nothing else is recorded again


def test_mended_and_interrupted_at_every_point(model, manifest, tmp_path, monkeypatch):
    """A kill before clips.json knows of the mended clip leaves it to be asked again."""
    out, fresh = tmp_path / "out", tmp_path / "fresh"
    good = spoil(clip(manifest, 2), "no audio")
    assert command(model, manifest, out) == 3
    clip(manifest, 2).write_bytes(good)
    write = eval.predictions.write_json

    def killed(path, value):
        if path.name == "clips.json":
            raise KeyboardInterrupt
        write(path, value)

    with monkeypatch.context() as patched:
        patched.setattr(eval.predictions, "write_json", killed)
        assert command(model, manifest, out) == 130
    assert len(read_lines(out / "predictions.jsonl")) == 11
    with monkeypatch.context() as patched:
        patched.setattr(eval.generation.Generator, "answer", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        assert command(model, manifest, out) == 130
    assert len(read_lines(out / "predictions.jsonl")) == 11
    assert command(model, manifest, out) == 0
    assert command(model, manifest, fresh) == 0
    assert contents(out) == contents(fresh)


def test_a_clip_that_failed_for_a_moment_is_asked_again(model, manifest, tmp_path, monkeypatch):
    """As a network disk may have it: the bytes were there all the time."""
    out, fresh = tmp_path / "out", tmp_path / "fresh"
    load = eval.generation.load_clip
    lost = read_questions(manifest).records[4].id

    def failing(question, *more):
        if question.id == lost:
            raise AudioError(question.audio_path, "stale file handle")
        return load(question, *more)

    with monkeypatch.context() as patched:
        patched.setattr(eval.generation, "load_clip", failing)
        assert command(model, manifest, out) == 3
    assert command(model, manifest, out) == 0
    assert command(model, manifest, fresh) == 0
    assert contents(out) == contents(fresh)


def test_a_clip_put_there_while_it_ran_is_asked_again(model, manifest, tmp_path, monkeypatch, asked):
    """It was heard, but what it was then is not known."""
    out, fresh = tmp_path / "out", tmp_path / "fresh"
    good = spoil(clip(manifest, 6), "absent")
    answer = eval.generation.Generator.answer

    def arriving(self, prompts, warn):
        clip(manifest, 6).write_bytes(good)
        return answer(self, prompts, warn)

    with monkeypatch.context() as patched:
        patched.setattr(eval.generation.Generator, "answer", arriving)
        assert command(model, manifest, out) == 0
    asked.clear()
    assert command(model, manifest, out) == 0
    assert read_questions(manifest).records[6].id in asked
    assert command(model, manifest, fresh) == 0
    assert contents(out) == contents(fresh)


def test_predictions_of_unknown_clips_are_refused(model, manifest, tmp_path, capsys):
    out = tmp_path / "out"
    assert command(model, manifest, out) == 0
    (out / "clips.json").write_text("{", encoding="utf-8")
    assert command(model, manifest, out) == 2
    assert "clips.json is missing or damaged" in capsys.readouterr().err


def test_mended_in_all_repeats_and_orders(model, manifest, tmp_path):
    out, fresh = tmp_path / "out", tmp_path / "fresh"
    more = ("--repeats", 2, "--permute-choices", 2)
    good = spoil(clip(manifest, 2), "no audio")
    assert command(model, manifest, out, *more) == 3
    clip(manifest, 2).write_bytes(good)
    assert command(model, manifest, out, *more) == 0
    assert command(model, manifest, fresh, *more) == 0
    assert contents(out) == contents(fresh)


def test_the_blind_run_of_other_clips_is_not_set_beside(model, manifest, tmp_path):
    out, blind = tmp_path / "mini", tmp_path / "mini-no-audio"
    assert command(model, manifest, blind, "--no-audio") == 0
    shutil.copy(clip(manifest, 0), clip(manifest, 3))
    assert command(model, manifest, out) == 0
    assert "blind" not in json.loads((out / "scores.json").read_text(encoding="utf-8"))


def test_a_sweep_takes_over_no_evaluation_of_other_clips(model, manifest, tmp_path, asked):
    run = tmp_path / "a-run"
    shutil.copytree(model, run / "checkpoint-1")
    options = ["--data", str(manifest), "--batch-size", "5", "--max-new-tokens", "6", "--device", "cpu"]
    assert main(["--ckpt", str(run / "checkpoint-1"), *options]) == 0
    asked.clear()
    assert sweep([str(run), *options]) == 0
    assert asked == []
    shutil.copy(clip(manifest, 0), clip(manifest, 3))
    assert sweep([str(run), *options]) == 0
    assert len(asked) == 12


def test_hashes(manifest, tmp_path):
    questions = read_questions(manifest).records
    questions[1].audio_path.unlink()
    clips = {question.id: question.audio_path for question in questions}
    hashes = clip_hashes(clips)
    assert list(hashes) == [question.id for question in questions]
    assert hashes[questions[1].id] is None
    assert all(hashes[one.id] == sha256_of(one.audio_path) for one in questions if one is not questions[1])
    before = hashes[questions[0].id]
    shutil.copy(questions[2].audio_path, questions[0].audio_path)
    assert clip_hashes(clips)[questions[0].id] == hashes[questions[2].id] != before


def test_what_is_readable(manifest, tmp_path):
    good = clip(manifest, 0)
    assert is_readable(good)
    for how in BROKEN:
        path = tmp_path / "clip.wav"
        shutil.copy(good, path)
        spoil(path, how)
        assert not is_readable(path), how
    soundfile.write(tmp_path / "short.wav", np.zeros(1599), 16_000)
    soundfile.write(tmp_path / "long.wav", np.zeros(1600), 16_000)
    assert (is_readable(tmp_path / "short.wav"), is_readable(tmp_path / "long.wav")) == (False, True)
