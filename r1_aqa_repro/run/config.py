"""Configuration of the training entry points: `arguments` on top of TRL's, filled from a YAML file and the command
line."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass, fields
from types import NoneType, UnionType
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

from transformers import TrainingArguments
from trl import DPOConfig, GRPOConfig, ModelConfig, RewardConfig, SFTConfig, TrlParser

from r1_aqa_repro.common.errors import Problem, Refused
from r1_aqa_repro.data.yaml_file import read_yaml
from r1_aqa_repro.model.text_loading import TextModelConfig
from r1_aqa_repro.run.arguments import (
    AudioGRPOArguments,
    AudioSFTArguments,
    DataArguments,
    GRPOArguments,
    RunArguments,
    TextExampleArguments,
    TextGRPOArguments,
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
class RewardModelConfig(TextExampleArguments, RewardConfig):
    """TRL's RewardConfig; an example is a pair."""


@dataclass
class PairDPOConfig(TextExampleArguments, DPOConfig):
    """TRL's DPOConfig; an example is a pair."""


@dataclass
class TextGRPOConfig(TextGRPOArguments, SharedPrefixGRPOConfig):
    """GRPO on text prompts."""


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
) -> tuple[RunArguments, Training, TextModelConfig]:
    """The configuration of an entry point that trains on text, see `parse_as`."""
    data, training, model = parse_as((RunArguments, training_type, TextModelConfig), argv)
    return data, training, model


def parse_as(types: Sequence[type], argv: Sequence[str]) -> tuple[Any, ...]:
    """`--config FILE` and `--key value` pairs as these dataclasses; the command line overrides the file.

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
    written = {name[2:].split("=")[0].replace("-", "_") for name in argv if name.startswith("--")} | set(content)
    derived = sorted(written & set(_DERIVED))
    if derived:
        remedy = "Set prompts_per_step and max_prompts_per_device (or examples_per_step and max_examples_per_device)."
        raise Refused.because(where, f"{', '.join(derived)} cannot be set: it is derived", remedy)
    problems = _check_values(content, types, where)
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


# what YAML may read for a key of this type, and how to say so; argparse parses the texts among them
_ACCEPTED: dict[Any, tuple[tuple[type, ...], str]] = {
    int: ((int, str), "an integer"),
    float: ((float, int, str), "a number"),
    bool: ((bool, str), "true or false"),
    list: ((list,), "a list"),
}


def _check_values(content: dict[str, Any], types: Sequence[type], where: str) -> list[Problem]:
    """Problems that argparse misses: a file's values become defaults, of which it checks only the texts."""
    hints = {name: hint for type_ in types for name, hint in get_type_hints(type_).items()}
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
    return problems
