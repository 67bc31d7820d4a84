"""The job that a training configuration asks of every process."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from transformers import AutoConfig, PreTrainedConfig, Qwen2AudioConfig
from transformers.integrations.deepspeed import unset_hf_deepspeed_config
from trl import ModelConfig

from r1_aqa_repro.common.errors import Refused
from r1_aqa_repro.data.yaml_file import read_yaml
from r1_aqa_repro.model.audio_encoder import trimmed_length
from r1_aqa_repro.model.inputs import num_audio_tokens
from r1_aqa_repro.model.loading import MODEL_TYPE
from r1_aqa_repro.planning.estimate import Job
from r1_aqa_repro.planning.geometries import QWEN2_AUDIO_7B_INSTRUCT, qwen2_audio_7b_config
from r1_aqa_repro.run.arguments import batch_plan
from r1_aqa_repro.run.config import AudioGRPOConfig, AudioSFTConfig, parse_config

SFT_TARGET_TOKENS = 16  # an answer in its tags and the end of turn
FRAMES_A_SECOND = 100  # hop of 160 samples at 16 kHz


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

    Args:
        training, model: the settings.
        config: of the model.
        num_processes: one a GPU.
        prompt_tokens: of a prompt with its clip.
        clip_seconds: length of a clip.
        completion_tokens: of every completion, `max_completion_length` (SFT: `SFT_TARGET_TOKENS`) unless given.

    Raises:
        Refused: the step does not divide among the processes; the prompt has no room for its clip.
    """
    if isinstance(training, AudioGRPOConfig):
        per_step, at_once = training.prompts_per_step, training.max_prompts_per_device
        of_task: dict[str, Any] = {
            "task": "grpo",
            "shared": training.sharing == "auto",
            "reference": training.beta != 0,
            "gather_for_generation": training.ds3_gather_for_generation,
        }
        generations, longest, trimmed = training.num_generations, training.max_completion_length, of_task["shared"]
    else:
        per_step, at_once = training.examples_per_step, training.max_examples_per_device
        of_task = {"task": "sft", "shared": False, "reference": False, "gather_for_generation": False}
        generations, longest, trimmed = 1, SFT_TARGET_TOKENS, True
    try:
        prompts, accumulation = batch_plan(per_step, at_once, num_processes)
    except ValueError as error:
        raise Refused.because("--gpus", str(error), "Choose a number that divides the step.") from error
    window = 2 * config.audio_config.max_source_positions
    clip_frames = min(math.ceil(clip_seconds * FRAMES_A_SECOND), window)
    audio_tokens = int(num_audio_tokens(torch.ones(clip_frames)))
    if prompt_tokens <= audio_tokens:
        what = f"{prompt_tokens} tokens cannot hold the {audio_tokens} of a {clip_seconds:g}-s clip"
        raise Refused.because("--prompt-tokens", what, "Count the clip's tokens in, 25 a second.")
    return Job(
        **of_task,
        model=config,
        num_processes=num_processes,
        prompts=prompts,
        completions=prompts * generations,
        accumulation=accumulation,
        prompt_tokens=prompt_tokens,
        completion_tokens=completion_tokens or longest,
        audio_tokens=audio_tokens,
        frames=trimmed_length(clip_frames, window) if trimmed else window,
        bf16=bool(training.bf16),
        dtype=getattr(torch, model.dtype) if model.dtype in ("bfloat16", "float16") else torch.float32,
        checkpointing=bool(training.activation_checkpointing or training.gradient_checkpointing),
        optimizer_copy=training.optim == "adamw_torch",
    )
