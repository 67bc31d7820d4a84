"""Predictions in anybody's format: what is read, refused, scored and handed in."""

import json
import os
import re
import subprocess
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from eval.predictions import predict
from eval.score_predictions import read_predictions, score_file
from eval.submission import submission
from r1_aqa_repro.common.errors import Refused
from r1_aqa_repro.common.files import write_lines
from r1_aqa_repro.data.questions import read_questions, write_manifest
from tests.conftest import ROOT, SHARED_MMAU

CHOICES = ["Man", "Woman", "Child", "Robot"]

RESULTS = {"scores.json", "verdicts.jsonl", "report.md", "report.html"}


def records(n=6, **fields):
    """Questions as the benchmark publishes them; the right answer is `Woman`, the second."""
    return [
        {
            "id": f"q{index}",
            "audio_id": f"./test-mini-audios/q{index}.wav",
            "question": f"Who speaks in clip {index}?",
            "choices": CHOICES,
            "answer": "Woman",
            "dataset": "AudioSet",
            "task": ("sound", "music", "speech")[index % 3],
            "split": "test-mini",
            "category": ["Reasoning"] if index == 0 else "Reasoning",
            "sub-category": "Acoustic Source Inference",
            "difficulty": "easy",
            **fields,
        }
        for index in range(n)
    ]


@pytest.fixture
def data(tmp_path):
    path = tmp_path / "mmau.json"
    path.write_text(json.dumps(records()), encoding="utf-8")
    return path


def write(path, content):
    path.write_text(json.dumps(content), encoding="utf-8")
    return path


def completions_of(path, data):
    return {key: one.completion for key, one in read_predictions(path, read_questions(data).records).items()}


def refusal(path, data):
    with pytest.raises(Refused) as refused:
        read_predictions(path, read_questions(data).records)
    return [str(problem) for problem in refused.value.problems]


def test_both_fields_and_none(tmp_path, data):
    given = records()
    given[0]["model_prediction"] = "Woman"
    given[1]["model_output"] = "<answer>Man</answer>"
    given[2] |= {"model_prediction": "Child", "model_output": "Child"}
    given[3]["model_output"] = None
    given[4] |= {"model_output": "", "model_prediction": None}
    scored = score_file(write(tmp_path / "theirs.json", given), data, tmp_path / "out")
    assert {key[0]: one.answer for key, one in scored.predictions.items()} == {
        "q0": "Woman",
        "q1": "Man",
        "q2": "Child",
        "q4": None,
    }
    scores = json.loads((tmp_path / "out" / "scores.json").read_text(encoding="utf-8"))
    assert (scores["n"], scores["missing"], scores["unparsed"]) == (6, 2, 1)  # an empty text is not missing
    assert (scores["missing_ids"], scores["unparsed_ids"]) == (["q3", "q5"], ["q4"])
    assert (scores["total"]["correct"], scores["total"]["n"]) == (1, 6)  # missing ones stay in the denominator
    assert scores["category"]["Reasoning"]["n"] == 6


def test_only_the_tagged_answer_counts(tmp_path, data):
    given = records(2)
    given[0]["model_output"] = "<think>Man? No.</think><answer>Woman</answer>"
    given[1]["model_output"] = "Woman <answer>Man</answer><answer>Woman</answer>"
    scores = score_file(write(tmp_path / "theirs.json", given), data, tmp_path / "out").scores
    assert [scores["matchers"][name]["correct"] for name in ("official", "strict", "letter_aware")] == [1, 1, 1]


def test_two_different_predictions_are_refused_by_name(tmp_path, data):
    given = records(3)
    given[1] |= {"model_prediction": "Man", "model_output": "Woman"}
    (problem,) = refusal(write(tmp_path / "theirs.json", given), data)
    assert "record 2" in problem
    assert "'q1' has two different predictions" in problem


def test_unknown_and_repeated_ids_are_all_named(tmp_path, data):
    given = [*records(8), *records(1)]
    problems = refusal(write(tmp_path / "theirs.json", given), data)
    assert len(problems) == 3
    assert "'q6' is not among" in problems[0]
    assert "'q7' is not among" in problems[1]
    assert "'q0' was already predicted at record 1" in problems[2]


