"""Several benchmarks on one checkpoint, before and after its training: what is refused, shared, gone on with, told."""

import shutil
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from markupsafe import escape

import data_prep.mmau
import eval.generation
import eval.run
from eval.benchmarks import BENCHMARKS, MMAU
from eval.benchmarks.mmau import TARGET
from eval.mmau import main as evaluate
from eval.run import Plan
from eval.score_predictions import score_file
from eval.settings import EvalSettings
from eval.suite import Entry, Row, _arguments, _figures, _plans, main, read_entries, summary, verdict, write_suite
from r1_aqa_repro.common.errors import Refused
from r1_aqa_repro.common.intervals import paired_gain
from r1_aqa_repro.data.yaml_file import read_yaml
from r1_aqa_repro.model.loading import load_model
from tests.benchmark_records import mmar_record
from tests.conftest import ROOT
from tests.eval.made_up import evaluation_of, make_questions, mmau_records, predictions_of
from tests.files import contents, read_json, read_lines, write_json, write_lines
from tests.hostile_texts import HOSTILE

SETTINGS = {
    "prompt_style": "answer", "decoding": "greedy", "repeats": 1, "permute_choices": 1, "max_new_tokens": 256,
    "batch_size": "auto", "audio_channel": "first", "no_audio": False, "dtype": "float32",
}  # fmt: skip
# right answers of 8 by checkpoint: as asked about `home`, about `home` without audio, and about `away`
RIGHT = {"after": {"home": 7, "silence": 3, "away": 1}, "before": {"home": 1, "silence": 3, "away": 2}}


def config(folder, evaluations, **more):
    """JSON is YAML."""
    return write_json(folder / "suite.yaml", {**more, "evaluations": evaluations})


# -- with models


@pytest.fixture(scope="module")
def checkpoints(model, tmp_path_factory):
    """Two tiny checkpoints with different weights: `before` and `after`."""
    folder = tmp_path_factory.mktemp("suite")
    for name in RIGHT:
        shutil.copytree(model, folder / name)
    changed = load_model(model)
    with torch.no_grad():
        changed.lm_head.weight.mul_(2)
    changed.save_pretrained(folder / "after")
    return folder


@pytest.fixture
def suite(checkpoints, manifest, tmp_path, monkeypatch):
    """The command on two benchmarks and a control, with the folders of the models that are loaded, the questions that
    are put to them, the checkpoints that are hashed, and the number of a batch at which somebody presses Ctrl-C."""
    write_lines(manifest.with_name("away.jsonl"), [one | {"dataset": "MMAR"} for one in read_lines(manifest)])
    numbers = {question["id"]: number for number, question in enumerate(read_lines(manifest))}
    load, digest = eval.generation.Generator.load, eval.run.model_digest

    class Suite:
        def __init__(self):
            self.loaded, self.asked, self.hashed, self.stop = [], [], [], None
            shared = {"limit": 8, "batch_size": 4, "device": "cpu"}
            home = {"benchmark": "mmau", "data": str(manifest), "max_new_tokens": 4, **shared}
            away = {"benchmark": "mmar", "data": str(manifest.with_name("away.jsonl")), "max_new_tokens": 6, **shared}
            silent = home | {"no_audio": True}
            self.evaluations = {"home": home, "home-no-audio": silent, "away": away | {"prompt_style": "think"}}
            self.out = tmp_path / "out"

        def __call__(self, *more):
            file = config(tmp_path, self.evaluations, before=str(checkpoints / "before"))
            given = ["--config", file, "--ckpt", checkpoints / "after", "--out", self.out, *more]
            return main(list(map(str, given)))

    suite = Suite()

    def load_and_note(settings, own_decoding):
        suite.loaded.append(Path(settings.ckpt).name)
        return load(settings, own_decoding)

    def hash_and_note(folder, base=None):
        suite.hashed.append(Path(folder).name)
        return digest(folder, base)

    def answer(self, prompts, warn):
        """The evaluation is told by how the model is asked: a shared one has to be asked anew each time."""
        how = (self.style, self.no_audio, self.config.max_new_tokens)
        which = {("answer", False, 4): "home", ("answer", True, 4): "silence", ("think", False, 6): "away"}[how]
        if suite.stop == len(suite.asked) // 4:
            raise KeyboardInterrupt
        suite.asked += [(suite.loaded[-1], which, one.question.id) for one in prompts]
        right = RIGHT[suite.loaded[-1]][which]
        said = [one.question.answer if numbers[one.question.id] < right else "none" for one in prompts]
        return [[f"<answer>{text}</answer>"] for text in said]

    monkeypatch.setattr(eval.generation.Generator, "load", load_and_note)
    monkeypatch.setattr(eval.generation.Generator, "answer", answer)
    monkeypatch.setattr(eval.run, "model_digest", hash_and_note)
    return suite


