"""What can be known to be wrong of a run's settings, disk and model, whatever its records are."""

from __future__ import annotations

import os
import shutil
import sysconfig
from collections.abc import Callable
from math import ceil
from pathlib import Path

import torch
from peft import inject_adapter_in_model
from transformers import PreTrainedModel, TrainingArguments
from transformers.integrations.deepspeed import set_hf_deepspeed_config, unset_hf_deepspeed_config
from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK, get_available_reporting_integrations
from transformers.utils import is_bitsandbytes_available
from trl import ModelConfig, get_peft_config

from r1_aqa_repro.common.distributed import num_processes
from r1_aqa_repro.common.errors import Problem, Refused, existing_folder
from r1_aqa_repro.model.loading import freeze
from r1_aqa_repro.rewards.arguments import ANSWER_PROBABILITY
from r1_aqa_repro.run.arguments import BEST_METRIC, DataArguments
from r1_aqa_repro.run.checkpoints import checkpoints
from r1_aqa_repro.run.config import AudioSFTConfig, SharedPrefixGRPOConfig, TextRLOOConfig, TextSFTConfig
from r1_aqa_repro.run.part_rates import check_part_rates
from r1_aqa_repro.run.training_state import has_training_state

# settings of the libraries that these entry points do not act on, and the value that leaves them out
_UNSUPPORTED = {
    "model_revision": "main",
    "trust_remote_code": False,
    "load_in_8bit": False,
    "resume_from_checkpoint": None,
    "label_smoothing_factor": 0.0,
    "average_tokens_across_devices": True,
    "use_vllm": False,
    "use_transformers_continuous_batching": False,
    "cache_implementation": None,
    "chat_template_kwargs": None,
    "cast_lm_head_to_fp32": False,  # TRL 1.16 looks for a key that Qwen2-Audio's configuration lacks
}


def check_settings(training: TrainingArguments, model: ModelConfig) -> list[Problem]:
    """A problem for each setting that cannot work, would be ignored, or would make the run silently wrong."""
    problems = [
        Problem(key, f"{value!r} is not supported here", f"Leave it at {default!r}.")
        for part in (training, model)
        for key, default in _UNSUPPORTED.items()
        if (value := getattr(part, key, default)) not in (default, None)
    ]
    if getattr(training, "batch_problem", None):
        remedy = "Choose a number that the processes divide, or another number of processes."
        problems.append(Problem("batch rule", training.batch_problem, remedy))
    if training.world_size != num_processes():
        what = f"{num_processes()} processes were started, but each would train alone"
        problems.append(
            Problem("devices", what, "Without GPUs give --use_cpu true; otherwise start one process a GPU.")
        )
    if getattr(training, "cuda_graphs", False) and (lacking := _without_graphs(training)):
        problems.append(Problem("cuda_graphs", lacking, "Leave it at false."))
    if training.n_gpu > 1:
        what = f"one process sees {training.n_gpu} GPUs and would split every batch over them"
        remedy = "Start one process a GPU (NPROC, torchrun), or make one visible with CUDA_VISIBLE_DEVICES."
        problems.append(Problem("devices", what, remedy))
    if training.deepspeed and training.load_best_model_at_end and getattr(training, "keep_optimizer", "all") == "last":
        what = "last beside load_best_model_at_end: DeepSpeed loads a checkpoint with its optimizer state only"
        problems.append(Problem("keep_optimizer", what, "Use all, or leave load_best_model_at_end out."))
    if model.dtype in ("auto", "bfloat16", "float16") and not training.deepspeed and not model.use_peft:
        what = f"{model.dtype} weights do not move at small learning rates: the update is below their resolution"
        remedy = "Use dtype: float32 with bf16: true (mixed precision with float32 master weights)."
        problems.append(Problem("dtype", what, remedy))
    if model.load_in_4bit:
        problems += _check_quantised(training, model)
    if model.attn_implementation not in (None, "sdpa"):
        what = f"{model.attn_implementation} does not take the shared-prefix mask for what it is"
        problems.append(Problem("attn_implementation", what, "Use sdpa."))
    if model.use_peft and getattr(training, "trained_parts", "all") != "all":
        what = f"{training.trained_parts} beside an adapter, which leaves everything but itself as it is"
        problems.append(Problem("trained_parts", what, "Choose the adapter's modules with lora_target_modules."))
    if model.use_peft and getattr(model, "rope", None):
        what = "an adapter does not keep them: whoever loads it would get the base as it was"
        remedy = "Write them into the base's config.json, or leave use_peft out."
        problems.append(Problem("rope_parameters", what, remedy))
    return problems


