"""`data_prep.mmar`, `.mmsu` and `.mmau_pro`: every form of audio, every record accounted for. What they share with
`data_prep.mmau`, such as archives nobody should trust, is in its tests."""

import json
from typing import Any

import pytest
import soundfile

from data_prep import mmar, mmau, mmau_pro, mmsu
from r1_aqa_repro.common.errors import Refused
from r1_aqa_repro.data.questions import read_questions
from r1_aqa_repro.data.versions import version_of
from tests.benchmark_records import mmar_record, mmau_pro_record, mmsu_record, with_letters
from tests.conftest import MMAR_FILE
from tests.data_prep.conftest import Prepared, mmau_record, report_of, result, wav, write_tar
from tests.files import read_json, read_lines, write_arrow, write_json, write_lines, write_parquet

PART = "the part of MMAU-Pro with one clip of at most 30 s and choices"


class World(Prepared):
    """Clips of four lengths, 0.4 to 0.7 s, and a folder to prepare to."""

    def __init__(self, folder):
        super().__init__(folder)
        self.clips = folder / "clips"
        self.files = [wav(self.clips / f"clip-{n}.wav", 0.4 + n / 10, seed=n) for n in range(4)]
        self.bytes = [file.read_bytes() for file in self.files]

    def run(self, command, questions, *audio):
        given = ["--questions", questions, "--out", self.out, "--workers", 1, *(["--audio", *audio] if audio else [])]
        return command.main(list(map(str, given)))

    @property
    def seconds(self):
        """Of each question's clip."""
        return [soundfile.info(question.audio_path).duration for question in self.questions]


@pytest.fixture
def world(tmp_path):
    return World(tmp_path)


def columns_of_audio(name, data):
    """Every form in which a column `audio` has one clip."""
    return {
        "bytes": data,
        "bytes and path": {"bytes": data, "path": name},
        "bytes without path": {"bytes": data, "path": None},
        "path": name,
        "list of one": [{"bytes": data, "path": name}],
        "list of one path": [name],
        "list of bytes": [data],
    }


FORMS = list(columns_of_audio("", b""))


@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_a_column_gives_the_same_questions_and_clips(world, form):
    rows = [
        mmsu_record(n, id=f"clip-{n}", audio=columns_of_audio(file.name, data)[form])
        for n, (file, data) in enumerate(zip(world.files, world.bytes, strict=True))
    ]
    audio = [world.clips] if "path" in (form, form.rpartition(" ")[2]) and "bytes" not in form else []
    assert world.run(mmsu, write_parquet(world.folder / "rows.parquet", rows), *audio) == 0
    assert world.seconds == [0.4, 0.5, 0.6, 0.7]
    assert [one.answer for one in world.questions] == ["rising", "falling", "level", "dipping"]
    assert {(one.dataset, one.version) for one in world.questions} == {("MMSU", None)}
    source = (world.out / "source.jsonl").read_text()
    assert len(source.splitlines()) == 4 and "RIFF" not in source
    first = result(world.out)
    assert world.run(mmsu, world.folder / "rows.parquet", *audio) == 0
    assert result(world.out) == first and world.report["clips_decoded"] == 0


@pytest.mark.parametrize("form", ["folder", "tar", "parquet"])
def test_the_clips_of_json_lines_come_from_any_source(world, form):
    file = write_lines(world.folder / "mmsu.jsonl", [mmsu_record(n, audio=f"audio/clip-{n}.wav") for n in range(4)])
    audio = world.clips
    if form == "tar":
        members = [(f"all/audio/{one.name}", data) for one, data in zip(world.files, world.bytes, strict=True)]
        audio = write_tar(world.folder / "clips.tar.gz", members, "gz")
    if form == "parquet":
        rows = [{"id": f"x{n}", "audio": {"bytes": world.bytes[n], "path": f"clip-{n}.wav"}} for n in range(4)]
        audio = write_parquet(world.folder / "clips.parquet", rows)
    assert world.run(mmsu, file, audio) == 0
    assert world.seconds == [0.4, 0.5, 0.6, 0.7]


