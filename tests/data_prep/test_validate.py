"""Every rule of `data_prep.validate`, broken one at a time; leakage between splits."""

import numpy as np
import pytest
import soundfile

from data_prep.validate import RULES, main
from r1_aqa_repro.data.questions import write_manifest
from tests.bad_clips import BAD_CLIPS
from tests.conftest import make_questions
from tests.files import read_json, read_lines, write_lines


@pytest.fixture
def manifest(tmp_path):
    """Six good questions about six clips, each of its own video."""
    folder = tmp_path / "train"
    path = folder / "manifest.jsonl"
    write_manifest(path, make_questions(folder / "audio", 6))
    change(path, *({"source_video": f"video_{index}_vid_000030"} for index in range(6)))
    return path


def change(path, *changes):
    """Update the first lines of a manifest; None removes a key."""
    records = read_lines(path)
    for record, changed in zip(records, changes, strict=False):
        record.update(changed)
    write_lines(path, ({key: value for key, value in record.items() if value is not None} for record in records))


def findings(tmp_path, *arguments):
    """(exit code, {rule: [findings]})"""
    code = main([*map(str, arguments), "--workers", "2", "--json", str(tmp_path / "findings.json")])
    found = read_json(tmp_path / "findings.json")
    by_rule = {}
    for finding in found["findings"]:
        assert finding["severity"] == RULES[finding["rule"]][0]
        by_rule.setdefault(finding["rule"], []).append(finding)
    errors = sum(finding["severity"] == "error" for finding in found["findings"])
    assert (found["errors"], found["warnings"]) == (errors, len(found["findings"]) - errors)
    assert (code == 3) == (errors > 0)
    return code, by_rule


@pytest.mark.parametrize(
    ("changes", "rules"),
    [
        ([], {}),
        ([{}, {"question": None}], {"bad_record": 1}),
        ([{}, {"id": "q3"}], {"bad_record": 1}),
        ([{}, {"answer": None}], {"no_answer": 1}),
        ([{"answer": None}] * 6, {"unlabelled": 1}),
        ([{"audio_path": "audio/elsewhere.wav"}], {"missing": 1}),
        ([{"audio_path": "x" * 300}], {"missing": 1}),  # longer than a file name can be
        ([{"audio_path": "/nowhere/clip.wav"}], {"absolute_path": 1, "missing": 1}),
        ([{"audio_path": "audio/../../train/audio/clip-0.wav"}], {"path_outside": 1}),
        ([{"choices": ["low", "low", "high"]}], {"duplicate_choices": 1}),
    ],
)
def test_what_is_wrong_with_a_line_is_found_by_its_rule(manifest, tmp_path, changes, rules):
    change(manifest, *changes)
    _, by_rule = findings(tmp_path, manifest)
    assert {name: len(found) for name, found in by_rule.items()} == rules


@pytest.mark.parametrize(
    ("damage", "rules"),
    [
        (lambda path: path.write_bytes(b"no audio"), ["undecodable"]),
        (lambda path: path.write_bytes(b""), ["undecodable"]),
        (BAD_CLIPS["wav cut off"], ["cut_off"]),
        (BAD_CLIPS["ogg cut off in its last page"], ["cut_off"]),
        (BAD_CLIPS["mp3 cut off"], ["cut_off"]),
        (lambda path: soundfile.write(path, np.zeros((0,)), 16_000), ["undecodable"]),
        (lambda path: soundfile.write(path, 0.1 * np.ones(44_100), 44_100), ["not_16khz_mono"]),
        (lambda path: soundfile.write(path, 0.1 * np.ones((16_000, 2)), 16_000), ["not_16khz_mono"]),
        (lambda path: soundfile.write(path, 0.1 * np.ones(1_599), 16_000), ["too_short"]),
        (lambda path: soundfile.write(path, 0.1 * np.ones(1_600), 16_000), []),  # 0.1 s exactly
        (lambda path: soundfile.write(path, np.zeros(16_000), 16_000), ["silent"]),
        (lambda path: soundfile.write(path, np.zeros((900, 2)), 8_000), ["not_16khz_mono", "silent"]),  # 0.1125 s
    ],
)
def test_a_bad_clip_is_found_by_its_rules(manifest, tmp_path, damage, rules):
    damage(manifest.parent / "audio" / "clip-1.wav")
    _, by_rule = findings(tmp_path, manifest)
    assert list(by_rule) == rules
    assert all(found[0]["where"] == "q1" for found in by_rule.values())


@pytest.fixture
def other(tmp_path):
    """A split that shares nothing with `manifest`, in a folder of its own."""
    folder = tmp_path / "other"
    questions = make_questions(folder / "audio", 9)[6:]
    path = folder / "manifest.jsonl"
    write_manifest(path, questions)
    change(path, *({"question": f"What else is heard in {index}?"} for index in range(3)))
    return path


SAME_TEXT = {"question": "what IS\theard?", "choices": ["a rising tone", "HIGH", "low"], "answer": "low"}


@pytest.mark.parametrize(
    ("changes", "rule", "where"),
    [
        ([], None, ""),
        ([{"audio_path": "audio/renamed.flac"}], "same_audio", "{manifest}: q2, {other}: q6"),  # another format
        ([{"source_video": "video_2_vid_000170"}], "same_video", "{manifest}: q2, {other}: q6"),  # id of 11 characters
        ([{"source_video": "video_2_vie_000030"}], None, ""),
        ([SAME_TEXT] * 2, "same_text", "{manifest}: q1, {other}: q6 and 1 more"),  # with choices in another order
    ],
    ids=["nothing", "samples", "another part of the video", "almost the same video", "question and choices"],
)
def test_what_splits_share_is_found(manifest, other, tmp_path, changes, rule, where):
    samples, rate = soundfile.read(manifest.parent / "audio" / "clip-2.wav", dtype="int16")
    soundfile.write(other.parent / "audio" / "renamed.flac", samples, rate)
    change(other, *changes)
    code, by_rule = findings(tmp_path, manifest, "--against", other)
    assert (code, list(by_rule)) == (3 if rule in ("same_audio", "same_video") else 0, [rule] if rule else [])
    assert not rule or by_rule[rule][0]["where"] == where.format(manifest=manifest, other=other)


def test_splits_within_one_file(manifest, tmp_path):
    change(manifest, *({"split": "train"} for _ in range(6)))
    change(manifest, {}, {"source_video": "video_0_vid_000090", "audio_path": "audio/clip-0.wav"})
    assert findings(tmp_path, manifest)[0] == 0  # two questions about one clip are normal in one split
    change(manifest, {"split": "val"})
    code, by_rule = findings(tmp_path, manifest)
    assert (code, list(by_rule)) == (3, ["same_audio", "same_video"])


def test_what_cannot_be_compared_is_said(manifest, other, tmp_path):
    (other.parent / "audio" / "clip-7.wav").unlink()
    with open(other, "a", encoding="utf-8") as file:
        file.write("{\n")
    code, by_rule = findings(tmp_path, manifest, "--against", other)
    assert (code, [found["what"] for found in by_rule["compared_with_flaws"]]) == (
        0,
        ["1 bad records", "1 questions whose clip cannot be decoded"],
    )
