"""Other benchmarks than MMAU: whose questions they are, their rules, figures, groups and what is handed in."""

import json
import random
import unicodedata
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import soundfile

from eval import compare, sweep
from eval.benchmark import main
from eval.benchmarks import BENCHMARKS, MMAR, MMAU, MMAU_PRO, MMSU, benchmark_of, version_of
from eval.benchmarks.mmsu import letter_or_text
from eval.during_training import _figures
from eval.long_clips import LONG_CLIPS, recorded_long_clips
from eval.predictions import predict
from eval.report.markdown import markdown_report
from eval.results import submission
from eval.rules import answers_of, tallies
from eval.run import prepare
from eval.score_predictions import read_predictions, score_file
from eval.scores import score
from eval.settings import EvalSettings
from eval.targets import against_published
from r1_aqa_repro.common.errors import Refused
from r1_aqa_repro.data.audio import SAMPLING_RATE
from r1_aqa_repro.data.questions import LONGER, read_questions, write_manifest
from tests.benchmark_records import mmar_record, mmau_pro_record, mmsu_record, with_letters
from tests.conftest import MMAR_FILE
from tests.eval.made_up import evaluation_of, make_questions, mmau_records, predictions_of
from tests.files import contents, read_json, read_lines, write_json, write_lines, write_parquet

RECORDS = {"mmar": mmar_record, "mmsu": mmsu_record, "mmau_pro": mmau_pro_record}
AUDIO = {"mmsu": {"audio": "clip.wav"}}  # MMSU's parquet has its clips inside


def data_of(folder, name, n=12):
    """A file of so many records as the benchmark publishes them."""
    if name == "mmau":
        return write_json(folder / "mmau.json", mmau_records(n))
    return write_lines(folder / f"{name}.jsonl", [RECORDS[name](index, **AUDIO.get(name, {})) for index in range(n)])


def answered(folder, data, right, field="model_output", count=None):
    """A file of predictions for the first `count` questions, of which those in `right` are answered rightly."""
    asked = read_questions(data).records[:count]
    texts = [one.answer if number in right else next(c for c in one.choices if c != one.answer)
             for number, one in enumerate(asked)]  # fmt: skip
    given = [{"id": one.id, field: text} for one, text in zip(asked, texts, strict=True)]
    return write_lines(folder / "theirs.jsonl", given)


def evaluated(folder, name, right=(0, 1, 2), n=12, **more):
    folder.mkdir(exist_ok=True)
    data = data_of(folder, name, n)
    return score_file(answered(folder, data, right, **more), data, folder / "out")


# -- MMAR's own file


def split_words(text):
    """Lower-case runs of letters, digits and underscores."""
    return "".join(one if one.isalnum() or one == "_" else " " for one in text.lower()).split()


def mmar_script(answer, prediction, choices):
    """What code/evaluation.py of github.com/ddlBoJack/MMAR (commit 3bce090) decides, condition by condition."""
    said, wanted = split_words(prediction), split_words(answer)
    if not said or any(word not in said for word in wanted):
        return False
    for choice in choices:
        if set(split_words(choice)) != set(wanted):
            own = [word for word in split_words(choice) if word not in wanted]
            if any(word in said for word in own):
                return False
    return True


