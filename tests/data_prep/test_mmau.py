"""`data_prep.mmau`: the published files, every form the clips come in, and archives nobody should trust."""

import json
import os
import tarfile
import unicodedata

import numpy as np
import pytest
import soundfile

from data_prep.mmau import main
from r1_aqa_repro.data.benchmark_records import without_letters
from r1_aqa_repro.data.questions import read_questions
from r1_aqa_repro.data.versions import version_of
from tests.conftest import SHARED_MMAU
from tests.data_prep.conftest import Prepared, mmau_record, report_of, result, special, wav, write_tar
from tests.files import read_json, read_lines, write_json, write_parquet

PUBLISHED = {"original": "mmau-test-mini.2025-03-25.json", "v05.15.25": "mmau-test-mini.v05.15.25.json"}


def prepare(out, *arguments):
    return main(["--out", str(out), "--workers", "1", *map(str, arguments)])


class TestPublished:
    @pytest.fixture(params=PUBLISHED)
    def published(self, request):
        """(version, file)"""
        file = SHARED_MMAU / PUBLISHED[request.param]
        if not file.is_file():
            pytest.skip(f"{file} is not there")
        return request.param, file

    def test_nothing_is_lost(self, published, tmp_path):
        """Field by field what the published file holds; paths as they stand in it."""
        version, file = published
        assert prepare(tmp_path, "--questions", file) == 0
        raw = read_json(file)
        assert read_lines(tmp_path / "source.jsonl") == raw
        for one, record in zip(raw, read_lines(tmp_path / "manifest.jsonl"), strict=True):
            assert record.pop("audio_path") == one.pop("audio_id")
            assert record.pop("version") == version
            has_duplicates = len(set(record["choices"])) < len(record["choices"])
            assert record.pop("flags") == ["missing_audio", *(["duplicate_choices"] if has_duplicates else [])]
            if isinstance(one["category"], list):
                (one["category"],) = one["category"]
            one["sub_category"] = one.pop("sub-category")
            assert record == one
        report = report_of(tmp_path)
        assert (report["kept"], report["dropped"], report["clips_decoded"]) == (1000, {}, 0)
        assert report["flagged"] == {"missing_audio": [one["id"] for one in raw]}
        assert version_of(read_questions(tmp_path / "manifest.jsonl").records) == version

    def test_changed_questions_are_no_published_version(self, published, tmp_path, capsys):
        records = read_json(published[1])
        records[500]["choices"][0] += "!"
        records[500]["answer"] = records[500]["choices"][0]
        changed = write_json(tmp_path / "changed.json", records)
        assert prepare(tmp_path / "out", "--questions", changed) == 0
        assert "warning: changed.json is no published version" in capsys.readouterr().err
        assert {record["version"] for record in read_lines(tmp_path / "out" / "manifest.jsonl")} == {"unknown"}

    def test_hugging_face_layout_keeps_the_version(self, published, tmp_path):
        version, file = published
        records = read_json(file)
        (tmp_path / "test-mini-audios").mkdir()
        for record in records:
            (tmp_path / record["audio_id"]).write_bytes(b"")
        parquet = write_parquet(tmp_path / "rows.parquet", hugging_face_rows(records, tmp_path))
        assert prepare(tmp_path / "out", "--questions", parquet) == 3  # embedded, but empty: missing
        manifest = read_lines(tmp_path / "out" / "manifest.jsonl")
        for key in ("choices", "answer"):
            assert [record[key] for record in manifest] == [record[key] for record in records]
        assert {record["version"] for record in manifest} == {version}

    def test_the_clip_that_is_here(self, published, tmp_path):
        assert prepare(tmp_path, "--questions", published[1], "--audio", SHARED_MMAU / "audio") == 3  # 999 are not
        first, second, *_ = read_lines(tmp_path / "manifest.jsonl")
        info = soundfile.info(tmp_path / first["audio_path"])
        assert (info.samplerate, info.channels, info.frames) == (16_000, 1, 160_000)
        assert "flags" not in first and second["flags"] == ["missing_audio"]
        assert len(report_of(tmp_path)["flagged"]["missing_audio"]) == 999


