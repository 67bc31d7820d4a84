"""Shares of time, means by task, and the table of completions."""

from __future__ import annotations

import csv
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from r1_aqa_repro.grpo.monitor import PARTS, StepClock, StepRecord, answer_shares
from r1_aqa_repro.run.completion_table import CompletionTable


def test_the_clock_counts_inner_parts_for_themselves(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr(time, "perf_counter", lambda: now)
    clock = StepClock()
    now = 100.0
    clock.restart()
    now = 101.0
    with clock("backward"):
        now = 103.0
        with clock("forward"):
            now = 108.0
        now = 109.0
    now = 110.0
    grown = clock.read()
    assert {part: count for part, count in grown.items() if count} == {"backward": 3, "forward": 5, "other": 2}
    now = 112.0
    assert sum(clock.read().values()) == 2


def test_a_record_weighs_completions_alike() -> None:
    """Two batches of one step: one with a question about sound, one with two completions of music among others."""
    record = StepRecord()
    record.clips, record.tokens = 6, 90
    record.add_rewards({"reward": torch.tensor([1.0, 0.0, 5.0])}, ["sound", "sound", "music"])
    record.add_rewards({"reward": torch.tensor([float("nan"), 3.0, 4.0, 9.0])}, ["speech", None, "sound", "music"])
    assert record.read(3.0) == {
        "clips_per_second": 2.0,
        "tokens_per_second": 30.0,
        "reward/music": 7.0,
        "reward/sound": pytest.approx(5 / 3),
    }
    assert record.read(1.0) == {"clips_per_second": 0.0, "tokens_per_second": 0.0}


def test_training_logs_by_step_and_writes_a_group_of_each(make_trainer: Any) -> None:
    trainer = make_trainer(reward_funcs=["random", "format"], max_steps=2, beta=0.04)
    trainer.train()
    logs = [entry for entry in trainer.state.log_history if "reward" in entry]
    assert len(logs) == 2
    for entry in logs:
        shares = [entry[f"time/{part}"] for part in PARTS]
        assert all(0 < share < 1 for share in shares) and sum(shares) <= 1
        # the parts are the step: what is left is padding, gathering and logging
        assert sum(shares) > 0.7
        assert entry["clips_per_second"] == pytest.approx(3 / (entry["step_time"]), rel=0.5)
        tokens = entry["completions/mean_length"] * 12
        assert entry["tokens_per_second"] / entry["clips_per_second"] == pytest.approx(tokens / 3)
        by_task = [entry[f"reward/{task}"] for task in ("music", "sound", "speech") if f"reward/{task}" in entry]
        assert by_task and min(by_task) <= entry["reward"] <= max(by_task)
        assert any(f"rewards/random/{task}" in entry for task in ("sound", "music", "speech"))
        for key in ("frac_reward_zero_std", "entropy", "kl", "completions/mean_length", "completions/clipped_ratio"):
            assert key in entry

    header, *rows = read(Path(trainer.args.output_dir) / "completions.csv")
    rewards = ["random", "format"]
    assert header == ["step", "id", "task", "question", "answer", "completion", *rewards, "advantage"]
    assert [row[0] for row in rows] == ["1"] * 4 + ["2"] * 4
    assert len({row[1] for row in rows[:4]}) == 1
    advantages, scores = ([float(row[column]) for row in rows[:4]] for column in (-1, -3))
    assert sum(advantages) == pytest.approx(0, abs=1e-3)  # four figures of each are kept
    assert sorted(range(4), key=scores.__getitem__) == sorted(range(4), key=advantages.__getitem__)


def test_shares_of_letters_and_of_answers_that_are_no_choice() -> None:
    choices = ["a dog", "a cat"]
    completions = [
        "<answer>B</answer>",
        "<answer>a cat</answer>",
        "(A)",
        "it is a cat",
        "a bird",
        "",
        "C",
        "<answer></answer>B",
    ]
    shares = answer_shares(completions, [choices] * 8)
    assert shares == {"completions/letter_only": 2 / 8, "completions/no_choice": 4 / 8}
    notes = answer_shares(["<answer>B</answer>"] * 2, [["B", "A"], choices])  # each by its own choices
    assert notes == {"completions/letter_only": 0.5, "completions/no_choice": 0.0}


def test_the_shares_are_of_the_questions_asked_first(make_trainer: Any) -> None:
    """All completions of these get the same reward, so that others are drawn, whose completions differ."""
    trainer = make_trainer(reward_funcs=["format"], dynamic_sampling=3, max_completion_length=24, max_steps=1)
    first, further = ["A", "(A).", "who knows", "low"], ["<answer>A</answer>", "A", "A", "A"]
    said = iter([first, further])

    def say(*_: Any, **__: Any) -> tuple[list[list[int]], None]:
        return [trainer._tokenizer(text)["input_ids"] for text in next(said) * 3], None

    trainer._generate_single_turn = say
    trainer.train()
    [entry] = [entry for entry in trainer.state.log_history if "reward" in entry]
    assert entry["dynamic_sampling/replaced"] == 3
    assert (entry["completions/letter_only"], entry["completions/no_choice"]) == (0.5, 0.25)


def read(file: Path) -> list[list[str]]:
    with open(file, encoding="utf-8", newline="") as lines:
        return list(csv.reader(lines))


def test_a_resumed_table_has_every_step_once(tmp_path: Path) -> None:
    file, text = tmp_path / "completions.csv", 'a "quoted",\nbroken line'
    table = CompletionTable(tmp_path)
    for step in (1, 2, 3):
        table.add(step, [{"id": f"q{step}", "completion": text}])
    with open(file, "a", encoding="utf-8") as cut:
        cut.write('4,q4,"cut o')
    CompletionTable(tmp_path).add(3, [{"id": "again", "completion": ""}])
    assert read(file) == [["step", "id", "completion"], ["1", "q1", text], ["2", "q2", text], ["3", "again", ""]]
    CompletionTable(tmp_path).add(1, [{"id": "anew", "completion": ""}])
    assert read(file) == [["step", "id", "completion"], ["1", "anew", ""]]