def test_a_whole_suite(suite, capsys):
    suite.stop = 3  # within the second of six evaluations
    assert suite() == 130
    assert (suite.loaded, not (suite.out / "suite.json").exists()) == (["after"], True)
    suite.stop = None
    assert suite() == 0
    assert suite.loaded == ["after", "after", "before"]  # each once for all of its evaluations
    assert suite.hashed == ["after", "before"] * 2
    assert len(suite.asked) == 2 * 3 * 8 and set(Counter(suite.asked).values()) == {1}  # nothing was done twice

    found = read_json(suite.out / "suite.json")
    home, control, away = found["evaluations"]
    for one, which in ((home, "home"), (control, "silence"), (away, "away")):
        for figures, checkpoint in ((one, "after"), (one["before"], "before")):
            scores = read_json(suite.out / figures["folder"] / "scores.json")
            assert figures["total"] == scores["total"]
            assert scores["total"]["correct"] == RIGHT[checkpoint][which]
    assert (home["folder"], away["before"]["folder"]) == ("home", "before/away")
    assert home["blind"]["accuracy"] == home["before"]["blind"]["accuracy"] == 100 * 3 / 8
    total = home["comparison"]["total"]
    assert (total["difference"], total["first_only"], total["second_only"]) == (75.0, 0, 6)
    assert total["p"] == pytest.approx(2 / 2**6)
    assert (home["comparison"]["verdict"], control["comparison"]["verdict"]) == ("gained", "not told apart")
    total = away["comparison"]["total"]
    assert (total["difference"], total["first_only"], total["second_only"]) == (-12.5, 1, 0)
    assert (total["p"], away["comparison"]["verdict"]) == (1.0, "not told apart")  # 1 of 8 is nothing
    assert found["sentences"][0].startswith("Gained: home (+75.00 points, ")
    said = capsys.readouterr()
    assert "[6/6]" in said.err and "Not told apart" in said.out

    text = (suite.out / "suite.md").read_text(encoding="utf-8")
    assert "| evaluation | prompt_style | max_new_tokens | no_audio | data |" in text and "batch\\_size 4" in text
    before = contents(suite.out)
    assert {"suite.md", "suite.html", "home/report.html", "before/home-no-audio/scores.json"} <= set(before)
    assert evaluate(["--predictions", str(suite.out / "home" / "predictions.jsonl")]) == 0  # it is an ordinary one
    assert suite() == 0
    assert (len(suite.loaded), contents(suite.out)) == (3, before)

    suite.evaluations["away"]["max_new_tokens"] = 5
    suite.evaluations["third"] = suite.evaluations["home"]
    assert suite() == 2  # of the last one, before the model of any other is loaded
    assert "max_new_tokens" in capsys.readouterr().err and len(suite.loaded) == 3


def test_all_data_are_checked_first(suite, manifest, tmp_path, capsys):
    suite.evaluations["home"]["data"] = str(tmp_path / "gone.json")
    suite.evaluations["away"]["data"] = str(write_lines(tmp_path / "away.jsonl", ['{"id": 1}']))
    suite.evaluations["other"] = suite.evaluations["home"] | {"benchmark": "mmsu", "data": str(manifest)}
    del suite.evaluations["home-no-audio"]
    assert suite() == 2
    said = capsys.readouterr().err
    for what in (f"{tmp_path / 'gone.json'}: ", f"{tmp_path / 'away.jsonl'}", "are not MMSU's"):
        assert said.count(what) == 1
    assert suite.loaded == [] and not suite.out.exists()
    assert suite("--ckpt", tmp_path / "nowhere", "--before", tmp_path / "gone") == 2
    said = capsys.readouterr().err
    assert str(tmp_path / "nowhere") in said and f"{tmp_path / 'gone'}: " in said