def _without_graphs(training: TrainingArguments) -> str | None:
    """Why no step of decoding would be recorded, if that is so."""
    if training.sharing == "off":
        return "without sharing transformers samples, and records nothing"
    if training.deepspeed and training.hf_deepspeed_config.is_zero3():
        return "under ZeRO-3 transformers samples, and records nothing"
    return None if training.device.type == "cuda" else f"there are none on {training.device.type}"


def _check_quantised(training: TrainingArguments, model: ModelConfig) -> list[Problem]:
    """A problem for each thing that keeps an adapter from being trained on a base in 4 bits."""
    key, problems = "load_in_4bit", []
    if not isinstance(training, SharedPrefixGRPOConfig | AudioSFTConfig | TextSFTConfig):
        problems.append(Problem(key, "it is for GRPO and SFT", "Leave it out."))
    if not model.use_peft:
        what = "weights in 4 bits cannot be trained, only an adapter beside them"
        problems.append(Problem(key, what, "Give use_peft: true and lora_target_modules."))
    if training.deepspeed:
        what = "DeepSpeed does not split weights in 4 bits"
        problems.append(Problem("deepspeed", what, "Leave it out: each process holds the base, which is small now."))
    if training.bf16 and model.dtype != "bfloat16":
        what = f"{model.dtype}, in which a base in 4 bits would be computed in spite of bf16"
        problems.append(Problem("dtype", what, "Use dtype: bfloat16."))
    if not is_bitsandbytes_available():
        what = "bitsandbytes, which holds the weights, is not installed or too old"
        problems.append(Problem(key, what, "Install it: pip install -e '.[qlora]'."))
    return problems


def check_reward_adapter(model: ModelConfig) -> list[Problem]:
    """A problem if a reward model's adapter would leave the head alone, which is what makes it one."""
    if not model.use_peft or model.lora_task_type == "SEQ_CLS":
        return []
    what = f"{model.lora_task_type}: the adapter would leave the reward head as it was drawn"
    return [Problem("lora_task_type", what, "Set it to SEQ_CLS.")]


def check_evaluation(training: TrainingArguments) -> list[Problem]:
    """A problem for each key of the evaluation while training that is ignored, or contradicts another."""
    if getattr(training, "eval_file", None) is None:
        keys = ("eval_steps", "eval_limit", "eval_on_start", "eval_no_audio")
        given = [key for key in keys if getattr(training, key, None)]
        given += ["eval_strategy"] if training.eval_strategy != "no" else []
        remedy = "Set eval_file too, or leave this out." if hasattr(training, "eval_file") else "Leave this out."
        return [Problem(key, "there is nothing to evaluate on", remedy) for key in given]
    if not hasattr(training, "eval_limit"):  # a loss, which needs no more
        return []
    only = {"eval_strategy": "steps", "save_strategy": "steps", "metric_for_best_model": BEST_METRIC}
    problems = [
        Problem(key, f"with an eval_file only {value} is possible", "Leave the key out.")
        for key, value in only.items()
        if getattr(training, key) != value
    ]
    if not training.save_steps or training.eval_steps % training.save_steps:
        what = f"{training.eval_steps} is no multiple of save_steps ({training.save_steps}): the best could not be kept"
        problems.append(Problem("eval_steps", what, "Evaluate only where a checkpoint is saved."))
    return problems


def check_contribution(data: DataArguments) -> list[Problem]:
    """A problem if the weight of questions labelled weak would be ignored."""
    if data.contribution is None or data.contribution_weight is None:
        return []
    what = f"it weighs weak questions against strong ones, of which contribution: {data.contribution} leaves one kind"
    return [Problem("contribution_weight", what, "Leave out one of the two keys.")]


