"""Reading what benchmarks publish: every form gives the same questions, and what is ambiguous is refused by line."""

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from r1_aqa_repro.data.benchmark_records import chosen, clip_paths
from r1_aqa_repro.data.questions import (
    EMPTY_CHOICE,
    AudioQuestion,
    question_from_mmar,
    question_from_mmau_pro,
    read_questions,
    write_manifest,
)
from r1_aqa_repro.data.records import BadRecord
from r1_aqa_repro.data.versions import baselines, questions_digest, version_of
from tests.benchmark_records import mmar_record, mmau_pro_record, mmsu_record, with_letters
from tests.conftest import MMAR_FILE
from tests.files import write_lines, write_parquet


def read(tmp_path, *records):
    """The questions of a file of these records, none of which is bad."""
    found = read_questions(write_lines(tmp_path / "records.jsonl", records))
    assert found.problems == []
    return found.records


@pytest.fixture(scope="module")
def records():
    """Of MMAR's own file."""
    if not MMAR_FILE.is_file():
        pytest.skip(f"{MMAR_FILE} is not there")
    return [json.loads(line) for line in MMAR_FILE.read_text(encoding="utf-8").split("\n") if line]


@pytest.fixture(scope="module")
def questions(records):
    found = read_questions(MMAR_FILE)
    assert found.problems == [] and len(found.records) == len(records) == 1000
    return found.records


class TestMMAR:
    """Its own file, of which shared/reference/benchmarks.md has the counts."""

    def test_all_counts_are_the_published_ones(self, questions):
        assert Counter(one.modality for one in questions) == {
            "speech": 294, "mix-sound-speech": 218, "music": 206, "sound": 165, "mix-music-speech": 82,
            "mix-sound-music-speech": 24, "mix-sound-music": 11,
        }  # fmt: skip
        assert Counter(one.category for one in questions) == {
            "Semantic Layer": 412, "Perception Layer": 404, "Cultural Layer": 141, "Signal Layer": 43
        }  # fmt: skip
        assert len({one.sub_category for one in questions}) == 16
        languages = Counter(one.language for one in questions)
        assert (languages["en"], languages[None], languages["zh"]) == (554, 320, 93)
        assert Counter(len(one.choices) for one in questions) == {4: 815, 2: 171, 3: 10, 5: 3, 6: 1}
        places = Counter(one.choices.index(one.answer) + 1 for one in questions)
        assert places == {1: 273, 2: 302, 3: 213, 4: 212}
        assert baselines(questions)["chance"] == pytest.approx(29.335, abs=1e-9)
        assert {one.dataset for one in questions} == {"MMAR"}
        assert Counter(one.source for one in questions) == {"youtube": 593, "bilibili": 407}

    def test_four_empty_choices_are_kept_and_flagged_and_no_choice_stands_twice(self, questions):
        flagged = [one for one in questions if one.flags]
        assert {one.flags for one in flagged} == {(EMPTY_CHOICE,)} and len(flagged) == 4
        assert all(one.choices[-1] == "" for one in flagged)
        assert all(len(set(one.choices)) == len(one.choices) for one in questions)

    def test_both_forms_ask_the_same(self, records, questions, tmp_path):
        rows = [{**with_letters(one), "audio": {"path": one["audio_path"], "bytes": b""}} for one in records]
        found = read_questions(write_parquet(tmp_path / "test.parquet", rows))
        assert found.problems == []
        assert questions_digest(found.records) == questions_digest(questions)
        for one, other in zip(found.records, questions, strict=True):
            audio_path = tmp_path / other.audio_path.relative_to(MMAR_FILE.parent)
            assert one == replace(other, audio_path=audio_path)

    def test_the_file_is_known_and_a_changed_one_is_not(self, questions, tmp_path):
        assert version_of(questions) == "mmar"
        write_manifest(tmp_path / "manifest.jsonl", questions)
        again = read_questions(tmp_path / "manifest.jsonl")
        assert again.problems == [] and version_of(again.records) == "mmar"
        assert version_of(questions[:-1]) == "unknown"


def test_each_form_of_mmar_is_the_same_question(tmp_path):
    own = mmar_record(2)
    first, second = read(tmp_path, own)[0], read(tmp_path, with_letters(own) | {"audio": "audio/" + own["id"]})[0]
    assert first == AudioQuestion(
        id=own["id"],
        audio_path=tmp_path / "audio" / f"{own['id']}.wav",
        question="How much food is there in 2?",
        choices=("Too little", "Just right, no opinion", "Too much", "Can't finish"),
        answer="Too much",
        dataset="MMAR",
        category="Semantic Layer",
        sub_category="Content Analysis",
        modality="music",
        source="youtube",
    )
    assert second == replace(first, audio_path=tmp_path / "audio" / own["id"])


