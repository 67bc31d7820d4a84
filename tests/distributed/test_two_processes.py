"""The same entry point under torchrun with two CPU processes: DDP, ZeRO-2 and ZeRO-3."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from r1_aqa_repro import modeling
from tests.conftest import ROOT

pytestmark = [pytest.mark.distributed, pytest.mark.timeout(600)]

SETTINGS = [
    "--learning_rate", "1e-3", "--prompts_per_step", "4", "--max_prompts_per_device", "2", "--num_generations", "2",
    "--max_completion_length", "4", "--reward_funcs", "random", "--beta", "0.04", "--loss_type", "grpo",
    "--save_steps", "2", "--logging_steps", "1", "--report_to", "none", "--bf16", "false",
    "--activation_checkpointing", "false", "--dataloader_pin_memory", "false", "--use_cpu", "true",
    "--ddp_find_unused_parameters", "false",
]  # fmt: skip


def train(folder: Path, manifest: Path, model: Path, *more: str) -> subprocess.CompletedProcess[str]:
    where = ["--output_dir", str(folder), "--train_file", str(manifest), "--model_name_or_path", str(model)]
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    return subprocess.run(
        [*launcher, "-m", "r1_aqa_repro.train_grpo", *SETTINGS, *where, *more],
        capture_output=True,
        text=True,
        timeout=500,
        env=environment,
        cwd=ROOT,
        check=False,
    )


@pytest.mark.parametrize("strategy", ["ddp", "zero2", "zero3"])
def test_trains_saves_and_resumes(strategy: str, manifest: Path, model_folder: Path, tmp_path: Path) -> None:
    deepspeed = []
    if strategy != "ddp":
        if shutil.which("c++") is None:
            pytest.skip("DeepSpeed on CPUs builds one op and there is no C++ compiler")
        deepspeed = ["--deepspeed", str(ROOT / "configs" / "deepspeed" / f"{strategy}.json")]
    folder = tmp_path / "run"
    done = train(folder, manifest, model_folder, "--max_steps", "4", *deepspeed)
    assert done.returncode == 0, done.stderr[-3000:]
    final = modeling.load_model(folder / "final")
    start = modeling.load_model(model_folder)
    moved = [name for name, value in final.state_dict().items() if not value.equal(start.state_dict()[name])]
    assert len(moved) > 20
    modeling.load_processor(folder / "checkpoint-2")

    shutil.rmtree(folder / "final")
    shutil.rmtree(folder / "checkpoint-4")
    again = train(folder, manifest, model_folder, "--max_steps", "4", *deepspeed)
    assert again.returncode == 0, again.stderr[-3000:]
    assert "resuming from" in again.stderr
    state = json.loads((folder / "checkpoint-4" / "trainer_state.json").read_text(encoding="utf-8"))
    assert state["global_step"] == 4 and len([entry for entry in state["log_history"] if "reward" in entry]) == 4
    resumed = modeling.load_model(folder / "final").state_dict()
    assert all(value.equal(resumed[name]) for name, value in final.state_dict().items())


def test_prompts_that_do_not_divide_are_refused_once(manifest: Path, model_folder: Path, tmp_path: Path) -> None:
    done = train(tmp_path / "run", manifest, model_folder, "--max_steps", "1", "--prompts_per_step", "3")
    assert done.returncode != 0
    assert done.stderr.count("3 does not divide among 2 processes") == 1
    assert not (tmp_path / "run").exists()


def test_processes_that_would_train_alone_are_refused(manifest: Path, model_folder: Path, tmp_path: Path) -> None:
    """Without `use_cpu`, transformers takes each CPU process for the only one."""
    done = train(tmp_path / "run", manifest, model_folder, "--max_steps", "1", "--use_cpu", "false")
    assert done.returncode != 0
    assert "2 processes were started, but each would train alone" in done.stderr
    assert not (tmp_path / "run").exists()
