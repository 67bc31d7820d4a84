"""What processes of tests/scripts/test_study_processes.py do: by its name, since each imports it anew."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

from r1_aqa_repro.common.errors import EXIT_DONE, Refused
from scripts.study.processes import Tell


def refuse_two(folder: Path, seed: int, tell: Tell) -> int:
    """Notes when it began and ended, and refuses seed 2."""
    tell("begins")
    if seed == 2:
        raise Refused.because("table.csv, line 7", "the label is empty", "Give it.")
    print(f"said by {seed}")
    (folder / f"{seed}.began").write_text(repr(time.time()))
    time.sleep(0.5)
    (folder / f"{seed}.ended").write_text(repr(time.time()))
    return EXIT_DONE


def be_killed(folder: Path, seed: int, tell: Tell) -> int:
    """Ends as what the system kills for want of memory does."""
    os.kill(os.getpid(), signal.SIGKILL)
    return EXIT_DONE


def wait_for_ever(folder: Path, seed: int, tell: Tell) -> int:
    """Notes its process, and how it was ended."""
    (folder / f"{seed}.pid").write_text(str(os.getpid()))
    try:
        time.sleep(600)
    except KeyboardInterrupt:
        (folder / f"{seed}.saved").touch()
        raise
    return EXIT_DONE
