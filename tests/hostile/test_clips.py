"""Clips that name other files or hosts, that wait or never end, or that no recording can hold: named, by kind."""

from __future__ import annotations

import io
import os
import shutil
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import av
import numpy as np
import pytest
import soundfile

from r1_aqa_repro.data.audio import MOST_BYTES, SAMPLING_RATE
from tests.bad_clips import BAD_CLIPS, PNG, RATE, one_sample, patched, tone, written
from tests.conftest import ROOT, make_questions
from tests.data_prep.conftest import avqa_record, mmau_record, report_of, wav
from tests.files import read_json, read_lines, write_json, write_lines
from tests.text_world import COMMON, EXAMPLES

PRIVATE = "recordings/private.wav"
Make = Callable[[Path], object]


def text(content: str) -> Make:
    return lambda path: path.write_text(content)


def in_container(container: str, codec: str, rate: int = SAMPLING_RATE) -> bytes:
    target = io.BytesIO()
    with av.open(target, "w", format=container) as file:
        stream = file.add_stream(codec, rate=rate, layout="mono")
        assert isinstance(stream, av.AudioStream)
        frame = av.AudioFrame.from_ndarray(tone()[None].astype(np.float32), format="flt", layout="mono")
        frame.sample_rate, frame.pts = rate, 0
        file.mux([*stream.encode(frame), *stream.encode(None)])
    return target.getvalue()


def movie_of(other: str) -> Make:
    """A QuickTime movie whose samples are in another file, which an alias names."""

    def make(path: Path) -> None:
        movie, name = in_container("mov", "pcm_s16le"), os.path.abspath(other).encode()
        name += b"\0" * (len(name) % 2)
        alias = bytes(4) + struct.pack(">H", 150) + b"\0\2\0\0" + b"\4disk".ljust(28, b"\0") + bytes(12)
        alias = (alias + b"\x0bprivate.wav".ljust(64, b"\0") + bytes(16) + struct.pack(">HH", 0, 1)).ljust(150, b"\0")
        alias += struct.pack(">HH", 2, len(name)) + name + b"\xff\xff\0\0"
        entry = struct.pack(">I", 12 + len(alias)) + b"alis" + bytes(4) + alias
        at = movie.index(b"dref") - 4
        size = int.from_bytes(movie[at : at + 4])
        box = struct.pack(">I", 16 + len(entry)) + b"dref" + bytes(4) + struct.pack(">I", 1) + entry
        changed = bytearray(movie[:at] + box + movie[at + size :])
        for outer in (b"dinf", b"minf", b"mdia", b"trak", b"moov"):
            start = changed.rindex(outer, 0, at) - 4
            length = int.from_bytes(changed[start : start + 4]) + len(box) - size
            changed[start : start + 4] = length.to_bytes(4)
        path.write_bytes(changed)

    return make


def link(target: str) -> Make:
    return lambda path: path.symlink_to(target)


def link_to_a_pipe(path: Path) -> None:
    os.mkfifo(path.with_suffix(".pipe"))
    path.symlink_to(path.with_suffix(".pipe"))


def unix_socket(path: Path) -> None:
    # a name of a socket may have 107 bytes
    here = os.open(path.parent, os.O_RDONLY)
    with closing(socket.socket(socket.AF_UNIX)) as opened:
        opened.bind(f"/proc/self/fd/{here}/{path.name}")
    os.close(here)


def sparse(path: Path) -> None:
    written("WAV", tone())(path)
    os.truncate(path, MOST_BYTES + 1)


HLS = f"#EXTM3U\n#EXT-X-VERSION:3\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\n{PRIVATE}\n#EXT-X-ENDLIST\n"
SDP = "v=0\r\no=- 0 0 IN IP4 127.0.0.1\r\ns=x\r\nc=IN IP4 127.0.0.1\r\nt=0 0\r\nm=audio 5004 RTP/AVP 0\r\n"
DASH = f'<MPD type="static"><Period><AdaptationSet><Representation><BaseURL>{PRIVATE}</BaseURL></Representation>'
XML = '<?xml version="1.0" encoding="UTF-8"?>\n'
CONCAT = f"ffconcat version 1.0\nfile {PRIVATE}\n"
TAG = b"ID3\3\0\0\0\0\0\x0a" + bytes(10)

