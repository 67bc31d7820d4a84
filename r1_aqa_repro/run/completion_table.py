"""`completions.csv` of a run folder: what the policy says while it is trained."""

from __future__ import annotations

import csv
import io
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from r1_aqa_repro.common.escaping import cell
from r1_aqa_repro.common.files import write_atomically


class CompletionTable:
    """A few completions of every logged step, with their rewards. Texts stand in it as `escaping.cell` has them.

    The file begins with the first rows: with those of an earlier run that came from steps before the one that is
    resumed. Rows of steps that are done again are dropped, and so is a row that a kill cut off.
    """

    def __init__(self, run_folder: str | Path | None):
        self.file = Path(str(run_folder)) / "completions.csv"
        self._columns: list[str] = []

    def add(self, step: int, rows: Sequence[dict[str, Any]]) -> None:
        """Append the rows of a step, all with the same columns."""
        if not self._columns:
            self._begin(["step", *rows[0]], before=step)
        with open(self.file, "a", encoding="utf-8", newline="") as target:
            writer = csv.DictWriter(target, self._columns)
            writer.writerows({"step": step} | {name: cell(value) for name, value in row.items()} for row in rows)

    def _begin(self, columns: list[str], before: int) -> None:
        self._columns = columns
        kept: list[list[str]] = []
        if before > 1 and self.file.is_file():
            limit = csv.field_size_limit(sys.maxsize)  # a prompt may be longer than the 128 KiB that are the default
            with open(self.file, encoding="utf-8", errors="replace", newline="") as lines:
                rows = [row for row in csv.reader(lines) if len(row) == len(columns)]
            csv.field_size_limit(limit)  # it is the whole process's, and guards other readers
            kept = [row for row in rows if row[0].isdecimal() and int(row[0]) < before]
        text = io.StringIO(newline="")
        csv.writer(text).writerows([[cell(name) for name in columns], *kept])
        write_atomically(self.file, text.getvalue())
