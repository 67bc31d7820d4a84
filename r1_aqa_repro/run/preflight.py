"""Everything that can be known to be wrong before expensive work starts, checked first and reported at once."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import torch
from accelerate.utils import gather_object
from peft import inject_adapter_in_model
from transformers import (
    PreTrainedConfig,
    PreTrainedModel,
    ProcessorMixin,
    Qwen2AudioForConditionalGeneration,
    TrainingArguments,
)
from transformers.integrations.deepspeed import set_hf_deepspeed_config, unset_hf_deepspeed_config
from trl import ModelConfig, get_peft_config

from r1_aqa_repro.common.console import say
from r1_aqa_repro.common.distributed import end_distributed, is_main_process, num_processes
from r1_aqa_repro.common.errors import Problem, Refused
from r1_aqa_repro.common.files import write_json
from r1_aqa_repro.data.audio import check_audio
from r1_aqa_repro.data.questions import AudioQuestion, limited, read_questions, with_answers
from r1_aqa_repro.model.files import adapter_base, model_digest
from r1_aqa_repro.model.inputs import minimum_seconds
from r1_aqa_repro.model.loading import check_model_folder, check_pair, load_processor
from r1_aqa_repro.run.arguments import BEST_METRIC, DataArguments, RunArguments
from r1_aqa_repro.run.checkpoints import FINAL
from r1_aqa_repro.run.folder import check_run_folder, data_hashes, resolved_config, start_run

# settings of the libraries that these entry points do not act on, and the value that leaves them out
_UNSUPPORTED = {
    "model_revision": "main",
    "trust_remote_code": False,
    "load_in_4bit": False,
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

# models beside the one that is trained
_MODELS = ("reward_model_name_or_path", "value_model_name_or_path")


def prepare(
    data: DataArguments, training: TrainingArguments, model: ModelConfig, extra: list[Problem]
) -> list[AudioQuestion]:
    """Check data, model, settings, disk space and run folder; then make the folder this run's own.

    Args:
        extra: what the entry point found wrong by itself.

    Returns:
        The training questions, every one with an answer and a readable clip.

    Raises:
        Refused: with everything that is wrong. Nothing has been written then.
    """
    problems = extra + check_settings(training, model) + check_evaluation(training)
    shortest, parameters = 0.1, None  # seconds; both are better known once the model is
    try:
        config_of_model, processor = _check_model(model)
        shortest = minimum_seconds(processor)
        parameters = count_parameters(training, model, lambda: Qwen2AudioForConditionalGeneration(config_of_model))
    except Refused as refusal:
        problems += refusal.problems
    questions, dropped, bad = _read(data.train_file, data.skip_bad_records, shortest)
    problems += bad
    held_out: list[AudioQuestion] = []
    eval_file = getattr(training, "eval_file", None)
    if eval_file is not None:
        held_out, also_dropped, bad = _read(eval_file, data.skip_bad_records, shortest, training.eval_limit)
        dropped += also_dropped
        problems += bad + check_held_out(questions, held_out, eval_file)
    ids = [question.id for question in questions + held_out]
    begin_run(Run(data, training, model, ids, len(questions), parameters), problems, dropped)
    return questions


@dataclass(frozen=True)
class Run:
    """What is known of a run before it begins.

    data, training, model: its configuration.
    ids: of all records that it reads, in their order.
    examples: records that it trains on.
    parameters: of its model; None where the model cannot be read.
    """

    data: RunArguments
    training: TrainingArguments
    model: ModelConfig
    ids: list[str]
    examples: int
    parameters: int | None


def begin_run(run: Run, problems: list[Problem], dropped: list[Problem]) -> None:
    """Check run folder and disk; then make the folder this run's own.

    Args:
        run: the run.
        problems: what is wrong with it already.
        dropped: bad records that it does without; they are listed in its folder.

    Raises:
        Refused: with everything that is wrong, on any process. Nothing has been written then.
    """
    data, training = run.data, run.training
    folder = Path(str(training.output_dir))
    config = resolved_config(data=data, training=training, model=run.model)
    files = (data.train_file, getattr(training, "eval_file", None), getattr(training, "persona_rubric", None))
    hashes = {"data": data_hashes(*files), "models": {}}
    if not problems and is_main_process():  # one is enough: they are large
        models = [getattr(training, key, None) for key in _MODELS] + [run.model.model_name_or_path]
        folders = [name for name in models if name is not None and Path(name).is_dir()]
        hashes["models"] = {name: model_digest(name) for name in folders}
    problems = list(problems)
    if not data.overwrite:
        problems += check_run_folder(folder, config, hashes)
    if run.parameters is not None and (data.overwrite or not (folder / FINAL).is_dir()):
        # an adapter is a few per cent of its base at most
        saved = run.parameters // 50 if run.model.use_peft else run.parameters
        problems += _check_disk(folder, training, saved, run.examples)
    problems = _of_all_processes(problems, run.ids)
    if problems:
        end_distributed()
        raise Refused(problems)
    if is_main_process():
        start_run(folder, config, hashes, training.seed, data.overwrite)
        if dropped:
            write_json(folder / "skipped_records.json", [str(problem) for problem in dropped])
            lost = (
                " (of eval_file, those without a usable clip count as wrong)" if hasattr(training, "eval_limit") else ""
            )
            say(f"{len(dropped)} bad records are left out{lost}; they are listed in {folder / 'skipped_records.json'}")
    # no process may look for checkpoints before the main one has deleted those of an earlier run
    if training.distributed_state is not None:
        training.distributed_state.wait_for_everyone()


def _read(
    file: str | None, skip_bad: bool, shortest: float, limit: int | None = None
) -> tuple[list[AudioQuestion], list[Problem], list[Problem]]:
    """The usable questions of a file, what is dropped of it, and what refuses the run."""
    try:
        if file is None:
            remedy = "Set train_file to a manifest or JSONL file."
            raise Refused.because("train_file", "no training data is given", remedy)
        usable, bad = read_usable(file, shortest, limit)
    except Refused as refusal:
        return [], [], refusal.problems
    return (usable, bad, []) if skip_bad and usable else (usable, [], bad)


def read_usable(
    file: str | os.PathLike[str], shortest: float, limit: int | None = None
) -> tuple[list[AudioQuestion], list[Problem]]:
    """The questions (of the first `limit`) with an answer and a clip of `shortest` seconds; a problem a bad record.

    Raises:
        Refused: see `read_questions`.
    """
    read = read_questions(file)
    asked = limited(read.records, limit)
    problems = read.problems + with_answers(asked, file)
    answered = [question for question in asked if question.answer is not None]
    with ThreadPoolExecutor(max_workers=min(16, (os.cpu_count() or 1) * 4)) as pool:
        verdicts = list(pool.map(lambda question: check_audio(question.audio_path, shortest), answered))
    remedy = "Restore or remove the clip, or give --skip_bad_records."
    for question, verdict in zip(answered, verdicts, strict=True):
        if verdict is not None:
            where = f"{file}: {question.id}"
            problems.append(Problem(where, f"{question.audio_path}: {verdict}", remedy))
    return [question for question, verdict in zip(answered, verdicts, strict=True) if verdict is None], problems


def check_evaluation(training: TrainingArguments) -> list[Problem]:
    """A problem for each key of the evaluation while training that is ignored, or contradicts another."""
    if not hasattr(training, "eval_file"):
        return []
    if training.eval_file is None:
        given = [key for key in ("eval_steps", "eval_limit", "eval_on_start") if getattr(training, key)]
        given += ["eval_strategy"] if training.eval_strategy != "no" else []
        remedy = "Set eval_file too, or leave this out."
        return [Problem(key, "there are no questions to evaluate on", remedy) for key in given]
    only = {"eval_strategy": "steps", "save_strategy": "steps", "metric_for_best_model": BEST_METRIC}
    problems = [
        Problem(key, f"with an eval_file only {value} is possible", "Leave the key out.")
        for key, value in only.items()
        if getattr(training, key) != value
    ]
    if not training.save_steps or training.eval_steps % training.save_steps:
        what = f"{training.eval_steps} is no multiple of save_steps ({training.save_steps}): the best could not be kept"
        problems.append(Problem("eval_steps", what, "Evaluate only where a checkpoint is saved."))
    problems += [
        Problem(key, f"{value} questions", "Give at least 1.")
        for key in ("eval_limit", "per_device_eval_batch_size")
        if (value := getattr(training, key)) is not None and value < 1
    ]
    return problems


def check_held_out(
    questions: list[AudioQuestion], held_out: list[AudioQuestion], eval_file: str | os.PathLike[str]
) -> list[Problem]:
    """A problem for each question of an evaluation whose clip is trained on."""
    trained_on = {os.path.realpath(question.audio_path): question.id for question in questions}
    return [
        Problem(
            f"{eval_file}: {question.id}",
            f"its clip {question.audio_path} is trained on (question {trained_on[path]})",
            "Take it out of train_file or of eval_file.",
        )
        for question in held_out
        if (path := os.path.realpath(question.audio_path)) in trained_on
    ]


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
    if training.n_gpu > 1:
        what = f"one process sees {training.n_gpu} GPUs and would split every batch over them"
        remedy = "Start one process a GPU (NPROC, torchrun), or make one visible with CUDA_VISIBLE_DEVICES."
        problems.append(Problem("devices", what, remedy))
    if model.dtype in ("auto", "bfloat16", "float16") and not training.deepspeed and not model.use_peft:
        what = f"{model.dtype} weights do not move at small learning rates: the update is below their resolution"
        remedy = "Use dtype: float32 with bf16: true (mixed precision with float32 master weights)."
        problems.append(Problem("dtype", what, remedy))
    if model.attn_implementation not in (None, "sdpa"):
        what = f"{model.attn_implementation} does not take the shared-prefix mask for what it is"
        problems.append(Problem("attn_implementation", what, "Use sdpa."))
    return problems


def _check_model(model: ModelConfig) -> tuple[PreTrainedConfig, ProcessorMixin]:
    """Configuration and processor of a model that can be trained; its weights are not read."""
    if model.model_name_or_path is None:
        raise Refused.because(
            "model_name_or_path",
            "no model is given",
            "Set it to a Qwen2-Audio folder or hub id (the embedded run leaves one).",
        )
    config = check_model_folder(model.model_name_or_path)
    if adapter_base(model.model_name_or_path) is not None:
        raise Refused.because(
            model.model_name_or_path, "an adapter cannot be trained further", "Use r1_aqa_repro.merge_adapter."
        )
    processor = load_processor(model.model_name_or_path)
    check_pair(config, processor, model.model_name_or_path)
    return config, processor


def _check_disk(folder: Path, training: TrainingArguments, parameters: int, examples: int) -> list[Problem]:
    """Room for the checkpoints that the run has yet to write, one being written and the final model."""
    at_once = training.train_batch_size * training.gradient_accumulation_steps * training.world_size
    at_once *= getattr(training, "num_mini_batches", 1)  # of PPO
    rows = examples * getattr(training, "num_generations", 1) * getattr(training, "num_iterations", 1)
    steps = training.max_steps if training.max_steps > 0 else training.num_train_epochs * rows / at_once
    planned = 0 if training.save_strategy == "no" else int(steps // max(1, training.save_steps)) + 1
    best = int(getattr(training, "eval_file", None) is not None)  # kept beside the last ones
    kept = min(planned, training.save_total_limit + best if training.save_total_limit else planned)
    to_write = max(0, kept - len(list(folder.glob("checkpoint-*"))))
    state = 0 if training.save_only_model else 10 if training.deepspeed else 8  # bytes of optimizer state a parameter
    needed = parameters * ((4 + state) * (to_write + 1) + 4)
    return check_free_space(folder, needed, f"{to_write} more checkpoints, one being written and the final model")


def _of_all_processes(problems: list[Problem], ids: list[str]) -> list[Problem]:
    """What any process found wrong (machines may see different files), and whether all read the same records."""
    everywhere = list(dict.fromkeys(gather_object(problems)))
    if len(set(gather_object([tuple(ids)]))) > 1 and not everywhere:
        everywhere.append(
            Problem("data", "the processes read different records", "Give all machines the same files and clips.")
        )
    return everywhere


def check_free_space(folder: Path, needed: int, purpose: str) -> list[Problem]:
    """A problem where the disk of `folder` (which need not exist yet) has less than `needed` bytes free."""
    parent = next(path for path in [folder, *folder.absolute().parents] if path.exists())
    free = shutil.disk_usage(parent).free
    if needed <= free:
        return []
    what = f"{purpose} need {needed / 1e9:.1f} GB, {free / 1e9:.1f} GB are free"
    return [Problem(str(folder), what, "Free some space, set save_total_limit, or choose another output_dir.")]


def count_parameters(training: TrainingArguments, model: ModelConfig, build: Callable[[], PreTrainedModel]) -> int:
    """Parameters of the model that `build` makes, without memory for them.

    Raises:
        Refused: with `use_peft`, PEFT does not take its settings, such as names of modules that are not there.
    """
    if training.deepspeed:  # ZeRO-3 would shard even this model, before there are processes to shard it over
        unset_hf_deepspeed_config()
    try:
        with torch.device("meta"):
            built = build()
            parameters = built.num_parameters()
            if model.use_peft:
                _try_adapter(built, model)
    finally:
        if training.deepspeed:
            set_hf_deepspeed_config(training.hf_deepspeed_config)
    return parameters


def _try_adapter(built: PreTrainedModel, model: ModelConfig) -> None:
    try:
        inject_adapter_in_model(get_peft_config(model), built)
    except ValueError as error:
        what = str(error).splitlines()[0].split(". ")[0].rstrip(".")
        remedy = "Of modules give several names, such as q_proj v_proj, or one as a pattern of whole names: .*q_proj."
        raise Refused.because("use_peft", what, remedy) from error
