"""`data_prep.mmau`: the published files, every form the clips come in, archives nobody should trust, and evaluation."""

import json
import os
import random
import tarfile
import unicodedata
from dataclasses import replace

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
import soundfile

import eval.mmau
from data_prep.mmau import _without_letters, main
from r1_aqa_repro.common.files import sha256_of
from r1_aqa_repro.data.mmau_versions import MMAU_QUESTIONS, questions_digest, version_of
from r1_aqa_repro.data.questions import read_questions
from tests.conftest import SHARED_MMAU
from tests.data_prep.conftest import read_lines, report_of, signal, special, write_tar

PUBLISHED = {"original": "mmau-test-mini.2025-03-25.json", "v05.15.25": "mmau-test-mini.v05.15.25.json"}
DUPLICATES = {"original": 20, "v05.15.25": 27}


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
        raw = json.loads(file.read_text(encoding="utf-8"))
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

    def test_an_evaluation_of_the_manifest_asks_what_one_of_the_published_file_asks(self, published, tmp_path):
        version, file = published
        assert prepare(tmp_path, "--questions", file) == 0
        own, theirs = read_questions(tmp_path / "manifest.jsonl"), read_questions(file)
        assert own.problems == theirs.problems == []
        for path, read in ((tmp_path / "manifest.jsonl", own), (file, theirs)):
            assert version_of(sha256_of(path), read.records) == version
        assert sum("duplicate_choices" in question.flags for question in own.records) == DUPLICATES[version]
        apart = {"audio_path": None, "version": None, "flags": ()}
        assert [replace(one, **apart) for one in own.records] == [replace(one, **apart) for one in theirs.records]

    def test_the_version_is_that_of_the_questions_not_of_the_file(self, published, tmp_path, capsys):
        version, file = published
        records = json.loads(file.read_text(encoding="utf-8"))
        random.Random(0).shuffle(records)
        again = tmp_path / "again.json"
        again.write_text(json.dumps(records, indent=3), encoding="utf-8")
        assert prepare(tmp_path / "a", "--questions", again) == 0
        assert {record["version"] for record in read_lines(tmp_path / "a" / "manifest.jsonl")} == {version}
        records[500]["choices"][0] += "!"
        records[500]["answer"] = records[500]["choices"][0]
        again.write_text(json.dumps(records), encoding="utf-8")
        capsys.readouterr()
        assert prepare(tmp_path / "b", "--questions", again) == 0
        assert "warning: again.json is no published version" in capsys.readouterr().err
        assert {record["version"] for record in read_lines(tmp_path / "b" / "manifest.jsonl")} == {"unknown"}

    def test_the_clip_that_is_here(self, published, tmp_path):
        assert prepare(tmp_path, "--questions", published[1], "--audio", SHARED_MMAU / "audio") == 3  # 999 are not
        first, second, *_ = read_lines(tmp_path / "manifest.jsonl")
        info = soundfile.info(tmp_path / first["audio_path"])
        assert (info.samplerate, info.channels, info.frames) == (16_000, 1, 160_000)
        assert "flags" not in first and second["flags"] == ["missing_audio"]
        assert len(report_of(tmp_path)["flagged"]["missing_audio"]) == 999


def mmau_record(index, **changed):
    name = f"{index:08x}-é 音"
    return {
        "id": name,
        "audio_id": f"./test-mini-audios/{name}.wav",
        "question": f"What is heard in {index}?",
        "choices": ["Man", "Woman", "Child", "Robot"],
        "answer": ("Man", "Woman", "Child", "Robot")[index % 4],
        "dataset": "AudioSet",
        "task": ("sound", "music", "speech")[index % 3],
        "split": "test-mini",
        "category": ["Reasoning"] if index == 1 else "Reasoning",
        "sub-category": "Acoustic Source Inference",
        "difficulty": "medium",
        **changed,
    }


@pytest.fixture
def records():
    return [mmau_record(index) for index in range(6)]


@pytest.fixture
def question_file(tmp_path, records):
    return write_json_list(tmp_path / "mmau.json", records)


def write_json_list(path, records):
    path.write_text(json.dumps(records, ensure_ascii=False), encoding="utf-8")
    return path


@pytest.fixture
def clips(tmp_path, records):
    """The folder that holds test-mini-audios, with clips of different lengths, and one that no question has."""
    folder = tmp_path / "clips" / "test-mini-audios"
    folder.mkdir(parents=True)
    for index, name in enumerate([*(record["id"] for record in records), "of-no-question"]):
        soundfile.write(folder / f"{name}.wav", signal(16_000, 0.4 + 0.2 * index, seed=index), 16_000)
    return folder.parent


