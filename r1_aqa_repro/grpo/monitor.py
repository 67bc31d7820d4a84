"""What a step's time went into, what its rewards were by task, and a few of its completions as a table."""

from __future__ import annotations

import csv
import io
import math
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import gather_object

from r1_aqa_repro.common.files import write_atomically

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


class StepRecord:
    """What the rollouts of an optimizer step amounted to on this process.

    clips: questions asked, each with its clip.
    tokens: generated.
    """

    def __init__(self) -> None:
        self._clear()

    def _clear(self) -> None:
        self.clips = self.tokens = 0
        self._sums: dict[tuple[str, str], tuple[float, int]] = {}

    def add_rewards(self, figures: Mapping[str, torch.Tensor], tasks: Sequence[str | None]) -> None:
        """Count values [N] by name and by the task of each of the N rows; NaN and rows without a task are left out."""
        for name, values in figures.items():
            for value, task in zip(values.tolist(), tasks, strict=True):
                if task is not None and not math.isnan(value):
                    total, count = self._sums.get((name, task), (0.0, 0))
                    self._sums[name, task] = (total + value, count + 1)

    def read(self, seconds: float) -> dict[str, float]:
        """Means by name and task, and clips and tokens a second, of all processes together; every one must call it."""
        records = gather_object([(self.clips, self.tokens, self._sums)])
        figures = {
            "clips_per_second": sum(clips for clips, _, _ in records) / seconds,
            "tokens_per_second": sum(tokens for _, tokens, _ in records) / seconds,
        }
        for name, task in sorted({key for _, _, sums in records for key in sums}):
            parts = [sums[name, task] for _, _, sums in records if (name, task) in sums]
            figures[f"{name}/{task}"] = sum(total for total, _ in parts) / sum(count for _, count in parts)
        self._clear()
        return figures


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
