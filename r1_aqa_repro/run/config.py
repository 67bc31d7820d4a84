"""Configuration of the training entry points: dataclasses filled from one YAML file and the command line.

What audio and text share, and audio's own; the text entry points' own is in `text_config`.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from types import NoneType, UnionType
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

from transformers import TrainingArguments
from trl import GRPOConfig, ModelConfig, TrlParser

from r1_aqa_repro.common.distributed import num_processes
from r1_aqa_repro.common.errors import Problem, Refused
from r1_aqa_repro.data.audio import CHANNELS
from r1_aqa_repro.data.prompts import PROMPT_STYLES
from r1_aqa_repro.data.yaml_file import read_yaml
from r1_aqa_repro.grpo.signal import ADVANTAGE_FILTERS

TRAINED_PARTS = ("all", "no_encoder", "projector")
BEST_METRIC = "eval_accuracy"  # decides which checkpoint is the best
Training = TypeVar("Training", bound=TrainingArguments)


@dataclass
class RunArguments:
    """What a run learns from, and how it treats bad records and its own folder."""

    train_file: str | None = field(
        default=None,
        metadata={
            "help": "Audio: manifest.jsonl, R1-AQA JSONL lines, or a JSON file in MMAU's format. Text: JSON lines, "
            "docs/data.md."
        },
    )
    skip_bad_records: bool = field(
        default=False, metadata={"help": "Drop and list bad records and clips instead of refusing to start."}
    )
    overwrite: bool = field(default=False, metadata={"help": "Delete the checkpoints of an earlier run in output_dir."})


@dataclass
class DataArguments(RunArguments):
    """How audio questions are asked and heard."""

    prompt_style: str = field(default="answer", metadata={"help": "direct, answer or think.", "choices": PROMPT_STYLES})
    audio_channel: str = field(
        default="first", metadata={"help": "first channel, as R1-AQA, or the mean of all.", "choices": CHANNELS}
    )


@dataclass
class EvaluationArguments:
    """Keys of the evaluation while training, beside transformers' own `eval_steps`, `eval_delay` and `eval_on_start`.

    With `eval_file`, these follow: `eval_strategy: steps`, `eval_steps` as `save_steps` unless given, and the best
    checkpoint is that of the highest `eval_accuracy`.
    """

    eval_file: str | None = field(
        default=None, metadata={"help": "Held-out questions to evaluate on while training; formats as train_file."}
    )
    eval_limit: int | None = field(default=None, metadata={"help": "Only the first so many questions of eval_file."})
    per_device_eval_batch_size: int = field(
        default=16, metadata={"help": "Questions of an evaluation answered at once; eval.mmau's --batch-size."}
    )


@dataclass
class SharedPrefixGRPOConfig(GRPOConfig):
    """TRL's GRPOConfig; batch sizes follow from `prompts_per_step` and the number of processes.

    `per_device_train_batch_size`, `gradient_accumulation_steps` and `steps_per_generation` are derived: a group's rows
    must stay together, and a step has the same prompts on 1, 2, 4 or 8 devices.
    """

    prompts_per_step: int = field(default=16, metadata={"help": "Prompts of an optimizer step, over all processes."})
    max_prompts_per_device: int = field(
        default=2, metadata={"help": "At most so many prompts a device at once; more are accumulated."}
    )
    reward_funcs: list[str] = field(
        default_factory=lambda: ["accuracy", "format"],
        metadata={"help": "Names from rewards.rules.REWARDS."},
    )
    dynamic_sampling: int = field(
        default=0,
        metadata={"help": "Up to so many further prompts a step, in place of those whose rewards are all the same."},
    )
    advantage_filter: str = field(
        default="none",
        metadata={
            "help": "none, or keep only a group's better completions: above_mean, or its top_fraction.",
            "choices": ADVANTAGE_FILTERS,
        },
    )
    advantage_top_fraction: float = field(
        default=0.5, metadata={"help": "Share of a group that advantage_filter top_fraction keeps."}
    )
    sharing: str = field(
        default="auto",
        metadata={
            "help": "auto: compute prompt and clip once a group. off: once a completion.",
            "choices": ["auto", "off"],
        },
    )

    def __post_init__(self) -> None:
        if self.sharing is False:  # how YAML reads a bare `off`
            self.sharing = "off"
        self.batch_problem = derive_batch(
            self, "prompts_per_step", self.prompts_per_step, self.max_prompts_per_device, self.num_generations
        )
        self.generation_batch_size, self.steps_per_generation = None, 1
        super().__post_init__()


@dataclass
class AudioGRPOConfig(EvaluationArguments, SharedPrefixGRPOConfig):
    """GRPO on audio questions, with the evaluation while training."""

    trained_parts: str = field(
        default="all",
        metadata={
            "help": "all, as the paper; no_encoder: the audio encoder stays; projector: everything else stays.",
            "choices": TRAINED_PARTS,
        },
    )

    def __post_init__(self) -> None:
        if _derive_evaluation(self):
            self.num_generations_eval = 1  # TRL's own evaluation never runs: its rule for batches need not hold
        super().__post_init__()


@dataclass
class ExampleArguments:
    """Batch sizes of what learns from examples: they follow from `examples_per_step` and the number of processes."""

    examples_per_step: int = field(default=32, metadata={"help": "Examples of an optimizer step, over all processes."})
    max_examples_per_device: int = field(
        default=32, metadata={"help": "At most so many examples a device at once; more are accumulated."}
    )

    def __post_init__(self) -> None:
        self.batch_problem = derive_batch(
            self, "examples_per_step", self.examples_per_step, self.max_examples_per_device, 1
        )
        super().__post_init__()  # type: ignore[misc]  # of the configuration that this is mixed into


@dataclass
class AudioSFTConfig(EvaluationArguments, ExampleArguments, TrainingArguments):
    """transformers' TrainingArguments for supervised fine-tuning on audio questions."""

    stop_at_loss: float | None = field(
        default=None, metadata={"help": "End once the mean loss of the last 20 logged steps is at most this."}
    )
    max_completion_length: int = field(default=256, metadata={"help": "Longest completion of an evaluation, tokens."})

    def __post_init__(self) -> None:
        _derive_evaluation(self)
        self.remove_unused_columns = False  # the collator reads the questions themselves
        super().__post_init__()