@pytest.mark.parametrize(
    ("changed", "choices", "answer"),
    [
        ({}, ("rising", "falling", "level", "dipping"), "rising"),
        ({"answer": "D"}, ("rising", "falling", "level", "dipping"), "dipping"),
        # two choices, in any of the places: their letters stay theirs
        ({"choice_a": None, "choice_c": None, "answer": "dipping"}, ("falling", "dipping"), "dipping"),
        ({"choice_a": None, "choice_c": "", "answer": "B"}, ("falling", "dipping"), "falling"),
        ({"choice_b": "A", "choice_a": "B", "choice_c": "A flat", "answer": "A flat"}, ("B", "A", "A flat", "dipping"),
         "A flat"),
        ({"choice_a": "A", "answer": "A"}, ("A", "falling", "level", "dipping"), "A"),  # both readings name it
        ({"choice_b": "rising", "answer": "B"}, ("rising", "rising", "level", "dipping"), "rising"),
        ({"answer_gt": "level", "answer": "level"}, ("rising", "falling", "level", "dipping"), "level"),
    ],
)  # fmt: skip
def test_an_answer_of_mmsu_is_a_text_or_a_letter_by_record(tmp_path, changed, choices, answer):
    one = read(tmp_path, mmsu_record(0, audio="audio/a.wav", **changed))[0]
    assert (one.choices, one.answer) == (choices, answer)
    assert (one.dataset, one.task, one.category, one.sub_category) == (
        "MMSU", "intonation_perception", "Perception", "Linguistics"
    )  # fmt: skip


def test_other_keys_of_mmsu(tmp_path):
    """Its own file names the answer answer_gt; a copy the sub-category sub_category; rows need not have an id."""
    record = mmsu_record(2, audio={"path": "pause_7.wav"}, sub_category="Phonology")
    for key in ("id", "sub-category"):
        del record[key]
    record["answer_gt"] = record.pop("answer")
    one = read(tmp_path, record)[0]
    assert (one.id, one.sub_category, one.answer) == ("pause_7", "Phonology", "level")


def test_a_question_of_mmau_pro(tmp_path):
    for index, answer in ((2, "clarinet"), (3, "bassoon")):
        one = read(tmp_path, mmau_pro_record(index))[0]
        assert one == AudioQuestion(
            id=f"00000000-000{index}",
            audio_path=tmp_path / "data" / f"clip-{index}.wav",
            question=f"Which instrument begins in {index}?",
            choices=("flute", "oboe", "clarinet", "bassoon", "horn"),
            answer=answer,
            dataset="MMAU-Pro",
            category=("music", "sound", "speech")[index % 3],
            sub_category="instrument",
        )


