"""Configuration of the entry points that train text-only Qwen2, beside what `config` has for all."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from transformers import TrainingArguments
from trl import DPOConfig, ModelConfig, RewardConfig, SFTConfig

from r1_aqa_repro.run.config import ExampleArguments, RunArguments, SharedPrefixGRPOConfig, parse_as

Training = TypeVar("Training", bound=TrainingArguments)


@dataclass
class TextModelConfig(ModelConfig):
    """TRL's ModelConfig, and another rotary embedding than the checkpoint's."""

    rope_parameters: dict[str, Any] | str | None = field(
        default=None, metadata={"help": "Such as {rope_type: yarn, factor: 4.0}: docs/long_context.md."}
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if isinstance(self.rope_parameters, str):  # from the command line
            try:
                self.rope_parameters = json.loads(self.rope_parameters)
            except ValueError as error:
                example = '{"rope_type": "yarn", "factor": 4.0}'
                raise ValueError(f"rope_parameters is no JSON object such as {example} ({error})") from error

    @property
    def rope(self) -> dict[str, Any] | None:
        """`rope_parameters` as parsed."""
        return None if isinstance(self.rope_parameters, str) else self.rope_parameters


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
class RewardArguments:
    """What completions are judged by: names of `judging.RULES`, and what some of them need."""

    reward_funcs: list[str] = field(
        default_factory=lambda: ["reward_model"],
        metadata={"help": "reward_model, or names of rule rewards: see r1_aqa_repro.rewards.registry."},
    )
    reward_model_name_or_path: str | None = field(
        default=None, metadata={"help": "Folder or hub id of the model behind the reward `reward_model`."}
    )
    persona_rubric: str | None = field(default=None, metadata={"help": "YAML rubric of the reward `persona`."})
    length_penalty_cache: int = field(
        default=64,
        metadata={"help": "The reward `length_penalty` falls over so many last tokens of max_completion_length."},
    )


@dataclass
class TextGRPOConfig(RewardArguments, SharedPrefixGRPOConfig):
    """GRPO on text prompts."""


def parse_text_config(
    training_type: type[Training], argv: Sequence[str]
) -> tuple[RunArguments, Training, TextModelConfig]:
    """The configuration of an entry point that trains on text, see `config.parse_as`."""
    data, training, model = parse_as((RunArguments, training_type, TextModelConfig), argv)
    return data, training, model
