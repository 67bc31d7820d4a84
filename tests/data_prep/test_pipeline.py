"""The engine: accounting, sharing, going on after an interruption, and what it refuses to mix."""

import os
import signal
import subprocess
import time
from multiprocessing import active_children
from pathlib import Path
from threading import Timer

import numpy as np
import pytest
import soundfile

from data_prep import workers as workers_module
from data_prep.media import Excerpt, MediaError
from data_prep.pipeline import Making, Record, prepare, safe_stem
from data_prep.workers import PassingError, Task, Workers, make_clip
from r1_aqa_repro.common.errors import Failed, Problem, Refused
from r1_aqa_repro.data.audio import SAMPLING_RATE, load_audio
from r1_aqa_repro.data.questions import AudioQuestion, read_questions
from r1_aqa_repro.data.records import Rejected
from tests.data_prep.conftest import report_of, result, wav

FIELDS = {"question": "What is heard?", "choices": ("dog", "cat"), "answer": "dog", "dataset": "AVQA"}


def record(record_id, media=None, stem=None, **changed):
    part = {key: changed.pop(key) for key in ("start", "seconds", "cut_over") if key in changed}
    question = AudioQuestion(**{"id": record_id, "audio_path": Path(), **FIELDS, **changed})
    return Record(question, None if media is None else Excerpt(media, **part), stem or record_id)


def run(records, out, workers=1, command="test", **making):
    return prepare(iter(records), out, Making(workers, **making), {"command": command})


@pytest.fixture
def clips(tmp_path):
    """Ten clips of different lengths, by name."""
    return {f"c{n}": wav(tmp_path / "media" / f"c{n}.wav", seconds=0.2 + n / 10, seed=n) for n in range(10)}


def test_every_record_is_kept_or_dropped_with_its_reason(clips, tmp_path):
    broken = tmp_path / "broken.mp4"
    broken.write_bytes(b"nothing")
    os.mkfifo(tmp_path / "pipe.wav")
    records = [
        *(record(name, path) for name, path in clips.items()),
        record("again", clips["c3"], "c3", choices=("dog", "dog")),
        record("gone"),
        record("gone too", tmp_path / "nowhere.wav"),
        record("a pipe is no file", tmp_path / "pipe.wav"),
        record("broken", broken),
        record("broken again", broken, "broken"),
        record("c1", clips["c1"]),
        Rejected("line 7", None, Problem("data.jsonl:line 7", "no JSON", "Mend it.")),
        record("other answer", clips["c1"], answer="fox"),
    ]
    report = run(records, tmp_path / "out", workers=2)
    assert (report.records_in, report.kept) == (len(records), 11)
    assert report.dropped == {
        "missing": ["gone", "gone too", "a pipe is no file"],
        "undecodable": ["broken", "broken again"],
        "bad record": ["c1", "line 7", "other answer"],
    }
    written = report_of(tmp_path / "out")
    for key in ("records_in", "kept", "dropped", "seconds", "clips_per_second"):
        assert written[key] == getattr(report, key)
    assert written["audio"]["clips"] == report.clips_decoded == 10
    # 0.2 + 0.3 + ... + 1.1 seconds
    assert written["audio"]["hours"] == pytest.approx(6.5 / 3600, abs=5e-5)
    assert written["audio"]["seconds"] == {"min": 0.2, "mean": 0.65, "max": 1.1}
    assert str(broken) in report.summary(tmp_path / "out")

    read = read_questions(tmp_path / "out" / "manifest.jsonl")
    assert [question.id for question in read.records] == [*clips, "again"] and not read.problems
    assert [question.flags for question in read.records] == [()] * 10 + [("duplicate_choices",)]
    for question in read.records:
        source = clips["c3" if question.id == "again" else question.id]
        assert np.array_equal(load_audio(question.audio_path), load_audio(source))
    assert len(list((tmp_path / "out" / "audio").iterdir())) == 10


@pytest.mark.parametrize("audio_format", ["flac", "wav"])
def test_the_result_is_the_same_whoever_works_and_from_bytes(audio_format, clips, tmp_path):
    def records(source_of=Path):
        for n in range(7):
            yield from (record(f"{name} {n}", source_of(path), name) for name, path in clips.items())
            yield record(f"gone {n}")

    run(records(), tmp_path / "1", 1, format=audio_format)
    whole = result(tmp_path / "1")
    run(records(), tmp_path / "3", 3, format=audio_format)
    assert result(tmp_path / "3") == whole
    for decoded in (10, 0):
        again = run(records(Path.read_bytes), tmp_path / "bytes", 2, format=audio_format)
        assert again.clips_decoded == decoded and result(tmp_path / "bytes") == whole
    assert run(records(), tmp_path / "1", 3, format=audio_format).clips_decoded == 0
    assert result(tmp_path / "1") == whole


