"""The doctor reports each illness of a run when it shows, once, and nothing of a run that is well."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import TrainerControl, TrainerState, TrainingArguments

from r1_aqa_repro.run.health import SIGNS, WINDOW, Doctor
from tests.conftest import ROOT
from tests.run.conftest import Start

Entry = dict[str, float]
STEPS = 200


def entry_at(step: int, **others: float) -> Entry:
    """What a run that is well logs: much as the embedded audio run does."""
    progress = step / STEPS
    return {
        "step": step,
        "reward": 1.5 + 0.4 * progress,
        "rewards/accuracy/mean": 0.5 + 0.4 * progress,
        "rewards/format/mean": 0.97 + 0.02 * progress,
        "frac_reward_zero_std": 0.1 + 0.7 * progress,
        "entropy": 0.17 - 0.13 * progress,
        "completions/clipped_ratio": 0.01,
        "completions/letter_only": 0.0,
        "sampling/logp_difference": 5e-8,
    } | others


def evaluations(accuracy: Callable[[int], float]) -> dict[int, Entry]:
    return {step: {"step": step, "eval_accuracy": accuracy(step)} for step in range(0, STEPS + 1, 25)}


def rising(step: int) -> float:
    return 0.6 + 0.3 * step / STEPS


def falling_after_50(step: int) -> float:
    return rising(min(step, 50)) - max(0, step - 50) / STEPS


def a_run(change: Callable[[int], Entry] = lambda step: {}, accuracy: Callable[[int], float] = rising) -> list[Entry]:
    evaluated = evaluations(accuracy)
    log = [evaluated[0]]
    for step in range(1, STEPS + 1):
        log += [entry_at(step, **change(step)), *([evaluated[step]] if step in evaluated else [])]
    return [*log, {"step": STEPS, "train_runtime": 1.0}]


class Patient:
    """A run, as the callback sees it, whose log is `before` so far."""

    def __init__(self, folder: Path, before: Iterable[Entry] = (), bf16: bool = False):
        self.state = TrainerState(log_history=list(before))
        self.doctor = Doctor(folder)
        self.rest = TrainingArguments(str(folder), report_to="none", bf16=bf16, use_cpu=True), self.state
        (folder / "run.json").write_text("{}", encoding="utf-8")
        self.doctor.on_train_begin(*self.rest, TrainerControl(), model=SimpleNamespace(dtype=torch.float32))

    def logs(self, entries: Iterable[Entry]) -> dict[str, list[int]]:
        """The steps of the alarms, by illness, after these."""
        for entry in entries:
            self.state.log_history.append(entry)
            self.state.global_step = int(entry["step"])
            self.doctor.on_log(*self.rest, TrainerControl(), logs=entry)
        return {name: found.alarms for name, found in self.doctor.findings.items() if found.alarms}


def test_a_healthy_run_is_left_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    patient = Patient(tmp_path)
    assert patient.logs(a_run()) == {}
    assert capsys.readouterr().err == ""
    assert all(found.value is not None for found in patient.doctor.findings.values())


@pytest.mark.parametrize(
    ("name", "run", "step", "said"),
    [
        # a figure that jumps at step 101 to f makes the mean of the last 20 pass the limit once enough of them are in
        (
            "zero-variance groups",
            a_run(lambda step: {"frac_reward_zero_std": 1.0 if step > 100 else 0.5}),
            116,
            "90%",
        ),
        ("entropy collapse", a_run(lambda step: {"entropy": 1.0 if step <= 20 else 0.09}), 40, "9%"),
        ("clipped lengths", a_run(lambda step: {"completions/clipped_ratio": float(step > 100)}), 102, "10%"),
        ("reward without held-out accuracy", a_run(accuracy=falling_after_50), 125, "the last 3 evaluations"),
        ("sampling and scoring disagree", a_run(lambda step: {"sampling/logp_difference": 0.02}), 1, "2.0e-02"),
        (
            "format without accuracy",
            a_run(lambda step: {"rewards/accuracy/mean": 0.25}),
            5 * WINDOW,
            "changed by +0.00",
        ),
        ("drift to letters", a_run(lambda step: {"completions/letter_only": float(step > 100)}), 102, "10%"),
    ],
)
def test_each_illness_is_reported_once_with_what_to_do(
    name: str, run: list[Entry], step: int, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert Patient(tmp_path).logs(run) == {name: [step]}
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith(f"step {step}, {name}: ") and said in line


def test_the_keys_that_are_named_exist() -> None:
    settings = (ROOT / "configs" / "grpo_qwen2_audio_7b.yaml").read_text(encoding="utf-8")
    keys = {
        "zero-variance groups": ["dynamic_sampling"],
        "entropy collapse": ["learning_rate", "beta", "entropy_coef"],
        "clipped lengths": ["max_completion_length", "mask_truncated_completions"],
        "reward without held-out accuracy": ["beta", "max_steps"],
        "sampling and scoring disagree": ["cuda_graphs", "sharing"],
        "format without accuracy": ["reward_weights"],
        "drift to letters": ["r1_aqa_accuracy"],
    }
    for sign in SIGNS:
        assert all(key in sign.sentence and key in settings for key in keys[sign.name]), sign.name


def test_it_is_reported_again_only_after_it_was_gone_for_a_window(tmp_path: Path) -> None:
    def clipped(*spans: tuple[int, float]) -> list[Entry]:
        values = [value for length, value in spans for _ in range(length)]
        return [entry_at(step, **{"completions/clipped_ratio": value}) for step, value in enumerate(values, 1)]

    # the mean of 20 falls below 0.1 with the 19th well step
    assert Patient(tmp_path).logs(clipped((40, 1), (30, 0), (30, 1))) == {"clipped lengths": [20]}
    assert Patient(tmp_path).logs(clipped((40, 1), (38, 0), (30, 1))) == {"clipped lengths": [20, 80]}


def test_a_resumed_run_goes_on_from_what_was_reported(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    letters = [entry_at(step, **{"completions/letter_only": 0.5}) for step in range(1, 61)]
    resumed = Patient(tmp_path, before=letters[:30])
    assert resumed.logs(letters[30:]) == {"drift to letters": [20]}
    assert capsys.readouterr().err == ""


def test_a_run_that_is_right_from_the_start_has_nothing_to_gain(tmp_path: Path) -> None:
    right = {"rewards/accuracy/mean": 1.0, "rewards/format/mean": 1.0}
    assert Patient(tmp_path).logs(a_run(lambda step: right)) == {}


@pytest.mark.parametrize("value", [0.0, math.nan])
def test_figures_that_say_nothing_are_not_judged(value: float, tmp_path: Path) -> None:
    """As of steps in which every completion is masked, being cut."""
    patient = Patient(tmp_path)
    assert patient.logs(a_run(lambda step: {"entropy": value})) == {}
    assert patient.doctor.findings["entropy collapse"].verdict == "not judged"


@pytest.mark.parametrize(("bf16", "difference", "ill"), [(False, 1e-3, True), (True, 1e-3, False), (True, 0.1, True)])
def test_rounding_is_larger_in_16_bits(tmp_path: Path, bf16: bool, difference: float, ill: bool) -> None:
    found = Patient(tmp_path, bf16=bf16).logs([entry_at(1, **{"sampling/logp_difference": difference})])
    assert bool(found) == ill


def test_a_real_run_that_learns_nothing_is_told_so(
    start: Start, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A model of random weights is never right and never ends: no reward differs, every completion is cut."""
    run = tmp_path / "run"
    settings = ("--reward_funcs", "accuracy", "format", "--max_steps", str(WINDOW + 2), "--save_strategy", "no")
    assert start("audio grpo", run, *settings, "--logging_steps", "1") == 0
    printed = capsys.readouterr().err
    health: dict[str, Any] = json.loads((run / "run.json").read_text(encoding="utf-8"))["health"]
    assert {name: found["alarms"] for name, found in health.items() if found["alarms"]} == {
        "zero-variance groups": [WINDOW],
        "clipped lengths": [WINDOW],
    }
    assert printed.count("set dynamic_sampling") == 1
    for name, found in health.items():
        [row] = [line for line in printed.splitlines() if line.startswith(f"  {name} ")]
        assert row.endswith((f"reported at step {WINDOW}",) if found["alarms"] else ("well", "not judged")), row
    assert health["reward without held-out accuracy"]["value"] is None


def test_the_guide_has_every_sign_and_its_limit() -> None:
    page = (ROOT / "docs" / "training.md").read_text(encoding="utf-8")
    for sign in SIGNS:
        [row] = [line for line in page.splitlines() if line.startswith(f"| {sign.name} |")]
        assert all(f"{limit:g}" in row for limit in (sign.limit, sign.limit_in_16_bits) if limit is not None), row
