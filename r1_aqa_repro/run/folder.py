"""The folder of a run: whose it is, what made it, and whether a command may go on in it.

`config.resolved.yaml` holds every setting after file and command line, `run.json` the git commit, versions, seeds,
data hashes, hardware and the seconds of each stage.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import psutil
import torch
import yaml
from datasets import Dataset, load_dataset
from transformers import TrainingArguments
from trl import ModelConfig, get_peft_config

from r1_aqa_repro.common.claim import differences
from r1_aqa_repro.common.console import say
from r1_aqa_repro.common.distributed import num_processes
from r1_aqa_repro.common.errors import Problem, Refused
from r1_aqa_repro.common.files import read_json, sha256_of, unreadable, write_atomically, write_json
from r1_aqa_repro.data.conversations import TextPrompt
from r1_aqa_repro.data.yaml_file import read_yaml
from r1_aqa_repro.model.encoded_audio import ENCODED
from r1_aqa_repro.run.checkpoints import FINAL, WEIGHTS, last_checkpoint
from r1_aqa_repro.run.clips import MEASURED, SKIPPED
from r1_aqa_repro.run.evaluating import EVALUATIONS
from r1_aqa_repro.run.samples import SAMPLES
from r1_aqa_repro.run.training_state import STAGING

CONFIG, RUN = "config.resolved.yaml", "run.json"
EXAMPLES = "examples"  # folder inside the run folder: the data as a library's trainer takes it
PACKAGES = (
    "torch", "transformers", "trl", "accelerate", "deepspeed", "datasets", "peft", "librosa", "soundfile", "numpy",
)  # fmt: skip
# settings that do not change what a run computes: a resumed run may differ in them
_FREE = (
    "overwrite", "output_dir", "logging_dir", "report_to", "run_name",
    "disable_tqdm", "log_level", "log_level_replica", "dataloader_num_workers", "dataloader_pin_memory",
    "dataloader_prefetch_factor", "dataloader_persistent_workers", "save_total_limit", "save_steps", "save_strategy",
    "keep_optimizer", "save_on_signal", "push_to_hub", "hub_model_id", "hub_token", "hub_strategy", "hub_private_repo",
    "resume_from_checkpoint", "log_completions", "num_completions_to_print", "ddp_timeout", "project",
    "trackio_space_id", "check_audio", "max_bad_clips", "eval_no_audio",
)  # fmt: skip

# settings that change memory, time and the order of sums, not the mathematics: a resumed run may differ in them, and is
# told. What is derived follows from them and from the number of processes
_HOW_COMPUTED = (
    "activation_checkpointing", "max_prompts_per_device", "max_examples_per_device", "local_rollout_forward_batch_size",
    "deepspeed", "sharing", "cuda_graphs",
)  # fmt: skip
_SAMPLED_TOGETHER = ("max_prompts_per_device", "local_rollout_forward_batch_size")  # how many completions are
_DERIVED = (
    "per_device_train_batch_size", "gradient_accumulation_steps", "generation_batch_size", "gradient_checkpointing",
    "gradient_checkpointing_kwargs",
)  # fmt: skip

_OTHER_DIGEST = " (or the run was made when the digest of a model covered other files)"


def resolved_config(**parts: Any) -> dict[str, dict[str, Any]]:
    """Plain dictionaries of the dataclasses given by name (TrainingArguments through `to_dict`, which hides tokens)."""
    as_dict = {name: part.to_dict() if hasattr(part, "to_dict") else vars(part) for name, part in parts.items()}
    return json.loads(json.dumps(as_dict, default=str))


def check_run_folder(
    folder: Path, config: Mapping[str, Mapping[str, Any]], hashes: Mapping[str, Mapping[str, str]]
) -> list[Problem]:
    """Why a run with this configuration, data and models must not go on in `folder`; empty if it may.

    Raises:
        Refused: the records of the run in it are damaged.
    """
    remedy = "Choose another --output_dir, or give --overwrite to delete the earlier run."
    if not (folder / CONFIG).is_file():
        if last_checkpoint(folder) or (folder / FINAL).exists():
            return [Problem(str(folder), f"holds checkpoints but no {CONFIG}: it is no run of this project", remedy)]
        return []
    record = read_json(folder / RUN, remedy) if os.path.exists(folder / RUN) else {}
    try:
        there = {part: dict(values) for part, values in read_yaml(folder / CONFIG).items()}
        known = {kind: dict(record.get(kind, {})) for kind in hashes}
    except (Refused, ValueError, TypeError, AttributeError) as error:
        what = f"its records are damaged, so that nothing tells which run it is ({CONFIG}, {RUN}: {error})"
        raise Refused.because(str(folder), what, remedy) from None
    differing = []
    may_differ = _FREE + _HOW_COMPUTED + _DERIVED
    for part, values in config.items():  # a key that is no longer known does not count
        differing += differences({key: there.get(part, {}).get(key) for key in values}, values, may_differ)
    differing += [
        f"the content of {path} has changed" + (_OTHER_DIGEST if kind == "models" else "")
        for kind, digests in hashes.items()
        for path, digest in digests.items()
        if known[kind].get(path, digest) != digest
    ]
    if not differing:
        return []
    return [Problem(str(folder), "is the folder of another run: " + ", ".join(differing), remedy)]


def start_run(
    folder: Path,
    config: Mapping[str, Mapping[str, Any]],
    hashes: Mapping[str, Mapping[str, str]],
    seed: int,
    overwrite: bool,
) -> None:
    """Make the folder a run's own (deleting an earlier run's checkpoints and records if `overwrite`).

    `hashes` are those of what the run reads: `data`, from `data_hashes`, and `models`, a digest by folder.
    """
    if overwrite:
        # the records first: a kill in between leaves no run that would go on from half a checkpoint
        for name in (CONFIG, RUN, SKIPPED, MEASURED, SAMPLES):
            (folder / name).unlink(missing_ok=True)
        made = (FINAL, STAGING, EVALUATIONS, ENCODED, EXAMPLES)
        written = (path for name in ("checkpoint", WEIGHTS) for path in folder.glob(f"{name}-*"))
        for path in [*written, *(folder / name for name in made)]:
            shutil.rmtree(path, ignore_errors=True)
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / RUN).is_file():
        digest = hashlib.sha256(json.dumps(config, sort_keys=True).encode()).hexdigest()
        record = {
            **provenance(),
            "config_sha256": digest,
            "seed": seed,
            "processes": num_processes(),
            **{kind: dict(digests) for kind, digests in hashes.items()},
            "seconds": {},
        }
        write_json(folder / RUN, record)
    else:
        _note_changes(folder, config)
    write_atomically(folder / CONFIG, yaml.safe_dump(dict(config), sort_keys=True, allow_unicode=True))


def _note_changes(folder: Path, config: Mapping[str, Mapping[str, Any]]) -> None:
    """Tell of what a resumed run does otherwise than before, and keep it in run.json."""
    last, record = last_checkpoint(folder), json.loads((folder / RUN).read_text(encoding="utf-8"))
    if last is None or (folder / FINAL).is_dir():
        return
    there = yaml.safe_load((folder / CONFIG).read_text(encoding="utf-8"))
    changes = []
    for part, values in config.items():
        before, now = ({key: each.get(key) for key in _HOW_COMPUTED if key in each} for each in (there[part], values))
        changes += differences(before, now)
    changes += differences({"processes": record["processes"]}, {"processes": num_processes()})
    if not changes:
        return
    say(
        f"warning: {', '.join(changes)}. The run goes on from the same weights and optimizer state, but sums are taken "
        "in another order: the last bits may differ from those of the run as it began"
    )
    if record["processes"] != num_processes():
        say("warning: random numbers belong to a process: those to come are drawn anew, of seed and step")
    elif any(change.startswith(_SAMPLED_TOGETHER) for change in changes):
        say("warning: completions are sampled in other batches, so that other ones are drawn than would have been")
    change = {"after": last.name, "changes": changes}
    update_run(folder, processes=num_processes(), resumed=[*record.get("resumed", []), change])


def trl_arguments(
    training: TrainingArguments,
    model: ModelConfig,
    records: Sequence[TextPrompt],
    held_out: Sequence[Any],
) -> dict[str, Any]:
    """What TRL's trainers take beside a model. The datasets are in the run folder, the same for all processes."""
    return {
        "args": training,
        "peft_config": get_peft_config(model),
        "train_dataset": _dataset("train", records, training),
        "eval_dataset": _dataset("held_out", held_out, training) if held_out else None,
    }


