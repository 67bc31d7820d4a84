"""The process group of several processes: opened where a library would do it too late, and closed at the end."""

from __future__ import annotations

import signal

import torch.distributed
from transformers import TrainingArguments


def start_distributed(training: TrainingArguments) -> None:
    """Open DeepSpeed's process group before a model is loaded.

    On CPUs DeepSpeed would otherwise open it only when the engine is built: `from_pretrained` under ZeRO-3 then sees
    a single process and does not shard.
    """
    if training.deepspeed and training.device.type == "cpu":
        import deepspeed

        deepspeed.init_distributed(dist_backend="gloo")


def end_distributed() -> None:
    """Close the process group, where there is one, in a process that has nothing left but to say its result and end.

    A group left open aborts a process at its exit, and closing it may abort another that is slower. torchrun answers
    that with SIGTERM to all: from here on it is ignored, so that this process still ends with its own exit code.
    """
    if torch.distributed.is_initialized():
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        torch.distributed.destroy_process_group()
