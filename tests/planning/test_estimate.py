"""What a step is estimated to take: by hand, and against a real training step."""

from __future__ import annotations

import gc
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import trl.trainer.utils
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from transformers import TrainerCallback

from r1_aqa_repro.data.prompts import prompt_text
from r1_aqa_repro.data.questions import AudioQuestion
from r1_aqa_repro.embedded.tiny_model import Geometry, build_tiny_qwen2_audio
from r1_aqa_repro.grpo.trainer import AudioGRPOTrainer
from r1_aqa_repro.model import loading
from r1_aqa_repro.model.inputs import question_inputs, target_ids
from r1_aqa_repro.planning import estimate
from r1_aqa_repro.planning.counting import Operations, build_model
from r1_aqa_repro.planning.estimate import Memory, Parameters, kv_cache_bytes, memory_of, strategies
from r1_aqa_repro.planning.geometries import (
    mid_config,
    qwen2_0_5b_config,
    qwen2_7b_config,
    qwen2_audio_7b_config,
)
from r1_aqa_repro.planning.job import Job
from r1_aqa_repro.planning.seconds import gathered
from r1_aqa_repro.run.config import AudioGRPOConfig, AudioSFTConfig
from r1_aqa_repro.sft.trainer import AudioSFTTrainer
from scripts.bench_grpo_step import KERNELS

# large enough that the model's tensors, not bookkeeping, fill the memory; small enough for two steps in seconds
MEASURED = Geometry(
    encoder_hidden=64, encoder_layers=2, encoder_heads=2, max_vocabulary=300, hidden=128, layers=6, heads=4,
    key_value_heads=4, intermediate=352,
)  # fmt: skip
PROMPTS, GENERATIONS, COMPLETION = 2, 4, 24
TILE = 512  # of the head; TRL's own is made for vocabularies of 100,000 and would be most of this model's memory


def job(**changes: Any) -> Job:
    """The 7B's GRPO step on 8 GPUs."""
    settings: dict[str, Any] = {
        "task": "grpo", "model": qwen2_audio_7b_config(), "num_processes": 8, "prompts": 2, "completions": 16,
        "accumulation": 1, "prompt_tokens": 351, "completion_tokens": 256, "audio_tokens": 250, "frames": 1004,
        "shared": True, "reference": True, "bf16": True, "dtype": torch.float32, "checkpointing": False,
        "gather_for_generation": True, "optimizer_copy": True,
    }  # fmt: skip
    return Job(**(settings | changes))


def test_attention_without_a_kernel_of_its_own_is_counted_as_such() -> None:
    """PyTorch breaks it up into products, under whose names it would go unnoticed."""
    states = torch.zeros(1, 2, 4, 8)
    for backend, expected in (
        (SDPBackend.MATH, {"math": 1}),
        (SDPBackend.FLASH_ATTENTION, {"_scaled_dot_product_flash_attention_for_cpu": 1}),
    ):
        with sdpa_kernel(backend), Operations() as operations:
            torch.nn.functional.scaled_dot_product_attention(states, states, states).softmax(-1)
        assert operations.attention == expected


def test_the_geometries_have_the_known_sizes() -> None:
    # Qwen2-Audio-7B-Instruct is published with 8.40 G parameters, its lm_head not tied
    found = Parameters.of(build_model(qwen2_audio_7b_config(), torch.bfloat16))
    assert found == Parameters(
        total=8_397_094_912,
        trainable=8_397_094_912 - 1500 * 1280,  # the encoder's positions are frozen
        largest=156_032 * 4096,
        head=156_032 * 4096,
        head_trainable=True,
        layers=32 * (4 * 4096 * 4096 + 3 * 4096 * 11_008),
        largest_layer=4096 * 11_008,
        # of the language model: embeddings, matrices, biases and norms of the layers, the last norm; a score
        scorer=156_032 * 4096 + 32 * (4 * 4096 * 4096 + 3 * 4096 * 11_008 + 5 * 4096) + 4096 + 4096,
    )
    # a token reads neither the encoder nor the embeddings
    assert found.decoded == 32 * (4 * 4096 * 4096 + 3 * 4096 * 11_008) + 156_032 * 4096
    assert Parameters.of(build_model(qwen2_7b_config(), torch.bfloat16)).total == 7_615_616_512
    assert Parameters.of(build_model(qwen2_0_5b_config(), torch.bfloat16)).total == 494_032_768
    assert Parameters.of(build_model(mid_config(), torch.float32)).total == 38_069_248


