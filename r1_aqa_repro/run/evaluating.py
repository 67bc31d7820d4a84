"""Evaluation while training: accuracy on held-out questions every `eval_steps`, and the best checkpoint kept.

What an evaluation does is not decided here: an entry point hands in an `Evaluator` (`eval.during_training`, the same
harness that `python -m eval.mmau` runs), since only this package's commands import `eval`.
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any, Protocol

import torch
from tqdm import tqdm
from transformers import PreTrainedModel, Trainer, TrainerControl
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, TrainOutput, sort_checkpoints
from trl.models import unwrap_model_for_generation

from r1_aqa_repro.common.console import say
from r1_aqa_repro.common.distributed import is_main_process
from r1_aqa_repro.data.questions import AudioQuestion
from r1_aqa_repro.run.arguments import BEST_METRIC

Autocast = Callable[[], AbstractContextManager[object]]
EVALUATIONS = "eval"  # folder inside the run folder, one folder a step in it
WITHOUT_AUDIO = "accuracy_without_audio"  # a figure of an evaluation with `eval_no_audio`


@contextmanager
def answering(trainer: Any) -> Iterator[Any]:
    """The model of a trainer as it is now, whole and in eval mode; training goes on undisturbed. For all processes."""
    was_training = trainer.model.training
    trainer.model.eval()
    with unwrap_model_for_generation(
        trainer.model_wrapped,
        trainer.accelerator,
        gather_deepspeed3_params=getattr(trainer.args, "ds3_gather_for_generation", True),
        gradient_checkpointing_kwargs=trainer.args.gradient_checkpointing_kwargs,
    ) as model:
        yield model
    trainer.model.train(was_training)


class Evaluator(Protocol):
    """Answers questions with a model that is being trained, and scores the answers."""

    questions: Sequence[AudioQuestion]

    def __call__(self, model: PreTrainedModel, step: int, autocast: Autocast) -> dict[str, float]:
        """Evaluate; every process calls it.

        Args:
            model: this process's copy of the unwrapped model, in evaluation mode.
            step: the optimizer steps it has had.
            autocast: makes the mixed-precision context the model trains in.

        Returns:
            Figures by name, `accuracy` (0-1) among them, the same on every process. Training's random states and the
            model are left as they were.
        """


class EvaluatingTrainer(Trainer):
    """A Trainer, to be mixed in before ResumableTrainer, whose evaluations are an `Evaluator`'s.

    Args:
        evaluator: None leaves everything as it is without this class.
        **kwargs: passed on.
    """

    control: TrainerControl

    def __init__(self, *args: Any, evaluator: Evaluator | None = None, **kwargs: Any):
        self.evaluator = evaluator
        if evaluator is not None:
            kwargs["eval_dataset"] = evaluator.questions  # Trainer insists on one; only the evaluator reads it
        super().__init__(*args, **kwargs)
        if evaluator is not None:
            # transformers counts the best among the last ones
            self.last_kept, self.args.save_total_limit = self.args.save_total_limit, None
            # paths of checkpoints are compared as texts, so that `./run` must not stand beside `run`
            self.args.output_dir = str(Path(self.args.output_dir))

    def train(self, resume_from_checkpoint: str | bool | None = None, **kwargs: Any) -> TrainOutput:
        if resume_from_checkpoint:
            self.args.eval_on_start = False  # the start lies behind, and the checkpoint's own evaluation with it
        output = super().train(resume_from_checkpoint=resume_from_checkpoint, **kwargs)
        if self.evaluator is not None and self.state.best_global_step:
            best, best_accuracy = self._checkpoint(self.state.best_global_step), 100 * self.state.best_metric
            last = [entry for entry in self.state.log_history if BEST_METRIC in entry][-1]
            last_accuracy = 100 * last[BEST_METRIC]
            say(f"best: {best}, accuracy {best_accuracy:.2f} %; last: step {last['step']}, {last_accuracy:.2f} %")
        return output

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """Evaluate the model as it is, log the figures as `eval_*` and return them. Training goes on undisturbed."""
        if self.evaluator is None:
            return super().evaluate(*args, **kwargs)
        with answering(self) as model:
            figures = self.evaluator(model, self.state.global_step, self.accelerator.autocast)
        metrics = {f"eval_{name}": value for name, value in figures.items()}
        if is_main_process():
            accuracy = 100 * metrics[BEST_METRIC]
            without = metrics.get(f"eval_{WITHOUT_AUDIO}")
            beside = "" if without is None else f", {100 * without:.2f} % without audio"
            said = f"step {self.state.global_step}: accuracy {accuracy:.2f} % on held-out questions{beside}"
            tqdm.write(said, sys.stderr)
        Trainer.log(self, metrics)  # TRL's would add, and so use up, what training has to log at its next step
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def _save_checkpoint(self, model: torch.nn.Module, trial: Any) -> None:
        """Save, then delete what is neither the best nor among the last `save_total_limit`."""
        if self.evaluator is None:
            super()._save_checkpoint(model, trial)
            return
        self._find_best()
        super()._save_checkpoint(model, trial)
        self._find_best()
        if self.args.should_save and self.last_kept:
            for path in sort_checkpoints(self.args.output_dir)[: -self.last_kept]:
                if path != self.state.best_model_checkpoint:
                    shutil.rmtree(path, ignore_errors=True)

    def _find_best(self) -> None:
        """Trainer forgets where the best is in a run folder that was moved; a fresh one has its name only now."""
        if self.state.best_global_step:
            best = self._checkpoint(self.state.best_global_step)
            if best.is_dir():
                self.state.best_model_checkpoint = str(best)

    def _checkpoint(self, step: int) -> Path:
        return Path(self.args.output_dir) / f"{PREFIX_CHECKPOINT_DIR}-{step}"
