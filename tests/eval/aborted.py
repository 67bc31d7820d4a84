"""A process that is aborted at its end: `aborted.py FOLDER refused` or `aborted.py FOLDER done`.

Refused: once it has left the others, while the main one is slow to end, with 2; torchrun, which looks ten times a
second, sees the aborted one first. Done: by the exit of a C library, after Python's own.
"""

import atexit
import ctypes
import os
import time
from pathlib import Path

from eval.processes import joined
from r1_aqa_repro.common.errors import command

abort = ctypes.CFUNCTYPE(None, ctypes.c_void_p)(lambda _: os.abort())


@command
def main(argv: list[str]) -> int:
    ended = (Path(argv[0]) / os.environ["RANK"]).touch
    if argv[1] == "done":
        ctypes.CDLL(None).__cxa_atexit(abort, None, None)
        atexit.register(ended)
        return 0
    with joined() as processes:
        processes.from_main(int)
    ended()
    if not processes.is_main:
        os.abort()
    time.sleep(3)
    return 2


if __name__ == "__main__":
    main()
