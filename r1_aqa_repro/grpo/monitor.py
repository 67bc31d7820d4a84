"""What a step's time went into, what its rewards were by task, and a few of its completions as a table."""

from __future__ import annotations

import csv
import io
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from r1_aqa_repro.files import write_atomically

PARTS = ("audio", "generation", "reference", "reward", "forward", "backward", "optimizer")


class StepClock:
    """Seconds of an optimizer step by part; a part inside another counts for itself alone.

    GPUs work behind the program's back: the clock waits for them at the ends of a part.
    """

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self._began = self._now()
        self._inside: list[str] = []

    @contextmanager
    def __call__(self, part: str) -> Iterator[None]:
        self._turn()
        self._inside.append(part)
        try:
            yield
        finally:
            self._turn()
            self._inside.pop()

    def read(self) -> tuple[float, dict[str, float]]:
        """Seconds since the last reading, and the share of each of `PARTS` in them; the rest is bookkeeping."""
        self._turn()
        total = sum(self.seconds.values())
        shares = {part: self.seconds[part] / total for part in PARTS}
        self.seconds.clear()
        return total, shares

    def restart(self) -> None:
        """Forget what has passed since the last reading: it belongs to no step."""
        self.seconds.clear()
        self._began = self._now()

    def _turn(self) -> None:
        now = self._now()
        self.seconds[self._inside[-1] if self._inside else "other"] += now - self._began
        self._began = now

    @staticmethod
    def _now() -> float:
        if torch.cuda.is_initialized():
            torch.cuda.synchronize()
        return time.perf_counter()


def means_by_task(values: torch.Tensor, tasks: Sequence[str | None]) -> dict[str, float]:
    """Mean of values [N] for each task among N rows; rows without a task and values that are NaN are left out."""
    rows: dict[str, list[int]] = defaultdict(list)
    for row, task in enumerate(tasks):
        if task is not None:
            rows[task].append(row)
    means = {task: float(values[of_task].nanmean()) for task, of_task in sorted(rows.items())}
    return {task: mean for task, mean in means.items() if mean == mean}


class CompletionTable:
    """`completions.csv` of a run folder: a few completions of every logged step, with their rewards.

    Rows of steps that a resumed run does again are dropped, and so is a row that a kill cut off.
    """

    def __init__(self, file: Path, columns: Sequence[str], resumed_step: int):
        self.file, self.columns = file, ["step", *columns]
        rows = []
        if resumed_step and file.is_file():
            with open(file, encoding="utf-8", newline="") as lines:
                rows = [row for row in csv.reader(lines) if len(row) == len(self.columns)][1:]
        text = io.StringIO(newline="")
        csv.writer(text).writerows([self.columns, *(row for row in rows if int(row[0]) <= resumed_step)])
        write_atomically(file, text.getvalue())

    def add(self, step: int, rows: Sequence[dict[str, Any]]) -> None:
        """Append rows, each with the table's columns."""
        with open(self.file, "a", encoding="utf-8", newline="") as target:
            csv.writer(target).writerows([[step, *(row[column] for column in self.columns[1:])] for row in rows])
