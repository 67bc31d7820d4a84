"""Starting modules in one or two CPU processes, as `scripts/lib/setup.sh` starts a training."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.conftest import ROOT

SETTINGS = [
    "--learning_rate", "1e-3", "--prompts_per_step", "4", "--max_prompts_per_device", "2", "--num_generations", "4",
    "--max_completion_length", "8", "--reward_funcs", "hashed", "--beta", "0.04", "--loss_type", "grpo",
    "--use_bias_correction_kl", "false", "--save_steps", "2", "--logging_steps", "1", "--report_to", "none",
    "--bf16", "false", "--activation_checkpointing", "false", "--dataloader_pin_memory", "false", "--use_cpu", "true",
    "--ddp_find_unused_parameters", "false",
]  # fmt: skip
ENVIRONMENT = os.environ | {
    "OMP_NUM_THREADS": "1",
    "CUDA_VISIBLE_DEVICES": "",
    "PYTHONPATH": str(ROOT),
    "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",  # ninja, with which DeepSpeed builds its op
}


def command(module: str, *arguments: object, processes: int = 2) -> list[str]:
    """What starts a module, or a program, in so many processes of this machine."""
    launcher = ["-m", "r1_aqa_repro.launch", "--standalone", "--nproc-per-node", str(processes)]
    program = [module] if module.endswith(".py") else ["-m", module]
    return [sys.executable, *(launcher if processes > 1 else []), *program, *map(str, arguments)]


def launch(module: str, *arguments: object, processes: int = 2) -> subprocess.CompletedProcess[str]:
    """Run it to its end; what it said is text."""
    line = command(module, *arguments, processes=processes)
    return subprocess.run(line, capture_output=True, text=True, timeout=500, env=ENVIRONMENT, cwd=ROOT, check=False)


@dataclass(frozen=True)
class Job:
    """A training run of `tests.distributed.driver`: what it trains on and where it writes (`run`, `records`)."""

    folder: Path
    manifest: Path
    model: Path
    strategy: str = "ddp"

    @property
    def run(self) -> Path:
        return self.folder / "run"

    def command(self, *settings: str, processes: int = 2, driver: tuple[str, ...] = ()) -> list[str]:
        return command("tests.distributed.driver", *self._arguments(settings, driver), processes=processes)

    def train(
        self, *settings: str, processes: int = 2, driver: tuple[str, ...] = ()
    ) -> subprocess.CompletedProcess[str]:
        return launch("tests.distributed.driver", *self._arguments(settings, driver), processes=processes)

    def _arguments(self, settings: tuple[str, ...], driver: tuple[str, ...]) -> list[object]:
        where = ["--output_dir", self.run, "--train_file", self.manifest, "--model_name_or_path", self.model]
        return [self.folder / "records", *driver, "--", *SETTINGS, *where, *deepspeed(self.strategy), *settings]

    def records(self, rank: int) -> list[dict[str, Any]]:
        """`step`, `ids` and `completions` of every batch of rows that a process has generated."""
        lines = (self.folder / "records" / f"rank-{rank}.jsonl").read_text(encoding="utf-8").splitlines()
        return [json.loads(line) for line in lines]


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def deepspeed(strategy: str) -> list[str]:
    """The arguments that choose `zero2` or `zero3`; none for `ddp`."""
    if strategy == "ddp":
        return []
    if shutil.which("c++") is None:
        pytest.skip("DeepSpeed on CPUs builds one op and there is no C++ compiler")
    return ["--deepspeed", str(ROOT / "configs" / "deepspeed" / f"{strategy}.json")]


def log_history(checkpoint: Path, key: str = "reward") -> list[dict[str, float]]:
    """The figures of every step up to this checkpoint: of the entries with this key."""
    state = json.loads((checkpoint / "trainer_state.json").read_text(encoding="utf-8"))
    return [entry for entry in state["log_history"] if key in entry]


def weights_of(folder: Path) -> dict[str, torch.Tensor]:
    """Those of a model, or of an adapter."""
    adapter = folder / "adapter_model.safetensors"
    return load_file(adapter if adapter.is_file() else folder / "model.safetensors")


def apart_and_come(start: Path, one: Path, other: Path) -> tuple[float, float]:
    """How far the weights of two folders are apart, and how far one has come from the start.

    Adam divides each gradient by its own size, so that rounding in the smallest ones is as large as their update: what
    counts is the distance between both, relative to the way from the start. A process that trained on its own gradients
    alone would be as far away as it has come.
    """
    begun, first, second = map(weights_of, (start, one, other))
    assert first.keys() == second.keys()

    def distance(far: dict[str, torch.Tensor]) -> float:
        return sum(float((first[name] - far[name]).square().sum()) for name in begun.keys() & first.keys()) ** 0.5

    come = distance(begun)
    assert come > 0
    return distance(second), come
