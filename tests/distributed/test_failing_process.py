"""Where one process fails or is refused, all end within a minute, with an error that says which one and why."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import pytest

from r1_aqa_repro.common.files import sole_use
from r1_aqa_repro.run.preflight import RUN_LOCK
from tests.distributed.launching import Job

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
