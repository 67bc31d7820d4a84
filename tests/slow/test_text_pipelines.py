"""The text pipelines as a user starts them, one folder of runs for all: what they show, and that they go on."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from transformers import GenerationConfig

from r1_aqa_repro.embedded.tiny_qwen2 import TEST_TEXT, build_tiny_qwen2
from tests.conftest import ROOT

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1500)]

TWO_STAGES = str(ROOT / "scripts" / "two_stage_text.py")
SPARSE = str(ROOT / "scripts" / "sparse_reward_text.py")


def begin(arguments: list[str], log: Path) -> subprocess.Popen[bytes]:
    with open(log, "ab") as output:
        environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
        return subprocess.Popen([sys.executable, *arguments], stdout=output, stderr=output, env=environment)


def finish(arguments: list[str], log: Path) -> str:
    """Run a command to its end; what it has printed."""
    assert begin(arguments, log).wait(timeout=1200) == 0, log.read_text(encoding="utf-8", errors="replace")[-3000:]
    return log.read_text(encoding="utf-8", errors="replace")


def stop_when(process: subprocess.Popen[bytes], reached: Callable[[], bool], number: signal.Signals) -> int:
    """Send a signal as soon as `reached`; returns the exit code."""
    deadline = time.monotonic() + 600
    while not reached():
        assert process.poll() is None, "the run ended before the moment came"
        assert time.monotonic() < deadline, "the moment never came"
        time.sleep(0.002)
    process.send_signal(number)
    return process.wait(timeout=120)


def results_of(run: Path) -> dict[str, Any]:
    return json.loads((run / "results.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def two_stages(runs: Path) -> tuple[Path, str]:
    """The run, made where it is not there yet, and what it has printed in the end."""
    run = runs / "two_stage_text"
    return run, finish([TWO_STAGES, "--output_dir", str(run)], runs.with_name("two_stages.log"))


def test_both_stages_end_above_the_start_and_each_alone(two_stages: tuple[Path, str]) -> None:
    run, printed = two_stages
    results = results_of(run)
    assert results["before"]["n"] == results["after"]["n"] >= 600
    assert results["gain"]["true_reward"] > 0.1 and results["gain"]["ci95"][0] > 0
    assert results["chance"]["true_reward"] < results["after"]["true_reward"]
    assert set(results["stages"]) == {"start", "offline alone", "online alone", "both stages"}
    assert results["stages"]["both stages"]["true_reward"] == results["after"]["true_reward"]
    for part in ("offline alone", "online alone"):
        assert results["gains_over_parts"][part]["ci95"][0] > 0
        assert part in printed
    assert "The two stages end above offline alone" in printed
    # each stage is about its own tasks
    by_task = {name: block["by_task"] for name, block in results["stages"].items()}
    for task in ("maths", "code"):
        assert by_task["offline alone"][task]["true_reward"] > by_task["start"][task]["true_reward"]
    for task in ("list", "safety"):
        assert by_task["online alone"][task]["true_reward"] > by_task["start"][task]["true_reward"]


def test_four_algorithms_side_by_side(runs: Path) -> None:
    """With few samples: two steps of GRPO, of which the first warms up. What each is worth takes ten times as many."""
    folder = runs / "compare_algorithms"
    command = ["-m", "scripts.compare_algorithms", "--output-dir", str(folder), "--samples", "256"]
    printed = finish(command, runs.with_name("compare.log"))
    comparison = json.loads((folder / "comparison.json").read_text(encoding="utf-8"))
    algorithms = comparison["algorithms"]
    assert list(algorithms) == ["best of n", "DPO", "PPO", "GRPO"]
    for name, block in algorithms.items():
        assert block["n"] >= 400 and block["gain"]["ci95"][0] < block["gain"]["true_reward"] < block["gain"]["ci95"][1]
        assert block["samples"] == (0 if name == "best of n" else 256)
        assert block["seconds"] > 0 and block["seconds_a_step"] > 0 and block["memory_mb"] > 1
        assert block["kl"]["nats_an_answer"] >= 0
        assert name in printed
    # by the reward model, which ranks 95 % of pairs rightly, the best of eight is better than any one
    assert algorithms["best of n"]["gain"]["ci95"][0] > 0.1
    assert (algorithms["PPO"]["steps"], algorithms["GRPO"]["steps"]) == (4, 2)
    assert algorithms["PPO"]["trainable_parameters"] > algorithms["GRPO"]["trainable_parameters"]
    assert (folder / "comparison.png").stat().st_size > 10_000


def test_a_sparse_reward_is_found_by_patience(runs: Path) -> None:
    run = runs / "sparse_reward_text"
    printed = finish([SPARSE, "--output_dir", str(run)], runs.with_name("sparse.log"))
    results = results_of(run)
    # 0.01 exactly but for what the start has not learned evenly: 4 standard errors of 960 answers are 0.013
    assert results["before"]["accuracy"] < 0.03
    assert results["after"]["accuracy"] > 0.8 and results["after"]["ci95"][0] > results["before"]["ci95"][1]
    by_run = results["runs"]
    # (1 - 0.01)^8 = 0.92 and (1 - 0.01)^64 = 0.53 at the very start; larger groups leave it sooner
    assert by_run["small groups"]["silent_at_first"] > 0.7 > by_run["large groups"]["silent_at_first"]
    # fewer steps for more completions a step, and no fewer completions
    assert by_run["large groups"]["steps_to_half"] < by_run["small groups"]["steps_to_half"]
    assert by_run["dynamic sampling"]["steps_to_half"] < by_run["small groups"]["steps_to_half"]
    assert by_run["large groups"]["completions_to_half"] > by_run["small groups"]["completions_to_half"]
    curve = list(by_run["small groups"]["accuracy_by_steps"].values())
    assert curve[0] < 0.1 and curve[-1] > 0.7
    assert "accuracy of what was sampled" in printed
    assert (run / "learning_curve.png").stat().st_size > 10_000


def test_best_of_n_after_kills_ends_with_the_same_bytes(tmp_path: Path) -> None:
    model, prompts, log = tmp_path / "model", tmp_path / "prompts.jsonl", tmp_path / "log"
    build_tiny_qwen2(model, texts=["Say 0 1 2 3 4 5 6 7 8 9."], seed=0, geometry=TEST_TEXT)
    ends = GenerationConfig.from_pretrained(model)
    ends.eos_token_id = [ends.eos_token_id, *range(100, 140)]
    ends.save_pretrained(model)
    lines = [
        json.dumps({"id": f"p{i}", "prompt": [{"role": "user", "content": f"Say {i}."}]}) + "\n" for i in range(300)
    ]
    prompts.write_text("".join(lines), encoding="utf-8")

    def command(out: Path) -> list[str]:
        options = ["--rewards", "length_penalty", "--max-new-tokens", "12", "--length-penalty-cache", "12"]
        files = ["--model", str(model), "--prompts", str(prompts), "--out", str(out)]
        return ["-m", "r1_aqa_repro.best_of_n", *files, *options, "--num", "4", "--batch-size", "3"]

    def size(out: Path) -> int:
        file = out / "samples.jsonl"
        return file.stat().st_size if file.is_file() else 0

    def has_grown(enough: float) -> bool:
        return size(out) > enough

    out = tmp_path / "killed"
    finish(command(tmp_path / "whole"), log)
    for part in (0.2, 0.6):
        kill_at = partial(has_grown, part * size(tmp_path / "whole"))
        assert stop_when(begin(command(out), log), kill_at, signal.SIGKILL) == -signal.SIGKILL
    assert 0 < size(out) < size(tmp_path / "whole")
    finish(command(out), log)
    files = [{path.name: path.read_bytes() for path in folder.iterdir()} for folder in (tmp_path / "whole", out)]
    assert files[0] == files[1]
