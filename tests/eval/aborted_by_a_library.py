"""A command whose process is aborted by the exit of a C library, after Python's own."""

import atexit
import ctypes
import os
import sys
from pathlib import Path

from r1_aqa_repro.common.errors import command

abort = ctypes.CFUNCTYPE(None, ctypes.c_void_p)(lambda _: os.abort())


@command
def main(argv: list[str]) -> int:
    ctypes.CDLL(None).__cxa_atexit(abort, None, None)
    atexit.register((Path(argv[0]) / os.environ["RANK"]).touch)
    return 0


if __name__ == "__main__":
    sys.exit(main())
