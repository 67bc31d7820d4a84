"""The embedded text runs as a user starts them: each moves its number on held-out data."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import ROOT

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1500)]


def results_of(stage: str, folder: Path) -> dict[str, Any]:
    """The results.json of a run, which is made where it is not there yet."""
    if not (folder / "results.json").is_file():
        subprocess.run(
            [sys.executable, str(ROOT / "scripts" / "embedded_text.py"), stage, "--output_dir", str(folder)],
            env=os.environ | {"OMP_NUM_THREADS": "1"},
            capture_output=True,
            check=True,
        )
    results: dict[str, Any] = json.loads((folder / "results.json").read_text(encoding="utf-8"))
    # four minutes on an idle machine; half as much again for one that is not
    assert sum(results["seconds"].values()) < 360
    assert (folder / "learning_curve.png").stat().st_size > 10_000
    return results


@pytest.mark.parametrize(
    ("stage", "folder"),
    [("sft", "train_sft_text"), ("dpo", "train_dpo"), ("grpo", "train_grpo_text"), ("ppo", "train_ppo_text")],
)
def test_the_true_reward_rises(stage: str, folder: str, runs: Path) -> None:
    results = results_of(stage, runs / folder)
    assert results["before"]["n"] == results["after"]["n"] == results["chance"]["n"] >= 400
    assert results["gain"]["true_reward"] > 0.1 and results["gain"]["ci95"][0] > 0
    assert results["after"]["true_reward"] > results["chance"]["ci95"][1]
    if stage in ("grpo", "ppo"):
        assert results["after"]["model_reward"] > results["before"]["model_reward"]


def test_the_reward_model_ranks_pairs_and_its_control_does_not(runs: Path) -> None:
    results = results_of("reward_model", runs / "train_reward_model")
    assert results["after"]["n"] >= 400
    assert results["after"]["pair_accuracy"] >= 0.9
    assert abs(results["before"]["pair_accuracy"] - 0.5) < 0.15  # a head at random
    assert abs(results["controls"]["shuffled_labels"]["pair_accuracy"] - 0.5) <= 0.07