@pytest.mark.parametrize(
    ("field", "value"),
    [("question", "Who sings?"), ("choices", CHOICES[::-1]), ("answer", "Man")],
)
def test_records_of_another_version_are_refused(tmp_path, data, field, value):
    given = records(2, model_output="Woman")
    given[1][field] = value
    (problem,) = refusal(write(tmp_path / "theirs.json", given), data)
    assert f"the {field} of 'q1'" in problem
    assert "another version" in problem


def test_records_may_hold_less_than_the_benchmarks(tmp_path, data):
    given = [{"id": "q3", "model_output": "Woman"}]
    assert completions_of(write(tmp_path / "theirs.json", given), data) == {("q3", 0): "Woman"}


def test_lines_and_byte_order_marks(tmp_path, data):
    given = records(3, model_output="Woman\u2028or not")
    lines = "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in given)
    path = tmp_path / "theirs.jsonl"
    path.write_text("\ufeff" + lines, encoding="utf-8")
    assert list(completions_of(path, data)) == [("q0", 0), ("q1", 0), ("q2", 0)]


def test_half_a_character_can_be_written_again(tmp_path, data):
    path = tmp_path / "theirs.json"
    path.write_text(r'[{"id": "q0", "model_output": "Woman \ud83d"}]', encoding="utf-8")
    scored = score_file(path, data, tmp_path / "out")
    assert scored.predictions["q0", 0].answer == "Woman ?"
    assert scored.scores["total"]["correct"] == 1


@pytest.mark.parametrize(
    ("content", "named"),
    [
        ("[1]", "record 1: expected an object, found int"),
        ('[{"id": "q0"', "malformed JSON"),
        ('{"id": "q0"}\n{"id": "q1"', "line 2: malformed JSON"),
        ("", "no records"),
        ("[]", "no records"),
        ('[{"id": 3}]', "id is 3, not a text"),
        ('[{"id": "q0", "model_output": 3}]', "the prediction for 'q0' is 3, not a text"),
        (b"\xff\xfe", "not UTF-8"),
        ("[" * 100_000, "malformed JSON"),
    ],
)
def test_damaged_files_are_refused(tmp_path, data, content, named):
    path = tmp_path / "theirs.json"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    assert named in refusal(path, data)[0]


def test_absent_files_are_refused(tmp_path, data):
    with pytest.raises(Refused, match="no such file"):
        score_file(tmp_path / "nothing.json", data)
    with pytest.raises(Refused, match="no such file"):
        score_file(data, tmp_path / "nothing.json")


def own_file(folder, data, completions, orders=None, style="answer", **settings):
    """A predictions.jsonl as an evaluation leaves it; `completions`: one list a question."""
    folder.mkdir(parents=True)
    lines = []
    for question, texts in zip(read_questions(data).records, completions, strict=False):
        for repeat, text in enumerate(texts):
            asked = question
            if orders:
                asked = type(question)(**asdict(question) | {"choices": tuple(orders[repeat])})
            one = predict(asked, text, style, "hash", repeat, permuted=orders is not None)
            lines.append(one.to_record())
    write_lines(folder / "predictions.jsonl", lines)
    content = {"settings": {"prompt_style": style, **settings}, "paths": {"checkpoint": "ckpt", "data": str(data)}}
    write(folder / "settings.json", content)
    return folder / "predictions.jsonl"


def test_our_own_predictions(tmp_path, data):
    path = own_file(tmp_path / "run", data, [["<answer>Woman</answer>"], ["B"], ["<answer></answer>"], [None]])
    scored = score_file(path, data, tmp_path / "out")
    scores = scored.scores
    assert (scores["missing"], scores["unparsed"], scores["no_audio"]) == (3, 1, ["q3"])
    assert [scores["matchers"][name]["correct"] for name in ("official", "strict", "letter_aware")] == [1, 1, 2]
    assert scores["format_rate"] == pytest.approx(1 / 6)
    assert scored.settings["prompt_style"] == "answer"
    assert not (tmp_path / "out" / "predictions.jsonl").exists()


def test_answers_are_parsed_anew(tmp_path, data):
    path = own_file(tmp_path / "run", data, [["<answer>Woman</answer>"]])
    record = json.loads(path.read_text(encoding="utf-8")) | {"answer": "Man", "status": "unparsed"}
    path.write_text(json.dumps(record) + "\n", encoding="utf-8")
    assert score_file(path, data, tmp_path / "out").scores["total"]["correct"] == 1


