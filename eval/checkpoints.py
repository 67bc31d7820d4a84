"""What an evaluation needs to know about a checkpoint before loading it: its folder, its hash, its own questions."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path

from eval.predictions import digest
from r1_aqa_repro.errors import Refused
from r1_aqa_repro.files import sha256_of

# every file that a model's answers depend on; a training checkpoint holds others beside them
_MODEL_FILES = (
    "*.safetensors",
    "*.safetensors.index.json",
    "pytorch_model*.bin",
    "adapter_model*.bin",
    "config.json",
    "adapter_config.json",
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


@dataclass(frozen=True)
class HeldOutSet:
    """The held-out questions that a run was made with, as its run.json names them."""

    data: Path
    audio_dir: Path | None
    prompt_style: str | None


def local_folder(checkpoint: str | os.PathLike[str]) -> Path:
    """The folder of a checkpoint; a hub id is downloaded, or found in the local cache.

    Raises:
        Refused: there is neither such a folder nor such a model on the hub.
    """
    folder = Path(checkpoint)
    if folder.is_dir():
        return folder
    remedy = "Give a checkpoint folder, or a hub id such as Qwen/Qwen2-Audio-7B-Instruct."
    if folder.is_absolute() or len(folder.parts) != 2 or folder.parts[0] in (".", ".."):
        raise Refused.because(str(checkpoint), "there is no such folder", remedy)
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(str(checkpoint), allow_patterns=list(_MODEL_FILES)))
    except (OSError, ValueError) as error:
        what = f"there is no such folder, nor can it be had from the hub ({str(error).splitlines()[0]})"
        raise Refused.because(str(checkpoint), what, remedy) from None


def checkpoint_hash(folder: Path) -> str:
    """Hash of the bytes of every model file, and of the base model's where the folder holds an adapter.

    Raises:
        Refused: the folder holds no weights.
    """
    files = sorted({file for pattern in _MODEL_FILES for file in folder.glob(pattern) if file.is_file()})
    if not any(file.suffix in (".safetensors", ".bin") for file in files):
        raise Refused.because(str(folder), "the folder holds no weights", "Give the folder of a saved checkpoint.")
    hashes = {file.name: sha256_of(file) for file in files}
    adapter = folder / "adapter_config.json"
    if adapter.is_file():
        base = json.loads(adapter.read_text(encoding="utf-8"))["base_model_name_or_path"]
        hashes["base model"] = checkpoint_hash(local_folder(base))
    return digest(hashes)


def held_out_set(folder: Path) -> HeldOutSet | None:
    """The embedded held-out set that the run.json of a checkpoint folder, or of the folder above, names under
    `embedded_held_out` with paths relative to itself; None where none does.

    Raises:
        Refused: run.json is damaged.
    """
    for run_file in (folder / "run.json", folder.absolute().parent / "run.json"):
        if not run_file.is_file():
            continue
        try:
            named = json.loads(run_file.read_text(encoding="utf-8")).get("embedded_held_out")
            if named is None:
                continue
            audio_dir = named.get("audio_dir")
            return HeldOutSet(
                data=run_file.parent / named["data"],
                audio_dir=None if audio_dir is None else run_file.parent / audio_dir,
                prompt_style=named.get("prompt_style"),
            )
        except (ValueError, KeyError, AttributeError, TypeError) as error:
            raise Refused.because(
                str(run_file), f"the held-out set it names cannot be read ({error!r})", "Give --data."
            ) from None
    return None