def test_bytes_a_parameter_are_those_of_the_zero_paper() -> None:
    """By hand, for 8 processes; a bucket is 2 x 2 bytes x 4096 x 4096 = 67,108,864."""
    parameters = Parameters(total=8000, trainable=8000, largest=800, head=800, head_trainable=True)
    ddp, two, three, offload = (
        memory_of(job(), engine, parameters, activations=5, logits=7)
        for engine in ("ddp", "zero2", "zero3", "zero3_offload")
    )
    bucket = 67_108_864
    assert (ddp.weights, ddp.gradients, ddp.optimizer, ddp.reference) == (32_000, 64_000, 64_000, 32_000)
    assert (two.weights, two.gradients - bucket, two.optimizer, two.reference) == (16_000, 2000, 12_000, 16_000)
    assert (three.weights, three.gradients - bucket, three.optimizer, three.reference) == (2000, 2000, 12_000, 2000)
    assert (offload.weights, offload.gradients, offload.optimizer, offload.reference) == (0, bucket, 0, 0)
    assert offload.host == 8000 * (2 + 2 + 18)  # weights, reference; master, moments, gradients in both types
    assert (three.gathered_to_generate, three.gathered) == (16_000, 16_000)
    assert (ddp.step, two.step, three.step) == (32_000, 1000 * (4 + 2 + 4), 1000 * 8)


def test_adapters_shrink_what_is_trained_and_need_no_second_model() -> None:
    parameters = Parameters(total=8100, trainable=100, largest=800, head=800, head_trainable=False, adapters=True)
    memory = memory_of(job(), "ddp", parameters, activations=0, logits=0)
    assert memory.weights == 4 * 8000 + 4 * 100
    assert memory.optimizer == 8 * 100 and memory.reference == 0


def test_the_peak_is_what_is_held_and_the_largest_phase() -> None:
    memory = Memory(weights=1, gradients=2, optimizer=3, reference=4, kv_cache=50, activations=20, logits=9, step=8)
    assert memory.peak == 10 + 50
    assert replace(memory, activations=60).peak == 10 + 60 + 9


def test_the_prompts_cache_is_kept_once_a_group() -> None:
    a_token = 2 * 32 * 4096 * 2  # keys and values, layers, hidden size, bytes
    assert kv_cache_bytes(job()) == a_token * (2 * 351 + 16 * 256)
    assert kv_cache_bytes(job(shared=False)) == a_token * 16 * (351 + 256)


@pytest.fixture(scope="module")
def measured_folder(tmp_path_factory: pytest.TempPathFactory, questions: list[AudioQuestion]) -> Path:
    folder = tmp_path_factory.mktemp("measured") / "model"
    build_tiny_qwen2_audio(
        folder, texts=[prompt_text(question, "answer") for question in questions], seed=0, geometry=MEASURED
    )
    return folder


class _KeepGradients(TrainerCallback):
    """Bytes of the accumulated gradients when the optimizer is about to step."""

    gradients = 0

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
        self.gradients = sum(p.grad.nbytes for p in model.parameters() if p.grad is not None)


def copies(question: AudioQuestion, count: int, folder: Path) -> list[AudioQuestion]:
    """A question so many times, each about a copy of its clip."""
    made = [replace(question, id=f"copy-{each}", audio_path=folder / f"{each}.wav") for each in range(count)]
    for each in made:
        shutil.copy(question.audio_path, each.audio_path)
    return made