BAD = {
    "MMAR without choices": (mmar_record(0, choices=None), "choices is None, not a list of texts"),
    "MMAR with no choice": (mmar_record(0, choices=[]), "only 0 choice(s)"),
    "MMAR's answer is no choice": (mmar_record(0, answer="too little"), "'too little' is not among the choices"),
    "MMAR's answer is a letter of choices without": (mmar_record(0, answer="B"), "'B' is not among the choices"),
    "MMAR's letter is beyond the choices": (
        with_letters(mmar_record(0)) | {"answer": "E", "audio": "a.wav"},
        "answer 'E' is neither one of the choices",
    ),
    "MMAR's answer is null": (mmar_record(0, answer=None), "answer is None, not a text"),
    "MMAR's id is absent": ({k: v for k, v in mmar_record(0).items() if k != "id"}, "id is absent"),
    "MMAR's modality is a number": (mmar_record(0, modality=3), "modality is 3, not a text"),
    "MMAR's clip is absent": (with_letters(mmar_record(0)), "neither audio_path nor audio"),
    "MMAR's clips are two": (mmar_record(0, audio_path=["a.wav", "b.wav"]), "it names 2 clips"),
    "MMSU's choice is absent": (
        {k: v for k, v in mmsu_record(0, audio="a.wav").items() if k != "choice_c"},
        "choice_c absent",
    ),
    "MMSU's choice is a number": (mmsu_record(0, audio="a.wav", choice_c=3), "choice_c is 3, not a text"),
    "MMSU's answer is ambiguous": (
        mmsu_record(1, audio="a.wav", choice_c="B"),
        "answer 'B' is the text of one choice and the letter of another, 'falling'",
    ),
    "MMSU's letter is of no choice": (
        mmsu_record(1, audio="a.wav", choice_b=None),
        "nor a letter of A, C, D",
    ),
    "MMSU has one choice": (mmsu_record(0, audio="a.wav", choice_b="", choice_c="", choice_d=""), "only 1 choice(s)"),
    "MMSU's clip is a number": (mmsu_record(0, audio=7), "audio holds 7, not a path, bytes or both"),
    "MMSU's answer is absent": (
        {k: v for k, v in mmsu_record(0, audio="a.wav").items() if k != "answer"},
        "answer_gt is absent",
    ),
    "MMAU-Pro's clips are none": (mmau_pro_record(0, audio_path=[]), "audio_path is an empty list"),
    "MMAU-Pro's clips are several": (mmau_pro_record(0, audio_path=["a", "b", "c"]), "it is about 3 clips"),
    "MMAU-Pro has no choices": (mmau_pro_record(0, choices=None), "it has no choices"),
    "MMAU-Pro has one choice": (mmau_pro_record(0, choices=["flute"]), "it has the one choice 'flute'"),
    "MMAU-Pro has an empty choice": (mmau_pro_record(0, choices=["flute", " "]), "a choice is empty"),
    "MMAU-Pro's choices are one text": (mmau_pro_record(0, choices="flute, oboe"), "not a list of texts"),
    "MMAU-Pro's answer is no choice": (mmau_pro_record(0, answer="Flute"), "'Flute' is neither one of the choices"),
    "MMAU-Pro's letter is beyond the choices": (mmau_pro_record(0, answer="F"), "nor a letter of A, B, C, D, E"),
    "MMAU-Pro's answer is a number": (mmau_pro_record(0, answer=1), "answer is 1, not a text"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_bad_record_is_named_by_file_and_line(tmp_path, case):
    bad, named = BAD[case]
    good = mmar_record(1), mmsu_record(1, audio="b.wav"), mmau_pro_record(1)
    file = write_lines(tmp_path / "mixed.jsonl", [*good[:2], bad, good[2]])
    found = read_questions(file)
    assert [one.dataset for one in found.records] == ["MMAR", "MMSU", "MMAU-Pro"]
    (problem,) = found.problems
    assert problem.where == f"{file}:line 3" and named in problem.what and problem.remedy


@pytest.mark.parametrize(
    ("read", "record", "named"),
    [
        (question_from_mmar, mmau_pro_record(0), "modality is absent"),
        (question_from_mmar, mmsu_record(0, audio="a.wav"), "modality is absent"),
        (question_from_mmau_pro, mmar_record(0), "sub-cat is absent"),
        (question_from_mmau_pro, mmau_pro_record(0, choices=[]) | {"sub-cat": None}, "it has no choices"),
    ],
)
def test_a_record_of_another_benchmark_does_not_become_a_question_of_this_one(read, record, named):
    with pytest.raises(BadRecord, match=named):
        read(record, Path())


@pytest.mark.parametrize("record", [mmar_record(0), mmsu_record(0, audio="a.wav"), mmau_pro_record(0)])
def test_an_id_that_is_used_twice_is_named(tmp_path, record):
    found = read_questions(write_lines(tmp_path / "twice.jsonl", [record, record]))
    assert len(found.records) == 1 and "was already used at line 1" in found.problems[0].what


@pytest.mark.parametrize(
    ("record", "paths"),
    [
        ({"audio": b"RIFF"}, [None]),
        ({"audio": {"bytes": b"RIFF", "path": "a.wav"}}, ["a.wav"]),
        ({"audio": {"bytes": b"RIFF", "path": None}}, [None]),
        ({"audio": "a.wav"}, ["a.wav"]),
        ({"audio": ["a.wav"]}, ["a.wav"]),
        ({"audio": [b"1", {"path": "b.wav"}, "c.wav"]}, [None, "b.wav", "c.wav"]),
        ({"audio_path": "a.wav", "audio": b"RIFF"}, ["a.wav"]),
        ({"audio_path": None, "audio": "a.wav"}, ["a.wav"]),
        ({"audio": None}, [None]),  # there is a clip, and it was lost
    ],
)
def test_clips_are_paths_bytes_or_lists(record, paths):
    assert clip_paths(record) == paths


def test_an_answer_is_found_beyond_the_letters():
    choices = [f"choice {number}" for number in range(30)]
    assert [chosen(answer, choices) for answer in ("A", "Z", "choice 29")] == ["choice 0", "choice 25", "choice 29"]
    with pytest.raises(BadRecord, match="neither one of the choices"):
        chosen("", choices)
