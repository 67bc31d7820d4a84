"""Predictions in anybody's format: what is read, refused, scored and handed in."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from eval.mmau import main
from eval.predictions import predict
from eval.results import submission
from eval.score_predictions import read_predictions, score_file
from r1_aqa_repro.common.errors import Refused
from r1_aqa_repro.common.files import sha256_of, write_lines
from r1_aqa_repro.data.questions import read_questions, write_manifest
from tests.conftest import ROOT
from tests.eval.made_up import CHOICES, is_right, mmau_records, predictions_of, published
from tests.files import contents, read_json, write_json

RESULTS = {"scores.json", "verdicts.jsonl", "report.md", "report.html"}
SCORING = ["--predictions", "theirs.json", "--data", "mmau.json", "--out", "out"]


@pytest.fixture
def data(tmp_path):
    return write_json(tmp_path / "mmau.json", mmau_records())


def scored(tmp_path, data, given, **more):
    """The evaluation of records with predictions."""
    return score_file(write_json(tmp_path / "theirs.json", given), data, tmp_path / "out", **more)


def right(evaluation):
    """How many answers each matcher takes for right."""
    return [evaluation.scores["matchers"][name]["correct"] for name in ("official", "strict", "letter_aware")]


def run_python(*arguments, cwd):
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run([sys.executable, *arguments], cwd=cwd, env=environment, capture_output=True, text=True)


def refusal(path, data):
    with pytest.raises(Refused) as refused:
        read_predictions(path, read_questions(data).records)
    return [str(problem) for problem in refused.value.problems]


def test_each_field_counts_and_an_empty_text_is_not_missing(tmp_path, data):
    given = mmau_records()
    given[0]["model_prediction"] = "Woman"
    given[1]["model_output"] = "<think>Woman? No.</think><answer>Man</answer><answer>Woman</answer>"
    given[2] |= {"model_prediction": "Child", "model_output": "Child"}
    given[3]["model_output"] = None
    given[4] |= {"model_output": "", "model_prediction": None}
    evaluation = scored(tmp_path, data, given)
    answers = {key[0]: one.answer for key, one in evaluation.predictions.items()}
    assert answers == {"q0": "Woman", "q1": "Man", "q2": "Child", "q4": None}
    scores = read_json(tmp_path / "out" / "scores.json")
    assert (scores["n"], scores["missing"], scores["unparsed"]) == (6, 2, 1)
    assert (scores["missing_ids"], scores["unparsed_ids"]) == (["q3", "q5"], ["q4"])
    assert (scores["total"]["correct"], scores["total"]["n"]) == (1, 6)  # missing ones stay in the denominator
    assert scores["category"]["Reasoning"]["n"] == 6


def test_half_a_character_can_be_written_again(tmp_path, data):
    """Also of a record that holds less than the benchmark's."""
    evaluation = scored(tmp_path, data, [{"id": "q0", "model_output": "Woman \ud83d"}])
    assert evaluation.predictions["q0", 0].answer == "Woman ?"
    assert evaluation.scores["total"]["correct"] == 1


@pytest.mark.parametrize(
    ("content", "named"),
    [
        ("[]", ["no records"]),
        ('{"id": "q0"}\n{"id": "q1"', ["line 2: malformed JSON"]),
        ('[{"id": 3}]', ["the id '3' is not among the questions"]),
        ('[{"id": true}]', ["id is True"]),
        *(
            (json.dumps([{"id": "q0", "model_output": value}]), [f"the prediction for 'q0' is {value!r}, not a text"])
            for value in (3, ["a dog"], {"a": 1})
        ),
        (
            json.dumps([{"id": "q0"}, {"id": "q1", "model_prediction": "Man", "model_output": "Woman"}]),
            ["record 2: 'q1' has two different predictions"],
        ),
        (
            json.dumps([{"id": "q0"}, {"id": "q6"}, {"id": "q7"}, {"id": "q0"}]),
            ["'q6' is not among", "'q7' is not among", "'q0' was already predicted at record 1"],
        ),
        *(
            (json.dumps([{"id": "q1", key: value}]), [f"the {key} of 'q1' is not that of the data, which is another"])
            for key, value in (("question", "Who sings?"), ("choices", CHOICES[::-1]), ("answer", "Man"))
        ),
    ],
)
def test_damaged_and_foreign_records_are_all_refused_by_name(tmp_path, data, content, named):
    path = tmp_path / "theirs.json"
    path.write_text(content, encoding="utf-8")
    problems = refusal(path, data)
    assert len(problems) == len(named)
    for problem, part in zip(problems, named, strict=True):
        assert part in problem


