"""SIGKILL at every stage of the embedded run, and twenty times in a row while training: the same command again ends as
if nothing had happened, to the byte."""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from ctypes import c_int
from pathlib import Path
from typing import Any

import pytest
from accelerate import Accelerator

from r1_aqa_repro import train_grpo
from r1_aqa_repro.grpo.trainer import AudioGRPOTrainer
from r1_aqa_repro.run import loop
from r1_aqa_repro.run.callbacks import StopOnSignal
from r1_aqa_repro.run.checkpoints import ResumableTrainer
from r1_aqa_repro.run.training_state import STAGING
from scripts import embedded_run
from tests.conftest import ROOT
from tests.run.conftest import GRPO
from tests.text_world import COMMON

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
    "Ctrl-C in GRPO": lambda run: (run / "checkpoint-4").is_dir(),
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


def test_killed_and_interrupted_at_every_stage_ends_as_if_it_had_not_been(
    sft_config: Path, uninterrupted: Path, tmp_path: Path
) -> None:
    run, log = tmp_path / "run", tmp_path / "log"
    for name, moment in MOMENTS.items():
        number, code = (signal.SIGINT, 130) if "Ctrl-C" in name else (signal.SIGKILL, -signal.SIGKILL)
        process = start(command(run, sft_config), log)
        assert stop_when(process, lambda reached=moment: reached(run), number) == code, name  # type: ignore[misc]
        assert not (run / "results.json").exists()
        if "Ctrl-C" in name:
            assert highest_checkpoint(run) in (5, 6) and not (run / "final").exists()  # 4 is whole, the next is saved
    assert start(command(run, sft_config), log).wait(timeout=600) == 0
    text = log.read_text(encoding="utf-8", errors="replace")
    assert re.search(r"interrupted: saved (\S+/checkpoint-\d+); the same command goes on from \1", text)
    assert "resuming from" in text and "checkpoint-6" in text
    assert outcome(run) == outcome(uninterrupted)


