"""`data_prep.stats`: figures counted by hand."""

from pathlib import Path

import pytest

from data_prep.stats import lazy_strategies, main, statistics_of
from r1_aqa_repro.data.questions import AudioQuestion, write_manifest
from tests.conftest import make_questions
from tests.files import read_json


def question(index, choices, answer, **fields):
    return AudioQuestion(f"q{index}", Path(f"/clips/{index % 2}.wav"), "What?", choices, answer, **fields)


QUESTIONS = [
    question(0, ("dog", "a cat"), "dog", task="Sound"),
    question(1, ("dog", "birds", "a cat"), "a cat", task="View"),
    question(2, ("birds", "dog", "a cat", "mouse"), "dog", task="Sound", flags=("missing_audio",)),
    question(3, ("dog", "dog", "cow", "bees"), "bees", flags=("duplicate_choices",)),
    question(4, ("dog", "cow"), None),
]


def test_counts_by_hand():
    found = statistics_of(QUESTIONS, {Path("/clips/0.wav"): 9.0, Path("/clips/1.wav"): None, Path("/clips/2.wav"): 1.0})
    assert (found["questions"], found["answered"]) == (5, 4)
    assert found["counts"] == {"task": {"Sound": 2, "View": 1}}
    assert found["flags"] == {"duplicate_choices": 1, "missing_audio": 1}
    assert found["choices"] == {
        "number": {"2": 2, "3": 1, "4": 2},
        "answer_position": {"1": 1, "2": 1, "3": 1, "4": 1},
        "duplicate_choices": 1,
    }
    assert found["audio"] == {
        "clips": 3, "unreadable": 1, "hours": 10 / 3600,
        "min_seconds": 1.0, "median_seconds": 5.0, "mean_seconds": 5.0, "max_seconds": 9.0,
    }  # fmt: skip


def test_lazy_strategies_by_hand():
    assert lazy_strategies(QUESTIONS[:4]) == pytest.approx(
        {
            "chance": (1 / 2 + 1 / 3 + 1 / 4 + 1 / 4) / 4,
            "always_first": 1 / 4,  # q0
            "longest_choice": 1 / 4,  # says a cat, birds (as long as a cat, and before it), birds, bees
            "most_frequent_answer": 2 / 4,  # dog, for q0 and q2
        }
    )
    assert lazy_strategies(QUESTIONS[:2])["most_frequent_answer"] == 0  # each answer is right once, for itself


def test_files(tmp_path, capsys):
    manifest = tmp_path / "train.jsonl"
    write_manifest(manifest, make_questions(tmp_path / "audio", 12))
    (tmp_path / "audio" / "clip-0.wav").unlink()
    assert main([str(manifest)]) == 0
    out = tmp_path / "train-stats"
    found = read_json(out / "stats.json")
    assert (found["questions"], found["audio"]["clips"], found["audio"]["unreadable"]) == (12, 12, 1)
    assert found["counts"]["task"] == {"music": 4, "sound": 4, "speech": 4}
    assert found["audio"]["max_seconds"] == pytest.approx(2.9)
    printed = capsys.readouterr().out
    assert "12 questions" in printed and "longest choice" in printed and str(out) in printed.replace("\n", "")
    assert main([str(manifest), "--out", str(tmp_path / "elsewhere")]) == 0
    assert (tmp_path / "elsewhere" / "stats.json").read_bytes() == (out / "stats.json").read_bytes()


def test_without_answers_and_audio(tmp_path):
    manifest = tmp_path / "manifest.jsonl"
    write_manifest(manifest, [question(index, ("[a]", "$b"), None, task="$x^[red]") for index in range(3)])
    assert main([str(manifest)]) == 0
    found = read_json(tmp_path / "manifest-stats" / "stats.json")
    assert (found["answered"], found["lazy_strategies"], found["audio"]["unreadable"]) == (0, {}, 2)


def test_bad_records_are_refused(tmp_path, capsys):
    manifest = tmp_path / "manifest.jsonl"
    manifest.write_text('{"id": 1}\n', encoding="utf-8")
    assert main([str(manifest)]) == 2
    assert f"{manifest}:line 1" in capsys.readouterr().err