def wav_files(clips):
    return [(f"./test-mini-audios/{path.name}", path.read_bytes()) for path in sorted(clips.glob("*/*.wav"))]


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


def write_parquet(path, rows):
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path, row_group_size=2)
    return path


def prepared(out):
    clips = {path.name: path.read_bytes() for path in sorted((out / "audio").iterdir())}
    return (out / "manifest.jsonl").read_bytes(), clips


@pytest.fixture
def expected(tmp_path, question_file, clips):
    """What comes of a folder whose paths are those of the questions."""
    assert prepare(tmp_path / "expected", "--questions", question_file, "--audio", clips) == 0
    manifest, audio = prepared(tmp_path / "expected")
    assert len(audio) == 6
    return manifest, audio


@pytest.mark.parametrize("form", ["flat", "tar", "tar.gz", "tgz", "tar.xz", "macOS", "parquet", "parts", "embedded"])
def test_every_form_of_audio_gives_the_same(tmp_path, question_file, clips, records, expected, form):
    files = wav_files(clips)
    if form == "flat":
        audio = [clips / "test-mini-audios"]
    elif form in ("parquet", "embedded"):
        rows = hugging_face_rows(records, clips)
        audio = [write_parquet(tmp_path / "rows.parquet", rows if form == "embedded" else rows[::-1])]
    elif form == "macOS":
        apart = [(unicodedata.normalize("NFD", name), data) for name, data in files]
        assert apart != files
        audio = [write_tar(tmp_path / "clips.tar", [*apart, ("test-mini-audios/._x.wav", b"")])]
    elif form == "parts":
        audio = [write_tar(tmp_path / "1.tar", files[:3]), write_tar(tmp_path / "2.tar", files[3:], "gz")]
    else:
        audio = [write_tar(tmp_path / f"clips.{form}", files, {"tar": "", "tar.xz": "xz"}.get(form, "gz"))]
    out = tmp_path / "out"
    arguments = ["--questions", *audio] if form == "embedded" else ["--questions", question_file, "--audio", *audio]
    assert prepare(out, *arguments) == 0
    assert prepared(out) == expected
    assert {path.name for path in out.iterdir() if not path.name.startswith(".journal")} == {
        "audio", "manifest.jsonl", "prep_report.json", "prep_settings.json", "source.jsonl"
    }  # fmt: skip
    first = read_lines(out / "source.jsonl")[0]
    if form == "embedded":  # the raw choices, without the audio
        assert first["choices"][0] == "(A) Man" and "bytes" not in first["context"]
    else:
        assert first == records[0]
    assert prepare(out, *arguments) == 0
    assert report_of(out)["clips_decoded"] == 0  # all there already, though unpacked anew
    assert prepared(out) == expected


def test_hugging_face_layout_keeps_the_version(tmp_path):
    file = SHARED_MMAU / PUBLISHED["v05.15.25"]
    if not file.is_file():
        pytest.skip(f"{file} is not there")
    records = json.loads(file.read_text(encoding="utf-8"))
    (tmp_path / "test-mini-audios").mkdir()
    for record in records:
        (tmp_path / record["audio_id"]).write_bytes(b"")
    parquet = write_parquet(tmp_path / "rows.parquet", hugging_face_rows(records, tmp_path))
    assert prepare(tmp_path / "out", "--questions", parquet) == 3  # embedded, but empty: missing
    manifest = read_lines(tmp_path / "out" / "manifest.jsonl")
    assert [record["choices"] for record in manifest] == [record["choices"] for record in records]
    assert [record["answer"] for record in manifest] == [record["answer"] for record in records]
    assert {record["version"] for record in manifest} == {"v05.15.25"}


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
    assert _without_letters(tuple(choices), answer) == (tuple(clean), meant)


def test_a_question_without_a_usable_clip_stays(tmp_path, question_file, clips, records, expected, capsys):
    paths = [clips / record["audio_id"] for record in records]
    paths[1].unlink()
    paths[2].write_bytes(b"no audio")
    soundfile.write(paths[3], np.zeros(16_000), 16_000)
    out = tmp_path / "out"
    assert prepare(out, "--questions", question_file, "--audio", clips) == 3
    lines = read_lines(out / "manifest.jsonl")
    whole = [json.loads(line) for line in expected[0].decode().splitlines()]
    for index, (line, before) in enumerate(zip(lines, whole, strict=True)):
        flags = {1: ["missing_audio"], 2: ["undecodable"], 3: ["undecodable"]}.get(index)
        assert line.pop("flags", None) == flags
        name = before["audio_path"].removeprefix("audio/")
        assert line["audio_path"] == (f"audio/missing/{name}" if flags else before["audio_path"])
        assert {**line, "audio_path": ""} == {**before, "audio_path": ""}
    report = report_of(out)
    ids = [record["id"] for record in records]
    assert (report["kept"], report["dropped"]) == (6, {})
    assert report["flagged"] == {"missing_audio": [ids[1]], "undecodable": [ids[2], ids[3]]}
    assert {reason: len(details) for reason, details in report["details"].items()} == {
        "missing": 1,
        "undecodable": 1,
        "silent": 1,
    }
    assert "kept without audio, missing: 1" in capsys.readouterr().err


