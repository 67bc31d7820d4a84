"""The paper's run as its configuration has it, on a test's own model and questions."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from r1_aqa_repro.data.questions import AudioQuestion
from r1_aqa_repro.grpo.trainer import AudioGRPOTrainer
from r1_aqa_repro.model import loading
from r1_aqa_repro.run.config import AudioGRPOConfig, parse_config
from tests.conftest import ROOT

PAPER = ROOT / "configs" / "grpo_qwen2_audio_7b.yaml"
# the machine, not the algorithm
_ON_CPU = ["--use_cpu", "true", "--bf16", "false", "--deepspeed", "", "--dataloader_pin_memory", "false"]


def paper_training(folder: Path, *overrides: str) -> AudioGRPOConfig:
    """The training arguments of `configs/grpo_qwen2_audio_7b.yaml`, but for `overrides` (`--key`, `value`, ...)."""
    where = ["--output_dir", str(folder), "--report_to", "none", "--save_strategy", "no"]
    return parse_config(AudioGRPOConfig, ["--config", str(PAPER), *_ON_CPU, *where, *overrides])[1]


def paper_trainer(
    folder: Path, model_folder: Path, questions: Sequence[AudioQuestion], *overrides: str
) -> AudioGRPOTrainer:
    """The real trainer with these arguments, in training mode."""
    model, processor = loading.load(model_folder)
    trainer = AudioGRPOTrainer(model, paper_training(folder, *overrides), questions, processor, "answer")
    trainer.model.train()
    return trainer