def test_a_checkpoint_is_not_compared_with_itself(suite, checkpoints, tmp_path, capsys):
    """Its name may be another: the files tell."""
    same = shutil.copytree(checkpoints / "after", tmp_path / "copy")
    assert suite("--before", same) == 2
    assert f"--before: {same} is the same model as {checkpoints / 'after'}" in capsys.readouterr().err
    assert suite.loaded == [] and not (suite.out / "home" / "predictions.jsonl").exists()


def test_a_parquet_file_is_prepared_once(checkpoints, manifest, tmp_path, monkeypatch):
    prepared = []

    def prepare(questions, audio, out):
        prepared.append(out)
        lines = [one | {"audio_path": str(manifest.parent / one["audio_path"])} for one in read_lines(manifest)]
        out.mkdir(parents=True)
        write_lines(out / "manifest.jsonl", lines)

    monkeypatch.setattr(data_prep.mmau, "prepare", prepare)
    settings = {"data": tmp_path / "questions.parquet", "limit": 2, "device": "cpu"}
    settings["data"].touch()
    entries = [Entry("home", MMAU, settings), Entry("home-no-audio", MMAU, settings | {"no_audio": True})]
    out, rows = _plans(entries, str(checkpoints / "after"), str(checkpoints / "before"), tmp_path / "out")
    plans = [plan for row in rows for plan in (row.after, row.before)]
    assert prepared == [out / "home" / "data"]
    assert {plan.evaluation.paths["data"] for plan in plans} == {str(out / "home" / "data" / "manifest.jsonl")}
    folders = [str(plan.evaluation.folder.relative_to(out)) for plan in plans]
    assert folders == ["home", "before/home", "home-no-audio", "before/home-no-audio"]


# -- configurations


def test_all_that_is_wrong_with_a_config_is_told(tmp_path, capsys):
    plain = {"benchmark": "mmau", "limit": 5}
    evaluations = {
        "a": {"benchmark": "mmou"},
        "b": {"data": "x.json"},
        "c": {"benchmark": "mmau", "max_tokens": 5, "no_audio": "yes", "limit": 0, "decoding": "beam", "data": None},
        "before": plain,
        "../d": plain,
        "e": "mmau",
        "f": plain | {"ckpt": "another"},
        "g": plain,
        "g-no-audio": {"benchmark": "mmar", "limit": 6},
        "h": plain,
        "h-no-audio": plain | {"no_audio": True},
    }
    file = config(tmp_path, evaluations, ckpt=["x"], model="y")
    assert main(["--config", str(file), "--only", "g,z"]) == 2
    said = capsys.readouterr().err
    for place, what in {
        "ckpt": "['x'] is no text and no number",
        "model": "there is no such key",
        "evaluations.a: benchmark": "mmou is not one of mmau, mmar",
        "evaluations.b": "it names no benchmark",
        "evaluations.c: max_tokens": "there is no such key",
        "evaluations.c: no_audio": "'yes' is not true or false",
        "evaluations.c: limit": "0 is not from 1 to",
        "evaluations.c: decoding": "beam is not one of greedy",
        "evaluations.c: data": "None is no text",
        "evaluations.before": "it cannot have this name",
        "evaluations.../d": "it cannot have this name",
        "evaluations.e": "it names no benchmark",
        "evaluations.f: ckpt": "there is no such key",
        "evaluations.g-no-audio": "it is not g without audio: limit, benchmark, no_audio would",
    }.items():
        assert f"error: {file}: {place}: {what}" in said
    assert "--only: there is no evaluation z" in said
    assert said.count("error:") == 15
    assert "h-no-audio: it is not" not in said


def test_what_is_absent_is_told(tmp_path, capsys):
    file = config(tmp_path, {})
    assert main(["--config", str(file)]) == 2
    assert "there are no evaluations" in capsys.readouterr().err
    file = config(tmp_path, {name: {"benchmark": "mmau"} for name in "abc"}, ckpt="model")
    given, entries = _arguments(["--config", str(file), "--only", "c,a", "--before", "base"])
    assert (given.ckpt, given.before, [one.name for one in entries]) == ("model", "base", ["a", "c"])
    with pytest.raises(SystemExit):
        main(["--config", str(config(tmp_path, {"a": {"benchmark": "mmau"}}))])
    assert "required: --ckpt" in capsys.readouterr().err


