"""PPO under torchrun with two CPU processes: as one process trains, and an exact resume; DDP, ZeRO-2 and ZeRO-3."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from r1_aqa_repro.ppo.trainer import CRITIC
from tests.conftest import ROOT
from tests.distributed.launching import ENVIRONMENT, deepspeed

pytestmark = [pytest.mark.distributed, pytest.mark.timeout(600)]

STEPS = 4


def train(run: Path, model: Path, data: Path, reward_model: Path, processes: int, strategy: str, *settings: str) -> str:
    """Train in the folder `run`; what was said. `settings` may begin with the driver's own."""
    launcher = ["-m", "r1_aqa_repro.launch", "--standalone", "--nproc-per-node", str(processes)]
    keys = {
        "output_dir": run, "model_name_or_path": model, "train_file": data, "reward_model_name_or_path": reward_model,
        "prompts_per_step": 8, "num_ppo_epochs": 2, "max_completion_length": 6, "vf_coef": 0.5, "learning_rate": 1e-3,
        "max_steps": STEPS, "save_steps": 2, "logging_steps": 1, "report_to": "none", "use_cpu": "true", "seed": 1,
        "whiten_rewards": "true", "dataloader_pin_memory": "false",
    }  # fmt: skip
    driver = [each for each in settings if each == "--free"]
    done = subprocess.run(
        [
            sys.executable,
            *(launcher if processes > 1 else []),
            *("-m", "tests.ppo.driver", *driver),
            *(str(part) for key, value in keys.items() for part in (f"--{key}", value)),
            *("--reward_funcs", "letter", "reward_model", *deepspeed(strategy)),
            *(each for each in settings if each != "--free"),
        ],
        capture_output=True,
        text=True,
        timeout=500,
        env=ENVIRONMENT,
        cwd=ROOT,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stderr


def log_of(run: Path) -> list[dict[str, Any]]:
    state = json.loads((run / f"checkpoint-{STEPS}" / "trainer_state.json").read_text(encoding="utf-8"))
    return state["log_history"]


def weights(run: Path) -> list[dict[str, torch.Tensor]]:
    """Those of policy and critic at the end."""
    return [load_file(folder / "model.safetensors") for folder in (run / "final", run / "final" / CRITIC)]


@pytest.fixture(scope="module")
def alone(model: Path, data: Path, reward_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("alone") / "run"
    train(run, model, data, reward_model, 1, "ddp", "--max_prompts_per_device", "8")
    return run


# a minibatch's 8 completions on 2 processes: 4 each at once, or 2 each, accumulated
@pytest.mark.parametrize(("strategy", "at_once"), [("ddp", 4), ("ddp", 2), ("zero2", 2), ("zero3", 2)])
def test_two_processes_train_as_one(
    strategy: str, at_once: int, alone: Path, model: Path, data: Path, reward_model: Path, tmp_path: Path
) -> None:
    train(tmp_path / "run", model, data, reward_model, 2, strategy, "--max_prompts_per_device", str(at_once))
    for one, two in zip(log_of(alone), log_of(tmp_path / "run"), strict=True):
        assert one.keys() == two.keys()
        for name in one.keys() - {"tokens_per_second"}:
            # sums of numbers of the order of 1 in another order, from weights that differ by as much
            assert two[name] == pytest.approx(one[name], rel=1e-3, abs=1e-5), name
        assert one["step"] == 1 or one["kl"] != 0  # the policy has moved
    # Adam divides each gradient by its own size, so that rounding in the smallest ones is as large as their update:
    # what counts is the distance between both, relative to the way from the start. A process that trained on its own
    # gradients alone would be as far away as it has come.
    starts = [load_file(folder / "model.safetensors") for folder in (model, reward_model)]
    for start, alone_at, together_at in zip(starts, weights(alone), weights(tmp_path / "run"), strict=True):
        assert start.keys() == alone_at.keys() == together_at.keys()
        apart = sum(float((together_at[name] - alone_at[name]).square().sum()) for name in start) ** 0.5
        come = sum(float((alone_at[name] - start[name]).square().sum()) for name in start) ** 0.5
        assert come > 0 and apart < 1e-3 * come


@pytest.mark.parametrize("strategy", ["ddp", "zero2"])
def test_a_resumed_run_ends_with_the_same_bytes(
    strategy: str, model: Path, data: Path, reward_model: Path, tmp_path: Path
) -> None:
    """Running freely: each process has random numbers of its own, which a resume brings back."""
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    train(whole, model, data, reward_model, 2, strategy, "--free")
    shutil.copytree(whole, broken, ignore=shutil.ignore_patterns("final", f"checkpoint-{STEPS}"))
    said = train(broken, model, data, reward_model, 2, strategy, "--free")
    assert "resuming from" in said
    for one, other in zip(weights(whole), weights(broken), strict=True):
        assert one.keys() == other.keys() and all(value.equal(other[name]) for name, value in one.items())