def test_what_changed_is_done_again(clips, tmp_path):
    records = [record(name, path) for name, path in clips.items()]
    run(records, tmp_path / "out")
    wav(clips["c2"], seconds=1, seed=77)
    clips["c4"].write_bytes(b"no longer audio")
    (tmp_path / "out" / "audio" / "c5.flac").unlink()
    (tmp_path / "out" / "audio" / "c6.flac").write_bytes(b"half")
    (tmp_path / "out" / "audio" / ".c7.flac.123.partial").write_bytes(b"half")
    report = run(records, tmp_path / "out")
    assert report.clips_decoded == 3
    assert report.dropped == {"undecodable": ["c4"]}
    run(records, tmp_path / "fresh")
    assert result(tmp_path / "out") == result(tmp_path / "fresh")


def test_another_part_of_the_file_is_another_clip(clips, tmp_path):
    run([record("a", clips["c9"], start=0.2, seconds=0.5)], tmp_path / "out")
    assert run([record("a", clips["c9"], start=0.3, seconds=0.5)], tmp_path / "out").clips_decoded == 1
    expected = load_audio(clips["c9"])[round(0.3 * SAMPLING_RATE) : round(0.8 * SAMPLING_RATE)]
    assert np.array_equal(load_audio(tmp_path / "out" / "audio" / "a.flac"), expected)


def test_two_media_cannot_share_a_name(clips, tmp_path):
    records = [record("a", clips["c1"], "same"), record("b", clips["c2"], "same"), record("c", clips["c1"], "same")]
    for _ in range(2):  # the second time, all is known from the journal
        report = run(records, tmp_path / "out")
        assert report.kept == 2
        assert report.dropped == {"bad record": ["b"]}


def test_other_settings_are_refused(clips, tmp_path):
    records = [record("c1", clips["c1"])]
    run(records, tmp_path / "out")
    before = result(tmp_path / "out")
    for more, said in [
        ({"channel": "mean"}, "channel was 'first', now it is 'mean'"),
        ({"format": "wav"}, "format was 'flac', now it is 'wav'"),
        ({"command": "other"}, "command was 'test', now it is 'other'"),
    ]:
        with pytest.raises(Refused, match=said):
            run(records, tmp_path / "out", **more)
    assert result(tmp_path / "out") == before


def test_a_foreign_folder_is_refused(clips, tmp_path):
    records = [record("c1", clips["c1"])]
    (tmp_path / "a file").touch()
    with pytest.raises(Refused, match="not a folder"):
        run(records, tmp_path / "a file")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "manifest.jsonl").write_text("{}\n")
    with pytest.raises(Refused, match=r"manifest\.jsonl from elsewhere"):
        run(records, tmp_path / "other")
    assert (tmp_path / "other" / "manifest.jsonl").read_text() == "{}\n"


def test_two_runs_in_one_folder(clips, tmp_path):
    def records():
        yield record("c1", clips["c1"])
        (tmp_path / "out" / "audio" / ".c2.flac.1.partial").touch()
        with pytest.raises(Refused, match="another process"):
            run([record("c1", clips["c1"])], tmp_path / "out")
        assert (tmp_path / "out" / "audio" / ".c2.flac.1.partial").exists()  # it may be in the making
        yield record("c2", clips["c2"])

    assert run(records(), tmp_path / "out").kept == 2


def test_an_interruption_keeps_what_was_done(clips, tmp_path):
    def records(interrupted):
        for n, (name, path) in enumerate(clips.items()):
            yield record(name, path)
            if interrupted and n == 7:
                time.sleep(2)  # more than enough for eight clips
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(records(True), tmp_path / "out")
    assert not (tmp_path / "out" / "manifest.jsonl").exists()
    assert not active_children()
    run(records(False), tmp_path / "out")
    run(records(False), tmp_path / "fresh")
    assert result(tmp_path / "out") == result(tmp_path / "fresh")


@pytest.fixture
def halting(monkeypatch):
    """`halting(2)`: the first two workers get no further, as those in the loop of a decoder."""

    def halting(number):
        def started(self):
            nonlocal number
            worker = start(self)
            if number:
                number -= 1
                os.kill(worker.process.pid, signal.SIGSTOP)
            return worker

        start = Workers._start
        monkeypatch.setattr(Workers, "_start", started)

    return halting


def all_finished(workers, number):
    results = {}
    while len(results) < number:
        results.update({task.target.name: outcome for task, outcome in workers.finished()})
    return results


@pytest.mark.parametrize(("tries", "seconds"), [(2, 60), (2, 1), (1, 1)], ids=["crashes", "hangs", "is slow once"])
def test_a_decoder_that_crashes_or_hangs_costs_one_clip(clips, tmp_path, halting, monkeypatch, tries, seconds):
    halting(tries)
    monkeypatch.setattr(workers_module, "MOST_SECONDS", float(seconds))
    with Workers(1) as workers:
        for name, media in clips.items():
            workers.submit(Task(tmp_path / f"{name}.flac", Excerpt(media)))
        for after in (0.5, 2.0) if seconds == 60 else ():  # it is tried a second time
            Timer(after, lambda: active_children()[0].kill()).start()
        results = all_finished(workers, len(clips))
    if tries == 2:
        lost = results.pop("c0.flac")
        assert isinstance(lost, PassingError) and lost.reason == "undecodable"
        assert str(clips["c0"]) in lost.detail and f"crash, or takes it over {seconds} s" in lost.detail
    assert all((tmp_path / name).stat().st_size == made.size for name, made in results.items())


