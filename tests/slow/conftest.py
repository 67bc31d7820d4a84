"""Embedded runs as a user starts them, once for all tests that look at what they leave."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import ROOT


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any], str]:
    """Its folder, its results and what it printed."""
    folder = tmp_path_factory.mktemp("embedded") / "run"
    done = subprocess.run(
        ["bash", "scripts/train_grpo_audio.sh", "--output_dir", str(folder)],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return folder, json.loads((folder / "results.json").read_text(encoding="utf-8")), done.stdout


@pytest.fixture(scope="session")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One folder in the place of a reader's `runs`: what the text runs start from is made once."""
    return tmp_path_factory.mktemp("text") / "runs"
