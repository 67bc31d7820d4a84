"""The parts of scripts/gpu_check.py: each yields its figures as they are measured, of models with random weights.

The work of all is 2 prompts x 8 completions of a forced length; of `7b` in bfloat16, of `tiny` too.
"""

from __future__ import annotations

import os
import random
import socket
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import torch
from accelerate.utils.memory import clear_device_cache
from transformers import PreTrainedModel, ProcessorMixin, Qwen2AudioConfig
from transformers.utils import is_triton_available
from trl import ModelConfig
from trl.kernels.chunked_logprob import ChunkedLogProbFunction
from trl.trainer.utils import add_fused_lm_head

from eval.generation import Generator
from eval.grid import prompts_of
from r1_aqa_repro.common.console import say
from r1_aqa_repro.common.memory import MB, peak_memory, reset_peak_memory
from r1_aqa_repro.data.questions import AudioQuestion, read_questions
from r1_aqa_repro.grpo.monitor import seconds
from r1_aqa_repro.grpo.rollout import Rollout
from r1_aqa_repro.grpo.scoring import score_plain, score_shared
from r1_aqa_repro.model import generation
from r1_aqa_repro.model.audio_encoder import TrimmableAudioEncoder
from r1_aqa_repro.model.generation import Completions, complete, device_and_dtype, greedy_config, sampling_config
from r1_aqa_repro.model.inputs import ModelInputs, attention_mask_left, num_audio_tokens, pad_left, question_inputs
from r1_aqa_repro.model.loading import load_processor, prepare_for_sharing
from r1_aqa_repro.planning.counting import Operations, operations_a_token
from r1_aqa_repro.planning.estimate import Strategy, strategies
from r1_aqa_repro.planning.geometries import qwen2_audio_7b_config
from r1_aqa_repro.planning.job import FRAMES_A_SECOND, make_job
from r1_aqa_repro.run.folder import provenance
from scripts import bench_grpo_step as bench
from scripts.bench_grpo_step import NUM_GENERATIONS, PLAIN, PROMPT_STYLE, SHARED, Setup
from scripts.workshop import ROOT

Figures = dict[str, Any]
ANSWER_TOKENS = 24  # of `evaluation`
STEPS = 2  # timed ones of each length
Gradients = Mapping[str, torch.Tensor]


class Sizes(NamedTuple):
    """What is measured.

    setup: of the benchmark of a step. exact: tokens of completions in `exactness`. tokens: in `decoding` and the steps.
    questions: at once in `evaluation`. matrix: rows and columns of the product.
    """

    setup: Setup
    exact: tuple[int, ...]
    tokens: tuple[int, ...]
    questions: tuple[int, ...]
    matrix: int


def sizes_of(geometry: str) -> Sizes:
    """Those of `tiny` or `7b`, on the GPU if there is one."""
    setup = Setup(geometry, prompts=2, completion_tokens=8, device=device_and_dtype()[0], lora=True)
    if geometry == "tiny":
        return Sizes(setup, exact=(8, 24), tokens=(8, 16, 32), questions=(4, 8), matrix=1024)
    return Sizes(setup, exact=(24, 128), tokens=(32, 128, 256), questions=(32, 64), matrix=8192)


# --- The machine


def machine(sizes: Sizes, folder: Path) -> Iterator[Figures]:
    """What it is; what a large matrix product, a copy and the launch of a kernel reach."""
    device, size = sizes.setup.device, sizes.matrix
    yield provenance() | {"geometry": sizes.setup.geometry, "device": device, "cuda": torch.version.cuda}
    yield {"matmul_tflops": matmul_tflops(sizes)}
    block, one = torch.empty(8, size, size, device=device), torch.zeros(1, device=device)
    yield {"copy_tb_per_second": 2 * block.nbytes / timed(block.clone, 10) / 1e12}
    yield {"kernel_us": 1e6 * timed(lambda: one.add_(1), 2000)}


def matmul_tflops(sizes: Sizes) -> float:
    """TFLOP/s of a large bfloat16 matrix product."""
    size = sizes.matrix
    square = torch.randn(size, size, dtype=torch.bfloat16, device=sizes.setup.device)
    return 2 * size**3 / timed(lambda: square @ square, 10) / 1e12


