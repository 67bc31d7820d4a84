"""The files of a saved model: which of them its answers depend on, and the one digest of them."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

from r1_aqa_repro.common.errors import Refused
from r1_aqa_repro.common.files import sha256_of

ADAPTER_CONFIG = "adapter_config.json"
# every file that a model's answers depend on; a training checkpoint holds others beside them
MODEL_FILES = (
    "*.safetensors",
    "*.safetensors.index.json",
    "pytorch_model*.bin",
    "adapter_model*.bin",
    "config.json",
    ADAPTER_CONFIG,
    "generation_config.json",
    "processor_config.json",
    "preprocessor_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.*",
)


def adapter_config(name_or_path: str | os.PathLike[str]) -> dict[str, Any] | None:
    """The configuration of the adapter in a folder, as PEFT writes it; None for anything else."""
    file = Path(name_or_path) / ADAPTER_CONFIG
    return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else None


def adapter_base(name_or_path: str | os.PathLike[str]) -> str | None:
    """The base model that a folder with a LoRA adapter names; None for anything else."""
    config = adapter_config(name_or_path)
    return None if config is None else config["base_model_name_or_path"]


def model_digest(name_or_path: str | os.PathLike[str], base: str | os.PathLike[str] | None = None) -> str:
    """SHA-256 over the `MODEL_FILES` of a folder, and over those of its base model if it holds an adapter: the one that
    its configuration names, or `base`. A hub id stands for itself.

    Raises:
        Refused: the folder holds no weights.
    """
    folder = Path(name_or_path)
    if not folder.is_dir():
        return str(name_or_path)
    files = sorted({file for pattern in MODEL_FILES for file in folder.glob(pattern) if file.is_file()})
    if not any(file.suffix in (".safetensors", ".bin") for file in files):
        raise Refused.because(str(folder), "the folder holds no weights", "Give the folder of a saved checkpoint.")
    digests = {file.name: sha256_of(file) for file in files}
    base = base or adapter_base(folder)
    if base is not None:
        digests["base model"] = model_digest(base)
    return hashlib.sha256(json.dumps(digests, sort_keys=True, ensure_ascii=False).encode()).hexdigest()
