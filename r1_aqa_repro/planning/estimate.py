"""Bytes, FLOPs and seconds of a training step under each way to spread it over GPUs.

The bytes a parameter are those of arXiv 1910.02054 (ZeRO), section 3.1: with mixed precision and Adam 2 for the weight,
2 for its gradient and 12 for the float32 master weight and two moments; without, 4 + 4 + 8. Which of them are sharded
over the N processes is ZeRO's stage (section 5): 2 the gradients and the 12, 3 everything. What the paper leaves to
"residual states" (activations, buffers, section 3.2) is counted on the meta device, see `counting`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any, Literal, get_args

import torch
from peft import PeftConfig, PeftModel
from torch import nn

from r1_aqa_repro.model.loading import base_of
from r1_aqa_repro.planning.counting import (
    Task,
    backbone,
    build_model,
    count_flops,
    cross_entropy,
    decode_flops,
    encoder_is_frozen,
    encoding,
    language_model,
    loss_bytes,
    networks,
    ppo_terms,
    rewards,
)
from r1_aqa_repro.planning.job import Job

Engine = Literal["ddp", "zero2", "zero3", "zero3_offload"]
ENGINES: tuple[Engine, ...] = get_args(Engine)
RESERVED = 0.1  # of a GPU: CUDA context, NCCL, fragmentation of the allocator
_LIVE_PARAMETERS = 1_000_000_000  # ZeRO-3's defaults: stage3_max_live_parameters, and
_SUB_GROUP = 1_000_000_000  # sub_group_size, the parameters whose optimizer step is taken at once
_BITS = (4 + 32 / 64, 4 + 8 / 64 + 32 / (64 * 256))  # of a weight in NF4 with its scales; those in 8 bits (nested)
# kernels a decoded token takes, for each layer and beside the layers: counted as tests/model/test_generation.py does,
# which gives 1,321 shared and 1,436 plain at 32 layers; an adapter adds two products, a scaling and a sum
KERNELS = {True: (40, 41), False: (43, 60)}
_ADAPTER_KERNELS = 4
_VOCABULARY_TILE, _TOKEN_TILE = 32_768, 4096  # of TRL's fused head: logits that exist at once


@dataclass(frozen=True)
class Parameters:
    """total, trainable: of the model with its adapters, if it has any. largest: of the largest weight.

    head: of lm_head or score; head_trainable: whether it is trained. adapters: whether only LoRA's matrices are.
    layers: of the matrices of the language model's layers, which QLoRA holds in 4 bits; largest_layer: of the largest.
    adapted: how many of them have an adapter.
    critic, critic_trainable: those of the total, and of the trainable, that are PPO's critic's. scorer: of a model of
    the policy's sizes that has a score for a head, as reward models.
    """

    total: int
    trainable: int
    largest: int
    head: int
    head_trainable: bool
    adapters: bool = False
    layers: int = 0
    largest_layer: int = 0
    adapted: int = 0
    critic: int = 0
    critic_trainable: int = 0
    scorer: int = 0

    @property
    def policy(self) -> int:
        return self.total - self.critic

    @property
    def decoded(self) -> int:
        """Those that decoding reads for every token: not the audio encoder, and of the embeddings a row."""
        return self.layers + self.head + (self.trainable if self.adapters else 0)

    @classmethod
    def of(cls, model: nn.Module) -> Parameters:
        policy, *critics = networks(model)
        base = base_of(policy)
        head = (base.get_output_embeddings() or base.score).weight
        sizes = [parameter.numel() for parameter in model.parameters()]
        trainable = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
        inner = [each for name, each in language_model(policy).named_modules() if "lora_" not in name]
        layers = [each.weight.numel() for each in inner if isinstance(each, nn.Linear)]
        body = [each.numel() for name, each in language_model(policy).named_parameters() if "lora_" not in name]
        return cls(
            sum(sizes),
            trainable,
            max(sizes),
            head.numel(),
            head.requires_grad,
            isinstance(policy, PeftModel),
            sum(layers),
            max(layers),
            sum(hasattr(each, "lora_A") for each in inner),
            sum(parameter.numel() for critic in critics for parameter in critic.parameters()),
            sum(each.numel() for critic in critics for each in critic.parameters() if each.requires_grad),
            sum(body) + base.config.get_text_config().hidden_size,
        )


@dataclass(frozen=True)
class Memory:
    """Bytes on each GPU (`host`: in the CPU memory of all processes together).

    weights, gradients, optimizer, reference are held throughout; the others for a part of the step:
    generation: `gathered_to_generate` (whole or cast copies of the weights), `kv_cache`, `sampling` (a token's logits);
    loss: `gathered` (as much as ZeRO-3 keeps of the weights), `activations`, `logits` (TRL's head or SFT's softmax);
    optimizer: `step` (float32 gradients and AdamW's temporaries).
    """

    weights: int = 0
    gradients: int = 0
    optimizer: int = 0
    reference: int = 0
    gathered_to_generate: int = 0
    kv_cache: int = 0
    sampling: int = 0
    gathered: int = 0
    activations: int = 0
    logits: int = 0
    step: int = 0
    host: int = 0

    @property
    def held(self) -> int:
        return self.weights + self.gradients + self.optimizer + self.reference

    @property
    def phases(self) -> dict[str, int]:
        """What each phase adds to what is held."""
        return {
            "generation": self.gathered_to_generate + self.kv_cache + self.sampling,
            "loss": self.gathered + self.activations + self.logits,
            "optimizer": self.step,
        }

    @property
    def peak(self) -> int:
        return self.held + max(self.phases.values())


@dataclass(frozen=True)
class Work:
    """Of one optimizer step of one process: FLOPs by part, the bytes that decoding moves, the kernels it launches."""

    flops: dict[str, int]
    decode_bytes: int = 0
    decode_kernels: int = 0


@dataclass(frozen=True)
class Strategy:
    """A way to train: how the states are spread, and what it then costs."""

    engine: Engine
    lora: bool
    parameters: Parameters
    memory: Memory
    work: Work
    quantised: bool = False

    def fits(self, gpu_bytes: float) -> bool:
        return self.memory.peak <= (1 - RESERVED) * gpu_bytes

    def name(self, num_processes: int) -> str:
        names = {
            "ddp": "DDP" if num_processes > 1 else "one process",
            "zero2": "ZeRO-2",
            "zero3": "ZeRO-3",
            "zero3_offload": "ZeRO-3, offload",
        }
        adapters = "QLoRA, " if self.quantised else "LoRA, " if self.lora else ""
        return adapters + names[self.engine]


def strategies(job: Job, adapters: Sequence[PeftConfig | None], engines: Sequence[Engine] = ENGINES) -> list[Strategy]:
    """Every engine for each kind of adapter (None: the whole model is trained). A base in 4 bits has adapters, and no
    DeepSpeed."""
    if job.quantised:
        adapters, engines = [each for each in adapters if each], ["ddp"]
    return [strategy for peft_config in adapters for strategy in _with_engines(job, peft_config, engines)]


def _with_engines(job: Job, peft_config: PeftConfig | None, engines: Sequence[Engine]) -> list[Strategy]:
    computed = torch.bfloat16 if job.bf16 else torch.float32
    model = build_model(job.model, computed, peft_config, job.checkpointing, job.task, job.trained_parts)
    job = replace(job, encoded=job.encodes_once and encoder_is_frozen(model))
    parameters = Parameters.of(model)
    work = count_work(job, peft_config, model, parameters)
    measured: dict[tuple[torch.dtype, bool], tuple[int, int]] = {}
    found = []
    for engine in engines:
        how = (job.dtype, job.bf16) if engine == "ddp" else (computed, False)  # dtype of the weights, autocast
        if how not in measured:
            measured[how] = measure_loss(job, parameters, peft_config, *how)
        memory = memory_of(job, engine, parameters, *measured[how])
        found.append(Strategy(engine, peft_config is not None, parameters, memory, work, job.quantised))
    return found


def measure_loss(
    job: Job, parameters: Parameters, peft_config: PeftConfig | None, dtype: torch.dtype, autocast: bool
) -> tuple[int, int]:
    """Bytes of activations and of logits (or scores) in the loss and its backward."""
    count: Callable[..., int] = partial(
        loss_bytes,
        job.model,
        job.loss_shapes,
        dtype,
        peft_config,
        job.checkpointing,
        autocast,
        job.task,
        job.trained_parts,
    )
    activations = count()
    if job.task in ("grpo", "rloo"):
        return activations, fused_head_bytes(job, parameters, dtype, torch.bfloat16 if job.bf16 else dtype)
    losses: dict[Task, Callable[..., Any]] = {
        "reward": rewards,
        "ppo": partial(ppo_terms, entropy_gradient=job.entropy_gradient),
    }
    return activations, max(0, count(loss=losses.get(job.task, cross_entropy)) - activations)


def fused_head_bytes(job: Job, parameters: Parameters, dtype: torch.dtype, computed: torch.dtype) -> int:
    """TRL's ChunkedLogProbFunction: a tile of logits, the scored states, float32 gradients and their casts.

    Args:
        dtype: of weights and hidden states.
        computed: of the logits.
    """
    hidden = job.model.get_text_config().hidden_size
    tile = min(job.scored, _TOKEN_TILE) * _VOCABULARY_TILE * computed.itemsize
    states = job.scored * hidden * dtype.itemsize  # the scored positions, picked out
    gradient_of = job.scored * hidden + (parameters.head if parameters.head_trainable else 0)
    cast = dtype.itemsize if dtype != torch.float32 else 0
    return tile + states + gradient_of * (4 + cast)


def memory_of(job: Job, engine: Engine, parameters: Parameters, activations: int, logits: int) -> Memory:
    """Bytes by part.

    - ddp, one process: weights as `dtype` has them (an adapter in float32), float32 gradients, which DDP copies into
      its buckets, and two float32 moments. With bf16 autocast keeps a bfloat16 copy of what is trained. QLoRA holds
      the matrices of the language model's layers in 4 bits, with a float32 scale to 64 of them (arXiv 2305.14314), and
      computes with a copy of one at a time.
    - zero2: DeepSpeed holds the whole model as it computes (2 bytes with bf16, even if `dtype` is float32); this
      process's share of the gradients in the same type and 12 bytes for the optimizer. The reference is not sharded.
    - zero3: all of that is sharded, the reference too. While generating, the whole model is gathered
      (`ds3_gather_for_generation`); in the loss at most `stage3_max_live_parameters` and the weight in use.
    - zero3_offload: the shards, the reference's too, are in CPU memory, with float32 gradients for the CPU's Adam.

    PPO's critic is trained beside the policy, as a part of the same module.

    DeepSpeed's optimizer step takes float32 copies of its gradients; PyTorch's AdamW on a GPU works on all tensors at
    once and needs another copy of its parameters (torch.optim.AdamW, `foreach`).
    """
    total, trained, size = parameters.total, parameters.trainable, 2 if job.bf16 else 4
    shards = job.num_processes
    frozen = job.reward_models * parameters.scorer  # beside what is trained
    frozen += parameters.policy if job.reference and not parameters.adapters else 0
    optimizer_copy = 4 if job.optimizer_copy else 0
    buckets = 2 * size * job.model.get_text_config().hidden_size ** 2  # reduce_bucket_size: auto, and one being reduced
    common: dict[str, int] = {"activations": activations, "logits": logits}
    if job.generates:
        common |= {"kv_cache": kv_cache_bytes(job.rollout), "sampling": sampling_bytes(job.rollout)}
    if engine == "ddp":
        casts = job.bf16 and job.dtype == torch.float32
        weights = (total - trained) * job.dtype.itemsize + trained * (4 if parameters.adapters else job.dtype.itemsize)
        if job.quantised:
            weights -= parameters.layers * job.dtype.itemsize - math.ceil(parameters.layers * _BITS[job.nested] / 8)
            common["activations"] += parameters.largest_layer * job.dtype.itemsize
        return Memory(
            weights=weights,
            gradients=4 * trained * (2 if shards > 1 else 1),
            optimizer=8 * trained,
            reference=frozen * job.dtype.itemsize,
            gathered_to_generate=2 * (trained - parameters.critic_trainable) if casts and job.generates else 0,
            step=optimizer_copy * trained,
            **common,
        )
    if engine == "zero2":
        return Memory(
            weights=size * total,
            gradients=_share(size * trained, shards) + buckets,
            optimizer=_share(12 * trained, shards),
            reference=size * frozen,
            step=_share((4 + size + optimizer_copy) * trained, shards),
            **common,
        )
    gathered = size * min(total, _LIVE_PARAMETERS + parameters.largest)
    common["gathered"] = gathered
    if job.generates:
        common["gathered_to_generate"] = size * total if job.gather_for_generation else gathered
    if engine == "zero3":
        return Memory(
            weights=_share(size * total, shards),
            gradients=_share(size * trained, shards) + buckets,
            optimizer=_share(12 * trained, shards),
            reference=_share(size * frozen, shards),
            step=min(_share(trained, shards), _SUB_GROUP) * (4 + optimizer_copy),
            **common,
        )
    return Memory(
        gradients=buckets,
        host=size * (total + frozen) + (12 + 4 + size) * trained,
        **common,
    )


def _share(amount: int, shards: int) -> int:
    return math.ceil(amount / shards)


def kv_cache_bytes(job: Job) -> int:
    """Keys and values: of shared prompts once, and of every completion's own tokens, all of which there is room for."""
    text = job.model.get_text_config()
    head_dim = text.hidden_size // text.num_attention_heads
    a_token = 2 * text.num_hidden_layers * text.num_key_value_heads * head_dim * (2 if job.bf16 else 4)
    prompts = job.prompts if job.shared else job.completions
    return a_token * (prompts * job.prompt_tokens + job.completions * job.completion_tokens)


def sampling_bytes(job: Job) -> int:
    """Logits of the next token of every completion: as computed, in float32, filtered, sorted and as probabilities."""
    return job.completions * job.model.get_text_config().vocab_size * ((2 if job.bf16 else 4) + 4 * 4)


def count_work(job: Job, peft_config: PeftConfig | None, model: nn.Module, parameters: Parameters) -> Work:
    """FLOPs of an optimizer step by part, and what decoding moves in memory and launches.

    A frozen encoder's are those of a step of the first epoch; later it has nothing to encode.

    The head of a backward: TRL's recomputes the logits, then takes their gradients (the other losses only the latter).
    """
    shapes, times, policy = job.loss_shapes, job.accumulation, networks(model)[0]

    def learnt(network: nn.Module) -> int:
        return job.passes * count_flops(lambda: backbone(network, shapes).sum().backward(), grad=True)

    def asked(network: nn.Module) -> int:
        return count_flops(lambda: backbone(network, shapes))

    head = 2 * job.scored * parameters.head
    values = 2 * job.completions * job.completion_tokens * job.model.get_text_config().hidden_size
    backward = 1 + parameters.head_trainable + (job.task in ("grpo", "rloo"))
    flops = {"policy": learnt(policy) + job.passes * head * (1 + backward)}
    if job.task == "ppo":
        critic = networks(model)[1]
        flops["critic"] = learnt(critic) + job.passes * values * 3
    model.eval()  # with checkpointing, transformers keeps no cache in training mode
    if job.reference:
        reference = policy if peft_config is None else build_model(job.model, torch.float32)
        flops = {"reference": asked(reference) + head} | flops
    if job.task == "kto":  # each prompt with another's answer, for the KL: asked of the policy and of the reference
        flops["mismatched answers"] = asked(policy) + head + flops.get("reference", 0)
    if job.task == "rloo":  # what was sampled, before it is learnt from
        flops = {"scoring": asked(policy) + head} | flops
    if job.task == "ppo":  # what was sampled, before anything is learnt from it
        flops = {"scoring": asked(policy) + head + asked(critic) + values} | flops
    if job.answer_probability:  # the head at the answers' tokens alone is left out
        flops = {"answer probability": asked(policy)} | flops
    if job.encoded:
        flops = {"encoder": count_flops(lambda: encoding(policy, job.prompts, job.frames))} | flops
    flops = {part: times * each for part, each in flops.items()}
    if not job.generates:
        return Work(flops)
    rollout, size = job.rollout, 2 if job.bf16 else 4
    rounds, full_rounds = rollout.accumulation, times * job.completions / rollout.completions  # the last may be a part
    prefill = count_flops(lambda: backbone(policy, rollout.prefill_shapes))
    decoding = decode_flops(policy, rollout.completions, job.prompt_tokens, job.completion_tokens)
    generated = {"prefill": round(full_rounds * prefill), "decoding": round(full_rounds * decoding)}
    if job.reward_models:
        rows = replace(job, shared=False).loss_shapes
        generated["reward models"] = times * job.reward_models * count_flops(lambda: backbone(policy, rows))
    weights: float = size * parameters.decoded
    if job.quantised:  # unpacked into memory before each product
        weights += parameters.layers * (_BITS[job.nested] / 8 + size)
    moved = job.completion_tokens * (rounds * weights + full_rounds * kv_cache_bytes(rollout))
    a_layer, beside = KERNELS[job.shared]
    kernels = a_layer * job.model.get_text_config().num_hidden_layers + beside + _ADAPTER_KERNELS * parameters.adapted
    launches = 0 if job.cuda_graphs else rounds * job.completion_tokens * kernels
    return Work(generated | flops, math.ceil(moved), launches)


def as_json(strategy: Strategy, job: Job, gpu_bytes: float) -> dict[str, Any]:
    """One strategy with every part, in bytes."""
    memory = asdict(strategy.memory) | {"held": strategy.memory.held, "peak": strategy.memory.peak}
    return {
        "strategy": strategy.name(job.num_processes),
        "engine": strategy.engine,
        "lora": strategy.lora,
        "fits": strategy.fits(gpu_bytes),
        "parameters": strategy.parameters.total,
        "trainable_parameters": strategy.parameters.trainable,
        "memory_bytes": memory,
        "flops": strategy.work.flops,
    }
