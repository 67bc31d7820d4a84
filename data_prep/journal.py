"""What a preparation knows of each clip, in a file that a kill leaves whole: how the next run goes on."""

from __future__ import annotations

import math
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data_prep.workers import Clip
from r1_aqa_repro.common.errors import Failed, is_full_disk


@dataclass
class Outcome:
    """What became of a clip; neither `size` nor `reason` is set while it is being made.

    Attributes:
        source: changes when the clip would.
        size: of the clip's file, in bytes.
        reason: one of `media.REASONS`, if there is no clip.
        detail: what is wrong.
    """

    source: str
    size: int | None = None
    reason: str | None = None
    detail: str = ""

    @property
    def known(self) -> bool:
        return self.size is not None or self.reason is not None


class Journal:
    """The outcomes of all runs in a folder, and the ids of this run; its memory does not grow with their number.

    One process at a time can have it open.

    Raises:
        sqlite3.Error: another process has it open, it is damaged, or the disk is full; see `explaining_errors`.
    """

    def __init__(self, path: Path):
        self._database = sqlite3.connect(path, timeout=1)
        self._database.executescript("""
            PRAGMA locking_mode = EXCLUSIVE;
            PRAGMA journal_mode = WAL;
            PRAGMA synchronous = NORMAL;
            PRAGMA temp_store = FILE;
            CREATE TABLE IF NOT EXISTS clips (
                stem TEXT PRIMARY KEY, source TEXT, is_used INTEGER, reason TEXT, detail TEXT,
                size INTEGER, seconds REAL, peak REAL, rms REAL, is_final INTEGER
            ) WITHOUT ROWID;
            CREATE TEMP TABLE ids (id TEXT PRIMARY KEY) WITHOUT ROWID;
            DELETE FROM clips WHERE NOT is_final;
            UPDATE clips SET is_used = 0 WHERE is_used;
        """)

    def is_new(self, record_id: str) -> bool:
        """Whether this run meets the id for the first time."""
        return self._database.execute("INSERT OR IGNORE INTO ids VALUES (?)", (record_id,)).rowcount == 1

    def find(self, stem: str) -> tuple[Outcome | None, bool]:
        """What is known of a clip, and whether a record of this run has it."""
        query = "SELECT source, size, reason, detail, is_used FROM clips WHERE stem = ?"
        row = self._database.execute(query, (stem,)).fetchone()
        return (None, False) if row is None else (Outcome(*row[:4]), bool(row[4]))

    def use(self, stem: str) -> None:
        """Note that a record of this run has the clip."""
        self._database.execute("UPDATE clips SET is_used = 1 WHERE stem = ?", (stem,))

    def put(self, stem: str, outcome: Outcome, clip: Clip | None, is_final: bool) -> None:
        """Note what became of a clip: for this run, and for later ones if it `is_final`."""
        measured = (None, None, None) if clip is None else (clip.seconds, clip.peak, clip.rms)
        row = (stem, outcome.source, 1, outcome.reason, printable(outcome.detail), outcome.size, *measured, is_final)
        self._database.execute(f"INSERT OR REPLACE INTO clips VALUES ({','.join('?' * len(row))})", row)

    def save(self) -> None:
        """Write down what was noted since: a kill costs the rest."""
        self._database.commit()

    def close(self) -> None:
        """Save, and let another process in."""
        try:
            self._database.commit()
        finally:
            self._database.close()

    def statistics(self) -> dict[str, Any]:
        """Number, hours and bytes of this run's clips; least, mean and greatest length, peak and loudness."""
        self._database.create_function("decibels", 1, lambda rms: 20 * math.log10(rms), deterministic=True)
        columns = {"seconds": "seconds", "peak": "peak", "rms_decibels": "decibels(rms)"}
        measures = ", ".join(f"min({column}), avg({column}), max({column})" for column in columns.values())
        clips = "(SELECT * FROM clips WHERE is_used AND reason IS NULL ORDER BY stem)"
        query = f"SELECT count(*), sum(seconds), sum(size), {measures} FROM {clips}"
        number, seconds, size, *found = self._database.execute(query).fetchone()
        if not number:
            return {"clips": 0}
        statistics = {"clips": number, "hours": round(seconds / 3600, 4), "bytes": size}
        for index, name in enumerate(columns):
            least, mean, greatest = (round(value, 3) for value in found[3 * index : 3 * index + 3])
            statistics[name] = {"min": least, "mean": mean, "max": greatest}
        return statistics


@contextmanager
def explaining_errors(path: Path) -> Iterator[None]:
    """Say what is the matter with the journal at `path`, unless the disk is full.

    Raises:
        Failed: in place of what SQLite raised.
    """
    try:
        yield
    except sqlite3.Error as error:
        if is_full_disk(error):
            raise
        if "locked" in str(error):
            raise Failed(f"{path.parent}: another run is working in this folder") from error
        raise Failed(f"{path} cannot be used ({error}). Delete it, and all clips are made anew.") from error


def printable(text: str) -> str:
    """A text that can be written: of a file name, bytes that are no text are shown escaped."""
    return text.encode("utf-8", "backslashreplace").decode()
