"""Clips that were replaced, lost or mended between two calls of the same evaluation."""

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
from tests.eval.conftest import before_each_batch, evaluate
from tests.files import contents, read_json, read_lines


def question(manifest, number):
    return read_questions(manifest).records[number]


def clip(manifest, number):
    return question(manifest, number).audio_path


SPOIL = {
    "absent": lambda path: path.unlink(),
    "no audio": lambda path: path.write_bytes(b"no audio"),
    "not finite": lambda path: soundfile.write(path, np.full(8000, np.nan), 16_000, subtype="FLOAT"),
}


def spoil(path, how="no audio"):
    """Make a clip one that cannot be used; returns what it was."""
    good = path.read_bytes()
    SPOIL[how](path)
    return good


def cut(out, lines):
    """Leave the first so many predictions, as an interruption would."""
    content = (out / "predictions.jsonl").read_bytes().splitlines(keepends=True)
    (out / "predictions.jsonl").write_bytes(b"".join(content[:lines]))


def killed(*_):
    raise KeyboardInterrupt


@pytest.fixture
def out(tmp_path):
    return tmp_path / "out"


@pytest.fixture
def finish(model, manifest, out, tmp_path):
    """Go on with the evaluation to its end: it is then the same as one that was made in one piece."""

    def run(*more):
        assert evaluate(model, manifest, out, *more) == 0
        assert evaluate(model, manifest, tmp_path / "fresh", *more) == 0
        assert contents(out) == contents(tmp_path / "fresh")

    return run


@pytest.mark.parametrize("lines", [12, 7])
@pytest.mark.parametrize("replaced", [True, False])
def test_a_clip_that_was_replaced_or_has_gone_is_refused(model, manifest, out, capsys, lines, replaced):
    assert evaluate(model, manifest, out) == 0
    cut(out, lines)
    before = contents(out)
    for number in (3, 5):
        clip(manifest, number).unlink()
        if replaced:
            shutil.copy(clip(manifest, 0), clip(manifest, number))
    assert evaluate(model, manifest, out) == 2
    message, third = capsys.readouterr().err, question(manifest, 3)
    what = f"of the {lines} answered clips, 2 are no longer the same, the first being {third.audio_path}"
    assert f"{what} of question '{third.id}'" in message
    assert contents(out) == before


def test_a_clip_without_an_answer_yet_may_change(model, manifest, out, finish):
    assert evaluate(model, manifest, out) == 0
    cut(out, 4)
    shutil.copy(clip(manifest, 0), clip(manifest, 9))
    finish()


@pytest.mark.parametrize("how", ["absent", "not finite"])
def test_a_mended_clip_is_asked_again_and_nothing_else(model, manifest, out, asked, capsys, finish, how):
    good = {number: spoil(clip(manifest, number), how) for number in (2, 8)}
    assert evaluate(model, manifest, out) == 3
    asked.clear()
    assert evaluate(model, manifest, out) == 3
    assert asked == []  # they are still lost: nothing to do
    clip(manifest, 2).write_bytes(good[2])
    capsys.readouterr()
    assert evaluate(model, manifest, out) == 3
    assert "can be read now: 1 of the questions" in capsys.readouterr().err
    clip(manifest, 8).write_bytes(good[8])
    finish()
    again = asked[:-12]
    assert {question(manifest, 2).id, question(manifest, 8).id} <= set(again)
    assert len(again) <= 2 * 5  # the batches that they are in; of these nothing else is recorded again


def test_mended_and_interrupted_at_every_point(model, manifest, out, monkeypatch, finish):
    """A kill before clips.json knows of the mended clip leaves it to be asked again."""
    good = spoil(clip(manifest, 2))
    assert evaluate(model, manifest, out) == 3
    clip(manifest, 2).write_bytes(good)
    write = eval.predictions.write_json

    def killed_at_clips(path, value):
        if path.name == "clips.json":
            raise KeyboardInterrupt
        write(path, value)

    for where, name, how in (
        (eval.predictions, "write_json", killed_at_clips),
        (eval.generation.Generator, "answer", killed),
    ):
        with monkeypatch.context() as patched:
            patched.setattr(where, name, how)
            assert evaluate(model, manifest, out) == 130
        assert len(read_lines(out / "predictions.jsonl")) == 11
    finish()


def test_a_clip_that_failed_for_a_moment_is_asked_again(model, manifest, out, monkeypatch, finish):
    """As a network disk may have it: the bytes were there all the time."""
    load, lost = eval.generation.load_clip, question(manifest, 4).id

    def failing(question, *more):
        if question.id == lost:
            raise AudioError(question.audio_path, "stale file handle")
        return load(question, *more)

    with monkeypatch.context() as patched:
        patched.setattr(eval.generation, "load_clip", failing)
        assert evaluate(model, manifest, out) == 3
    finish()


def test_a_clip_put_there_while_it_ran_is_asked_again(model, manifest, out, monkeypatch, asked, finish):
    """It was answered, but what it was then is not known."""
    good = spoil(clip(manifest, 6), "absent")
    with monkeypatch.context() as patched:
        before_each_batch(patched, lambda _: clip(manifest, 6).write_bytes(good))
        assert evaluate(model, manifest, out) == 0
    asked.clear()
    finish()
    assert question(manifest, 6).id in asked[:-12]


def test_mended_in_all_repeats_and_orders(model, manifest, out, finish):
    more = ("--repeats", 2, "--permute-choices", 2)
    good = spoil(clip(manifest, 2))
    assert evaluate(model, manifest, out, *more) == 3
    clip(manifest, 2).write_bytes(good)
    finish(*more)


def test_the_run_without_audio_of_other_clips_is_not_shown(model, manifest, out):
    assert evaluate(model, manifest, out.with_name("out-no-audio"), "--no-audio") == 0
    shutil.copy(clip(manifest, 0), clip(manifest, 3))
    assert evaluate(model, manifest, out) == 0
    assert "blind" not in read_json(out / "scores.json")


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


def test_a_clip_is_known_by_its_bytes(manifest):
    clips = {one.id: one.audio_path for one in read_questions(manifest).records}
    first, second, third, *_ = clips
    clips[second].unlink()
    shutil.copy(clips[third], clips[first])
    hashes = clip_hashes(clips)
    assert list(hashes) == list(clips)
    assert hashes[first] == hashes[third] == sha256_of(clips[third]) != hashes[list(clips)[3]]
    assert hashes[second] is None


def test_what_is_readable(manifest, tmp_path):
    """Decoded to the end, and of a tenth of a second; what cannot be decoded is in test_audio."""
    assert is_readable(clip(manifest, 0))
    for samples, readable in ((np.zeros(1599), False), (np.zeros(1600), True), (np.full(8000, np.nan), False)):
        soundfile.write(tmp_path / "clip.wav", samples, 16_000, subtype="FLOAT")
        assert is_readable(tmp_path / "clip.wav") == readable