def test_another_archive_of_the_same_place_is_unpacked_anew(tmp_path, question_file, clips, monkeypatch):
    """An interrupted run leaves what it unpacked: only the same archive's may be taken again."""
    archive, out = tmp_path / "clips.tar", tmp_path / "out"

    def interrupt(*_, **__):
        raise KeyboardInterrupt

    write_tar(archive, wav_files(clips))
    with monkeypatch.context() as patch:
        patch.setattr("data_prep.mmau.MediaIndex", interrupt)  # it is looked through after the unpacking
        assert prepare(out, "--questions", question_file, "--audio", archive) == 130
    assert len(list(out.rglob("*.wav"))) == 6
    write_tar(archive, wav_files(clips)[:2])
    assert prepare(out, "--questions", question_file, "--audio", archive) == 3
    assert len(report_of(out)["flagged"]["missing_audio"]) == 4


@pytest.mark.parametrize("absolute", [True, False])
def test_a_flagged_question_points_at_nothing(tmp_path, records, clips, absolute):
    """Wherever its `audio_id` leads, no evaluation may find there what the preparation could not use."""
    broken = tmp_path / "out" / "broken.wav"
    broken.parent.mkdir()
    broken.write_bytes(b"no audio")
    records[2]["audio_id"] = str(broken) if absolute else "broken.wav"
    question_file = write_json_list(tmp_path / "mmau.json", records)
    assert prepare(tmp_path / "out", "--questions", question_file, "--audio", clips / "test-mini-audios") == 0
    (clips / "test-mini-audios" / f"{records[2]['id']}.wav").unlink()
    assert prepare(tmp_path / "out", "--questions", question_file, "--audio", clips / "test-mini-audios") == 3
    assert broken.is_file()
    assert read_lines(tmp_path / "out" / "manifest.jsonl")[2]["audio_path"] == "audio/missing/broken.flac"


def test_an_audio_id_that_can_be_no_file(tmp_path, records, clips):
    """Too long or no valid Unicode: looked for by the question's id; without audio, what cannot be written is bad."""
    for record, audio_id in zip(records, ("x" * 300 + ".wav", "half \ud800.wav"), strict=False):
        record["audio_id"] = audio_id
    question_file = tmp_path / "mmau.json"
    question_file.write_text(json.dumps(records), encoding="utf-8")
    assert prepare(tmp_path / "out", "--questions", question_file, "--audio", clips) == 0
    for record in records[:2]:
        os.remove(clips / "test-mini-audios" / f"{record['id']}.wav")
    assert prepare(tmp_path / "out", "--questions", question_file, "--audio", clips) == 3
    assert report_of(tmp_path / "out")["flagged"] == {"missing_audio": [record["id"] for record in records[:2]]}
    assert prepare(tmp_path / "none", "--questions", question_file) == 3
    assert report_of(tmp_path / "none")["dropped"] == {"bad record": [records[1]["id"]]}


@pytest.mark.parametrize("form", ["folder", "tar", "only one"])
def test_clips_of_one_name_in_two_folders(tmp_path, records, form):
    lengths = {"t/x": 0.5, "s/x": 0.8}
    for record, name in zip(records, (*lengths, "t/x"), strict=False):
        record["audio_id"] = f"./{name}.wav"
    for name, seconds in lengths.items():
        path = tmp_path / "clips" / f"{name}.wav"
        path.parent.mkdir(parents=True)
        soundfile.write(path, signal(16_000, seconds), 16_000)
    question_file = write_json_list(tmp_path / "mmau.json", records[:3])
    audio = tmp_path / "clips"
    if form != "folder":
        kept = sorted(audio.glob("?/*.wav"), reverse=True)[: 1 if form == "only one" else 2]
        audio = write_tar(
            tmp_path / "clips.tar", [(f"all/{path.relative_to(audio)}", path.read_bytes()) for path in kept]
        )
    out = tmp_path / "out"
    assert prepare(out, "--questions", question_file, "--audio", audio) == (3 if form == "only one" else 0)
    found = [out / line["audio_path"] for line in read_lines(out / "manifest.jsonl")]
    heard = [soundfile.info(path).duration if path.is_file() else None for path in found]
    assert heard == [0.5, None if form == "only one" else 0.8, 0.5]