def check_reasoning(data: DataArguments, training: SharedPrefixGRPOConfig) -> list[Problem]:
    """A problem if completions are rewarded for their reasoning, and asked for an answer alone."""
    if ANSWER_PROBABILITY not in training.reward_funcs or data.prompt_style != "direct":
        return []
    what = f"{data.prompt_style} beside {ANSWER_PROBABILITY}: nothing tells an answer without tags from its reasoning"
    return [Problem("prompt_style", what, "Use think (or answer).")]


def check_grpo(training: SharedPrefixGRPOConfig, model: ModelConfig) -> list[Problem]:
    """A problem for each choice of what GRPO learns from, and of what it trains, that cannot be carried out."""
    problems = []
    batches = training.world_size * training.gradient_accumulation_steps
    if training.dynamic_sampling % batches:
        what = f"{training.dynamic_sampling} further prompts do not divide among the {batches} batches of a step"
        problems.append(Problem("dynamic_sampling", what, f"Choose a multiple of {batches}, or 0."))
    chooses = training.dynamic_sampling or training.advantage_filter != "none" or training.std_filter_beta
    if chooses and training.multi_objective_aggregation != "sum_then_normalize":
        what = f"{training.multi_objective_aggregation} beside dynamic_sampling or a filter"
        problems.append(Problem("multi_objective_aggregation", what, "They go by the sum: use sum_then_normalize."))
    for key, off in (("advantage_filter", "none"), ("std_filter_beta", 0)):
        if (value := getattr(training, key)) != off and training.loss_type not in ("grpo", "dr_grpo"):
            what = f"{value} with loss_type {training.loss_type}, whose mean is over tokens"
            problems.append(Problem(key, what, "Use loss_type grpo or dr_grpo."))
    first, average = training.std_filter_start_step, training.std_filter_ema_start_step
    if training.std_filter_beta and first <= average:
        what = f"{first}, but the average begins with step {average}, and needs a step before it is used"
        problems.append(Problem("std_filter_start_step", what, f"Choose at least {average + 1}."))
    return problems + check_rollouts(training, model)


def check_rollouts(training: SharedPrefixGRPOConfig | TextRLOOConfig, model: ModelConfig) -> list[Problem]:
    """A problem for each way to sample groups, and to learn from them, that cannot be carried out."""
    problems = []
    if training.num_iterations > 1 and training.gradient_accumulation_steps > 1:
        what = f"{training.num_iterations} updates a rollout need all prompts of a step in one batch a process"
        problems.append(Problem("num_iterations", what, "Raise max_prompts_per_device or the number of processes."))
    if training.num_iterations > 1 and training.save_steps % training.num_iterations:
        what = f"{training.save_steps:g}: a resume would begin in the middle of a rollout's updates"
        problems.append(
            Problem("save_steps", what, f"Choose a multiple of num_iterations ({training.num_iterations}).")
        )
    return problems + check_lora_dropout(model)


def check_lora_dropout(model: ModelConfig) -> list[Problem]:
    """A problem if what was sampled would be scored otherwise than it was sampled."""
    if not model.use_peft or not model.lora_dropout:
        return []
    what = f"{model.lora_dropout}: completions would be scored by another model than the one that sampled them"
    return [Problem("lora_dropout", what, "Set it to 0.")]


def check_tools(training: TrainingArguments) -> list[Problem]:
    """A problem for each program or package that a run would miss after its model was loaded."""
    problems = []
    known = get_available_reporting_integrations()
    for name in training.report_to:
        if name in INTEGRATION_TO_CALLBACK and name not in known:
            what = f"{name} is not installed"
            problems.append(Problem("report_to", what, f"Install it (pip install {name}), or report_to: tensorboard."))
    why = []
    if training.device.type == "cuda":
        why.append("Triton compiles kernels with it")
        if not any(map(shutil.which, filter(None, (os.environ.get("CC"), "gcc", "clang")))):
            problems.append(Problem("C compiler", f"there is none, and {why[0]}", "Install gcc, or set CC to one."))
    if training.deepspeed and (training.device.type == "cpu" or offloads_optimizer(training)):
        why.append("DeepSpeed compiles its CPU operators with it")
        for name, program, remedy in (
            ("C++ compiler", os.environ.get("CXX", "c++"), "Install g++, or set CXX to one."),
            ("ninja", "ninja", "Install it (pip install ninja) and put its folder, .venv/bin, on the PATH."),
        ):
            if shutil.which(program) is None:
                problems.append(Problem(name, f"there is no {program} on the PATH, and {why[-1]}", remedy))
    header = Path(sysconfig.get_path("include")) / "Python.h"
    if why and not header.is_file():
        remedy = "Install the headers of this Python (Debian and Ubuntu: apt install python3-dev)."
        problems.append(Problem(str(header), f"it is not there, and {why[0]}", remedy))
    return problems


