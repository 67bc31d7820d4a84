"""`data_prep.overlap`: what training clips share with a test, told clip by clip, in spite of kills."""

import signal
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import soundfile

from data_prep import overlap
from data_prep.overlap import main, overlapping, read_overlap
from r1_aqa_repro.common.errors import Refused
from r1_aqa_repro.data.audio import SAMPLING_RATE
from r1_aqa_repro.data.questions import AudioQuestion, write_manifest
from r1_aqa_repro.embedded.question_set import make_question
from tests.conftest import ROOT
from tests.data_prep.conftest import mmau_record
from tests.files import read_json, read_lines, write_json, write_lines


def scene(seed, clips=4):
    """Embedded clips on end: about 11 seconds, float32."""
    return np.concatenate([make_question(seed, "train", index)[1] for index in range(clips)])


def question(folder, name, samples, video=None, **options):
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    if samples is not None:
        # as integers: of floats the formats round each in its own way
        soundfile.write(path, np.rint(samples * 32_767).astype(np.int16), SAMPLING_RATE, **options)
    return AudioQuestion(path.stem, path, "What is heard?", ("dog", "cat"), "dog", source_video=video)


@pytest.fixture
def data(tmp_path):
    """Six test questions and seven of training, of which some share clips, videos and recordings."""
    scenes = [scene(seed) for seed in range(5)]
    blip, hush = scenes[0][:8_000], np.zeros(SAMPLING_RATE, np.float32)
    test, train = tmp_path / "test", tmp_path / "train"
    write_manifest(
        test / "test.jsonl",
        [
            question(test, "audio/same.wav", scenes[0]),
            question(test, "audio/cut.wav", scenes[1][32_000:], video="-HG3Omg_89c_000030"),
            question(test, "audio/own.wav", scenes[2]),
            question(test, "audio/short.wav", blip),
            question(test, "audio/silent.wav", hush),
            question(test, "audio/gone.wav", None),
        ],
    )
    louder = np.clip(2 * scenes[1][:112_000], -1, 1)
    first = question(train, "audio/a.flac", scenes[0])
    write_manifest(
        train / "train.jsonl",
        [
            first,
            replace(first, id="a again"),
            question(train, "audio/b.ogg", louder, video="-HG3Omg_89c_000040"),
            question(train, "audio/c.wav", scenes[3], video="-HG3Omg_89c_000090"),
            question(train, "audio/d.wav", scenes[4]),
            question(train, "audio/e.flac", blip),
            question(train, "audio/f.wav", hush[:500]),
        ],
    )
    return tmp_path


def arguments(data, out, *more):
    files = data / "train" / "train.jsonl", data / "test" / "test.jsonl"
    return ["--train", str(files[0]), "--test", str(files[1]), "--out", str(out), "--workers", "2", *more]


def test_what_is_shared_is_told_for_each_test_question(data, capsys):
    assert main(arguments(data, data / "out")) == 0
    report = read_overlap(data / "out" / "overlap.json")
    shared = {one["id"]: {each["audio_path"]: each for each in one["train"]} for one in report["overlaps"]}
    assert {name: {path: each["by"] for path, each in found.items()} for name, found in shared.items()} == {
        "same": {"audio/a.flac": ["samples", "fingerprint"]},
        "cut": {"audio/b.ogg": ["fingerprint", "video"], "audio/c.wav": ["video"]},
        "short": {"audio/e.flac": ["samples"]},
    }
    same, cut = shared["same"]["audio/a.flac"], shared["cut"]["audio/b.ogg"]
    assert (same["questions"], same["offset"], same["bit_error_rate"]) == (["a", "a again"], 0.0, 0.0)
    # the test's begins 2 s into the recording, the training's lasts for 7 s; Vorbis changes some bits
    assert cut["offset"] == pytest.approx(2.0, abs=0.02) and cut["seconds"] == pytest.approx(5.0, abs=0.1)
    assert 0 < cut["bit_error_rate"] < 0.2 and cut["threshold"] == 0.35
    assert "offset" not in shared["cut"]["audio/c.wav"]
    assert report["test_questions"] == {"samples": 2, "fingerprint": 2, "video": 1, "any": 3}
    assert report["train_clips"] == {"samples": 2, "fingerprint": 2, "video": 2}
    assert overlapping(report) == {"samples": ["same", "short"], "fingerprint": ["same", "cut"], "video": ["cut"]}
    assert (report["train"]["questions"], report["train"]["clips"], report["test"]["clips"]) == (7, 6, 6)
    assert report["test"]["not_comparable"] == {
        "missing": ["audio/gone.wav"],
        "silent": ["audio/silent.wav"],
        "under 1.15 s of sound": ["audio/short.wav"],
    }
    assert [sorted(each) for each in report["train"]["not_comparable"].values()] == [["audio/f.wav"], ["audio/e.flac"]]
    printed = capsys.readouterr().out
    assert "the same recording: 2 test questions, 2 training clips" in printed
    assert "same: audio/a.flac" in printed and str(data / "out" / "overlap.json") in printed


