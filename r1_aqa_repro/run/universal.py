"""DeepSpeed's optimizer state for another number of processes than saved it, by way of its universal checkpoint.

ZeRO cuts the state for its number of processes. The universal form has a file a weight, which every number reads:
https://www.deepspeed.ai/tutorials/universal-checkpointing/.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import torch.distributed
from transformers import TrainingArguments

from r1_aqa_repro.common.console import say
from r1_aqa_repro.common.errors import Failed, Refused
from r1_aqa_repro.common.files import size_of, write_atomically
from r1_aqa_repro.run.checks import check_free_space
from r1_aqa_repro.run.training_state import LATEST_UNIVERSAL, STAGING, UNIVERSAL, num_processes_of


def fit_to_processes(checkpoint: Path, training: TrainingArguments) -> None:
    """Under ZeRO, convert a checkpoint of another number of processes, and have DeepSpeed read that.

    To be called by all processes, once their group is open and before there is a trainer, which deletes it again.

    Raises:
        Refused: there is no room for it.
        Failed: DeepSpeed cannot convert it.
    """
    if not training.deepspeed or num_processes_of(checkpoint) == training.world_size:
        return
    if training.should_save and not (checkpoint / LATEST_UNIVERSAL).is_file():
        _convert(checkpoint)
    if torch.distributed.is_initialized():
        torch.distributed.barrier()
    training.hf_deepspeed_config.config["checkpoint"] = {"load_universal": True}


def _convert(checkpoint: Path) -> None:
    [state] = checkpoint.glob("global_step*")
    # it is cut into fragments, which are then joined
    if no_room := check_free_space(checkpoint, 2 * size_of(state), "the optimizer state for other processes, twice,"):
        raise Refused(no_room)
    say(f"converting the optimizer state of {checkpoint} for another number of processes")
    staged = checkpoint.parent / STAGING / UNIVERSAL
    shutil.rmtree(staged.parent, ignore_errors=True)
    staged.parent.mkdir()
    folders = ["--input_folder", str(state), "--output_folder", str(staged)]
    command = [sys.executable, "-m", "deepspeed.checkpoint.ds_to_universal", "--inject_missing_state", *folders]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        why = done.stderr.strip().splitlines()[-1:]
        what = f"{checkpoint}: DeepSpeed cannot convert its optimizer state to another number of processes {why}"
        remedy = f"Resume with {num_processes_of(checkpoint)} processes, or start a new run from its weights."
        raise Failed(f"{what}. {remedy}")
    shutil.rmtree(checkpoint / UNIVERSAL, ignore_errors=True)
    os.rename(staged, checkpoint / UNIVERSAL)
    shutil.rmtree(staged.parent)
    write_atomically(checkpoint / LATEST_UNIVERSAL, UNIVERSAL)
