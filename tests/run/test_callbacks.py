"""What a person sees of a run that does not write to a terminal; what a signal leaves of a run."""

from __future__ import annotations

import signal
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from transformers import TrainerControl, TrainerState, TrainingArguments

from r1_aqa_repro.model.loading import load
from r1_aqa_repro.run import callbacks
from r1_aqa_repro.run.callbacks import ProgressLines, StopOnSignal, figures_of
from r1_aqa_repro.run.checkpoints import last_checkpoint
from tests.run.conftest import Start


def test_a_line_comes_every_half_minute_and_at_the_end_with_the_latest_figures(
    tmp_path: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    clock = [0.0]
    monkeypatch.setattr(callbacks.time, "monotonic", lambda: clock[0])
    lines, state = ProgressLines(), TrainerState(global_step=100, max_steps=200)  # a resumed run
    rest = TrainingArguments(str(tmp_path), report_to="none"), state, TrainerControl()
    lines.on_train_begin(*rest)
    for _ in range(8):  # of 10 s each
        clock[0] += 10
        state.global_step += 1
        lines.on_step_end(*rest)
        lines.on_log(*rest, logs={"reward": state.global_step / 100, "loss": 0.5, "learning_rate": 1.0, "kl": None})
    lines.on_train_end(*rest)
    assert capsys.readouterr().err.splitlines() == [
        "step 103 of 200 (52%), loss 0.500, reward 1.020; 10 s a step, 0:16:10 left",
        "step 106 of 200 (53%), loss 0.500, reward 1.050; 10 s a step, 0:15:40 left",
        "step 108 of 200 (54%), loss 0.500, reward 1.080; 10 s a step, 0:15:20 left",
    ]


@pytest.mark.parametrize("names", [("accuracy", "format"), ("r1_aqa_accuracy", "r1_aqa_format")])
def test_accuracy_and_format_are_shown_by_whichever_rule(names: tuple[str, str]) -> None:
    logged = {f"rewards/{name}/mean": value for name, value in zip(names, (0.25, 1.0), strict=True)}
    assert figures_of(logged) == {"accuracy": "0.250", "format": "1.000"}
    watched = {"rewards/lenient_accuracy/mean": 0.75} | logged  # the rule that the benchmark shares comes first
    assert figures_of(watched)["accuracy"] == "0.250"


class Sender(StopOnSignal):
    """A run that is told to end in its third step."""

    number = signal.SIGUSR1
    took: float | None = 1e-9  # seconds that a checkpoint took

    def on_step_begin(self, args: Any, state: TrainerState, control: Any, **kwargs: Any) -> None:
        if state.global_step == 2:
            self.trainer.seconds_to_save = self.took
            signal.raise_signal(self.number)


@pytest.mark.parametrize(
    ("number", "seconds", "took", "whole"),
    [
        (signal.SIGTERM, None, 1e9, True),  # time is no matter
        (signal.SIGTERM, 60, 1.0, True),
        (signal.SIGUSR1, 60, 51.0, False),  # with a margin of a fifth
        (signal.SIGUSR1, 60, None, False),  # not known
    ],
)
def test_a_signal_saves_what_fits_the_time(
    number: signal.Signals,
    seconds: float | None,
    took: float | None,
    whole: bool,
    start: Start,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    more = [] if seconds is None else ["--save_on_signal", str(seconds)]
    with monkeypatch.context() as patched:
        patched.setattr(Sender, "number", number)
        patched.setattr(Sender, "took", took)
        patched.setattr("r1_aqa_repro.run.loop.StopOnSignal", Sender)
        assert start("audio sft", tmp_path, *more) == 130
    said = capsys.readouterr().err
    weights = tmp_path / "weights-3"
    if whole:
        assert last_checkpoint(tmp_path) == tmp_path / "checkpoint-3" and not weights.exists()
        assert (
            f"interrupted: saved {tmp_path / 'checkpoint-3'}; the same command goes on from {tmp_path / 'checkpoint-3'}"
            in said
        )
    else:
        assert last_checkpoint(tmp_path) == tmp_path / "checkpoint-2"
        assert f"saved the model alone in {weights}, as no more would have fitted the time" in said
        assert f"goes on from {tmp_path / 'checkpoint-2'}" in said
        load(weights)
        assert not any(weights.glob("optimizer*"))
    assert start("audio sft", tmp_path, *more) == 0
    assert (tmp_path / "final").is_dir() and not weights.exists()


@pytest.mark.parametrize(("seconds", "evaluates", "saves"), [(60, True, False), (60, False, True), (None, True, True)])
def test_no_checkpoint_fits_if_an_evaluation_comes_before_it(
    seconds: float | None, evaluates: bool, saves: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """How long that takes nobody knows."""
    weights = tmp_path / "weights-1"
    stop = StopOnSignal(seconds, SimpleNamespace(seconds_to_save=1.0, save_weights=lambda: weights))
    rest = TrainingArguments(str(tmp_path), report_to="none", use_cpu=True), TrainerState(global_step=1)
    control = TrainerControl(should_evaluate=evaluates)
    stop.on_train_begin(*rest, control)
    signal.raise_signal(signal.SIGTERM)
    stop.on_step_end(*rest, control)
    stop.on_train_end(*rest, control)
    assert control.should_training_stop and control.should_save == saves
    assert (stop.saved_weights is None) == saves and control.should_evaluate == (evaluates and saves)


def test_a_signal_before_the_first_checkpoint_leaves_the_model(
    start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("r1_aqa_repro.run.loop.StopOnSignal", Sender)
    more = ["--save_steps", "8", "--save_on_signal", "1e-9"]
    assert start("audio grpo", tmp_path, *more) == 130
    assert "the same command begins anew" in capsys.readouterr().err
    assert (tmp_path / "weights-3" / "model.safetensors").is_file() and last_checkpoint(tmp_path) is None
    assert start("audio grpo", tmp_path, *more, "--overwrite", "true", "--max_steps", "1") == 0
    assert not (tmp_path / "weights-3").exists()
