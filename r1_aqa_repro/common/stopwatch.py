"""Seconds by stage of a run that is made of several."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from r1_aqa_repro.common.errors import Refused
from r1_aqa_repro.common.files import read_json, write_json


class Stages:
    """Seconds by stage, kept over interruptions in a JSON file, or under its key `part`."""

    def __init__(self, file: Path, part: str | None = None):
        self.file, self.part = file, part
        self._asked_for: list[str] = []

    @property
    def seconds(self) -> dict[str, float]:
        """Of all stages that have ended or were interrupted, also those of earlier processes."""
        content = self._content()
        return dict(content if self.part is None else content.get(self.part, {}))

    @property
    def asked_for(self) -> dict[str, float]:
        """The seconds of the stages that this process went through, whether it did their work or found it done."""
        seconds = self.seconds
        return {stage: seconds[stage] for stage in self._asked_for if stage in seconds}

    @contextmanager
    def __call__(self, stage: str) -> Iterator[None]:
        """Add the seconds spent inside to the stage's, also if it is interrupted."""
        if stage not in self._asked_for:
            self._asked_for.append(stage)
        began, refused = time.perf_counter(), False
        try:
            yield
        except Refused:
            refused = True  # the folder may be another run's: leave its times alone
            raise
        finally:
            if not refused:
                seconds = self.seconds
                seconds[stage] = round(seconds.get(stage, 0.0) + time.perf_counter() - began, 1)
                write_json(self.file, seconds if self.part is None else self._content() | {self.part: seconds})

    def _content(self) -> dict[str, Any]:
        return read_json(self.file, "Delete it: the seconds so far are lost.") if self.file.is_file() else {}
