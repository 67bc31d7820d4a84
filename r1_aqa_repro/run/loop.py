"""What every training entry point does once its trainer can be built: resume, train, keep the work, save."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from contextlib import closing, nullcontext, suppress
from functools import partial
from pathlib import Path

import psutil
import transformers
from torch.utils.cpp_extension import get_default_build_root
from transformers import TrainingArguments, set_seed
from transformers.trainer_callback import PrinterCallback, ProgressCallback

from r1_aqa_repro.common.console import say
from r1_aqa_repro.common.distributed import (
    end_distributed,
    is_main_process,
    local_rank,
    num_local_processes,
    num_processes,
    start_distributed,
)
from r1_aqa_repro.common.errors import EXIT_DONE, EXIT_INTERRUPTED, Failed
from r1_aqa_repro.common.stopwatch import Stages
from r1_aqa_repro.run.callbacks import ProgressBar, ProgressLines, SampleKeeper, StopOnSignal
from r1_aqa_repro.run.checkpoints import (
    FINAL,
    ResumableTrainer,
    finish_from,
    is_last,
    last_checkpoint,
    told_what_is_kept,
)
from r1_aqa_repro.run.checks import offloads_optimizer
from r1_aqa_repro.run.folder import RUN, recorded, update_run
from r1_aqa_repro.run.model_card import write_card
from r1_aqa_repro.run.samples import Sampled, say_samples
from r1_aqa_repro.run.universal import fit_to_processes


def run_training(
    build_trainer: Callable[[], ResumableTrainer],
    training: TrainingArguments,
    stage: str,
    sampled: Sampled | None = None,
) -> int:
    """Train from the last complete checkpoint of the run, or from the start; return the exit code.

    What the model makes of `sampled` before and after is kept and shown. A finished run is left alone. On Ctrl-C,
    SIGTERM or SIGUSR1 a checkpoint is saved, or with `save_on_signal` what fits the time, and the code is 130.

    Raises:
        Refused: the disk has no room for the last checkpoint, converted for another number of processes.
        Failed: the disk is full, or DeepSpeed's CPU Adam does not compile.
    """
    folder = Path(str(training.output_dir))
    if (folder / FINAL).is_dir():
        say(f"{folder / FINAL} is there: this run is complete (--overwrite starts anew)")
        say_samples(folder)
        end_distributed()
        return EXIT_DONE
    transformers.utils.logging.disable_progress_bar()  # a bar for every file read and written hides training's own
    checkpoint = last_checkpoint(folder)
    if checkpoint is not None:
        say(f"resuming from {checkpoint} (--overwrite starts anew)")
        if is_last(checkpoint, training):  # Trainer would take one step more
            if is_main_process():
                with told_what_is_kept(folder):
                    finish_from(checkpoint, folder / FINAL)
            say_samples(folder)
            end_distributed()
            return EXIT_DONE
    clear_dead_builds(training)
    start_distributed(training)
    compile_cpu_adam(training)
    if checkpoint is not None:
        fit_to_processes(checkpoint, training)
    set_seed(training.seed)  # weights of an adapter or a new head are drawn before any trainer seeds
    trainer = build_trainer()
    trainer.write_card = partial(write_card, folder)
    trainer.finite_steps.skipped = recorded(folder).get("skipped_steps", [])
    trainer.finite_steps.note = partial(update_run, folder)
    stop = StopOnSignal(getattr(training, "save_on_signal", None), trainer)
    if sampled is not None:
        trainer.add_callback(SampleKeeper(folder, sampled, trainer))
    progress = ProgressBar() if sys.stderr.isatty() else ProgressLines()
    trainer.remove_callback(ProgressCallback)
    trainer.remove_callback(PrinterCallback)
    trainer.add_callback(progress)
    trainer.add_callback(stop)
    seconds = Stages(folder / RUN, "seconds")
    # a bar that is not closed would be drawn over the message of what went wrong
    with closing(progress), told_what_is_kept(folder), seconds(stage) if is_main_process() else nullcontext():
        trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
        if not stop.stopped:
            trainer.save_final()
    end_distributed()
    if stop.stopped:
        last = last_checkpoint(folder)
        goes_on = "begins anew" if last is None else f"goes on from {last}"
        alone = f"the model alone in {stop.saved_weights}, as no more would have fitted the time"
        say(f"interrupted: saved {alone if stop.saved_weights else last}; the same command {goes_on}")
        return EXIT_INTERRUPTED
    say_samples(folder)
    return EXIT_DONE


def clear_dead_builds(training: TrainingArguments) -> None:
    """Delete the locks that killed processes have left where DeepSpeed's operators are built.

    An operator is built when it is first needed, and who finds a lock waits for as long as it is there
    (`torch.utils.file_baton`): a kill at the wrong moment would stop all later runs of this user without a word.
    """
    several_machines = num_processes() > num_local_processes()  # which may share the folder
    if not training.deepspeed or local_rank() or several_machines:
        return
    folder = Path(os.environ.get("TORCH_EXTENSIONS_DIR") or get_default_build_root())
    locks = {lock.resolve() for lock in folder.glob("**/lock")}
    held = set()
    for process in psutil.process_iter() if locks else ():
        with suppress(psutil.Error):  # it has ended, or is another user's, who builds elsewhere
            held |= {Path(file.path) for file in process.open_files()}
    for lock in sorted(locks - held):  # whoever builds has it open
        lock.unlink(missing_ok=True)
        say(f"{lock}: deleted; the process that was building there was killed")


def compile_cpu_adam(training: TrainingArguments) -> None:
    """Compile what DeepSpeed updates offloaded weights with, once a machine, while no model waits for it.

    Raises:
        Failed: it does not compile.
    """
    if not offloads_optimizer(training):
        return
    from deepspeed.ops.op_builder import CPUAdamBuilder

    with training.main_process_first():
        try:
            CPUAdamBuilder().load(verbose=False)
        except Exception as error:
            raise Failed(f"DeepSpeed's CPU Adam does not compile: {error}") from error
