from __future__ import annotations

import os
from collections.abc import Iterator
from unittest import mock

import pytest


@pytest.fixture(autouse=True)
def environment_as_before() -> Iterator[None]:
    """The runs of scripts hide the GPUs from their process, which is pytest's own here."""
    with mock.patch.dict(os.environ):
        yield
