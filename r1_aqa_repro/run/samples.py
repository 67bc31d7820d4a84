"""What a model makes of eight held-out prompts before and after training: `samples.json` of a run's folder.

A policy's greedy answers, or a reward model's scores of the two answers of a pair. They are taken from the model that
is being trained, on its devices, without a random number: the run is the one that it would be without them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import Trainer, TrainerCallback, TrainerState
from trl.models import unwrap_model_for_generation

from r1_aqa_repro.common.console import say
from r1_aqa_repro.common.distributed import is_main_process
from r1_aqa_repro.common.escaping import visible_line
from r1_aqa_repro.common.files import read_json, write_json
from r1_aqa_repro.data.conversations import Message, TextPrompt
from r1_aqa_repro.model.generation import greedy_texts
from r1_aqa_repro.model.inputs import token_ids
from r1_aqa_repro.rewards.reward_model import score_conversations

SAMPLES = "samples.json"
NUM = 8
_LONGEST = 256  # tokens of an answer where no max_completion_length says so
_SHOWN = 160  # characters of a text on the terminal


@dataclass(frozen=True)
class Sampled:
    """The records that are looked at, of the file that they come from; `scored` if a reward model scores their
    answers."""

    file: str
    records: Sequence[TextPrompt]
    scored: bool = False


class SampleKeeper(TrainerCallback):
    """Writes `samples.json`: before the first step, again with what the trained model says, before it is saved.

    A run that is resumed keeps what was said before it began; of one that began without, that stays null.
    """

    def __init__(self, folder: Path, sampled: Sampled, trainer: Trainer):
        self.file, self.sampled, self.trainer = folder / SAMPLES, sampled, trainer
        longest = getattr(trainer.args, "max_completion_length", None) or _LONGEST
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
        was_training = trainer.model.training
        trainer.model.eval()
        with unwrap_model_for_generation(
            trainer.model_wrapped,
            trainer.accelerator,
            gather_deepspeed3_params=getattr(trainer.args, "ds3_gather_for_generation", True),
            gradient_checkpointing_kwargs=trainer.args.gradient_checkpointing_kwargs,
        ) as model:
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
        trainer.model.train(was_training)
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


def shown_prompt(messages: Sequence[Message]) -> str:
    """A prompt as one text: what the user says, or, of several messages, each with its role before it."""
    if len(messages) == 1:
        return messages[0]["content"]
    return "\n".join(f"{message['role']}: {message['content']}" for message in messages)


def samples_of(run: Path) -> list[dict[str, Any]]:
    """The samples in a run's folder: `prompt`, `before` and `after`, which are null as long as they are not known;
    empty if the run keeps none."""
    file = run / SAMPLES
    return read_json(file, "Delete it.")["samples"] if file.is_file() else []


def parts_of(sample: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """What is to be shown of a sample below its prompt, each with its name."""
    before, after = sample["before"], sample["after"]
    if "chosen" not in sample:
        yield "before", "(not known)" if before is None else before
        yield "after", "(not known)" if after is None else after
        return
    for name in ("chosen", "rejected"):
        scores = (f"{made[name]:.2f}" if made else "not known" for made in (before, after))
        yield f"{name}, score {' -> '.join(scores)}", sample[name]


def say_samples(run: Path) -> None:
    """Show the samples of a run at the terminal, long texts cut."""
    samples = samples_of(run)
    if not samples:
        return
    say(f"{len(samples)} held-out prompts before and after training, whole in {run / SAMPLES}:")
    for sample in samples:
        say(f"  {_cut(sample['prompt'])}")
        for name, text in parts_of(sample):
            say(f"    {name}: {_cut(text)}")


def _cut(text: str) -> str:
    line = visible_line(text)
    return line if len(line) <= _SHOWN else f"{line[:_SHOWN]} ..."
