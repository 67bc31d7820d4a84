"""What is not finite reaches no weight, no checkpoint and no file of JSON."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from safetensors.torch import load_file
from transformers import Trainer

from r1_aqa_repro.common.errors import Failed
from r1_aqa_repro.common.files import as_json, as_lines, write_json
from r1_aqa_repro.rewards import registry
from r1_aqa_repro.rewards.rules import REWARDS, require_finite
from r1_aqa_repro.run import checkpoints
from r1_aqa_repro.run.callbacks import StopAtLoss, StopOnSignal
from r1_aqa_repro.run.checkpoints import ResumableTrainer
from r1_aqa_repro.run.finite_steps import shown_by_gradient
from tests.run.conftest import Start

KINDS = ["audio grpo", "audio sft", "sft", "grpo", "reward_model", "dpo"]
CONSTANT = ["--lr_scheduler_type", "constant"]


def read(file: Path) -> Any:
    """Of JSON as the standard has it."""

    def refuse(token: str) -> None:
        raise AssertionError(f"{file} holds {token}")

    return json.loads(file.read_text(encoding="utf-8"), parse_constant=refuse)


@pytest.fixture
def nan_at(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Makes the gradients of these steps NaN, in whatever trainer."""

    backward, init = Accelerator.backward, ResumableTrainer.__init__
    trainers: list[Any] = []
    bad: set[int] = set()

    def remember(self: Any, *args: Any, **kwargs: Any) -> None:
        trainers.append(self)
        init(self, *args, **kwargs)

    def broken(self: Accelerator, loss: torch.Tensor, **kwargs: Any) -> None:
        backward(self, loss * (math.nan if trainers[-1].state.global_step + 1 in bad else 1.0), **kwargs)

    def at(*steps: int) -> None:
        bad.clear()
        bad.update(steps)

    monkeypatch.setattr(ResumableTrainer, "__init__", remember)
    monkeypatch.setattr(Accelerator, "backward", broken)
    return at


