"""PPO and reward models: what is estimated against a real training step of a small model."""

from __future__ import annotations

import gc
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from transformers import Trainer
from trl import ModelConfig

from r1_aqa_repro.data.conversations import TextPrompt
from r1_aqa_repro.embedded.text_tasks import vocabulary_texts
from r1_aqa_repro.embedded.tiny_qwen2 import TextGeometry, build_tiny_qwen2
from r1_aqa_repro.model.inputs import text_inputs
from r1_aqa_repro.model.text_loading import load_policy, load_reward_model, load_tokenizer
from r1_aqa_repro.planning.choice import recommend, what_would_fit
from r1_aqa_repro.planning.counting import build_model
from r1_aqa_repro.planning.estimate import Memory, Parameters, Strategy, Work, memory_of, strategies
from r1_aqa_repro.planning.geometries import qwen2_0_5b_config, qwen2_7b_config
from r1_aqa_repro.planning.job import Job, make_job
from r1_aqa_repro.planning.seconds import carried, sent, step_seconds
from r1_aqa_repro.ppo.trainer import PPOConfig, PPOTrainer
from r1_aqa_repro.rewards.reward_model import RewardModel
from r1_aqa_repro.run.config import RewardModelConfig
from r1_aqa_repro.train_reward_model import RewardModelTrainer
from scripts.bench_grpo_step import KERNELS
from tests.planning.test_estimate import peak_bytes
from tests.planning.test_seconds import MACHINE
from tests.text_world import letter_reward

# large enough that the models' tensors, not bookkeeping, fill the memory; small enough for a step in a second
MEASURED = TextGeometry(
    max_vocabulary=400, hidden=128, layers=4, heads=4, key_value_heads=2, intermediate=352, max_positions=512
)
PROMPT = TextPrompt("p", [{"role": "user", "content": "Say aardvark. " * 8}], {})
COMPLETION = 24
COMMON: dict[str, Any] = {
    "max_steps": 1, "optim": "adamw_torch", "bf16": False, "save_strategy": "no", "report_to": "none",
    "dataloader_pin_memory": False, "use_cpu": True,
}  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("measured") / "model"
    build_tiny_qwen2(folder, texts=vocabulary_texts()[::4], seed=0, geometry=MEASURED)
    return folder


def ppo(folder: Path, out: Path, judged: bool, **changes: Any) -> tuple[PPOTrainer, Job]:
    """A step of 8 completions, sampled 4 at once and learnt from 2 at once: 2 passes of 2 updates of 2 batches each."""
    args = PPOConfig(
        output_dir=str(out), prompts_per_step=8, num_mini_batches=2, num_ppo_epochs=2, max_prompts_per_device=2,
        local_rollout_forward_batch_size=4, max_completion_length=COMPLETION,
        reward_funcs=["reward_model" if judged else "letter"], **(COMMON | changes),
    )  # fmt: skip
    tokenizer = load_tokenizer(folder)
    model = load_policy(folder)
    rewards: dict[str, Any] = {"letter": letter_reward}
    if judged:
        rewards = {"reward_model": RewardModel(load_reward_model(folder, tokenizer, new_head=True), tokenizer)}
    critic = load_reward_model(folder, tokenizer, new_head=True)
    trainer = PPOTrainer(model, critic, load_policy(folder), args, [PROMPT] * 8, tokenizer, rewards)
    trainer.generation_config.min_new_tokens = COMPLETION
    [prompt_ids] = text_inputs(tokenizer, [PROMPT.messages]).prompt_ids
    return trainer, of_cpu(make_job(args, ModelConfig(), model.config, 1, len(prompt_ids), None, None))


