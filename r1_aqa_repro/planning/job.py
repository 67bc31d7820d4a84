"""The job that a training configuration asks of every process."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from itertools import pairwise
from typing import Any

import torch
from transformers import PreTrainedConfig, Qwen2AudioConfig
from transformers.integrations.deepspeed import unset_hf_deepspeed_config
from trl import ModelConfig

from r1_aqa_repro.common.errors import Problem, Refused
from r1_aqa_repro.data.yaml_file import read_yaml
from r1_aqa_repro.model.audio_encoder import trimmed_length
from r1_aqa_repro.model.folder import check_settings_files, folder_of
from r1_aqa_repro.model.inputs import num_audio_tokens
from r1_aqa_repro.model.loading import MODEL_TYPE, TEXT_MODEL_TYPE, read_config
from r1_aqa_repro.planning.counting import Shapes, Task
from r1_aqa_repro.planning.geometries import KNOWN
from r1_aqa_repro.ppo.critic import check_ppo
from r1_aqa_repro.ppo.trainer import PPOConfig
from r1_aqa_repro.rewards.arguments import ANSWER_PROBABILITY, REWARD_MODEL
from r1_aqa_repro.run.arguments import batch_plan
from r1_aqa_repro.run.checks import check_reward_adapter
from r1_aqa_repro.run.config import (
    AudioGRPOConfig,
    AudioSFTConfig,
    JudgedKTOConfig,
    PairDPOConfig,
    RewardModelConfig,
    SharedPrefixGRPOConfig,
    TextGRPOConfig,
    TextRLOOConfig,
    TextSFTConfig,
    parse_config,
    parse_text_config,
)

PROMPT_TOKENS, CLIP_SECONDS = 351, 10.0  # AVQA's: 250 tokens of a 10-s clip and 101 of text
SFT_TARGET_TOKENS = 16  # an answer in its tags and the end of turn
TEXT_TOKENS = 512  # of a prompt, and of an answer that is given: no more than an assumption
FRAMES_A_SECOND = 100  # hop of 160 samples at 16 kHz
QUANTISABLE: tuple[Task, ...] = ("grpo", "sft")  # what trains an adapter on a base in 4 bits

Training = (
    SharedPrefixGRPOConfig
    | TextRLOOConfig
    | AudioSFTConfig
    | TextSFTConfig
    | PairDPOConfig
    | JudgedKTOConfig
    | RewardModelConfig
    | PPOConfig
)
# what trains which task; of two that know as many of a configuration's keys the first one is meant
_HEARING: dict[type[Any], Task] = {AudioGRPOConfig: "grpo", AudioSFTConfig: "sft"}
_READING: dict[type[Any], Task] = {
    TextGRPOConfig: "grpo", TextSFTConfig: "sft", PairDPOConfig: "dpo", RewardModelConfig: "reward", PPOConfig: "ppo",
    TextRLOOConfig: "rloo", JudgedKTOConfig: "kto",
}  # fmt: skip


@dataclass(frozen=True)
class Job:
    """What a training configuration asks of every process.

    prompts, completions: at once (SFT, KTO: both are the examples; DPO, reward model: pairs and their answers).
    accumulation: how often in a step.
    prompt_tokens: with the clip's `audio_tokens`. completion_tokens: of every completion (SFT: of the target).
    frames: log-mel frames encoded, trimmed or the whole window; 0 of text.
    trained_parts: as `freeze` takes it; of an adapter `all`.
    encodes_once: if the encoder is not trained, what it makes of a clip is kept for all the run.
    encoded: so it is: a step's clips are encoded once, and only in the first epoch.
    shared: one packed row a prompt; otherwise a row a completion, with a clip of its own.
    reference: the starting model's log-probabilities are needed: of a second model, or with the adapter switched off.
    optimizer_copy: the optimizer's step makes another copy of its parameters (AdamW without `fused`).
    reward_models: that score completions, each taken to be as large as the policy.
    answer_probability: the policy once more, over its completions with other answers, for the reward of this name.
    quantised: the base is held in 4 bits; nested: with their scales in 8.
    cuda_graphs: decoding replays its kernels instead of launching them.
    passes, updates: of PPO's rollout, how often it is learnt from, and the optimizer's steps in all of that.
    sampled: completions sampled at once, if they are not `completions`.
    entropy_gradient: PPO's loss has an entropy bonus.
    """

    task: Task
    model: PreTrainedConfig
    num_processes: int
    prompts: int
    completions: int
    accumulation: int
    prompt_tokens: int
    completion_tokens: int
    audio_tokens: int
    frames: int
    shared: bool
    reference: bool
    bf16: bool
    dtype: torch.dtype
    checkpointing: bool
    gather_for_generation: bool
    optimizer_copy: bool
    reward_models: int = 0
    answer_probability: bool = False
    quantised: bool = False
    nested: bool = False
    cuda_graphs: bool = False
    passes: int = 1
    updates: int = 1
    sampled: int | None = None
    entropy_gradient: bool = False
    trained_parts: str = "all"
    encodes_once: bool = False
    encoded: bool = False

    @property
    def generates(self) -> bool:
        return self.task in ("grpo", "rloo", "ppo")

    @property
    def rollout(self) -> Job:
        """The job with those completions at once that are sampled at once; the last time there may be fewer."""
        if self.sampled is None:
            return self
        of_step = self.accumulation * self.completions
        at_once = min(self.sampled, of_step)
        return replace(self, prompts=at_once, completions=at_once, accumulation=math.ceil(of_step / at_once))

    @property
    def loss_shapes(self) -> Shapes:
        """The forward of the policy (and of the reference)."""
        if self.shared:
            segments = self.completions // self.prompts * self.completion_tokens
            prefix, rows = self.prompt_tokens - 1, self.prompts
        else:
            segments, prefix, rows = self.completion_tokens, self.prompt_tokens, self.completions
        return self._shapes(rows, prefix, prefix + segments)

    @property
    def prefill_shapes(self) -> Shapes:
        """The forward over the prompts before anything is generated."""
        rows = self.prompts if self.shared else self.completions
        length = self.prompt_tokens - 1
        return self._shapes(rows, length, length)

    def _shapes(self, rows: int, prefix: int, row_tokens: int) -> Shapes:
        clips = rows if self.frames else 0
        return Shapes(rows, clips, self.frames, self.audio_tokens, prefix, row_tokens, self.encoded)

    @property
    def scored(self) -> int:
        """Positions at which the head is computed for the loss: of GRPO the completions', of SFT on audio the targets',
        of PPO one more of each, else all."""
        shapes = self.loss_shapes
        if not self.generates and not self.frames:
            return shapes.rows * shapes.row_tokens
        return self.completions * (self.completion_tokens + (self.task == "ppo"))


def read_training(path: str, overrides: Sequence[str]) -> tuple[Training, ModelConfig, PreTrainedConfig, str]:
    """The settings of a training configuration, whose kind is told by its keys and its model; the model's sizes, and
    where they are from.

    Raises:
        Refused: see `parse_as` and `model_config`; no model is named; what that training itself would refuse.
    """
    words = [part for name in overrides for part in name.split("=", 1)]
    given = {name[2:].replace("-", "_"): value for name, value in pairwise([*words, ""]) if name.startswith("--")}
    keys = read_yaml(path) | given
    name = keys.get("model_name_or_path")
    if name is None:
        raise Refused.because(path, "no model is named", "Give --model_name_or_path, a folder or hub id.")
    sizes, source = model_config(str(name))
    hears = isinstance(sizes, Qwen2AudioConfig)
    kinds, parse = (_HEARING, parse_config) if hears else (_READING, parse_text_config)
    kind = min(kinds, key=lambda each: len(keys.keys() - {own.name for own in fields(each)}))
    # bf16 is refused on a machine without a GPU, where a plan is made as well, and `auto` is meant for the GPUs
    precision = ["--bf16", "true"] if keys.get("bf16") == "auto" else []
    _, training, model = parse(kind, ["--config", path, *overrides, *precision, "--use_cpu", "true"])
    unset_hf_deepspeed_config()  # ZeRO-3 would shard the model that is only counted
    problems = check_ppo(training, model) if isinstance(training, PPOConfig) else []
    if isinstance(training, RewardModelConfig):
        problems += check_reward_adapter(model)
    if model.load_in_4bit and kinds[kind] not in QUANTISABLE:
        problems.append(Problem("load_in_4bit", "it is for GRPO and SFT", "Leave it out."))
    if problems:
        raise Refused(problems)
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
        completion_tokens: of every completion, `max_completion_length` (SFT on audio: `SFT_TARGET_TOKENS`, answers that
            are given to text: `TEXT_TOKENS`) unless given.

    Raises:
        Refused: the step does not divide among the processes; the prompt has no room for its clip; text with a clip.
    """
    hears = isinstance(config, Qwen2AudioConfig)
    batches, trimmed = 1, True
    if isinstance(training, SharedPrefixGRPOConfig | TextRLOOConfig):
        per_step, at_once = training.prompts_per_step, training.max_prompts_per_device
        shares = getattr(training, "sharing", "off") == "auto"  # RLOO is TRL's own
        of_task: dict[str, Any] = {
            "shared": shares,
            "reference": training.beta != 0,
            "gather_for_generation": training.ds3_gather_for_generation,
            "cuda_graphs": shares and training.cuda_graphs,
            "reward_models": 0 if hears else list(training.reward_funcs or ()).count(REWARD_MODEL),
            "answer_probability": ANSWER_PROBABILITY in (training.reward_funcs or ()),
        }
        generations, longest, trimmed = training.num_generations, training.max_completion_length, of_task["shared"]
    elif isinstance(training, PPOConfig):
        batches = training.num_mini_batches
        per_step, rest = divmod(training.prompts_per_step, batches)
        if rest:
            raise Refused.because("num_mini_batches", str(training.batch_problem), "Choose a divisor of it.")
        at_once = training.max_prompts_per_device
        of_task = {
            "shared": False,
            "reference": True,
            "gather_for_generation": True,
            "reward_models": training.reward_funcs.count(REWARD_MODEL),
            "passes": training.num_ppo_epochs,
            "updates": training.num_ppo_epochs * batches,
            "sampled": training.local_rollout_forward_batch_size,
            "entropy_gradient": training.entropy_coef != 0,
        }
        generations, longest = 1, training.max_completion_length
    else:
        per_step, at_once = training.examples_per_step, training.max_examples_per_device
        of_task = {
            "shared": False,
            "reference": not getattr(training, "precompute_ref_log_probs", True),  # of DPO and KTO
            "gather_for_generation": False,
        }
        generations = 1 + isinstance(training, PairDPOConfig | RewardModelConfig)
        longest = SFT_TARGET_TOKENS if hears else TEXT_TOKENS
    try:
        prompts, accumulation = batch_plan(per_step, at_once, num_processes)
    except ValueError as error:
        raise Refused.because("--gpus", str(error), "Choose a number that divides the step.") from error
    of_task |= (
        _of_clip(config, prompt_tokens, clip_seconds, trimmed) if hears else _of_text(prompt_tokens, clip_seconds)
    )
    return Job(
        **of_task,
        task=next(task for kind, task in (_HEARING | _READING).items() if isinstance(training, kind)),
        model=config,
        num_processes=num_processes,
        prompts=prompts,
        completions=prompts * generations,
        accumulation=accumulation * batches,
        completion_tokens=completion_tokens or longest,
        bf16=bool(training.bf16),
        dtype=getattr(torch, model.dtype) if model.dtype in ("bfloat16", "float16") else torch.float32,
        checkpointing=bool(training.activation_checkpointing or training.gradient_checkpointing),
        optimizer_copy=training.optim == "adamw_torch",
        quantised=model.load_in_4bit,
        nested=model.use_bnb_nested_quant,
        trained_parts=getattr(training, "trained_parts", "all"),
        encodes_once=hears and trimmed,
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