def in_turn(question):
    """Completions that are hard to read, each with the text in it that is matched; None if there is none."""
    gold, rng = question.answer, random.Random(question.id)
    wrong = rng.choice([one for one in question.choices if one != gold])
    letter, words = "ABCDEF"[question.choices.index(gold)], gold.split()
    plain = [
        gold, wrong, letter, f"({letter})", f"{letter}. {gold}", gold.upper(), f'"{gold}!"',
        f"The answer is {gold}, I think.", f"{gold} or {wrong}", f"not {wrong}", ", ".join(question.choices),
        gold[: len(gold) // 2], words[0], "\n".join(words), "_".join(words), " ".join(words[::-1]), f"{gold} {gold}",
        f"7 {gold} 12", unicodedata.normalize("NFD", gold), f"é{gold}", f"{gold}\u200b", "".join(question.choices),
        f"<answer>{gold}", f"<ans>{gold}</ans>", f"{gold}</answer>", "¿?!", "ﬁ ² Ⅳ",
    ]  # fmt: skip
    return [(text, text.strip() or None) for text in plain] + [
        ("", None),
        (" \n", None),
        ("<answer></answer>", None),
        (f"<answer> {gold} </answer>", gold.strip()),
        (f"<think>{wrong}</think><answer>{gold}</answer>", gold.strip()),
        (f"<answer>{wrong}</answer><answer>{gold}</answer>", wrong.strip()),
        (f"<answer></answer>{gold}", None),
    ]


def originals():
    """The records of MMAR's own file, whose last line has no end."""
    return [json.loads(line) for line in MMAR_FILE.read_text(encoding="utf-8").split("\n") if line]


@pytest.fixture(scope="module")
def mmar():
    """The questions of MMAR's own file."""
    if not MMAR_FILE.is_file():
        pytest.skip(f"{MMAR_FILE} is not there")
    return read_questions(MMAR_FILE).records


class TestMMARsOwnFile:
    def test_verdicts_are_the_scripts_question_by_question(self, mmar):
        asked = {question.id: in_turn(question) for question in mmar}
        times = len(asked[mmar[0].id])
        assert times > 30
        completions = [[text for text, _ in asked[question.id]] for question in mmar]
        scores, records = score(mmar, predictions_of(mmar, completions), "answer", "mmar", times)
        by_id = {question.id: question for question in mmar}
        differing = []
        for record in records:
            question, (text, counts) = by_id[record["id"]], asked[record["id"]][record["repeat"]]
            expected = counts is not None and mmar_script(question.answer, counts, question.choices)
            if record["official"] != expected:
                differing.append((question.id, text))
        assert differing == []
        assert 0.2 < scores["total"]["accuracy"] / 100 < 0.8  # neither all right nor all wrong

    def test_28_wrong_choices_count_as_right(self, mmar):
        wrong = [(choice, one) for one in mmar for choice in one.choices if choice != one.answer]
        assert sum(MMAR.rule(choice, one.answer, one.choices) for choice, one in wrong) == 28
        assert sum(mmar_script(one.answer, choice, one.choices) for choice, one in wrong) == 28

    def test_missing_answers_count_here_and_not_in_the_script(self, mmar, tmp_path):
        """Both published forms of the questions, and their records with predictions, give the same."""
        rng = random.Random(0)
        records = originals()
        with_letter = [{**with_letters(one), "audio": f"{one['id']}.wav"} for one in records]
        lettered = write_lines(tmp_path / "lettered.jsonl", with_letter)
        given = [one | {"answer_prediction": rng.choice(one["choices"])} for one in records if rng.random() < 0.9]
        theirs = write_lines(tmp_path / "theirs.jsonl", given)
        right = sum(mmar_script(one["answer"], one["answer_prediction"], one["choices"]) for one in given)
        folder = score_file(theirs, MMAR_FILE, tmp_path / "out").folder
        scores = read_json(folder / "scores.json")
        assert (scores["benchmark"], scores["version"]) == ("mmar", "mmar")
        assert (scores["total"]["correct"], scores["total"]["n"]) == (right, 1000)
        alone = scores["answered_only"]
        assert (alone["correct"], alone["n"]) == (right, len(given))
        assert alone["accuracy"] == pytest.approx(100 * right / len(given))
        report = (folder / "report.md").read_text(encoding="utf-8")
        assert f"MMAR's code/evaluation.py would print | {alone['accuracy']:.2f}: of the {len(given)}" in report
        assert "| R1-AQA | 55.80 |" in report and "Distance to 47.6" in report and "64.5" not in report
        # the other form
        questions = read_questions(lettered).records
        predictions = read_predictions(theirs, questions)
        assert score(questions, predictions, None, version_of(questions)) == (
            scores,
            read_lines(folder / "verdicts.jsonl"),
        )
        # handed in, a missing answer is an empty one, and counts
        own = read_json(folder / "submission.json")
        assert own[0].keys() == {*records[0], "answer_prediction"}
        for submitted in (own, submission(lettered, questions, predictions)):
            counted = [mmar_script(one["answer"], one["answer_prediction"], one["choices"]) for one in submitted]
            assert (sum(counted), len(counted)) == (right, 1000)

    def test_a_part_or_other_questions_are_not_compared(self, mmar, tmp_path):
        changed = originals()
        changed[3]["question"] += "?"
        data = write_lines(tmp_path / "changed.jsonl", changed)
        theirs = write_lines(tmp_path / "theirs.jsonl", [{"id": one.id, "model_output": one.answer} for one in mmar])
        for file, limit, said in ((MMAR_FILE, 30, "this run is on 30"), (data, 30, "version unknown")):
            score_file(theirs, file, tmp_path / "out", limit=limit)
            report = (tmp_path / "out" / "report.md").read_text(encoding="utf-8")
            assert "Not compared with 47.6" in report and said in report and "Omni-R1" not in report


# -- MMSU's rule


def mmsu_script(response, choices):
    """The letter that mmsu_evaluation.py of github.com/dingdongwang/MMSU_Bench (commit f0ef334) reads, if any."""
    said = response.strip().replace("\n", "")
    if said and said[0] in "ABCD":
        return said[0]
    return said[-2] if len(said) > 1 and said[-2] in "ABCD" else None


@pytest.mark.parametrize(
    "answer",
    ["A", "B", "C.", "D) no", "(B)", "The answer is C.", "the answer is c.", "b", "", "None", "B. rising", "Cheerful",
     "xB.", "x", "E", "\nD", "A or B", "answer: B\n"],
)  # fmt: skip
def test_mmsu_reads_letters_as_its_script(answer):
    choices = ("sad", "happy", "angry", "calm")
    letter = mmsu_script(answer, choices)
    for place, gold in enumerate(choices):
        assert letter_or_text(answer, gold, choices) == (letter == "ABCD"[place])


@pytest.mark.parametrize(
    ("answer", "choices", "meant"),
    [
        ("Disgust", ("Anger", "Disgust", "Calm"), "Disgust"),  # not D, which there is none of
        ("<b>", ("Anger", "Disgust"), None),
        (" 'anger.' ", ("Calm", "Anger"), "Anger"),
        ("A dog", ("A cat", "A dog"), "A dog"),  # not A
        ("Both", ("up", "down"), "down"),  # B, as the script reads it
        ("D", ("up", "down"), None),
        ("C", ("C", "A", "B", "D"), "C"),  # the text before the letter
    ],
)
def test_mmsu_takes_a_choices_text_for_its_letter(answer, choices, meant):
    assert [one for one in choices if letter_or_text(answer, one, choices)] == ([] if meant is None else [meant])


def test_mmsu_letters_are_of_the_order_as_asked():
    (question,) = make_questions(1, dataset="MMSU")
    predictions = predictions_of([question], [["B", "B", "cat", "cat"]], [("dog", "cat"), ("cat", "dog")] * 2)
    scores, records = score([question], predictions, "answer", "unknown", times=4)
    assert [one["official"] for one in records] == [True, False, True, True]
    assert scores["permutation"]["orders"] == 2


# -- all benchmarks


def test_mmsus_own_rule_is_the_official_one_among_other_rules(tmp_path):
    evaluation = evaluated(tmp_path, "mmsu", right=range(5))
    questions = evaluation.questions
    said = [one.answer if index < 5 else "D" for index, one in enumerate(questions)]
    letters = replace(evaluation, predictions=predictions_of(questions, said))
    answers = answers_of(letters)
    assert tallies(letters, answers)["official"] == letters.scores["total"]
    assert letters.scores["total"]["correct"] == 5 + sum(one.answer == "dipping" for one in questions[5:])
    assert answers[5].readings["official"].saw == "takes the answer for 'dipping'"


@pytest.mark.parametrize("name", BENCHMARKS)
def test_questions_tell_their_benchmark(tmp_path, name):
    questions = read_questions(data_of(tmp_path, name)).records
    assert benchmark_of(questions).name == name
    assert benchmark_of([*questions, *make_questions(1)]) is MMAU  # of several sources


@pytest.mark.parametrize("name", BENCHMARKS)
def test_figures_stand_in_the_benchmarks_groups(tmp_path, name):
    evaluation, benchmark = evaluated(tmp_path, name, right=range(5)), BENCHMARKS[name]
    scores = read_json(tmp_path / "out" / "scores.json")
    assert (scores["total"]["correct"], scores["n"]) == (5, 12)
    assert set(scores["matchers"]) == {"official", "strict", "letter_aware"}
    assert ("benchmark" in scores) == (name != "mmau")
    page = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    assert (f"<p>Benchmark: {benchmark.title}, version unknown</p>" in page) == (name in ("mmar", "mmsu"))
    for key, title in benchmark.groups.items():
        labels = {getattr(one, key) for one in evaluation.questions} - {None}
        assert set(scores[key]) == labels
        with_label = [one for one in evaluation.questions if getattr(one, key) in labels]
        assert sum(one["n"] for one in scores[key].values()) == len(with_label)
        assert (f"By {title}</h2>" in page) == bool(labels)
    others = {"task", "difficulty", "modality", "language"} - set(benchmark.groups)
    assert not others & set(scores)


def test_labels_stand_in_the_benchmarks_order(tmp_path):
    scores = evaluated(tmp_path, "mmar").scores
    assert list(scores["modality"]) == ["music", "speech", "mix-sound-speech"] != sorted(scores["modality"])
    curves = [name for name in _figures(scores, MMAR.main_group) if name.startswith("accuracy_")]  # while training
    assert curves == [f"accuracy_{label}" for label in scores["modality"]]


@pytest.mark.parametrize(
    ("name", "of", "remedy"),
    [
        ("mmau", "mmar", "python -m eval.benchmark mmar"),
        ("mmar", "mmau", "python -m data_prep.mmar"),
        ("mmar", "mmsu", "python -m eval.benchmark mmsu"),
        ("mmau_pro", "mmar", "python -m eval.benchmark mmar"),
        ("mmsu", "mmau", "python -m data_prep.mmsu"),
    ],
)
def test_questions_of_another_benchmark_are_refused_with_the_remedy(tmp_path, capsys, name, of, remedy):
    data = data_of(tmp_path, of)
    theirs = answered(tmp_path, data, {0})
    given = ["--predictions", str(theirs), "--data", str(data), "--out", str(tmp_path / "out")]
    assert main([name, *given]) == 2
    message = capsys.readouterr().err
    assert str(data) in message and remedy in message
    assert not (tmp_path / "out").exists()
    assert main([of, *given]) == 0


@pytest.mark.parametrize("name", BENCHMARKS)
def test_parquet_files_are_prepared_by_the_benchmarks_own_command(monkeypatch, name):
    asked = []
    monkeypatch.setattr(f"data_prep.{name}.prepare", lambda *given: asked.append(given))
    BENCHMARKS[name].prepare([Path("test.parquet")], [], Path("out"))
    assert asked == [([Path("test.parquet")], [], Path("out"))]


def test_the_rows_of_a_parquet_file_tell_their_benchmark(checkpoint, manifest, tmp_path, capsys):
    """Where none is named, as in a sweep, they are not taken for MMAU's; where MMAU is, they are refused."""
    clip = (manifest.parent / read_lines(manifest)[0]["audio_path"]).read_bytes()
    rows = [with_letters(mmar_record(n)) | {"audio": {"bytes": clip, "path": f"{n}.wav"}} for n in range(3)]
    parquet = write_parquet(tmp_path / "rows.parquet", rows)
    evaluation = prepare(EvalSettings(ckpt=str(checkpoint), data=parquet, device="cpu")).evaluation
    assert evaluation.benchmark is MMAR
    assert evaluation.folder == checkpoint / "eval" / "mmar"
    assert [one.answer for one in evaluation.questions] == [mmar_record(n)["answer"] for n in range(3)]
    assert main(["mmau", "--ckpt", str(checkpoint), "--data", str(parquet), "--out", str(tmp_path / "out")]) == 2
    assert "python -m eval.benchmark mmar" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_name_that_is_none_is_refused_at_once(capsys):
    with pytest.raises(SystemExit) as ended:
        main(["mmlu", "--ckpt", "x"])
    assert ended.value.code == 2
    assert "mmau_pro" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "field"), [("mmar", "answer_prediction"), ("mmsu", "response"), ("mmau_pro", "model_output")]
)
def test_the_field_that_the_benchmarks_script_reads_is_read(tmp_path, name, field):
    assert evaluated(tmp_path, name, right=range(7), field=field).scores["total"]["correct"] == 7