def reward_model(folder: Path, out: Path, **changes: Any) -> tuple[RewardModelTrainer, Job]:
    """Two steps of 4 pairs, 2 at once: in the first one's loss the optimizer holds nothing yet."""
    args = RewardModelConfig(
        output_dir=str(out), examples_per_step=4, max_examples_per_device=2, max_length=None,
        **(COMMON | {"max_steps": 2} | changes),
    )  # fmt: skip
    tokenizer = load_tokenizer(folder)
    model = load_reward_model(folder, tokenizer, new_head=True)
    pairs = Dataset.from_list([{"chosen_ids": [*range(60)], "rejected_ids": [*range(100, 160)]}] * 4)
    trainer = RewardModelTrainer(model=model, args=args, train_dataset=pairs, processing_class=tokenizer)
    return trainer, of_cpu(make_job(args, ModelConfig(), model.config, 1, 40, None, 20))


def made(task: str, folder: Path, out: Path, checkpointing: bool, judged: bool = True) -> tuple[Any, Job]:
    changes = {"activation_checkpointing": checkpointing}
    return ppo(folder, out, judged, **changes) if task == "ppo" else reward_model(folder, out, **changes)


def of_cpu(job: Job) -> Job:
    return replace(job, optimizer_copy=False)  # AdamW on a CPU goes from tensor to tensor


def optimizer_bytes(trainer: Trainer) -> tuple[list[int], Any]:
    """Bytes of the gradients before each of the optimizer's steps, filled in while it trains, and the optimizer."""
    seen: list[int] = []
    optimizer = trainer.create_optimizer()
    optimizer.register_step_pre_hook(
        lambda *_: seen.append(sum(p.grad.nbytes for p in trainer.model.parameters() if p.grad is not None))
    )
    return seen, optimizer


@pytest.mark.parametrize(("task", "checkpointing"), [("ppo", False), ("ppo", True), ("reward", False)])
def test_memory_of_a_real_training_step(folder: Path, tmp_path: Path, task: str, checkpointing: bool) -> None:
    """Weights, gradients, optimizer and frozen models to the byte; the allocator's peak to 10 %."""
    trainer, planned = made(task, folder, tmp_path, checkpointing)
    (estimated,) = strategies(planned, [None], ["ddp"])
    gradients, optimizer = optimizer_bytes(trainer)
    gc.collect()  # an earlier test's trainer, freed while the profiler looks, would be taken off the peak
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        trainer.train()
    memory = estimated.memory
    assert memory.weights == sum(parameter.nbytes for parameter in trainer.model.parameters())
    frozen = [] if task == "reward" else [trainer.reference, trainer.reward_funcs["reward_model"].model]
    assert memory.reference == sum(parameter.nbytes for model in frozen for parameter in model.parameters())
    assert gradients == [memory.gradients] * trainer.args.max_steps * planned.updates
    assert planned.updates == (4 if task == "ppo" else 1)
    moments = [state[key] for state in optimizer.state.values() for key in ("exp_avg", "exp_avg_sq")]
    assert memory.optimizer == sum(moment.nbytes for moment in moments)

    measured, predicted = peak_bytes(profile), memory.peak - memory.weights - memory.reference
    print(f"peak beside the weights: predicted {predicted / 1e6:.2f} MB, measured {measured / 1e6:.2f} MB")
    assert predicted == pytest.approx(measured, rel=0.1)
    assert memory.activations + memory.logits > (0.1 if checkpointing else 0.3) * predicted


@pytest.mark.parametrize(("task", "checkpointing"), [("ppo", True), ("reward", False)])
def test_flops_of_a_real_training_step(folder: Path, tmp_path: Path, task: str, checkpointing: bool) -> None:
    """Everything that a step computes, counted as it runs; PPO with a reward that computes nothing."""
    trainer, planned = made(task, folder, tmp_path, checkpointing, judged=False)
    (estimated,) = strategies(planned, [None], ["ddp"])
    with FlopCounterMode(display=False, custom_mapping=KERNELS) as counter, sdpa_kernel(SDPBackend.MATH):
        trainer.train()
    counted, flops = counter.get_total_flops() / trainer.args.max_steps, estimated.work.flops
    print(f"FLOPs a step: predicted {sum(flops.values()):.4e}, counted {counted:.4e}")
    assert sum(flops.values()) == pytest.approx(counted, rel=0.005)
    names = ["prefill", "decoding", "scoring", "reference", "policy", "critic"] if task == "ppo" else ["policy"]
    assert list(flops) == names


