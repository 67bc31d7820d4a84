"""What is left out of what libraries say."""

from __future__ import annotations

import importlib.util
import logging
from pathlib import Path

import pytest

CPU = "bitsandbytes.backends.cpu.ops"
MISSED = "Failed to load CPU gemm_4bit_forward from kernels-community: %s."


def test_a_kernel_that_nobody_asked_for_is_not_missed() -> None:
    logger = logging.getLogger(CPU)
    told = logging.WARNING, __file__, 1
    assert not logger.filter(logger.makeRecord(CPU, *told, MISSED, ("No module named 'kernels'",), None))
    assert logger.filter(logger.makeRecord(CPU, *told, "%s", ("something else",), None))


def test_the_installed_bitsandbytes_says_it_in_these_words() -> None:
    """So that another version's words are noticed here, not by a user."""
    found = importlib.util.find_spec("bitsandbytes")
    if found is None or found.origin is None:
        pytest.skip("bitsandbytes is not installed")
    source = (Path(found.origin).parent / "backends/cpu/ops.py").read_text(encoding="utf-8")
    assert MISSED.removesuffix(".") in source and "logging.getLogger(__name__)" in source