def test_an_evaluation_starts_from_it(tmp_path, question_file, clips, records, model_folder, monkeypatch):
    """On the manifest as on the published JSON; a lost clip counts as wrong and stays in the denominator."""
    (clips / records[4]["audio_id"]).unlink()
    digest = questions_digest((one["id"], one["question"], one["choices"], one["answer"]) for one in records)
    monkeypatch.setitem(MMAU_QUESTIONS, digest, "original")
    out = tmp_path / "out"
    assert prepare(out, "--questions", question_file, "--audio", clips) == 3
    found = []
    for name, data in (("json", [question_file, "--audio-dir", clips]), ("manifest", [out / "manifest.jsonl"])):
        arguments = ["--ckpt", model_folder, "--data", *data, "--out", tmp_path / name, "--max-new-tokens", 6]
        assert eval.mmau.main(list(map(str, [*arguments, "--device", "cpu"]))) == 3
        scores = json.loads((tmp_path / name / "scores.json").read_text(encoding="utf-8"))
        completions = [one["completion"] for one in read_lines(tmp_path / name / "predictions.jsonl")]
        found.append((scores.pop("version"), scores, completions))
    (json_version, *of_json), (manifest_version, *of_manifest) = found
    assert of_json == of_manifest
    assert (json_version, manifest_version) == ("original", "original")
    assert (of_manifest[0]["n"], of_manifest[0]["missing"], of_manifest[0]["no_audio"]) == (6, 1, [records[4]["id"]])


def test_withheld_answers(tmp_path, records):
    for index, record in enumerate(records):
        record["split"] = "test"
        if index % 2:
            del record["answer"]
        else:
            record["answer"] = ""
    question_file = write_json_list(tmp_path / "mmau-test.json", records)
    assert prepare(tmp_path / "out", "--questions", question_file) == 0
    read = read_questions(tmp_path / "out" / "manifest.jsonl")
    assert not read.problems and len(read.records) == 6
    assert all(question.answer is None and question.split == "test" for question in read.records)


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"answer": 2}, "answer is 2, not a text"),
        ({"answer": "E"}, "answer 'E' is not among the choices"),
        ({"question": None}, "question is None, not a text"),
        ({"category": [["Reasoning"]]}, "category is [['Reasoning']], not a list of texts"),
        ({"id": None}, "id is None"),
        ({"id": "00000000-é 音"}, "an earlier record has the same id"),
        ({"audio_id": 3}, "audio_id is 3, not a text"),
        ({"question": "half \ud800"}, "no valid Unicode"),
    ],
)
def test_a_bad_record_is_dropped_and_named(tmp_path, records, capsys, changed, named):
    records[2].update(changed)
    question_file = tmp_path / "mmau.json"
    question_file.write_text(json.dumps(records), encoding="utf-8")
    assert prepare(tmp_path / "out", "--questions", question_file) == 3
    report = report_of(tmp_path / "out")
    assert report["kept"] == 5 and [len(ids) for ids in report["dropped"].values()] == [1]
    assert named in report["details"]["bad record"][0]
    assert named in capsys.readouterr().err


@pytest.mark.parametrize("content", [b"", b"[", b'[{"id": "a"', b"PAR1 and no more"])
def test_a_file_that_is_broken_as_a_whole_is_refused(tmp_path, question_file, capsys, content):
    broken = tmp_path / "broken"
    broken.write_bytes(content)
    assert prepare(tmp_path / "a", "--questions", broken) == 2
    assert prepare(tmp_path / "b", "--questions", question_file, "--audio", broken) == 2
    assert capsys.readouterr().err.count(f"error: {broken}:") == 2


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
def test_an_archive_that_cannot_be_trusted(tmp_path, question_file, capsys, unsafe):
    entry, named = UNSAFE[unsafe]
    archive = write_tar(tmp_path / "evil.tar", [GOOD, entry])
    out = tmp_path / "data" / "out"
    assert prepare(out, "--questions", question_file, "--audio", archive) == 2
    error = capsys.readouterr().err
    assert named in error and str(archive) in error
    assert not (out / "manifest.jsonl").exists() and not list(out.rglob("*.wav"))
    assert {path.name for path in tmp_path.iterdir()} == {"evil.tar", "mmau.json", "data"}


def test_what_is_not_there_is_refused_at_once(tmp_path, question_file, capsys):
    (tmp_path / "notes.txt").write_text("no archive", encoding="utf-8")
    audio = [tmp_path / "notes.txt", tmp_path / "absent"]
    assert prepare(tmp_path / "out", "--questions", tmp_path / "no.json", "--audio", *audio) == 2
    error = capsys.readouterr().err
    assert all(name in error for name in ("no.json", "notes.txt", "absent"))
    assert not (tmp_path / "out").exists()