def test_a_field_of_another_benchmark_is_no_prediction(tmp_path):
    with pytest.raises(Refused, match="answer_prediction or model_prediction or model_output"):
        evaluated(tmp_path, "mmar", field="response")


def test_whole_records_of_a_benchmark_are_read_in_all_its_forms(tmp_path):
    """Also those whose answer is a letter; one of another question is refused all the same."""
    for name in RECORDS:
        data = data_of(tmp_path, name)
        questions = read_questions(data).records
        records = [record | {"model_output": "?"} for record in read_lines(data)]
        lettered = [with_letters(one) | {"model_output": "?"} for one in records] if name == "mmar" else records
        for given in (records, lettered):
            assert len(read_predictions(write_lines(tmp_path / "theirs.jsonl", given), questions)) == 12
        changed = [records[0], RECORDS[name](1, **AUDIO.get(name, {}), question="What else?") | {"model_output": "?"}]
        with pytest.raises(Refused, match=r"the question of .* is not that of the data"):
            read_predictions(write_lines(tmp_path / "theirs.jsonl", changed), questions)


class TestHandIn:
    def test_mmsu_is_handed_in_as_letters_in_lines(self, tmp_path):
        """The letters of its own records, in which a place may be empty; null where no choice is meant."""
        two = {"choice_a": None, "choice_c": "", "answer": "dipping"}
        records = [mmsu_record(0), mmsu_record(1, **two), mmsu_record(2), mmsu_record(3), mmsu_record(4)]
        records = [{**one, "audio": "clip.wav"} for one in records]
        for one in records:
            one["answer_gt"] = one.pop("answer")
        data = write_lines(tmp_path / "mmsu.jsonl", records)
        texts = ["rising", "dipping", "A", "who knows"]
        given = [{"id": one["id"], "response": text} for one, text in zip(records, texts, strict=False)]
        evaluation = score_file(write_lines(tmp_path / "theirs.jsonl", given), data, tmp_path / "out")
        submitted = read_lines(tmp_path / "out" / "submission.jsonl")
        assert [one["response"] for one in submitted] == ["A", "D", "A", None, None]
        assert [{key: one[key] for key in one if key != "response"} for one in submitted] == records
        counted = [one for one in submitted if one["response"] and mmsu_script(one["response"], ())]
        right = [one for one in counted if one[f"choice_{one['response'].lower()}"] == one["answer_gt"]]
        assert len(right) == evaluation.scores["total"]["correct"] == 2

    @pytest.mark.parametrize("name", ["mmar", "mmsu"])
    def test_from_a_manifest_it_is_as_the_benchmark_writes_questions(self, tmp_path, name):
        data = data_of(tmp_path, name)
        write_manifest(tmp_path / "manifest.jsonl", read_questions(data).records)
        theirs = answered(tmp_path, data, range(12))
        folder = score_file(theirs, tmp_path / "manifest.jsonl", tmp_path / "out").folder
        if name == "mmar":
            expected = [{key: one[key] for key in one if key not in ("url", "timestamp") and one[key] is not None}
                        | {"answer_prediction": one["answer"]} for one in read_lines(data)]  # fmt: skip
            assert read_json(folder / "submission.json") == expected
            return
        submitted = read_lines(folder / "submission.jsonl")
        assert all(one[f"choice_{one['response'].lower()}"] == one["answer_gt"] for one in submitted)
        assert {"task_name", "category", "sub-category"} <= set(submitted[0])

    def test_of_a_part_nothing_is_handed_in(self, tmp_path):
        assert not [name for name in contents(evaluated(tmp_path, "mmau_pro").folder) if "submission" in name]


