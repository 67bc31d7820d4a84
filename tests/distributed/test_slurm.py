"""The SLURM script on a cluster of two machines that are both this one: `srun` and `scontrol` are stand-ins."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from r1_aqa_repro.run.checkpoints import last_checkpoint
from tests.conftest import ROOT
from tests.distributed.launching import ENVIRONMENT, SETTINGS, free_port, log_history

pytestmark = [pytest.mark.distributed, pytest.mark.timeout(600)]

# As SLURM: runs the command once a machine, passes SIGTERM on to each task, ends with the highest exit code.
SRUN = """
import os, signal, subprocess, sys

command = sys.argv[next(i for i, word in enumerate(sys.argv) if i and not word.startswith("-")):]
tasks = [
    subprocess.Popen(command, env=os.environ | {"SLURM_NODEID": str(node)}, start_new_session=True) for node in (0, 1)
]
signal.signal(signal.SIGTERM, lambda *_: [task.send_signal(signal.SIGTERM) for task in tasks])
open(os.environ["FAKE_SLURM"] + "/srun.pid", "w").write(str(os.getpid()))
sys.exit(max(task.wait() for task in tasks))
"""
SCONTROL = """
import os, sys

if sys.argv[1:] == ["show", "hostnames", "machine[1-2]"]:
    print("127.0.0.1\\nmachine2")
else:
    open(os.environ["FAKE_SLURM"] + "/scontrol.log", "a").write(" ".join(sys.argv[1:]) + "\\n")
"""
# settings of the tests' own driver apart
KEYS = [value.replace("hashed", "random") for value in SETTINGS]


@pytest.fixture
def cluster(tmp_path: Path) -> Path:
    """A folder with the stand-ins, and a checkout that is set up with the environment of these tests."""
    for name, source in (("srun", SRUN), ("scontrol", SCONTROL)):
        program = tmp_path / name
        program.write_text(f"#!{sys.executable}\n{source}", encoding="utf-8")
        program.chmod(0o755)
    checkout = tmp_path / "checkout"
    checkout.mkdir()
    shutil.copytree(ROOT / "scripts", checkout / "scripts")
    for name in ("r1_aqa_repro", "configs", "pyproject.toml", "constraints.txt"):
        (checkout / name).symlink_to(ROOT / name)
    (checkout / ".venv" / "bin").mkdir(parents=True)
    python = checkout / ".venv" / "bin" / "python"
    python.write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n', encoding="utf-8")
    python.chmod(0o755)
    mark = '{ { cat -- pyproject.toml constraints.txt && printf %s "$(pwd -P)"; } | cksum && echo; } >.venv/.setup-done'
    subprocess.run(["bash", "-c", mark], cwd=checkout, check=True)
    return tmp_path


def start(cluster: Path, arguments: list[str]) -> subprocess.Popen[bytes]:
    """The batch script, as SLURM runs it; what it says goes to `cluster/log`."""
    slurm = {
        "SLURM_SUBMIT_DIR": str(cluster / "checkout"),
        "SLURM_JOB_ID": "4242",
        "SLURM_JOB_NUM_NODES": "2",
        "SLURM_JOB_NODELIST": "machine[1-2]",
        "MASTER_PORT": str(free_port()),
        "NPROC": "1",
        "FAKE_SLURM": str(cluster),
        "PATH": f"{cluster}:{ENVIRONMENT['PATH']}",
    }
    script = shutil.copy(ROOT / "scripts" / "slurm_grpo_audio.sbatch", cluster / "slurm_script")  # where SLURM has it
    with open(cluster / "log", "wb") as log:
        return subprocess.Popen(
            ["bash", str(script), *arguments],
            env=ENVIRONMENT | slurm,
            cwd=cluster,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )


def said(cluster: Path) -> str:
    return (cluster / "log").read_text(encoding="utf-8", errors="replace")


def test_two_machines_train_save_at_a_signal_and_go_on(cluster: Path, manifest: Path, model_folder: Path) -> None:
    run = cluster / "run"
    config = cluster / "config.yaml"
    config.write_text("prompt_style: answer\nmax_steps: 30\n", encoding="utf-8")
    where = ["--output_dir", str(run), "--train_file", str(manifest), "--model_name_or_path", str(model_folder)]
    arguments = ["--config", str(config), *KEYS, *where]

    job = start(cluster, arguments)
    deadline = time.monotonic() + 300
    while last_checkpoint(run) is None:
        assert job.poll() is None and time.monotonic() < deadline, said(cluster)[-3000:]
        time.sleep(0.02)
    os.kill(int((cluster / "srun.pid").read_text()), signal.SIGTERM)  # as SLURM's --signal does
    assert job.wait(timeout=120) == 130, said(cluster)[-3000:]
    assert (cluster / "scontrol.log").read_text() == "requeue 4242\n"
    saved = last_checkpoint(run)
    assert f"interrupted: saved {saved}" in said(cluster)
    assert saved is not None and not (run / "final").exists()
    assert {path.name for path in saved.glob("rng_state*")} == {"rng_state_0.pth", "rng_state_1.pth"}  # two processes

    job = start(cluster, arguments)  # as SLURM does it with a queued job
    assert job.wait(timeout=300) == 0, said(cluster)[-3000:]
    assert f"resuming from {saved}" in said(cluster) and (run / "final").is_dir()
    assert [entry["step"] for entry in log_history(run / "checkpoint-30")] == list(range(1, 31))
    assert (cluster / "scontrol.log").read_text() == "requeue 4242\n"  # not again


def test_a_refused_start_is_not_queued_again(cluster: Path, tmp_path: Path) -> None:
    job = start(cluster, ["--config", str(ROOT / "configs" / "grpo_embedded.yaml"), "--learning_rat", "1"])
    assert job.wait(timeout=300) == 2, said(cluster)[-3000:]
    assert "learning_rat" in said(cluster) and not (cluster / "scontrol.log").exists()