def test_letters_are_of_the_order_as_asked(tmp_path, data):
    orders = [CHOICES, ["Woman", "Man", "Child", "Robot"]]
    path = own_file(tmp_path / "run", data, [["B", "B"], ["B", "A"]] + [["Woman"] * 2] * 4, orders, permute_choices=2)
    scores = score_file(path, data, tmp_path / "out").scores
    assert scores["n"] == 6
    assert scores["matchers"]["letter_aware"]["correct"] == pytest.approx(5.5)
    assert scores["matchers"]["official"]["correct"] == 4
    assert scores["permutation"]["orders"] == 2
    # the first question was answered Woman, then Man
    assert (scores["permutation"]["same_choice"]["correct"], scores["permutation"]["same_choice"]["n"]) == (5, 6)
    assert scores["permutation"]["by_place"] == {
        place: {"correct": 4, "n": 6, "accuracy": pytest.approx(200 / 3), "ci95": pytest.approx([30.0, 90.3], abs=0.1)}
        for place in ("1", "2")
    }


def test_predictions_about_another_question_are_refused(tmp_path, data):
    path = own_file(tmp_path / "run", data, [["Woman"]])
    changed = records()
    changed[0]["question"] = "Who sings?"
    assert "about another question than 'q0'" in refusal(path, write(tmp_path / "changed.json", changed))[0]
    with pytest.raises(Refused, match="another question"):
        score_file(path, data, tmp_path / "out", prompt_style="think")


def test_mixed_and_damaged_lines_are_refused(tmp_path, data):
    path = own_file(tmp_path / "run", data, [["Woman"], ["Woman"]])
    whole = path.read_text(encoding="utf-8")
    path.write_text(whole.replace('"hash"', '"other"', 1), encoding="utf-8")
    assert "2 different settings" in refusal(path, data)[0]
    path.write_text(whole + whole.splitlines(keepends=True)[1], encoding="utf-8")
    assert "'q1' was already predicted at line 2" in refusal(path, data)[0]
    for sound, damaged in (
        ('"completion": "Woman"', '"completion": 1'),
        ('"repeat": 0', '"repeat": -1'),
        ('"repeat": 0', '"repeat": [0]'),
        ('"repeat": 0', '"repeat": true'),
        ('"status": "ok"', '"status": null'),
        ('"status": "ok"', '"order": "Man", "status": "ok"'),
        ('"status": "ok"', '"more": 1, "status": "ok"'),
    ):
        path.write_text(whole.replace(sound, damaged, 1), encoding="utf-8")
        assert "line 1: the line is damaged" in refusal(path, data)[0], damaged


def test_scores_never_go_beside_other_predictions(tmp_path, data):
    run = own_file(tmp_path / "run", data, [["Woman"]])
    theirs = write(tmp_path / "theirs.json", records(model_output="Woman"))
    with pytest.raises(Refused, match="other predictions"):
        score_file(theirs, data, run.parent)
    before = set(run.parent.iterdir())
    score_file(run, data)  # its own may
    assert {path.name for path in set(run.parent.iterdir()) - before} == RESULTS


def test_the_same_twice_gives_the_same_bytes(tmp_path, data):
    theirs = write(tmp_path / "theirs.json", records(4, model_output="The woman"))
    contents = []
    for _ in range(2):
        score_file(theirs, data, tmp_path / "out")
        contents.append({path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()})
    assert set(contents[0]) == RESULTS | {"settings.json"}
    assert contents[0] == contents[1]


def test_only_the_first_questions(tmp_path, data):
    theirs = write(tmp_path / "theirs.json", records(model_output="Woman"))
    scores = score_file(theirs, data, tmp_path / "out", limit=2).scores
    assert (scores["n"], scores["missing"], scores["total"]["correct"]) == (2, 0, 2)


def test_an_evaluation_of_the_first_questions_has_no_others_missing(tmp_path, data):
    from r1_aqa_repro.common.files import sha256_of

    path = own_file(tmp_path / "run", data, [["Woman"]] * 3, data_sha256=sha256_of(data), questions=3)
    scores = score_file(path, data).scores
    assert (scores["n"], scores["missing"]) == (3, 0)


