"""Reading and writing questions: three formats, and a problem with file and line for every bad record."""

import json
import os
from dataclasses import replace
from pathlib import Path

import pytest

from r1_aqa_repro.common.errors import Refused
from r1_aqa_repro.data.questions import AudioQuestion, limited, read_questions, with_answers, write_manifest
from tests.conftest import SHARED_MMAU

MANIFEST = {"id": "a", "audio_path": "a.wav", "question": "What?", "choices": ["dog", "cat"], "answer": "cat"}
R1_AQA = {
    "id": 183,
    "video_name": "-HG3Omg_89c_000030",
    "video_id": 341,
    "question_text": "What is in the video?",
    "multi_choice": ["motorboat", "yacht", "sailboat", "consignment car"],
    "answer": 1,
    "question_relation": "View",
    "question_type": "Which",
    "dataset_name": "AVQA",
    "audio_path": "clips/-HG3Omg_89c_30.wav",
}
MMAU = {
    "id": "3fe64f3d",
    "audio_id": "./test-mini-audios/3fe64f3d.wav",
    "question": "Who speaks?",
    "choices": ["Man", "Woman"],
    "answer": "Man",
    "dataset": "AudioSet",
    "task": "sound",
    "split": "test-mini",
    "category": ["Reasoning"],
    "sub-category": "Acoustic Source Inference",
    "difficulty": "medium",
}


def write_lines(path: Path, *records: object) -> Path:
    """JSON lines; a text is written as it stands."""
    lines = [record if isinstance(record, str) else json.dumps(record) for record in records]
    path.write_text("".join(line + "\n" for line in lines), encoding="utf-8")
    return path


def test_manifest_line(tmp_path):
    file = write_lines(tmp_path / "manifest.jsonl", MANIFEST | {"task": "sound", "flags": ["duplicate_choices"]})
    read = read_questions(file)
    assert read.problems == []
    assert read.records == [
        AudioQuestion(
            id="a",
            audio_path=tmp_path / "a.wav",
            question="What?",
            choices=("dog", "cat"),
            answer="cat",
            task="sound",
            flags=("duplicate_choices",),
        )
    ]


def test_r1_aqa_line(tmp_path):
    read = read_questions(write_lines(tmp_path / "AVQA.data", R1_AQA))
    assert read.problems == []
    assert read.records == [
        AudioQuestion(
            id="183",
            audio_path=tmp_path / "clips" / "-HG3Omg_89c_30.wav",
            question="What is in the video?",
            choices=("motorboat", "yacht", "sailboat", "consignment car"),
            answer="yacht",
            dataset="AVQA",
            task="View",
            category="Which",
            source_video="-HG3Omg_89c_000030",
        )
    ]


def test_mmau_record(tmp_path):
    file = tmp_path / "mmau.json"
    file.write_text(json.dumps([MMAU]))
    read = read_questions(file)
    assert read.problems == []
    assert read.records == [
        AudioQuestion(
            id="3fe64f3d",
            audio_path=tmp_path / "test-mini-audios" / "3fe64f3d.wav",
            question="Who speaks?",
            choices=("Man", "Woman"),
            answer="Man",
            dataset="AudioSet",
            split="test-mini",
            task="sound",
            difficulty="medium",
            category="Reasoning",
            sub_category="Acoustic Source Inference",
        )
    ]


def test_formats_are_told_apart_record_by_record(tmp_path):
    read = read_questions(write_lines(tmp_path / "mixed.jsonl", MANIFEST, "", R1_AQA, MMAU))
    assert [question.id for question in read.records] == ["a", "183", "3fe64f3d"]


@pytest.mark.parametrize("name", ["mmau-test-mini.2025-03-25.json", "mmau-test-mini.v05.15.25.json"])
def test_published_mmau_files(name):
    if not (SHARED_MMAU / name).is_file():
        pytest.skip(f"{SHARED_MMAU / name} is not there")
    read = read_questions(SHARED_MMAU / name, audio_dir=SHARED_MMAU / "audio")
    assert read.problems == []
    assert len(read.records) == 1000
    tasks = [question.task for question in read.records]
    assert {task: tasks.count(task) for task in set(tasks)} == {"sound": 333, "music": 334, "speech": 333}
    assert len({question.sub_category for question in read.records}) == 27
    # 13 records give it as a list of one
    assert all(isinstance(question.category, str) for question in read.records)
    assert all(question.answer in question.choices for question in read.records)
    # found by its name: the folder of `audio_id` is not there
    first = read.records[0]
    assert first.audio_path == SHARED_MMAU / "audio" / "3fe64f3d-282c-4bc8-a753-68f8f6c35652.wav"


@pytest.mark.parametrize("there", ["test-mini-audios/3fe64f3d.wav", "3fe64f3d.wav"])
def test_mmau_audio_is_looked_up_by_path_then_by_name(tmp_path, there):
    audio_dir = tmp_path / "audio"
    (audio_dir / there).parent.mkdir(parents=True)
    (audio_dir / there).touch()
    file = write_lines(tmp_path / "mmau.jsonl", MMAU)
    assert read_questions(file, audio_dir).records[0].audio_path == audio_dir / there


