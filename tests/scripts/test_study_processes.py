"""Seeds in processes of their own: how many at a time, where their output goes, how they end."""

from __future__ import annotations

import functools
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from r1_aqa_repro.common.errors import EXIT_FAILED, EXIT_INTERRUPTED, EXIT_REFUSED
from scripts.study import processes
from scripts.study.processes import run_all
from tests.conftest import ROOT
from tests.scripts.seed_work import be_killed, refuse_two, wait_for_ever

# the same as a program of its own, to be interrupted and killed
PROGRAM = """
import functools, sys
from collections.abc import Callable
from pathlib import Path
from r1_aqa_repro.common.errors import command
from scripts.study.processes import run_all
from tests.scripts.seed_work import wait_for_ever
folder = Path(sys.argv[1])
if __name__ == "__main__":
    work = functools.partial(wait_for_ever, folder)
    sys.exit(command(lambda _: run_all(work, [1, 2], 2, lambda seed: folder / f"{seed}.txt"))([]))
"""


def test_a_seed_that_is_refused_does_not_stop_the_others(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    code = run_all(functools.partial(refuse_two, tmp_path), [1, 2, 3], 1, lambda seed: tmp_path / f"{seed}.txt")
    assert code == EXIT_REFUSED
    assert (tmp_path / "3.ended").is_file()
    assert float((tmp_path / "1.ended").read_text()) < float((tmp_path / "3.began").read_text())  # one at a time
    said = capfd.readouterr().err
    assert "seed 1  begins" in said and "seed 3  begins" in said
    assert "seed 2 ended with exit code 2" in said and "table.csv, line 7: the label is empty. Give it." in said
    assert "said by" not in said
    assert (tmp_path / "1.txt").read_text() == "said by 1\n"


@pytest.fixture
def program(tmp_path: Path) -> subprocess.Popen[bytes]:
    """PROGRAM when both of its seeds are at work."""
    file = tmp_path / "program.py"
    file.write_text(PROGRAM)
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    running = subprocess.Popen([sys.executable, str(file), str(tmp_path)], env=environment)
    _until(lambda: all((tmp_path / f"{seed}.pid").is_file() for seed in (1, 2)))
    return running


def test_an_interrupt_reaches_every_seed_and_is_waited_for(tmp_path: Path, program: subprocess.Popen[bytes]) -> None:
    program.send_signal(signal.SIGINT)
    assert program.wait(timeout=30) == EXIT_INTERRUPTED
    assert all((tmp_path / f"{seed}.saved").is_file() for seed in (1, 2))


def test_seeds_that_are_only_starting_are_interrupted_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(processes, "wait", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run_all(functools.partial(wait_for_ever, tmp_path), [1, 2], 2, lambda seed: tmp_path / f"{seed}.txt")
    assert not multiprocessing.active_children()


def test_a_seed_that_the_system_kills_has_failed(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    code = run_all(functools.partial(be_killed, tmp_path), [1], 1, lambda seed: tmp_path / f"{seed}.txt")
    assert code == EXIT_FAILED
    assert "seed 1 was killed (SIGKILL), perhaps for want of memory: give a smaller --jobs" in capfd.readouterr().err


def test_no_seed_survives_a_killed_program(tmp_path: Path, program: subprocess.Popen[bytes]) -> None:
    program.kill()
    program.wait()
    pids = [int((tmp_path / f"{seed}.pid").read_text()) for seed in (1, 2)]
    _until(lambda: not any(_is_running(pid) for pid in pids))


def _is_running(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except OSError:
        return False
    return state != "Z"


def _until(happened: Callable[[], bool], seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < end
        time.sleep(0.05)