class TestBlind:
    """`questions` is what says that an evaluation is complete."""

    @pytest.fixture
    def sighted(self, tmp_path, data):
        return own_file(tmp_path / "run", data, [["Woman"]] * 6, no_audio=False, questions=6)

    @pytest.fixture
    def blind(self, tmp_path, data):
        completions = [["Woman"]] * 3 + [["Man"]] * 3
        return own_file(tmp_path / "run-no-audio", data, completions, no_audio=True, questions=6)

    def test_it_is_set_beside(self, sighted, blind, data):
        assert "blind" not in score_file(sighted, data).scores
        score_file(blind, data)
        scores = score_file(sighted, data).scores
        assert scores["blind"]["accuracy"] == 50
        assert scores["blind"]["share"] == pytest.approx(0.5)
        assert scores["blind"]["share_above_chance"] == pytest.approx((50 - 25) / (100 - 25))
        assert "50.0 % of the score" in (sighted.parent / "report.md").read_text(encoding="utf-8")
        assert "50.0 % of the score" not in (blind.parent / "report.md").read_text(encoding="utf-8")

    def test_another_evaluation_is_not(self, sighted, blind, data):
        score_file(blind, data)
        record = json.loads((blind.parent / "settings.json").read_text(encoding="utf-8"))
        record["settings"]["prompt_style"] = "think"
        write(blind.parent / "settings.json", record)
        assert "blind" not in score_file(sighted, data).scores

    @pytest.mark.parametrize("interrupted", ["blind", "sighted"])
    def test_a_part_is_not(self, sighted, blind, data, interrupted):
        path = blind if interrupted == "blind" else sighted
        whole = path.read_bytes()
        path.write_bytes(b"".join(whole.splitlines(keepends=True)[:4]))
        score_file(blind, data)
        assert "blind" not in score_file(sighted, data).scores
        path.write_bytes(whole)  # gone on with, and killed before it was scored: the scores are still of the part
        assert ("blind" in score_file(sighted, data).scores) == (interrupted == "sighted")
        score_file(blind, data)
        assert "blind" in score_file(sighted, data).scores


def test_scoring_an_evaluation_again_changes_nothing(made_once, tmp_path):
    from eval.mmau import main

    manifest, out = made_once / "held_out" / "manifest.jsonl", tmp_path / "out"
    settings = ("--max-new-tokens", "6", "--batch-size", "6", "--permute-choices", "2", "--limit", "5")
    where = ("--ckpt", str(made_once / "model"), "--data", str(manifest), "--out", str(out), "--device", "cpu")
    assert main([*where, *settings]) == 0
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    assert {"scores.json", "verdicts.jsonl", "report.md"} < set(before)
    scores = score_file(out / "predictions.jsonl", manifest).scores
    assert (scores["n"], scores["asked"], scores["permutation"]["orders"]) == (5, 10, 2)
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before


def benchmark_script(submitted, field):
    """(right, counted) as the benchmark's script counts: records without the field are skipped."""

    def tokens(text):
        return set(re.findall(r"\b\w+\b", text.lower()))

    right = counted = 0
    for record in submitted:
        if field not in record:
            continue
        counted += 1
        said, gold = tokens(record[field]), tokens(record["answer"])
        others = set()
        for choice in record["choices"]:
            if tokens(choice) != gold:
                others |= tokens(choice) - gold
        right += bool(said) and gold <= said and not said & others
    return right, counted


def test_a_submission_scores_the_same_with_the_benchmarks_script(tmp_path, data):
    completions = [["<think>Man</think><answer>Woman</answer>"], ["woman"], ["Man or Woman"], [""], [None]]
    path = own_file(tmp_path / "run", data, completions)
    questions = read_questions(data).records
    predictions = read_predictions(path, questions)
    submitted = submission(data, questions, predictions)
    for field in ("model_prediction", "model_output"):
        assert benchmark_script(submitted, field) == (2, 6)
    scores = score_file(path, data).scores
    assert (scores["total"]["correct"], scores["n"]) == (2, 6)
    for record, original in zip(submitted, records(), strict=True):
        assert {key: record[key] for key in original} == original
        assert set(record) - set(original) == {"model_prediction", "model_output"}


def test_a_submission_holds_the_first_of_repeated_answers(tmp_path, data):
    path = own_file(tmp_path / "run", data, [["Man", "Woman", "Child"]] * 6, repeats=3)
    questions = read_questions(data).records
    submitted = submission(data, questions, read_predictions(path, questions))
    assert [record["model_output"] for record in submitted] == ["Man"] * 6