def _dataset(name: str, records: Sequence[TextPrompt], training: TrainingArguments) -> Dataset:
    """From a file, not from memory: what TRL caches beside a dataset in memory (reference log-probs of DPO) only the
    process that computed it would find. And from Parquet: out of JSON, texts that all look like dates come as such."""
    folder = Path(str(training.output_dir)) / EXAMPLES
    file = folder / f"{name}.parquet"
    with training.main_process_first(local=False):  # the folder is shared by all machines
        if training.process_index == 0 and not file.is_file():
            folder.mkdir(parents=True, exist_ok=True)
            Dataset.from_list([record.row() for record in records]).to_parquet(str(file.with_suffix(".partial")))
            os.replace(file.with_suffix(".partial"), file)
        return load_dataset("parquet", data_files=str(file), split="train", cache_dir=str(folder / "cache"))


def recorded(folder: Path) -> dict[str, Any]:
    """What run.json holds; nothing if there is none."""
    return dict(json.loads((folder / RUN).read_text(encoding="utf-8"))) if (folder / RUN).is_file() else {}


def update_run(folder: Path, **values: Any) -> None:
    """Add keys to run.json."""
    write_json(folder / RUN, recorded(folder) | values)


def provenance() -> dict[str, Any]:
    """Git commit and dirty flag of this source tree, package versions, hardware."""
    root = Path(__file__).resolve().parents[2]
    commit = _git(root, "rev-parse", "HEAD")
    return {
        "git_commit": commit,
        "dirty": bool(_git(root, "status", "--porcelain")) if commit else None,
        "versions": {"python": platform.python_version(), **{name: version(name) for name in PACKAGES}},
        "hardware": {
            "cpu": platform.processor() or platform.machine(),
            "cores": os.cpu_count(),
            "threads": torch.get_num_threads(),
            "memory_gb": round(psutil.virtual_memory().total / 1e9, 1),
            "gpus": [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())],
        },
    }


def data_hashes(*files: str | os.PathLike[str] | None) -> dict[str, str]:
    """SHA-256 by path of the data files a run reads, of those that can be read."""
    return {str(file): sha256_of(file) for file in files if file is not None and unreadable(file) is None}


def _git(root: Path, *arguments: str) -> str | None:
    try:
        done = subprocess.run(["git", "-C", str(root), *arguments], capture_output=True, text=True, timeout=30)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None