def test_the_published_config_is_sound():
    file = ROOT / "configs" / "suite.yaml"
    entries = read_entries(str(file), read_yaml(file)["evaluations"])
    assert {one.benchmark.name for one in entries} == set(BENCHMARKS)
    assert {one.settings["data"] for one in entries} == {Path("data") / name / "manifest.jsonl" for name in BENCHMARKS}
    for one in entries:
        settings = EvalSettings(ckpt="any", **one.settings)
        assert (settings.prompt_style, settings.max_new_tokens, settings.decoding) == ("answer", 256, "greedy")
        assert settings.no_audio == (one.name == "mmau-no-audio")


# -- what is told, of predictions that are there


def plan_of(folder, data, right, checkpoint="model", **settings):
    """An evaluation in which the first so many questions, or those in `right`, are answered rightly."""
    records, gold = data
    folder.mkdir(parents=True)
    file = (write_lines if "modality" in records[0] else write_json)(folder.parent / f"{folder.name}.data", records)
    wrong = {one["id"]: next(choice for choice in one["choices"] if choice != one["answer"]) for one in records}
    given = [
        {"id": one["id"], "model_output": one["answer"] if number in right else wrong[one["id"]]}
        for number, one in enumerate(records)
    ]
    evaluation = score_file(write_json(folder / "theirs.json", given), file, folder)
    paths = {"checkpoint": checkpoint, "data": gold}
    return Plan(replace(evaluation, settings=SETTINGS | settings, paths=paths), EvalSettings(ckpt=checkpoint))


def pair(tmp_path, name, records, before, after, checkpoints=("old", "new"), data="some.json"):
    plans = [
        plan_of(tmp_path / which / name, (records, data), set(right), checkpoint)
        for which, right, checkpoint in zip(("before", "after"), (before, after), checkpoints, strict=True)
    ]
    return Row(name, plans[1], plans[0])


@pytest.mark.parametrize(
    ("ci95", "said"),
    [
        ([0.1, 5.0], "gained"),
        ([-5.0, -0.1], "lost"),
        ([0.0, 5.0], "not told apart"),
        ([-5.0, 0.0], "not told apart"),
        ([-1.0, 1.0], "not told apart"),
    ],
)
def test_the_word_is_that_of_the_interval(ci95, said):
    assert verdict(ci95) == said


def test_differences_by_hand(tmp_path):
    rows = [
        pair(tmp_path, "home", mmau_records(12), {0, 1, 2, 3}, {2, 3, 4, 5, 6, 7}),
        pair(tmp_path, "up", mmau_records(12), (), range(12)),
        pair(tmp_path, "away", [mmar_record(index) for index in range(12)], range(12), ()),
    ]
    found = summary(tmp_path / "after", rows)
    assert (found["ckpt"], found["before"]) == ("new", "old")
    home, up, away = [one["comparison"] for one in found["evaluations"]]
    total = home["total"]
    assert (total["n"], total["first_only"], total["second_only"]) == (12, 2, 4)
    assert (total["first"], total["second"]) == (pytest.approx(100 / 3), 50)
    expected = paired_gain([1, 1, 1, 1] + 8 * [0], [0, 0, 1, 1, 1, 1, 1, 1] + 4 * [0])
    assert [total["difference"], *total["ci95"]] == [pytest.approx(100 * value) for value in expected]
    assert total["difference"] == pytest.approx(100 * 2 / 12)
    assert total["p"] == pytest.approx(2 * (1 + 6 + 15) / 2**6)
    assert (home["verdict"], home["better"], home["worse"]) == (
        "not told apart",
        ["q4", "q5", "q6", "q7"],
        ["q0", "q1"],
    )
    assert (up["total"]["ci95"], up["verdict"]) == ([100, 100], "gained")
    assert (away["total"]["ci95"], away["verdict"]) == ([-100, -100], "lost")
    assert (away["total"]["first_only"], away["total"]["second_only"]) == (12, 0)
    assert away["total"]["p"] == pytest.approx(2 / 2**12)
    assert set(away["modality"]) == {"speech", "music", "mix-sound-speech"}
    assert [sentence.split(" (")[0] for sentence in found["sentences"][:3]] == [
        "Gained: up", "Lost: away", "Not told apart: home",
    ]  # fmt: skip
    # whose questions they are: those of no published file are not called MMAU's
    assert [one["questions_of"] for one in found["evaluations"]] == ["some.json", "some.json", "MMAR, version unknown"]
    guide = (ROOT / "docs" / "evaluation.md").read_text(encoding="utf-8")
    guide = guide.split("### suite.json\n")[1].split("\n### ")[0]
    assert [key for key in [*found, *found["evaluations"][0], "blind"] if f"`{key}`" not in guide] == []
    write_suite(tmp_path, found)
    text = (tmp_path / "suite.md").read_text(encoding="utf-8")
    assert "| home | 33.33 | 50.00 | +16.67 |" in text
    assert "| away | 100.00 | 0.00 | -100.00 | -100.00 to -100.00 | lost | 0 | 12 |" in text
    assert "| up | some.json | 12 | 100.00 |" in text
    page = (tmp_path / "suite.html").read_text(encoding="utf-8")
    assert page.startswith("<!DOCTYPE html>")
    assert '<a href="home/report.html">home</a>' in page and ">lost</td><td>0</td><td>12</td>" in page
    assert "<script" not in page and "src=" not in page and "<link" not in page  # all of it is in the page


