"""The folder that embedded text runs share."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from scripts.workshop import Workshop
from tests.conftest import ROOT


def test_two_runs_at_once_do_not_mix(tmp_path: Path) -> None:
    """Both would make the common start, in the same place; the second one is told, and has written nothing."""
    workshop = Workshop(tmp_path, seed=0)
    command = [sys.executable, str(ROOT / "scripts" / "embedded_text.py"), "sft", "--output_dir", str(tmp_path / "sft")]
    second = subprocess.run(command, capture_output=True, text=True, check=False)
    assert second.returncode == 2
    assert f"{tmp_path / '.text_runs.lock'}: another process is writing to it" in second.stderr
    assert [path.name for path in workshop.folder.iterdir()] == [".text_runs.lock"]
    del workshop
    Workshop(tmp_path, seed=0)