def test_a_submission_from_a_manifest(tmp_path, data):
    manifest = tmp_path / "manifest.jsonl"
    questions = read_questions(data).records
    write_manifest(manifest, questions)
    predictions = {(one.id, 0): predict(one, "Man", "answer", "") for one in questions}
    submitted = submission(manifest, questions, predictions)
    expected = records(model_prediction="Man", model_output="Man")
    for record in expected:
        record["category"] = "Reasoning"
        record["audio_id"] = Path(record["audio_id"]).name
    assert submitted == expected


def test_a_submission_from_a_prepared_manifest_holds_the_records_it_came_from(tmp_path, data):
    """As the benchmark wants them back: `data_prep.mmau` keeps them beside the manifest."""
    from data_prep import mmau

    given = records(withheld="kept too")
    out = tmp_path / "prepared"
    assert mmau.main(["--questions", str(write(data, given)), "--out", str(out)]) == 0
    questions = read_questions(out / "manifest.jsonl").records
    predictions = {(one.id, 0): predict(one, "Man", "answer", "") for one in questions}
    expected = [record | {"model_prediction": "Man", "model_output": "Man"} for record in given]
    assert submission(out / "manifest.jsonl", questions, predictions) == expected


def test_withheld_answers_give_a_submission_and_no_score(tmp_path):
    given = records()
    for record in given:
        record["answer"] = ""
    test_split = write(tmp_path / "test.json", given)
    theirs = records(5, answer="", model_output="<answer>Woman</answer>")
    scored = score_file(write(tmp_path / "theirs.json", theirs), test_split, tmp_path / "out")
    assert (scored.scores["n"], scored.scores["missing"]) == (6, 1)
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"submission.json", "report.md", "settings.json"}
    assert "answers to these questions are withheld" in (tmp_path / "out" / "report.md").read_text(encoding="utf-8")
    submitted = json.loads((tmp_path / "out" / "submission.json").read_text(encoding="utf-8"))
    assert [record["model_output"] for record in submitted] == ["Woman"] * 5 + [""]
    assert [record["id"] for record in submitted] == [record["id"] for record in given]


def test_some_withheld_answers_are_refused(tmp_path):
    given = records()
    given[2]["answer"] = ""
    theirs = write(tmp_path / "theirs.json", [{"id": "q0", "model_output": "Woman"}])
    with pytest.raises(Refused, match="q2: the question has no answer"):
        score_file(theirs, write(tmp_path / "test.json", given), tmp_path / "out")


def test_questions_that_only_call_themselves_original_are_not_compared(tmp_path):
    manifest = tmp_path / "manifest.jsonl"
    questions = read_questions(write(tmp_path / "mmau.json", records(1000))).records
    write_manifest(manifest, [replace(question, version="original") for question in questions])
    theirs = write(tmp_path / "theirs.json", [{"id": one.id, "model_output": "Woman"} for one in questions])
    assert score_file(theirs, manifest, tmp_path / "out").scores["version"] == "unknown"
    report = (tmp_path / "out" / "report.md").read_text(encoding="utf-8")
    assert "Not compared with 64.5" in report
    assert "no published file, whatever version its records name" in report
    assert "Distance to" not in report
    assert "64.5" not in "".join(re.findall("<svg.*?</svg>", (tmp_path / "out" / "report.html").read_text(), re.DOTALL))


def test_the_published_questions_are_known_in_any_form_and_in_part(tmp_path):
    """A file of the same questions is compared; a part of it has its version and is not compared."""
    file = SHARED_MMAU / "mmau-test-mini.2025-03-25.json"
    if not file.is_file():
        pytest.skip(f"needs {file}")
    questions = read_questions(file).records
    manifest = tmp_path / "manifest.jsonl"
    write_manifest(manifest, questions[::-1])
    theirs = write(tmp_path / "theirs.json", [{"id": one.id, "model_output": one.answer} for one in questions])
    scores = score_file(theirs, manifest, tmp_path / "out").scores
    assert (scores["version"], scores["n"]) == ("original", 1000)
    assert "Distance to 64.5" in (tmp_path / "out" / "report.md").read_text(encoding="utf-8")
    scores = score_file(theirs, manifest, tmp_path / "part", limit=30).scores
    assert (scores["version"], scores["n"]) == ("original", 30)
    assert "this run is on 30" in (tmp_path / "part" / "report.md").read_text(encoding="utf-8")


