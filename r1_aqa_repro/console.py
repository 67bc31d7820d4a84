"""The terminal: who speaks when several processes work on one run, and how options may be spelled."""

from __future__ import annotations

import argparse
import os
import sys


def is_main_process() -> bool:
    """Whether this process speaks for all of them, as torchrun numbers them."""
    return os.environ.get("RANK", "0") == "0"


def say(text: str) -> None:
    """One line for the person at the terminal, from the main process only."""
    if is_main_process():
        print(text, file=sys.stderr, flush=True)


def with_hyphens(argv: list[str]) -> list[str]:
    """`--batch_size=8` -> `--batch-size=8`: both spellings of an option are accepted."""
    spelled = []
    for argument in argv:
        name, equals, value = argument.partition("=")
        spelled.append((name.replace("_", "-") if name.startswith("--") else name) + equals + value)
    return spelled


def positive(text: str) -> int:
    """The type of an option that counts something, for argparse."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text} is not a positive number")
    return number