# --- (a) Exactness


def exactness(sizes: Sizes, folder: Path) -> Iterator[Figures]:
    """Sharing against the plain way in bfloat16, and both against float32; TRL's head; which attention ran."""
    made = Made.of(sizes.setup, folder)
    model = made.model
    model.activation_checkpointing_enable()  # three times the weights are held already
    del made.inputs.prompt_ids[0][:5]  # prompts of two lengths: one of them is padded
    yield {"head": head_error(model)}
    found: dict[int, tuple[Figures, Sampled, dict[str, torch.Tensor]]] = {}
    for tokens in sizes.exact:
        with Operations() as sampling:
            sampled = made.sampled(tokens)
        attention, log_probs, gradients = {"sampling": dict(sampling.attention)}, {}, {}
        for mode in (PLAIN, SHARED):
            with Operations() as scoring:
                scored = sampled.score(model, mode)
                policy_loss(scored).backward()
            attention[mode], log_probs[mode] = dict(scoring.attention), scored.detach()
            gradients[mode] = {name: each.grad for name, each in model.named_parameters() if each.grad is not None}
            model.zero_grad(set_to_none=True)
        figures = {
            "shared_minus_plain": apart(log_probs[SHARED], log_probs[PLAIN]),
            "sampled_minus_scored": apart(sampled.log_probs, log_probs[SHARED]),
            "gradient_cosine": cosine(gradients[SHARED], gradients[PLAIN]),
            "attention": attention,
        }
        found[tokens] = figures, sampled, log_probs
        yield {f"tokens_{tokens}": figures}
    del gradients
    model.float()
    for tokens, (figures, sampled, log_probs) in found.items():
        with torch.no_grad():
            exact = sampled.score(model, PLAIN)
        yield {f"tokens_{tokens}": figures | {f"{mode}_error": apart(log_probs[mode], exact) for mode in log_probs}}


def head_error(model: PreTrainedModel) -> Figures:
    """Log-probabilities of TRL's fused head, and their gradient, against a float32 log-softmax of float32 logits."""
    weight = model.get_output_embeddings().weight.detach()
    hidden = torch.randn(256, weight.size(1), dtype=weight.dtype, device=weight.device, requires_grad=True)
    targets = torch.randint(len(weight), (256,), device=weight.device)
    # a tile of 32,768 logits, no soft cap, scale 1: as TRL calls it
    fused = ChunkedLogProbFunction.apply(hidden, weight, None, targets, 1.0, 32_768, None, 1.0, ("log_probs",))[0]
    logits = hidden.float() @ weight.float().T, (hidden @ weight.T).float()
    exact, rounded = (each.log_softmax(-1).gather(1, targets[:, None])[:, 0] for each in logits)
    by_fused, by_exact = (torch.autograd.grad(each.sum(), hidden)[0] for each in (fused, exact))
    return {
        "triton": is_triton_available() and weight.is_cuda,
        "error": apart(fused, exact),
        "error_of_bfloat16_logits": apart(rounded, exact),
        "gradient_cosine": cosine({"hidden": by_fused}, {"hidden": by_exact}),
    }


def apart(one: torch.Tensor, other: torch.Tensor) -> dict[str, float]:
    """Mean and largest distance."""
    distance = (one - other).detach().abs().float()
    return {"mean": distance.mean().item(), "max": distance.max().item()}


def cosine(one: Gradients, other: Gradients) -> float:
    """Of two sets of tensors with the same names, each taken as one vector."""

    def dot(first: Gradients, second: Gradients) -> float:
        return sum(float(first[name].float().flatten() @ second[name].float().flatten()) for name in first)

    return dot(one, other) / (dot(one, one) * dot(other, other)) ** 0.5


# --- (b) Decoding


