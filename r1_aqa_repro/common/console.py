"""The terminal: who speaks when several processes work on one run, and how options may be spelled."""

from __future__ import annotations

import argparse
import io
import logging
import math
import sys
import warnings
from collections.abc import Callable, Collection, Sequence
from dataclasses import MISSING, field, fields
from typing import Any, NoReturn

from r1_aqa_repro.common.distributed import is_main_process
from r1_aqa_repro.common.escaping import visible, visible_line

LARGEST = 2**31 - 1  # of the whole numbers that every library takes


def say(text: str) -> None:
    """One line for the person at the terminal, from the main process only."""
    if is_main_process():
        print(visible(text), file=sys.stderr, flush=True)


def print_anything() -> None:
    """Let what the terminal has no characters for, or what is no text, such as the bytes of a file name, be shown
    escaped; Python would end with an error."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def quiet_libraries() -> None:
    """Leave out what libraries tell each other's developers, some of it at every step, and DeepSpeed on stdout."""
    if not sys.warnoptions:  # a user who asks for warnings gets them
        warnings.filterwarnings("ignore", category=FutureWarning, module="transformers|trl|peft|accelerate|torch")
    logging.getLogger("DeepSpeed").addFilter(_is_news)


def _is_news(record: logging.LogRecord) -> bool:
    return "Setting accelerator to CPU" not in record.getMessage()


class Options(argparse.ArgumentParser):
    """The options of a command. Names are never abbreviated, and may be spelled with underscores too.

    All of them begin with two hyphens, but for -h: what begins with one is a value, such as a question `-x`.

    Of the docstring of the command's module the first paragraph stands above the options, the rest below.
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

    def add_seed(self, seeds: Sequence[int], what: str = "") -> None:
        """The option --seed, which takes several if the default `seeds` are; `what` they are of, for its help."""
        several = len(seeds) > 1
        self.add_argument(
            "--seed",
            type=not_negative,
            nargs="+" if several else None,
            default=list(seeds) if several else seeds[0],
            metavar="N",
            help=f"{what} (default: {' '.join(map(str, seeds))})".lstrip(),
        )

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> tuple[Any, list[str]]:
        given = sys.argv[1:] if args is None else args
        return super().parse_known_args([self._spelled(argument) for argument in given], namespace)

    def _parse_optional(self, arg_string: str) -> Any:
        """None for a value; argparse takes whatever begins with a hyphen for an option."""
        is_value = not arg_string.startswith("--") and arg_string not in self._option_string_actions
        return None if is_value else super()._parse_optional(arg_string)

    def error(self, message: str) -> NoReturn:
        if message.endswith(("expected one argument", "expected at least one argument")):
            message += "; a value that begins with two hyphens is given as --option=VALUE"
        # argparse calls a kind of value by the name of the function that reads it
        super().error(visible_line(message.replace(": invalid _", ": invalid ", 1)))

    def _spelled(self, argument: str) -> str:
        """`--batch_size=8` -> `--batch-size=8` if that is one of the options; others are left as they are."""
        name, equals, value = argument.partition("=")
        with_hyphens = name.replace("_", "-")
        return with_hyphens + equals + value if with_hyphens in self._option_string_actions else argument


def key(default: Any, text: str, choices: Sequence[str] = ()) -> Any:
    """A key of a configuration, a field of a dataclass, with what its help says; a list is copied for each."""
    described = {"help": text, "choices": choices} if choices else {"help": text}
    if isinstance(default, list):
        return field(default_factory=lambda: list(default), metadata=described)
    return field(default=default, metadata=described)


def show_help_if_asked(name: str, doc: str | None, library: str, *keys: type) -> None:
    """Answer `--help` of a training command and end; called before the libraries are imported.

    Nothing happens if the module of this `__name__` is not the one that was started. `keys` are dataclasses of the
    project's own keys; those of the `library`'s configuration are accepted too.
    """
    if name != "__main__" or not {"-h", "--help"} & set(sys.argv[1:]):
        return
    spec = sys.modules[name].__spec__
    options = Options(doc, prog=f"python -m {spec.name}" if spec else None)
    options.add_argument("--config", metavar="FILE", help="YAML file of keys; the command line overrides it.")
    for own in [own for each in keys for own in fields(each)]:
        default = own.default if own.default_factory is MISSING else own.default_factory()
        text = f"{own.metadata['help']} (default: {default})".replace("%", "%%")
        kind = "|".join(own.metadata["choices"]) if "choices" in own.metadata else str(own.type).removesuffix(" | None")
        options.add_argument(f"--{own.name}", metavar=kind, help=text)
    options.usage = "%(prog)s --config FILE [--key value ...]"
    options.epilog = (
        f"{options.epilog}\nThese are the project's own keys. Every key of {library} and trl.ModelConfig is accepted "
        "too, such as\n--output_dir and --learning_rate: --help-all lists them, which takes seconds."
    )
    options.print_help()
    sys.exit()


def one_of(names: Collection[str]) -> Callable[[str], str]:
    """The type of a value that is one of these names, for what has no `choices`."""

    def read(text: str) -> str:
        if text not in names:
            raise argparse.ArgumentTypeError(f"{text} is not one of {', '.join(names)}")
        return text

    return read


def positive_number(text: str) -> float:
    """The type of an option that is above 0, for argparse."""
    number = float(text)
    if not 0 < number < math.inf:
        raise argparse.ArgumentTypeError(f"{text} is not a positive number")
    return number


def finite(text: str) -> float:
    """The type of an option that is any number but infinity and NaN, for argparse."""
    number = float(text)
    if not math.isfinite(number):
        raise argparse.ArgumentTypeError(f"{text} is not a finite number")
    return number


def positive(text: str) -> int:
    """The type of an option that counts something, for argparse."""
    return _from(1, text)


def not_negative(text: str) -> int:
    """The type of an option that is a whole number from 0 on, such as a seed, for argparse."""
    return _from(0, text)


def _from(least: int, text: str) -> int:
    number = int(text)
    if not least <= number <= LARGEST:
        raise argparse.ArgumentTypeError(f"{text:.40} is not from {least} to {LARGEST:,}")
    return number
