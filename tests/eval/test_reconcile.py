"""The same completions under every rule: the command, its files and what it says of rules that differ."""

from __future__ import annotations

from dataclasses import replace
from itertools import combinations

import pytest

from eval.predictions import predict
from eval.reconcile import main, markdown, read_evaluation, reconcile
from eval.rules import RULES
from eval.score_predictions import score_file
from r1_aqa_repro.common.errors import Refused
from r1_aqa_repro.common.files import sha256_of
from r1_aqa_repro.data.questions import read_questions
from tests.eval.made_up import evaluation_of, make_questions, mmau_records, predictions_of
from tests.files import read_json, write_json, write_lines

# `Woman`, the second of four choices, is right
COMPLETIONS = ["<answer>Woman</answer>", "B", "The man and the woman", None]
# official, official_answered, letter_lmms, letter_lmms_mmau, exact_alnum, strict, letter_aware, named_last
CORRECT = [1, 1, 1.75, 1.75, 1, 1, 2, 3]


@pytest.fixture
def data(tmp_path):
    return write_json(tmp_path / "data.json", mmau_records(4))


def predicted(path, completions=COMPLETIONS):
    given = [{"id": f"q{index}", "model_output": text} for index, text in enumerate(completions)]
    return write_json(path, given)


def test_figures_of_a_file_and_of_the_folder_where_it_was_scored(tmp_path, data, capsys):
    theirs = predicted(tmp_path / "theirs.json")
    folder = score_file(theirs, data, tmp_path / "scored").folder
    for run, more in ((theirs, ["--data", str(data)]), (folder, [])):
        out = tmp_path / f"out-{run.name}"
        assert main([str(run), *more, "--out", str(out)]) == 0
        assert {path.name for path in out.iterdir()} == {"reconcile.json", "reconcile.md"}
        [found] = read_json(out / "reconcile.json")["runs"]
        assert [found["tallies"][name]["correct"] for name in RULES] == CORRECT
        assert [found["tallies"][name]["n"] for name in RULES] == [4, 3, 4, 4, 4, 4, 4, 4]
        assert (found["n"], found["asked"], found["missing"], found["unparsed"]) == (4, 4, 1, 0)
        shown = capsys.readouterr().out
        assert "43.75" in shown and "33.33" in shown
    predicted(theirs, ["Woman"] * 4)
    with pytest.raises(Refused, match="not what was scored"):
        read_evaluation(folder)
    theirs.unlink()
    assert main([str(folder)]) == 2
    assert str(theirs) in capsys.readouterr().err


def test_a_folder_with_completions_gives_the_scores_of_its_evaluation(tmp_path, data):
    questions = read_questions(data).records
    made = [predict(one, text, "answer", "s") for one, text in zip(questions, COMPLETIONS, strict=True)]
    folder = tmp_path / "run"
    folder.mkdir()
    write_lines(folder / "predictions.jsonl", [one.to_record() for one in made])
    settings = {"prompt_style": "answer", "data_sha256": sha256_of(data), "questions": 4}
    write_json(folder / "settings.json", {"settings": settings, "paths": {"data": str(data)}})
    run = read_evaluation(folder)
    [found] = reconcile([run])["runs"]
    assert [found["tallies"][name]["correct"] for name in RULES] == CORRECT
    assert {name: found["tallies"][name] for name in run.scores["matchers"]} == run.scores["matchers"]


def test_each_pair_names_its_questions_with_the_reason(tmp_path, data):
    reconciled = reconcile([read_evaluation(predicted(tmp_path / "theirs.json"), data)])
    [run] = reconciled["runs"]
    pairs = {(pair["first"], pair["second"]): pair for pair in run["pairs"]}
    assert list(pairs) == list(combinations(RULES, 2))
    pair = pairs["official", "named_last"]
    assert (pair["questions"], pair["first_only"], pair["second_only"]) == (2, 0, 2)
    assert [(one["id"], one["repeat"]) for one in pair["answers"]] == [("q1", 0), ("q2", 0)]
    assert pair["answers"][1]["reason"] == (
        "the completion names 2 choices, 'Man' and last 'Woman'; official (wrong) finds all words of the right choice, "
        "but also 'man' of other choices; named_last (right) takes 'Woman'"
    )
    left_out = pairs["official", "official_answered"]
    assert (left_out["questions"], left_out["first_only"], left_out["second_only"]) == (1, 0, 0)
    assert left_out["answers"][0]["reason"] == (
        "there is no prediction; official (wrong) counts that as wrong; official_answered (left out) leaves the "
        "question out"
    )
    assert "letter_lmms (0.25 right) finds no letter" in pairs["official", "letter_lmms"]["answers"][0]["reason"]
    assert pairs["official", "exact_alnum"]["questions"] == pairs["official", "strict"]["questions"] == 0
    assert [one["completion"] for one in run["answers"]] == COMPLETIONS
    assert run["answers"][1]["shares"]["named_last"] == 1
    report = markdown(reconciled)
    for said in (
        "### official and named_last: 2 questions",
        "| q2 | The man and the woman | the completion names 2 choices",
        "| letter_lmms | raw completion | 1.75 | 4 | 43.75 |",
        "*exact_alnum* (NeMo-RL), given the raw completion: letters and digits",
    ):
        assert said in report
    assert "official and exact_alnum" not in report


