"""Who this process is among those of a run, and their process group: opened in time, closed at the end."""

from __future__ import annotations

import ctypes
import os
import signal
import socket
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # commands answer --help without these
    from transformers import TrainingArguments

LAUNCHER = "R1_AQA_LAUNCHER"  # in the environment of launched processes: the number of the one that has launched them
_PR_SET_PDEATHSIG = 1  # of linux/prctl.h


def rank() -> int:
    """The number of this process among all of its run, as torchrun announces it; 0 if it is alone."""
    return int(os.environ.get("RANK", "0"))


def local_rank() -> int:
    """The number of this process among those on its machine."""
    return int(os.environ.get("LOCAL_RANK", "0"))


def num_processes() -> int:
    """Processes of this run, on all machines."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def num_local_processes() -> int:
    """Processes of this run on this machine."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", "1"))


def num_cores() -> int:
    """Cores that this process may use; on macOS all of them."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def is_main_process() -> bool:
    """Whether this process speaks and writes for all of them."""
    return rank() == 0


def start_distributed(training: TrainingArguments) -> None:
    """Open DeepSpeed's process group before a model is loaded.

    On CPUs DeepSpeed would otherwise open it only when the engine is built: `from_pretrained` under ZeRO-3 then sees
    a single process and does not shard.
    """
    if not training.deepspeed:
        return
    if "RANK" not in os.environ:
        _join_oneself()
    if training.device.type == "cpu":
        import deepspeed

        deepspeed.init_distributed(dist_backend="gloo")


def _join_oneself() -> None:
    """Set what torchrun sets: to a process that nobody launched DeepSpeed would look for MPI."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    own = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "LOCAL_WORLD_SIZE": "1"}
    os.environ.update(own, MASTER_ADDR="127.0.0.1", MASTER_PORT=port)


def end_with_launcher() -> None:
    """Let this process be killed with the one that has launched it, if one has (Linux alone).

    torchrun starts processes in sessions of their own, which SIGKILL does not reach with it: left alone they would go
    on, and keep the same command from beginning again.
    """
    launcher = os.environ.pop(LAUNCHER, None)
    if launcher is None or sys.platform != "linux":
        return
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    try:
        os.kill(int(launcher), 0)
    except ProcessLookupError:  # it has died in the meantime
        os.kill(os.getpid(), signal.SIGKILL)


def end_distributed() -> None:
    """Close the process group, if there is one, in a process that has nothing left but to say its result and end.

    A group left open aborts a process at its exit, and closing it may abort another that is slower. torchrun answers
    that with SIGTERM to all: from here on it is ignored, so that this process still ends with its own exit code.
    """
    import torch.distributed

    if torch.distributed.is_initialized():
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        torch.distributed.destroy_process_group()