def own_file(folder, data, completions, orders=(), **settings):
    """A predictions.jsonl as an evaluation leaves it; `completions`: one list a question."""
    made = predictions_of(read_questions(data).records, completions, orders)
    write_lines(folder / "predictions.jsonl", [one.to_record() for one in made.values()])
    content = {"settings": {"prompt_style": "answer", **settings}, "paths": {"checkpoint": "ckpt", "data": str(data)}}
    write_json(folder / "settings.json", content)
    return folder / "predictions.jsonl"


def test_our_own_predictions(tmp_path, data):
    path = own_file(tmp_path / "run", data, [["<answer>Woman</answer>"], ["B"], ["<answer></answer>"], [None]])
    evaluation = score_file(path, data, tmp_path / "out")
    scores = evaluation.scores
    assert (scores["missing"], scores["unparsed"], scores["no_audio"]) == (3, 1, ["q3"])
    assert right(evaluation) == [1, 1, 2]
    assert scores["format_rate"] == pytest.approx(1 / 6)
    assert evaluation.settings["prompt_style"] == "answer"
    assert not (tmp_path / "out" / "predictions.jsonl").exists()


def test_answers_are_parsed_anew(tmp_path, data):
    path = own_file(tmp_path / "run", data, [["<answer>Woman</answer>"]])
    write_json(path, json.loads(path.read_text(encoding="utf-8")) | {"answer": "Man", "status": "unparsed"})
    assert score_file(path, data, tmp_path / "out").scores["total"]["correct"] == 1


def test_letters_are_of_the_order_as_asked(tmp_path, data):
    """What else follows of orders is in test_scores."""
    orders = [CHOICES, ["Woman", "Man", "Child", "Robot"]]
    path = own_file(tmp_path / "run", data, [["B", "B"], ["B", "A"]] + [["Woman"] * 2] * 4, orders, permute_choices=2)
    evaluation = score_file(path, data, tmp_path / "out")
    assert right(evaluation) == [4, 4, pytest.approx(5.5)]
    assert evaluation.scores["permutation"]["same_choice"]["correct"] == 5  # the first was answered Woman, then Man


def test_predictions_about_another_question_are_refused(tmp_path, data):
    path = own_file(tmp_path / "run", data, [["Woman"]])
    changed = mmau_records()
    changed[0]["question"] = "Who sings?"
    assert "about another question than 'q0'" in refusal(path, write_json(tmp_path / "changed.json", changed))[0]
    with pytest.raises(Refused, match="another question"):
        score_file(path, data, tmp_path / "out", prompt_style="think")


@pytest.mark.parametrize(
    ("sound", "damaged", "named"),
    [
        ('"settings"', '"other"', "2 different settings"),
        *(
            (sound, damaged, "line 1: the line is damaged")
            for sound, damaged in (
                ('"completion": "Woman"', '"completion": 1'),
                ('"repeat": 0', '"repeat": -1'),
                ('"repeat": 0', '"repeat": [0]'),
                ('"repeat": 0', '"repeat": true'),
                ('"status": "ok"', '"status": null'),
                ('"status": "ok"', '"order": "Man", "status": "ok"'),
                ('"status": "ok"', '"more": 1, "status": "ok"'),
            )
        ),
        ('"id": "q0"', '"id": "q1"', "about another question than 'q1'"),
    ],
)
def test_mixed_and_damaged_lines_are_refused(tmp_path, data, sound, damaged, named):
    path = own_file(tmp_path / "run", data, [["Woman"], ["Woman"]])
    path.write_text(path.read_text(encoding="utf-8").replace(sound, damaged, 1), encoding="utf-8")
    assert named in refusal(path, data)[0]


def test_scores_never_go_beside_other_predictions(tmp_path, data):
    run = own_file(tmp_path / "run", data, [["Woman"]])
    theirs = write_json(tmp_path / "theirs.json", mmau_records(model_output="Woman"))
    with pytest.raises(Refused, match="other predictions"):
        score_file(theirs, data, run.parent)
    before = set(contents(run.parent))
    score_file(run, data)  # its own may
    assert set(contents(run.parent)) - before == RESULTS


