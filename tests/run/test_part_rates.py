"""A learning rate a part: by hand, under its schedule, and with an adapter."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model

from r1_aqa_repro.data.questions import AudioQuestion
from r1_aqa_repro.grpo.trainer import AudioGRPOTrainer
from r1_aqa_repro.model import loading
from r1_aqa_repro.run.config import AudioGRPOConfig, AudioSFTConfig
from r1_aqa_repro.sft.trainer import AudioSFTTrainer

COMMON: dict[str, Any] = {
    "learning_rate": 0.1, "optim": "sgd", "max_steps": 2, "save_strategy": "no", "report_to": "none", "use_cpu": True,
    "bf16": False, "dataloader_pin_memory": False, "lr_scheduler_type": "linear",
}  # fmt: skip


@pytest.fixture
def sft(model_folder: Path, questions: list[AudioQuestion], tmp_path: Path) -> Any:
    def make(peft_config: LoraConfig | None = None, **settings: Any) -> AudioSFTTrainer:
        args = AudioSFTConfig(output_dir=str(tmp_path), examples_per_step=6, **(COMMON | settings))
        model, processor = loading.load(model_folder)
        trained = get_peft_model(model, peft_config) if peft_config else model
        return AudioSFTTrainer(trained, args, questions[:6], processor, "answer")

    return make


def part_of(name: str) -> str:
    parts = {"audio_tower": "encoder", "multi_modal_projector": "projector"}
    return next((part for module, part in parts.items() if module in name), "rest")


def test_one_step_moves_each_part_by_its_own_rate(sft: Any, model_folder: Path) -> None:
    """SGD moves a weight by its rate times its gradient, and the gradients are the same in both runs."""
    start = loading.load_model(model_folder).state_dict()
    one = sft(max_steps=1)
    one.train()
    apart = sft(max_steps=1, encoder_learning_rate=0.3, projector_learning_rate=0.05)
    apart.train()
    moved = set()
    for name, value in apart.model.state_dict().items():
        step = one.model.state_dict()[name] - start[name]
        factor = {"encoder": 3.0, "projector": 0.5, "rest": 1.0}[part_of(name)]
        # float32 weights of about 1 carry a step with an error of 1e-7
        torch.testing.assert_close(value - start[name], factor * step, atol=5e-7, rtol=1e-3)
        moved |= {part_of(name)} if step.abs().max() > 1e-4 else set()
    assert moved == {"encoder", "projector", "rest"}


def test_every_part_follows_the_schedule(sft: Any) -> None:
    trainer = sft(max_steps=4, encoder_learning_rate=0.2)
    trainer.create_optimizer_and_scheduler(4)
    seen = []
    for _ in range(3):
        seen.append({group["lr"] for group in trainer.optimizer.param_groups})
        trainer.optimizer.step()
        trainer.lr_scheduler.step()
    assert [sorted(rates) for rates in seen] == [pytest.approx([0.1 * left, 0.2 * left]) for left in (1, 0.75, 0.5)]


def test_a_rate_of_grpo_reaches_its_part_with_and_without_weight_decay(
    model_folder: Path, questions: list[AudioQuestion], tmp_path: Path
) -> None:
    args = AudioGRPOConfig(
        output_dir=str(tmp_path), encoder_learning_rate=0.01, weight_decay=0.5, prompts_per_step=2, num_generations=2,
        reward_funcs=["random"], **COMMON,
    )  # fmt: skip
    model, processor = loading.load(model_folder)
    trainer = AudioGRPOTrainer(model, args, questions, processor, "answer")
    optimizer = trainer.create_optimizer()
    names = {parameter: name for name, parameter in trainer.model.named_parameters()}
    found = {
        names[parameter]: (group["lr"], group["weight_decay"])
        for group in optimizer.param_groups
        for parameter in group["params"]
    }
    assert set(found) == {name for name, parameter in trainer.model.named_parameters() if parameter.requires_grad}
    assert {rate for name, (rate, _) in found.items() if part_of(name) == "encoder"} == {0.01}
    assert {rate for name, (rate, _) in found.items() if part_of(name) != "encoder"} == {0.1}
    assert {decay for name, (_, decay) in found.items() if part_of(name) == "encoder"} == {0.0, 0.5}


def test_with_an_adapter_the_rate_is_that_of_its_matrices(sft: Any, capsys: pytest.CaptureFixture[str]) -> None:
    trainer = sft(peft_config=LoraConfig(r=2, target_modules=["q_proj"]), encoder_learning_rate=0.01)
    optimizer = trainer.create_optimizer()
    names = {parameter: name for name, parameter in trainer.model.named_parameters()}
    # no empty group: DeepSpeed drops those, and the schedule would hand the rates to the wrong ones
    by_rate = {group["lr"]: [names[parameter] for parameter in group["params"]] for group in optimizer.param_groups}
    assert len(optimizer.param_groups) == 2 and all(by_rate.values())
    assert all("audio_tower" in name and "lora_" in name for name in by_rate[0.01])
    assert all("language_model" in name and "lora_" in name for name in by_rate[0.1])
    weights = sum(parameter.numel() for parameter in optimizer.param_groups[-1]["params"])
    assert f"learning rates: 0.1; encoder 0.01 ({weights:,} weights)" in capsys.readouterr().err