def offloads_optimizer(training: TrainingArguments) -> bool:
    """Whether DeepSpeed keeps the optimizer outside the GPU: in memory, or on a disk."""
    if not training.deepspeed:
        return False
    return training.hf_deepspeed_config.get_value("zero_optimization.offload_optimizer.device") not in (None, "none")


def _records_of_step(training: TrainingArguments) -> int:
    """Examples or prompts of a step, over all processes."""
    rows = training.train_batch_size * training.gradient_accumulation_steps * training.world_size
    return rows * getattr(training, "num_mini_batches", 1) // getattr(training, "num_generations", 1)


def _steps_of_epoch(training: TrainingArguments, records: int) -> float:
    """Steps in which each of so many records has its turn; TRL leaves out prompts that fill no step of GRPO."""
    whole, rest = divmod(records, _records_of_step(training))
    if hasattr(training, "num_generations"):
        return whole * getattr(training, "num_iterations", 1)
    return records / _records_of_step(training) if hasattr(training, "num_mini_batches") else whole + bool(rest)


def planned_steps(training: TrainingArguments, records: int) -> int:
    """Steps of a whole run on so many records, as its trainer counts them."""
    if training.max_steps > 0:
        return training.max_steps
    return ceil(training.num_train_epochs * _steps_of_epoch(training, records))


def check_schedule(training: TrainingArguments, records: int) -> tuple[list[Problem], list[Problem]]:
    """What of steps and warm-up keeps a run on so many records from training, and what is only worth a warning.

    The rate of step n of a warm-up of w steps is (n - 1) / w of `learning_rate`: a run of one step would change
    nothing. A run that asked for its few steps by `max_steps` is warned of a rate that is never reached; where they
    follow from the data, it is refused.
    """
    per_step, steps = _records_of_step(training), planned_steps(training, records)
    few = Problem(
        "train_file",
        f"its {records} usable records are fewer than the {per_step} of a step",
        f"Give more data, or lower {'prompts' if hasattr(training, 'prompts_per_step') else 'examples'}_per_step.",
    )
    fewer = [few] if records < per_step else []
    if fewer and hasattr(training, "num_generations"):  # TRL would end without a step, and without an error
        return fewer, []
    warm_up = 0 if training.lr_scheduler_type == "constant" else training.get_warmup_steps(steps)
    if steps > warm_up:
        return [], fewer
    made = "max_steps allows" if training.max_steps > 0 else f"{records} records make"
    what = f"{made} {steps} steps, all of them in the warm-up of {warm_up}: learning_rate is never reached"
    if steps == 1:
        what = f"{made} 1 step, the first of the warm-up, whose learning rate is 0: nothing would be learned"
    remedy = "Lower warmup_steps (below 1 it is a share of the steps), or give the run more steps."
    slow = [Problem("warmup_steps", what, remedy)]
    return (slow + fewer, []) if training.max_steps <= 0 or steps == 1 else ([], slow + fewer)


def check_disk(
    training: TrainingArguments, parameters: int, trained: int, examples: int, cache: int = 0
) -> list[Problem]:
    """A problem without room for what a run has yet to write, see `disk_needed`, and a `cache` of so many bytes."""
    needed, what = disk_needed(training, parameters, trained, examples)
    smaller = "set keep_optimizer: last or save_total_limit, "
    return check_free_space(Path(str(training.output_dir)), needed + cache, what, smaller)


