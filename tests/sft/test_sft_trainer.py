"""Supervised fine-tuning: what is learned, how the loss is averaged, and when it stops."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import TrainerControl, TrainerState

from r1_aqa_repro.data.questions import AudioQuestion
from r1_aqa_repro.model import loading
from r1_aqa_repro.model.inputs import IGNORE
from r1_aqa_repro.run.callbacks import StopAtLoss
from r1_aqa_repro.run.clips import Clips
from r1_aqa_repro.run.config import AudioSFTConfig
from r1_aqa_repro.sft.trainer import AudioSFTTrainer, SFTCollator


def collated(processor: Any, questions: list[AudioQuestion]) -> dict[str, torch.Tensor]:
    batch = SFTCollator(processor, "answer", "first", Clips(Path("no run")))(questions)
    assert (batch.pop("questions"), batch.pop("reasons")) == (questions, [None] * len(questions))
    return batch


def test_only_answer_and_end_of_turn_are_labelled(model_folder: Path, questions: list[AudioQuestion]) -> None:
    processor = loading.load_processor(model_folder)
    batch = collated(processor, questions[:3])
    for row, question in enumerate(questions[:3]):
        labelled = batch["labels"][row] != IGNORE
        text = processor.tokenizer.decode(batch["labels"][row][labelled])
        assert text == f"<answer>{question.answer}</answer><|im_end|>"
        assert torch.equal(batch["labels"][row][labelled], batch["input_ids"][row][labelled])
        assert labelled.nonzero().max() == batch["attention_mask"][row].sum() - 1  # the last real token


def one_step(model_folder: Path, folder: Path, questions: list[AudioQuestion], **overrides: Any) -> Any:
    settings: dict[str, Any] = {
        "output_dir": str(folder), "examples_per_step": 6, "max_examples_per_device": 6, "max_steps": 1,
        "learning_rate": 0.1, "optim": "sgd", "save_strategy": "no", "report_to": "none", "use_cpu": True,
        "logging_steps": 1, "dataloader_pin_memory": False,
    }  # fmt: skip
    model, processor = loading.load(model_folder)
    trainer = AudioSFTTrainer(model, AudioSFTConfig(**(settings | overrides)), questions, processor, "answer")
    trainer.train()
    return trainer


def test_the_loss_is_the_mean_over_the_tokens_of_the_step(
    model_folder: Path, questions: list[AudioQuestion], tmp_path: Path
) -> None:
    """Accumulated over micro-batches with answers of different lengths, as all at once, as the model's own loss."""
    asked = questions[:6]
    whole = one_step(model_folder, tmp_path / "whole", asked)
    accumulated = one_step(model_folder, tmp_path / "accumulated", asked, max_examples_per_device=2)
    assert accumulated.args.gradient_accumulation_steps == 3

    model, processor = loading.load(model_folder)
    with torch.no_grad():
        expected = float(model(**collated(processor, asked)).loss)  # mean over the batch's tokens
    for trainer in (whole, accumulated):
        assert trainer.state.log_history[0]["loss"] == pytest.approx(expected, rel=1e-4)
    # float32 gradients of the same sum, taken in another order
    assert accumulated.state.log_history[0]["grad_norm"] == pytest.approx(
        whole.state.log_history[0]["grad_norm"], rel=1e-4
    )


def test_stop_at_loss_looks_at_the_last_twenty_steps() -> None:
    stop, state = StopAtLoss(1.0), TrainerState()

    def stops_after(losses: list[float]) -> bool:
        control = TrainerControl()
        state.log_history = [{"loss": loss, "step": step} for step, loss in enumerate(losses)]
        stop.on_log(None, state, control)
        return control.should_training_stop

    assert not stops_after([0.5] * 19)
    assert stops_after([0.5] * 20)
    assert stops_after([9.0, *[1.0] * 20])
    assert not stops_after([9.0, *[1.0] * 19])
    assert not stops_after([0.1] * 20 + [1.1] * 20)
