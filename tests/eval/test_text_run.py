"""The page of a text run: what it shows of what is there, and that hostile texts are nothing but text in it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from eval.text_run import main, trainer_log, write_text_page
from r1_aqa_repro.common.errors import Refused
from tests.eval.test_page import Page
from tests.files import write_json
from tests.hostile_texts import HOSTILE


def block(value: float, greedy: float | None = None, **more: Any) -> dict[str, Any]:
    of_greedy = {} if greedy is None else {"greedy": greedy, "greedy_ci95": [greedy - 0.03, greedy + 0.02]}
    return {"true_reward": value, "ci95": [value - 0.05, value + 0.04], "n": 480, **of_greedy, **more}


RESULTS = {
    "chance": block(0.125),
    "before": block(0.5, 0.625, by_task={"list": block(0.25, 0.375)}),
    "after": block(0.75, 0.55, by_task={"list": block(0.8, 0.3)}),
    "controls": {"shuffled_labels": block(0.45)},
}
LOG = [
    {"step": 1, "reward": 1.0, "kl": 0.0, "completions/mean_length": 8.0, "rewards/true": 0.5, "loss": None},
    {"step": 3, "reward": 3.0, "kl": 0.5, "completions/mean_length": 9.0, "rewards/true": 0.25},
    {"step": 2, "eval_runtime": 1.0},
]


def run_in(folder: Path, samples: list[dict[str, Any]], results: dict[str, Any] | None = None) -> Path:
    (folder / "checkpoint-3").mkdir(parents=True)
    write_json(folder / "checkpoint-3" / "trainer_state.json", {"log_history": LOG})
    write_json(folder / "samples.json", {"samples": samples})
    if results is not None:
        write_json(folder / "results.json", results)
    return folder


def text_of(page: str) -> str:
    return " ".join(" ".join(Page(page).text).split())


def sample(prompt: str, before: str | None, after: str | None) -> dict[str, Any]:
    return {"id": "a", "prompt": prompt, "before": before, "after": after}


def test_figures_by_task_sampled_and_greedy_samples_and_curves(tmp_path: Path, capsys: Any) -> None:
    run = run_in(tmp_path / "train_ppo", [sample("Two colours?", "red", "1. red 2. blue")], RESULTS)
    assert main([str(run)]) == 0
    assert str(run / "report.html") in capsys.readouterr().err
    page = (run / "report.html").read_text(encoding="utf-8")
    text = text_of(page)
    for row in (
        "list, before 0.250 0.200 to 0.290 0.375 0.345 to 0.395 480",
        "list, after 0.800 0.750 to 0.840 0.300 0.270 to 0.320 480",
        "control: shuffled labels 0.450 0.400 to 0.490 480",
    ):
        assert row in text
    assert "Two colours? before red after 1. red 2. blue" in text
    # reward from 1 (bottom) to 3 (top), of which the other reward has the lower 0.25 and 0.5: a panel for both
    assert "Reward of a completion : from 0.25 (bottom) to 3 (top)" in text
    assert 'd="M0.0 120.0L300.0 0.0"' in page  # the KL, from its least at the first step to its most at the last
    assert "KL to the start, nats" in text and "Length of a completion" in text and "Loss" not in text


def test_a_page_without_results_and_of_a_reward_model(tmp_path: Path) -> None:
    scores = {"before": {"chosen": 0.5, "rejected": 1.0}, "after": {"chosen": 2.0, "rejected": -1.0}}
    run = run_in(tmp_path / "run", [{"id": "a", "prompt": "Why?", "chosen": "So.", "rejected": "No.", **scores}])
    text = text_of(write_text_page(run).read_text(encoding="utf-8"))
    assert "chosen, score 0.50 -> 2.00 So. rejected, score 1.00 -> -1.00 No." in text
    assert "greedy" not in text and "What it is worth" not in text


def test_hostile_texts_are_text_and_nothing_is_loaded(tmp_path: Path) -> None:
    hostile = [sample(one, one, one) for one in HOSTILE]
    results = RESULTS | {"stages": {HOSTILE[0]: block(0.5)}}
    page = write_text_page(run_in(tmp_path / "run", hostile, results)).read_text(encoding="utf-8")
    plain = write_text_page(
        run_in(tmp_path / "plain", [sample("a", "b", None)] * 2, RESULTS | {"stages": {"a": block(0.5)}})
    )
    parsed, harmless = Page(page), Page(plain.read_text(encoding="utf-8"))
    assert {tag for tag, _ in parsed.elements} == {tag for tag, _ in harmless.elements} and not parsed.scripts
    for tag, attributes in parsed.elements:
        assert not any(name.startswith("on") for name in attributes), (tag, attributes)
        assert not {"src", "href", "srcset"} & set(attributes), (tag, attributes)
    shown = "".join(parsed.text)
    assert all(one.strip() in shown for one in HOSTILE if "\x00" not in one and "\r" not in one)


def test_the_log_is_that_of_the_last_checkpoint_or_of_the_run(tmp_path: Path) -> None:
    run = run_in(tmp_path / "run", [])
    (run / "checkpoint-20").mkdir()
    write_json(run / "checkpoint-20" / "trainer_state.json", {"log_history": LOG[:1]})
    assert trainer_log(run) == LOG[:1]
    write_json(run / "trainer_state.json", {"log_history": LOG})
    assert trainer_log(run) == LOG


def test_what_is_no_run_or_damaged_is_refused(tmp_path: Path) -> None:
    with pytest.raises(Refused, match="it is no folder of a text run"):
        write_text_page(tmp_path)
    run = run_in(tmp_path / "run", [], {"after": {}})
    with pytest.raises(Refused, match="its records are damaged"):
        write_text_page(run)
