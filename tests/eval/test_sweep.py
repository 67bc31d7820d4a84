"""Every checkpoint of a run in one table: which are evaluated, which are taken over, what is said of the best."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import eval.generation
from eval.mmau import main as evaluate
from eval.predictions import digest
from eval.score_predictions import score_file
from eval.sweep import Point, main, markdown, summary
from r1_aqa_repro.common.intervals import paired_gain
from r1_aqa_repro.model.loading import load_model
from tests.eval.made_up import mmau_records
from tests.files import contents, read_json, read_lines, write_json

RIGHT = {2: 3, 4: 6, 10: 5}  # right answers of each step, of 8
OPTIONS = ["--limit", "8", "--max-new-tokens", "4", "--device", "cpu"]


@pytest.fixture(scope="module")
def run(model, tmp_path_factory):
    """A run of three checkpoints with different weights, with `final` the same as the last."""
    folder = tmp_path_factory.mktemp("sweep") / "run"
    for step in RIGHT:
        shutil.copytree(model, folder / f"checkpoint-{step}")
        changed = load_model(model)
        with torch.no_grad():
            changed.lm_head.weight.mul_(step)
        changed.save_pretrained(folder / f"checkpoint-{step}")
    shutil.copytree(folder / "checkpoint-10", folder / "final")
    return folder


@pytest.fixture
def loads(data, monkeypatch):
    """The folders of the models that are loaded. That of step N answers the first RIGHT[N] questions rightly."""
    loaded = []
    load = eval.generation.Generator.load
    numbers = {question["id"]: number for number, question in enumerate(read_lines(data))}

    def load_and_note(settings, own_decoding):
        loaded.append(Path(settings.ckpt).name)
        return load(settings, own_decoding)

    def answer(self, asked, warn):
        right = RIGHT[int(loaded[-1].replace("final", "4").removeprefix("checkpoint-"))]
        said = [one.question.answer if numbers[one.question.id] < right else "none" for one in asked]
        return [[f"<answer>{text}</answer>"] for text in said]

    monkeypatch.setattr(eval.generation.Generator, "load", load_and_note)
    monkeypatch.setattr(eval.generation.Generator, "answer", answer)
    return loaded


def sweep(run, data, *more):
    return main([str(run), "--data", str(data), *OPTIONS, *map(str, more)])


def as_while_training(evaluation, folder, step, **changed):
    """What `eval_file` leaves of a step, made from the checkpoint's own evaluation."""
    shutil.copytree(evaluation, folder)
    record = read_json(folder / "settings.json")
    del record["settings"]["checkpoint_sha256"]
    record["settings"] |= {"training_step": step, "batch_size": 3} | changed
    record["settings_hash"] = digest(record["settings"])
    (folder / "settings.json").write_text(json.dumps(record), encoding="utf-8")


def test_a_whole_sweep(run, data, tmp_path, loads, capsys):
    out = tmp_path / "out"
    assert sweep(run, data, "--out", out) == 0
    assert loads == ["checkpoint-2", "checkpoint-4", "checkpoint-10"]  # by step, and `final` is the last
    found = read_json(out / "sweep.json")
    assert [point["step"] for point in found["points"]] == [2, 4, 10]
    assert (found["final"], found["last"]) == ("checkpoint-10", "checkpoint-10")
    for point in found["points"]:
        scores = read_json(out / point["folder"] / "scores.json")
        assert point["total"] == scores["total"]
        assert not point["reused"]
        assert point["total"]["correct"] == RIGHT[point["step"]]
    assert found["best"] == "checkpoint-4"
    assert found["gain"]["points"] == 12.5  # one question of 8
    assert "64.5" not in json.dumps(found["lines"])
    text = (out / "sweep.md").read_text(encoding="utf-8")
    assert "which flatters it" in text
    assert "`final` is the same model as checkpoint-10" in text
    drawn = (out / "sweep.svg").read_text(encoding="utf-8")
    assert "accuracy over steps" in text and "</svg>" in drawn

    loads.clear()
    before = contents(out)
    assert sweep(run, data, "--out", out) == 0  # nothing is done twice
    assert loads == []
    assert contents(out) == before


