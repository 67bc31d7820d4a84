"""Where one process fails or is refused, all end within a minute, with an error that says which one and why."""

from __future__ import annotations

import json
import os
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from r1_aqa_repro.common.files import sole_use
from r1_aqa_repro.run.preflight import RUN_LOCK
from tests.conftest import ROOT
from tests.distributed.launching import ENVIRONMENT, Job, command

pytestmark = [pytest.mark.distributed, pytest.mark.timeout(600)]


@pytest.mark.parametrize(
    ("strategy", "how", "said"),
    [
        ("ddp", "reward", "this reward is broken"),
        ("zero3", "kill", "signal SIGKILL"),
        # Process 0 meets no broken connection, and SIGTERM merely asks it to stop after the step: as with a GPU kernel
        # that waits for ever. torchrun's SIGKILL ends it after 30 s.
        ("ddp", "kill-peer-stuck", "signal SIGKILL"),
    ],
)
def test_one_failing_process_ends_all(
    strategy: str, how: str, said: str, manifest: Path, model_folder: Path, tmp_path: Path
) -> None:
    job = Job(tmp_path, manifest, model_folder, strategy)
    done = job.train("--max_steps", "1000", driver=("--break", how))
    seconds = time.time() - (tmp_path / "records" / "broken").stat().st_mtime
    assert done.returncode == 1
    assert said in done.stderr and "error: process 1 failed" in done.stderr
    assert seconds < 60
    # the step in which it happened has left nothing behind, the one before its checkpoint
    assert sorted(path.name for path in job.run.glob("checkpoint-*")) == ["checkpoint-2"]
    print(f"{strategy}, {how}: {seconds:.1f} s")


def test_processes_of_a_second_run_in_a_folder_all_follow_the_refusal_of_the_main_one(
    manifest: Path, model_folder: Path, tmp_path: Path
) -> None:
    """Only the main process looks for the lock."""
    job = Job(tmp_path, manifest, model_folder)
    began = time.monotonic()
    with sole_use(job.run / RUN_LOCK, ""):
        done = job.train("--max_steps", "2", "--overwrite", "true")
    assert done.returncode == 2, done.stderr
    assert done.stderr.count(f"error: {job.run / RUN_LOCK}: process {os.getpid()} on ") == 1
    assert time.monotonic() - began < 120
    assert not job.run.exists()


@pytest.mark.parametrize("strategy", ["ddp", "zero2", "zero3"])
def test_a_loss_that_one_process_has_not_finite_is_learned_from_by_none(
    strategy: str, manifest: Path, model_folder: Path, tmp_path: Path
) -> None:
    job = Job(tmp_path, manifest, model_folder, strategy)
    done = job.train("--max_steps", "4", "--save_steps", "1", driver=("--break", "infinite"))
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("warning: step 3: its loss or gradient is not finite") == 1
    assert json.loads((job.run / "run.json").read_text(encoding="utf-8"))["skipped_steps"] == [3]
    second, third, fourth = ((job.run / f"checkpoint-{step}" / "model.safetensors").read_bytes() for step in (2, 3, 4))
    assert second == third != fourth


SLEEPER = """
import os, sys, time
from pathlib import Path
from r1_aqa_repro.common.errors import command

@command
def main(argv: list[str]) -> int:
    Path(argv[0], str(os.getpid())).touch()
    time.sleep(600)
    return 0

main()
"""


def test_processes_are_killed_with_what_has_launched_them(tmp_path: Path) -> None:
    """torchrun's would go on by themselves, and the same command would find its folder taken."""
    program, there = tmp_path / "sleeper.py", tmp_path / "there"
    program.write_text(SLEEPER, encoding="utf-8")
    there.mkdir()
    launcher = subprocess.Popen(command(str(program), there), env=ENVIRONMENT, cwd=ROOT)
    try:
        until(lambda: len(list(there.iterdir())) == 2 or launcher.poll() is not None)
    finally:
        launcher.kill()
        launcher.wait()
    processes = [int(path.name) for path in there.iterdir()]
    assert len(processes) == 2
    until(lambda: not any(Path("/proc", str(pid), "cmdline").exists() for pid in processes))


def until(holds: Callable[[], bool], seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.05)
