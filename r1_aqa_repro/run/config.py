"""Configuration of the training entry points: `arguments` on top of TRL's, filled from a YAML file and the command
line."""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, fields
from itertools import pairwise
from types import NoneType, UnionType
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

import torch
from transformers import TrainingArguments
from transformers.utils import is_torch_bf16_gpu_available
from trl import DPOConfig, GRPOConfig, KTOConfig, ModelConfig, RewardConfig, RLOOConfig, SFTConfig, TrlParser

from r1_aqa_repro.common.console import LARGEST, say
from r1_aqa_repro.common.distributed import is_main_process
from r1_aqa_repro.common.errors import Problem, Refused, collecting
from r1_aqa_repro.common.files import read_json
from r1_aqa_repro.data.yaml_file import read_yaml
from r1_aqa_repro.model.text_loading import TextModelConfig
from r1_aqa_repro.run.arguments import (
    AudioGRPOArguments,
    AudioSFTArguments,
    DataArguments,
    DPOArguments,
    GRPOArguments,
    RewardModelArguments,
    RLOOArguments,
    TextExampleArguments,
    TextGRPOArguments,
    TextRunArguments,
)

Training = TypeVar("Training", bound=TrainingArguments)


@dataclass
class SharedPrefixGRPOConfig(GRPOArguments, GRPOConfig):
    """TRL's GRPOConfig; `per_device_train_batch_size`, `gradient_accumulation_steps` and `steps_per_generation` are
    derived."""


@dataclass
class AudioGRPOConfig(AudioGRPOArguments, SharedPrefixGRPOConfig):
    """GRPO on audio questions."""

    def __post_init__(self) -> None:
        if self.eval_file is not None:
            self.num_generations_eval = 1  # TRL's own evaluation never runs: its rule for batches need not hold
        super().__post_init__()


@dataclass
class AudioSFTConfig(AudioSFTArguments, TrainingArguments):
    """transformers' TrainingArguments for supervised fine-tuning on audio questions."""

    def __post_init__(self) -> None:
        self.remove_unused_columns = False  # the collator reads the questions themselves
        super().__post_init__()


@dataclass
class TextSFTConfig(TextExampleArguments, SFTConfig):
    """TRL's SFTConfig for prompts with a completion to imitate."""


@dataclass
class RewardModelConfig(RewardModelArguments, RewardConfig):
    """TRL's RewardConfig; an example is a pair."""


@dataclass
class PairDPOConfig(DPOArguments, DPOConfig):
    """TRL's DPOConfig; an example is a pair."""


@dataclass
class JudgedKTOConfig(TextExampleArguments, KTOConfig):
    """TRL's KTOConfig; an example is a judged answer."""


@dataclass
class TextRLOOConfig(RLOOArguments, RLOOConfig):
    """TRL's RLOOConfig; batch sizes are derived as GRPO's."""


@dataclass
class TextGRPOConfig(TextGRPOArguments, SharedPrefixGRPOConfig):
    """GRPO on text prompts."""


_TRUE = ("yes", "true", "t", "y", "1")  # as transformers reads a text
_DERIVED = (
    "per_device_train_batch_size",
    "gradient_accumulation_steps",
    "steps_per_generation",
    "generation_batch_size",
)


def parse_config(training_type: type[Training], argv: Sequence[str]) -> tuple[DataArguments, Training, ModelConfig]:
    """The configuration of an entry point that trains on audio questions, see `parse_as`."""
    data, training, model = parse_as((DataArguments, training_type, ModelConfig), argv)
    return data, training, model


def parse_text_config(
    training_type: type[Training], argv: Sequence[str]
) -> tuple[TextRunArguments, Training, TextModelConfig]:
    """The configuration of an entry point that trains on text, see `parse_as`."""
    data, training, model = parse_as((TextRunArguments, training_type, TextModelConfig), argv)
    return data, training, model


