"""A file of JSON lines that survives kills and is one process's alone: what long work records as it goes."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any, Self

from r1_aqa_repro.common.errors import Failed
from r1_aqa_repro.common.files import as_lines, open_locked, write_lines


class RecordFile:
    """A locked, resumable file of JSON lines; a context manager.

    Lines are flushed to disk as they are added, so that at most the last one can be half-written after a kill; opening
    cuts such a line off. Locked, so that two runs never write to one file.
    """

    def __init__(self, path: str | os.PathLike[str], remedy: str):
        """Open or create the file, or be `Refused` as by `open_locked`."""
        self.path = Path(path)
        self._remedy = remedy
        self._file = open_locked(self.path, remedy)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the file, which also gives the lock back."""
        with suppress(OSError):  # what did not fit on the disk is tried once more: `append` has told
            self._file.close()

    def read(self) -> list[Any]:
        """The value of each complete line, None for a damaged one; a half-written last line is cut off.

        A last line that ends but holds no JSON object is cut off too: a disk may keep the end of a write without its
        beginning.
        """
        self._file.seek(0)
        content = self._file.read()
        lines = content.split(b"\n")[:-1]  # not splitlines(): other line separators may stand inside a line
        values = [_value(line) for line in lines]
        if values and values[-1] is None:
            lines.pop()
            values.pop()
        complete = sum(len(line) + 1 for line in lines)
        if complete < len(content):
            self._file.truncate(complete)
        return values

    def append(self, records: Iterable[dict[str, Any]]) -> None:
        """Add a line a record and flush them to disk.

        Raises:
            Failed: the disk is full or the file cannot be written; earlier records are kept.
        """
        try:
            self._file.write(as_lines(records).encode("utf-8"))
            self._file.flush()
            os.fsync(self._file.fileno())
        except OSError as error:
            what = f"{self.path}: cannot be written ({error.strerror}); what was recorded before is kept"
            raise Failed(what) from error

    def replace(self, records: Iterable[dict[str, Any]]) -> None:
        """Put these records in place of all that is there, whole or not at all; the lock stays."""
        write_lines(self.path, records)
        replaced, self._file = self._file, open_locked(self.path, self._remedy)
        replaced.close()


def _value(line: bytes) -> Any:
    try:
        value = json.loads(line)
        as_lines([value]).encode("utf-8")  # half of a surrogate pair could not be written again
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None
