"""Configuration of the entry points that train text-only Qwen2, beside what `config` has for all."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from transformers import TrainingArguments
from trl import DPOConfig, RewardConfig, SFTConfig

from r1_aqa_repro.model.text_loading import TextModelConfig
from r1_aqa_repro.rewards.registry import RewardArguments
from r1_aqa_repro.run.config import ExampleArguments, RunArguments, SharedPrefixGRPOConfig, parse_as

Training = TypeVar("Training", bound=TrainingArguments)


@dataclass
class HeldOutArguments:
    """Held-out examples whose loss is logged while training. With `eval_file`, `eval_strategy: steps` follows."""

    eval_file: str | None = field(
        default=None, metadata={"help": "Held-out examples to evaluate on while training; format as train_file."}
    )

    def __post_init__(self) -> None:
        if self.eval_file is not None:
            args: Any = self
            args.eval_strategy = "steps" if args.eval_strategy == "no" else args.eval_strategy
            args.eval_steps = args.eval_steps or args.save_steps
        super().__post_init__()  # type: ignore[misc]  # of the configuration that this is mixed into


@dataclass
class TextSFTConfig(HeldOutArguments, ExampleArguments, SFTConfig):
    """TRL's SFTConfig for prompts with a completion to imitate."""


@dataclass
class RewardModelConfig(HeldOutArguments, ExampleArguments, RewardConfig):
    """TRL's RewardConfig; an example is a pair."""


@dataclass
class PairDPOConfig(HeldOutArguments, ExampleArguments, DPOConfig):
    """TRL's DPOConfig; an example is a pair."""


@dataclass
class TextGRPOConfig(RewardArguments, SharedPrefixGRPOConfig):
    """GRPO on text prompts."""


def parse_text_config(
    training_type: type[Training], argv: Sequence[str]
) -> tuple[RunArguments, Training, TextModelConfig]:
    """The configuration of an entry point that trains on text, see `config.parse_as`."""
    data, training, model = parse_as((RunArguments, training_type, TextModelConfig), argv)
    return data, training, model