def test_a_worker_that_is_killed_costs_nothing(clips, tmp_path, halting):
    """Neither one that waits for a task, nor one that was at a good clip when memory ran out."""
    halting(2)
    with Workers(2) as workers:
        workers.submit(Task(tmp_path / "a.flac", Excerpt(clips["c3"])))
        for process in active_children():
            process.kill()
            process.join()  # so that both deaths are seen at once
        ((task, made),) = workers.finished()
    assert task.target.stat().st_size == made.size


def test_what_may_pass_is_told_from_a_broken_file(tmp_path):
    (tmp_path / "broken.wav").write_bytes(b"no audio")
    with Workers(1) as workers:
        results = {}
        for media in (tmp_path / "broken.wav", Path("/proc/self/mem")):  # the latter: an error of reading
            workers.submit(Task(tmp_path / "a.flac", Excerpt(media)))
            results.update({task.source.media.name: type(outcome) for task, outcome in workers.finished()})
    assert results == {"broken.wav": MediaError, "mem": PassingError}


def test_what_may_pass_is_tried_again_by_the_next_run(clips, tmp_path, monkeypatch):
    def finished(self):
        return [(self._waiting.popleft(), PassingError("undecodable", "the worker was killed"))]

    records = [record("a", clips["c1"], "c1"), record("b", clips["c1"], "c1"), record("c", clips["c2"], "c1")]
    with monkeypatch.context() as patch:
        patch.setattr(Workers, "_feed", lambda self: None)
        patch.setattr(Workers, "finished", finished)
        report = run(records, tmp_path / "out")
        assert report.dropped == {"undecodable": ["a", "b"], "bad record": ["c"]}
    report = run(records, tmp_path / "out")
    assert (report.kept, report.clips_decoded, report.dropped) == (2, 1, {"bad record": ["c"]})


def test_loud_samples_are_clipped_not_wrapped(tmp_path):
    loud = 1.5 * np.sin(np.arange(SAMPLING_RATE) / 30).astype(np.float32)
    soundfile.write(tmp_path / "loud.wav", loud, SAMPLING_RATE, subtype="FLOAT")
    made = make_clip(Task(tmp_path / "clip.flac", Excerpt(tmp_path / "loud.wav")))
    assert made.peak == pytest.approx(1.5, rel=1e-3)  # the sine's samples come that near to its top
    # half a step of 16 bits, and the highest value is one step below 1
    assert np.abs(load_audio(tmp_path / "clip.flac") - np.clip(loud, -1, 1)).max() <= 2**-15


def test_names_that_cannot_be_files():
    for name in ("-HG3Omg_89c_000030", "with space", "ünïcode 声", "a.b"):
        assert safe_stem(name) == name
    odd = ["../../etc/passwd", "a/b", "a_b", ".hidden", "", "..", "x" * 300, "x" * 301, "a\0b", "声" * 100, "\ud800"]
    stems = [safe_stem(name) for name in odd]
    assert len(set(stems)) == len(odd)
    for stem in stems:
        assert "/" not in stem and "\0" not in stem and not stem.startswith(".") and 0 < len(stem.encode()) < 200


def test_damage_to_the_journal_costs_the_clips_that_it_hides(clips, tmp_path):
    records = [record(name, path) for name, path in clips.items()]
    run(records, tmp_path / "out")
    journal = tmp_path / "out" / ".journal.jsonl"
    lines = journal.read_bytes().split(b"\n")
    lines[3] = b"\0" * 20
    journal.write_bytes(b"\n".join(lines)[:-20])
    before = result(tmp_path / "out")
    assert run(records, tmp_path / "out").clips_decoded == 2
    assert result(tmp_path / "out") == before


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 1 MB."""
    folder = tmp_path / "small"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)], capture_output=True)
    if mounted.returncode:
        pytest.skip("mounting is not allowed here")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_full_disk(small_disk, tmp_path):
    source = tmp_path / "noise.wav"
    soundfile.write(source, np.random.default_rng(0).uniform(-1, 1, 4 * SAMPLING_RATE), SAMPLING_RATE)
    records = [record(str(n), source) for n in range(20)]  # 128 kB each
    out = small_disk / "out"
    with pytest.raises(Failed, match=r"the disk is full \(\d.* MB are free\)") as caught:
        run(records, out)
    assert "\n" not in str(caught.value)
    assert not (out / "manifest.jsonl").exists()
    assert not list((out / "audio").glob(".*"))
    done = list((out / "audio").iterdir())
    assert 2 <= len(done) <= 8
    subprocess.run(["mount", "-o", "remount,size=8m", str(small_disk)], check=True)
    assert run(records, out).clips_decoded < 20
    run(records, tmp_path / "fresh")
    assert result(out) == result(tmp_path / "fresh")