def parse_as(types: Sequence[type], argv: Sequence[str]) -> tuple[Any, ...]:
    """`--config FILE` and `--key value` pairs as these dataclasses; the command line overrides the file.

    `bf16: auto` is true where the machine computes in bfloat16 by itself (`has_bf16`); the configuration holds what it
    came to.

    Raises:
        Refused: an unreadable file, an unknown key, a derived key, or a value that does not fit.
    """
    argv = [part for name in argv for part in (name.split("=", 1) if name.startswith("--config=") else [name])]
    argv = ["--help" if part == "--help-all" else part for part in argv]
    where = "command line"
    content: dict[str, Any] = {}
    if "--config" in argv:
        position = argv.index("--config") + 1
        if position == len(argv):
            raise Refused.because(where, "--config has no value", "Give a YAML file.")
        where = argv[position]
        content = read_yaml(where)
    typed = _typed(argv)
    if typed.get("bf16", [content.get("bf16")]) == ["auto"]:
        argv = _with_precision_of_machine(argv, typed.get("use_cpu", [content.get("use_cpu", False)]))
    derived = sorted((typed.keys() | content.keys()) & set(_DERIVED))
    if derived:
        remedy = "Set prompts_per_step and max_prompts_per_device (or examples_per_step and max_examples_per_device)."
        raise Refused.because(where, f"{', '.join(derived)} cannot be set: it is derived", remedy)
    problems = _check_values(content, types, where) + _check_typed(typed, types)
    with collecting(problems):
        given = "".join(typed["deepspeed"]) if "deepspeed" in typed else content.get("deepspeed")
        problems += _check_deepspeed(given, where)
    if problems:
        raise Refused(problems)
    parser = TrlParser(list(types), allow_abbrev=False, exit_on_error=False)
    try:
        return parser.parse_args_and_config(argv)
    except SystemExit as error:  # argparse has printed what is wrong
        if error.code:
            raise Refused.because(where, "an argument does not fit (see above)", "--help-all lists them all.") from None
        raise
    except (argparse.ArgumentError, ValueError, TypeError, OSError) as error:
        raise Refused.because(
            where, str(error).rstrip("."), "Correct the key or its value; --help-all lists them all."
        ) from error


_LARGEST = {int: LARGEST, float: float(torch.finfo(torch.float32).max)}  # of what every library takes


@dataclass(frozen=True)
class Range:
    """Which numbers a key takes: from `low` to `high`, without `low` itself if `above`, or `also` this one."""

    low: float = -math.inf
    high: float = math.inf
    above: bool = False
    also: int | None = None

    def __contains__(self, number: float) -> bool:  # of NaN nothing is true
        least = self.low < number if self.above else self.low <= number
        return number == self.also or (least and number <= self.high)

    def told(self, kind: type) -> str:
        """As a message says it, for a key of this type."""
        also = "" if self.also is None else f"{self.also}, or "
        least = "" if self.low == -math.inf else f" {'above' if self.above else 'from'} {self.low:g}"
        most = min(self.high, _LARGEST[kind])
        return f"{also}{_ACCEPTED[kind][1]}{least}{f' to {most:,}' if most < _LARGEST[float] else ''}"


