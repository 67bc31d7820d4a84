"""Checkpoints that are whole or absent, and a resume that gives the weights an uninterrupted run would have."""

from __future__ import annotations

import math
import os
import re
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import set_seed
from transformers import PreTrainedModel, Trainer, TrainingArguments
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, TrainOutput, rotate_checkpoints

from r1_aqa_repro.common.errors import Failed, Refused, disk_full, is_full_disk
from r1_aqa_repro.common.files import read_json
from r1_aqa_repro.model.files import ADAPTER_CONFIG, make_portable, processor_files
from r1_aqa_repro.model.folder import not_finite
from r1_aqa_repro.model.loading import load_model, tokenizer_of
from r1_aqa_repro.run.callbacks import StopAtLoss
from r1_aqa_repro.run.finite_steps import FiniteSteps, shown_by_gradient
from r1_aqa_repro.run.training_state import (
    LATEST_UNIVERSAL,
    STAGING,
    TRAINING_STATE,
    UNIVERSAL,
    delete_training_state,
    num_processes_of,
    restoring,
)

FINAL = "final"
WEIGHTS = "weights"  # with the step after it: a model saved where no more fitted the time


def checkpoints(run_folder: str | os.PathLike[str]) -> list[Path]:
    """The complete checkpoints of a run, in the order of their steps. Half-written ones never carry the name."""
    pattern = re.compile(rf"{PREFIX_CHECKPOINT_DIR}-(\d+)")
    found = [(int(match[1]), path) for path in Path(run_folder).glob("*") if (match := pattern.fullmatch(path.name))]
    return [path for _, path in sorted(found)]


def last_checkpoint(run_folder: str | os.PathLike[str]) -> Path | None:
    """The complete checkpoint with the highest step, or None."""
    return next(reversed(checkpoints(run_folder)), None)


def is_last(checkpoint: Path, training: TrainingArguments) -> bool:
    """Whether the run had reached its end when this checkpoint was written.

    Raises:
        Refused: its record of the run is damaged.
    """
    file, remedy = checkpoint / TRAINER_STATE_NAME, "Delete the checkpoint: the run goes on from the one before."
    state, threshold = read_json(file, remedy), getattr(training, "stop_at_loss", None)
    try:
        at_loss = threshold is not None and StopAtLoss(threshold).reached(state["log_history"])
        return bool(state["global_step"] >= state["max_steps"] or at_loss)
    except (KeyError, TypeError) as error:
        raise Refused.because(str(file), f"it does not tell how far the run is ({error!r})", remedy) from None


def finish_from(checkpoint: Path, final: Path) -> None:
    """Make the final folder of a run that was stopped between its last checkpoint and its end: the model's files."""
    staged = final.parent / STAGING / final.name
    shutil.rmtree(staged.parent, ignore_errors=True)
    shutil.copytree(checkpoint, staged, ignore=shutil.ignore_patterns(*TRAINING_STATE))
    os.rename(staged, final)
    staged.parent.rmdir()


@contextmanager
def told_what_is_kept(run_folder: Path) -> Iterator[None]:
    """Say plainly what of a run could not be read or written and what is kept; clear away what did not fit on the disk.

    Raises:
        Failed: in place of what a library raised for want of space, and of what the system did not let the run read or
            write. Other errors pass.
    """
    outer = threading.excepthook
    # TensorBoard writes in a thread of its own; the main thread meets its error at the next figure
    threading.excepthook = lambda args: None if is_full_disk(args.exc_value) else outer(args)
    try:
        yield
    except Exception as error:
        if not is_full_disk(error):
            if isinstance(error, OSError) and error.filename is not None:
                why = f"{error.filename}: {error.strerror}"
                raise Failed(f"{why}. {_kept(run_folder)}: mend that and give the same command again.") from error
            raise
        unfinished = [run_folder / path.name for path in (run_folder / STAGING).glob("*")]
        what = unfinished[0] if unfinished else f"the record of the run in {run_folder}"
        shutil.rmtree(run_folder / STAGING, ignore_errors=True)
        again = "free some space and give the same command again."
        raise disk_full(what, run_folder, f"{_kept(run_folder)}: {again}") from error
    finally:
        threading.excepthook = outer


def _kept(run_folder: Path) -> str:
    last = last_checkpoint(run_folder)
    return "There is no checkpoint yet" if last is None else f"{last} is whole"


def last_good(run_folder: Path) -> str:
    """What to do once a run's weights or gradients are not finite: a checkpoint that is there has finite weights."""
    last = last_checkpoint(run_folder)
    remedy = "lower learning_rate or max_grad_norm"
    if last is None:
        return f"There is no checkpoint yet: {remedy}, look into the data, and give --overwrite true."
    merged = ", merged with r1_aqa_repro.merge_adapter," if (last / ADAPTER_CONFIG).is_file() else ""
    again = f"with another --output_dir and it{merged} as model_name_or_path"
    return f"The last good checkpoint is {last}: {remedy} and start anew from it, {again}."


