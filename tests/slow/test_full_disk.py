"""A disk that fills up: one clear sentence, the checkpoint before it whole, and the same bytes once there is room."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from peft import LoraConfig, get_peft_model

from r1_aqa_repro import merge_adapter, train_grpo
from r1_aqa_repro.model import loading
from r1_aqa_repro.run.callbacks import StopOnSignal
from r1_aqa_repro.run.checkpoints import last_checkpoint, told_what_is_kept
from r1_aqa_repro.run.training_state import STAGING
from tests.conftest import ROOT
from tests.run.conftest import GRPO
from tests.text_world import COMMON

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

SETTINGS = [*COMMON, *GRPO, "--max_steps", "6", "--report_to", "tensorboard"]
PAGE = 4096  # bytes, what a tmpfs counts in


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 16 MB; a run of these tests takes 2 MB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=16m", "none", str(folder)]
    if shutil.which("mount") is None or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("mounting a file system is not allowed here")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


def fill(disk: Path, room: int) -> Path:
    """Put a file on the disk that leaves `room` bytes."""
    ballast = disk / "ballast"
    with open(ballast, "wb") as file:
        os.posix_fallocate(file.fileno(), 0, shutil.disk_usage(disk).free - room)
    return ballast


def arguments(run: Path, manifest: Path, model_folder: Path) -> list[str]:
    where = ["--output_dir", str(run), "--train_file", str(manifest), "--model_name_or_path", str(model_folder)]
    return [*SETTINGS, *where]


def pages(folder: Path) -> int:
    """Bytes that the files of a folder take on a tmpfs."""
    return sum(-(-path.stat().st_size // PAGE) * PAGE for path in folder.iterdir())


@pytest.fixture(scope="module")
def whole(manifest: Path, model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same run where there is room."""
    run = tmp_path_factory.mktemp("whole") / "run"
    assert train_grpo.main(arguments(run, manifest, model_folder)) == 0
    return run


def fills_up(disk: Path, event: str, step: int, room: int) -> type[StopOnSignal]:
    """A callback that fills the disk at this event of this step."""

    class FillsUp(StopOnSignal):
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            super().on_step_end(args, state, control, **kwargs)
            self.reached("step", state.global_step)

        def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            self.reached("save", state.global_step)

        def reached(self, *moment: Any) -> None:
            if moment == (event, step):
                fill(disk, room)

    return FillsUp


def assert_same(folder: Path, other: Path, *more: str) -> None:
    for name in ("model.safetensors", "tokenizer.json", "config.json", *more):
        assert (folder / name).read_bytes() == (other / name).read_bytes(), name


# the room left, as a part of what a checkpoint takes; its files are written in the order configuration, model (a third
# of the bytes), processor, optimizer (two thirds), scheduler, random state, trainer state
@pytest.mark.parametrize("part", [0.0, 0.01, 0.1, 0.29, 0.32, 0.34, 0.6, 0.93, 0.95, 0.985])
def test_wherever_a_checkpoint_stops_to_fit_the_run_says_so_and_goes_on(
    part: float, small_disk: Path, whole: Path, manifest: Path, model_folder: Path, monkeypatch: Any, capfd: Any
) -> None:
    run = small_disk / "run"
    argv = [*arguments(run, manifest, model_folder), "--report_to", "none"]  # nothing else is written meanwhile
    room = int(part * pages(whole / "checkpoint-2")) // PAGE * PAGE
    with monkeypatch.context() as patched:
        patched.setattr("r1_aqa_repro.run.loop.StopOnSignal", fills_up(small_disk, "step", 4, room))
        assert train_grpo.main(argv) == 1
    said = capfd.readouterr().err.splitlines()[-1]
    assert re.fullmatch(
        rf"error: {run}/checkpoint-4 could not be written: the disk is full \(0\.\d MB are free\)\. "
        rf"{run}/checkpoint-2 is whole: free some space and give the same command again\.",
        said,
    )
    assert last_checkpoint(run) == run / "checkpoint-2"
    assert_same(run / "checkpoint-2", whole / "checkpoint-2", "optimizer.pt", "rng_state.pth", "scheduler.pt")
    assert not (run / STAGING).exists()

    (small_disk / "ballast").unlink()
    assert train_grpo.main(argv) == 0
    assert f"resuming from {run}/checkpoint-2" in capfd.readouterr().err
    assert_same(run / "final", whole / "final")