@pytest.mark.parametrize("name", KINDS)
def test_a_step_with_a_nan_gradient_moves_nothing_and_is_counted(
    name: str, start: Start, nan_at: Callable[..., None], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    nan_at(3)
    assert start(name, tmp_path, *CONSTANT, "--max_steps", "4", "--save_steps", "1") == 0
    weights = [load_file(tmp_path / f"checkpoint-{step}" / "model.safetensors") for step in (2, 3, 4)]
    assert all(torch.equal(weights[0][key], weights[1][key]) for key in weights[0])
    assert not all(torch.equal(weights[1][key], weights[2][key]) for key in weights[0])
    adam = [torch.load(tmp_path / f"checkpoint-{step}" / "optimizer.pt")["state"] for step in (2, 3)]
    for before, after in zip(*(state.values() for state in adam), strict=True):
        assert all(torch.equal(before[key], after[key]) for key in before)

    assert read(tmp_path / "run.json")["skipped_steps"] == [3]
    log = read(tmp_path / "checkpoint-4" / "trainer_state.json")["log_history"]
    steps = {entry["step"]: entry for entry in log if "grad_norm" in entry}
    assert [step for step, entry in steps.items() if "skipped_steps" in entry] == [3, 4]
    assert steps[4]["skipped_steps"] == 1
    assert steps[3]["loss"] is None and steps[3]["grad_norm"] is None
    assert math.isfinite(steps[4]["loss"]) and math.isfinite(steps[4]["grad_norm"])
    assert "warning: step 3: its loss or gradient is not finite" in capfd.readouterr().err


def test_a_loss_that_is_not_finite_is_skipped_though_its_gradient_is(
    start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    computed = Trainer.compute_loss

    def infinite(self: Trainer, *args: Any, **kwargs: Any) -> Any:
        loss = computed(self, *args, **kwargs)
        return loss + (math.inf if self.state.global_step == 1 else 0.0)

    monkeypatch.setattr(Trainer, "compute_loss", infinite)
    assert start("audio sft", tmp_path, "--max_steps", "3", "--save_steps", "1") == 0
    assert read(tmp_path / "run.json")["skipped_steps"] == [2]
    first, second = ((tmp_path / f"checkpoint-{step}" / "model.safetensors").read_bytes() for step in (1, 2))
    assert first == second


def test_the_third_in_a_row_ends_the_run_which_goes_on_from_its_last_checkpoint(
    start: Start, nan_at: Callable[..., None], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    nan_at(1, 3, 4, 6, 7, 8)  # neither the first nor two in a row
    assert start("sft", tmp_path) == 1
    said = capfd.readouterr().err
    assert "error: the loss or its gradient was not finite 3 times in a row, up to step 8: " in said
    assert f"The last good checkpoint is {tmp_path / 'checkpoint-6'}" in said
    assert read(tmp_path / "run.json")["skipped_steps"] == [1, 3, 4, 6, 7, 8]
    assert not (tmp_path / "final").exists() and not (tmp_path / "checkpoint-8").exists()

    nan_at()
    assert start("sft", tmp_path) == 0
    assert read(tmp_path / "run.json")["skipped_steps"] == [1, 3, 4, 6]  # 7 and 8 were taken again


def test_without_a_checkpoint_the_end_says_so(
    start: Start, nan_at: Callable[..., None], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    nan_at(*range(1, 9))
    assert start("sft", tmp_path, "--save_steps", "8") == 1
    assert "up to step 3: nothing can be learned so. There is no checkpoint yet" in capfd.readouterr().err


@pytest.mark.parametrize("adapter", [False, True])
def test_the_last_good_checkpoint_can_be_started_from_as_is_said(adapter: bool, tmp_path: Path) -> None:
    (tmp_path / "checkpoint-2").mkdir()
    write_json(tmp_path / "checkpoint-2" / ("adapter_config.json" if adapter else "config.json"), {"r": 1})
    write_json(tmp_path / "checkpoint-2" / "trainer_state.json", {})
    said = checkpoints.last_good(tmp_path)
    assert f"The last good checkpoint is {tmp_path / 'checkpoint-2'}: " in said
    assert ("merged with r1_aqa_repro.merge_adapter" in said) is adapter  # as it is an adapter would be refused


@pytest.mark.parametrize("name", ["audio grpo", "audio sft"])
def test_training_with_finite_gradients_gives_the_bytes_that_it_gives_unwatched(
    name: str, start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert start(name, tmp_path / "watched", "--max_steps", "3") == 0
    monkeypatch.setattr(checkpoints, "shown_by_gradient", lambda loss: loss)
    monkeypatch.setattr(ResumableTrainer, "_get_grad_norm", Trainer._get_grad_norm)
    assert start(name, tmp_path / "unwatched", "--max_steps", "3") == 0
    one, other = ((tmp_path / run / "final" / "model.safetensors").read_bytes() for run in ("watched", "unwatched"))
    assert one == other


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_weights_that_are_not_finite_are_not_saved(
    value: float, start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """As an overflow in the optimizer's own step leaves them."""

    class Spoil(StopOnSignal):
        def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
            if state.global_step == 4:
                with torch.no_grad():
                    model.get_output_embeddings().weight[7, 3] = value

    monkeypatch.setattr("r1_aqa_repro.run.loop.StopOnSignal", Spoil)
    assert start("audio sft", tmp_path) == 1
    said = capfd.readouterr().err
    tensor = "lm_head.weight of model.safetensors"
    assert f"error: {tmp_path / 'checkpoint-4'} is not saved: its weights are not finite (" in said
    assert tensor in said and f"The last good checkpoint is {tmp_path / 'checkpoint-2'}" in said
    assert sorted(path.name for path in tmp_path.glob("checkpoint*")) == ["checkpoint-2"]
    assert not (tmp_path / "final").exists() and not (tmp_path / ".partial").exists()


# --- Rewards


def test_a_reward_that_is_no_number_ends_grpo_by_function_and_completion(
    start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def broken(completions: Sequence[Any], **_: Any) -> list[float]:
        return [0.5] * (len(completions) - 1) + [math.nan]

    monkeypatch.setitem(REWARDS, "random", broken)
    assert start("audio grpo", tmp_path) == 1
    assert "error: the reward random gave nan for the completion '" in capfd.readouterr().err


def test_a_reward_model_that_gives_no_number_ends_grpo(
    start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """TRL asks it by itself, and takes NaN for a reward that does not apply."""
    load: Any = registry.load_rewards

    def spoilt(*args: Any, **kwargs: Any) -> Any:
        rewards = load(*args, **kwargs)
        rewards["reward_model"].model.score.weight.data.fill_(math.inf)
        return rewards

    monkeypatch.setattr("r1_aqa_repro.rewards.registry.load_rewards", spoilt)
    assert start("grpo", tmp_path) == 1
    assert "error: the reward reward_model gave " in capfd.readouterr().err


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 1e39])
def test_a_reward_has_to_be_a_number_of_float32(value: float) -> None:
    assert require_finite("mine", [None, 1, 0.5], ["a", "b", "c"]) == [None, 1, 0.5]
    with pytest.raises(Failed, match=re.escape(f"the reward mine gave {value} for the completion 'second'")):
        require_finite("mine", [0.0, value], ["first", "second"])


# --- Figures


def test_a_loss_shows_in_its_gradient_only_if_it_is_not_finite() -> None:
    for loss, expected in ((2.5, 3.0), (math.inf, math.nan), (math.nan, math.nan)):
        weight = torch.tensor(1.0, requires_grad=True)
        shown = shown_by_gradient(3 * weight + loss - 3)
        shown.backward()
        assert weight.grad is not None
        torch.testing.assert_close(weight.grad, torch.tensor(expected), equal_nan=True, rtol=0, atol=0)


def test_losses_that_are_null_do_not_end_a_run_early() -> None:
    stop = StopAtLoss(0.1)
    log = [{"loss": 0.05} for _ in range(stop.WINDOW - 1)]
    assert not stop.reached([*log, {"loss": None}])  # type: ignore[dict-item]
    assert stop.reached([*log, {"loss": None}, {"loss": 0.05}])  # type: ignore[dict-item]


def test_json_that_is_written_is_json(tmp_path: Path) -> None:
    value = {"a": [math.nan, 1.5, (math.inf, "x")], "b": {"c": -math.inf}, "d": None}
    expected = {"a": [None, 1.5, [None, "x"]], "b": {"c": None}, "d": None}
    write_json(tmp_path / "file.json", value)
    assert read(tmp_path / "file.json") == expected
    assert as_lines([value, {"a": 1.5}]) == json.dumps(expected) + '\n{"a": 1.5}\n'
    assert as_json({"é": 1}) == '{"é": 1}' and as_json({"é": 1}, ensure_ascii=True) == '{"\\u00e9": 1}'