def test_false_positives_are_reckoned_from_what_was_compared(data):
    assert main(arguments(data, data / "out.json")) == 0
    reckoned = read_json(data / "out.json")["method"]["false_positives"]
    assert reckoned["standard_deviations"] == pytest.approx(9.05, abs=0.01)
    # half the complement of the error function at 6.4; 4 clips of training, 3 of the test, 11 s of 83 blocks a second
    assert reckoned["probability_of_two_blocks"] == pytest.approx(7.1e-20, rel=0.1)
    assert 1e6 < reckoned["pairs_of_blocks"] < 12 * 1_000**2
    assert reckoned["expected"] == reckoned["probability_of_two_blocks"] * reckoned["pairs_of_blocks"]


def test_a_benchmark_s_own_file_finds_its_clips(data):
    records = [mmau_record(index, id=name, audio_id=f"./{name}.wav") for index, name in enumerate(("same", "own"))]
    write_json(data / "mmau.json", records)
    code = main([
        *arguments(data, data / "out.json")[:2], "--test", str(data / "mmau.json"),
        "--audio-dir", str(data / "test" / "audio"), "--out", str(data / "out.json"),
    ])  # fmt: skip
    report = read_json(data / "out.json")
    assert code == 0 and overlapping(report)["fingerprint"] == ["same"]
    assert report["overlaps"][0]["audio_path"] == "same.wav"


def test_what_was_compared_is_not_compared_again_unless_it_changed(data, monkeypatch, capsys):
    heard, listen = [], overlap._listen

    def counting(path):
        heard.append(path.name)
        return listen(path)

    monkeypatch.setattr(overlap, "_listen", counting)

    def trained():
        assert main(arguments(data, data / "out.json")) == 0
        found = sorted(name for name in heard if name[1] == ".")
        heard.clear()
        return found

    assert len(trained()) == 6
    report = (data / "out.json").read_bytes()
    assert trained() == [] and (data / "out.json").read_bytes() == report
    assert "6 of 6 training clips were compared before" in capsys.readouterr().err
    soundfile.write(data / "train" / "audio" / "d.wav", scene(2), SAMPLING_RATE)
    assert trained() == ["d.wav"]
    assert overlapping(read_json(data / "out.json"))["fingerprint"] == ["same", "cut", "own"]
    # against another test all of them are
    write_lines(data / "test" / "test.jsonl", read_lines(data / "test" / "test.jsonl")[1:])
    assert len(trained()) == 6


def test_an_interruption_keeps_what_was_compared(data, monkeypatch):
    assert main(arguments(data, data / "whole.json")) == 0
    listen = overlap._listen

    def interrupted(path):
        if path.name == "d.wav":
            raise KeyboardInterrupt
        return listen(path)

    monkeypatch.setattr(overlap, "_listen", interrupted)
    assert main(arguments(data, data / "out.json")) == 130
    assert not (data / "out.json").exists()
    assert 3 <= len(read_lines(data / ".out.json.journal.jsonl")) < 6
    monkeypatch.setattr(overlap, "_listen", listen)
    assert main(arguments(data, data / "out.json")) == 0
    assert (data / "out.json").read_bytes() == (data / "whole.json").read_bytes()


KILLED = """
import os, signal, sys
from data_prep import overlap
from r1_aqa_repro.common.record_file import RecordFile

append, left = RecordFile.append, int(sys.argv.pop(1))

def append_and_die(journal, records):
    global left
    append(journal, records)
    left -= 1
    if not left:
        os.kill(os.getpid(), signal.SIGKILL)

overlap._SAVE_EVERY, RecordFile.append = 0, append_and_die
sys.exit(overlap.main(sys.argv[1:]))
"""


@pytest.mark.slow
def test_kills_change_nothing(tmp_path):
    """Killed wherever it is, the same command goes on and ends with the same report."""
    questions = [question(tmp_path, f"audio/{n}.wav", scene(n // 2)[n % 2 * 16_000 :]) for n in range(60)]
    write_manifest(tmp_path / "test" / "test.jsonl", questions[::15])
    write_manifest(tmp_path / "train" / "train.jsonl", questions)
    assert main(arguments(tmp_path, tmp_path / "whole.json")) == 0
    known = 0
    for additions in (1, 9, 25):  # to the journal, until the kill
        command = [sys.executable, "-c", KILLED, str(additions), *arguments(tmp_path, tmp_path / "out.json")]
        killed = subprocess.run(command, cwd=ROOT, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
        assert killed.returncode == -signal.SIGKILL
        known += additions  # a clip each
        assert len(read_lines(tmp_path / ".out.json.journal.jsonl")) == known
    assert main(arguments(tmp_path, tmp_path / "out.json")) == 0
    assert (tmp_path / "out.json").read_bytes() == (tmp_path / "whole.json").read_bytes()


def test_bad_input_is_refused_by_name_before_anything_is_decoded(data, capsys):
    write_lines(data / "bad.jsonl", [{"id": "x", "audio_path": "x.wav", "question": "?", "choices": ["one"]}])
    given = arguments(data, data / "out.json")
    given[1] = str(data / "bad.jsonl")
    assert main(given) == 2
    assert "bad.jsonl" in capsys.readouterr().err
    given[1] = str(data / "nowhere.jsonl")
    assert main(given) == 2
    assert not (data / "out.json").exists()
    with pytest.raises(Refused, match=r"no report of overlaps"):
        read_overlap(write_json(data / "other.json", {"format": 7}))