class TestPublishedFigures:
    @pytest.mark.parametrize(
        ("n", "tasks", "version"), [(5000, 47, "mmsu"), (4999, 47, "unknown"), (5000, 46, "unknown")]
    )
    def test_mmsu_is_known_by_its_numbers(self, n, tasks, version):
        questions = make_questions(n, dataset="MMSU")
        assert (
            version_of([replace(one, task=f"task {index % tasks}") for index, one in enumerate(questions)]) == version
        )

    def test_mmsus_stand_beside_all_of_its_questions_alone(self, tmp_path):
        scores = evaluated(tmp_path, "mmsu").scores
        assert "54.1: the published figures are on version mmsu" in against_published(scores, {}, MMSU).reason
        whole = scores | {"version": "mmsu", "n": 5000, "total": {**scores["total"], "n": 5000, "correct": 2705}}
        whole["total"] |= {"accuracy": 54.1, "ci95": [52.7, 55.5]}
        compared = against_published(whole, {}, MMSU)
        assert [row[-1] for row in compared.rows] == [30.4, 54.1, 54.1]
        assert compared.sentences[0].startswith("Distance to 54.1: +0.00 points")
        assert "without audio" in against_published(whole, {"no_audio": True}, MMSU).reason


# -- MMAU-Pro: a part


