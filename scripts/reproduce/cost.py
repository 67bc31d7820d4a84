"""What a training has cost beside its time: energy, and how much of the GPUs' arithmetic it used."""

from __future__ import annotations

import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from r1_aqa_repro.common.files import read_json, write_json

_EVERY = 10.0  # seconds between readings of the power
_JOULES = 3.6e6  # of a kWh
# dense bfloat16 FLOP/s of GPUs by a part of their names, as their makers' data sheets have them
PEAK = {"H100 PCIe": 756e12, "H100": 989e12, "H200": 989e12, "H800": 989e12, "A100": 312e12, "A800": 312e12}


class EnergyMeter:
    """Adds what the GPUs take inside to `energy_kwh` in a file, over interruptions too; without GPUs whose power can be
    read, nothing.

    The power is read every ten seconds, and taken for what holds until the next reading.
    """

    def __init__(self, file: Path, power: Callable[[], float | None] | None = None, every: float = _EVERY):
        self.file, self._power, self._every = file, power or power_of_gpus, every
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._measure, daemon=True)

    def __enter__(self) -> EnergyMeter:
        self._thread.start()
        return self

    def __exit__(self, *_: Any) -> None:
        self._end.set()
        self._thread.join()

    def _measure(self) -> None:
        at = time.monotonic()
        while (watts := self._power()) is not None:
            ended = self._end.wait(self._every)
            now = time.monotonic()
            note(self.file, energy_kwh=noted(self.file).get("energy_kwh", 0.0) + watts * (now - at) / _JOULES)
            at = now
            if ended:
                return


def power_of_gpus() -> float | None:
    """Watts that the GPUs of this machine take together; None if there are none, or one does not say."""
    query = ["nvidia-smi", "--query-gpu=power.draw", "--format=csv,noheader,nounits"]
    try:
        told = subprocess.run(query, capture_output=True, text=True, timeout=30, check=True).stdout.split("\n")
        watts = [float(line) for line in told if line.strip()]
    except (OSError, subprocess.SubprocessError, ValueError):
        return None
    return sum(watts) if watts else None


def peak_of(gpus: list[str]) -> float | None:
    """FLOP/s of these GPUs together; None if one is not known."""
    found = [next((flops for part, flops in PEAK.items() if part in name), None) for name in gpus]
    return sum(filter(None, found)) if found and all(found) else None


def noted(file: Path) -> dict[str, Any]:
    """What has been noted so far."""
    return read_json(file, "Delete it: what it tells is lost.") if file.is_file() else {}


def note(file: Path, **values: Any) -> None:
    """Add values to what is noted."""
    write_json(file, noted(file) | values)