def trainer_and_job(
    folder: Path,
    questions: Sequence[AudioQuestion],
    out: Path,
    beta: float = 0.04,
    checkpointing: bool = False,
    parts: str = "all",
) -> tuple[AudioGRPOTrainer, Job]:
    """A trainer whose step is known to the token: copies of one question, completions of one length."""
    asked = copies(questions[-1], 2 * PROMPTS, out)
    args = AudioGRPOConfig(
        output_dir=str(out), max_steps=2, prompts_per_step=2 * PROMPTS, max_prompts_per_device=PROMPTS,
        num_generations=GENERATIONS, max_completion_length=COMPLETION, generation_kwargs={"min_new_tokens": COMPLETION},
        reward_funcs=["random"], loss_type="grpo", beta=beta, use_bias_correction_kl=False, optim="adamw_torch",
        save_strategy="no", report_to="none", bf16=False, activation_checkpointing=checkpointing,
        dataloader_pin_memory=False, use_cpu=True, trained_parts=parts,
    )  # fmt: skip
    model, processor = loading.load(folder)
    loading.freeze(model, parts)
    trainer = AudioGRPOTrainer(model, args, asked, processor, "answer")
    inputs = question_inputs(processor, asked[:1], "answer")
    [prompt_ids] = inputs.prompt_ids
    planned = job(
        model=model.config, num_processes=1, prompts=PROMPTS, completions=PROMPTS * GENERATIONS, accumulation=2,
        prompt_tokens=len(prompt_ids), completion_tokens=COMPLETION,
        audio_tokens=prompt_ids.count(model.config.audio_token_id),
        frames=inputs.audio("cpu")["input_features"].size(-1), reference=beta != 0, bf16=False,
        checkpointing=checkpointing, gather_for_generation=False,
        optimizer_copy=False,  # AdamW on a CPU goes from tensor to tensor
        trained_parts=parts, encodes_once=True,
    )  # fmt: skip
    return trainer, planned


@pytest.mark.parametrize("checkpointing", [False, True], ids=["kept", "checkpointed"])
def test_memory_of_a_real_training_run(
    measured_folder: Path,
    questions: list[AudioQuestion],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    checkpointing: bool,
) -> None:
    """Weights, gradients, optimizer to the byte; the peak of the allocator, as PyTorch's profiler sees it, to 10 %."""
    monkeypatch.setattr(trl.trainer.utils, "_CHUNKED_LOGPROB_CHUNK_SIZE", TILE)
    monkeypatch.setattr(estimate, "_VOCABULARY_TILE", TILE)
    trainer, planned = trainer_and_job(measured_folder, questions, tmp_path, checkpointing=checkpointing)
    (estimated,) = strategies(planned, [None], ["ddp"])
    seen = _KeepGradients()
    trainer.add_callback(seen)
    gc.collect()  # an earlier test's trainer, freed while the profiler looks, would be taken off the peak
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        trainer.train()
    memory = estimated.memory
    model, reference = trainer.model, trainer.ref_model
    assert memory.weights == sum(parameter.nbytes for parameter in model.parameters())
    assert memory.reference == sum(parameter.nbytes for parameter in reference.parameters())
    assert memory.gradients == seen.gradients
    moments = [state[key] for state in trainer.optimizer.state.values() for key in ("exp_avg", "exp_avg_sq")]
    assert memory.optimizer == sum(moment.nbytes for moment in moments)

    measured = peak_bytes(profile)
    predicted = memory.peak - memory.weights - memory.reference  # those are there before the profiler
    print(f"peak beside the weights: predicted {predicted / 1e6:.2f} MB, measured {measured / 1e6:.2f} MB")
    # what is not counted: the loss's own small tensors and the batch; what differs: the CPU's attention kernel
    assert predicted == pytest.approx(measured, rel=0.1)
    # and the part that is counted rather than looked up is not lost in the rest
    assert memory.activations + memory.logits > (0.1 if checkpointing else 0.5) * predicted


def peak_bytes(profile: Any) -> int:
    """Most bytes that the CPU's allocator held at once above those at the start."""
    results = profile.profiler.kineto_results
    changes = sorted((event.start_ns(), event.nbytes()) for event in results.events() if event.name() == "[memory]")
    now = peak = 0
    for _, change in changes:
        now += change
        peak = max(peak, now)
    return peak


@pytest.mark.parametrize("parts", ["all", pytest.param("no_encoder", marks=pytest.mark.slow)])
def test_flops_of_a_real_training_step(
    parts: str, measured_folder: Path, questions: list[AudioQuestion], tmp_path: Path
) -> None:
    """Two steps of the trainer, rollout, reference, loss and backward, counted as they run."""
    trainer, planned = trainer_and_job(measured_folder, questions, tmp_path, parts=parts)
    (estimated,) = strategies(planned, [None], ["ddp"])
    with FlopCounterMode(display=False, custom_mapping=KERNELS) as counter, sdpa_kernel(SDPBackend.MATH):
        trainer.train()
    counted = counter.get_total_flops() / 2
    print(f"FLOPs a step: predicted {sum(estimated.work.flops.values()):.4e}, counted {counted:.4e}")
    # they are 0.2 % apart (0.5 % if the second step, of another epoch, finds its clips encoded); the rest is room for
    # completions that end early, which other random numbers may bring
    assert sum(estimated.work.flops.values()) == pytest.approx(counted, rel=0.01)


