"""The keys of training configurations that are this project's own, apart from those of rewards and models.

`config` adds them to the configurations of TRL and transformers. Nothing here imports these libraries, which takes
seconds: `--help` lists the keys without them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from r1_aqa_repro.common.console import key
from r1_aqa_repro.common.distributed import num_processes
from r1_aqa_repro.data.audio import CHANNELS
from r1_aqa_repro.data.conversations import MARGINS
from r1_aqa_repro.data.prompts import PROMPT_STYLES
from r1_aqa_repro.data.questions import CONTRIBUTIONS
from r1_aqa_repro.rewards.arguments import RewardArguments

TRAINED_PARTS = ("all", "no_encoder", "projector", "language_model")
CHECKS = ("decode", "headers")
ADVANTAGE_FILTERS = ("none", "above_mean", "top_fraction")
KEPT_OPTIMIZERS = ("all", "last")
BEST_METRIC = "eval_accuracy"  # decides which checkpoint is the best


@dataclass
class RunArguments:
    """What a run learns from, and how it treats bad records and its own folder."""

    train_file: str | None = key(
        None,
        "Audio: manifest.jsonl, R1-AQA JSONL lines, or a JSON file in MMAU's format. Text: JSON lines, docs/data.md.",
    )
    skip_bad_records: bool = key(False, "Drop and list bad records and clips instead of refusing to start.")
    overwrite: bool = key(False, "Delete the checkpoints of an earlier run in output_dir.")


@dataclass
class TextRunArguments(RunArguments):
    """What is looked at beside."""

    sample_file: str | None = key(
        None,
        "Held-out prompts (of a reward model pairs): what the model makes of the first eight before and after training "
        "is kept in samples.json and shown. Those of eval_file unless given.",
    )


@dataclass
class DataArguments(RunArguments):
    """How audio questions are asked and heard."""

    prompt_style: str = key("answer", "direct, answer or think.", PROMPT_STYLES)
    audio_channel: str = key("first", "first channel, as R1-AQA, or the mean of all.", CHANNELS)
    contribution: str | None = key(
        None, "Learn from the questions of train_file with this label alone, see data_prep.contribution.", CONTRIBUTIONS
    )
    contribution_weight: float | None = key(
        None, "What a question labelled weak counts in the loss, where one labelled strong counts 1; 1 unless given."
    )
    check_audio: str = key("decode", "Before a run, decode every clip to its end once, or read headers alone.", CHECKS)
    max_bad_clips: int | None = key(
        None, "More clips that fail in mid-run end it; by default one per cent of those seen, at least 8."
    )


@dataclass
class CheckpointArguments:
    """What the checkpoints of a run keep."""

    keep_optimizer: str = key(
        "all", "all, or last: only the newest checkpoint keeps what a run is resumed from.", KEPT_OPTIMIZERS
    )
    save_on_signal: float | None = key(
        None, "Seconds that SIGTERM or SIGUSR1 leaves: the model alone is saved if a checkpoint does not fit."
    )


@dataclass
class HeldOutArguments(CheckpointArguments):
    """Evaluation while training, beside transformers' own `eval_steps`, `eval_delay` and `eval_on_start`.

    With `eval_file`, these follow: `eval_strategy: steps`, and `eval_steps` as `save_steps` unless given.
    """

    eval_file: str | None = key(None, "Held-out records to evaluate on while training; formats as train_file.")

    def __post_init__(self) -> None:
        if self.eval_file is not None:  # what contradicts these is left to preflight
            args: Any = self
            args.eval_strategy = "steps" if args.eval_strategy == "no" else args.eval_strategy
            args.eval_steps = args.eval_steps or args.save_steps
        super().__post_init__()  # type: ignore[misc]  # of the configuration that this is mixed into


@dataclass
class EvaluationArguments(HeldOutArguments):
    """Evaluation by the accuracy of answers; the best checkpoint is that of the highest `eval_accuracy`."""

    eval_limit: int | None = key(None, "Only the first so many questions of eval_file.")
    eval_no_audio: bool = key(False, "Evaluate without audio too: silence of the same length in place of every clip.")
    per_device_eval_batch_size: int = key(16, "Questions of an evaluation answered at once; eval.mmau's --batch-size.")

    def __post_init__(self) -> None:
        if self.eval_file is not None:
            args: Any = self
            args.metric_for_best_model = args.metric_for_best_model or BEST_METRIC
            args.greater_is_better = True
        super().__post_init__()


@dataclass
class PartArguments:
    """Which of a Qwen2-Audio's parts are trained, and at which rates; what has no rate of its own has `learning_rate`.

    All follow the same schedule. With LoRA they are those of the adapter's matrices inside the part.
    """

    trained_parts: str = key(
        "all",
        "all, as the paper; no_encoder: the audio encoder stays; projector: everything else stays; language_model: "
        "encoder and projector stay.",
        TRAINED_PARTS,
    )
    encoder_learning_rate: float | None = key(None, "Of the audio encoder; learning_rate unless given.")
    projector_learning_rate: float | None = key(
        None, "Of the layer between encoder and language model; learning_rate unless given."
    )


@dataclass
class ExampleArguments(CheckpointArguments):
    """Batch sizes of what learns from examples: they follow from `examples_per_step` and the number of processes."""

    examples_per_step: int = key(32, "Examples of an optimizer step, over all processes.")
    max_examples_per_device: int = key(32, "At most so many examples a device at once; more are accumulated.")

    def __post_init__(self) -> None:
        self.batch_problem = derive_batch(
            self, "examples_per_step", self.examples_per_step, self.max_examples_per_device, 1
        )
        super().__post_init__()  # type: ignore[misc]  # of the configuration that this is mixed into


@dataclass
class GroupArguments(CheckpointArguments):
    """Groups of completions: batch sizes follow from `prompts_per_step` and the number of processes.

    A group's rows must stay together, and a step has the same prompts on 1, 2, 4 or 8 devices.
    """

    prompts_per_step: int = key(16, "Prompts of an optimizer step, over all processes.")
    max_prompts_per_device: int = key(2, "At most so many prompts a device at once; more are accumulated.")
    max_completion_length: int = key(512, "Longest completion, tokens.")

    def __post_init__(self) -> None:
        args: Any = self
        args.batch_problem = derive_batch(
            self, "prompts_per_step", self.prompts_per_step, self.max_prompts_per_device, args.num_generations
        )
        args.generation_batch_size, args.steps_per_generation = None, 1
        super().__post_init__()  # type: ignore[misc]  # of the configuration that this is mixed into


@dataclass
class GRPOArguments(GroupArguments):
    """GRPO on questions of any kind."""

    reward_funcs: list[str] = key(["accuracy", "format"], "accuracy, format and others: r1_aqa_repro.rewards.rules.")
    dynamic_sampling: int = key(
        0, "Up to so many further prompts a step, in place of those whose rewards are all the same."
    )
    advantage_filter: str = key(
        "none", "none, or keep only a group's better completions: above_mean, or its top_fraction.", ADVANTAGE_FILTERS
    )
    advantage_top_fraction: float = key(0.5, "Share of a group that advantage_filter top_fraction keeps.")
    std_filter_beta: float = key(
        0.0, "RLPR's filter: groups with a std of rewards below so many times its moving average are not learned from."
    )
    std_filter_ema_ratio: float = key(0.99, "What the moving average keeps of itself a step.")
    std_filter_ema_start_step: int = key(6, "The first step that enters the average.")
    std_filter_start_step: int = key(11, "The first step that is filtered.")
    sharing: str = key("auto", "auto: compute prompt and clip once a group. off: once a completion.", ["auto", "off"])
    cuda_graphs: bool = key(False, "On a GPU, with sharing: replay recorded decoding steps. Not yet tried on a GPU.")

    def __post_init__(self) -> None:
        if self.sharing is False:  # how YAML reads a bare `off`
            self.sharing = "off"
        super().__post_init__()


@dataclass
class AudioGRPOArguments(PartArguments, EvaluationArguments, GRPOArguments):
    """GRPO on audio questions, with the evaluation while training."""


@dataclass
class AudioSFTArguments(PartArguments, EvaluationArguments, ExampleArguments):
    """Supervised fine-tuning on audio questions, with the evaluation while training."""

    stop_at_loss: float | None = key(None, "End once the mean loss of the last 20 logged steps is at most this.")
    max_completion_length: int = key(256, "Longest completion of an evaluation, tokens.")


@dataclass
class TextExampleArguments(HeldOutArguments, ExampleArguments):
    """Learning from text examples or pairs."""


@dataclass
class DPOArguments(TextExampleArguments):
    """Learning from pairs directly."""

    relative_tau: float = key(
        0.5, "Of loss_type relative: temperature of the prompts' likeness; the larger, the more unlike ones count."
    )


@dataclass
class RewardModelArguments(TextExampleArguments):
    """Learning a reward model from pairs."""

    margin: str = key(
        "column",
        "What the scores of a pair must differ by: column, its own margin if the pairs have one; scores, score_chosen "
        "less score_rejected; or none.",
        MARGINS,
    )


@dataclass
class TextGRPOArguments(RewardArguments, GRPOArguments):
    """GRPO on text prompts."""


@dataclass
class RLOOArguments(RewardArguments, GroupArguments):
    """RLOO on text prompts."""


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