def test_the_sizes_of_the_models() -> None:
    """Qwen2-7B's head is a matrix of its own, Qwen2-0.5B's is not; a score takes its place."""
    seven, half = 7_615_616_512, 494_032_768
    judge = seven - 152_064 * 3584 + 3584
    found = Parameters.of(build_model(qwen2_7b_config(), torch.bfloat16, task="ppo"))
    assert (found.total, found.policy, found.critic, found.scorer) == (seven + judge, seven, judge, judge)
    assert found.trainable == found.total and found.head == 152_064 * 3584
    assert Parameters.of(build_model(qwen2_0_5b_config(), torch.bfloat16)).scorer == half + 896
    alone = Parameters.of(build_model(qwen2_7b_config(), torch.bfloat16, task="reward"))
    assert (alone.total, alone.head, alone.critic) == (judge, 3584, 0)


def test_an_adapter_of_a_reward_model_has_its_head(folder: Path) -> None:
    whole = load_reward_model(folder, load_tokenizer(folder), new_head=True)
    adapter = LoraConfig(target_modules=".*q_proj", task_type="SEQ_CLS", r=4)
    real = get_peft_model(whole, adapter)
    found = Parameters.of(build_model(whole.config, torch.float32, adapter, task="reward"))
    assert (found.trainable, found.total) == real.get_nb_trainable_parameters()
    assert found.trainable == 4 * (4 * 128 + 4 * 128) + 128  # layers, both matrices of rank 4, the head
    assert (found.head, found.head_trainable) == (128, True)
    advice = recommend(Strategy("ddp", True, found, Memory(), Work({})), step_of(task="reward"))
    assert "use_peft: true and lora_task_type: SEQ_CLS" in advice


def test_scores_of_a_reward_model_are_counted(folder: Path, tmp_path: Path) -> None:
    """What the reward of a rollout costs, against the reward model's own forward."""
    trainer, planned = ppo(folder, tmp_path, True)
    (estimated,) = strategies(planned, [None], ["ddp"])
    judge = cast(RewardModel, trainer.reward_funcs["reward_model"]).model
    rows = torch.ones(8, planned.prompt_tokens + COMPLETION, dtype=torch.long)
    with torch.no_grad(), FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        judge(input_ids=rows)
    assert estimated.work.flops["reward models"] == pytest.approx(counter.get_total_flops(), rel=0.001)


PARAMETERS = Parameters(
    total=1500, trainable=1500, largest=100, head=100, head_trainable=True, critic=700, critic_trainable=700, scorer=700
)  # 800 the policy's


def step_of(**changes: Any) -> Job:
    """Of 8 processes: 3 batches of 2 completions, 2 passes, 4 updates."""
    settings: dict[str, Any] = {
        "task": "ppo", "model": qwen2_0_5b_config(), "num_processes": 8, "prompts": 2, "completions": 2,
        "accumulation": 3, "prompt_tokens": 10, "completion_tokens": 5, "audio_tokens": 0, "frames": 0, "shared": False,
        "reference": True, "bf16": True, "dtype": torch.float32, "checkpointing": False, "gather_for_generation": True,
        "optimizer_copy": True, "reward_models": 1, "passes": 2, "updates": 4, "sampled": 4,
    }  # fmt: skip
    return Job(**(settings | changes))


