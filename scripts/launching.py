"""Commands of the project in processes of their own. Imports nothing heavy."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def launched(module: str, argv: Sequence[str], processes: int) -> int:
    """Run the command of a module in several processes by torchrun; its exit code."""
    launcher = [sys.executable, "-m", "r1_aqa_repro.launch", "--standalone", "--nproc-per-node", str(processes)]
    return waited_for([*launcher, "-m", module, *argv])


def waited_for(command: Sequence[str]) -> int:
    """Run a command; its exit code. Ctrl-C reaches it too: what it saves then is waited for."""
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])  # the project also without an installation
    with subprocess.Popen(command, env=os.environ | {"PYTHONPATH": path}) as process:
        while True:
            try:
                return process.wait()
            except KeyboardInterrupt:
                continue