class TestRelativePathsOfR1Aqa:
    """R1-AQA resolves them against the working directory, files that travel are relative to themselves."""

    @pytest.fixture
    def beside(self, tmp_path) -> Path:
        return tmp_path / "data" / R1_AQA["audio_path"]

    @pytest.fixture
    def here(self, tmp_path, monkeypatch) -> Path:
        (tmp_path / "work").mkdir()
        monkeypatch.chdir(tmp_path / "work")
        return tmp_path / "work" / R1_AQA["audio_path"]

    @pytest.fixture
    def file(self, tmp_path) -> Path:
        (tmp_path / "data").mkdir()
        return write_lines(tmp_path / "data" / "lines.jsonl", R1_AQA)

    @staticmethod
    def make(path: Path) -> None:
        path.parent.mkdir(parents=True)
        path.touch()

    def test_only_in_the_working_directory(self, file, beside, here):
        self.make(here)
        assert read_questions(file).records[0].audio_path == here

    def test_only_beside_the_file(self, file, beside, here):
        self.make(beside)
        assert read_questions(file).records[0].audio_path == beside

    def test_nowhere(self, file, beside, here):
        assert read_questions(file).records[0].audio_path == beside

    def test_two_candidates_are_never_guessed_between(self, file, beside, here):
        self.make(here)
        self.make(beside)
        read = read_questions(file)
        assert read.records == []
        assert str(beside) in read.problems[0].what
        assert str(here) in read.problems[0].what

    def test_absolute(self, tmp_path, here):
        line = R1_AQA | {"audio_path": "/clips/a.wav"}
        assert read_questions(write_lines(tmp_path / "l.jsonl", line)).records[0].audio_path == Path("/clips/a.wav")


def test_round_trip(tmp_path):
    questions = [
        AudioQuestion(
            id="1",
            audio_path=tmp_path / "clips" / "schön – 1.wav",
            question="Was hört man?\u2028Eine zweite Zeile",  # a separator that str.splitlines() would split at
            choices=("Hund", "犬", "a, 'quoted' \"choice\"\\"),
            answer="犬",
            dataset="AVQA",
            split="train",
            task="sound",
            difficulty="hard",
            category="Reasoning",
            sub_category="Source",
            version="v1",
            source_video="x",
            flags=("duplicate_choices", "missing_audio"),
        ),
        AudioQuestion(
            id="2", audio_path=tmp_path / "b.wav", question="And?", choices=("dog", "cat"), answer=None, task="music"
        ),
    ]
    file = tmp_path / "data" / "manifest.jsonl"
    write_manifest(file, questions)
    read = read_questions(file)
    assert read.problems == []
    assert [replace(question, audio_path=question.audio_path.resolve()) for question in read.records] == questions
    second = json.loads(file.read_text(encoding="utf-8").split("\n")[1])
    assert second == {
        "id": "2",
        "audio_path": os.path.join("..", "b.wav"),  # relative to the manifest: the two can be moved together
        "question": "And?",
        "choices": ["dog", "cat"],
        "task": "music",
    }
    assert os.listdir(file.parent) == ["manifest.jsonl"]  # nothing half-written is left


def without(record: dict, key: str) -> dict:
    return {name: value for name, value in record.items() if name != key}