def test_no_room_for_the_log(
    small_disk: Path, whole: Path, manifest: Path, model_folder: Path, monkeypatch: Any, capfd: Any
) -> None:
    """TensorBoard writes in a thread of its own, and fails some lines later."""
    run = small_disk / "run"
    argv = [*arguments(run, manifest, model_folder), "--save_steps", "6"]
    with monkeypatch.context() as patched:
        patched.setattr("r1_aqa_repro.run.loop.StopOnSignal", fills_up(small_disk, "step", 1, 0))
        assert train_grpo.main(argv) == 1
    said = capfd.readouterr().err.splitlines()[-1]
    assert said.startswith(f"error: the record of the run in {run} could not be written: the disk is full (0.0 MB")
    assert said.endswith("There is no checkpoint yet: free some space and give the same command again.")

    (small_disk / "ballast").unlink()
    assert train_grpo.main(argv) == 0
    assert_same(run / "final", whole / "final")


def test_no_room_for_the_final_model(
    small_disk: Path, whole: Path, manifest: Path, model_folder: Path, monkeypatch: Any, capfd: Any
) -> None:
    run = small_disk / "run"
    argv = arguments(run, manifest, model_folder)
    with monkeypatch.context() as patched:
        patched.setattr("r1_aqa_repro.run.loop.StopOnSignal", fills_up(small_disk, "save", 6, 10 * PAGE))
        assert train_grpo.main(argv) == 1
    said = capfd.readouterr().err.splitlines()[-1]
    assert said.startswith(f"error: {run}/final could not be written: the disk is full (0.0 MB")
    assert f"{run}/checkpoint-6 is whole" in said
    assert train_grpo.main(argv) == 2  # the check before the start sees it
    assert not (run / "final").exists()

    (small_disk / "ballast").unlink()
    assert train_grpo.main(argv) == 0
    assert_same(run / "final", whole / "final")


def test_other_errors_pass(small_disk: Path) -> None:
    for error in (OSError(5, "Input/output error"), RuntimeError("CUDA out of memory"), KeyError("x")):
        with pytest.raises(type(error)) as raised, told_what_is_kept(small_disk):
            raise error
        assert raised.value is error


def test_the_command_itself(small_disk: Path, whole: Path, manifest: Path, model_folder: Path) -> None:
    """A process of its own, whose disk is filled from outside: what it says last, and its exit code."""
    run = small_disk / "run"
    command = [sys.executable, "-m", "r1_aqa_repro.train_grpo", *arguments(run, manifest, model_folder)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    with open(run.parent.parent / "log", "w+", encoding="utf-8") as log:
        process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, cwd=ROOT, env=environment)
        while not (run / "checkpoint-2").is_dir():
            assert process.poll() is None
            time.sleep(0.001)
        fill(small_disk, 0)
        assert process.wait(timeout=120) == 1
        log.seek(0)
        text = log.read()
    last = last_checkpoint(run)
    assert last is not None and last.name in ("checkpoint-2", "checkpoint-4")
    assert "Traceback" not in text
    assert text.splitlines()[-1].startswith("error: ") and f"{last} is whole: free some space" in text.splitlines()[-1]

    (small_disk / "ballast").unlink()
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment, check=False)
    assert done.returncode == 0 and f"resuming from {last}" in done.stderr
    assert_same(run / "final", whole / "final")


def test_merging(small_disk: Path, model_folder: Path, tmp_path: Path, capfd: Any) -> None:
    """There is room for the weights, which is what is checked before the start, and for nothing more."""
    model, processor = loading.load(model_folder)
    adapter, out = tmp_path / "adapter", small_disk / "merged"
    get_peft_model(model, LoraConfig(target_modules=["q_proj"])).save_pretrained(adapter)
    processor.save_pretrained(adapter)
    ballast = fill(small_disk, pages(model_folder) - 4 * PAGE)
    argv = ["--adapter", str(adapter), "--out", str(out)]
    assert merge_adapter.main(argv) == 1
    said = capfd.readouterr().err.splitlines()[-1]
    assert said.startswith(
        f"error: {out} could not be written: the disk is full (0.2 MB are free). Nothing of it is left"
    )
    assert list(small_disk.iterdir()) == [ballast]
    fill(small_disk, 10 * PAGE)
    assert merge_adapter.main(argv) == 2  # now it is seen before the start

    ballast.unlink()
    assert merge_adapter.main(argv) == 0
    loading.load(out)
