"""Archives, parquet files and folders of clips that were made to do harm, or simply badly."""

from __future__ import annotations

import io
import os
import tarfile
import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.data_prep.conftest import mmau_record, report_of, special, wav, write_tar
from tests.files import contents, read_lines, write_json, write_lines, write_parquet
from tests.hostile.conftest import Ends

COUNT = 3  # questions
RECORDS = [mmau_record(index) for index in range(COUNT)]
NAMES = [f"{record['id']}.wav" for record in RECORDS]


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return wav(tmp_path_factory.mktemp("clip") / "clip.wav").read_bytes()


def named(name: str, data: bytes, **headers: str) -> tuple[tarfile.TarInfo, bytes]:
    """A member with extended headers, which carry any text."""
    info = tarfile.TarInfo(name)
    info.size, info.pax_headers = len(data), headers
    return info, data


def write_pax(path: Path, members: list[tuple[tarfile.TarInfo, bytes]]) -> Path:
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as archive:
        for info, data in members:
            archive.addfile(info, io.BytesIO(data))
    return path


@pytest.fixture
def prepare(ends: Ends, tmp_path: Path) -> Ends:
    """Prepare MMAU with audio: `prepare(audio, names, code=...)`."""

    def run(*audio: Path, names: list[str], code: int = 2, records: Any = RECORDS, kept: str = "") -> Any:
        (tmp_path / "secret").mkdir(exist_ok=True)
        questions = write_json(tmp_path / "mmau.json", records)
        given = ("--questions", questions, "--audio", *audio, "--out", tmp_path / "data" / "out", "--workers", "1")
        before = {name: found for name, found in contents(tmp_path).items() if not name.startswith("data/")}
        ended = ends("data_prep.mmau", *given, code=code, names=names)
        after = {name: found for name, found in contents(tmp_path).items() if not name.startswith("data/")}
        assert after == before  # nothing is written elsewhere
        return ended

    return run


def flagged(out: Path) -> list[bool]:
    return ["missing_audio" in record.get("flags", []) for record in read_lines(out / "manifest.jsonl")]


LONG = "a" * 300 + ".wav"
ONE_BAD: dict[str, Callable[[bytes], tuple[Any, str]]] = {  # what the second question asks for, and its member
    "a name too long": lambda data: (named(LONG, data), f"./audio/{LONG}"),
    "a name with a zero": lambda data: (named(NAMES[1], data, path=f"x/{NAMES[1]}\0.wav"), RECORDS[1]["audio_id"]),
    "a zero in front": lambda data: (named(NAMES[1], data, path=f"\0/{NAMES[1]}"), RECORDS[1]["audio_id"]),
    "a folder by its name": lambda data: ((special(NAMES[1], tarfile.DIRTYPE), b""), RECORDS[1]["audio_id"]),
    "another ending": lambda data: (named(f"{NAMES[1]}.exe", data), RECORDS[1]["audio_id"]),
    "no audio in it": lambda data: (named(NAMES[1], b"#!/bin/sh\n"), RECORDS[1]["audio_id"]),
}


@pytest.mark.parametrize("bad", ONE_BAD)
def test_one_member_that_is_no_clip_costs_one_question(bad: str, prepare: Ends, clip: bytes, tmp_path: Path) -> None:
    member, audio_id = ONE_BAD[bad](clip)
    records = [RECORDS[0], RECORDS[1] | {"audio_id": audio_id}, RECORDS[2]]
    archive = write_pax(tmp_path / "clips.tar", [named(NAMES[0], clip), member, named(NAMES[2], clip)])
    prepare(archive, names=[records[1]["id"]], code=3, records=records)
    out = tmp_path / "data" / "out"
    report = report_of(out)
    assert report["kept"] == COUNT and [*report["flagged"].values()] == [[records[1]["id"]]]
    assert len(list((out / "audio").iterdir())) == 2


def two(first: str, second: str) -> Callable[[bytes], list[Any]]:
    return lambda data: [named(first, data), named(second, data + b"x")]


DECOMPOSED = unicodedata.normalize("NFD", NAMES[0])
REFUSED: dict[str, tuple[Callable[[bytes], list[Any]], str]] = {
    "twins in composition": (two(NAMES[0], DECOMPOSED), "are both asked for as"),
    "twins in two folders": (two(f"a/{DECOMPOSED}", f"b/{NAMES[0]}"), "are both asked for as"),
    "absolute": (two(NAMES[1], f"/tmp/{NAMES[0]}"), "has an absolute path"),
    "above": (two(NAMES[1], f"../../secret/{NAMES[0]}"), "outside the destination"),
    "above by way of a folder": (two(NAMES[1], f"a/b/../../../secret/{NAMES[0]}"), "outside the destination"),
    "a link out of the folder": (
        lambda data: [(special(NAMES[0], tarfile.SYMTYPE, "../../secret/x"), b"")], "outside the destination",
    ),
    "a link to a device": (lambda data: [(special(NAMES[0], tarfile.SYMTYPE, "/dev/zero"), b"")], "a link"),
    "a hard link": (lambda data: [(special(NAMES[0], tarfile.LNKTYPE, "mmau.json"), b"")], "is a link to 'mmau.json'"),
    "a device": (lambda data: [(special(NAMES[0], tarfile.BLKTYPE), b"")], "is a special file"),
    "a pipe": (lambda data: [(special(NAMES[0], tarfile.FIFOTYPE), b"")], "is a special file"),
}  # fmt: skip


