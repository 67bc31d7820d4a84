"""The rehearsal of the reproduction with hardly any data and steps, killed in its stages, and once more by itself."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from scripts.reproduce.settings import Study, read_study
from scripts.reproduce.stages import stages_of
from scripts.reproduce.workflow import is_running
from tests.conftest import ROOT
from tests.scripts.test_reproduce import config_in

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

TINY = {
    "embedded": {"num_train": 96, "num_test": 24, "num_warm": 64, "warm_steps": 2},
    "seeds": [0],
    "held_out": 16,
    "keys": {
        "sft": {"max_steps": 2, "save_steps": 1, "examples_per_step": 8, "max_examples_per_device": 8},
        "grpo": {"max_steps": 2, "save_steps": 1, "prompts_per_step": 2, "max_prompts_per_device": 2},
    },
}
ARMS = ("sft_full", "grpo")  # the others go through the same stages
KILLED = ("train/grpo/seed-0", "choose/grpo/seed-0", "test/sft_full/seed-0", "report")


def tiny_study(folder: Path) -> Study:
    folder.mkdir()
    file = config_in(folder, **TINY)
    content = yaml.safe_load(file.read_text(encoding="utf-8"))
    content["arms"] = {name: content["arms"][name] for name in ARMS}
    del content["rehearsal"]["arms"]
    file.write_text(yaml.safe_dump(content), encoding="utf-8")
    return read_study(file, rehearse=True)


def started(study: Study, *options: str) -> subprocess.Popen[bytes]:
    command = [sys.executable, str(ROOT / "scripts" / "reproduce_r1_aqa.py"), "--config", str(study.file), "--rehearse"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    return subprocess.Popen([*command, "--cores", "2", *options], env=environment, start_new_session=True)


def test_killed_in_its_stages_the_study_ends_with_the_same_figures(tmp_path: Path) -> None:
    whole, killed = tiny_study(tmp_path / "whole"), tiny_study(tmp_path / "killed")
    assert started(whole).wait() == 0
    stages = stages_of(killed)
    for name in KILLED:
        process = started(killed)
        while not is_running(killed, stages[name]):
            assert process.poll() is None, f"it ended before {name}"
            time.sleep(0.05)
        time.sleep(0.5)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        assert not (killed.folder / stages[name].mark).exists()
    done = {name: (killed.folder / stage.mark).stat().st_mtime_ns for name, stage in stages.items() if name != "report"}
    assert started(killed).wait() == 0
    assert done == {name: (killed.folder / stages[name].mark).stat().st_mtime_ns for name in done}, "none ran again"
    for file in ("figures.json", "study.json"):
        texts = [(study.folder / "bundle" / file, str(study.folder)) for study in (whole, killed)]
        figures = [json.loads(path.read_text(encoding="utf-8").replace(folder, "")) for path, folder in texts]
        for one in figures:
            one.pop("cost", None)  # seconds are never the same
        assert figures[0] == figures[1], file