def test_the_same_twice_gives_the_same_bytes(tmp_path, data):
    made = []
    for _ in range(2):
        scored(tmp_path, data, mmau_records(4, model_output="The woman"))
        made.append(contents(tmp_path / "out"))
    assert set(made[0]) == RESULTS | {"settings.json"}
    assert made[0] == made[1]


def test_an_evaluation_of_the_first_questions_has_no_others_missing(tmp_path, data):
    path = own_file(tmp_path / "run", data, [["Woman"]] * 3, data_sha256=sha256_of(data), questions=3)
    scores = score_file(path, data).scores
    assert (scores["n"], scores["missing"]) == (3, 0)


class TestWithoutAudio:
    """The same evaluation without audio is reported if it lies beside; `questions` says that both are complete."""

    @pytest.fixture
    def with_audio(self, tmp_path, data):
        return own_file(tmp_path / "run", data, [["Woman"]] * 6, no_audio=False, questions=6)

    @pytest.fixture
    def without_audio(self, tmp_path, data):
        completions = [["Woman"]] * 3 + [["Man"]] * 3
        return own_file(tmp_path / "run-no-audio", data, completions, no_audio=True, questions=6)

    def test_what_survives_is_reported_once_it_is_scored(self, with_audio, without_audio, data):
        assert "blind" not in score_file(with_audio, data).scores
        score_file(without_audio, data)
        blind = score_file(with_audio, data).scores["blind"]
        assert (blind["accuracy"], blind["share"]) == (50, pytest.approx(0.5))
        assert blind["share_above_chance"] == pytest.approx((50 - 25) / (100 - 25))
        assert "50.0 % of the score" in (with_audio.parent / "report.md").read_text(encoding="utf-8")
        assert "50.0 % of the score" not in (without_audio.parent / "report.md").read_text(encoding="utf-8")

    @pytest.mark.parametrize("changed", [{"prompt_style": "think"}, {"questions": 5}])
    def test_one_with_other_settings_is_not(self, with_audio, without_audio, data, changed):
        score_file(without_audio, data)
        record = read_json(without_audio.parent / "settings.json")
        record["settings"] |= changed
        write_json(without_audio.parent / "settings.json", record)
        assert "blind" not in score_file(with_audio, data).scores

    @pytest.mark.parametrize("interrupted", ["without_audio", "with_audio"])
    def test_a_part_is_not(self, with_audio, without_audio, data, interrupted):
        path = without_audio if interrupted == "without_audio" else with_audio
        whole = path.read_bytes()
        path.write_bytes(b"".join(whole.splitlines(keepends=True)[:4]))
        score_file(without_audio, data)
        assert "blind" not in score_file(with_audio, data).scores
        path.write_bytes(whole)  # gone on with, and killed before it was scored: the scores are still of the part
        assert ("blind" in score_file(with_audio, data).scores) == (interrupted == "with_audio")
        score_file(without_audio, data)
        assert "blind" in score_file(with_audio, data).scores


def benchmark_script(submitted, field):
    """(right, counted) as the benchmark's script counts: records without the field are skipped."""
    counted = [record for record in submitted if field in record]
    return sum(is_right(one[field], one["answer"], one["choices"]) for one in counted), len(counted)


