"""Scores and the report of made-up predictions."""

from pathlib import Path

import pytest
from rich.console import Console
from rich.markdown import Markdown

from eval.predictions import predict
from eval.report import EMBEDDED_HEADING, escape, markdown_report
from eval.scores import score, version_of
from r1_aqa_repro.schema import AudioQuestion

SETTINGS = {
    "prompt_style": "answer",
    "decoding": "greedy",
    "max_new_tokens": 8,
    "batch_size": 2,
    "dtype": "float32",
    "device": "cpu",
    "no_audio": False,
    "audio_channel": "first",
    "checkpoint_sha256": "0" * 64,
}


def make_questions(n, **fields):
    return [
        AudioQuestion(
            id=f"q{index}",
            audio_path=Path(f"/clips/{index}.wav"),
            question="What is it?",
            choices=("dog", "cat"),
            answer="cat",
            task=("sound", "music", "speech")[index % 3],
            difficulty=("hard", "easy")[index % 2],
            **fields,
        )
        for index in range(n)
    ]


def predictions_of(questions, completions):
    return {
        question.id: predict(question, completion, "answer", "settings")
        for question, completion in zip(questions, completions, strict=False)
    }


def report_of(questions, completions, version, **settings):
    predictions = predictions_of(questions, completions)
    scores, _ = score(questions, predictions, "answer", version)
    paths = {"checkpoint": "model", "data": "data.json"}
    return markdown_report(scores, {**SETTINGS, **settings}, paths, questions, predictions)


def test_every_kind_of_prediction():
    questions = make_questions(6)
    completions = [
        "<answer>cat</answer>",
        "<answer>dog</answer>",
        "<answer></answer>",
        None,
        "B",
    ]  # the sixth is absent
    scores, verdicts = score(questions, predictions_of(questions, completions), "answer", "unknown")
    assert (scores["n"], scores["missing"], scores["unparsed"], scores["no_audio"]) == (6, 2, 1, ["q3"])
    assert (scores["total"]["correct"], scores["total"]["n"]) == (1, 6)
    assert scores["total"]["accuracy"] == pytest.approx(100 / 6)
    assert scores["total"]["ci95"] == pytest.approx([3.005, 56.350], abs=1e-3)
    assert {name: total["correct"] for name, total in scores["matchers"].items()} == {
        "official": 1,
        "strict": 1,
        "letter_aware": 2,
    }
    assert scores["format_rate"] == pytest.approx(2 / 6)
    assert scores["baselines"] == {"chance": 50.0, "always_first": 0.0}
    assert list(scores["task"]) == ["sound", "music", "speech"]
    assert list(scores["difficulty"]) == ["easy", "hard"]
    assert scores["category"] == {}
    assert verdicts[4] == {"id": "q4", "repeat": 0, "official": False, "strict": False, "letter_aware": True}
    assert [verdict["id"] for verdict in verdicts] == [question.id for question in questions]


def test_versions():
    assert version_of("?", make_questions(2, version="original")) == "original"
    assert version_of("?", make_questions(2, version="mine")) == "unknown"
    assert version_of("?", make_questions(2)) == "unknown"
    assert version_of("?", make_questions(2, dataset="embedded")) == "embedded"
    assert version_of("?", make_questions(1, dataset="embedded") + make_questions(1)) == "unknown"
    assert version_of("?", make_questions(1, version="original") + make_questions(1)) == "unknown"


def test_only_the_whole_original_file_is_compared_with_the_paper():
    questions = make_questions(1000)
    completions = ["cat"] * 600 + ["dog"] * 400
    report = report_of(questions, completions, "original")
    assert "| **this run** |" in report
    assert "Distance to 64.5: -4.50 points, 95 % interval of this run [-7.5" in report
    for other in (
        report_of(questions, completions, "v05.15.25"),
        report_of(questions, completions, "unknown"),
        report_of(questions[:10], completions[:10], "original"),
        report_of(questions, completions, "original", no_audio=True),
    ):
        assert "this run** |" not in other
        assert "Not compared with 64.5" in other


def test_the_embedded_set_is_never_compared():
    report = report_of(make_questions(1000), ["cat"] * 1000, "embedded")
    assert EMBEDDED_HEADING in report.splitlines()[2]
    assert "Compared with the paper" not in report


def test_lost_and_unparsed_questions_are_listed():
    report = report_of(make_questions(3), ["<answer> </answer>", None, "cat"], "unknown")
    assert "| q1 | /clips/1.wav |" in report
    assert r"| q0 | \<answer\> \</answer\> |" in report


def test_what_a_model_wrote_stays_text():
    evil = "<answer></answer> | <b>x</b> [l](http://e.x) `c` **b**\n# h\x1b[31m"
    report = report_of(make_questions(1), [evil], "unknown")
    console = Console(width=200, force_terminal=False, record=True)
    with console.capture() as shown:
        console.print(Markdown(report))
    assert "<answer></answer> | <b>x</b> [l](http://e.x) `c` **b** # h [31m" in shown.get()
    assert "\x1b" not in report
    assert "\n" not in escape(evil)
