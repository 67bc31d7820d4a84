"""SIGKILL at every stage of the embedded run: the same command again ends as if nothing had happened, to the byte."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import ROOT

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

# 96 questions are 6 steps of 16: the run ends in its second epoch
SIZES = [
    "--num_train", "96", "--num_held_out", "60", "--curve_questions", "10", "--max_steps", "9", "--save_steps", "2",
    "--reward_funcs", "random", "format", "--report_to", "none",
]  # fmt: skip
SFT = """
prompt_style: answer
max_steps: 6
examples_per_step: 16
learning_rate: 1.0e-3
bf16: false
activation_checkpointing: false
save_steps: 2
save_total_limit: 1
report_to: none
dataloader_pin_memory: false
"""
MOMENTS: dict[str, Callable[[Path], bool]] = {
    "while clips are made": lambda run: len(list((run / "data" / "train" / "audio").glob("*.wav"))) > 10,
    "in SFT": lambda run: (run / "sft" / "checkpoint-2").is_dir(),
    "in GRPO, first epoch": lambda run: (run / "checkpoint-2").is_dir(),
    "in GRPO, second epoch": lambda run: (run / "checkpoint-6").is_dir(),
    "while a checkpoint is written": lambda run: any((run / ".partial").glob("checkpoint-8/model*")),
    "in evaluation": lambda run: _size(run / "eval" / "after" / "predictions.jsonl") > 0,
}


def command(run: Path, sft_config: Path, *more: str) -> list[str]:
    script = str(ROOT / "scripts" / "embedded_run.py")
    return [sys.executable, script, *SIZES, "--sft_config", str(sft_config), "--output_dir", str(run), *more]


def start(arguments: list[str], log: Path) -> subprocess.Popen[bytes]:
    """Start in a process group of its own, so that a kill reaches the workers too."""
    with open(log, "ab") as output:
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        return subprocess.Popen(
            arguments, stdout=output, stderr=subprocess.STDOUT, start_new_session=True, env=environment
        )


def stop_when(process: subprocess.Popen[bytes], reached: Callable[[], bool], number: signal.Signals) -> int:
    """Send the signal to the whole group as soon as `reached`; returns the exit code."""
    deadline = time.monotonic() + 300
    while not reached():
        assert process.poll() is None, "the run ended before the moment came"
        assert time.monotonic() < deadline, "the moment never came"
        time.sleep(0.002)
    os.killpg(process.pid, number)
    return process.wait(timeout=120)


def outcome(run: Path) -> dict[str, bytes | dict[str, object]]:
    """Everything a run ends with, apart from times and memory."""
    files = [
        "data/train/manifest.jsonl", "data/held_out/mmau_format.json", "start/model.safetensors",
        "sft/final/model.safetensors", "final/model.safetensors", "eval/before/predictions.jsonl",
        "eval/after/predictions.jsonl", "eval/after/scores.json", "eval/blind_after/predictions.jsonl",
    ]  # fmt: skip
    results = json.loads((run / "results.json").read_text(encoding="utf-8"))
    for changing in ("seconds", "peak_memory_mb"):
        results.pop(changing)
    return {name: (run / name).read_bytes() for name in files} | {"results": results}


def _size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else 0


@pytest.fixture(scope="module")
def sft_config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("config") / "sft.yaml"
    path.write_text(SFT, encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def uninterrupted(sft_config: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("uninterrupted") / "run"
    log = run.parent / "log"
    assert start(command(run, sft_config), log).wait(timeout=600) == 0, log.read_text(errors="replace")[-3000:]
    return run


def test_killed_at_every_stage_ends_as_if_uninterrupted(sft_config: Path, uninterrupted: Path, tmp_path: Path) -> None:
    run, log = tmp_path / "run", tmp_path / "log"
    for moment in MOMENTS.values():
        process = start(command(run, sft_config), log)
        code = stop_when(process, lambda reached=moment: reached(run), signal.SIGKILL)  # type: ignore[misc]
        assert code == -signal.SIGKILL
        assert not (run / "results.json").exists()
    assert start(command(run, sft_config), log).wait(timeout=600) == 0
    text = log.read_text(encoding="utf-8", errors="replace")
    assert "resuming from" in text and "checkpoint-6" in text
    assert outcome(run) == outcome(uninterrupted)


def test_ctrl_c_saves_a_checkpoint_and_the_same_command_goes_on(
    sft_config: Path, uninterrupted: Path, tmp_path: Path
) -> None:
    run, log = tmp_path / "run", tmp_path / "log"
    process = start(command(run, sft_config), log)
    code = stop_when(process, lambda: (run / "checkpoint-4").is_dir(), signal.SIGINT)
    assert code == 130
    steps = sorted(int(path.name.split("-")[1]) for path in run.glob("checkpoint-*"))
    assert steps[-1] in (4, 5, 6) and not (run / "final").exists()
    assert "goes on" in log.read_text(encoding="utf-8", errors="replace")
    assert start(command(run, sft_config), log).wait(timeout=600) == 0
    for name in ("final/model.safetensors", "eval/after/predictions.jsonl"):
        assert (run / name).read_bytes() == (uninterrupted / name).read_bytes()


def test_another_seed_is_refused_in_the_same_folder_and_overwrite_starts_anew(
    sft_config: Path, uninterrupted: Path, tmp_path: Path
) -> None:
    before = (uninterrupted / "final" / "model.safetensors").read_bytes()
    log = tmp_path / "log"
    assert start(command(uninterrupted, sft_config, "--seed", "1"), log).wait(timeout=300) == 2
    assert "another run" in log.read_text(encoding="utf-8", errors="replace")
    assert (uninterrupted / "final" / "model.safetensors").read_bytes() == before
    # a changed setting of GRPO alone
    assert start(command(uninterrupted, sft_config, "--learning_rate", "1e-5"), log).wait(timeout=300) == 2
    assert "learning_rate" in log.read_text(encoding="utf-8", errors="replace")
    assert (uninterrupted / "final" / "model.safetensors").read_bytes() == before