class TestMMAR:
    def rows(self, world, form):
        """Four questions in one of the published forms; the clips are named otherwise than by the ids."""
        own = [mmar_record(n, audio_path=f"./audio/clip-{n}.wav") for n in range(4)]
        if form == "own":
            return write_lines(world.folder / "MMAR-meta.jsonl", own), [world.clips]
        audio = [{"bytes": data, "path": file.name} for file, data in zip(world.files, world.bytes, strict=True)]
        rows = [{**with_letters(one), "audio": clip} for one, clip in zip(own, audio, strict=True)]
        return write_parquet(world.folder / "test.parquet", rows), []

    def test_both_forms_give_one_manifest(self, world, capsys):
        manifests = []
        for form in ("own", "with letters"):
            file, audio = self.rows(world, form)
            world.out = world.folder / form
            assert world.run(mmar, file, *audio) == 0
            assert f"warning: {file.name} is no published version of MMAR" in capsys.readouterr().err
            manifests.append(result(world.out)[:2])
        assert manifests[0] == manifests[1]
        one = world.lines[2]
        assert (one["modality"], one["sub_category"], one["source"]) == ("music", "Content Analysis", "youtube")
        assert (one["dataset"], one["version"], one["answer"]) == ("MMAR", "unknown", "Too much")
        assert [line.get("language") for line in world.lines] == [None, "en", None, "en"]

    def test_a_clip_that_is_not_there_or_no_audio_flags_its_question(self, world):
        world.files[1].unlink()
        world.files[2].write_bytes(b"no audio")
        file, audio = self.rows(world, "own")
        assert world.run(mmar, file, *audio) == 3
        assert [line.get("flags") for line in world.lines] == [None, ["missing_audio"], ["undecodable"], None]
        report = world.report
        assert (report["records_in"], report["kept"], report["dropped"]) == (4, 4, {})
        assert {flag: len(ids) for flag, ids in report["flagged"].items()} == {"missing_audio": 1, "undecodable": 1}

    def test_a_clip_beyond_30_s_stays_whole_and_is_flagged_and_said(self, world, capsys):
        """To the sample: 30 s are heard whole."""
        wav(world.files[1], 30.0)
        wav(world.files[2], 30.0 + 1 / 16_000)
        wav(world.files[3], 33.5)
        file, audio = self.rows(world, "own")
        assert world.run(mmar, file, *audio) == 0
        longer = ["longer_than_30_s"]
        assert [line.get("flags") for line in world.lines] == [None, None, longer, longer]
        assert world.seconds == [0.4, 30.0, 30.0 + 1 / 16_000, 33.5]
        assert world.report["flagged"] == {"longer_than_30_s": [line["id"] for line in world.lines[2:]]}
        assert "clips of 2 questions go on after 30 s" in capsys.readouterr().err.splitlines()[-1]

    def test_the_published_file_is_kept_whole(self, tmp_path, capsys):
        if not MMAR_FILE.is_file():
            pytest.skip(f"{MMAR_FILE} is not there")
        given = ["--questions", str(MMAR_FILE), "--out", str(tmp_path), "--workers", "1"]
        assert mmar.main(given) == 0
        assert "MMAR, version mmar" in capsys.readouterr().err
        report, lines = report_of(tmp_path), read_lines(tmp_path / "manifest.jsonl")
        assert (report["records_in"], report["kept"], report["dropped"]) == (1000, 1000, {})
        assert len(report["flagged"]["missing_audio"]) == 1000
        assert {line["version"] for line in lines} == {"mmar"}
        assert sum("empty_choice" in line["flags"] for line in lines) == 4
        raw = [json.loads(line) for line in MMAR_FILE.read_text(encoding="utf-8").splitlines()]
        assert read_lines(tmp_path / "source.jsonl") == raw
        read = read_questions(tmp_path / "manifest.jsonl")
        assert read.problems == [] and version_of(read.records) == "mmar"


class TestMMAUPro:
    """Five choices with answers as texts and letters, two choices, none and one; clips one, three and too long."""

    @pytest.fixture
    def file(self, world):
        wav(world.clips / "long.wav", 30.1)
        wav(world.clips / "far-too-long.wav", 31.0)
        rows = [
            *(mmau_pro_record(n) for n in range(4)),
            mmau_pro_record(4, choices=["flute", "oboe"], answer="oboe", audio_path=["data/clip-0.wav"]),
            mmau_pro_record(5, audio_path=[f"data/clip-{n}.wav" for n in range(3)]),
            mmau_pro_record(6, choices=[], answer="A long answer."),
            mmau_pro_record(7, choices=None, answer=None),
            mmau_pro_record(8, choices=["flute"], answer="flute"),
            mmau_pro_record(9, audio_path=["data/long.wav"]),
            mmau_pro_record(10, audio_path=["data/far-too-long.wav"]),
        ]
        return write_parquet(world.folder / "test.parquet", rows)

    def test_the_part_is_kept_and_the_rest_is_named(self, world, file, capsys):
        assert world.run(mmau_pro, file, world.clips) == 0
        assert [one.answer for one in world.questions] == ["flute", "oboe", "clarinet", "bassoon", "oboe"]
        assert [len(one.choices) for one in world.questions] == [5, 5, 5, 5, 2]
        assert world.seconds == [0.4, 0.5, 0.6, 0.7, 0.4]
        assert {(one.dataset, one.sub_category, one.flags) for one in world.questions} == {
            ("MMAU-Pro", "instrument", ())
        }
        report = world.report
        assert report["dropped"] == {
            "several clips": ["00000000-0005"],
            "no choices": ["00000000-0006", "00000000-0007"],
            "only one choice": ["00000000-0008"],
            "longer than 30 s": ["00000000-0009", "00000000-0010"],
        }
        assert (report["records_in"], report["kept"], report["flagged"]) == (11, 5, {})
        assert "it is about 3 clips" in report["details"]["several clips"][0]
        assert len(list((world.out / "audio").iterdir())) == 4  # and none of a clip that is left out
        assert len(read_lines(world.out / "source.jsonl")) == 11
        said = capsys.readouterr().err
        assert said.splitlines()[-1] == f"  this is {PART}: its score is not that of MMAU-Pro"
        assert "dropped, longer than 30 s: 2" in said
        assert read_json(world.out / "prep_settings.json")["part"] in PART

    def test_going_on_leaves_out_the_same(self, world, file):
        assert world.run(mmau_pro, file, world.clips) == 0
        first = result(world.out)
        assert world.run(mmau_pro, file, world.clips) == 0
        assert result(world.out) == first and world.report["clips_decoded"] == 0

    def test_a_question_whose_clip_is_not_there_stays(self, world, file):
        """Nothing says that its clip is longer; left out, it would leave the denominator unseen."""
        world.files[1].unlink()
        assert world.run(mmau_pro, file, world.clips) == 3
        assert world.report["flagged"] == {"missing_audio": ["00000000-0001"]}
        assert len(world.lines) == 5

    def test_without_clips_it_is_refused(self, world, file, capsys):
        assert world.run(mmau_pro, file) == 2
        assert "with one clip of at most 30 s and choices" in capsys.readouterr().err
        assert not world.out.exists()

    @pytest.mark.parametrize(
        ("key", "write"), [("audio", write_parquet), ("audio_path", write_parquet), ("audio", write_arrow)]
    )
    def test_lists_of_embedded_clips(self, world, key, write):
        clips = [{"bytes": data, "path": f"clip-{n}.wav"} for n, data in enumerate(world.bytes)]
        rows = [mmau_pro_record(n) for n in range(3)]
        for row, audio in zip(rows, [clips[:1], clips[1:2], clips[:3]], strict=True):
            del row["audio_path"]
            row[key] = audio
        assert world.run(mmau_pro, write(world.folder / "rows", rows)) == 0
        assert world.seconds == [0.4, 0.5]
        assert world.report["dropped"] == {"several clips": ["00000000-0002"]}