def test_four_models_under_zero() -> None:
    """By hand: policy and critic are trained, 1500; reference and reward model stay, 800 and 700."""
    ddp, two, three, offload = (
        memory_of(step_of(), engine, PARAMETERS, activations=0, logits=0)
        for engine in ("ddp", "zero2", "zero3", "zero3_offload")
    )
    assert (ddp.weights, ddp.optimizer, ddp.reference) == (4 * 1500, 8 * 1500, 4 * 1500)
    assert ddp.gathered_to_generate == 2 * 800  # autocast's copy of the policy
    assert (two.weights, two.reference, two.optimizer) == (2 * 1500, 2 * 1500, 12 * 1500 / 8)
    assert (three.weights, three.reference) == (2 * 1500 / 8, 2 * 1500 / 8)
    assert three.gathered_to_generate == 2 * 1500  # the critic is in the same module
    assert offload.host == 2 * (1500 + 1500) + 18 * 1500
    a_token = 2 * 24 * 2 * 64 * 2  # keys and values, layers, heads of 64, bytes
    assert ddp.kv_cache == a_token * 4 * (10 + 5)


def test_what_ppo_sends_carries_and_updates() -> None:
    """By hand: 7/8 s a byte come from the others at 1 byte a second."""
    job, trained = step_of(), 2 * 1500
    forwards = 3 * (2 * 2 * 1500 + 1500 + 800 + 700)  # backwards and theirs; scored: policy with critic, the frozen two
    assert sent("ddp", job, PARAMETERS, 7.0) == (4 * 2 * 4 * 1500 / 8, 0)
    assert sent("zero2", job, PARAMETERS, 7.0) == (6 * trained / 8, 4 * trained / 8)
    assert sent("zero3", job, PARAMETERS, 7.0) == (2 * forwards / 8 + 6 * trained / 8, 2 * 1500 / 8)
    assert carried(job, PARAMETERS, 4.0) == (2 * (forwards + 6 * 1500) / 8 / 4, 2 * 1500 / 8 / 4)
    work = Work({"decoding": 0, "policy": 0}, decode_bytes=0, decode_kernels=10)
    found = step_seconds(Strategy("zero3_offload", False, PARAMETERS, Memory(), work), job, MACHINE)
    assert found["CPU's Adam"] == (4 * 1500 * 0.5, 4 * 1500 * 2.0)
    measured = step_seconds(Strategy("ddp", False, PARAMETERS, Memory(), work), job, replace(MACHINE, token=0.5))
    assert measured["decoding"] == (2 * 5 * 0.5,) * 2  # twice, of 4 and of 2 completions
    assert measured["optimizer"] == (4 * 1500 * 30 / 10.0,) * 2


def test_what_would_fit_names_only_what_ppo_can_do(policy: Path) -> None:
    """Neither an adapter nor a base in 4 bits: what remains are fewer completions at once, checkpointing and GPUs."""
    planned = step_of(model=load_policy(policy).config, num_processes=1)
    (held,) = (each.memory.held for each in strategies(planned, [None], ["zero2"]))
    advice = what_would_fit(planned, [None], replace(MACHINE, gpus=1, gpu_bytes=held / 4))
    assert "max_prompts_per_device: 1 with ZeRO" in advice
    assert "4bit" not in advice and "LoRA" not in advice


def test_a_last_round_of_fewer_completions_costs_their_part(policy: Path) -> None:
    config = load_policy(policy).config
    small = step_of(model=config, num_processes=1, bf16=False, reward_models=0)
    parts = {sampled: strategies(replace(small, sampled=sampled), [None], ["ddp"])[0].work for sampled in (2, 4, 6)}
    for part in ("prefill", "decoding"):
        assert parts[2].flops[part] == parts[4].flops[part] == parts[6].flops[part] > 0
    # each round reads the weights and launches its kernels anew
    assert parts[2].decode_kernels == 3 * parts[6].decode_kernels == 1.5 * parts[4].decode_kernels
    weights = 4 * Parameters.of(build_model(config, torch.float32)).decoded
    assert parts[2].decode_bytes - parts[6].decode_bytes == 2 * 5 * weights
