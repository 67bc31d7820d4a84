"""The lessons as commands: what they leave, and what they refuse."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path
from types import ModuleType

import pytest

from scripts.learn import (
    bandit,
    cliff,
    dqn,
    dyna_q,
    dynamic_programming,
    group_advantages,
    margins,
    networks,
    overview,
    pictures,
    policy_gradients,
    td_prediction,
)
from scripts.shown import plotted

SEEDED = [bandit, cliff, dqn, dyna_q, dynamic_programming, policy_gradients, td_prediction]
LESSONS = [*SEEDED, group_advantages, overview]
SMALLER = {
    bandit: {"PULLS": 600, "RUNS": 4},
    cliff: {"EPISODES": 30, "RUNS": 2},
    dqn: {"STEPS": 2048, "UPDATES": 2, "FIRST": 500},
    dyna_q: {"RUNS": 2},
    dynamic_programming: {"EPISODES": 20},
    group_advantages: {},
    overview: {},
    policy_gradients: {"STEPS": 1500, "ABLE": 15, "MANY": 3},
    td_prediction: {"RUNS": 2},
}


def name_of(lesson: ModuleType) -> str:
    return lesson.__name__.rpartition(".")[2]


@pytest.mark.parametrize("lesson", LESSONS, ids=name_of)
def test_a_lesson_leaves_figures_and_a_picture(
    lesson: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, value in SMALLER[lesson].items():
        monkeypatch.setattr(lesson, name, value)
    monkeypatch.setattr(networks, "JUDGED", 5)
    out = tmp_path / "new" / "folder"
    assert lesson.main(["--out", str(out), *(["--seed", "3", "4"] if lesson is policy_gradients else [])]) == 0
    results = json.loads((out / "results.json").read_text(encoding="utf-8"))
    assert results["cpu_seconds"] > 0
    assert (out / lesson.PICTURE).read_bytes().startswith(b"\x89PNG") and len(list(out.iterdir())) == 2
    printed = capsys.readouterr().out
    assert f"{out}/results.json" in printed.replace("\n", "") and "┃" in printed


@pytest.mark.parametrize("lesson", LESSONS, ids=name_of)
def test_mistakes_are_refused(lesson: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        lesson.main([])
    assert ended.value.code == 2 and "--out" in capsys.readouterr().err
    file = tmp_path / "file"
    file.touch()
    assert lesson.main(["--out", str(file)]) == 2
    assert "it is not a folder" in capsys.readouterr().err
    if lesson in SEEDED:
        with pytest.raises(SystemExit) as ended:
            lesson.main(["--out", str(tmp_path / "out"), "--seed", "-1"])
        assert ended.value.code == 2 and "argument --seed: -1 is not from 0" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("lesson", [cliff, dqn, dyna_q, dynamic_programming, policy_gradients], ids=name_of)
def test_what_is_missing_is_named(
    lesson: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "gymnasium", None)
    assert lesson.main(["--out", str(tmp_path / "out")]) == 2
    said = capsys.readouterr().err
    assert "gymnasium: it is not installed" in said and "'.[learn]'" in said
    assert not (tmp_path / "out").exists()


def test_the_map_shows_what_has_been_run(tmp_path: Path) -> None:
    (tmp_path / "cliff").mkdir()
    content = {"methods": {"SARSA": {"return": -26.8}, "Q-learning": {"return": -50.2}}}
    (tmp_path / "cliff" / "results.json").write_text(json.dumps(content), encoding="utf-8")
    found = overview.figures(tmp_path)
    assert (found["SARSA"], found["Q-learning"]) == ("cliff -27", "cliff -50")
    assert found["TRPO"] == found["SAC"] == "in words" and found["PPO"] == "-"


@pytest.mark.parametrize(("content", "said"), [("{", "JSON"), ("{}", "it has no figure of this lesson")])
def test_the_map_refuses_damaged_figures(
    content: str, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "dqn").mkdir()
    (tmp_path / "dqn" / "results.json").write_text(content, encoding="utf-8")
    assert overview.main(["--runs", str(tmp_path), "--out", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert said in error and "Run scripts/learn/dqn.py again." in error


def test_margins_are_held_against_what_they_claim(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Ten pairs of margin log 3 claim 3/4; eight are right. Two of margin 0 claim and are worth one half."""
    scores = [{"margin": math.log(3)}] * 8 + [{"margin": -math.log(3)}] * 2 + [{"margin": 0.0}] * 2
    file = tmp_path / "scores.jsonl"
    file.write_text("".join(json.dumps(each) + "\n" for each in scores), encoding="utf-8")
    assert margins.main(["--scores", str(file), "--out", str(tmp_path / "out")]) == 0
    even, odd = json.loads((tmp_path / "out" / "results.json").read_text(encoding="utf-8"))["bins"]
    assert (even["pairs"], even["claimed"], even["right"]) == (2, 0.5, 0.5)
    assert (odd["pairs"], odd["right"]) == (10, 0.8) and odd["claimed"] == pytest.approx(0.75)
    assert "1 to 2" in capsys.readouterr().out and (tmp_path / "out" / margins.PICTURE).is_file()


@pytest.mark.parametrize(
    "content", ['{"score": 1}', "[1]", "{", '{"margin": "much"}', '{"margin": null}', '{"margin": 1e400}', ""]
)
def test_margins_of_something_else_are_refused(
    content: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "scores.jsonl"
    file.write_text(content, encoding="utf-8")
    assert margins.main(["--scores", str(file), "--out", str(tmp_path / "out")]) == 2
    assert str(file) in capsys.readouterr().err


def test_the_pictures_of_the_pages_are_copied_small(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    drawn = tmp_path / "runs" / pictures.PICTURES["learn_cliff.png"]
    with plotted(drawn, "a picture") as (axis,):
        axis.plot(range(100))
    out = tmp_path / "images"
    assert pictures.main(["--runs", str(tmp_path / "runs"), "--out", str(out)]) == 0
    (copied,) = out.iterdir()
    assert copied.name == "learn_cliff.png" and copied.stat().st_size < drawn.stat().st_size
    assert "learn_dqn.png stays as it is" in capsys.readouterr().err
