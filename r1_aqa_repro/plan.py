"""Estimate, before a run is paid for, what its training step takes on given GPUs and which strategy fits.

    python -m r1_aqa_repro.plan --config configs/grpo_qwen2_audio_7b.yaml --gpus 8 --gpu-memory 80

reads a training configuration, builds its model without memory for the weights, and prints memory by part for one
process or DDP, ZeRO-2, ZeRO-3, ZeRO-3 with offload and LoRA, the strategy to use, and FLOPs and seconds a step. Needs
neither a GPU nor the weights. Further keys (`--num_generations 4`) override the file, as in training.

Exit codes: 0 done, also where nothing fits (the output says what would); 2 bad arguments or configuration.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftConfig
from rich.console import Console
from rich.table import Table
from transformers import AutoConfig, PreTrainedConfig, Qwen2AudioConfig
from transformers.integrations.deepspeed import unset_hf_deepspeed_config
from trl import ModelConfig, get_peft_config

from r1_aqa_repro.common.console import Options
from r1_aqa_repro.common.errors import EXIT_DONE, Refused, command
from r1_aqa_repro.common.files import write_json
from r1_aqa_repro.data.yaml_file import read_yaml
from r1_aqa_repro.model.loading import MODEL_TYPE
from r1_aqa_repro.planning.estimate import ENGINES, RESERVED, Job, Strategy, as_json, strategies
from r1_aqa_repro.planning.geometries import QWEN2_AUDIO_7B_INSTRUCT, qwen2_audio_7b_config
from r1_aqa_repro.run.arguments import batch_plan
from r1_aqa_repro.run.config import AudioGRPOConfig, AudioSFTConfig, parse_config

SFT_TARGET_TOKENS = 16  # an answer in its tags and the end of turn
FRAMES_A_TOKEN = 4
FRAMES_A_SECOND = 100  # hop of 160 samples at 16 kHz
_MARGIN_FRAMES = 2  # that trimming keeps behind the clip
# what LoRA adapts where a configuration says nothing: the language model's linear layers, as configs/sft_lora_*.yaml
_LORA_TARGETS = r".*language_model.*\.(q_proj|k_proj|v_proj|o_proj|gate_proj|up_proj|down_proj)"
# what to prefer where it fits: ZeRO-2 communicates as little as DDP, ZeRO-3 half as much again (arXiv 1910.02054,
# section 7), offloading moves every weight over PCIe as well, and LoRA trains something else
_PREFERENCE = ("zero2", "zero3", "zero3_offload", "ddp")
_COLUMNS = {
    "weights": "weights",
    "gradients": "gradients",
    "optimizer": "optimizer",
    "reference": "reference",
    "gathered": "gathered",
    "activations": "activations",
    "KV cache": "kv_cache",
    "logits": "logits",
}


@dataclass(frozen=True)
class Machine:
    """gpus: processes. gpu_bytes: of each. flops, bytes: a second, as they are reached."""

    gpus: int
    gpu_bytes: float
    flops_per_second: float
    bytes_per_second: float


@command
def main(argv: list[str]) -> int:
    """Run the command; returns its exit code."""
    arguments, overrides = _parser().parse_known_args(argv)
    machine = Machine(
        arguments.gpus,
        arguments.gpu_memory * 1e9,
        arguments.gpu_tflops * arguments.utilisation * 1e12,
        arguments.gpu_bandwidth * 1e12,
    )
    training, model = read_training(arguments.config, overrides)
    config, source = model_config(str(model.model_name_or_path))
    tokens = (arguments.prompt_tokens, arguments.clip_seconds, arguments.completion_tokens)
    job = make_job(training, model, config, machine.gpus, *tokens)
    peft_config = get_peft_config(model)
    adapters = [peft_config] if peft_config else [None, LoraConfig(target_modules=_LORA_TARGETS)]
    found = strategies(job, adapters)
    chosen = choose(found, machine)
    advice = recommend(chosen, job) if chosen else what_would_fit(job, adapters[0], machine)
    report = {
        "config": str(arguments.config),
        "model": source,
        "arguments": {name: value for name, value in vars(arguments).items() if name not in ("json", "config")},
        "step": {
            "prompts_at_once": job.prompts,
            "completions_at_once": job.completions,
            "accumulation": job.accumulation,
            "prompt_tokens": job.prompt_tokens,
            "completion_tokens": job.completion_tokens,
            "encoder_frames": job.frames,
        },
        "strategies": [
            as_json(strategy, job, machine.gpu_bytes)
            | {"seconds": strategy.work.seconds(machine.flops_per_second, machine.bytes_per_second)}
            for strategy in found
        ],
        "recommended": chosen.name(job.num_processes) if chosen else None,
        "advice": advice,
    }
    print_plan(report, found, chosen or found[0], job, machine)
    if arguments.json:
        write_json(arguments.json, report)
    return EXIT_DONE


def read_training(path: str, overrides: Sequence[str]) -> tuple[AudioGRPOConfig | AudioSFTConfig, ModelConfig]:
    """The settings of a GRPO or SFT configuration, which is told by its keys.

    Raises:
        Refused: see `parse_config`; no model is named.
    """
    sft = bool({"examples_per_step", "max_examples_per_device", "stop_at_loss"} & read_yaml(path).keys())
    kind: Any = AudioSFTConfig if sft else AudioGRPOConfig
    # bf16 is refused on a machine without a GPU, where a plan is made as well
    try:
        _, training, model = parse_config(kind, ["--config", path, *overrides, "--use_cpu", "true"])
    except Refused as refusal:
        only = "Only GRPO and SFT of Qwen2-Audio are planned."
        raise Refused([replace(each, remedy=f"{each.remedy} {only}") for each in refusal.problems]) from refusal
    unset_hf_deepspeed_config()  # ZeRO-3 would shard the model that is only counted
    if model.model_name_or_path is None:
        raise Refused.because(path, "no model is named", "Give --model_name_or_path, a Qwen2-Audio folder or hub id.")
    return training, model


def model_config(name_or_path: str) -> tuple[Qwen2AudioConfig, str]:
    """The model's configuration, and where it is from. The weights need not be there.

    Raises:
        Refused: it cannot be read, or is not a Qwen2-Audio's.
    """
    remedy = f"Give a Qwen2-Audio folder or hub id, such as {QWEN2_AUDIO_7B_INSTRUCT}."
    known = name_or_path == QWEN2_AUDIO_7B_INSTRUCT
    try:
        config: PreTrainedConfig = AutoConfig.from_pretrained(name_or_path, local_files_only=known)
    except (OSError, ValueError, KeyError) as error:
        if known:
            return qwen2_audio_7b_config(), f"{name_or_path} (its sizes as this project knows them: no copy is here)"
        what = f"no model can be read there ({str(error).splitlines()[0]})"
        raise Refused.because(name_or_path, what, remedy) from error
    if not isinstance(config, Qwen2AudioConfig):
        raise Refused.because(name_or_path, f"the model is a {config.model_type}, not a {MODEL_TYPE}", remedy)
    return config, name_or_path


def make_job(
    training: AudioGRPOConfig | AudioSFTConfig,
    model: ModelConfig,
    config: Qwen2AudioConfig,
    num_processes: int,
    prompt_tokens: int,
    clip_seconds: float,
    completion_tokens: int | None,
) -> Job:
    """What one of `num_processes` processes has to do.

    Raises:
        Refused: the step does not divide among the processes; the prompt has no room for its clip.
    """
    grpo = isinstance(training, AudioGRPOConfig)
    per_step, at_once = (
        (training.prompts_per_step, training.max_prompts_per_device)
        if isinstance(training, AudioGRPOConfig)
        else (training.examples_per_step, training.max_examples_per_device)
    )
    try:
        prompts, accumulation = batch_plan(per_step, at_once, num_processes)
    except ValueError as error:
        raise Refused.because("--gpus", str(error), "Choose a number that divides the step.") from error
    window = 2 * config.audio_config.max_source_positions
    clip_frames = min(math.ceil(clip_seconds * FRAMES_A_SECOND), window)
    audio_tokens = clip_frames // FRAMES_A_TOKEN
    if prompt_tokens <= audio_tokens:
        what = f"{prompt_tokens} tokens cannot hold the {audio_tokens} of a {clip_seconds:g}-s clip"
        raise Refused.because("--prompt-tokens", what, "Count the clip's tokens in, 25 a second.")
    shared = not grpo or training.sharing == "auto"
    trimmed = min(math.ceil((clip_frames + _MARGIN_FRAMES) / FRAMES_A_TOKEN) * FRAMES_A_TOKEN, window)
    dtype = getattr(torch, model.dtype) if model.dtype in ("bfloat16", "float16") else torch.float32
    return Job(
        task="grpo" if grpo else "sft",
        model=config,
        num_processes=num_processes,
        prompts=prompts,
        completions=prompts * (training.num_generations if isinstance(training, AudioGRPOConfig) else 1),
        accumulation=accumulation,
        prompt_tokens=prompt_tokens,
        completion_tokens=completion_tokens
        or (training.max_completion_length if isinstance(training, AudioGRPOConfig) else SFT_TARGET_TOKENS),
        audio_tokens=audio_tokens,
        frames=trimmed if shared else window,
        shared=isinstance(training, AudioGRPOConfig) and shared,
        reference=isinstance(training, AudioGRPOConfig) and training.beta != 0,
        bf16=bool(training.bf16),
        dtype=dtype,
        checkpointing=bool(training.activation_checkpointing or training.gradient_checkpointing),
        gather_for_generation=isinstance(training, AudioGRPOConfig) and training.ds3_gather_for_generation,
        optimizer_copy=training.optim == "adamw_torch",
    )


def choose(found: Sequence[Strategy], machine: Machine) -> Strategy | None:
    """The preferred strategy among those that fit; one that trains the whole model before any LoRA."""
    preference = ("ddp", *_PREFERENCE[:-1]) if machine.gpus == 1 else _PREFERENCE
    fitting = [strategy for strategy in found if strategy.fits(machine.gpu_bytes)]
    return min(fitting, key=lambda strategy: (strategy.lora, preference.index(strategy.engine)), default=None)


def recommend(chosen: Strategy, job: Job) -> str:
    """What to set for it, in one sentence."""
    setting = "no deepspeed key" if chosen.engine == "ddp" else f"deepspeed: configs/deepspeed/{chosen.engine}.json"
    lora = " and use_peft: true" if chosen.lora else ""
    return f"Use {chosen.name(job.num_processes)} ({setting}{lora}): {_gb(chosen.memory.peak)} GB a GPU at the peak."


def what_would_fit(job: Job, peft_config: PeftConfig | None, machine: Machine) -> str:
    """The first changes, each alone, then together, under which a strategy fits."""
    changes: dict[str, Job] = {}
    total = job.prompts * job.accumulation
    one_prompt = replace(job, prompts=1, completions=job.completions // job.prompts, accumulation=total)
    key = "max_prompts_per_device" if job.task == "grpo" else "max_examples_per_device"
    if job.prompts > 1:
        changes[f"{key}: 1"] = one_prompt
    if not job.checkpointing:
        changes["activation_checkpointing: true"] = replace(job, checkpointing=True)
        if job.prompts > 1:
            changes[f"{key}: 1 and activation_checkpointing: true"] = replace(one_prompt, checkpointing=True)
    for factor in (2, 4, 8):
        changes[f"{factor * machine.gpus} GPUs"] = replace(job, num_processes=factor * machine.gpus)
    adapters = [peft_config] if peft_config else [None, LoraConfig(target_modules=_LORA_TARGETS)]
    would = []
    for change, changed in changes.items():
        chosen = choose(strategies(changed, adapters, ENGINES[1:]), machine)
        if chosen:
            would.append(f"{change} with {chosen.name(changed.num_processes)} ({_gb(chosen.memory.peak)} GB)")
    what = "; ".join(would) if would else "none of fewer prompts at once, checkpointing, or eight times the GPUs"
    return f"Nothing fits in {machine.gpu_bytes / 1e9:g} GB a GPU. What would: {what}."


def print_plan(report: dict[str, Any], found: Sequence[Strategy], shown: Strategy, job: Job, machine: Machine) -> None:
    """The table, the recommendation, and the step of `shown` by part."""
    console = Console(soft_wrap=True)
    step = report["step"]
    console.print(f"model: {report['model']}, {shown.parameters.total / 1e9:.2f} G parameters", highlight=False)
    console.print(
        f"step: {machine.gpus} x ({job.prompts} prompts, {job.completions} sequences, {job.accumulation} times), "
        f"{step['prompt_tokens']} + {step['completion_tokens']} tokens, {step['encoder_frames']} frames encoded",
        highlight=False,
    )
    table = Table(title="Estimated GB (1e9 bytes) on each GPU", box=None, pad_edge=False)
    table.add_column("strategy", no_wrap=True)
    for column in (*_COLUMNS, "peak", "fits", "CPU memory"):
        table.add_column(column, justify="right")
    for strategy in found:
        memory = strategy.memory
        values = {name: getattr(memory, name) for name in _COLUMNS.values()}
        values["gathered"] = max(memory.gathered, memory.gathered_to_generate)
        values["logits"] = max(memory.logits, memory.sampling)
        fits = "yes" if strategy.fits(machine.gpu_bytes) else "no"
        parts = [_gb(value) for value in values.values()]
        table.add_row(strategy.name(job.num_processes), *parts, _gb(memory.peak), fits, _gb(memory.host))
    Console(width=150).print(table)
    console.print(
        f"peak: what is held (weights to reference) and the larger of generation, loss and optimizer step, which don't "
        f"overlap; fits: it leaves {RESERVED:.0%} of {machine.gpu_bytes / 1e9:g} GB free.",
        highlight=False,
    )
    console.print(f"\n{report['advice']}", highlight=False)
    seconds = shown.work.seconds(machine.flops_per_second, machine.bytes_per_second)
    arguments = report["arguments"]
    console.print(
        f"\nA step of {shown.name(job.num_processes)}, on each GPU, at {arguments['utilisation']:.0%} of "
        f"{arguments['gpu_tflops']:g} TFLOP/s and {arguments['gpu_bandwidth']:g} TB/s:",
        highlight=False,
    )
    for part, count in shown.work.flops.items():
        console.print(f"  {part:<10} {count / 1e12:10.3g} TFLOP {seconds[part]:10.3g} s", highlight=False)
    total = sum(shown.work.flops.values())
    console.print(f"  {'all':<10} {total / 1e12:10.3g} TFLOP {sum(seconds.values()):10.3g} s", highlight=False)
    console.print(
        "These are estimates: FLOPs are counted, seconds follow from the utilisation assumed. Communication, "
        "offloading, rewards and audio decoding are left out; completions are taken at their longest.",
        highlight=False,
    )


def _gb(size: float) -> str:
    return f"{size / 1e9:.3g}" if size < 1e9 else f"{size / 1e9:.1f}"


def _parser() -> Options:
    parser = Options(__doc__, "python -m r1_aqa_repro.plan")
    add = parser.add_argument
    add("--config", required=True, metavar="FILE", help="YAML of a GRPO or SFT run on audio")
    add("--gpus", type=_count, required=True, metavar="N", help="GPUs, one process each")
    add("--gpu-memory", "--gpu_memory", type=_positive, required=True, metavar="GB", help="of one GPU, in 1e9 bytes")
    add("--prompt-tokens", "--prompt_tokens", type=_count, default=351, metavar="N",
        help="of a prompt with its clip (default: 351: 250 of a 10-s clip, 101 of text)")  # fmt: skip
    add("--clip-seconds", "--clip_seconds", type=_positive, default=10.0, metavar="S", help="default: 10, as AVQA's")
    add("--completion-tokens", "--completion_tokens", type=_count, metavar="N",
        help=f"default: max_completion_length (SFT: {SFT_TARGET_TOKENS})")  # fmt: skip
    add("--gpu-tflops", "--gpu_tflops", type=_positive, default=989.0, metavar="T",
        help="its peak (default: 989, dense bfloat16 in NVIDIA's data sheets of H100 SXM and H200)")  # fmt: skip
    add("--utilisation", type=_fraction, default=0.4, metavar="F", help="of that peak which is reached (default: 0.4)")
    add("--gpu-bandwidth", "--gpu_bandwidth", type=_positive, default=3.35, metavar="TB/S",
        help="memory bandwidth of one GPU (default: 3.35, H100 SXM; H200: 4.8)")  # fmt: skip
    add("--json", type=Path, metavar="FILE", help="write the plan here as well")
    return parser


def _count(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text} is not a positive number")
    return number


def _positive(text: str) -> float:
    number = float(text)
    if not 0 < number < math.inf:
        raise argparse.ArgumentTypeError(f"{text} is not a positive number")
    return number


def _fraction(text: str) -> float:
    number = _positive(text)
    if number > 1:
        raise argparse.ArgumentTypeError(f"{text} is more than 1")
    return number


if __name__ == "__main__":
    main()
