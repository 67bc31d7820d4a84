"""GRPO and SFT of a LoRA adapter: the reference is the base itself, adapters alone are saved, and a resume is exact."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig
from safetensors.torch import load_file
from transformers.utils import is_bitsandbytes_available
from trl import ModelConfig

from r1_aqa_repro import train_grpo, train_sft
from r1_aqa_repro.data.questions import AudioQuestion
from r1_aqa_repro.model import loading
from r1_aqa_repro.model.inputs import question_inputs
from tests.text_world import LORA as TEXT_LORA
from tests.text_world import Build

TARGETS = r".*language_model.*\.(q_proj|k_proj|v_proj|o_proj|gate_proj|up_proj|down_proj)"
LORA = LoraConfig(r=4, lora_alpha=8, lora_dropout=0.0, target_modules=TARGETS, task_type="CAUSAL_LM")
COMMON = [
    "--use_peft", "true", "--lora_r", "4", "--lora_alpha", "8", "--lora_dropout", "0", "--lora_target_modules", TARGETS,
    "--learning_rate", "1e-2", "--save_steps", "2", "--max_steps", "6", "--logging_steps", "1", "--report_to", "none",
    "--bf16", "false", "--activation_checkpointing", "false", "--dataloader_pin_memory", "false", "--use_cpu", "true",
    "--seed", "1",
]  # fmt: skip
GRPO = [
    *COMMON, "--prompts_per_step", "4", "--max_prompts_per_device", "4", "--num_generations", "2",
    "--max_completion_length", "4", "--reward_funcs", "random", "--beta", "0.04", "--loss_type", "grpo",
]  # fmt: skip
SFT = [*COMMON, "--examples_per_step", "4"]
ENTRIES = {"grpo": (train_grpo, GRPO), "sft": (train_sft, SFT)}
IN_4_BITS = ["--load_in_4bit", "true"]
needs_bitsandbytes = pytest.mark.skipif(
    not is_bitsandbytes_available(), reason="bitsandbytes is not installed: pip install -e '.[qlora]'"
)


def test_the_reference_takes_no_second_model(make_trainer: Any) -> None:
    trainer = make_trainer(beta=0.04, peft_config=LORA)
    trained = sum(parameter.numel() for parameter in trainer.model.parameters() if parameter.requires_grad)
    # r * (in + out) of the layer's four 32 x 32 and three 32 x 64 matrices
    assert trained == 4 * (4 * (32 + 32) + 3 * (32 + 64))
    assert trainer.ref_model is None


def test_kl_is_that_to_a_copy_of_the_base(make_trainer: Any) -> None:
    trainer = make_trainer(beta=0.04, peft_config=LORA, reward_funcs=["random"], learning_rate=1e-2, max_steps=3)
    copy = make_trainer().model  # a base model of its own, prepared as the trainer prepares one
    score = trainer._get_per_token_logps_and_entropies
    kls = []

    def watched(model: Any, input_ids: Any, attention_mask: Any, logits_to_keep: int, *more: Any, **keys: Any) -> Any:
        result = score(model, input_ids, attention_mask, logits_to_keep, *more, **keys)
        with torch.no_grad():
            expected = score(copy, input_ids, attention_mask, logits_to_keep, *more, **keys)[0]
        if result[0].requires_grad:  # the policy, in the loss
            gap = (expected - result[0].detach())[attention_mask[:, -logits_to_keep:].bool()]
            kls.append(float((gap.exp() - gap - 1).mean()))
        else:  # the reference: the same operations on the same numbers, with nothing left of the adapter
            assert torch.equal(result[0], expected)
        return result

    trainer._get_per_token_logps_and_entropies = watched
    trainer.train()
    logged = [entry["kl"] for entry in trainer.state.log_history if "kl" in entry]
    assert logged[0] == 0 and len(logged) == len(kls) == 3  # a new adapter adds exactly nothing
    assert min(logged[1:]) > 1e-5
    # exp(x) - x - 1 is taken of numbers near 1 in float32, which leaves an error of about 1e-7
    assert logged == pytest.approx(kls, rel=1e-4, abs=3e-7)


@pytest.mark.parametrize("bits", [[], pytest.param(IN_4_BITS, marks=needs_bitsandbytes)], ids=["lora", "qlora"])
@pytest.mark.parametrize("kind", ENTRIES)
def test_checkpoints_hold_the_adapter_alone_and_resume_to_the_same_bytes(
    kind: str, bits: list[str], manifest: Path, model_folder: Path, tmp_path: Path
) -> None:
    entry, settings = ENTRIES[kind]
    argv = [*settings, *bits, "--train_file", str(manifest), "--model_name_or_path", str(model_folder)]
    whole, resumed = tmp_path / "whole", tmp_path / "resumed"
    assert entry.main([*argv, "--output_dir", str(whole)]) == 0

    adapter = load_file(whole / "checkpoint-2" / "adapter_model.safetensors")
    assert sum(value.numel() for value in adapter.values()) == 4 * (4 * (32 + 32) + 3 * (32 + 64))
    assert not list(whole.rglob("model*.safetensors"))
    # two moments a number, in float32; names and sizes take a few hundred bytes a tensor
    assert (whole / "checkpoint-2" / "optimizer.pt").stat().st_size < 2 * 4 * 2176 + 2000 * len(adapter)
    named = json.loads((whole / "final" / "adapter_config.json").read_text(encoding="utf-8"))
    assert named["base_model_name_or_path"] == str(model_folder)

    resumed.mkdir()
    for name in ("run.json", "config.resolved.yaml"):
        shutil.copy(whole / name, resumed)
    shutil.copytree(whole / "checkpoint-2", resumed / "checkpoint-2")
    assert entry.main([*argv, "--output_dir", str(resumed)]) == 0
    for name in ("final/adapter_model.safetensors", "checkpoint-6/optimizer.pt"):
        assert (resumed / name).read_bytes() == (whole / name).read_bytes(), name
    final = load_file(whole / "final" / "adapter_model.safetensors")
    assert not any(torch.equal(final[name], adapter[name]) for name in adapter)  # it went on training


@pytest.mark.parametrize("bits", [[], pytest.param(IN_4_BITS, marks=needs_bitsandbytes)], ids=["lora", "qlora"])
def test_a_bfloat16_base_keeps_its_adapter_in_float32(
    bits: list[str], manifest: Path, model_folder: Path, tmp_path: Path
) -> None:
    """As configs/grpo_lora_qwen2_audio_7b.yaml has it: at 1e-5 a step is below the resolution of bfloat16."""
    argv = [*GRPO, *bits, "--train_file", str(manifest), "--model_name_or_path", str(model_folder)]
    argv += ["--output_dir", str(tmp_path / "run"), "--dtype", "bfloat16", "--learning_rate", "1e-5"]
    assert train_grpo.main(argv) == 0
    first, last = (
        load_file(tmp_path / "run" / name / "adapter_model.safetensors") for name in ("checkpoint-2", "final")
    )
    assert {value.dtype for value in last.values()} == {torch.float32}
    assert not any(torch.equal(last[name], first[name]) for name in last)


@needs_bitsandbytes
def test_a_base_in_4_bits_computes_with_the_rounded_weights_of_the_language_model_alone(
    model_folder: Path, questions: list[AudioQuestion]
) -> None:
    """The same logits as a plain model with exactly those weights rounded, encoder, projector and head untouched."""
    from bitsandbytes.functional import dequantize_4bit
    from bitsandbytes.nn import Linear4bit

    config = ModelConfig(model_name_or_path=str(model_folder), load_in_4bit=True)
    (quantised, processor), plain = loading.load_configured(config), loading.load_model(model_folder)
    rounded = {name: module for name, module in quantised.named_modules() if isinstance(module, Linear4bit)}
    assert len(rounded) == 7 * plain.config.text_config.num_hidden_layers
    assert all(name.startswith("model.language_model.layers.") for name in rounded)
    quantised.eval()
    inputs = question_inputs(processor, questions[:1], "answer")
    batch = {"input_ids": torch.tensor(inputs.prompt_ids), **inputs.audio("cpu")}
    with torch.no_grad():
        before = plain(**batch).logits
        for name, module in rounded.items():
            packed: Any = module.weight
            plain.get_submodule(name).weight.copy_(dequantize_4bit(packed.data, packed.quant_state))
        after, found = plain(**batch).logits, quantised(**batch).logits
    torch.testing.assert_close(found, after, atol=1e-4, rtol=0)
    assert (after - before).abs().max() > 100 * 1e-4  # rounding is not nothing


@needs_bitsandbytes
@pytest.mark.parametrize("name", ["sft", "grpo"])
def test_an_adapter_of_a_text_model_in_4_bits_learns_in_float32(name: str, build: Build) -> None:
    from bitsandbytes.nn import Linear4bit

    trainer = build(name, *TEXT_LORA, *IN_4_BITS)
    model = trainer.model
    rounded = [module for module in model.modules() if isinstance(module, Linear4bit)]
    before = [module.weight.data.clone() for module in rounded]
    trainer.train()
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    assert len(rounded) == 7 * model.config.num_hidden_layers and len(trained) == 2 * len(rounded)
    assert all(parameter.dtype == torch.float32 and parameter.any() for parameter in trained)  # B began as zero
    assert all(module.weight.data.equal(old) for module, old in zip(rounded, before, strict=True))
