"""Training commands on audio and on text, started alike."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from r1_aqa_repro import train_grpo, train_sft
from r1_aqa_repro.run.callbacks import StopOnSignal
from tests.text_world import COMMON, EXAMPLES, LORA
from tests.text_world import ENTRIES as TEXT
from tests.text_world import arguments as text_arguments

# 24 records: an epoch is 6 steps of 4. 8 steps, and what goes on from step 4 or 6, cross its end.
STEPS = ["--max_steps", "8", "--save_steps", "2"]
GRPO = [
    "--prompts_per_step", "4", "--max_prompts_per_device", "4", "--num_generations", "2",
    "--max_completion_length", "4", "--reward_funcs", "random", "--beta", "0.04", "--loss_type", "grpo",
]  # fmt: skip
AUDIO = {"audio grpo": (train_grpo, GRPO), "audio sft": (train_sft, EXAMPLES)}
# of what is trained on text: the entry point's name there, further settings
VARIANTS = {
    "reward_model lora": ("reward_model", [*LORA, "--lora_task_type", "SEQ_CLS"]),
    "dpo precomputed": ("dpo", ["--precompute_ref_log_probs", "true"]),
    "dpo lora": ("dpo", LORA),
}
Start = Callable[..., int]


class Killed(BaseException):
    """Stands for SIGKILL inside this process: nothing of the trainer's catches it."""


def kill_at(step: int) -> type[StopOnSignal]:
    class KillAt(StopOnSignal):
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if state.global_step == step:
                raise Killed

    return KillAt


@pytest.fixture(scope="session")
def start(manifest: Path, model_folder: Path, text_set: Path, policy: Path, reward_model: Path) -> Start:
    """Runs a training command: `start(name, folder, "--key", "value")`."""

    def of(name: str, folder: Path | str, *more: str) -> int:
        if name in AUDIO:
            entry, settings = AUDIO[name]
            where = {"output_dir": folder, "train_file": manifest, "model_name_or_path": model_folder}
            argv = [*COMMON, *settings, *(part for key, value in where.items() for part in (f"--{key}", str(value)))]
        else:
            kind, settings = VARIANTS.get(name, (name, []))
            entry = TEXT[kind][0]
            if kind == "grpo":
                rewards = ["--reward_funcs", "random", "reward_model", "--reward_model_name_or_path", str(reward_model)]
                settings = [*settings, *rewards]
            argv = [*text_arguments(kind, Path(folder), text_set, policy), *settings]
        return int(entry.main([*argv, *STEPS, *more]))

    return of