def test_the_published_file_gets_a_submission(tmp_path):
    file = SHARED_MMAU / "mmau-test-mini.2025-03-25.json"
    if not file.is_file():
        pytest.skip(f"needs {file}")
    given = json.loads(file.read_text(encoding="utf-8"))
    theirs = [record | {"model_output": record["choices"][0]} for record in given]
    scores = score_file(write(tmp_path / "theirs.json", theirs), file, tmp_path / "out").scores
    submitted = json.loads((tmp_path / "out" / "submission.json").read_text(encoding="utf-8"))
    assert benchmark_script(submitted, "model_output") == (scores["total"]["correct"], 1000)
    assert scores["version"] == "original"


def command(*arguments):
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    call = [sys.executable, "-m", "eval.mmau", *map(str, arguments)]
    return subprocess.run(call, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)


def test_a_thousand_predictions_in_seconds(tmp_path):
    many = write(tmp_path / "mmau.json", records(1000))
    theirs = write(tmp_path / "theirs.json", records(1000, model_output="<answer>The woman</answer>"))
    start = time.perf_counter()
    done = command("--predictions", theirs, "--data", many, "--out", tmp_path / "out")
    seconds = time.perf_counter() - start
    assert done.returncode == 0, done.stderr
    assert "100.00" in done.stdout
    assert json.loads((tmp_path / "out" / "scores.json").read_text(encoding="utf-8"))["total"]["correct"] == 1000
    assert seconds < 10  # it takes about one; the margin is for a machine that is busy


def test_the_command_refuses_by_name(tmp_path, data):
    given = records(2)
    given[1] |= {"model_prediction": "Man", "model_output": "Woman"}
    theirs = write(tmp_path / "theirs.json", given)
    done = command("--predictions", theirs, "--data", data, "--out", tmp_path / "out")
    assert done.returncode == 2
    assert "'q1' has two different predictions" in done.stderr
    assert not (tmp_path / "out").exists()


def test_options_of_generating_are_refused_with_predictions(tmp_path, data, capsys):
    from eval.mmau import main

    theirs = str(write(tmp_path / "theirs.json", records(model_output="Woman")))
    for option in (["--repeats", "2"], ["--no-audio"], ["--batch-size", "4"], ["--ckpt", "x"]):
        with pytest.raises(SystemExit) as ended:
            main(["--predictions", theirs, "--data", str(data), *option])
        assert ended.value.code == 2
        assert option[0] in capsys.readouterr().err
    assert main(["--predictions", theirs]) == 2
    assert "Give --data" in capsys.readouterr().err


def test_the_data_of_our_own_predictions_are_known(tmp_path, data):
    path = own_file(tmp_path / "run", data, [["Woman"]] * 6)
    assert score_file(path).scores["total"]["correct"] == 6


def test_scoring_never_loads_torch(tmp_path, data):
    theirs = write(tmp_path / "theirs.json", records(model_output="Woman"))
    code = (
        "import sys; from eval.mmau import main; "
        f"main(['--predictions', {str(theirs)!r}, '--data', {str(data)!r}, '--out', {str(tmp_path / 'out')!r}]); "
        "assert not {'torch', 'transformers', 'librosa', 'pandas'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, env={**os.environ, "PYTHONPATH": str(ROOT)})


@pytest.mark.parametrize("text", [["a dog"], {"a": 1}, 3])
def test_a_prediction_that_is_no_text_is_named(text: Any, tmp_path: Path) -> None:
    data, theirs = tmp_path / "mmau.json", tmp_path / "theirs.json"
    texts = {"question": "What?", "answer": "a dog", "task": "sound", "difficulty": "easy", "category": "Reasoning"}
    record = {"id": "0", "audio_id": "./a.wav", "choices": ["a dog", "a cat"], "sub-category": "s", "split": "test"}
    record |= texts | {"dataset": "d"}
    data.write_text(json.dumps([record]), encoding="utf-8")
    theirs.write_text(json.dumps([record | {"model_output": text}]), encoding="utf-8")
    with pytest.raises(Refused, match="not a text"):
        score_file(theirs, data, tmp_path / "out")