def disk_needed(training: TrainingArguments, parameters: int, trained: int, examples: int) -> tuple[int, str]:
    """Bytes that a run has yet to write, checkpoints and the final model, and what they are.

    A checkpoint holds so many `parameters`, of which some are `trained`, and the run learns from so many `examples`.
    Counted is the moment at which most is there: a checkpoint has been written, and what goes for it is not deleted
    yet.
    """
    folder = Path(str(training.output_dir))
    steps = planned_steps(training, examples)
    every = training.save_steps if training.save_steps >= 1 else ceil(training.save_steps * steps)  # below 1: a share
    every = _steps_of_epoch(training, examples) if training.save_strategy == "epoch" else every
    kept = 0 if training.save_strategy == "no" else ceil(steps / max(1, every))
    best = int(getattr(training, "eval_file", None) is not None)  # kept beside the last ones
    if training.save_total_limit:
        kept = min(kept, training.save_total_limit + best + 1)
    weights, state = _checkpoint_bytes(training, parameters, trained)
    with_state = min(kept, 2) if getattr(training, "keep_optimizer", "all") == "last" else kept
    there = checkpoints(folder)
    to_write = max(0, kept - len(there))
    states = 0 if training.save_only_model else max(0, with_state - sum(map(has_training_state, there)))
    needed = weights * (to_write + 1) + state * states
    return needed, f"{to_write} more checkpoints ({states} with optimizer) and the final model"


def _checkpoint_bytes(training: TrainingArguments, parameters: int, trained: int) -> tuple[int, int]:
    """What a checkpoint takes: the model, and what a run is resumed from.

    Adam keeps two moments of a trained parameter in float32. DeepSpeed saves the model in the type that it computes in,
    and beside the moments float32 master weights; once more under ZeRO-2 the model, under ZeRO-3 what is not trained.
    """
    if not training.deepspeed:
        return 4 * parameters, 8 * trained
    size = training.hf_deepspeed_config.dtype().itemsize
    again = parameters - trained if training.hf_deepspeed_config.is_zero3() else parameters
    return size * parameters, 12 * trained + size * again


def check_free_space(folder: Path, needed: int, purpose: str, smaller: str = "") -> list[Problem]:
    """A problem if the disk of `folder`, which need not exist yet, has less than `needed` bytes free.

    `smaller` says what else makes it fit, with a comma after it.
    """
    free = shutil.disk_usage(existing_folder(folder)).free
    if needed <= free:
        return []
    what = f"{purpose} need {needed / 1e9:.1f} GB, {free / 1e9:.1f} GB are free"
    return [Problem(str(folder), what, f"Free some space, {smaller}or choose another output_dir.")]


def count_parameters(
    training: TrainingArguments, model: ModelConfig, build: Callable[[], PreTrainedModel]
) -> tuple[int, int]:
    """Parameters that a checkpoint of the model that `build` makes holds, or of its adapter, and how many of them are
    trained; without memory for them.

    Raises:
        Refused: with `use_peft`, PEFT does not take its settings, such as names of modules that are not there; a
            learning rate of a part of which nothing is trained.
    """
    if training.deepspeed:  # ZeRO-3 would shard even this model, before there are processes to shard it over
        unset_hf_deepspeed_config()
    try:
        with torch.device("meta"):
            built = build()
            if model.use_peft:
                # of PPO policy and critic have one each, whose modules are named as in themselves
                for network in [built] if isinstance(built, PreTrainedModel) else built.children():
                    _try_adapter(network, model)
            freeze(built, getattr(training, "trained_parts", "all"))
            if problems := check_part_rates(training, built):
                raise Refused(problems)
    finally:
        if training.deepspeed:
            set_hf_deepspeed_config(training.hf_deepspeed_config)
    trained = sum(parameter.numel() for parameter in built.parameters() if parameter.requires_grad)
    return trained if model.use_peft else built.num_parameters(), trained


def _try_adapter(built: PreTrainedModel, model: ModelConfig) -> None:
    try:
        inject_adapter_in_model(get_peft_config(model), built)
    except ValueError as error:
        what = str(error).splitlines()[0].split(". ")[0].rstrip(".")
        remedy = "Of modules give several names, such as q_proj v_proj, or one as a pattern of whole names: .*q_proj."
        raise Refused.because("use_peft", what, remedy) from error