def decoding(sizes: Sizes, folder: Path) -> Iterator[Figures]:
    """Milliseconds and kernels a token; with CUDA graphs also whether the tokens are those of the steps launched."""
    made, on_gpu = Made.of(sizes.setup, folder), sizes.setup.device == "cuda"
    graphs = {"cuda_graphs": {"cuda_graphs": True}} if on_gpu else {}
    for way, options in {SHARED: {}, PLAIN: {"share": False}, **graphs}.items():
        decode: Callable[[int], Completions] = partial(made.complete, **options)
        decode(4)
        if way not in graphs:  # a replayed step dispatches nothing
            yield {f"{way}_operations": dict(zip(("all", "kernels"), operations_a_token(decode), strict=True))}
        first = timed(partial(decode, 1), 2)
        for tokens in sizes.tokens:
            further = timed(partial(decode, tokens)) - first
            yield {f"{way}_{tokens}": {"ms_a_token": 1000 * further / (tokens - 1), "first_token_ms": 1000 * first}}
    if on_gpu:
        replayed = made.complete(sizes.tokens[1], cuda_graphs=True)
        with mock.patch.object(generation, "_recorded", lambda step: step):
            launched = made.complete(sizes.tokens[1], cuda_graphs=True)
        yield {"cuda_graphs_same_tokens": replayed.token_ids == launched.token_ids}


# --- (c) Steps


def lora_step(sizes: Sizes, folder: Path) -> Iterator[Figures]:
    """An optimizer step of the real trainer with adapters, see bench_grpo_step.py, beside the planner's figures."""
    reached, found = matmul_tflops(sizes), {}
    for tokens in sizes.tokens:
        setup, place = replace(sizes.setup, completion_tokens=tokens), folder / str(tokens)
        place.mkdir()
        modes = [SHARED, PLAIN] if tokens == sizes.tokens[0] else [SHARED]
        results = bench.measure(setup, modes, place, STEPS, counted=False)
        for mode in modes:
            found[mode, tokens] = results[mode]
            yield {f"{mode}_{tokens}": results[mode]}
        clear_device_cache(garbage_collection=True)  # of what a model of before has held
    for (mode, tokens), figures in found.items():  # last: a planner needs no GPU, and seconds
        plan = planned_step(replace(sizes.setup, completion_tokens=tokens), folder / str(tokens), mode)
        reach = use(sum(plan.work.flops.values()), figures["seconds_per_step"], reached)
        yield {f"{mode}_{tokens}": figures | reach | {"planned_peak_mb": plan.memory.peak / MB}}


def full_step(sizes: Sizes, folder: Path) -> Iterator[Figures]:
    """Forward and backward of all parameters in bfloat16, without an optimizer, beside the planner's figures."""
    made, reached, found = Made.of(sizes.setup, folder), matmul_tflops(sizes), {}
    for mode, tokens in [*((SHARED, tokens) for tokens in sizes.tokens), (PLAIN, sizes.tokens[0])]:
        sampled = made.sampled(tokens)
        for _ in range(2):  # the first warms up
            made.model.zero_grad(set_to_none=True)
            clear_device_cache(garbage_collection=True)  # of what a model of before has held
            reset_peak_memory(sizes.setup.device)
            began = seconds()
            loss = policy_loss(sampled.score(made.model, mode))
            forward = seconds() - began
            loss.backward()
            taken, peak = seconds() - began, peak_memory(sizes.setup.device)
        figures = {"forward_s": forward, "backward_s": taken - forward, "peak_memory_mb": peak}
        found[mode, tokens] = figures
        yield {f"{mode}_{tokens}": figures}
    for (mode, tokens), figures in found.items():  # last: a planner needs no GPU, and seconds
        plan = planned_step(replace(sizes.setup, completion_tokens=tokens, lora=False), folder, mode)
        planned = 2 * 2 * plan.parameters.total + plan.memory.activations + plan.memory.logits  # weights and gradients
        reach = use(plan.work.flops["policy"], figures["forward_s"] + figures["backward_s"], reached)
        yield {f"{mode}_{tokens}": figures | reach | {"planned_peak_mb": planned / MB}}


def use(flops: int, taken: float, reached: float) -> Figures:
    """TFLOP/s by the planner's count; `mfu`: what that is of what a large matrix product reaches on this machine."""
    tflops = flops / taken / 1e12
    return {"tflops": tflops, "mfu": tflops / reached}


