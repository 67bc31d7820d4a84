"""Who speaks at the terminal when several processes work on one run."""

from __future__ import annotations

import os
import sys


def is_main_process() -> bool:
    """Whether this process speaks for all of them, as torchrun numbers them."""
    return os.environ.get("RANK", "0") == "0"


def say(text: str) -> None:
    """One line for the person at the terminal, from the main process only."""
    if is_main_process():
        print(text, file=sys.stderr, flush=True)
