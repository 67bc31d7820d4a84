"""Records as the datasets that TRL's trainers for SFT, reward models and DPO take."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from datasets import Dataset, load_dataset
from transformers import TrainingArguments

from r1_aqa_repro.data.conversations import Message, PreferencePair, SFTExample, answer
from r1_aqa_repro.run.folder import EXAMPLES


def sft_row(example: SFTExample) -> dict[str, list[Message]]:
    """TRL's conversational prompt-completion form."""
    return {"prompt": example.prompt, "completion": answer(example.completion)}


def pair_row(pair: PreferencePair) -> dict[str, list[Message]]:
    """TRL's conversational preference form. Other columns stay out: TRL takes one called `margin` for its own."""
    return {"prompt": pair.prompt, "chosen": answer(pair.chosen), "rejected": answer(pair.rejected)}


def dataset_of(name: str, rows: Iterable[dict[str, Any]], training: TrainingArguments) -> Dataset:
    """The rows as a dataset kept in the run folder, the same for all processes.

    From a file, not from memory: what TRL caches beside a dataset in memory (reference log-probs of DPO) only the
    process that computed it would find. And from Parquet: out of JSON, texts that all look like dates come as such.
    """
    folder = Path(str(training.output_dir)) / EXAMPLES
    file = folder / f"{name}.parquet"
    with training.main_process_first(local=False):  # the folder is shared by all machines
        if training.process_index == 0 and not file.is_file():
            folder.mkdir(parents=True, exist_ok=True)
            Dataset.from_list(list(rows)).to_parquet(str(file.with_suffix(".partial")))
            os.replace(file.with_suffix(".partial"), file)
        return load_dataset("parquet", data_files=str(file), split="train", cache_dir=str(folder / "cache"))