class ResumableTrainer(Trainer):
    """A Trainer (to be mixed in before any subclass of it) whose interrupted runs continue exactly, and whose weights
    stay finite.

    What it saves, other programs can load: see `make_portable`.

    Attributes:
        write_card: writes the model card of the model that was just saved in a folder, if it is a run's.
        finite_steps: says which updates may be taken.
        processor_files: those that tokenizer or processor were read from, which every saved model gets.
        seconds_to_save: what the last checkpoint of this process took; None before there is one.
    """

    write_card: Callable[[Path, Trainer], None] | None = None
    seconds_to_save: float | None = None
    _staging = False

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.finite_steps = FiniteSteps(partial(last_good, Path(str(self.args.output_dir))))
        self.add_callback(self.finite_steps)
        # read now: the folder they lie in may be gone when a model is saved
        self.processor_files = processor_files(tokenizer_of(self.processing_class).name_or_path)

    def compute_loss(self, model: torch.nn.Module, inputs: Any, return_outputs: bool = False, **kwargs: Any) -> Any:
        """As the trainer that this is mixed into, so that a loss that is not finite has no finite gradient."""
        computed = super().compute_loss(model, inputs, return_outputs=return_outputs, **kwargs)
        if return_outputs:
            loss, outputs = computed
            return shown_by_gradient(loss), outputs
        return shown_by_gradient(computed)

    def _get_grad_norm(self, model: torch.nn.Module, grad_norm: Any = None) -> Any:
        """The norm of the gradient that the update is about to take, over all processes; without gradients it takes
        none, neither of weights nor of its own state. DeepSpeed has skipped one that is not finite by itself."""
        norm = super()._get_grad_norm(model, grad_norm=grad_norm)
        if norm is not None and not self.may_be_taken(float(norm)):
            model.zero_grad()
        return norm

    def may_be_taken(self, norm: float) -> bool:
        """Whether an update with this norm of its gradient may be taken; see `FiniteSteps.may_be_taken`.

        One that a loss scaler skips, to scale less from then on, is a matter of its own.
        """
        scaler, optimizer = self.accelerator.scaler, getattr(self.optimizer, "optimizer", None)
        scale = getattr(optimizer, "loss_scale", 1) if scaler is None else scaler.get_scale()
        if not math.isfinite(norm) and scale > 1:
            return True
        is_taken = self.is_deepspeed_enabled and not self.accelerator.optimizer_step_was_skipped
        return self.finite_steps.may_be_taken(norm, self.state.global_step + 1, is_taken=is_taken)

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        super().log(self.finite_steps.amended(logs, self.state.global_step), *args, **kwargs)

    def _get_output_dir(self, trial: Any) -> str:
        return os.path.join(self.args.output_dir, STAGING) if self._staging else self.args.output_dir

    def _save_checkpoint(self, model: torch.nn.Module, trial: Any) -> None:
        """Write the checkpoint under another name, then rename it: a kill in between leaves the one before."""
        began = time.monotonic()
        with self._staged(f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}") as staged:
            self._staging = True
            try:
                super()._save_checkpoint(model, trial)
            finally:
                self._staging = False
            if self.state.best_model_checkpoint == str(staged):
                self.state.best_model_checkpoint = str(Path(self.args.output_dir) / staged.name)
                if self.args.should_save:
                    self.state.save_to_json(str(staged / TRAINER_STATE_NAME))
        if self.args.should_save:
            rotate_checkpoints(
                output_dir=self.args.output_dir,
                save_total_limit=self.args.save_total_limit,
                best_model_checkpoint=self.state.best_model_checkpoint,
            )
            if getattr(self.args, "keep_optimizer", "all") == "last":
                for older in checkpoints(self.args.output_dir)[:-1]:
                    delete_training_state(older)
            for overtaken in Path(self.args.output_dir).glob(f"{WEIGHTS}-*"):
                shutil.rmtree(overtaken, ignore_errors=True)
        self.accelerator.wait_for_everyone()
        self.seconds_to_save = time.monotonic() - began

    def _finalize_training(self, *args: Any, **kwargs: Any) -> TrainOutput:
        """As Trainer, which here deletes the last checkpoint if only one is kept and another is the best: a run that
        was interrupted goes on from the last."""
        limit, self.args.save_total_limit = self.args.save_total_limit, None
        try:
            return super()._finalize_training(*args, **kwargs)
        finally:
            self.args.save_total_limit = limit

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        """As Trainer, after which what DeepSpeed saved offloaded can go on without, and the other way round.

        PyTorch's AdamW counts steps in a tensor, DeepSpeed's for the CPU in a number, and their settings have other
        names. What was converted for another number of processes is deleted.
        """
        with restoring(checkpoint, "the optimizer or schedule"):
            super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint is None or not self.is_deepspeed_enabled:
            return
        optimizer = self.model_wrapped.basic_optimizer
        for group in optimizer.param_groups:
            group.update({key: value for key, value in optimizer.defaults.items() if key not in group})
        as_counted = int if type(optimizer).__name__ == "DeepSpeedCPUAdam" else torch.tensor
        for state in optimizer.state.values():
            if "step" in state:
                state["step"] = as_counted(float(state["step"]))
        self.accelerator.wait_for_everyone()
        if self.args.should_save:
            (Path(checkpoint) / LATEST_UNIVERSAL).unlink(missing_ok=True)
            shutil.rmtree(Path(checkpoint) / UNIVERSAL, ignore_errors=True)

    def _load_rng_state(self, checkpoint: str | None) -> None:
        """Each process's random numbers; drawn anew, of seed and step, where another number of processes saved them."""
        if checkpoint is not None and num_processes_of(Path(checkpoint)) != self.args.world_size:
            set_seed(self.args.seed + self.state.global_step, device_specific=True)
        else:
            with restoring(checkpoint, "the state of the random numbers"):
                super()._load_rng_state(checkpoint)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: torch.nn.Module | None = None) -> None:
        """Load a full Qwen2-Audio checkpoint through `from_pretrained`, strictly.

        transformers 5.23 saves Qwen2-Audio under its published tensor names (`audio_tower.*`) while the live model has
        others (`model.audio_tower.*`), and Trainer loads them with `strict=False`: nothing matches, and training goes
        on from the initial weights with a mere warning.
        """
        if not self._restores_by_name():
            super()._load_from_checkpoint(resume_from_checkpoint, model)
            return
        target = self.model if model is None else model
        saved = load_model(resume_from_checkpoint, dtype=self.model.dtype)
        target.load_state_dict(saved.state_dict(), strict=True)

    def _load_best_model(self) -> None:
        """As `_load_from_checkpoint`, for `load_best_model_at_end`."""
        if self._restores_by_name():
            self._load_from_checkpoint(self.state.best_model_checkpoint)
        else:
            super()._load_best_model()

    def _restores_by_name(self) -> bool:
        """Full weights of an unsharded model; DeepSpeed and FSDP restore their own shards, PEFT its adapter."""
        return (
            isinstance(self.model, PreTrainedModel)
            and self.model.config.model_type == "qwen2_audio"
            and not self.is_deepspeed_enabled
            and not self.is_fsdp_enabled
        )

    def _save(self, output_dir: str | None = None, state_dict: dict[str, torch.Tensor] | None = None) -> None:
        super()._save(output_dir, state_dict)
        if self.args.should_save:
            make_portable(Path(output_dir or self.args.output_dir), self.processor_files)

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        super().save_model(output_dir, _internal_call)
        if self.write_card is not None and self.args.should_save:
            self.write_card(Path(output_dir or self.args.output_dir), self)

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """Nothing: TRL's card, for the run's folder, knows neither base model nor data."""

    def save_final(self) -> Path:
        """Write model, processor and generation config to `<output_dir>/final`, whole or not at all."""
        with self._staged(FINAL) as staged:
            self.save_model(str(staged))
        return Path(self.args.output_dir) / FINAL

    def save_weights(self) -> Path:
        """Write the model alone to `<output_dir>/weights-N`: evaluation reads it, no run is resumed from it."""
        with self._staged(f"{WEIGHTS}-{self.state.global_step}") as staged:
            self.save_model(str(staged))
        return Path(self.args.output_dir) / staged.name

    @contextmanager
    def _staged(self, name: str) -> Iterator[Path]:
        """Where to write a folder of the run, which gets its name when all processes have written."""
        folder = Path(self.args.output_dir)
        staged = folder / STAGING / name
        if self.args.should_save:
            shutil.rmtree(staged.parent, ignore_errors=True)
        self.accelerator.wait_for_everyone()
        yield staged
        self.accelerator.wait_for_everyone()
        if self.args.should_save:
            for file in staged.rglob("*.safetensors"):
                if tensor := not_finite(file):
                    shutil.rmtree(staged.parent, ignore_errors=True)
                    where = f"{tensor} of {file.relative_to(staged)}"
                    raise Failed(
                        f"{folder / name} is not saved: its weights are not finite ({where}). {last_good(folder)}"
                    )
            shutil.rmtree(folder / name, ignore_errors=True)
            os.rename(staged, folder / name)
            shutil.rmtree(staged.parent, ignore_errors=True)
        self.accelerator.wait_for_everyone()
