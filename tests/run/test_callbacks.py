"""What a person sees of a run that does not write to a terminal."""

from __future__ import annotations

from typing import Any

import pytest
from transformers import TrainerControl, TrainerState, TrainingArguments

from r1_aqa_repro.run import callbacks
from r1_aqa_repro.run.callbacks import ProgressLines, figures_of


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


@pytest.mark.parametrize("names", [("accuracy_reward", "format_reward"), ("r1_aqa_accuracy", "r1_aqa_format")])
def test_accuracy_and_format_are_shown_by_whichever_rule(names: tuple[str, str]) -> None:
    logged = {f"rewards/{name}/mean": value for name, value in zip(names, (0.25, 1.0), strict=True)}
    assert figures_of(logged) == {"accuracy": "0.250", "format": "1.000"}
    watched = {"rewards/lenient_accuracy/mean": 0.75} | logged  # the rule that the benchmark shares comes first
    assert figures_of(watched)["accuracy"] == "0.250"