class TestSubmission:
    def test_it_scores_the_same_with_the_benchmarks_script(self, tmp_path, data):
        completions = [["<think>Man</think><answer>Woman</answer>"], ["woman"], ["Man or Woman"], [""], [None]]
        evaluation = score_file(own_file(tmp_path / "run", data, completions), data)
        submitted = submission(data, evaluation.questions, evaluation.predictions)
        for field in ("model_prediction", "model_output"):
            assert benchmark_script(submitted, field) == (2, 6)
        assert (evaluation.scores["total"]["correct"], evaluation.scores["n"]) == (2, 6)
        for record, original in zip(submitted, mmau_records(), strict=True):
            assert {key: record[key] for key in original} == original
            assert set(record) - set(original) == {"model_prediction", "model_output"}

    def test_it_holds_the_first_of_repeated_answers(self, tmp_path, data):
        path = own_file(tmp_path / "run", data, [["Man", "Woman", "Child"]] * 6, repeats=3)
        questions = read_questions(data).records
        submitted = submission(data, questions, read_predictions(path, questions))
        assert [record["model_output"] for record in submitted] == ["Man"] * 6

    def answered(self, manifest):
        questions = read_questions(manifest).records
        return submission(manifest, questions, {(one.id, 0): predict(one, "Man", "answer", "") for one in questions})

    def test_from_a_manifest_it_is_as_the_benchmark_writes_questions(self, tmp_path, data):
        write_manifest(tmp_path / "manifest.jsonl", read_questions(data).records)
        assert self.answered(tmp_path / "manifest.jsonl") == [
            record | {"category": "Reasoning", "audio_id": Path(record["audio_id"]).name}
            for record in mmau_records(model_prediction="Man", model_output="Man")
        ]

    def test_from_a_prepared_manifest_it_holds_the_records_it_came_from(self, tmp_path, data):
        """As the benchmark wants them back: `data_prep.mmau` keeps them beside the manifest."""
        from data_prep import mmau

        given, out = mmau_records(withheld="kept too"), tmp_path / "prepared"
        assert mmau.main(["--questions", str(write_json(data, given)), "--out", str(out)]) == 0
        expected = [record | {"model_prediction": "Man", "model_output": "Man"} for record in given]
        assert self.answered(out / "manifest.jsonl") == expected

    def test_it_is_all_there_is_of_withheld_answers(self, tmp_path):
        test_split = write_json(tmp_path / "test.json", mmau_records(answer=""))
        theirs = mmau_records(5, answer="", model_output="<answer>Woman</answer>")
        scores = scored(tmp_path, test_split, theirs).scores
        assert (scores["n"], scores["missing"]) == (6, 1)
        out = tmp_path / "out"
        assert set(contents(out)) == {"submission.json", "report.md", "settings.json"}
        assert "answers to these questions are withheld" in (out / "report.md").read_text(encoding="utf-8")
        submitted = read_json(out / "submission.json")
        assert [one["model_output"] for one in submitted] == ["Woman"] * 5 + [""]
        assert [one["id"] for one in submitted] == [f"q{index}" for index in range(6)]


def test_some_withheld_answers_are_refused(tmp_path):
    given = mmau_records()
    given[2]["answer"] = ""
    with pytest.raises(Refused, match="q2: the question has no answer"):
        scored(tmp_path, write_json(tmp_path / "test.json", given), [{"id": "q0", "model_output": "Woman"}])


def test_the_published_questions_are_known_in_any_form_and_in_part(tmp_path):
    """A file of the same questions is compared; a part of it has its version and is not compared."""
    questions = read_questions(published("original")).records
    manifest = tmp_path / "manifest.jsonl"
    write_manifest(manifest, questions[::-1])
    theirs = [{"id": one.id, "model_output": one.answer} for one in questions]
    for limit, n, said in ((None, 1000, "Distance to 64.5"), (30, 30, "this run is on 30")):
        scores = scored(tmp_path, manifest, theirs, limit=limit).scores
        assert (scores["version"], scores["n"], scores["total"]["correct"]) == ("original", n, n)
        assert said in (tmp_path / "out" / "report.md").read_text(encoding="utf-8")
        submitted = read_json(tmp_path / "out" / "submission.json")
        assert benchmark_script(submitted, "model_output") == (scores["total"]["correct"], n)


def test_options_of_generating_are_refused_with_predictions(tmp_path, data, capsys):
    theirs = str(write_json(tmp_path / "theirs.json", mmau_records(model_output="Woman")))
    for option in (["--repeats", "2"], ["--no-audio"], ["--batch-size", "4"], ["--ckpt", "x"]):
        with pytest.raises(SystemExit) as ended:
            main(["--predictions", theirs, "--data", str(data), *option])
        assert ended.value.code == 2
        assert option[0] in capsys.readouterr().err
    assert main(["--predictions", theirs]) == 2
    assert "Give --data" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("module", "given"),
    [("mmau", SCORING), ("mmau", ["--help"]), ("sweep", ["--help"]), ("benchmark", ["--help"])],
)
def test_scoring_and_help_load_no_library_whose_import_takes_seconds(tmp_path, data, module, given):
    write_json(tmp_path / "theirs.json", mmau_records(model_output="Woman"))
    code = (
        f"import sys\nfrom eval.{module} import main\n"
        f"try:\n    main({given})\n"
        "finally:\n    assert not {'torch', 'transformers', 'librosa', 'pandas'} & set(sys.modules)"
    )
    done = run_python("-c", code, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert ("--data" if "--help" in given else "100.00") in done.stdout
