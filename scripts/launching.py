"""Processes of their own: commands of the project, and work whose output goes to a log. Imports nothing heavy."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TextIO

from r1_aqa_repro.common.distributed import LAUNCHER

ROOT = Path(__file__).resolve().parent.parent
_SHOWN = 15  # lines of a log whose process has failed


def launched(module: str, argv: Sequence[str], processes: int) -> int:
    """Run the command of a module in several processes by torchrun; its exit code."""
    launcher = [sys.executable, "-m", "r1_aqa_repro.launch", "--standalone", "--nproc-per-node", str(processes)]
    return waited_for([*launcher, "-m", module, *argv], environment={LAUNCHER: str(os.getpid())})


def waited_for(
    command: Sequence[str], interrupted: int | None = None, environment: Mapping[str, str] | None = None
) -> int:
    """Run a command; its exit code, or after Ctrl-C `interrupted` if that is given.

    Ctrl-C reaches the command too: what it saves then is waited for. `environment` is beside this process's own.
    """
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])  # the project also without an installation
    with subprocess.Popen(command, env=os.environ | {"PYTHONPATH": path} | dict(environment or {})) as process:
        was_interrupted = False
        while True:
            try:
                code = process.wait()
                return code if interrupted is None or not was_interrupted else interrupted
            except KeyboardInterrupt:
                was_interrupted = True


def send_to_log(log: Path) -> TextIO:
    """Send what this process says to its log, behind what is there; returns what still leads to the terminal."""
    terminal = os.fdopen(os.dup(sys.stderr.fileno()), "w")
    log.parent.mkdir(parents=True, exist_ok=True)
    with open(log, "a", encoding="utf-8") as file:
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
            os.dup2(file.fileno(), stream.fileno())
    return terminal


def tell(terminal: TextIO, text: str) -> None:
    """A line for the person at the terminal, with the time."""
    print(f"{time.strftime('%H:%M:%S')}  {text}", file=terminal, flush=True)


def end_of(log: Path) -> list[str]:
    """The last lines of a log."""
    return log.read_text(encoding="utf-8", errors="replace").splitlines()[-_SHOWN:]
