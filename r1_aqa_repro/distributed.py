"""Starting the process group where a library would do it too late."""

from __future__ import annotations

from transformers import TrainingArguments


def start_distributed(training: TrainingArguments) -> None:
    """Open DeepSpeed's process group before a model is loaded.

    On CPUs DeepSpeed would otherwise open it only when the engine is built: `from_pretrained` under ZeRO-3 then sees
    a single process and does not shard.
    """
    if training.deepspeed and training.device.type == "cpu":
        import deepspeed

        deepspeed.init_distributed(dist_backend="gloo")