class TestPart:
    def test_it_is_named_everywhere_with_what_was_left_out(self, tmp_path):
        write_json(tmp_path / "prep_report.json", {"dropped": {"several clips": ["a", "b"], "no choices": ["c"]}})
        evaluation = evaluated(tmp_path, "mmau_pro")
        scores = read_json(tmp_path / "out" / "scores.json")
        assert scores["left_out"] == {"several clips": 2, "no choices": 1}
        files = {name: (evaluation.folder / name).read_text(encoding="utf-8") for name in ("report.md", "report.html")}
        assert "| several clips | 2 |" in files["report.md"]
        assert "several clips (2), no choices (1)" in files["report.html"]
        for text in (*files.values(), scores["part"]):
            assert "A part of MMAU-Pro" in text and "not the MMAU-Pro score" in text.replace("\n", " ")
        comparison = compare.compare([compare.read_run(evaluation.folder) for _ in range(2)])
        assert comparison["benchmark"] == "mmau_pro"
        assert "**A part of MMAU-Pro" in compare.markdown(comparison)
        assert "A part of MMAU-Pro" in "".join(swept(tmp_path, evaluation)["sentences"])

    def test_it_is_what_the_preparation_says(self, tmp_path):
        records = [mmau_pro_record(index) for index in range(4)]
        records[2]["audio_path"] *= 2
        records[3]["choices"] = []
        (tmp_path / "data").mkdir()
        for index, seconds in ((0, 1), (1, 31)):
            soundfile.write(tmp_path / f"data/clip-{index}.wav", [0.1] * (seconds * 8000), 8000)
        data = write_lines(tmp_path / "test.jsonl", records)
        out = tmp_path / "prepared"
        MMAU_PRO.prepare([data], [tmp_path / "data"], out)
        scores = score_file(answered(tmp_path, out / "manifest.jsonl", {0}), out / "manifest.jsonl").scores
        assert (scores["n"], scores["total"]["correct"]) == (1, 1)
        assert sorted(scores["left_out"].values()) == [1, 1, 1]
        assert {"several clips", "no choices"} < set(scores["left_out"])

    def test_without_a_report_of_the_preparation_that_is_said(self, tmp_path):
        evaluation = evaluated(tmp_path, "mmau_pro")
        assert evaluation.scores["left_out"] is None
        assert "Not known: there is no prep_report.json" in (evaluation.folder / "report.md").read_text("utf-8")

    def test_a_damaged_report_of_the_preparation_is_refused(self, tmp_path):
        write_json(tmp_path / "prep_report.json", {"dropped": ["a"]})
        with pytest.raises(Refused, match="what was dropped"):
            evaluated(tmp_path, "mmau_pro")