@pytest.mark.parametrize("kind", REFUSED)
def test_an_archive_that_is_ambiguous_or_leads_out(kind: str, prepare: Ends, clip: bytes, tmp_path: Path) -> None:
    members, what = REFUSED[kind]
    archive = write_pax(tmp_path / "clips.tar", members(clip))
    prepare(archive, names=[str(archive), what])
    assert not (tmp_path / "data" / "out" / "manifest.jsonl").exists()


def test_the_same_name_twice_is_the_first(prepare: Ends, clip: bytes, tmp_path: Path) -> None:
    archive = write_pax(tmp_path / "a.tar", [*(named(name, clip) for name in NAMES), named(f"x/{NAMES[0]}", b"no")])
    prepare(archive, names=["3 of 3 records kept"], code=0)


def sized(size: int) -> bytes:
    """A header that claims so many bytes, and none of them."""
    info = tarfile.TarInfo(NAMES[0])
    info.size = size
    return info.tobuf(tarfile.GNU_FORMAT)


BROKEN: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "no folder, no tar archive and no parquet file"),
    "text": (b"no archive\n" * 99, "no folder, no tar archive"),
    "a zip": (b"PK\3\4" + bytes(600), "no folder, no tar archive"),
    "an encrypted zip": (b"PK\3\4\x14\0\1\0" + bytes(600), "no folder, no tar archive"),
    "a gzip of nothing": (b"\x1f\x8b\x08", "no folder, no tar archive"),
    "a header alone": (sized(1000), "breaks off or is damaged"),
    "larger than any": (sized(2**62), "unpacks to more than"),
    "parquet's beginning": (b"PAR1", "no readable parquet file"),
    "parquet and noise": (b"PAR1" + bytes(range(256)) + b"PAR1", "no readable parquet file"),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_what_is_no_archive(kind: str, prepare: Ends, tmp_path: Path) -> None:
    content, what = BROKEN[kind]
    (tmp_path / "clips.tar").write_bytes(content)
    prepare(tmp_path / "clips.tar", names=[str(tmp_path / "clips.tar"), what])


@pytest.mark.parametrize(
    "kept", [5, 700, -9000], ids=["within the magic number", "within the first clip", "within the last"]
)
def test_an_archive_that_breaks_off(kept: int, prepare: Ends, clip: bytes, tmp_path: Path) -> None:
    archive = write_tar(tmp_path / "clips.tar", [(name, clip) for name in NAMES])
    archive.write_bytes(archive.read_bytes()[:kept])
    prepare(archive, names=[str(archive)])
    assert not (tmp_path / "data" / "out" / "manifest.jsonl").exists()


@pytest.mark.parametrize("make", [os.mkfifo, lambda path: path.symlink_to("/dev/zero"), lambda path: None])
def test_an_archive_that_is_no_file(make: Callable[[Path], Any], prepare: Ends, tmp_path: Path) -> None:
    make(tmp_path / "clips.tar")
    prepare(tmp_path / "clips.tar", names=[str(tmp_path / "clips.tar")])


# --- Folders


def test_a_folder_with_twins(prepare: Ends, clip: bytes, tmp_path: Path) -> None:
    (tmp_path / "clips").mkdir()
    for name in (NAMES[0], DECOMPOSED):
        (tmp_path / "clips" / name).write_bytes(clip)
    prepare(tmp_path / "clips", names=["has the same name, written otherwise", ascii(NAMES[0])[1:-1]])


def test_a_twin_by_the_case_of_its_ending_is_another_ending(prepare: Ends, clip: bytes, tmp_path: Path) -> None:
    (tmp_path / "clips").mkdir()
    for name in (*NAMES, "other.wav", "other.WAV"):
        (tmp_path / "clips" / name).write_bytes(clip)
    prepare(tmp_path / "clips", names=["3 of 3 records kept"], code=0)


