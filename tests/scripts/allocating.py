"""A command whose memory is known: run by test_compare_algorithms in a process of its own."""

from __future__ import annotations

import os
import sys
import time

import numpy as np


def main(argv: list[str]) -> int:
    """Take so many MB for so many seconds, then return this code, or die with it."""
    megabytes, seconds, code, end = int(argv[0]), float(argv[1]), int(argv[2]), argv[3]
    held = np.ones(megabytes * 1024 * 1024, dtype=np.uint8)
    time.sleep(seconds)
    if end == "die":
        os._exit(code)
    print(int(held[-1]), file=sys.stderr)
    return code
