"""The job that a training configuration asks of every process."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any

import torch
from transformers import PreTrainedConfig, Qwen2AudioConfig
from transformers.integrations.deepspeed import unset_hf_deepspeed_config
from trl import ModelConfig

from r1_aqa_repro.common.errors import Refused
from r1_aqa_repro.data.yaml_file import read_yaml
from r1_aqa_repro.model.audio_encoder import trimmed_length
from r1_aqa_repro.model.folder import check_settings_files, folder_of
from r1_aqa_repro.model.inputs import num_audio_tokens
from r1_aqa_repro.model.loading import MODEL_TYPE, TEXT_MODEL_TYPE, read_config
from r1_aqa_repro.planning.estimate import Job
from r1_aqa_repro.planning.geometries import KNOWN
from r1_aqa_repro.run.arguments import batch_plan
from r1_aqa_repro.run.config import (
    AudioGRPOConfig,
    AudioSFTConfig,
    PairDPOConfig,
    SharedPrefixGRPOConfig,
    TextGRPOConfig,
    TextSFTConfig,
    parse_config,
    parse_text_config,
)

PROMPT_TOKENS, CLIP_SECONDS = 351, 10.0  # AVQA's: 250 tokens of a 10-s clip and 101 of text
SFT_TARGET_TOKENS = 16  # an answer in its tags and the end of turn
TEXT_TOKENS = 512  # of a prompt, and of an answer that is given: no more than an assumption
FRAMES_A_SECOND = 100  # hop of 160 samples at 16 kHz
EXAMPLES = {"examples_per_step", "max_examples_per_device", "stop_at_loss"}
PAIRS = {"beta", "precompute_ref_log_probs", "label_smoothing"}  # beside examples: DPO
OTHERS = {"kl_coef", "num_mini_batches", "vf_coef", "cliprange", "center_rewards_coefficient"}

Training = SharedPrefixGRPOConfig | AudioSFTConfig | TextSFTConfig | PairDPOConfig


def read_training(path: str, overrides: Sequence[str]) -> tuple[Training, ModelConfig, PreTrainedConfig, str]:
    """The settings of a GRPO, SFT or DPO configuration, which is told by its keys and its model; the model's sizes, and
    where they are from.

    Raises:
        Refused: see `parse_as` and `model_config`; no model is named; a configuration of something else.
    """
    words = [part for name in overrides for part in name.split("=", 1)]
    keys = read_yaml(path) | {name[2:]: value for name, value in pairwise([*words, ""]) if name.startswith("--")}
    name = keys.get("model_name_or_path")
    if name is None:
        raise Refused.because(path, "no model is named", "Give --model_name_or_path, a folder or hub id.")
    sizes, source = model_config(str(name))
    only = "Only GRPO, SFT and DPO are planned."
    if keys.keys() & OTHERS:
        raise Refused.because(path, f"{min(keys.keys() & OTHERS)} is a key of PPO or of a reward model", only)
    examples, pairs = bool(keys.keys() & EXAMPLES), bool(keys.keys() & PAIRS)
    hears = isinstance(sizes, Qwen2AudioConfig)
    kind: Any = (AudioSFTConfig if hears else PairDPOConfig if pairs else TextSFTConfig) if examples else None
    kind = kind or (AudioGRPOConfig if hears else TextGRPOConfig)
    try:
        # bf16 is refused on a machine without a GPU, where a plan is made as well
        parse: Any = parse_config if hears else parse_text_config
        _, training, model = parse(kind, ["--config", path, *overrides, "--use_cpu", "true"])
    except Refused as refusal:
        raise Refused([replace(each, remedy=f"{each.remedy} {only}") for each in refusal.problems]) from refusal
    unset_hf_deepspeed_config()  # ZeRO-3 would shard the model that is only counted
    return training, model, sizes, source


def model_config(name_or_path: str) -> tuple[PreTrainedConfig, str]:
    """The model's configuration, and where it is from. The weights need not be there.

    Raises:
        Refused: it cannot be read, or is neither a Qwen2-Audio's nor a Qwen2's.
    """
    remedy = f"Give a folder or hub id, such as {' or '.join(KNOWN)}."
    folder, known = folder_of(name_or_path), name_or_path in KNOWN
    if folder is not None:
        check_settings_files(folder)
    try:
        config = read_config(name_or_path, (MODEL_TYPE, TEXT_MODEL_TYPE), remedy, local_files_only=known)
    except Refused:
        if known and folder is None:
            return KNOWN[name_or_path](), f"{name_or_path} (its sizes as this project knows them: no copy is here)"
        raise
    return config, name_or_path


def make_job(
    training: Training,
    model: ModelConfig,
    config: PreTrainedConfig,
    num_processes: int,
    prompt_tokens: int | None,
    clip_seconds: float | None,
    completion_tokens: int | None,
) -> Job:
    """What one of `num_processes` processes has to do.

    Args:
        training, model: the settings.
        config: of the model.
        num_processes: one a GPU.
        prompt_tokens: of a prompt with its clip, `PROMPT_TOKENS` (text: `TEXT_TOKENS`) unless given.
        clip_seconds: length of a clip, `CLIP_SECONDS` unless given.
        completion_tokens: of every completion, `max_completion_length` (SFT on audio: `SFT_TARGET_TOKENS`, answers to
            text: `TEXT_TOKENS`) unless given.

    Raises:
        Refused: the step does not divide among the processes; the prompt has no room for its clip; text with a clip.
    """
    hears = isinstance(config, Qwen2AudioConfig)
    if isinstance(training, SharedPrefixGRPOConfig):
        per_step, at_once = training.prompts_per_step, training.max_prompts_per_device
        of_task: dict[str, Any] = {
            "task": "grpo",
            "shared": training.sharing == "auto",
            "reference": training.beta != 0,
            "gather_for_generation": training.ds3_gather_for_generation,
            "cuda_graphs": training.cuda_graphs and training.sharing == "auto",
            "reward_models": 0 if hears else list(training.reward_funcs or ()).count("reward_model"),
        }
        generations, longest, trimmed = training.num_generations, training.max_completion_length, of_task["shared"]
    else:
        pairs = isinstance(training, PairDPOConfig)
        per_step, at_once = training.examples_per_step, training.max_examples_per_device
        of_task = {
            "task": "sft",
            "shared": False,
            "reference": pairs and not training.precompute_ref_log_probs,
            "gather_for_generation": False,
        }
        generations, longest, trimmed = 1 + pairs, SFT_TARGET_TOKENS if hears else TEXT_TOKENS, True
    try:
        prompts, accumulation = batch_plan(per_step, at_once, num_processes)
    except ValueError as error:
        raise Refused.because("--gpus", str(error), "Choose a number that divides the step.") from error
    of_task |= (
        _of_clip(config, prompt_tokens, clip_seconds, trimmed) if hears else _of_text(prompt_tokens, clip_seconds)
    )
    return Job(
        **of_task,
        model=config,
        num_processes=num_processes,
        prompts=prompts,
        completions=prompts * generations,
        accumulation=accumulation,
        completion_tokens=completion_tokens or longest,
        bf16=bool(training.bf16),
        dtype=getattr(torch, model.dtype) if model.dtype in ("bfloat16", "float16") else torch.float32,
        checkpointing=bool(training.activation_checkpointing or training.gradient_checkpointing),
        optimizer_copy=training.optim == "adamw_torch",
        quantised=model.load_in_4bit,
        nested=model.use_bnb_nested_quant,
    )


def _of_clip(
    config: Qwen2AudioConfig, prompt_tokens: int | None, clip_seconds: float | None, trimmed: bool
) -> dict[str, int]:
    window = 2 * config.audio_config.max_source_positions
    seconds, prompt_tokens = clip_seconds or CLIP_SECONDS, prompt_tokens or PROMPT_TOKENS
    clip_frames = min(math.ceil(seconds * FRAMES_A_SECOND), window)
    audio_tokens = int(num_audio_tokens(torch.ones(clip_frames)))
    if prompt_tokens <= audio_tokens:
        what = f"{prompt_tokens} tokens cannot hold the {audio_tokens} of a {seconds:g}-s clip"
        raise Refused.because("--prompt-tokens", what, "Count the clip's tokens in, 25 a second.")
    frames = trimmed_length(clip_frames, window) if trimmed else window
    return {"prompt_tokens": prompt_tokens, "audio_tokens": audio_tokens, "frames": frames}


def _of_text(prompt_tokens: int | None, clip_seconds: float | None) -> dict[str, int]:
    if clip_seconds is not None:
        raise Refused.because("--clip-seconds", "the model reads text alone", "Leave it out.")
    return {"prompt_tokens": prompt_tokens or TEXT_TOKENS, "audio_tokens": 0, "frames": 0}