def batch_plan(per_step: int, max_per_device: int, num_processes: int) -> tuple[int, int]:
    """(items a device at once, accumulation steps) that give `per_step` items an optimizer step.

    The largest size up to `max_per_device` that divides a process's share is taken.

    Raises:
        ValueError: `per_step` is not a multiple of `num_processes`, or a number is below 1.
    """
    if min(per_step, max_per_device, num_processes) < 1:
        raise ValueError("sizes must be at least 1")
    share, rest = divmod(per_step, num_processes)
    if rest:
        raise ValueError(f"{per_step} does not divide among {num_processes} processes")
    at_once = max(size for size in range(1, min(max_per_device, share) + 1) if share % size == 0)
    return at_once, share // at_once


def derive_batch(args: Any, key: str, per_step: int, max_per_device: int, rows_per_item: int) -> str | None:
    """Fill in the batch sizes. What does not divide is returned as a text, for preflight to report with the rest."""
    try:
        at_once, accumulation = batch_plan(per_step, max_per_device, num_processes())
    except ValueError as error:
        args.per_device_train_batch_size, args.gradient_accumulation_steps = rows_per_item, 1
        return f"{key}: {error}"
    args.per_device_train_batch_size = at_once * rows_per_item
    args.gradient_accumulation_steps = accumulation
    return None


def _derive_evaluation(args: Any) -> bool:
    """Fill in what follows from `eval_file`; whether there is one. What contradicts it is left to preflight."""
    if args.eval_file is None:
        return False
    if args.eval_strategy == "no":
        args.eval_strategy = "steps"
    args.eval_steps = args.eval_steps or args.save_steps
    args.metric_for_best_model = args.metric_for_best_model or BEST_METRIC
    args.greater_is_better = True
    return True


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


def parse_as(types: Sequence[type], argv: Sequence[str]) -> tuple[Any, ...]:
    """`--config FILE` and `--key value` pairs as these dataclasses; the command line overrides the file.

    Raises:
        Refused: an unreadable file, an unknown key, a derived key, or a value that does not fit.
    """
    argv = [part for name in argv for part in (name.split("=", 1) if name.startswith("--config=") else [name])]
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
            raise Refused.because(where, "an argument does not fit (see above)", "--help lists them all.") from None
        raise
    except (argparse.ArgumentError, ValueError, TypeError, OSError) as error:
        raise Refused.because(
            where, str(error).rstrip("."), "Correct the key or its value; --help lists them all."
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
