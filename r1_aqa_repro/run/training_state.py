"""What a checkpoint holds beside the model, and a run is resumed from: optimizer, schedule, random numbers."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from r1_aqa_repro.common.errors import Refused

STAGING = ".partial"  # folder inside the run folder where a checkpoint is written before it gets its name
# files and folders of a checkpoint that nobody needs who has its model; the first two decide whether it can be resumed
OPTIMIZER = ("optimizer*", "global_step*")
_REST = ("scheduler.pt", "scaler.pt", "rng_state*", "latest*", "zero_to_*.py")
TRAINING_STATE = (*OPTIMIZER, *_REST, "trainer_state.json")


def has_training_state(checkpoint: Path) -> bool:
    """Whether a run can go on from this checkpoint."""
    return any(path for pattern in OPTIMIZER for path in checkpoint.glob(pattern))


def check_resumable(checkpoint: Path) -> None:
    """Refuse a checkpoint that holds weights alone: training would go on with a new optimizer and schedule.

    Raises:
        Refused: there is no optimizer state in it.
    """
    if not has_training_state(checkpoint):
        what = (
            "the checkpoint has no optimizer state (saved with save_only_model; or a newer one was complete, with "
            "keep_optimizer: last): going on from it would not be the same run"
        )
        raise Refused.because(str(checkpoint), what, "Start a new run with it as model_name_or_path.")


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