# how it is made, and what is said of it
NAMING: dict[str, tuple[Make, str]] = {
    "ffconcat": (text(CONCAT), "a playlist (ffconcat)"),
    "ffconcat after white space": (text(f"\n  {CONCAT}"), "a playlist (ffconcat)"),
    "ffconcat after a byte order mark": (text(f"\ufeff{CONCAT}"), "a playlist (ffconcat)"),
    "ffconcat of a host": (text("ffconcat version 1.0\nfile http://127.0.0.1:9/x.wav\n"), "a playlist (ffconcat)"),
    "ffconcat of a stream": (text("ffconcat version 1.0\nfile udp://127.0.0.1:5004\n"), "a playlist (ffconcat)"),
    "ffconcat of a protocol": (text(f"ffconcat version 1.0\nfile subfile,,start,0,end,0,,:{PRIVATE}\n"), "(ffconcat)"),
    "ffconcat behind a tag": (lambda path: path.write_bytes(TAG + CONCAT.encode()), "cannot be decoded"),
    "HLS": (text(HLS), "a playlist (HLS)"),
    "M3U": (text(f"#EXTM3U\n{PRIVATE}\n"), "a playlist (M3U)"),
    "list of files": (text(f"{PRIVATE}\n"), "it is text"),
    "PLS": (text(f"[playlist]\nFile1={PRIVATE}\nNumberOfEntries=1\n"), "a playlist (PLS)"),
    "ASX": (text('<asx version="3.0"><entry><ref href="http://127.0.0.1:9/x.wav"/></entry></asx>'), "a playlist (ASX)"),
    "ASX, old": (text("[Reference]\nRef1=http://127.0.0.1:9/x.wav\n"), "a playlist (ASX)"),
    "XSPF": (text(f'{XML}<playlist version="1"><trackList><track><location>{PRIVATE}'), "a playlist (XSPF)"),
    "SMIL": (text(f'<smil><body><audio src="{PRIVATE}"/></body></smil>'), "a playlist (SMIL)"),
    "DASH": (text(XML + DASH), "a description of streams (DASH)"),
    "Smooth Streaming": (text(f"{XML}<SmoothStreamingMedia>"), "a description of streams (Smooth Streaming)"),
    "SDP": (text(SDP), "a description of streams (SDP)"),
    "subtitles": (text("WEBVTT\n\n00:00.000 --> 00:01.000\nhello\n"), "it is text"),
    "image2 pattern": (text("%03d.png"), "it is text"),
    "name of a protocol": (text(f"concat:{PRIVATE}|{PRIVATE}"), "it is text"),
    "web page": (text("<!DOCTYPE html><html><audio src='x.wav'></html>"), "a web page"),
    "movie of another file": (movie_of(PRIVATE), ""),
}
SPECIAL: dict[str, tuple[Make, str]] = {
    "pipe": (os.mkfifo, "it is a pipe, not a file"),
    "link to a pipe": (link_to_a_pipe, "it is a pipe, not a file"),
    "link to /dev/zero": (link("/dev/zero"), "it is a device, not a file"),
    "link to /dev/urandom": (link("/dev/urandom"), "it is a device, not a file"),
    "link to the memory of the process": (link("/proc/self/mem"), "it is of the kernel, not a file"),
    "link to what has no end": (link("/proc/self/pagemap"), "it is of the kernel, not a file"),
    "socket": (unix_socket, "it is a socket, not a file"),
}
UNLISTED: dict[str, tuple[Make, str]] = {
    "AU": (written("AU", tone()), "cannot be decoded"),
    "CAF": (written("CAF", tone()), "cannot be decoded"),
    "W64": (written("W64", tone()), "cannot be decoded"),
    "NIST": (written("NIST", tone()), "cannot be decoded"),
    "AVI": (lambda path: path.write_bytes(in_container("avi", "pcm_s16le")), "cannot be decoded"),
    "ASF": (lambda path: path.write_bytes(in_container("asf", "libmp3lame", 44_100)), "cannot be decoded"),
    "raw AC-3": (lambda path: path.write_bytes(in_container("ac3", "ac3", 48_000)), "cannot be decoded"),
    "picture": (lambda path: path.write_bytes(PNG), "cannot be decoded"),
    "sample of 1e30": (one_sample(1e30), "samples of 1e+30"),
    "sample of -1e30": (one_sample(-1e30), "samples of 1e+30"),
    "sample of NaN": (one_sample(float("nan")), "NaN or infinite samples"),
}
CLIPS = NAMING | SPECIAL | UNLISTED
LARGE: dict[str, tuple[Make, str]] = {
    "of a gigabyte and more": (sparse, "it is too large for a clip"),
    "of an hour and more": (patched("WAV", 24, struct.pack("<I", 1)), "16,000 samples at 1 Hz: too many for a clip"),
}
# libsndfile would take what these hold for sound, by the name alone
BY_NAME: dict[str, tuple[Make, str]] = {
    f"text.{ending}": (text("no sound\n" * 500), "it is text") for ending in ("au", "gsm", "raw", "vox", "sd2")
}
# what decoding gives is less than the header says
_CUT = ("wav cut off", "mp3 cut off", "ogg cut off in its last page", "header of twice the samples")
CUT: dict[str, tuple[Make, str]] = {kind: (BAD_CLIPS[kind], "it is cut off") for kind in _CUT}
READ = CLIPS | BY_NAME | LARGE | CUT  # all that training and evaluation are given


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The working folder holds what a clip may want to read. No command takes long, or reads from a host."""
    wav(tmp_path / PRIVATE, seconds=1, seed=7)
    monkeypatch.chdir(tmp_path)
    started = time.monotonic()
    yield
    assert time.monotonic() - started < 60


def clip_at(path: Path, kind: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    READ[kind][0](path)
    return path


def said_of(kind: str) -> str:
    return READ[kind][1]


def asked_about(clips: dict[str, Path], manifest: Path) -> Path:
    """A manifest with a question about each clip, by its id."""
    fields = {"question": "What is heard?", "choices": ["dog", "cat"], "answer": "dog"}
    records = [{"id": name, "audio_path": os.path.relpath(clip, manifest.parent)} for name, clip in clips.items()]
    return write_lines(manifest, [record | fields for record in records])


@pytest.mark.parametrize("kind", CLIPS)
def test_mmau_keeps_the_question_without_a_clip_and_takes_no_other_files_sound(kind, tmp_path, ends) -> None:
    clip_at(tmp_path / "media" / "the-clip.wav", kind)
    write_json(tmp_path / "questions.json", [mmau_record(0, id="the-clip", audio_id="the-clip.wav")])
    given = ["--questions", "questions.json", "--audio", tmp_path / "media", "--out", "out", "--workers", 1]
    ends("data_prep.mmau", *given, code=3, names=["the-clip", said_of(kind)])
    report = report_of(tmp_path / "out")
    assert [ids for ids in report["flagged"].values()] == [["the-clip"]]
    (line,) = [line for lines in report["details"].values() for line in lines]
    assert str(tmp_path / "media" / "the-clip.wav") in line and said_of(kind) in line
    assert not list((tmp_path / "out" / "audio").iterdir())


@pytest.mark.parametrize("kind", ["ffconcat", "SDP", "movie of another file", "pipe", "link to /dev/zero", "AU"])
def test_avqa_drops_the_record(kind, tmp_path, ends) -> None:
    clip_at(tmp_path / "media" / "-HG3Omg_89c_000030.mp4", kind)
    wav(tmp_path / "media" / "sound_clip1_000030.wav")
    records = [avqa_record(1, "-HG3Omg_89c_000030"), avqa_record(2, "sound_clip1_000030")]
    write_json(tmp_path / "train.json", records)
    given = ["--annotations", "train.json", "--media", tmp_path / "media", "--out", "out", "--workers", 1]
    ended = ends("data_prep.avqa", *given, code=0, names=["-HG3Omg_89c_000030.mp4", said_of(kind)])
    assert [path.name for path in (tmp_path / "out" / "audio").iterdir()] == ["sound_clip1_000030.flac"], ended
    assert [ids for ids in report_of(tmp_path / "out")["dropped"].values()] == [["1"]]


@pytest.mark.parametrize("kind", READ)
def test_validate_names_the_clip_and_its_kind(kind, tmp_path, ends) -> None:
    clip = clip_at(tmp_path / "data" / (kind if kind in BY_NAME else "the-clip.wav"), kind)
    manifest = asked_about({"q1": clip}, tmp_path / "data" / "manifest.jsonl")
    ended = ends("data_prep.validate", manifest, "--workers", 1, "--json", "found.json", code=3, names=[])
    (found,) = [each for each in read_json(tmp_path / "found.json")["findings"] if each["severity"] == "error"]
    assert found["rule"] == ("cut_off" if kind in CUT else "undecodable")
    assert str(clip) in found["what"] and said_of(kind) in found["what"]
    assert said_of(kind) in ended.out


@pytest.mark.parametrize("kind", READ)
def test_ask_refuses_the_clip(kind, tmp_path, ends, model_folder) -> None:
    clip = clip_at(tmp_path / (kind if kind in BY_NAME else "the-clip.wav"), kind)
    given = ["--ckpt", model_folder, "--audio", clip, "--question", "What?", "--choices", "dog", "cat"]
    ends("r1_aqa_repro.ask", *given, code=2, names=[str(clip), said_of(kind)])


@pytest.fixture
def all_clips(tmp_path: Path) -> dict[str, Path]:
    """Every kind of clip, by its kind, with one that is sound."""
    clips = {kind: clip_at(tmp_path / "data" / f"clip-{kind.replace('/', '_')}", kind) for kind in READ}
    return clips | {"sound": wav(tmp_path / "data" / "sound.wav")}


def test_evaluation_counts_them_as_wrong_and_says_why(all_clips, tmp_path, ends, model_folder) -> None:
    manifest = asked_about(all_clips, tmp_path / "data" / "manifest.jsonl")
    given = ["--ckpt", model_folder, "--data", manifest, "--out", "out", "--max-new-tokens", 2, "--device", "cpu"]
    ended = ends("eval.mmau", *given, "--embed-audio", code=3, names=[f"{len(all_clips) - 1} questions had no"])
    for kind, clip in all_clips.items():
        said = f"question {kind} has no audio and counts as wrong: {clip}: "
        lines = [line for line in ended.err.splitlines() if said in line]
        assert len(lines) == (kind != "sound") and all(said_of(kind) in line for line in lines), kind
    status = {one["id"]: one["status"] == "no_audio" for one in read_lines(tmp_path / "out" / "predictions.jsonl")}
    assert status == {kind: kind != "sound" for kind in all_clips}
    ends("eval.mmau", *given, code=3, names=[])  # it goes on from there


def test_training_refuses_them_before_it_starts(all_clips, tmp_path, ends, model_folder) -> None:
    """A refusal names 20 in full; what is wrong with the samples is looked for if nothing is with the headers."""
    del all_clips["sound"]
    by_samples = [kind for kind in all_clips if kind in CUT or kind.startswith("sample of")]
    by_header = [kind for kind in all_clips if kind not in by_samples]
    for kinds in (by_samples, *(by_header[start : start + 20] for start in range(0, len(by_header), 20))):
        manifest = asked_about({kind: all_clips[kind] for kind in kinds}, tmp_path / "data" / "manifest.jsonl")
        where = ["--model_name_or_path", model_folder, "--train_file", manifest, "--output_dir", "run"]
        said = [part for kind in kinds for part in (f"{all_clips[kind]}: ", said_of(kind))]
        ends("r1_aqa_repro.train_sft", *COMMON, *EXAMPLES, *where, "--max_steps", 1, code=2, names=said)
        assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("kind", ["ffconcat", "SDP", "sample of 1e30"])
def test_a_clip_in_an_archive_is_judged_alike(kind, tmp_path, ends) -> None:
    clip_at(tmp_path / "packed" / "the-clip.wav", kind)
    shutil.make_archive("clips", "gztar", tmp_path / "packed")
    write_json(tmp_path / "questions.json", [mmau_record(0, id="the-clip", audio_id="the-clip.wav")])
    given = ["--questions", "questions.json", "--audio", "clips.tar.gz", "--out", "out", "--workers", 1]
    ends("data_prep.mmau", *given, code=3, names=["the-clip", said_of(kind)])
    assert not list((tmp_path / "out" / "audio").iterdir())


def test_no_host_is_asked(tmp_path, ends, sockets) -> None:
    """Nobody has knocked at the door that the clips name."""
    with socket.socket() as door:
        door.bind(("127.0.0.1", 0))
        door.listen()
        door.setblocking(False)
        sockets.clear()
        host = f"127.0.0.1:{door.getsockname()[1]}"
        for name, content in {
            "concat": f"ffconcat version 1.0\nfile http://{host}/x.wav\n",
            "hls": HLS.replace(PRIVATE, f"http://{host}/x.ts"),
            "m3u": f"#EXTM3U\nhttp://{host}/x.wav\n",
            "asx": f'<asx version="3.0"><entry><ref href="http://{host}/x.wav"/></entry></asx>',
            "dash": XML + DASH.replace(PRIVATE, f"http://{host}/x.m4a"),
            "sdp": SDP.replace("a=", f"a=control:rtsp://{host}/x"),
        }.items():
            (tmp_path / "media").mkdir(exist_ok=True)
            (tmp_path / "media" / f"{name}.wav").write_text(content)
        questions = [mmau_record(n, id=path.stem, audio_id=path.name) for n, path in enumerate(Path("media").iterdir())]
        write_json(tmp_path / "questions.json", questions)
        given = ["--questions", "questions.json", "--audio", "media", "--out", "out", "--workers", 1]
        ends("data_prep.mmau", *given, code=3, names=["kept without audio, undecodable: 6"])
        with pytest.raises(BlockingIOError):
            door.accept()


@pytest.mark.skipif(shutil.which("strace") is None, reason="strace is not installed")
def test_the_kernel_saw_no_other_file_opened_and_no_socket_of_a_network(tmp_path) -> None:
    for kind in NAMING:
        clip_at(tmp_path / "media" / f"{kind}.wav", kind)
    write_json(tmp_path / "questions.json", [mmau_record(n, id=k, audio_id=f"{k}.wav") for n, k in enumerate(NAMING)])
    command = [sys.executable, "-m", "data_prep.mmau", "--questions", "questions.json", "--audio", "media"]
    trace = ["strace", "-f", "-e", "trace=network,open,openat", "-o", "trace", *command, "--out", "out"]
    done = subprocess.run(trace, env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True)
    seen = (tmp_path / "trace").read_text()
    assert done.returncode == 3, done.stderr
    assert "media/SDP.wav" in seen and PRIVATE not in seen and "AF_INET" not in seen


def test_sound_clips_are_what_they_were(tmp_path, ends) -> None:
    """The loudest that is taken, and questions about ordinary clips."""
    questions = make_questions(tmp_path / "data", 3)
    one_sample(2.0**31)(tmp_path / "data" / "loud.wav")
    clips = {question.id: question.audio_path for question in questions} | {"loud": tmp_path / "data" / "loud.wav"}
    manifest = asked_about(clips, tmp_path / "data" / "manifest.jsonl")
    ends("data_prep.validate", manifest, "--workers", 1, code=0, names=[])
    assert soundfile.info(str(clips["q0"])).samplerate == RATE
