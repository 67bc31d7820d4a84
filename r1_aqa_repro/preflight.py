"""Everything that can be known to be wrong before expensive work starts, checked first and reported at once."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
from transformers import Qwen2AudioForConditionalGeneration, TrainingArguments
from transformers.integrations.deepspeed import set_hf_deepspeed_config, unset_hf_deepspeed_config
from trl import ModelConfig

from r1_aqa_repro.audio import check_audio
from r1_aqa_repro.config import DataArguments
from r1_aqa_repro.console import is_main_process, say
from r1_aqa_repro.errors import Problem, Refused
from r1_aqa_repro.files import write_json
from r1_aqa_repro.inputs import minimum_seconds
from r1_aqa_repro.modeling import check_model_folder, check_pair, load_processor
from r1_aqa_repro.run_folder import check_run_folder, data_hashes, resolved_config, start_run
from r1_aqa_repro.schema import AudioQuestion, read_questions, with_answers

BYTES_PER_PARAMETER = 12  # of a checkpoint: float32 weights and Adam's two moments


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
    problems = list(extra)
    if getattr(training, "batch_problem", None):
        remedy = "Choose a number that the processes divide, or another number of processes."
        problems.append(Problem("batch rule", training.batch_problem, remedy))
    problems += _collect(lambda: _check_settings(training, model))
    found = _collect(lambda: _check_model(model))
    problems += found
    shortest = 0.1 if found else minimum_seconds(load_processor(model.model_name_or_path))
    questions: list[AudioQuestion] = []
    dropped: list[Problem] = []
    try:
        questions, bad = _read_data(data, shortest)
        if data.skip_bad_records and questions:
            dropped = bad
        else:
            problems += bad
    except Refused as refusal:
        problems += refusal.problems
    folder = Path(str(training.output_dir))
    config = resolved_config(data=data, training=training, model=model)
    hashes = data_hashes(data.train_file)
    if not data.overwrite:
        problems += check_run_folder(folder, config, hashes)
    if not found:
        problems += _check_disk(folder, training, model)
    if problems:
        raise Refused(problems)
    if is_main_process():
        start_run(folder, config, hashes, training.seed, data.overwrite, _embedded_held_out(data, folder))
        if dropped:
            write_json(folder / "skipped_records.json", [str(problem) for problem in dropped])
            say(f"{len(dropped)} bad records are left out; they are listed in {folder / 'skipped_records.json'}")
    # no process may look for checkpoints before the main one has deleted those of an earlier run
    if training.distributed_state is not None:
        training.distributed_state.wait_for_everyone()
    return questions


def _embedded_held_out(data: DataArguments, folder: Path) -> dict[str, str] | None:
    """The held-out half of the embedded set, where the run trains on its other half: what `eval.mmau` looks for."""
    question_set = Path(str(data.train_file)).absolute().parent.parent
    if not (question_set / "question_set.json").is_file():
        return None
    held_out = question_set / "held_out"
    return {
        "data": os.path.relpath(held_out / "mmau_format.json", folder),
        "audio_dir": os.path.relpath(held_out, folder),
        "prompt_style": data.prompt_style,
    }


def _collect(check: Callable[[], None]) -> list[Problem]:
    try:
        check()
    except Refused as refusal:
        return refusal.problems
    return []


def _read_data(data: DataArguments, shortest: float) -> tuple[list[AudioQuestion], list[Problem]]:
    """The usable questions and a problem for every other one."""
    if data.train_file is None:
        raise Refused.because("train_file", "no training data is given", "Set train_file to a manifest or JSONL file.")
    read = read_questions(data.train_file)
    problems = read.problems + with_answers(read.questions, data.train_file)
    answered = [question for question in read.questions if question.answer is not None]
    with ThreadPoolExecutor(max_workers=min(16, (os.cpu_count() or 1) * 4)) as pool:
        verdicts = list(pool.map(lambda question: check_audio(question.audio_path, shortest), answered))
    remedy = "Restore or remove the clip, or give --skip_bad_records."
    for question, verdict in zip(answered, verdicts, strict=True):
        if verdict is not None:
            where = f"{data.train_file}: {question.id}"
            problems.append(Problem(where, f"{question.audio_path}: {verdict}", remedy))
    return [question for question, verdict in zip(answered, verdicts, strict=True) if verdict is None], problems


def _check_settings(training: TrainingArguments, model: ModelConfig) -> None:
    problems = []
    if model.dtype in ("bfloat16", "float16") and not training.deepspeed and not model.use_peft:
        problems.append(
            Problem(
                "dtype",
                f"pure {model.dtype} weights do not move at small learning rates: the update is below their resolution",
                "Use dtype: float32 with bf16: true (mixed precision with float32 master weights).",
            )
        )
    if model.attn_implementation not in (None, "sdpa", "eager"):
        problems.append(
            Problem(
                "attn_implementation",
                f"{model.attn_implementation} reads the shared-prefix mask as padding",
                "Use sdpa.",
            )
        )
    if problems:
        raise Refused(problems)


def _check_model(model: ModelConfig) -> None:
    if model.model_name_or_path is None:
        raise Refused.because(
            "model_name_or_path",
            "no model is given",
            "Set it to a Qwen2-Audio folder or hub id (the embedded run leaves one).",
        )
    config = check_model_folder(model.model_name_or_path)
    if (Path(model.model_name_or_path) / "adapter_config.json").is_file():
        raise Refused.because(
            model.model_name_or_path, "an adapter cannot be trained further", "Merge it into its base model first."
        )
    check_pair(config, load_processor(model.model_name_or_path), model.model_name_or_path)


def _check_disk(folder: Path, training: TrainingArguments, model: ModelConfig) -> list[Problem]:
    """Room for the checkpoints that the run keeps, one being written and the final model."""
    parameters = _count_parameters(training, model)
    if model.use_peft:
        parameters = parameters // 50  # an adapter is a few per cent of its base at most
    steps = training.max_steps if training.max_steps > 0 else 0
    planned = max(1, int(steps // training.save_steps)) if training.save_steps >= 1 else 1
    kept = min(planned, training.save_total_limit or planned)
    needed = parameters * (BYTES_PER_PARAMETER * (kept + 1) + 4)
    return check_free_space(folder, needed, f"{kept} checkpoints and one being written")


def check_free_space(folder: Path, needed: int, purpose: str) -> list[Problem]:
    """A problem where the disk of `folder` (which need not exist yet) has less than `needed` bytes free."""
    parent = next(path for path in [folder, *folder.absolute().parents] if path.exists())
    free = shutil.disk_usage(parent).free
    if needed <= free:
        return []
    what = f"{purpose} need {needed / 1e9:.1f} GB, {free / 1e9:.1f} GB are free"
    return [Problem(str(folder), what, "Free some space, set save_total_limit, or choose another output_dir.")]


def _count_parameters(training: TrainingArguments, model: ModelConfig) -> int:
    """Parameters of the model, built without memory for them."""
    config = check_model_folder(model.model_name_or_path)
    if training.deepspeed:  # ZeRO-3 would shard even this model, before there are processes to shard it over
        unset_hf_deepspeed_config()
    try:
        with torch.device("meta"):
            return Qwen2AudioForConditionalGeneration(config).num_parameters()
    finally:
        if training.deepspeed:
            set_hf_deepspeed_config(training.hf_deepspeed_config)
