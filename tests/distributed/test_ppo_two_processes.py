"""PPO under torchrun with two CPU processes: as one process trains, and an exact resume; DDP, ZeRO-2, ZeRO-3, LoRA.

A run that goes on with another number of processes ends where it would have ended.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from r1_aqa_repro.ppo.trainer import CRITIC
from tests.distributed.launching import apart_and_come, deepspeed, launch, log_history
from tests.text_world import LORA, arguments

pytestmark = [pytest.mark.distributed, pytest.mark.timeout(600)]

STEPS = 4


Train = Callable[..., str]


@pytest.fixture(scope="module")
def train(policy: Path, text_set: Path, reward_model: Path) -> Train:
    """Trains in the folder `run` with `tests.distributed.fixed_driver`; what was said."""

    def of(
        run: Path,
        strategy: str,
        at_once: int,
        processes: int = 2,
        driver: tuple[str, ...] = (),
        more: Sequence[str] = (),
    ) -> str:
        done = launch(
            "tests.distributed.fixed_driver",
            *("ppo", *driver, *arguments("ppo", run, text_set, policy), *deepspeed(strategy), *more),
            *("--max_steps", STEPS, "--max_prompts_per_device", at_once, "--whiten_rewards", "true"),
            *("--num_mini_batches", "1", "--reward_model_name_or_path", reward_model),
            *("--reward_funcs", "letter", "reward_model"),
            processes=processes,
        )
        assert done.returncode == 0, done.stderr[-3000:]
        return done.stderr

    return of


@pytest.fixture(scope="module")
def alone(train: Train, tmp_path_factory: pytest.TempPathFactory) -> Callable[[bool], Path]:
    def of(adapters: bool) -> Path:
        run = tmp_path_factory.mktemp("alone") / "run"
        train(run, "ddp", 8, processes=1, more=LORA if adapters else ())
        return run

    return cache(of)


# a minibatch's 8 completions on 2 processes: 4 each at once, or 2 each, accumulated
@pytest.mark.parametrize(
    ("strategy", "at_once", "adapters"),
    [("ddp", 4, False), ("ddp", 2, False), ("ddp", 2, True), ("zero2", 2, False), ("zero3", 2, False)],
)
def test_two_processes_train_as_one(
    strategy: str,
    at_once: int,
    adapters: bool,
    alone: Callable[[bool], Path],
    train: Train,
    policy: Path,
    reward_model: Path,
    tmp_path: Path,
) -> None:
    one_run, together = alone(adapters), tmp_path / "run"
    train(together, strategy, at_once, more=LORA if adapters else ())
    logs = [log_history(run / f"checkpoint-{STEPS}") for run in (one_run, together)]
    for one, two in zip(*logs, strict=True):
        assert one.keys() == two.keys()
        for name in one.keys() - {"tokens_per_second"}:
            # sums of numbers of the order of 1 in another order, from weights that differ by as much; of about 60
            # tokens a few may lie so near the clip's edge that this decides
            close = 0.04 if name.startswith("clip_fraction") else 1e-5
            assert two[name] == pytest.approx(one[name], rel=1e-3, abs=close), name
        assert one["step"] == 1 or one["kl"] != 0  # the policy has moved
    half = one_run / "checkpoint-2"  # of adapters nothing is written before they have learned
    for start, part in ((half if adapters else policy, "."), (half / CRITIC if adapters else reward_model, CRITIC)):
        apart, come = apart_and_come(start, one_run / "final" / part, together / "final" / part)
        assert apart < 1e-3 * come


def test_one_process_goes_on_where_two_were(train: Train, policy: Path, reward_model: Path, tmp_path: Path) -> None:
    whole, fewer = tmp_path / "whole", tmp_path / "fewer"
    train(whole, "zero3", 4)
    shutil.copytree(whole, fewer, ignore=shutil.ignore_patterns("final", f"checkpoint-{STEPS}"))
    assert "resuming from" in train(fewer, "zero3", 4, processes=1)
    logs = [log_history(run / f"checkpoint-{STEPS}") for run in (whole, fewer)]
    for one, other in zip(*logs, strict=True):
        for name in ("learning_rate", "reward", "loss/policy", "loss/value"):
            assert other[name] == pytest.approx(one[name], rel=1e-3, abs=1e-5), name
    for start, part in ((policy, "."), (reward_model, CRITIC)):
        apart, come = apart_and_come(start, whole / "final" / part, fewer / "final" / part)
        assert apart < 1e-3 * come


def weights(run: Path) -> list[dict[str, torch.Tensor]]:
    """Those of policy and critic at the end."""
    return [load_file(folder / "model.safetensors") for folder in (run / "final", run / "final" / CRITIC)]


@pytest.mark.parametrize("strategy", ["ddp", "zero2"])
def test_a_resumed_run_ends_with_the_same_bytes(strategy: str, train: Train, tmp_path: Path) -> None:
    """Running freely: each process has random numbers of its own, which a resume brings back."""
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    train(whole, strategy, 8, driver=("--free",))
    shutil.copytree(whole, broken, ignore=shutil.ignore_patterns("final", f"checkpoint-{STEPS}"))
    assert "resuming from" in train(broken, strategy, 8, driver=("--free",))
    for one, other in zip(weights(whole), weights(broken), strict=True):
        assert one.keys() == other.keys() and all(value.equal(other[name]) for name, value in one.items())
