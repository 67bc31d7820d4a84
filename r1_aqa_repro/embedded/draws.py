"""Random draws that a seed repeats, whatever else is drawn before or beside them."""

from __future__ import annotations

import zlib
from collections.abc import Sequence

import numpy as np

Rng = np.random.Generator


def stream(seed: int, version: int, name: str, index: int) -> Rng:
    """The generator of one record: every seed, version of the maker, name and index has a stream of its own."""
    return np.random.default_rng([seed, version, zlib.crc32(name.encode()), index])


def pick(rng: Rng, options: Sequence[str]) -> str:
    """One of the options, each as likely as the others."""
    return options[int(rng.integers(len(options)))]
