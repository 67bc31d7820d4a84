"""What stands around a training: here, what a kill while DeepSpeed was building would do to all later runs."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from torch.utils.file_baton import FileBaton

from r1_aqa_repro.run.loop import clear_dead_builds


@pytest.mark.parametrize("machines", [1, 2])
def test_the_lock_of_a_build_that_was_killed_is_deleted_and_that_of_a_live_one_stays(
    machines: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path))
    monkeypatch.setenv("WORLD_SIZE", str(machines))
    (tmp_path / "killed").mkdir()
    (tmp_path / "live").mkdir()
    (tmp_path / "killed" / "lock").touch()
    live = FileBaton(str(tmp_path / "live" / "lock"))
    assert live.try_acquire()
    training: Any = SimpleNamespace(deepspeed="zero3.json")
    clear_dead_builds(training)
    assert (tmp_path / "killed" / "lock").exists() == (machines > 1)  # another machine's, perhaps
    assert ("killed/lock: deleted" in capsys.readouterr().err) == (machines == 1)
    live.release()  # raises if it is gone
