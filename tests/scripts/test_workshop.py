"""What runs of several stages share."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from scripts.workshop import keep_model_alone, log_of


@pytest.mark.parametrize("deleted", [[], ["checkpoint-4/model.bin"], ["checkpoint-4", "checkpoint-2/model.bin"]])
def test_the_log_outlives_the_checkpoints_also_if_deleting_them_is_cut_short(
    deleted: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for step in (2, 4):
        (tmp_path / f"checkpoint-{step}").mkdir()
        (tmp_path / f"checkpoint-{step}" / "model.bin").touch()
        log = json.dumps({"log_history": [{"step": each, "loss": 0.5} for each in range(1, step + 1)]})
        (tmp_path / f"checkpoint-{step}" / "trainer_state.json").write_text(log)

    def killed(*_: object) -> None:
        for name in deleted:
            path = tmp_path / name
            delete(path) if path.is_dir() else path.unlink()
        raise KeyboardInterrupt

    delete = shutil.rmtree
    monkeypatch.setattr(shutil, "rmtree", killed)
    with pytest.raises(KeyboardInterrupt):
        keep_model_alone(tmp_path)
    monkeypatch.undo()
    for _ in range(2):
        keep_model_alone(tmp_path)
        assert list(log_of(tmp_path).index) == [1, 2, 3, 4]
        assert [path.name for path in tmp_path.iterdir()] == ["trainer_state.json"]
