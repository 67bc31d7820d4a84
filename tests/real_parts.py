"""Pretrained parts and real recordings, for whoever has them: a folder that R1_AQA_REAL_PARTS names."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

VARIABLE = "R1_AQA_REAL_PARTS"


def real_part(name: str) -> Path:
    """One of its folders, such as `whisper-base`; without it the test is skipped."""
    folder = os.environ.get(VARIABLE)
    if not folder:
        pytest.skip(f"{VARIABLE} names no folder with pretrained parts")
    return Path(folder) / name
