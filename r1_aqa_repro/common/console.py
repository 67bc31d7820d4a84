"""The terminal: who speaks when several processes work on one run, and how options may be spelled."""

from __future__ import annotations

import argparse
import sys
from typing import Any

from r1_aqa_repro.common.distributed import is_main_process


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


class Options(argparse.ArgumentParser):
    """The options of a command. Names are never abbreviated, and may be spelled with underscores too.

    Args:
        doc: docstring of the command's module: its first paragraph stands above the options, the rest below.
        prog: the command, such as `python -m eval.mmau`.
    """

    def __init__(self, doc: str | None, prog: str | None = None):
        description, _, rest = (doc or "").partition("\n\n")
        super().__init__(
            prog=prog,
            allow_abbrev=False,
            description=description,
            epilog=rest,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> tuple[Any, list[str]]:
        return super().parse_known_args(with_hyphens(sys.argv[1:] if args is None else list(args)), namespace)


def positive(text: str) -> int:
    """The type of an option that counts something, for argparse."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text} is not a positive number")
    return number
