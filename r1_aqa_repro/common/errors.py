"""The errors this project raises on purpose, and the exit codes that commands give them.

Every command exits with 0 (done), 1 (failed while working), 2 (refused before starting), 130 (interrupted)
or 3 (finished, with losses that are listed).
"""

from __future__ import annotations

import atexit
import errno
import functools
import os
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from r1_aqa_repro.common.console import print_anything, quiet_libraries, say
from r1_aqa_repro.common.distributed import end_with_launcher, num_processes
from r1_aqa_repro.common.escaping import visible, visible_line

EXIT_DONE = 0
EXIT_FAILED = 1
EXIT_REFUSED = 2
EXIT_LOSSES = 3
EXIT_INTERRUPTED = 130
_SHOWN = 20  # problems or reasons printed in full
_FEW = 3  # places of one reason that are told one by one
_PLACES = 5  # named of others, beside the first
_LONGEST = 2000  # characters of what is wrong: it may quote a record
# what a path gives that a user has named and no check has met: no permission on the way to it, a name too long, ...
_OUT_OF_REACH = (errno.EACCES, errno.EPERM, errno.ENAMETOOLONG, errno.ELOOP, errno.ENOTDIR, errno.EISDIR)
_FULL = (errno.ENOSPC, errno.EDQUOT)  # what a full disk and a full quota give


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong with the input: where it stands, what is wrong, what to do about it."""

    where: str
    what: str
    remedy: str

    def __str__(self) -> str:
        """On one line, in which nothing acts on a terminal."""
        what = " ".join(line.strip() for line in self.what.split("\n"))  # of libraries, whose messages may have several
        half = _LONGEST // 2
        what = what if len(what) <= _LONGEST else f"{what[:half]} ... {what[-half:]}"
        return visible_line(f"{self.where}: {what}. {self.remedy}")


class Failed(Exception):
    """Raised while working, with a message that names the cause. Commands exit with 1; what was done is kept."""


class Refused(Exception):
    """Raised before any expensive work, with everything that is wrong at once. Commands exit with 2."""

    def __init__(self, problems: Sequence[Problem]):
        self.problems = list(problems)
        super().__init__("\n".join(str(problem) for problem in self.problems))

    @classmethod
    def because(cls, where: str, what: str, remedy: str) -> Refused:
        return cls([Problem(where, what, remedy)])


def told_once(problems: Sequence[Problem]) -> list[str]:
    """Lines that name all problems. A reason that holds in many places is told once: the first place, how many more,
    and the next ones by name. Of more than `_SHOWN` lines the last one has the number of the others alone.
    """
    places: dict[tuple[str, str], list[str]] = {}
    for problem in problems:
        places.setdefault((problem.what, problem.remedy), []).append(problem.where)
    lines: list[str] = []
    untold = 0
    for (what, remedy), those in places.items():
        told, more = (those, []) if len(those) <= _FEW else (those[:1], those[1:])
        new = [str(Problem(where, what, remedy)) for where in told]
        if more:
            file = told[0].rpartition(":")[0] + ":"  # has been said
            named = visible_line(", ".join(where.removeprefix(file).strip() for where in more[:_PLACES]))
            new[0] += f" The same holds for {len(more):,} more: {named}{', ...' if len(more) > _PLACES else '.'}"
        if len(lines) + len(new) > _SHOWN:
            untold += len(those)
        else:
            lines += new
    return [*lines, f"... and {untold:,} more of this kind."] if untold else lines


@contextmanager
def collecting(problems: list[Problem]) -> Iterator[None]:
    """Add what is refused inside to `problems`, to go on with the next check."""
    try:
        yield
    except Refused as refusal:
        problems += refusal.problems


def is_full_disk(error: BaseException | None) -> bool:
    """Whether this error, or one that led to it, is for want of space on a disk (or of its user's quota).

    Python's own errors carry a number, those of shutil and the Rust libraries (safetensors, tokenizers) a text;
    `torch.save` tells only that its stream broke.
    """
    while error is not None:
        full = isinstance(error, OSError) and error.errno in _FULL
        if full or any(sign in str(error) for sign in (*map(os.strerror, _FULL), "iostream error")):
            return True
        error = error.__cause__ or error.__context__
    return False


def disk_full(what: str | os.PathLike[str], folder: Path, kept: str) -> Failed:
    """The error of something that did not fit on the disk of `folder`; `kept` says what is there, and how to go on."""
    free = shutil.disk_usage(existing_folder(folder)).free / 1e6
    return Failed(f"{what} could not be written: the disk is full ({free:,.1f} MB are free). {kept}")


def existing_folder(path: str | os.PathLike[str]) -> Path:
    """The path if it is a folder, else the nearest folder above it."""
    absolute = Path(path).absolute()
    return next(folder for folder in (absolute, *absolute.parents) if os.path.isdir(folder))


@contextmanager
def failing_plainly(out: Path, kept: str) -> Iterator[None]:
    """Raise Failed in place of an OSError, or of any error for want of space, which says what cannot be read or written
    to `out`; `kept` is what is there nevertheless, and how to go on."""
    try:
        yield
    except (Refused, Failed):
        raise
    except Exception as error:
        if is_full_disk(error):
            raise disk_full(out, out, kept) from error
        if isinstance(error, OSError):
            raise Failed(f"{error.filename or out}: {error.strerror or error}. {kept}") from error
        raise


def leave(code: int) -> NoReturn:
    """End this process; if it is one of several, without the exit of the C++ libraries.

    With PyTorch 2.13 that exit has aborted processes that had done everything (`terminate called without an active
    exception`), upon which torchrun stops the others and calls the run failed. What Python code has registered for its
    exit is done, such as the last upload to W&B.
    """
    if num_processes() > 1:
        atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)


def command(main: Callable[[list[str]], int]) -> Callable[..., int]:
    """Wrap `main(argv) -> exit code` so that `Refused`, `Failed`, what the system refuses (OSError) and Ctrl-C become
    messages and exit codes.

    Without arguments it takes those of the command line, and ends the process (`leave`).
    """

    @functools.wraps(main)
    def run(argv: list[str] | None = None) -> int:
        if argv is None:  # from the command line
            end_with_launcher()
            quiet_libraries()
            print_anything()
            leave(run(sys.argv[1:]))
        try:
            return main(argv)
        except Refused as refusal:
            for line in told_once(refusal.problems):
                say(f"error: {line}")
            return EXIT_REFUSED
        except Failed as failure:
            # of this process alone, be it the main one or not
            print(f"error: {visible(failure)}", file=sys.stderr, flush=True)
            return EXIT_FAILED
        except OSError as error:  # of whatever had nothing better to say about it
            named = f"{error.filename}: {error.strerror}" if error.filename else error
            is_out_of_reach = error.errno in _OUT_OF_REACH
            remedy = ". Give what this user can reach." if is_out_of_reach else ""
            print(f"error: {visible(named)}{remedy}", file=sys.stderr, flush=True)
            return EXIT_REFUSED if is_out_of_reach else EXIT_FAILED
        except KeyboardInterrupt:
            say("\ninterrupted: the same command goes on from what is saved")
            return EXIT_INTERRUPTED

    return run


def answer_at_once(name: str, read: Callable[[list[str]], object]) -> None:
    """Answer `--help` and mistakes in the arguments of a command and end; called before libraries are imported, which
    takes seconds.

    Nothing happens if the module of this `__name__` is not the one that was started, or if there is nothing to answer.

    Args:
        read: what the command reads its arguments with.
    """

    @command
    def reading(argv: list[str]) -> int:
        read(argv)
        return EXIT_DONE

    if name == "__main__":
        print_anything()
        if (code := reading(sys.argv[1:])) != EXIT_DONE:
            leave(code)


def moved(name: str, remedy: str) -> Callable[..., int]:
    """The `main` of an old name: it says what to type instead."""

    @command
    def main(argv: list[str]) -> int:
        raise Refused.because(name, "this is no command any more", remedy)

    return main
