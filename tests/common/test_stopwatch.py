"""Seconds by stage: added up over interruptions, beside whatever else the file holds."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from r1_aqa_repro.common import stopwatch
from r1_aqa_repro.common.errors import Refused
from r1_aqa_repro.common.stopwatch import Stages


def test_seconds_add_up_over_interruptions_and_refusals_leave_them_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = iter([0.0, 2.0, 10.0, 13.0, 20.0])
    monkeypatch.setattr(stopwatch.time, "perf_counter", lambda: next(clock))
    file = tmp_path / "run.json"
    file.write_text('{"seed": 0, "seconds": {"data": 1.5}}', encoding="utf-8")
    with pytest.raises(KeyboardInterrupt), Stages(file, "seconds")("grpo"):
        raise KeyboardInterrupt
    stages = Stages(file, "seconds")  # the same command again
    with stages("grpo"):
        file.write_text(file.read_text().replace('"seed": 0', '"seed": 0, "noted": true'))
    with pytest.raises(Refused), stages("eval"):
        raise Refused.because("eval", "no", "Go.")
    assert json.loads(file.read_text()) == {"seed": 0, "noted": True, "seconds": {"data": 1.5, "grpo": 5.0}}
    assert stages.asked_for == {"grpo": 5.0}


def test_a_file_of_nothing_but_seconds(tmp_path: Path) -> None:
    stages = Stages(tmp_path / "stages.json")
    assert stages.seconds == {}
    with stages("data"):
        pass
    assert json.loads((tmp_path / "stages.json").read_text()) == stages.seconds == {"data": 0.0}