def test_finished_evaluations_are_taken_over(run, data, tmp_path, loads, capsys):
    moved = tmp_path / "run"
    shutil.copytree(run, moved)
    for step in (2, 4, 10):
        arguments = ["--ckpt", moved / f"checkpoint-{step}", "--data", data, "--out", tmp_path / f"{step}", *OPTIONS]
        assert evaluate([str(argument) for argument in arguments]) == 0
    as_while_training(tmp_path / "2", moved / "eval" / "step-2", 2)
    as_while_training(tmp_path / "4", moved / "eval" / "step-4", 4, dtype="bfloat16 autocast")  # not the same
    shutil.copytree(tmp_path / "10", moved / "checkpoint-10" / "eval" / data.stem)
    loads.clear()
    capsys.readouterr()
    assert sweep(moved, data) == 0
    assert loads == ["checkpoint-4"]
    assert f"evaluated already, in {moved / 'eval' / 'step-2'}" in capsys.readouterr().err
    found = read_json(moved / "sweep" / data.stem / "sweep.json")
    assert [point["reused"] for point in found["points"]] == [True, False, True]
    assert (
        "Taken over from evaluations with the same settings and data: checkpoint-2, checkpoint-10."
        in found["sentences"]
    )
    assert {path.name for path in (moved / "sweep" / data.stem).iterdir() if path.is_dir()} == {"checkpoint-4"}


def test_another_final_is_evaluated(run, data, tmp_path, loads):
    moved = tmp_path / "run"
    shutil.copytree(run / "checkpoint-2", moved / "checkpoint-2")
    shutil.copytree(run / "checkpoint-4", moved / "final")
    assert sweep(moved, data, "--out", tmp_path / "out") == 0
    assert loads == ["checkpoint-2", "final"]
    found = read_json(tmp_path / "out" / "sweep.json")
    assert [point["name"] for point in found["points"]] == ["checkpoint-2"]
    assert (found["final"]["name"], found["final"]["step"]) == ("final", None)
    assert found["best"] == found["last"] == "checkpoint-2"
    assert "| final |" in (tmp_path / "out" / "sweep.md").read_text(encoding="utf-8")
    assert not (tmp_path / "out" / "sweep.svg").exists()  # one point is no curve


def test_what_is_refused(data, tmp_path, capsys):
    (tmp_path / "checkpoint-x").mkdir()
    assert sweep(tmp_path, data) == 2
    assert "no checkpoint-N and no final" in capsys.readouterr().err


def test_names_cannot_break_the_table():
    tally = {"correct": 1, "n": 2, "accuracy": 50.0, "ci95": [9.5, 90.5]}
    point = {"name": "checkpoint-1", "total": tally, "task": {"a|b<i>": tally}, "unparsed": 0, "missing": 0}
    found = {
        "run": "a|*b*", "version": "unknown", "n": 2, "settings": {"prompt_style": "answer", "no_audio": False},
        "points": [point], "final": None, "best": "checkpoint-1", "last": "checkpoint-1", "lines": {}, "sentences": [],
    }  # fmt: skip
    text = markdown(found)
    assert r"# Checkpoints of a\|\*b\*" in text
    assert r"a\|b\<i\>" in text
    assert "checkpoint-1 (best, last)" in text
    assert "Version unknown, 2 questions, prompt" in text
    point["total"] = tally | {"n": 4, "clips": 2}
    assert "Version unknown, 4 questions about 2 clips, prompt" in markdown(found)


@pytest.mark.parametrize("each", [1, 4])
def test_the_gain_of_the_best_is_over_clips(each, tmp_path):
    records = mmau_records(12)
    for index, record in enumerate(records):
        record["audio_id"] = f"./{index // each}.wav"
    data, points = write_json(tmp_path / "data.json", records), []
    for step, right in ((2, {0, 1, 2, 3, 4, 5, 6}), (4, {0, 1, 8})):
        given = [{"id": f"q{index}", "model_output": "Woman" if index in right else "Man"} for index in range(12)]
        theirs = write_json(tmp_path / f"{step}.json", given)
        evaluation = score_file(theirs, data, tmp_path / f"checkpoint-{step}")
        evaluation = replace(evaluation, settings={"prompt_style": "answer", "no_audio": False})
        points.append(Point(f"checkpoint-{step}", step, SimpleNamespace(evaluation=evaluation), False))
    found = summary(tmp_path, tmp_path, points)
    first, last = ([float(index in right) for index in range(12)] for right in ({0, 1, 2, 3, 4, 5, 6}, {0, 1, 8}))
    expected = paired_gain(last, first, [index // each for index in range(12)])
    assert [found["gain"]["points"], *found["gain"]["ci95"]] == [100 * value for value in expected]
    assert any("paired bootstrap over clips" in sentence for sentence in found["sentences"]) == (each > 1)