@pytest.mark.parametrize(
    "parts",
    ["all", "no_encoder", *(pytest.param(name, marks=pytest.mark.slow) for name in ("projector", "language_model"))],
)
def test_flops_of_a_real_step_of_sft(
    parts: str, measured_folder: Path, questions: list[AudioQuestion], tmp_path: Path
) -> None:
    """Copies of one question about copies of its clip: a step that meets each, and a step of the second epoch."""
    asked = copies(questions[-1], 4, tmp_path)
    args = AudioSFTConfig(
        output_dir=str(tmp_path / "run"), max_steps=2, examples_per_step=4, max_examples_per_device=2,
        trained_parts=parts, optim="adamw_torch", save_strategy="no", report_to="none", bf16=False,
        activation_checkpointing=False, dataloader_pin_memory=False, use_cpu=True,
    )  # fmt: skip
    model, processor = loading.load(measured_folder)
    loading.freeze(model, parts)
    inputs = question_inputs(processor, asked[:1], "answer")
    [prompt_ids] = inputs.prompt_ids
    planned = job(
        task="sft", model=model.config, num_processes=1, prompts=2, completions=2, accumulation=2,
        prompt_tokens=len(prompt_ids), completion_tokens=len(target_ids(processor.tokenizer, asked[0], "answer")),
        audio_tokens=prompt_ids.count(model.config.audio_token_id),
        frames=inputs.audio("cpu")["input_features"].size(-1), shared=False, reference=False, bf16=False,
        gather_for_generation=False, optimizer_copy=False, trained_parts=parts, encodes_once=True,
    )  # fmt: skip
    (estimated,) = strategies(planned, [None], ["ddp"])
    flops, counted = estimated.work.flops, []

    class Counting(AudioSFTTrainer):
        def training_step(self, *args: Any, **kwargs: Any) -> torch.Tensor:
            with FlopCounterMode(display=False, custom_mapping=KERNELS) as counter, sdpa_kernel(SDPBackend.MATH):
                loss = super().training_step(*args, **kwargs)
            counted.append(counter.get_total_flops())
            return loss

    Counting(model, args, asked, processor, "answer").train()
    first, second = sum(counted[:2]), sum(counted[2:])
    print(f"FLOPs a step: predicted {flops}, counted {first:.5e} and {second:.5e}")
    assert sum(flops.values()) == pytest.approx(first, rel=1e-4)
    assert flops["policy"] == pytest.approx(second, rel=1e-4)  # what has been encoded is there
    assert ("encoder" in flops) == (parts != "all")


def test_checkpointing_and_sharing_move_the_estimate(measured_folder: Path) -> None:
    config = loading.check_model_folder(measured_folder)
    small = job(model=config, prompt_tokens=60, audio_tokens=30, completion_tokens=16, frames=124, num_processes=1)
    (kept,) = strategies(small, [None], ["zero2"])
    (recomputed,) = strategies(replace(small, checkpointing=True), [None], ["zero2"])
    (plain,) = strategies(replace(small, shared=False), [None], ["zero2"])
    assert recomputed.memory.activations < 0.5 * kept.memory.activations
    # a backward is two forwards: one forward more is a third more, less the head's and the first layer's share
    assert 1.2 < recomputed.work.flops["policy"] / kept.work.flops["policy"] < 4 / 3
    assert plain.memory.activations > 2 * kept.memory.activations
    assert plain.work.flops["prefill"] == pytest.approx(8 * kept.work.flops["prefill"])  # a prompt a completion


def test_the_probability_of_the_answer_is_one_more_forward(measured_folder: Path) -> None:
    config = loading.check_model_folder(measured_folder)
    small = job(model=config, prompt_tokens=60, audio_tokens=30, completion_tokens=16, frames=124, num_processes=2)
    (plain,) = strategies(small, [None], ["zero3"])
    (rewarded,) = strategies(replace(small, answer_probability=True), [None], ["zero3"])
    own = rewarded.work.flops["answer probability"]
    head = 2 * small.scored * rewarded.parameters.head  # which the reference has beside, and the reward at few tokens
    assert own == pytest.approx(plain.work.flops["reference"] - head)
    assert sum(rewarded.work.flops.values()) == sum(plain.work.flops.values()) + own
    more = (
        gathered(replace(small, answer_probability=True), rewarded.parameters)[0] - gathered(small, plain.parameters)[0]
    )
    assert more == rewarded.parameters.policy