class World(Prepared):
    """Six questions and their clips below `clips` (and one that no question has)."""

    def __init__(self, folder):
        super().__init__(folder)
        self.clips, self.records = folder / "clips", [mmau_record(index) for index in range(6)]
        for index, name in enumerate([*(record["id"] for record in self.records), "of-no-question"]):
            wav(self.clips / "test-mini-audios" / f"{name}.wav", 0.4 + 0.2 * index, seed=index)

    @property
    def file(self):
        return write_json(self.folder / "mmau.json", self.records)

    def run(self, *audio):
        """The exit code with these sources of audio."""
        return prepare(self.out, "--questions", self.file, *(["--audio", *audio] if audio else []))

    def clip(self, index):
        return self.clips / self.records[index]["audio_id"]


@pytest.fixture
def world(tmp_path):
    return World(tmp_path)


def hugging_face_rows(records, clips):
    """Rows in the layout of the Hugging Face copy; letters before choices and answers."""
    rows = []
    for record in records:
        letters = [f"({'ABCDEFGHIJ'[number]}) {choice}" for number, choice in enumerate(record["choices"])]
        rest = {key: record[key] for key in record if key not in ("question", "choices", "answer", "audio_id")}
        rows.append(
            {
                "context": {
                    "bytes": (clips / record["audio_id"]).read_bytes(),
                    "path": record["audio_id"].rpartition("/")[2],
                },
                "instruction": record["question"],
                "choices": letters,
                "answer": letters[record["choices"].index(record["answer"])],
                "other_attributes": json.dumps(rest),
            }
        )
    return rows


@pytest.mark.parametrize("form", ["flat", "tar", "tar.gz", "tgz", "tar.xz", "macOS", "parquet", "parts", "embedded"])
def test_every_form_of_audio_gives_the_same(world, form):
    assert world.run(world.clips) == 0  # in a folder whose paths are those of the questions
    expected = result(world.out)
    assert len(expected[1]) == 6
    folder = world.clips / "test-mini-audios"
    files = [(f"./test-mini-audios/{path.name}", path.read_bytes()) for path in sorted(folder.iterdir())]
    if form == "flat":
        audio = [folder]
    elif form in ("parquet", "embedded"):
        rows = hugging_face_rows(world.records, world.clips)
        audio = [write_parquet(world.folder / "rows.parquet", rows if form == "embedded" else rows[::-1], 2)]
    elif form == "macOS":
        apart = [(unicodedata.normalize("NFD", name), data) for name, data in files]
        assert apart != files
        audio = [write_tar(world.folder / "clips.tar", [*apart, ("test-mini-audios/._x.wav", b"")])]
    elif form == "parts":
        audio = [write_tar(world.folder / "1.tar", files[:3]), write_tar(world.folder / "2.tar", files[3:], "gz")]
    else:
        audio = [write_tar(world.folder / f"clips.{form}", files, {"tar": "", "tar.xz": "xz"}.get(form, "gz"))]
    world.out = world.folder / "again"
    for _ in range(2):
        if form == "embedded":
            assert prepare(world.out, "--questions", *audio) == 0
        else:
            assert world.run(*audio) == 0
        assert result(world.out) == expected
        assert {path.name for path in world.out.iterdir() if not path.name.startswith(".journal")} == {
            "audio", "manifest.jsonl", "prep_report.json", "prep_settings.json", "source.jsonl"
        }  # fmt: skip
    assert world.report["clips_decoded"] == 0  # all there already, though unpacked anew
    first = read_lines(world.out / "source.jsonl")[0]
    if form == "embedded":  # the raw choices, without the audio
        assert first["choices"][0] == "(A) Man" and "bytes" not in first["context"]
    else:
        assert first == world.records[0]


