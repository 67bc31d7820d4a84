"""Training as a person meets it: how far it is, a Ctrl-C that keeps the work, and what the model says."""

from __future__ import annotations

import signal
import time
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from transformers import Trainer, TrainerCallback, TrainerState
from transformers.trainer_callback import ProgressCallback

from r1_aqa_repro.common.console import say
from r1_aqa_repro.common.distributed import is_main_process
from r1_aqa_repro.common.files import write_json
from r1_aqa_repro.model.generation import greedy_texts
from r1_aqa_repro.model.inputs import token_ids
from r1_aqa_repro.rewards.reward_model import score_conversations
from r1_aqa_repro.rewards.rules import ACCURACY_FIGURES, FORMAT_FIGURES
from r1_aqa_repro.run.evaluating import answering
from r1_aqa_repro.run.samples import SAMPLES, Sampled, samples_of, shown_prompt

_LONGEST_ANSWER = 256  # tokens, where no max_completion_length says so
# what is shown of progress, if logged: Trainer's or TRL's name -> short name
_SHOWN = {
    "loss": "loss",
    "reward": "reward",
    **dict.fromkeys(ACCURACY_FIGURES, "accuracy"),
    **dict.fromkeys(FORMAT_FIGURES, "format"),
    "accuracy": "accuracy",  # of a reward model on its pairs
    "rewards/accuracies": "accuracy",  # of DPO
    "reward_std": "std",
    "entropy": "entropy",
    "kl": "kl",  # of a token
    "kl_per_answer": "kl/answer",
}


class ProgressBar(ProgressCallback):
    """Trainer's progress bar (steps, speed, time left) with the latest figures on it, for a terminal."""

    def on_log(self, args: Any, state: TrainerState, control: Any, logs: Any = None, **kwargs: Any) -> None:
        if state.is_world_process_zero and self.training_bar is not None and (figures := figures_of(logs)):
            self.training_bar.set_postfix(figures)

    def close(self) -> None:
        """End the line of the bar."""
        if self.training_bar is not None:
            self.training_bar.close()


class ProgressLines(TrainerCallback):
    """A line every `SECONDS` and at the end, for a file: what a bar redraws would stand there step by step."""

    SECONDS = 30.0

    def __init__(self) -> None:
        self._figures: dict[str, str] = {}

    def on_train_begin(self, args: Any, state: TrainerState, control: Any, **kwargs: Any) -> None:
        self._first, self._began = state.global_step, time.monotonic()
        self._said = self._began

    def on_log(self, args: Any, state: TrainerState, control: Any, logs: Any = None, **kwargs: Any) -> None:
        self._figures |= figures_of(logs)

    def on_step_end(self, args: Any, state: TrainerState, control: Any, **kwargs: Any) -> None:
        if time.monotonic() - self._said >= self.SECONDS:
            self._say(state)

    def on_train_end(self, args: Any, state: TrainerState, control: Any, **kwargs: Any) -> None:
        self._say(state)

    def _say(self, state: TrainerState) -> None:
        self._said = time.monotonic()
        a_step = (self._said - self._began) / max(1, state.global_step - self._first)
        left = timedelta(seconds=round(a_step * (state.max_steps - state.global_step)))
        figures = "".join(f", {name} {value}" for name, value in self._figures.items())
        share = state.global_step / max(1, state.max_steps)
        say(f"step {state.global_step} of {state.max_steps} ({share:.0%}){figures}; {a_step:.2g} s a step, {left} left")

    def close(self) -> None:
        """Nothing is open."""


def figures_of(logs: dict[str, Any] | None) -> dict[str, str]:
    """What a person wants to see of a step's log, by its short name."""
    logged = {name: value for name, value in (logs or {}).items() if value is not None}
    return {short: f"{float(logged[name]):.3f}" for name, short in _SHOWN.items() if name in logged}


class StopAtLoss(TrainerCallback):
    """Ends training once the mean of the last `WINDOW` logged losses is at most `threshold`.

    The losses are the trainer's own log, which a resumed run restores: it ends at the same step.
    """

    WINDOW = 20

    def __init__(self, threshold: float):
        self.threshold = threshold

    def on_log(self, args: Any, state: TrainerState, control: Any, **kwargs: Any) -> None:
        if self.reached(state.log_history):
            control.should_training_stop = True

    def reached(self, log_history: list[dict[str, float]]) -> bool:
        """Whether training with this log is at its end."""
        losses = [entry["loss"] for entry in log_history if entry.get("loss") is not None][-self.WINDOW :]
        return len(losses) == self.WINDOW and sum(losses) / self.WINDOW <= self.threshold