def test_a_folder_that_leads_back_to_itself(prepare: Ends, clip: bytes, tmp_path: Path) -> None:
    (tmp_path / "clips").mkdir()
    for name in NAMES:
        (tmp_path / "clips" / name).write_bytes(clip)
    (tmp_path / "clips" / "again").symlink_to(tmp_path / "clips")
    (tmp_path / "clips" / "nowhere.wav").symlink_to("absent")
    prepare(tmp_path / "clips", names=["3 of 3 records kept"], code=0)


# --- Parquet


def rows(clip: bytes, **of_audio: Any) -> list[dict[str, Any]]:
    return [
        {"id": f"a/{index}", "audio": {"bytes": clip, "path": f"../../secret/{index}.wav"} | of_audio}
        for index in range(COUNT)
    ]


def asked(*ids: str) -> list[dict[str, Any]]:
    return [mmau_record(index, id=name, audio_id=None) for index, name in enumerate(ids)]


def test_ids_with_slashes_in_parquet(prepare: Ends, clip: bytes, tmp_path: Path) -> None:
    """They name no folders, and two that differ in the slash alone are two clips."""
    longer = wav(tmp_path / "longer.wav", 0.8).read_bytes()
    other = [{"id": "a_0", "audio": {"bytes": longer, "path": "b.wav"}}]
    audio = write_parquet(tmp_path / "clips.parquet", rows(clip) + other)
    prepare(audio, names=["4 of 4 records kept"], code=0, records=asked("a/0", "a/1", "a/2", "a_0"))
    out = tmp_path / "data" / "out"
    assert flagged(out) == [False] * 4
    sizes = [(out / record["audio_path"]).stat().st_size for record in read_lines(out / "manifest.jsonl")]
    assert sizes[0] < sizes[3] and all(path.parent == out / "audio" for path in out.glob("**/*.flac"))


@pytest.mark.parametrize(
    "name", ["a" * 300, "..", ".", "\0", "x\0y", "/etc/passwd", "../../secret/x", "-", " ", "con.wav", "é"]
)
def test_any_id_in_parquet(name: str, prepare: Ends, clip: bytes, tmp_path: Path) -> None:
    row = {"id": name, "audio": {"bytes": clip, "path": None}}
    prepare(write_parquet(tmp_path / "c.parquet", [row]), names=["1 of 1 records kept"], code=0, records=asked(name))
    assert flagged(tmp_path / "data" / "out") == [False]


@pytest.mark.parametrize("content", ["a text", 7, [1, 2], {"x": 1}, None, b""])
def test_clips_of_wrong_types_in_parquet(content: Any, prepare: Ends, clip: bytes, tmp_path: Path) -> None:
    audio = write_parquet(tmp_path / "clips.parquet", rows(clip, bytes=content))
    prepare(audio, names=["kept without audio"], code=3, records=asked("a/0", "a/1", "a/2"))
    assert flagged(tmp_path / "data" / "out") == [True] * COUNT


@pytest.mark.parametrize("content", ["a text", 7, [1, 2]])
def test_annotations_of_wrong_types_in_parquet(content: Any, ends: Ends, tmp_path: Path) -> None:
    row = {"question": "Q\nChoices:\nA. dog\nB. cat", "answer": "dog", "audio": {"bytes": content, "path": "a.wav"}}
    annotations = write_parquet(tmp_path / "train.parquet", [row])
    given = ("--annotations", annotations, "--out", tmp_path / "out", "--workers", "1")
    ends("data_prep.avqa", *given, code=3, names=["audio.bytes is of type", "0 of 1 records kept"])


@pytest.mark.parametrize("column", ["instruction", "choices", "answer", "other_attributes", "context"])
def test_questions_of_wrong_types_in_parquet(column: str, prepare: Ends, ends: Ends, tmp_path: Path) -> None:
    row = {"id": "x", "instruction": "Q?", "choices": ["a", "b"], "answer": "a", "other_attributes": "{}"}
    audio = {"context": {"bytes": b"", "path": "a.wav"}}
    questions = write_parquet(tmp_path / "q.parquet", [row | audio | {column: 7}])
    given = ("--questions", questions, "--out", tmp_path / "out", "--workers", "1")
    ends("data_prep.mmau", *given, code=3, names=["x"])


# --- What an earlier run left


@pytest.mark.parametrize("line", ["{}", '{"stem": 7, "clip": 3}', '{"clip": {"size": "x"}}', "[1]", "no JSON"])
def test_a_journal_that_was_written_to(line: str, prepare: Ends, clip: bytes, tmp_path: Path) -> None:
    archive = write_tar(tmp_path / "clips.tar", [(name, clip) for name in NAMES])
    prepare(archive, names=["3 clips decoded"], code=0)
    out = tmp_path / "data" / "out"
    write_lines(out / ".journal.jsonl", [line, line])
    prepare(archive, names=["3 of 3 records kept", "3 clips decoded"], code=0)
