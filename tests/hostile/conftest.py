"""How a command ends that is given hostile input: run in this process, watched for sockets and for what it leaves."""

from __future__ import annotations

import socket
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

# the embedded configuration of every training
TRAININGS = {
    "train_grpo": "grpo_embedded",
    "train_sft": "sft_embedded",
    "train_sft_text": "sft_text_embedded",
    "train_reward_model": "reward_model_embedded",
    "train_dpo": "dpo_embedded",
    "train_grpo_text": "grpo_text_embedded",
    "train_ppo_text": "ppo_text_embedded",
}

_NETWORK = ("socket.connect", "socket.bind", "socket.sendto", "socket.sendmsg", "socket.getaddrinfo")
_opened: list[str] | None = None  # sockets opened while a test runs


def _watch(event: str, arguments: tuple[Any, ...]) -> None:
    # not those between the processes of one machine, by which workers are started
    if _opened is not None and event in _NETWORK and getattr(arguments[0], "family", None) != socket.AF_UNIX:
        _opened.append(f"{event} {arguments[1:]}")


sys.addaudithook(_watch)  # of Python's own sockets; those of C libraries are watched where one might be opened


@pytest.fixture(autouse=True)
def sockets() -> Iterator[list[str]]:
    """What Python opened of the network; a test that expects some clears it."""
    global _opened
    _opened = []
    yield _opened
    opened, _opened = _opened, None
    assert not opened


@dataclass(frozen=True)
class Ended:
    code: int
    out: str
    err: str


Ends = Callable[..., Ended]


@pytest.fixture
def ends(capfd: pytest.CaptureFixture[str], tmp_path: Path) -> Ends:
    """`ends("eval.mmau", "--ckpt", folder, ..., code=2, names=["folder"])`: run a command by its module, and check how
    it ends: the exit code, every one of `names` in what it says on stderr, no traceback, nothing written in part."""

    def run(module: str, *arguments: object, code: int, names: list[str]) -> Ended:
        capfd.readouterr()
        try:
            found = import_module(module).main([str(argument) for argument in arguments])
        except SystemExit as exit_:  # argparse's own
            found = exit_.code
        output = capfd.readouterr()
        assert found == code, output.err
        for name in names:
            assert name in output.err
        assert "Traceback" not in output.out + output.err
        assert not list(tmp_path.rglob("*.partial"))
        return Ended(found, output.out, output.err)

    return run
