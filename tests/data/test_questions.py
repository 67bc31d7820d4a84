"""Reading and writing questions: three formats, and a problem with file and line for every bad record."""

import json
import os
from dataclasses import replace
from pathlib import Path

import pytest

from r1_aqa_repro.data.questions import AudioQuestion, read_questions, with_answers, write_manifest
from tests.files import write_lines

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


@pytest.mark.parametrize(
    ("record", "audio", "fields"),
    [
        (
            MANIFEST | {"task": "sound", "flags": ["duplicate_choices"]},
            "a.wav",
            {"id": "a", "question": "What?", "choices": ("dog", "cat"), "answer": "cat", "task": "sound",
             "flags": ("duplicate_choices",)},
        ),
        (
            R1_AQA,
            "clips/-HG3Omg_89c_30.wav",
            {"id": "183", "question": "What is in the video?", "answer": "yacht", "dataset": "AVQA", "task": "View",
             "choices": ("motorboat", "yacht", "sailboat", "consignment car"), "category": "Which",
             "source_video": "-HG3Omg_89c_000030"},
        ),
        (
            MMAU,
            "test-mini-audios/3fe64f3d.wav",
            {"id": "3fe64f3d", "question": "Who speaks?", "choices": ("Man", "Woman"), "answer": "Man",
             "dataset": "AudioSet", "split": "test-mini", "task": "sound", "difficulty": "medium",
             "category": "Reasoning", "sub_category": "Acoustic Source Inference"},
        ),
    ],
    ids=["manifest", "R1-AQA", "MMAU"],
)  # fmt: skip
def test_a_record_of_each_format_is_one_question(tmp_path, record, audio, fields):
    (tmp_path / "list.json").write_text(json.dumps([record]))
    for file in (write_lines(tmp_path / "lines.data", [record]), tmp_path / "list.json"):
        read = read_questions(file)
        assert read.problems == []
        assert read.records == [AudioQuestion(audio_path=tmp_path / audio, **fields)]


def test_formats_are_told_apart_record_by_record(tmp_path):
    read = read_questions(write_lines(tmp_path / "mixed.jsonl", [MANIFEST, "", R1_AQA, MMAU]))
    assert [question.id for question in read.records] == ["a", "183", "3fe64f3d"]


@pytest.mark.parametrize("there", ["test-mini-audios/3fe64f3d.wav", "3fe64f3d.wav"])
def test_mmau_audio_is_looked_up_by_path_then_by_name(tmp_path, there):
    audio_dir = tmp_path / "audio"
    (audio_dir / there).parent.mkdir(parents=True)
    (audio_dir / there).touch()
    file = write_lines(tmp_path / "mmau.jsonl", [MMAU])
    assert read_questions(file, audio_dir).records[0].audio_path == audio_dir / there


@pytest.mark.parametrize(
    ("there", "expected"),
    [(["work"], "work"), (["data"], "data"), ([], "data"), (["work", "data"], None)],
    ids=["only in the working directory", "only beside the file", "nowhere", "in both"],
)
def test_a_relative_path_of_r1_aqa_is_found_in_one_place_or_refused(tmp_path, monkeypatch, there, expected):
    """R1-AQA resolves paths against the working directory; files that travel are relative to themselves."""
    places = {name: tmp_path / name / R1_AQA["audio_path"] for name in ("work", "data")}
    for name, path in places.items():
        path.parent.mkdir(parents=True)
        if name in there:
            path.touch()
    monkeypatch.chdir(tmp_path / "work")
    read = read_questions(write_lines(tmp_path / "data" / "lines.jsonl", [R1_AQA]))
    assert [question.audio_path for question in read.records] == ([places[expected]] if expected else [])
    assert expected or all(str(path) in read.problems[0].what for path in places.values())


def test_an_absolute_path_of_r1_aqa_is_taken_as_it_stands(tmp_path):
    line = R1_AQA | {"audio_path": "/clips/a.wav"}
    assert read_questions(write_lines(tmp_path / "l.jsonl", [line])).records[0].audio_path == Path("/clips/a.wav")


def test_round_trip(tmp_path):
    questions = [
        AudioQuestion(
            id="1",
            audio_path=tmp_path / "clips" / "schön – 1.wav",
            question="Was hört man?\u2028Eine zweite Zeile",  # a separator that str.splitlines() would split at
            choices=("Hund", "犬", "a, 'quoted' \"choice\"\\"),
            answer="犬",
            flags=("duplicate_choices", "missing_audio"),
            **{name: name for name in ("dataset", "split", "task", "difficulty", "category", "sub_category")},
            **{name: name for name in ("version", "source_video")},
        ),
        AudioQuestion("2", tmp_path / "b.wav", "And?", ("dog", "cat"), None, task="music"),
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
        pytest.param(MANIFEST | {"id": "b", "question": "\ud800"}, "'question' is no valid Unicode", id="surrogate"),
        pytest.param(MMAU | {"category": ["\ud800"]}, "'category' is no valid Unicode", id="MMAU surrogate"),
        pytest.param(MMAU | {"answer": "Child"}, "answer 'Child' is not among the choices", id="MMAU answer"),
        pytest.param(without(MMAU, "question"), "question is absent", id="MMAU question"),
    ],
)
def test_a_bad_line_is_named_and_the_others_are_kept(tmp_path, bad, what):
    file = write_lines(tmp_path / "data.jsonl", [MANIFEST, "", bad, MANIFEST | {"id": "last"}])
    read = read_questions(file)
    assert [question.id for question in read.records] == ["a", "last"]
    (problem,) = read.problems
    assert problem.where == f"{file}:line 3"  # blank lines count, as in an editor
    assert what in problem.what
    assert problem.remedy


@pytest.mark.parametrize("record", [R1_AQA | {"audio_path": "x" * 300}, MMAU | {"audio_id": "x" * 300}])
def test_a_path_longer_than_can_be_is_merely_absent(tmp_path, record):
    read = read_questions(write_lines(tmp_path / "data.jsonl", [record]))
    assert [question.audio_path for question in read.records] == [tmp_path / ("x" * 300)]


def test_questions_without_answer_are_listed(questions):
    unanswered = [questions[0], replace(questions[1], answer=None), questions[2]]
    (problem,) = with_answers(unanswered, "data.jsonl")
    assert problem.where == "data.jsonl: q1"
    assert with_answers(questions, "data.jsonl") == []