def test_other_settings_are_refused_in_the_same_folder(
    sft_config: Path, uninterrupted: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    before = (uninterrupted / "final" / "model.safetensors").read_bytes()
    for more, said in ((["--seed", "1"], "seed was 0, now it is 1"), (["--learning_rate", "1e-5"], "learning_rate")):
        assert embedded_run.main(command(uninterrupted, sft_config, *more)[2:]) == 2
        assert said in capfd.readouterr().err
        assert (uninterrupted / "final" / "model.safetensors").read_bytes() == before


# 24 questions are 6 steps of 4: the run goes through several epochs
SAVE_STEPS = 3
TRAINING = [
    *COMMON, *GRPO, "--max_completion_length", "6", "--max_steps", "90", "--save_steps", str(SAVE_STEPS),
]  # fmt: skip
PHASES = ("start-up", "generation", "backward", "checkpoint", "between")
# What each of the twenty kills waits for, a phase or a file that is being written, before a random delay of up to so
# many seconds passes. A start takes about one, a step 0.06, a checkpoint 0.03.
AIMS = 2 * [
    ("start-up", 0.3), ("generation", 0.005), ("backward", 0.01), ("checkpoint", 0.03), ("config.json", 0.005),
    ("generation", 0.2), ("backward", 0.01), ("model.safetensors", 0.002), ("optimizer.pt", 0.002), ("start-up", 1.2),
]  # fmt: skip


def train_watched(argv: list[str], log: Path, seen: Any) -> None:
    """The training command, in a process that notes what it is doing in memory that outlives it.

    Args:
        argv: of the command.
        log: file to which it prints.
        seen: [index in PHASES, times that a phase began, steps taken].
    """
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(file, 1)
    os.dup2(file, 2)

    def note(kind: type, name: str, phase: str) -> None:
        method = getattr(kind, name)

        def noted(*args: Any, **kwargs: Any) -> Any:
            seen[0], seen[1] = PHASES.index(phase), seen[1] + 1
            result = method(*args, **kwargs)
            seen[0] = PHASES.index("between")
            return result

        setattr(kind, name, noted)

    class Counts(StopOnSignal):
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            seen[2] = state.global_step
            super().on_step_end(args, state, control, **kwargs)

    note(AudioGRPOTrainer, "_generate_single_turn", "generation")
    note(Accelerator, "backward", "backward")
    note(ResumableTrainer, "_save_checkpoint", "checkpoint")
    loop.StopOnSignal = Counts  # type: ignore[misc]
    sys.exit(train_grpo.main(argv))


def wait_for(aim: str, nth: int, run: Path, seen: Any, is_alive: Callable[[], bool]) -> None:
    """Return when the phase begins for the `nth` time, or when the file of the `nth` new checkpoint appears."""
    deadline, began, last = time.monotonic() + 120, 0, 0
    file = run / STAGING / f"checkpoint-{highest_checkpoint(run) + nth * SAVE_STEPS}" / aim
    while began < nth:
        assert is_alive() and time.monotonic() < deadline, f"{aim} never came"
        phase = PHASES[seen[0]]
        if aim not in PHASES:
            began = nth * (phase == "checkpoint" and file.exists())  # an earlier kill may have left one
        elif seen[1] != last:
            began, last = began + (phase == aim), seen[1]
        time.sleep(0.0005)


def highest_checkpoint(run: Path) -> int:
    return max((int(path.name.split("-")[1]) for path in run.glob("checkpoint-*")), default=0)


def assert_whole(checkpoint: Path, other: Path) -> None:
    """The files of a checkpoint are those of another run's, to the byte but for times and names."""
    names = {path.name for path in other.iterdir()}
    assert {path.name for path in checkpoint.iterdir()} == names
    for name in names - {"training_args.bin", "trainer_state.json", "README.md"}:
        assert (checkpoint / name).read_bytes() == (other / name).read_bytes(), f"{checkpoint}: {name}"
    assert figures(checkpoint) == figures(other)


def figures(checkpoint: Path) -> list[tuple[float, ...]]:
    """Step, reward, KL and gradient norm of every step up to a checkpoint."""
    state = json.loads((checkpoint / "trainer_state.json").read_text(encoding="utf-8"))
    return [tuple(entry[key] for key in ("step", "reward", "kl", "grad_norm")) for entry in state["log_history"]]


def test_killed_twenty_times_in_a_row(manifest: Path, model_folder: Path, tmp_path: Path) -> None:
    """Whatever it is doing, the run goes on from its last complete checkpoint, and ends with the same bytes.

    The processes that are killed are forked from one that has imported everything: a start takes a second, not ten.
    """
    common = [*TRAINING, "--train_file", str(manifest), "--model_name_or_path", str(model_folder)]
    whole, run = tmp_path / "whole", tmp_path / "run"
    module = [sys.executable, "-m", "r1_aqa_repro.train_grpo"]
    assert start([*module, *common, "--output_dir", str(whole)], tmp_path / "whole.log").wait(timeout=300) == 0
    argv = [*common, "--output_dir", str(run), "--save_total_limit", "3"]

    forking = multiprocessing.get_context("forkserver")
    forking.set_forkserver_preload(["r1_aqa_repro.train_grpo", "peft", __name__])
    rng, hit, half_written = random.Random(0), Counter[str](), 0
    for number, (aim, longest_delay) in enumerate(AIMS, 1):
        before, log, seen = highest_checkpoint(run), tmp_path / f"log-{number}", forking.RawArray(c_int, 3)
        process = forking.Process(target=train_watched, args=(argv, log, seen))
        process.start()
        if aim != "start-up":
            wait_for(aim, rng.randint(1, 3), run, seen, process.is_alive)
        time.sleep(rng.uniform(0, longest_delay))
        process.kill()
        process.join()
        said = log.read_text(encoding="utf-8", errors="replace") if log.exists() else ""
        assert process.exitcode == -signal.SIGKILL, said[-3000:]

        phase, steps, after = PHASES[seen[0]], seen[2], highest_checkpoint(run)
        hit[phase] += 1
        half_written += phase == "checkpoint" and any(run.glob(f"{STAGING}/*/*"))
        print(f"kill {number}: in {phase} ({aim}), begun at step {before}, at {steps}; checkpoint-{after} is the last")
        resumed = re.findall(r"resuming from \S*/checkpoint-(\d+) ", said)
        if before == 0 or (phase == "start-up" and not resumed):
            assert resumed == []
        else:
            assert resumed == [str(before)]
        assert before <= after and steps - after <= SAVE_STEPS
        if after:
            assert_whole(run / f"checkpoint-{after}", whole / f"checkpoint-{after}")
    print(f"phases: {dict(hit)}; half-written checkpoints: {half_written}")
    assert min(hit["start-up"], hit["generation"], hit["backward"]) >= 1 and hit["checkpoint"] >= 4
    assert half_written >= 3

    assert start([*module, *argv], tmp_path / "log").wait(timeout=300) == 0
    assert_whole(run / "checkpoint-90", whole / "checkpoint-90")
    assert (run / "final" / "model.safetensors").read_bytes() == (whole / "final" / "model.safetensors").read_bytes()
    assert not (run / STAGING).exists()