@pytest.mark.parametrize(
    ("choices", "answer", "clean", "meant"),
    [
        (["(A) Man", "(B) Woman"], "(B) Woman", ["Man", "Woman"], "Woman"),
        (["(A) Man", "(B) Woman"], "(B) Woman ", ["Man", "Woman"], "Woman"),
        (["(A) Man", "(B) Woman"], "Woman", ["Man", "Woman"], "Woman"),
        (["(A) Man", "(B) Woman"], None, ["Man", "Woman"], None),
        (["(A)  Man", "(B)Woman"], "(A)  Man", [" Man", "Woman"], " Man"),  # a space of its own stays
        (["(A) (B) flat", "(B) (A) sharp"], "(A) (B) flat", ["(B) flat", "(A) sharp"], "(B) flat"),
        (["(A) Man", "(B) Man", "(C) x"], "(B) Man", ["Man", "Man", "x"], "Man"),
        (["(B) Man", "(A) Woman"], "(B) Man", ["(B) Man", "(A) Woman"], "(B) Man"),  # no letters of their order
        (["(A) Man", "Woman"], "Woman", ["(A) Man", "Woman"], "Woman"),
        (["A:7/1", "B:maj"], "A:7/1", ["A:7/1", "B:maj"], "A:7/1"),
    ],
)
def test_letters_before_choices(choices, answer, clean, meant):
    assert without_letters(tuple(choices), answer) == (tuple(clean), meant)


def test_a_question_without_a_usable_clip_stays(world, capsys):
    assert world.run(world.clips) == 0
    whole = world.lines
    world.clip(1).unlink()
    world.clip(2).write_bytes(b"no audio")
    soundfile.write(world.clip(3), np.zeros(16_000), 16_000)
    world.out = world.folder / "again"
    assert world.run(world.clips) == 3
    for index, (line, before) in enumerate(zip(world.lines, whole, strict=True)):
        flags = {1: ["missing_audio"], 2: ["undecodable"], 3: ["undecodable"]}.get(index)
        assert line.pop("flags", None) == flags
        name = before["audio_path"].removeprefix("audio/")
        assert line["audio_path"] == (f"audio/missing/{name}" if flags else before["audio_path"])
        assert {**line, "audio_path": ""} == {**before, "audio_path": ""}
    report, ids = world.report, [record["id"] for record in world.records]
    assert (report["kept"], report["dropped"]) == (6, {})
    assert report["flagged"] == {"missing_audio": [ids[1]], "undecodable": [ids[2], ids[3]]}
    numbers = {reason: len(details) for reason, details in report["details"].items()}
    assert numbers == {"missing": 1, "undecodable": 1, "silent": 1}
    assert "kept without audio, missing: 1" in capsys.readouterr().err


def test_a_changed_archive_of_the_same_place_gives_its_own_clips(world):
    """Even if names, sizes and times of its files are those of the earlier one's."""
    files = [(path.name, path.read_bytes()) for path in map(world.clip, range(6))]
    assert world.run(write_tar(world.folder / "clips.tar", files)) == 0
    changed = wav(world.folder / "other.wav", 0.4, seed=9).read_bytes()
    assert changed != files[0][1] and len(changed) == len(files[0][1])
    os.utime(write_tar(world.folder / "clips.tar", [(files[0][0], changed), *files[1:]]), (1, 1))
    before = result(world.out)
    assert world.run(world.folder / "clips.tar") == 0
    assert result(world.out)[0] == before[0] and result(world.out)[1] != before[1]
    assert world.report["clips_decoded"] == 6


@pytest.mark.parametrize("absolute", [True, False])
def test_a_flagged_question_points_at_nothing(world, absolute):
    """Wherever its `audio_id` leads, no evaluation may find there what the preparation could not use."""
    clip, broken = world.clip(2), world.out / "broken.wav"
    broken.parent.mkdir()
    broken.write_bytes(b"no audio")
    world.records[2]["audio_id"] = str(broken) if absolute else "broken.wav"
    assert world.run(clip.parent) == 0
    clip.unlink()
    assert world.run(clip.parent) == 3
    assert broken.is_file()
    assert world.lines[2]["audio_path"] == "audio/missing/broken.flac"


def test_an_audio_id_that_is_too_long_for_a_file_leaves_the_id_to_look_for(world):
    clip, world.records[0]["audio_id"] = world.clip(0), "x" * 300 + ".wav"
    assert world.run(world.clips) == 0
    clip.unlink()
    assert world.run(world.clips) == 3
    assert world.report["flagged"] == {"missing_audio": [world.records[0]["id"]]}