def test_a_question_asked_repeatedly_is_one_question_and_long_lists_are_cut(tmp_path):
    questions = make_questions(8)
    run = evaluation_of(questions, predictions_of(questions, [["B", "cat"]] * 8), {"repeats": 2})
    reconciled = reconcile([run])
    pair = next(
        one for one in reconciled["runs"][0]["pairs"] if (one["first"], one["second"]) == ("official", "letter_aware")
    )
    assert (pair["questions"], pair["first_only"], pair["second_only"]) == (8, 0, 8)
    assert {one["repeat"] for one in pair["answers"]} == {0}
    section = markdown(reconciled).split("### official and letter_aware: 8 questions")[1].split("###")[0]
    assert "| q4 |" in section and "| q5 |" not in section
    assert "And 3 more answers, all in reconcile.json" in section


def test_a_part_of_a_benchmark_is_called_so():
    questions = make_questions(2, dataset="MMAU-Pro")
    reconciled = reconcile([evaluation_of(questions, predictions_of(questions, ["cat"] * 2), {})])
    [run] = reconciled["runs"]
    assert run["part"].startswith("A part of MMAU-Pro")
    assert f"**{run['part']}.**" in markdown(reconciled)


def test_several_runs_are_a_table_with_the_settings_that_differ(tmp_path, data, capsys):
    first = read_evaluation(predicted(tmp_path / "a.json"), data)
    second = read_evaluation(predicted(tmp_path / "b.json", ["Woman"] * 4), data)
    first, second, third = (
        replace(run, settings={"prompt_style": style, "decoding": "greedy"}, version=version)
        for run, style, version in ((first, "answer", "unknown"), (second, "think", "unknown"), (second, "think", "x"))
    )
    reconciled = reconcile([first, second, third])
    assert reconciled["settings"] == {
        "version": ["unknown", "unknown", "x"],
        "prompt_style": ["answer", "think", "think"],
    }
    report = markdown(reconciled)
    table = report.split("## ")[0]
    assert "| 1 | 25.00 | 33.33 | 43.75 |" in table
    assert "| 2 | 100.00 | 100.00 | 25.00 | 25.00 | 0.00 |" in table
    assert "b.json: 4 questions, version x\n" in table
    assert "| prompt\\_style | answer | think | think |" in table
    assert "decoding" not in table
    assert "No recorded setting differs." in markdown(reconcile([first, first]))
    assert main([first.name, second.name, "--data", str(data), "--data", str(data)]) == 0
    assert "25.00" in capsys.readouterr().out


def test_what_is_wrong_is_named_and_ends_as_elsewhere(tmp_path, data, capsys):
    theirs = str(predicted(tmp_path / "theirs.json"))
    given = ["--data", str(data)]
    unknown = str(write_json(tmp_path / "unknown.json", [{"id": "q9", "model_output": "Man"}]))
    nothing = str(write_json(tmp_path / "nothing.json", mmau_records(4)))
    withheld = ["--data", str(write_json(tmp_path / "test.json", mmau_records(4, answer="")))]
    for arguments, said in (
        ([theirs], "Give --data"),
        ([theirs, *given, *given], "there are 2 for 1 runs"),
        ([str(tmp_path / "absent"), *given], "there is no such file"),
        ([str(tmp_path)], "no folder of an evaluation: it has neither settings.json nor predictions.jsonl"),
        ([unknown, *given], "the id 'q9' is not among the questions"),
        ([nothing, *given], "none of its 4 records has a prediction"),
        ([theirs, *withheld], "the question has no answer"),
    ):
        assert main([*arguments, "--out", str(tmp_path / "out")]) == 2
        assert said in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    assert main([str(predicted(tmp_path / "few.json", ["Man", None, None, None])), *given]) == 3
    assert "3 of 4 answers are missing" in capsys.readouterr().err
