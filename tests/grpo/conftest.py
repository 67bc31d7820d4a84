"""Trainers on the test models, in any configuration, and rows as TRL hands them to the loss."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig

from r1_aqa_repro.data.questions import AudioQuestion
from r1_aqa_repro.grpo.rollout import Rollout
from r1_aqa_repro.grpo.trainer import AudioGRPOTrainer, SharedPrefixGRPOTrainer
from r1_aqa_repro.model import loading
from r1_aqa_repro.model.inputs import (
    PromptInputs,
    attention_mask_left,
    pad_left,
    pad_right,
    question_inputs,
    text_inputs,
)
from r1_aqa_repro.run.config import AudioGRPOConfig
from tests.paper import paper_trainer
from tests.text_world import LORA, Build, perturb

MakeTrainer = Callable[..., AudioGRPOTrainer]
CONVERSATIONS = [
    [{"role": "user", "content": "Why?"}],
    [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Name 3 tools other than saw. " * 8}],
    [
        {"role": "user", "content": "What is 2 + 2?"},
        {"role": "assistant", "content": "The answer is 4."},
        {"role": "user", "content": "And how do I clean a lamp?"},
    ],
]


@pytest.fixture
def make_trainer(model_folder: Path, questions: list[AudioQuestion], tmp_path: Path) -> MakeTrainer:
    def make(
        asked: Sequence[AudioQuestion] | None = None,
        prompt_style: str = "answer",
        peft_config: Any = None,
        **overrides: Any,
    ) -> AudioGRPOTrainer:
        settings: dict[str, Any] = {
            "output_dir": str(tmp_path / "run"), "learning_rate": 1e-3, "max_steps": 2, "prompts_per_step": 3,
            "max_prompts_per_device": 3, "num_generations": 4, "max_completion_length": 8, "loss_type": "grpo",
            "beta": 0.0, "use_bias_correction_kl": False, "logging_steps": 1, "save_strategy": "no",
            "report_to": "none", "bf16": False, "activation_checkpointing": False, "dataloader_pin_memory": False,
            "use_cpu": True, "seed": 0,
        }  # fmt: skip
        args = AudioGRPOConfig(**(settings | overrides))
        model, processor = loading.load(model_folder)
        loading.freeze(model, args.trained_parts)
        return AudioGRPOTrainer(model, args, asked or questions, processor, prompt_style, peft_config=peft_config)

    return make


@pytest.fixture
def paper(model_folder: Path, questions: list[AudioQuestion], tmp_path: Path) -> MakeTrainer:
    """`paper("--key", "value", ...)`: a trainer with the paper's configuration but for these keys."""
    return lambda *overrides: paper_trainer(tmp_path / "run", model_folder, questions, *overrides)


@dataclass
class World:
    """A kind of question: trainers for it, and three questions with prompts (and clips) of different lengths.

    trainer: `trainer(lora, checkpointing)`, with a reference that the policy has moved away from.
    asked: the questions.
    inputs: what a model is given of questions.
    """

    trainer: Callable[..., SharedPrefixGRPOTrainer]
    asked: list[Any]
    inputs: Callable[[SharedPrefixGRPOTrainer, Sequence[Any]], PromptInputs]


@pytest.fixture
def world(request: pytest.FixtureRequest) -> World:
    """The world of the test's parameter: `audio` or `text`."""
    return request.getfixturevalue(f"{request.param}_world")


@pytest.fixture
def audio_world(make_trainer: MakeTrainer, questions: list[AudioQuestion]) -> World:
    def trainer(lora: bool = False, checkpointing: bool = False) -> SharedPrefixGRPOTrainer:
        adapters = LoraConfig(r=4, target_modules=["q_proj", "v_proj"], init_lora_weights=False) if lora else None
        return make_trainer(beta=0.04, peft_config=adapters, activation_checkpointing=checkpointing)

    asked = [questions[index] for index in (0, 23, 11)]  # 0.5 s, 2.9 s and 1.6 s of audio, prompts of two lengths
    return World(trainer, asked, lambda trainer, asked: question_inputs(trainer.processing_class, asked, "answer"))


@pytest.fixture
def text_world(build: Build) -> World:
    def trainer(lora: bool = False, checkpointing: bool = False) -> SharedPrefixGRPOTrainer:
        built = build("grpo", "--activation_checkpointing", str(checkpointing).lower(), *(LORA if lora else []))
        perturb(built.model, 0.1)
        return built

    return World(trainer, CONVERSATIONS, lambda trainer, asked: text_inputs(trainer.processing_class, asked))


def rows_for_loss(
    trainer: SharedPrefixGRPOTrainer, inputs: PromptInputs, group: list[int], lengths: list[int]
) -> dict[str, Any]:
    """What TRL hands to the loss: left-padded prompts, right-padded random completions of the given lengths."""
    pad, generator = trainer._tokenizer.pad_token_id, torch.Generator().manual_seed(0)
    prompts = [inputs.prompt_ids[index] for index in group]
    completions = [torch.randint(5, 250, (length,), generator=generator).tolist() for length in lengths]
    mask = pad_right([[1] * length for length in lengths], 0)
    return {
        "prompt_ids": pad_left(prompts, pad),
        "prompt_mask": attention_mask_left(prompts),
        "completion_ids": pad_right(completions, pad),
        "completion_mask": mask,
        "advantages": torch.linspace(-1, 1, len(group)),
        "num_items_in_batch": torch.tensor(float(sum(lengths))),
        "ref_per_token_logps": -4 - torch.rand(mask.shape, generator=generator),
        "group": torch.tensor(group),
        "rollout": [Rollout(inputs, torch.tensor(group))] * len(group),
    }


def scores_of(
    trainer: SharedPrefixGRPOTrainer, rows: dict[str, Any], model: torch.nn.Module | None = None, share: bool = True
) -> tuple[torch.Tensor, Any]:
    """Log-probabilities and entropies [N, C] of the rows' completions, by the policy unless by another model.

    A reference gives no entropies.
    """
    trainer.share = share
    with trainer._working_on(rows["rollout"][0]):
        log_probs, entropy, _ = trainer._get_per_token_logps_and_entropies(
            model or trainer.model,
            torch.cat([rows["prompt_ids"], rows["completion_ids"]], 1),
            torch.cat([rows["prompt_mask"], rows["completion_mask"]], 1),
            rows["completion_ids"].size(1),
            compute_entropy=True,
        )
    return log_probs, entropy