_FROM_0, _FROM_1, _POSITIVE = Range(0), Range(1), Range(0, above=True)
_SHARE, _PART = Range(0, 1), Range(0, 1, above=True)
# by key, the library's own among them; of any other key only that a number is finite and no larger than libraries take
_RANGES: dict[str, Range] = {
    key: allowed
    for allowed, keys in (
        (
            _FROM_1,
            (
                "prompts_per_step", "max_prompts_per_device", "examples_per_step", "max_examples_per_device",
                "num_generations_eval", "num_iterations", "num_ppo_epochs", "num_mini_batches",
                "per_device_eval_batch_size", "eval_limit", "local_rollout_forward_batch_size",
                "length_penalty_cache", "horizon", "lora_r", "lora_alpha", "dataset_num_proc",
                "dataloader_prefetch_factor", "ddp_timeout", "ddp_bucket_cap_mb", "eval_accumulation_steps",
                "torch_empty_cache_steps", "ref_model_sync_steps", "precompute_ref_batch_size",
                "std_filter_ema_start_step", "std_filter_start_step", "code_memory_mb",
            ),
        ),
        (
            _FROM_0,
            (
                "learning_rate", "critic_learning_rate", "encoder_learning_rate", "projector_learning_rate",
                "contribution_weight", "seed", "data_seed",
                "save_steps", "eval_steps", "eval_delay", "save_total_limit", "warmup_steps", "top_k",
                "dynamic_sampling", "max_bad_clips", "dataloader_num_workers", "num_completions_to_print",
                "weight_decay", "max_grad_norm", "adam_epsilon", "beta", "epsilon", "epsilon_high", "delta", "kl_coef",
                "vf_coef", "missing_eos_penalty", "neftune_noise_alpha", "center_rewards_coefficient",
                "std_filter_beta", "off_policy_mask_threshold", "discopop_tau", "router_aux_loss_coef",
                "desirable_weight", "undesirable_weight",
            ),
        ),
        (
            _POSITIVE,
            (
                "num_train_epochs", "logging_steps", "temperature", "repetition_penalty", "cliprange",
                "cliprange_value", "relative_tau", "target_kl", "save_on_signal", "code_timeout",
                "sapo_temperature_neg", "sapo_temperature_pos",
            ),
        ),
        (
            _SHARE,
            (
                "adam_beta1", "adam_beta2", "min_p", "lora_dropout", "gamma", "lam", "label_smoothing",
                "label_smoothing_factor", "top_entropy_quantile", "ref_model_mixup_alpha", "ld_alpha",
                "std_filter_ema_ratio",
            ),
        ),
        (_PART, ("top_p", "advantage_top_fraction")),
        (Range(1, 2**20), ("max_completion_length", "max_length")),
        (Range(2), ("num_generations",)),
        (Range(1, also=-1), ("max_steps",)),
    )
    for key in keys
}  # fmt: skip


# what YAML may read for a key of this type, and how to say so; argparse parses the texts among them
_ACCEPTED: dict[Any, tuple[tuple[type, ...], str]] = {
    int: ((int, str), "an integer"),
    float: ((float, int, str), "a finite number"),
    bool: ((bool, str), "true or false"),
    list: ((list,), "a list"),
}


def _check_values(content: dict[str, Any], types: Sequence[type], where: str) -> list[Problem]:
    """Problems that argparse misses: a file's values become defaults, of which it checks only the texts."""
    hints = _hints(types)
    choices: dict[str, Sequence[str]] = {
        item.name: item.metadata.get("choices") or () for type_ in types for item in fields(type_)
    }
    problems = []
    for key in sorted(content.keys() & hints.keys()):
        value, hint = content[key], hints[key]
        members = set(get_args(hint)) if isinstance(hint, UnionType) else {hint}
        if value is None and NoneType in members:
            continue
        members.discard(NoneType)
        kind = members.pop()
        accepted, name = _ACCEPTED.get(get_origin(kind) or kind, ((), ""))
        if choices[key]:
            if value not in choices[key] and not (value is False and "off" in choices[key]):
                problems.append(Problem(where, f"{key} is {value!r}", f"Choose among {', '.join(choices[key])}."))
        elif accepted and not members and type(value) not in accepted:
            problems.append(Problem(where, f"{key} is {value!r}", f"Give {name}."))
        else:
            problems += _check_numbers(key, value, where, None if members else kind)
    return problems


def has_bf16(on_cpu: bool) -> bool:
    """Whether products of bfloat16 are one instruction here, so that they are faster than float32's: on the GPU, or on
    a CPU with AVX512_BF16 or AMX."""
    if on_cpu:
        found = torch.cpu.get_capabilities()
        return bool(found.get("avx512_bf16") or found.get("amx_bf16"))
    return torch.cuda.is_bf16_supported(False) if torch.cuda.is_available() else is_torch_bf16_gpu_available()


def _with_precision_of_machine(argv: Sequence[str], use_cpu: Sequence[Any]) -> list[str]:
    """The command line with what `bf16: auto`, in it or in the file, means here; given is the value of `use_cpu`.

    Without a GPU transformers takes bf16 beside `use_cpu` alone.
    """
    on_cpu = not torch.accelerator.is_available() or use_cpu == [] or str(use_cpu[0]).lower() in _TRUE
    found = str(has_bf16(on_cpu)).lower()
    if is_main_process():
        say(f"bf16: auto is {found} on this {'CPU' if on_cpu else 'GPU'}")
    others = [
        part
        for before, part in pairwise(["", *argv])
        if part != "--bf16" and not part.startswith("--bf16=") and (before != "--bf16" or part.startswith("--"))
    ]
    return [*others, "--bf16", found, *(["--use_cpu", "true"] if on_cpu else [])]


