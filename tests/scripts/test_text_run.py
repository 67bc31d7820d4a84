"""The folder that embedded text runs share."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from scripts import embedded_text
from scripts.workshop import TextWorkshop


def test_a_second_run_in_the_same_folder_is_refused_and_writes_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Both would make the common start, in the same place."""
    workshop = TextWorkshop(tmp_path, seed=0)
    assert embedded_text.main(["train_sft_text", "--output_dir", str(tmp_path / "sft")]) == 2
    assert f"{tmp_path / '.lock'}: process {os.getpid()} on " in capsys.readouterr().err
    assert [path.name for path in workshop.folder.iterdir()] == [".lock"]
    del workshop
    TextWorkshop(tmp_path, seed=0)