class StopOnSignal(TrainerCallback):
    """Ctrl-C, SIGTERM or SIGUSR1 ends training after the step in progress, and saves; a second one ends it at once.

    With several processes, one process's signal stops all of them after the same step. torchrun also sends SIGTERM
    if another process failed: no checkpoint is written then, since the next collective fails or torchrun's SIGKILL
    comes 30 s later.

    Args:
        seconds: from the signal to the end of the process. A checkpoint that would not fit, by what the last one took,
            is not begun, nor one before the first has been measured: the model alone is saved. None: time is no matter.
        trainer: what saves it, a `ResumableTrainer`.

    Attributes:
        saved_weights: the folder of the model alone.
    """

    # Seconds in which signals count as one: some schedulers signal every process of a job, and then torchrun passes
    # on its own.
    ONE_SIGNAL = 1.0

    NOTHING, CHECKPOINT, WEIGHTS = range(3)  # what processes want; the highest counts
    MARGIN = 1.2  # how much longer than the last one a checkpoint may take

    def __init__(self, seconds: float | None = None, trainer: Any = None) -> None:
        self.seconds, self.trainer = seconds, trainer
        self.stopped = False
        self.saved_weights: Path | None = None
        self._signalled_at: float | None = None
        self._previous: dict[int, Any] = {}

    def on_train_begin(self, args: Any, state: TrainerState, control: Any, **kwargs: Any) -> None:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
            self._previous[number] = signal.signal(number, self._stop)

    def on_step_end(self, args: Any, state: TrainerState, control: Any, **kwargs: Any) -> None:
        # in the middle of a rollout's updates a resumed run could not go on
        is_between_rollouts = state.global_step % getattr(args, "num_iterations", 1) == 0
        wanted = self._wanted_by_any_process(args.device, control.should_evaluate)
        if wanted == self.NOTHING or not is_between_rollouts:
            return
        self.stopped = True
        control.should_training_stop = True
        control.should_save = wanted == self.CHECKPOINT
        if wanted == self.WEIGHTS:
            control.should_evaluate = False
            self.saved_weights = self.trainer.save_weights()

    def on_train_end(self, args: Any, state: TrainerState, control: Any, **kwargs: Any) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _stop(self, number: int, frame: FrameType | None) -> None:
        if self._signalled_at is None:
            self.stopped, self._signalled_at = True, time.monotonic()
            if is_main_process():
                print("\nstopping after this step, once it is saved (once more: stop at once)", flush=True)
        elif time.monotonic() - self._signalled_at > self.ONE_SIGNAL:
            for each, handler in self._previous.items():
                signal.signal(each, handler)
            signal.raise_signal(number)

    def _wanted_by_any_process(self, device: torch.device, evaluates_first: bool) -> int:
        wanted = self.NOTHING
        if self.stopped:
            wanted = self.CHECKPOINT if self._fits() and not (self.seconds and evaluates_first) else self.WEIGHTS
        if not torch.distributed.is_initialized():
            return wanted
        flag = torch.tensor(wanted, device=device)
        torch.distributed.all_reduce(flag, op=torch.distributed.ReduceOp.MAX)
        return int(flag.item())

    def _fits(self) -> bool:
        if self.seconds is None or self._signalled_at is None:
            return True
        takes = self.trainer.seconds_to_save
        left = self.seconds - (time.monotonic() - self._signalled_at)
        return takes is not None and takes * self.MARGIN < left


class SampleKeeper(TrainerCallback):
    """Writes `samples.json`: before the first step, again with what the trained model says, before it is saved.

    It is asked as it is, on its devices, without a random number: the run is the one that it would be without. A run
    that is resumed keeps what was said before it began; of one that began without, that stays null.
    """

    def __init__(self, folder: Path, sampled: Sampled, trainer: Trainer):
        self.file, self.sampled, self.trainer = folder / SAMPLES, sampled, trainer
        longest = getattr(trainer.args, "max_completion_length", None) or _LONGEST_ANSWER
        allowed = getattr(trainer.args, "max_length", None)  # longer conversations are not trained on
        self.conversations = [[list(one) for one in record.conversations] for record in sampled.records]
        self.prompts = [record.messages for record in sampled.records]
        length = max(map(len, token_ids(trainer.processing_class, self.prompts, complete=False)))
        model = trainer.accelerator.unwrap_model(trainer.model)
        positions = getattr(model, "policy", model).config.max_position_embeddings
        self.max_new_tokens = max(1, min(longest, (allowed or positions) - length, positions - length))
        self.before: list[Any] = [None] * len(sampled.records)

    def on_train_begin(self, args: Any, state: TrainerState, control: Any, **kwargs: Any) -> None:
        if state.global_step == 0:
            self.before = self._made()
            self._write([None] * len(self.before))
        else:
            known = {one["id"]: one["before"] for one in samples_of(self.file.parent)}
            self.before = [known.get(record.id) for record in self.sampled.records]

    def on_step_end(self, args: Any, state: TrainerState, control: Any, **kwargs: Any) -> None:
        if state.global_step >= state.max_steps:  # the last checkpoint's card shows them too
            self._write(self._made())

    def on_train_end(self, args: Any, state: TrainerState, control: Any, **kwargs: Any) -> None:
        if args.load_best_model_at_end and state.global_step >= state.max_steps:
            self._write(self._made())

    def _made(self) -> list[Any]:
        """What the model makes of each record now; all processes call it."""
        trainer = self.trainer
        with answering(trainer) as model:
            if self.sampled.scored:
                flat = [each for pair in self.conversations for each in pair]
                with trainer.accelerator.autocast():
                    scores = iter(score_conversations(model, trainer.processing_class, flat))
                made: list[Any] = [{name: next(scores) for name in record.answers} for record in self.sampled.records]
            else:
                policy = getattr(model, "policy", model)  # PPO's has a critic beside it
                context = trainer.accelerator.autocast()
                answers = greedy_texts(policy, trainer.processing_class, self.prompts, self.max_new_tokens, context)
                made = [text for text, _ in answers]
        return made

    def _write(self, after: Sequence[Any]) -> None:
        if not is_main_process():
            return
        how = {} if self.sampled.scored else {"decoding": "greedy", "max_new_tokens": self.max_new_tokens}
        samples = [
            {"id": record.id, "prompt": shown_prompt(record.messages)}
            | (record.answers if self.sampled.scored else {})
            | {"before": one, "after": other}
            for record, one, other in zip(self.sampled.records, self.before, after, strict=True)
        ]
        write_json(self.file, {"file": self.sampled.file, **how, "samples": samples})
