"""The files of labelled clips: what their headers tell, and files that are the same."""

import pytest

from data_prep.folder import Account
from data_prep.label_files import MISSING, TOO_SHORT, TWO_LABELS, usable, without_twins
from data_prep.label_tables import REPEATED, LabelledClip
from r1_aqa_repro.common.errors import Refused
from tests.data_prep.conftest import CONTAINERS, signal, wav, write_media


def clip(path, label="dog", family="animal", recording=None):
    return LabelledClip(f"line {path}", path, label, family, recording or path, "home", "sound", "CC0")


def test_headers_tell_what_is_missing_or_too_short(tmp_path):
    wav(tmp_path / "long.wav", seconds=0.1)
    wav(tmp_path / "short.wav", seconds=0.0995)
    write_media(tmp_path / "film.mp4", signal(CONTAINERS["mp4"][2], 0.3), CONTAINERS["mp4"][2])  # no header of ours
    (tmp_path / "no sound.wav").write_bytes(b"nothing")  # the decoder will say so
    names = ("long.wav", "short.wav", "gone.wav", "film.mp4", "no sound.wav")
    account = Account()
    assert [one.path for one in usable([*map(clip, names)], tmp_path, 2, account)] == [names[0], *names[3:]]
    assert account.dropped == {TOO_SHORT: ["line short.wav"], MISSING: ["line gone.wav"]}


def test_a_folder_that_has_none_of_the_clips_is_refused(tmp_path):
    with pytest.raises(Refused, match=r"none of the 2 clips is there, the first being a\.wav"):
        usable([clip("a.wav"), clip("b.wav")], tmp_path, 1, Account())


def test_recordings_with_the_same_file_are_one(tmp_path):
    """a1 = b1 and b2 = c1 in bytes: a, b and c are one recording; d is another of the same size."""
    for name, seed in (("a1", 1), ("b1", 1), ("b2", 2), ("c1", 2), ("d1", 3)):
        wav(tmp_path / f"{name}.wav", seconds=0.2, seed=seed)
    clips = [clip(f"{name}.wav", recording=name[0]) for name in ("b1", "c1", "a1", "b2", "d1")]
    clips.append(clip("a1.wav", "loud", "level", "a"))
    account = Account()
    kept = without_twins(clips, tmp_path, 2, account)
    assert [(one.path, one.family, one.recording) for one in kept] == [
        ("b1.wav", "animal", "a"),
        ("c1.wav", "animal", "a"),
        ("d1.wav", "animal", "d"),
        ("a1.wav", "level", "a"),
    ]
    assert account.dropped == {REPEATED: ["line a1.wav", "line b2.wav"]}


def test_a_file_under_two_labels_is_asked_about_under_neither(tmp_path):
    for name, seed in (("a", 1), ("b", 1), ("c", 1), ("d", 2)):
        wav(tmp_path / f"{name}.wav", seed=seed)
    clips = [clip("a.wav"), clip("b.wav", "cat"), clip("c.wav"), clip("d.wav"), clip("b.wav", "loud", "level")]
    account = Account()
    kept = without_twins(clips, tmp_path, 1, account)
    assert [(one.path, one.label) for one in kept] == [("d.wav", "dog"), ("b.wav", "loud")]
    assert account.dropped == {TWO_LABELS: ["line a.wav", "line b.wav", "line c.wav"]}
    assert "a.wav is dog, and b.wav, which has the same bytes, cat" in account.details[TWO_LABELS][0]


def test_what_cannot_be_read_is_left_to_the_decoder(tmp_path):
    clips = [clip("a.wav"), clip("b.wav")]
    for one in clips:
        (tmp_path / one.path).mkdir()
    assert without_twins(usable(clips, tmp_path, 1, Account()), tmp_path, 1, Account()) == clips
