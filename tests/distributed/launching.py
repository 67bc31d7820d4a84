"""Starting `tests.distributed.driver` in one or two CPU processes, as `scripts/lib/setup.sh` starts a training."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

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
    "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",  # ninja, with which DeepSpeed builds its op
}


@dataclass(frozen=True)
class Job:
    """A training run of the driver: what it trains on and where it writes (`run`, `records`)."""

    folder: Path
    manifest: Path
    model: Path
    strategy: str = "ddp"

    @property
    def run(self) -> Path:
        return self.folder / "run"

    def command(self, *settings: str, processes: int = 2, driver: tuple[str, ...] = ()) -> list[str]:
        launcher = ["-m", "r1_aqa_repro.launch", "--standalone", "--nproc-per-node", str(processes)]
        where = ["--output_dir", self.run, "--train_file", self.manifest, "--model_name_or_path", self.model]
        return [
            sys.executable,
            *(launcher if processes > 1 else []),
            *("-m", "tests.distributed.driver", str(self.folder / "records"), *driver, "--"),
            *(*SETTINGS, *map(str, where), *deepspeed(self.strategy), *settings),
        ]

    def train(
        self, *settings: str, processes: int = 2, driver: tuple[str, ...] = ()
    ) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            self.command(*settings, processes=processes, driver=driver),
            capture_output=True,
            text=True,
            timeout=500,
            env=ENVIRONMENT,
            cwd=ROOT,
            check=False,
        )

    def records(self, rank: int) -> list[dict[str, Any]]:
        """`step`, `ids` and `completions` of every batch of rows that a process has generated."""
        lines = (self.folder / "records" / f"rank-{rank}.jsonl").read_text(encoding="utf-8").splitlines()
        return [json.loads(line) for line in lines]


def deepspeed(strategy: str) -> list[str]:
    """The arguments that choose `zero2` or `zero3`; none for `ddp`."""
    if strategy == "ddp":
        return []
    if shutil.which("c++") is None:
        pytest.skip("DeepSpeed on CPUs builds one op and there is no C++ compiler")
    return ["--deepspeed", str(ROOT / "configs" / "deepspeed" / f"{strategy}.json")]


def log_history(checkpoint: Path) -> list[dict[str, float]]:
    """The figures of every step up to this checkpoint."""
    state = json.loads((checkpoint / "trainer_state.json").read_text(encoding="utf-8"))
    return [entry for entry in state["log_history"] if "reward" in entry]