def test_one_checkpoint_has_no_differences(tmp_path):
    row = Row("home", plan_of(tmp_path / "out" / "home", (mmau_records(4), "x.json"), {0}), None)
    found = summary(tmp_path / "out", [row])
    assert "before" not in found and "comparison" not in found["evaluations"][0]
    write_suite(tmp_path, found)
    for name in ("suite.md", "suite.html"):
        text = (tmp_path / name).read_text(encoding="utf-8")
        assert "25.00" in text and "told apart" not in text


def test_what_the_two_do_not_have_in_common_is_told(tmp_path):
    row = pair(tmp_path, "home", mmau_records(4), {0}, {1})
    other = replace(row.before.evaluation, settings=SETTINGS | {"dtype": "bfloat16", "checkpoint_sha256": "0"})
    found = summary(tmp_path / "after", [replace(row, before=replace(row.before, evaluation=other))])
    assert "home: the two were not evaluated alike, but with different dtype." in found["sentences"]
    assert not any("not evaluated alike" in one for one in summary(tmp_path / "after", [row])["sentences"])


def test_a_published_figure_stands_beside_its_own_version_alone(tmp_path):
    questions = make_questions(1000)
    predictions = predictions_of(questions, ["cat"] * 1000)
    evaluation = evaluation_of(questions, predictions, SETTINGS, "original", folder=tmp_path)
    write_json(tmp_path / "scores.json", evaluation.scores)
    plan = Plan(evaluation, EvalSettings(ckpt="model"))
    assert _figures(plan, tmp_path)["published"] == {"model": TARGET[0], "accuracy": 64.5}
    silent = replace(plan, evaluation=replace(evaluation, settings=SETTINGS | {"no_audio": True}))
    assert _figures(silent, tmp_path)["published"] is None
    write_json(tmp_path / "scores.json", evaluation.scores | {"version": "unknown"})
    assert _figures(plan, tmp_path)["published"] is None


def test_hostile_names_are_text(tmp_path):
    row = pair(tmp_path, "home", mmau_records(4), {0}, {1}, checkpoints=HOSTILE[:2], data=f"{HOSTILE[3]}.json")
    found = summary(tmp_path / "after", [row])
    write_suite(tmp_path, found)
    page = (tmp_path / "suite.html").read_text(encoding="utf-8")
    assert "<script" not in page and "<svg onload" not in page
    assert escape(HOSTILE[0]) in page and escape(HOSTILE[3]) in page
    text = (tmp_path / "suite.md").read_text(encoding="utf-8")
    assert r"\<script\>window" in text and "<script>" not in text


def test_answers_that_are_missing_or_withheld(tmp_path, checkpoints, manifest):
    row = pair(tmp_path, "home", mmau_records(4), {0}, {1})
    scores = tmp_path / "after" / "home" / "scores.json"
    write_json(scores, read_json(scores) | {"missing": 3, "beyond_window": ["q1"]})
    sentences = summary(tmp_path / "after", [row])["sentences"]
    assert "home: 3 of 4 answers are missing and count as wrong." in sentences
    assert "home: of 1 questions the clip was not heard to its end." in sentences
    unanswered = write_lines(manifest, [one | {"answer": None} for one in read_lines(manifest)])
    entry = Entry("home", MMAU, {"data": unanswered, "device": "cpu"})
    with pytest.raises(Refused, match="answer"):
        _plans([entry], str(checkpoints / "after"), None, tmp_path / "out")
