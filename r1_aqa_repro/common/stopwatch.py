"""Seconds by stage of a run that is made of several."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from r1_aqa_repro.common.errors import Refused
from r1_aqa_repro.common.files import write_json


class Stages:
    """Seconds by stage, kept over interruptions in a file."""

    def __init__(self, file: Path):
        self.file = file
        self.seconds: dict[str, float] = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        began = time.perf_counter()
        refused = False
        try:
            yield
        except Refused:
            refused = True  # the folder may be another run's: leave its times alone
            raise
        finally:
            if not refused:
                self.seconds[name] = round(self.seconds.get(name, 0.0) + time.perf_counter() - began, 1)
                write_json(self.file, self.seconds)