# -- comparing, sweeping


def swept(folder, *evaluations):
    """sweep.json of evaluations as if each were a checkpoint's."""
    plans = [SimpleNamespace(evaluation=one) for one in evaluations]
    points = [sweep.Point(f"checkpoint-{step}", step, plan, True) for step, plan in enumerate(plans, start=1)]
    return sweep.summary(folder, folder, points)


def test_runs_on_mmar_are_compared_and_swept_by_modality(tmp_path):
    runs = [evaluated(tmp_path / name, "mmar", right) for name, right in (("a", {0, 1}), ("b", {1, 2, 3, 4}))]
    comparison = compare.compare([compare.read_run(one.folder) for one in runs])
    (pair,) = comparison["comparisons"]
    assert (pair["total"]["first_only"], pair["total"]["second_only"]) == (1, 3)
    assert set(pair["modality"]) == {"speech", "music", "mix-sound-speech"} and "task" not in pair
    assert "### By modality" in compare.markdown(comparison)
    settings = {"prompt_style": "answer", "no_audio": False}
    found = swept(tmp_path, *[replace(one, settings=settings) for one in runs])
    assert (found["benchmark"], found["best"]) == ("mmar", "checkpoint-2")
    assert set(found["points"][0]["modality"]) == set(pair["modality"])
    assert "| model | music | speech | mix-sound-speech | total %" in sweep.markdown(found)
    sweep.write_curve(tmp_path / "sweep.svg", found)
    assert (tmp_path / "sweep.svg").stat().st_size > 0