@pytest.mark.parametrize("form", ["folder", "tar", "only one"])
def test_clips_of_one_name_in_two_folders_are_told_apart_by_their_paths(world, form):
    world.records = [mmau_record(n, audio_id=f"./{name}.wav") for n, name in enumerate(("t/x", "s/x", "t/x"))]
    audio = world.folder / "two"
    files = [wav(audio / f"{name}.wav", seconds) for name, seconds in (("t/x", 0.5), ("s/x", 0.8))]
    if form != "folder":
        kept = files[: 1 if form == "only one" else 2]
        members = [(f"all/{path.relative_to(audio)}", path.read_bytes()) for path in kept]
        audio = write_tar(world.folder / "clips.tar", members)
    assert world.run(audio) == (3 if form == "only one" else 0)
    found = [world.out / line["audio_path"] for line in world.lines]
    seconds = [soundfile.info(path).duration if path.is_file() else None for path in found]
    assert seconds == [0.5, None if form == "only one" else 0.8, 0.5]


def test_withheld_answers_are_absent_from_the_manifest(world):
    for index, record in enumerate(world.records):
        record["split"], record["answer"] = "test", ""
        if index % 2:
            del record["answer"]
    assert world.run() == 0
    assert [(question.answer, question.split) for question in world.questions] == [(None, "test")] * 6


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"answer": 2}, "answer is 2, not a text"),
        ({"answer": "E"}, "answer 'E' is not among the choices"),
        ({"question": None}, "question is None, not a text"),
        ({"category": [["Reasoning"]]}, "category is [['Reasoning']], not a list of texts"),
        ({"id": "00000000-é 音"}, "an earlier record has the same id"),
        ({"audio_id": 3}, "audio_id is 3, not a text"),
        ({"audio_id": "half \ud800.wav"}, "'audio_id' is no valid Unicode"),
    ],
)
def test_a_bad_record_is_dropped_and_named(world, capsys, changed, named):
    world.records[2].update(changed)
    assert world.run() == 3
    report = world.report
    assert report["kept"] == 5 and [len(ids) for ids in report["dropped"].values()] == [1]
    assert named in report["details"]["bad record"][0]
    assert named in capsys.readouterr().err


def test_a_broken_parquet_file_of_audio_is_refused(world, capsys):
    (world.folder / "broken").write_bytes(b"PAR1 and no more")
    assert world.run(world.folder / "broken") == 2
    assert f"error: {world.folder / 'broken'}:" in capsys.readouterr().err


GOOD = ("./test-mini-audios/00000000-é 音.wav", b"RIFF")
WANTED = "00000001-é 音.wav"
UNSAFE = {
    "parent": ((f"../{WANTED}", b"x"), "outside the destination"),
    "hidden parent": ((f"a/../../{WANTED}", b"x"), "outside the destination"),
    "absolute": ((f"/tmp/{WANTED}", b"x"), "has an absolute path"),
    "link to an absolute path": (special(WANTED, tarfile.SYMTYPE, "/etc/passwd"), "a link to an absolute path"),
    "link that leads out": (special(WANTED, tarfile.LNKTYPE, "../x"), "outside the destination"),
    "link that stays": (special(WANTED, tarfile.SYMTYPE, "x"), "is a link to 'x'"),
    "device": (special(WANTED, tarfile.CHRTYPE), "is a special file"),
    "pipe": (special(WANTED, tarfile.FIFOTYPE), "is a special file"),
}


@pytest.mark.parametrize("unsafe", UNSAFE)
def test_an_archive_that_cannot_be_trusted_is_refused_and_leaves_nothing(world, capsys, unsafe):
    entry, named = UNSAFE[unsafe]
    archive = write_tar(world.folder / "evil.tar", [GOOD, entry])
    world.out = world.folder / "data" / "out"
    assert world.run(archive) == 2
    error = capsys.readouterr().err
    assert named in error and str(archive) in error
    assert not (world.out / "manifest.jsonl").exists() and not list(world.out.rglob("*.wav"))
    assert {path.name for path in world.folder.iterdir()} == {"evil.tar", "mmau.json", "data", "clips"}


def test_what_is_not_there_is_refused_at_once(world, capsys):
    (world.folder / "notes.txt").write_text("no archive", encoding="utf-8")
    audio = [world.folder / "notes.txt", world.folder / "absent"]
    assert prepare(world.out, "--questions", world.folder / "no.json", "--audio", *audio) == 2
    error = capsys.readouterr().err
    assert all(name in error for name in ("no.json", "notes.txt", "absent"))
    assert not world.out.exists()