def planned_step(setup: Setup, folder: Path, mode: str) -> Strategy:
    """The planner's figures of one process with bfloat16 weights on what `bench.prepare` wrote."""
    settings = bench.training_settings(setup, folder, 1, sharing="auto" if mode == SHARED else "off")
    config = Qwen2AudioConfig.from_pretrained(folder / "model")
    inputs, _ = inputs_of(folder)
    clip_seconds = int(inputs.feature_attention_mask.sum(-1).max()) / FRAMES_A_SECOND
    lengths = max(map(len, inputs.prompt_ids)), clip_seconds, setup.completion_tokens
    job = make_job(settings, ModelConfig(dtype="bfloat16"), config, 1, *lengths)
    return strategies(job, [bench.adapters() if setup.lora else None], ["ddp"])[0]


# --- (d) The encoder, (e) evaluation


def encoder(sizes: Sizes, folder: Path) -> Iterator[Figures]:
    """Of 16 clips, trimmed and in their whole window."""
    bench.prepare(sizes.setup, folder)
    inputs, _ = inputs_of(folder)
    config, device = Qwen2AudioConfig.from_pretrained(folder / "model").audio_config, sizes.setup.device
    with torch.device(device):
        tower = TrimmableAudioEncoder._from_config(config, dtype=torch.bfloat16, attn_implementation="sdpa").eval()
    found = {}
    for name, trim in (("trimmed", True), ("whole", False)):
        features, real = inputs.audio(device, rows_of(inputs), trim).values()
        positions = torch.arange(features.size(-1) // 2, device=device) < ((real.sum(-1) - 1) // 2 + 1)[:, None]
        mask = positions[:, None, None].expand(-1, 1, positions.size(1), -1)
        encode = torch.no_grad()(partial(tower, features, attention_mask=mask))
        found[name] = encode().last_hidden_state[:, : int(num_audio_tokens(real).min())]
        yield {name: {"frames": features.size(-1), "ms": 1000 * timed(encode, 3)}}
    yield {"difference": apart(found["trimmed"], found["whole"])}


def evaluation(sizes: Sizes, folder: Path) -> Iterator[Figures]:
    """Questions a second of the harness, clips and features included, greedy completions of a forced length."""
    made = Made.of(replace(sizes.setup, prompts=max(sizes.questions)), folder)
    config = greedy_config(made.model, made.processor, ANSWER_TOKENS)
    config.eos_token_id = made.model.config.text_config.vocab_size  # which no completion reaches
    harness = Generator(made.model, made.processor, config, PROMPT_STYLE)
    for batch in (2, *sizes.questions):  # the first warms up
        taken = timed(partial(harness.answer, prompts_of(made.questions[:batch]), say))
        if batch in sizes.questions:
            yield {f"batch_{batch}": {"questions_per_second": batch / taken, "completion_tokens": ANSWER_TOKENS}}


# --- (f) ZeRO


def zero3(sizes: Sizes, folder: Path, engine: str = "zero3") -> Iterator[Figures]:
    """Two steps under ZeRO-3 at world size 1, and without it."""
    setup = replace(sizes.setup, lora=False)  # float32
    with mock.patch.dict(bench.CONFIGS, {"7b": few_layers}):
        bench.prepare(setup, folder)
    alone = engine_steps(setup, folder, None)
    yield {"alone": alone}
    with socket.socket() as free_port:
        free_port.bind(("127.0.0.1", 0))
        port = str(free_port.getsockname()[1])
    os.environ.update(RANK="0", LOCAL_RANK="0", WORLD_SIZE="1", MASTER_ADDR="127.0.0.1", MASTER_PORT=port)  # torchrun's
    under = engine_steps(setup, folder, str(ROOT / "configs" / "deepspeed" / f"{engine}.json"))
    yield {engine: under}
    for name in alone:
        distance = max(abs(one - other) for one, other in zip(under[name], alone[name], strict=True))
        yield {f"{name}_difference": distance}


def offload(sizes: Sizes, folder: Path) -> Iterator[Figures]:
    """The same with weights and optimizer in the CPU's memory."""
    return zero3(sizes, folder, "zero3_offload")


def few_layers() -> Qwen2AudioConfig:
    """The widths of Qwen2-Audio-7B with two layers each and a small vocabulary: 0.5 G parameters."""
    config = qwen2_audio_7b_config(layers=2)
    config.text_config.vocab_size = 8192
    return config


def engine_steps(setup: Setup, folder: Path, deepspeed: str | None) -> dict[str, list[float]]:
    """Loss, KL and gradient norm of two steps, whose completions and rewards depend on the number of the step alone."""
    logged = {"logging_strategy": "steps", "logging_steps": 1, "learning_rate": 1e-4}  # at 1e-6 the KL is rounding
    trainer = bench.build_trainer(setup, folder, 2, deepspeed=deepspeed, **logged)
    sample = trainer._generate_single_turn

    def fixed(*args: Any, **kwargs: Any) -> Any:
        sampled, _ = sample(*args, **kwargs)
        random.seed(trainer.state.global_step)  # of the reward too
        return [[random.randrange(200) for _ in ids] for ids in sampled], None  # bytes, no special tokens

    trainer._generate_single_turn = fixed  # type: ignore[method-assign]
    trainer.train()
    log = [entry for entry in trainer.state.log_history if "grad_norm" in entry]
    return {name: [entry[name] for entry in log] for name in ("loss", "kl", "grad_norm")}


# --- What the parts work on


@dataclass(frozen=True)
class Made:
    """A model in bfloat16 with random weights and TRL's head, and questions."""

    model: PreTrainedModel
    processor: ProcessorMixin
    questions: Sequence[AudioQuestion]
    inputs: ModelInputs

    @classmethod
    def of(cls, setup: Setup, folder: Path) -> Made:
        bench.prepare(setup, folder)
        model, processor = bench.random_model(setup, folder)
        prepare_for_sharing(model)
        add_fused_lm_head(model)
        inputs, questions = inputs_of(folder)
        return cls(model.eval(), processor, questions, inputs)

    def complete(self, tokens: int, **options: Any) -> Completions:
        """So many tokens for every row, from one seed."""
        config = sampling_config(self.model, self.processor, tokens)
        config.eos_token_id = self.model.config.text_config.vocab_size  # which no completion reaches
        torch.manual_seed(0)
        return complete(self.model.eval(), self.inputs, rows_of(self.inputs), config, **options)

    def sampled(self, tokens: int) -> Sampled:
        """The same, as the trainer hands them on."""
        completions, device, rows = self.complete(tokens), self.model.device, rows_of(self.inputs)
        prompts, pad = [self.inputs.prompt_ids[row] for row in rows.tolist()], self.processor.tokenizer.pad_token_id
        ids = torch.cat([pad_left(prompts, pad), torch.tensor(completions.token_ids)], dim=1)
        mask = torch.nn.functional.pad(attention_mask_left(prompts), (0, tokens), value=1)
        scored = Rollout(self.inputs, rows.to(device)), ids.to(device), mask.to(device), tokens, pad
        return Sampled(torch.tensor(completions.log_probs, device=device), scored)


@dataclass(frozen=True)
class Sampled:
    """Log-probabilities [N, C] of completions as they were sampled, and what `scoring` takes to score them."""

    log_probs: torch.Tensor
    scored: tuple[Any, ...]

    def score(self, model: PreTrainedModel, mode: str) -> torch.Tensor:
        """Log-probabilities [N, C] as training computes them."""
        return (score_shared if mode == SHARED else score_plain)(model.train(), *self.scored)[0]


def policy_loss(log_probs: torch.Tensor) -> torch.Tensor:
    """The policy gradient's, of [N, C], with advantages from -1 to 1 in each group."""
    advantages = torch.linspace(-1, 1, NUM_GENERATIONS, device=log_probs.device)
    return -(log_probs.unflatten(0, (-1, NUM_GENERATIONS)) * advantages[:, None]).mean()


def rows_of(inputs: ModelInputs) -> torch.Tensor:
    return torch.arange(len(inputs.prompt_ids)).repeat_interleave(NUM_GENERATIONS)


def inputs_of(folder: Path) -> tuple[ModelInputs, Sequence[AudioQuestion]]:
    questions = read_questions(folder / "manifest.jsonl").records
    return question_inputs(load_processor(folder / "model"), questions, PROMPT_STYLE), questions


def timed(work: Callable[[], Any], repeats: int = 1) -> float:
    """Seconds that `work` takes; of several repeats their mean, after one that does not count."""
    if repeats > 1:
        work()
    began = seconds()
    for _ in range(repeats):
        work()
    return (seconds() - began) / repeats