@pytest.mark.parametrize(
    ("bad", "what"),
    [
        pytest.param('{"id": "b", "question"', "malformed JSON", id="malformed"),
        pytest.param("[1, 2]", "expected an object, found list", id="list"),
        pytest.param("7", "expected an object, found int", id="number"),
        pytest.param({"id": "b", "text": "?"}, "unknown record format with keys ['id', 'text']", id="format"),
        pytest.param(MANIFEST | {"id": "b", "anwser": "cat"}, "unknown keys ['anwser']", id="unknown key"),
        pytest.param(MANIFEST, "id 'a' was already used at line 1", id="duplicate id"),
        pytest.param(without(MANIFEST, "id"), "id is absent", id="no id"),
        pytest.param(MANIFEST | {"id": "b", "answer": "cow"}, "answer 'cow' is not among the choices", id="answer"),
        pytest.param(MANIFEST | {"id": "b", "answer": "Cat"}, "answer 'Cat' is not among the choices", id="case"),
        pytest.param(MANIFEST | {"id": "b", "choices": ["cat"]}, "only 1 choice(s)", id="one choice"),
        pytest.param(MANIFEST | {"id": "b", "choices": []}, "only 0 choice(s)", id="no choice"),
        pytest.param(MANIFEST | {"id": "b", "choices": ["cat", " "]}, "a choice is empty", id="empty choice"),
        pytest.param(MANIFEST | {"id": "b", "choices": "cat"}, "choices is 'cat'", id="choices text"),
        pytest.param(MANIFEST | {"id": "b", "choices": ["cat", 5]}, "choices is ['cat', 5]", id="choice number"),
        pytest.param(MANIFEST | {"id": "b", "question": ""}, "question is ''", id="no question"),
        pytest.param(MANIFEST | {"id": "b", "question": " \n"}, "the question is empty", id="blank question"),
        pytest.param(MANIFEST | {"id": "b", "audio_path": ""}, "audio_path is ''", id="no path"),
        pytest.param(MANIFEST | {"id": "b", "task": 3}, "task is 3", id="task"),
        pytest.param(R1_AQA | {"answer": 4}, "answer index 4 is out of range for 4 choices", id="index too high"),
        pytest.param(R1_AQA | {"answer": -1}, "answer index -1 is out of range", id="index negative"),
        pytest.param(R1_AQA | {"answer": True}, "answer is True, not an index", id="index bool"),
        pytest.param(R1_AQA | {"answer": "yacht"}, "answer is 'yacht', not an index", id="index text"),
        pytest.param(without(R1_AQA, "answer"), "answer is None, not an index", id="index absent"),
        pytest.param(R1_AQA | {"multi_choice": ["a"], "answer": 0}, "only 1 choice(s)", id="R1-AQA one choice"),
        pytest.param(R1_AQA | {"id": None}, "id is None", id="R1-AQA id"),
        pytest.param('{"id": ' + "8" * 5000 + "}", "malformed JSON (a number has too many digits)", id="digits"),
        pytest.param('{"id": ' + "[" * 100_000, "malformed JSON (nested too deeply)", id="nested"),
        pytest.param(MANIFEST | {"id": "b", "question": "\ud800"}, "'question' is no valid Unicode", id="surrogate"),
        pytest.param(MANIFEST | {"id": "b", "choices": ["\udc80", "b"]}, "'choices' is no", id="choices surrogate"),
        pytest.param(MANIFEST | {"audio_path": "\udc80"}, "'audio_path' is no valid Unicode", id="path surrogate"),
        pytest.param(R1_AQA | {"id": "\ud800"}, "'id' is no valid Unicode", id="R1-AQA surrogate"),
        pytest.param(MMAU | {"category": ["\ud800"]}, "'category' is no valid Unicode", id="MMAU surrogate"),
        pytest.param(MMAU | {"answer": "Child"}, "answer 'Child' is not among the choices", id="MMAU answer"),
        pytest.param(without(MMAU, "question"), "question is absent", id="MMAU question"),
    ],
)
def test_a_bad_line_is_named_and_the_others_are_kept(tmp_path, bad, what):
    file = write_lines(tmp_path / "data.jsonl", MANIFEST, "", bad, MANIFEST | {"id": "last"})
    read = read_questions(file)
    assert [question.id for question in read.records] == ["a", "last"]
    (problem,) = read.problems
    assert problem.where == f"{file}:line 3"  # blank lines count, as in an editor
    assert what in problem.what
    assert problem.remedy


@pytest.mark.parametrize("record", [R1_AQA | {"audio_path": "x" * 300}, MMAU | {"audio_id": "x" * 300}])
def test_a_path_longer_than_can_be_is_merely_absent(tmp_path, record):
    read = read_questions(write_lines(tmp_path / "data.jsonl", record))
    assert [question.audio_path for question in read.records] == [tmp_path / ("x" * 300)]


def test_a_bad_record_of_a_list_is_named_by_its_number(tmp_path):
    file = tmp_path / "mmau.json"
    file.write_text(json.dumps([MMAU, MMAU | {"id": "b", "choices": ["Man"]}, MMAU], indent=2))
    read = read_questions(file)
    assert [question.id for question in read.records] == ["3fe64f3d"]
    assert [problem.where for problem in read.problems] == [f"{file}:record 2", f"{file}:record 3"]
    assert "already used at record 1" in read.problems[1].what


@pytest.mark.parametrize(
    ("content", "where", "what"),
    [
        pytest.param(None, "", "there is no such file", id="absent"),
        pytest.param(b"", "", "the file holds no records", id="empty"),
        pytest.param(b"\n \n", "", "the file holds no records", id="blank"),
        pytest.param(b"[]", "", "the file holds no records", id="empty list"),
        pytest.param('{"id": "ö"}'.encode("latin-1"), ":line 1", "not UTF-8 text", id="latin-1"),
        pytest.param(b'[\n{"id": "a"},\n{"id": "b', ":line 3", "malformed JSON", id="cut off"),
        pytest.param(b"[" * 100_000, "", "malformed JSON (nested too deeply)", id="nested"),
        pytest.param(b"[" + b"8" * 5000 + b"]", "", "malformed JSON (a number has too many digits)", id="digits"),
    ],
)
def test_an_unusable_file_is_refused(tmp_path, content, where, what):
    file = tmp_path / "data.json"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(Refused) as refusal:
        read_questions(file)
    (problem,) = refusal.value.problems
    assert problem.where == f"{file}{where}"
    assert what in problem.what


def test_questions_without_answer_are_listed(questions):
    unanswered = [questions[0], replace(questions[1], answer=None), questions[2]]
    (problem,) = with_answers(unanswered, "data.jsonl")
    assert problem.where == "data.jsonl: q1"
    assert with_answers(questions, "data.jsonl") == []


def test_limit(questions):
    assert limited(questions, 3) == questions[:3]
    assert limited(questions, None) == questions
