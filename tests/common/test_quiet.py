"""What is left out of what libraries say."""

from __future__ import annotations

import importlib.util
import logging
from pathlib import Path

import pytest

CPU = "bitsandbytes.backends.cpu.ops"
MISSED = "Failed to load CPU gemm_4bit_forward from kernels-community: %s."


def test_a_kernel_that_nobody_asked_for_is_not_missed(caplog: pytest.LogCaptureFixture) -> None:
    logging.getLogger(CPU).warning(MISSED, "No module named 'kernels'")
    logging.getLogger(CPU).warning("%s", "something else")
    assert caplog.messages == ["something else"]


def test_the_installed_bitsandbytes_says_it_in_these_words() -> None:
    """So that another version's words are noticed here, not by a user."""
    found = importlib.util.find_spec("bitsandbytes")
    if found is None or found.origin is None:
        pytest.skip("bitsandbytes is not installed")
    source = (Path(found.origin).parent / "backends/cpu/ops.py").read_text(encoding="utf-8")
    assert MISSED.removesuffix(".") in source and "logging.getLogger(__name__)" in source