def _hints(types: Sequence[type]) -> dict[str, Any]:
    return {name: hint for type_ in types for name, hint in get_type_hints(type_).items()}


def _typed(argv: Sequence[str]) -> dict[str, list[str]]:
    """The values on a command line by key, as they were typed."""
    typed: dict[str, list[str]] = {}
    for part in argv:
        if part.startswith("--"):
            key, _, value = part[2:].partition("=")
            values = typed[key.replace("-", "_")] = [value] if value else []
        elif typed:
            values.append(part)
    return typed


def _check_typed(typed: Mapping[str, Sequence[str]], types: Sequence[type]) -> list[Problem]:
    """Problems of the numbers on a command line. They are found before the configuration is built, which would count
    with them."""
    problems, hints = [], _hints(types)
    for key in sorted(typed.keys() & hints.keys()):
        members = set(get_args(hints[key])) if isinstance(hints[key], UnionType) else {hints[key]}
        members.discard(NoneType)
        if len(members) == 1:
            problems += _check_numbers(key, typed[key], "command line", members.pop())
    return problems


def _check_numbers(key: str, value: Any, where: str, kind: Any) -> list[Problem]:
    """A problem if the value of a key of this type holds something other than the numbers that the key takes."""
    wanted = get_args(kind)[0] if get_origin(kind) is list else kind
    allowed = _RANGES.get(key, Range())
    for one in _flat(value):
        number = one
        if isinstance(one, str) and wanted in _LARGEST:
            with suppress(ValueError):
                number = wanted(one)
        if wanted in _LARGEST and type(number) not in (int, wanted):
            return [Problem(where, f"{key} is {one!r:.80}", f"Give {_ACCEPTED[wanted][1]}.")]
        if type(number) in _LARGEST:
            of = wanted if wanted in _LARGEST else float
            if number not in allowed or not -_LARGEST[of] <= number <= _LARGEST[of]:
                return [Problem(where, f"{key} is {one!s:.80}", f"Give {allowed.told(of)}.")]
    return []


_DEEPSPEED = "Give a JSON file with DeepSpeed's settings, or '' for none."
_SECTIONS = (
    "zero_optimization",
    "offload_optimizer",
    "offload_param",
    "bf16",
    "fp16",
    "optimizer",
    "scheduler",
    "params",
)


def _check_deepspeed(given: Any, where: str) -> list[Problem]:
    """Problems of DeepSpeed's settings: transformers takes any text for JSON or base64, and asks whatever comes of it
    for its sections.

    Raises:
        Refused: what is given is no file that holds a JSON object, nor, in YAML, a mapping.
    """
    if given is None or given == "":  # on a command line: without the file of the config
        return []
    if not isinstance(given, str | dict):
        raise Refused.because(where, f"deepspeed is {given!r:.80}, no file", _DEEPSPEED)
    where, settings = (given, read_json(given, _DEEPSPEED)) if isinstance(given, str) else (where, given)
    wrong = [
        f"{key} is {value!r:.80}, no mapping"
        for key, value in _keys(settings)
        if key in _SECTIONS and not isinstance(value, dict | NoneType)
    ]
    if not wrong and settings.get("zero_optimization") is None:
        wrong = ["it has no zero_optimization"]
    if not wrong and (stage := settings["zero_optimization"].get("stage", 0)) not in (0, 1, 2, 3):
        wrong = [f"stage of zero_optimization is {stage!r:.80}, not 0, 1, 2 or 3"]
    return [Problem(where, what, _DEEPSPEED) for what in wrong] + _check_numbers("deepspeed", settings, where, None)


def _keys(mapping: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """The keys of a mapping and of those in it, each with its value."""
    for key, value in mapping.items():
        yield key, value
        if isinstance(value, dict):
            yield from _keys(value)


def _flat(value: Any) -> Iterator[Any]:
    """What is in a value, be it in lists and mappings."""
    if isinstance(value, list | dict):
        for each in value.values() if isinstance(value, dict) else value:
            yield from _flat(each)
    else:
        yield value
