"""What an optimizer step spends its time on, and what its rollouts amount to."""

from __future__ import annotations

import math
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from itertools import chain
from statistics import fmean
from typing import Any

import torch
from accelerate.utils import gather_object
from transformers import TrainerCallback

from r1_aqa_repro.data.answers import answers_of, is_letter_alone, named_choice

PARTS = ("audio", "generation", "reference", "reward", "forward", "backward", "optimizer")
OTHER = "other"  # bookkeeping


def seconds() -> float:
    """Wall time. GPUs work behind the program's back: wait for them first."""
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()
    return time.perf_counter()


class StepClock:
    """How much a count, such as the seconds, grows in an optimizer step by part; a part inside another counts alone.

    now: reads the count.
    """

    def __init__(self) -> None:
        self.now: Callable[[], float] = seconds
        self._inside: list[str] = []
        self.restart()

    @contextmanager
    def __call__(self, part: str) -> Iterator[None]:
        """Count what grows inside for `part`."""
        self._turn()
        self._inside.append(part)
        try:
            yield
        finally:
            self._turn()
            self._inside.pop()

    def read(self) -> dict[str, float]:
        """The growth since the last reading by part, `PARTS` and `OTHER`."""
        self._turn()
        grown = {part: self._grown[part] for part in (*PARTS, OTHER)}
        self._grown.clear()
        return grown

    def restart(self) -> None:
        """Forget what has passed since the last reading: it belongs to no step."""
        self._grown: dict[str, float] = defaultdict(float)
        self._began = self.now()

    def _turn(self) -> None:
        now = self.now()
        self._grown[self._inside[-1] if self._inside else OTHER] += now - self._began
        self._began = now


class StepRecord:
    """What the rollouts of an optimizer step amount to on this process.

    batches: of rows that were asked about; further questions count with the batch that they were drawn for.
    clips: questions asked, each with its clip.
    tokens: generated.
    """

    def __init__(self) -> None:
        self._clear()

    def _clear(self) -> None:
        self.batches = self.clips = self.tokens = 0
        self._values: list[tuple[str, float]] = []

    def add_rewards(self, figures: Mapping[str, torch.Tensor], tasks: Sequence[str | None]) -> None:
        """Count values [N] by name and by the task of each of the N rows; NaN and rows without a task are left out."""
        for name, values in figures.items():
            for value, task in zip(values.tolist(), tasks, strict=True):
                if task is not None and not math.isnan(value):
                    self._values.append((f"{name}/{task}", value))

    def read(self, seconds: float) -> dict[str, float]:
        """Means by name and task, and clips and tokens a second, of all processes together; every one must call it."""
        clips, tokens, values = zip(*gather_object([(self.clips, self.tokens, self._values)]), strict=True)
        by_name: dict[str, list[float]] = defaultdict(list)
        for name, value in chain(*values):
            by_name[name].append(value)
        self._clear()
        figures = {"clips_per_second": sum(clips) / seconds, "tokens_per_second": sum(tokens) / seconds}
        return figures | {name: fmean(by_name[name]) for name in sorted(by_name)}


class StepMonitor(TrainerCallback):
    """Starts clock and record with every optimizer step and hands their figures to `log` at its end.

    What lies between steps (saving, evaluating) is left out.
    """

    def __init__(self, clock: StepClock, record: StepRecord, log: Callable[[dict[str, float]], None]):
        self.clock, self.record, self.log = clock, record, log
        self._optimizer = ExitStack()

    def on_step_begin(self, *args: Any, **kwargs: Any) -> None:
        self.clock.restart()

    def on_pre_optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        self._optimizer.enter_context(self.clock("optimizer"))

    def on_optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        self._optimizer.close()

    def on_step_end(self, *args: Any, **kwargs: Any) -> None:
        grown = self.clock.read()
        total = sum(grown.values())
        self.log({f"time/{part}": grown[part] / total for part in PARTS} | self.record.read(total))


def answer_shares(completions: Iterable[str], choices: Sequence[Sequence[str]]) -> dict[str, float]:
    """Of completions, which share answers with the letter of a choice alone, and which names no choice at all.

    The benchmark counts both as wrong; choices are those that each completion was asked to choose from.
    """
    answers = [(answers_of(text)[0], options) for text, options in zip(completions, choices, strict=True)]
    return {
        "completions/letter_only": fmean(is_letter_alone(*asked) for asked in answers),
        "completions/no_choice": fmean(named_choice(*asked) is None for asked in answers),
    }
