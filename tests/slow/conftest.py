"""Whole runs as a user starts them, each once for all tests that look at what it leaves."""

from __future__ import annotations

import functools
import json
import os
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import ROOT


@dataclass(frozen=True)
class Run:
    """A finished run: its folder, its results.json, and what it printed."""

    folder: Path
    results: dict[str, Any]
    printed: str


WholeRun = Callable[[str], Run]


def finish(*command: object, folder: Path = ROOT) -> str:
    """Run a command to its end, in a folder; what it has printed."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    words = list(map(str, command))
    done = subprocess.run(words, capture_output=True, text=True, cwd=folder, env=environment, check=False)
    assert done.returncode == 0, f"{words}\n{done.stderr[-3000:]}"
    return done.stdout


@pytest.fixture(scope="session")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One folder in the place of a reader's `runs`: what the text runs start from is made once."""
    return tmp_path_factory.mktemp("whole") / "runs"


@pytest.fixture(scope="session")
def whole_run(runs: Path) -> WholeRun:
    """Carries out the embedded run of a script, such as `train_dpo`, when it is first asked for."""

    @functools.cache
    def carry_out(script: str) -> Run:
        folder = runs / ("embedded" if script == "train_grpo_audio" else script)
        printed = finish("bash", f"scripts/{script}.sh", "--output_dir", folder)
        return Run(folder, json.loads((folder / "results.json").read_text(encoding="utf-8")), printed)

    return carry_out