# -- clips that are not heard to their end


def test_clips_that_a_manifest_flags_are_counted(tmp_path):
    questions = make_questions(4)
    flagged = [*questions[:2], *(replace(one, flags=(LONGER,)) for one in questions[2:])]
    predictions = predictions_of(questions, ["cat"] * 4)
    plain, long = (evaluation_of(asked, predictions, {}, folder=tmp_path) for asked in (questions, flagged))
    assert "beyond_window" not in plain.scores
    assert long.scores["beyond_window"] == ["q2", "q3"]
    assert "heard in part" not in markdown_report(plain)
    report = markdown_report(long)
    assert "| heard in part | 2 of the questions: the first 30 s of their clip |" in report
    assert "| q3 | more than 30 |" in report


def test_an_evaluation_with_a_model(checkpoint, manifest, capsys):
    """On another benchmark's manifest: where it goes, what clips are not heard to their end, and that it goes on."""
    lines = [one | {"dataset": "MMAR", "modality": "sound"} for one in read_lines(manifest)]
    write_lines(manifest, lines)
    clip = manifest.parent / lines[1]["audio_path"]
    samples, rate = soundfile.read(clip)
    window = 3  # seconds, of the tiny model
    soundfile.write(clip, [*samples, *[0.0] * (4 * SAMPLING_RATE)], rate)
    given = ["mmar", "--ckpt", checkpoint, "--data", manifest, "--max-new-tokens", 6, "--device", "cpu"]
    assert main(list(map(str, given))) == 0
    out = checkpoint / "eval" / "mmar"
    long = recorded_long_clips(out)
    assert (long.window_seconds, list(long.seconds)) == (window, [lines[1]["id"]])
    assert long.seconds[lines[1]["id"]] == pytest.approx(len(samples) / rate + 4)
    scores = read_json(out / "scores.json")
    assert (scores["benchmark"], list(scores["modality"])) == ("mmar", ["sound"])
    assert scores["beyond_window"] == [lines[1]["id"]]
    for name in ("report.md", "report.html"):
        assert "first 3 s" in (out / name).read_text(encoding="utf-8")
    before = contents(out)
    assert {LONG_CLIPS, "submission.json"} <= set(before)
    assert main(["mmar", "--predictions", str(out / "predictions.jsonl")]) == 0
    assert contents(out) == before
    (out / "predictions.jsonl").write_bytes(before["predictions.jsonl"][:900])
    assert main(list(map(str, given))) == 0
    assert contents(out) == before
    capsys.readouterr()
    assert main(list(map(str, ["mmsu", *given[1:]]))) == 2
    assert "python -m eval.benchmark mmar" in capsys.readouterr().err


def test_damaged_lengths_are_refused(tmp_path):
    assert recorded_long_clips(tmp_path).seconds == {}
    for content in (
        {"seconds": {}},
        *({"window_seconds": 30, "seconds": one} for one in ({"a": "long"}, [], {"a": 0})),
    ):
        write_json(tmp_path / LONG_CLIPS, content)
        with pytest.raises(Refused, match="damaged"):
            recorded_long_clips(tmp_path)


def test_only_what_has_a_prediction_counts_for_the_script():
    """With repeats: the share of the predictions that are there; an empty one is there."""
    questions = make_questions(4)
    completions = [["cat", "cat"], ["cat", None], ["", "dog"], [None, None]]
    scores, _ = score(questions, predictions_of(questions, completions), "answer", "original", times=2)
    alone = scores["answered_only"]
    assert (alone["correct"], alone["n"]) == (2, 3)
    assert (scores["total"]["correct"], scores["total"]["n"]) == (1.5, 4)
    for version, given in (
        ("embedded", completions),
        ("unknown", completions),  # of no benchmark, whose script nobody runs on them
        ("original", [["cat"] * 2] * 4),
        ("original", [[None] * 2] * 4),
    ):
        assert "answered_only" not in score(questions, predictions_of(questions, given), "answer", version, times=2)[0]
    pro = [predict(one, "cat", "answer", "") for one in make_questions(3, dataset="MMAU-Pro")]
    scores, _ = score(make_questions(4, dataset="MMAU-Pro"), {one.key: one for one in pro}, "answer", "unknown")
    assert "answered_only" not in scores
