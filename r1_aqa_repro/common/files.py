"""Writing files so that a kill at any moment leaves either the old content or the new, never a part."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from r1_aqa_repro.common.console import say
from r1_aqa_repro.common.distributed import rank
from r1_aqa_repro.common.errors import Refused


@contextmanager
def whole_file(path: str | os.PathLike[str]) -> Iterator[IO[bytes]]:
    """Open a file to write that gets its name when it is complete and flushed to disk; an error leaves nothing."""
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    # the processes of a run may write the same file at once
    temporary = target.with_name(f".{target.name}.{rank()}.partial")
    try:
        with open(temporary, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, target)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def write_atomically(path: str | os.PathLike[str], content: str | bytes) -> None:
    """Write a whole file, or leave the old one."""
    with whole_file(path) as file:
        file.write(content.encode("utf-8") if isinstance(content, str) else content)


def write_json(path: str | os.PathLike[str], value: Any) -> None:
    """Write `value` as indented JSON, whole or not at all."""
    write_atomically(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def as_lines(records: Iterable[Any]) -> str:
    """A JSON value a line."""
    return "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records)


def write_lines(path: str | os.PathLike[str], records: Iterable[Any]) -> None:
    """Write `records` as JSON lines, all of them or none."""
    write_atomically(path, as_lines(records))


def open_locked(path: Path, remedy: str) -> IO[bytes]:
    """Open a file for appending and reading that one process at a time can have; closing it lets the next one in.

    Raises:
        Refused: it cannot be written, or another process has it. `remedy` says where else to write.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = open(path, "a+b")  # noqa: SIM115 (the caller closes it)
    except OSError as error:
        raise Refused.because(str(path), f"cannot be written ({error.strerror})", remedy) from None
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        raise Refused.because(str(path), "another process is writing to it", f"Wait for it. {remedy}") from None
    except OSError as error:
        say(f"warning: {path} cannot be locked ({error.strerror}): start nothing else that writes there")
    return file


def sha256_of(path: str | os.PathLike[str]) -> str:
    """SHA-256 of a file's bytes, as hexadecimal digits."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def size_of(folder: str | os.PathLike[str]) -> int:
    """Bytes of all files in a folder, which need not exist, and in those below it."""
    return sum(path.stat().st_size for path in Path(folder).rglob("*") if path.is_file())