BAD: dict[str, tuple[Any, Any, dict[str, Any], str]] = {
    "mmar": (mmar, lambda n, **changed: mmar_record(n, audio_path=f"clip-{n}.wav", **changed), {"answer": "Enough"},
             "answer 'Enough' is not among the choices"),
    "mmsu": (mmsu, lambda n, **changed: mmsu_record(n, audio=f"clip-{n}.wav", **changed), {"choice_a": "C",
             "answer": "C"}, "answer 'C' is the text of one choice and the letter of another"),
    "mmau_pro": (mmau_pro, mmau_pro_record, {"audio_path": []}, "audio_path is an empty list"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_bad_records_are_dropped_and_named(world, name, capsys):
    command, record, changed, named = BAD[name]
    twice = record(3) | {"id": record(0)["id"]}
    file = write_lines(world.folder / "records.jsonl", [record(0), record(1, **changed), record(2), twice])
    assert world.run(command, file, world.clips) == 3
    report = world.report
    assert (report["kept"], [len(ids) for ids in report["dropped"].values()]) == (2, [2])
    first, second = report["details"]["bad record"]
    assert f"records.jsonl:line 2: {named}" in first
    assert "records.jsonl:line 4: id" in second and "was already used at records.jsonl:line 1" in second
    assert first in capsys.readouterr().err


@pytest.mark.parametrize("changed", [{"answer": "E"}, {"id": mmsu_record(0)["id"]}])
def test_an_evaluation_is_not_given_fewer_questions_than_its_file_has(world, changed, capsys):
    """Dropped as by the command, a bad record would leave the denominator with nobody told; nothing is decoded."""
    rows = [mmsu_record(n, audio=data) for n, data in enumerate(world.bytes)]
    file = write_parquet(world.folder / "train.parquet", [rows[0], rows[1] | changed, *rows[2:]])
    with pytest.raises(Refused, match=r"train\.parquet:row 2: .*('E' is neither|already used at train.parquet:row 1)"):
        mmsu.prepare([file], [], world.out)
    assert not world.out.exists()
    assert world.run(mmsu, file) == 3 and len(world.lines) == 3


def test_records_that_only_their_clips_show_to_be_bad_are_refused_too(world):
    """Two recordings of one name; of MMAU also ids that stand twice, which its report has always told so."""
    rows = [mmsu_record(n, audio={"bytes": data, "path": "a.wav"}) for n, data in enumerate(world.bytes[:2])]
    file = write_parquet(world.folder / "train.parquet", rows)
    with pytest.raises(Refused, match="already the clip of an earlier record's media"):
        mmsu.prepare([file], [], world.out)
    twice = write_json(world.folder / "twice.json", [mmau_record(0), mmau_record(0)])
    with pytest.raises(Refused, match="an earlier record has the same id"):
        mmau.prepare([twice], [world.clips], world.folder / "mmau")


@pytest.mark.parametrize("command", [mmar, mmsu, mmau_pro])
def test_what_is_not_there_is_refused_at_once(world, command, capsys):
    (world.folder / "notes.txt").write_text("no archive")
    assert world.run(command, world.folder / "no.jsonl", world.folder / "notes.txt") == 2
    error = capsys.readouterr().err
    assert "no.jsonl" in error and "notes.txt" in error and not world.out.exists()
