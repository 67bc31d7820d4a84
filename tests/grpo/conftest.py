"""A trainer on the test model, in any configuration."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from r1_aqa_repro.data.questions import AudioQuestion
from r1_aqa_repro.grpo.trainer import AudioGRPOTrainer
from r1_aqa_repro.model import loading
from r1_aqa_repro.run.config import AudioGRPOConfig

MakeTrainer = Callable[..., AudioGRPOTrainer]


@pytest.fixture
def make_trainer(model_folder: Path, questions: list[AudioQuestion], tmp_path: Path) -> MakeTrainer:
    def make(
        asked: Sequence[AudioQuestion] | None = None,
        prompt_style: str = "answer",
        peft_config: Any = None,
        **overrides: Any,
    ) -> AudioGRPOTrainer:
        settings: dict[str, Any] = {
            "output_dir": str(tmp_path / "run"),
            "learning_rate": 1e-3,
            "max_steps": 2,
            "prompts_per_step": 3,
            "max_prompts_per_device": 3,
            "num_generations": 4,
            "max_completion_length": 8,
            "loss_type": "grpo",
            "beta": 0.0,
            "use_bias_correction_kl": False,
            "logging_steps": 1,
            "save_strategy": "no",
            "report_to": "none",
            "bf16": False,
            "activation_checkpointing": False,
            "dataloader_pin_memory": False,
            "use_cpu": True,
            "seed": 0,
        }
        args = AudioGRPOConfig(**(settings | overrides))
        model, processor = loading.load(model_folder)
        loading.freeze(model, args.trained_parts)
        return AudioGRPOTrainer(model, args, asked or questions, processor, prompt_style, peft_config=peft_config)

    return make
