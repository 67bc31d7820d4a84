"""What a checkpoint holds beside the model, and a run is resumed from: optimizer, schedule, random numbers."""

from __future__ import annotations

import os
import pickle
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from transformers import TrainingArguments
from transformers.trainer import OPTIMIZER_NAME, SCHEDULER_NAME

from r1_aqa_repro.common.errors import Refused
from r1_aqa_repro.common.files import unreadable
from r1_aqa_repro.run.part_rates import part_rates

STAGING = ".partial"  # folder inside the run folder where a checkpoint is written before it gets its name
UNIVERSAL, LATEST_UNIVERSAL = "universal", "latest_universal"  # in a checkpoint: see `universal`
# files and folders of a checkpoint that nobody needs who has its model; the first two decide whether it can be resumed
OPTIMIZER = ("optimizer*", "global_step*")
_REST = ("scheduler.pt", "scaler.pt", "rng_state*", "latest*", UNIVERSAL, "zero_to_*.py")
TRAINING_STATE = (*OPTIMIZER, *_REST, "trainer_state.json")


def has_training_state(checkpoint: Path) -> bool:
    """Whether a run can go on from this checkpoint."""
    return any(path for pattern in OPTIMIZER for path in checkpoint.glob(pattern))


@contextmanager
def restoring(checkpoint: str | None, what: str) -> Iterator[None]:
    """Name the checkpoint where a library cannot restore `what` from it: files cut off, or with other things in them.

    Raises:
        Refused: in place of whatever the library raises, except for want of memory.
    """
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except (ValueError, TypeError, LookupError, AttributeError, EOFError, RuntimeError, pickle.PickleError) as error:
        if checkpoint is None:
            raise
        reason = f"{what} in it cannot be restored ({type(error).__name__}: {error})"
        raise Refused.because(
            checkpoint, reason, "Delete the checkpoint: the run goes on from the one before."
        ) from error


def num_processes_of(checkpoint: Path) -> int:
    """Processes of the run that saved it: each has saved its random numbers."""
    return len(list(checkpoint.glob("rng_state*")))


def check_resumable(checkpoint: Path, training: TrainingArguments) -> None:
    """Refuse a checkpoint that holds weights alone, with which training would go on with a new optimizer and schedule,
    and one whose optimizer state this run's DeepSpeed cannot read.

    Raises:
        Refused: there is no optimizer state in it, or that of another ZeRO stage, or of another number of
            processes that cannot be converted.
    """
    remedy = "start a new run with it as model_name_or_path."
    if not has_training_state(checkpoint):
        what = (
            "the checkpoint has no optimizer state (saved with save_only_model; or a newer one was complete, with "
            "keep_optimizer: last): going on from it would not be the same run"
        )
        raise Refused.because(str(checkpoint), what, remedy.capitalize())
    saved, wanted = _stage_of(checkpoint), 0
    if training.deepspeed:
        wanted = training.hf_deepspeed_config.get_value("zero_optimization.stage", 0)
        wanted = 2 if wanted == 1 else wanted  # the same files
    if saved != wanted:
        names = {0: "without ZeRO", 2: "with ZeRO-1 or 2", 3: "with ZeRO-3"}
        what = f"the optimizer state was saved {names[saved]} and cannot be read {names[wanted]}"
        raise Refused.because(str(checkpoint), what, f"Resume {names[saved]} (offloading may differ), or {remedy}")
    # Trainer goes on without those that are no files
    pair = [checkpoint / OPTIMIZER_NAME, checkpoint / SCHEDULER_NAME] if saved == 0 else []
    for path in (*pair, *checkpoint.glob("rng_state*")):
        if (reason := unreadable(path)) is not None:
            raise Refused.because(str(path), reason, "Delete the checkpoint: the run goes on from the one before.")
    processes = num_processes_of(checkpoint)
    several = training.weight_decay or part_rates(training) or getattr(training, "critic_learning_rate", None)
    if wanted == 3 and processes != training.world_size and several:
        what = (
            f"it was saved by {processes} processes, not {training.world_size}, and DeepSpeed's universal checkpoint "
            "of ZeRO-3 has one learning rate and one weight decay for all weights, this run has several"
        )
        raise Refused.because(str(checkpoint), what, f"Resume with {processes} processes, or {remedy}")


def _stage_of(checkpoint: Path) -> int:
    """Of ZeRO, by what it has written; 2 stands for 1 too, 0 for none."""
    if any(checkpoint.glob("global_step*/zero_pp_rank_*_model_states.pt")):
        return 3
    return 2 if any(checkpoint.glob("global_step*")) else 0


def delete_training_state(checkpoint: Path) -> None:
    """Leave of a checkpoint what evaluation needs: the model, and `trainer_state.json` with the log.

    A kill in between leaves no checkpoint that looks as if a run could go on from it: what decides that goes first, and
    at once, under another name.
    """
    staged = checkpoint.parent / STAGING / checkpoint.name
    staged.mkdir(parents=True, exist_ok=True)
    for pattern in (*OPTIMIZER, *_REST):
        for path in checkpoint.glob(pattern):
            os.rename(path, staged / path.name)
    shutil.rmtree(staged.parent, ignore_errors=True)
