"""Whole runs as a user starts them, each once for all tests that look at what it leaves."""

from __future__ import annotations

import functools
import json
import os
import shlex
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import ROOT
from tests.slow.course_pages import statements_quoted_beside

TRACED = ROOT / "tests" / "slow" / "traced"


@dataclass(frozen=True)
class Run:
    """A finished run: its folder, its results.json, and what it printed."""

    folder: Path
    results: dict[str, Any]
    printed: str


@dataclass(frozen=True)
class Printed:
    """What a command of the course printed, and which of the lines quoted beside it it ran, each as `file:line`."""

    text: str
    ran: set[str]


WholeRun = Callable[[str], Run]
Carried = Callable[[str], Printed]


def finish(*command: object, folder: Path = ROOT, more: dict[str, str] | None = None, errors: bool = False) -> str:
    """Run a command to its end, in a folder, with `more` environment; what it printed, with `errors` to stderr too."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)} | (more or {})
    words = list(map(str, command))
    done = subprocess.run(words, capture_output=True, text=True, cwd=folder, env=environment, check=False)
    assert done.returncode == 0, f"{words}\n{done.stderr[-3000:]}"
    return done.stdout + (done.stderr if errors else "")


@pytest.fixture(scope="session")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One folder in the place of a reader's `runs`: what the text runs start from is made once."""
    return tmp_path_factory.mktemp("whole") / "runs"


@pytest.fixture(scope="session")
def carried(runs: Path, tmp_path_factory: pytest.TempPathFactory) -> Carried:
    """Carries out a command line of the course in another folder of runs, when it is first asked for."""
    notes = tmp_path_factory.mktemp("ran")

    @functools.cache
    def carry_out(line: str) -> Printed:
        ran, quoted = (notes / f"{len(list(notes.iterdir()))}.{kind}" for kind in ("txt", "json"))
        ran.touch()
        quoted.write_text(json.dumps(statements_quoted_beside(line)), encoding="utf-8")
        traced = {"PYTHONPATH": f"{TRACED}{os.pathsep}{ROOT}", "COURSE_QUOTED": str(quoted), "COURSE_RAN": str(ran)}
        words = [
            str(runs) + word.removeprefix("runs") if f"{word}/".startswith("runs/") else word
            for word in shlex.split(line)
        ]
        if words[0] == "bash":
            words += ["--output_dir", str(folder_of(runs, words[1]))]
        text = finish(*words, more=traced, errors=True)
        return Printed(text, set(ran.read_text(encoding="utf-8").splitlines()))

    return carry_out


def folder_of(runs: Path, script: str) -> Path:
    """Where the embedded run of a script lies, given as its path or name."""
    name = Path(script).stem
    return runs / ("embedded" if name == "train_grpo_audio" else name)


@pytest.fixture(scope="session")
def whole_run(runs: Path, carried: Carried) -> WholeRun:
    """Carries out the embedded run of a script, such as `train_dpo`, when it is first asked for."""

    def carry_out(script: str) -> Run:
        printed, folder = carried(f"bash scripts/{script}.sh").text, folder_of(runs, script)
        return Run(folder, json.loads((folder / "results.json").read_text(encoding="utf-8")), printed)

    return carry_out
