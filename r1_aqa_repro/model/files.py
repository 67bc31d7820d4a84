"""The files of a saved model: which its answers depend on, their one digest, and what other programs read of them."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import stat
from pathlib import Path
from typing import Any

from transformers.tokenization_utils_base import PreTrainedTokenizerBase
from transformers.utils.hub import cached_file

from r1_aqa_repro.common.errors import Refused
from r1_aqa_repro.common.files import read_json, sha256_of, write_json

ADAPTER_CONFIG = "adapter_config.json"
PROCESSOR_FILES = (
    "processor_config.json",
    "preprocessor_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.json",
    "chat_template.jinja",
)
# every file that a model's answers depend on; a training checkpoint holds others beside them
MODEL_FILES = (
    "*.safetensors",
    "*.safetensors.index.json",
    "pytorch_model*.bin",
    "adapter_model*.bin",
    "config.json",
    ADAPTER_CONFIG,
    "generation_config.json",
    *PROCESSOR_FILES,
)


def adapter_config(name_or_path: str | os.PathLike[str]) -> dict[str, Any] | None:
    """The configuration of the adapter in a folder, as PEFT writes it; None for anything else.

    Raises:
        Refused: it cannot be read.
    """
    file = os.path.join(name_or_path, ADAPTER_CONFIG)
    return read_json(file, "Copy the adapter again.") if os.path.lexists(file) else None


def adapter_base(name_or_path: str | os.PathLike[str]) -> str | None:
    """The base model that a folder with a LoRA adapter names; None for anything else.

    Raises:
        Refused: the adapter's configuration cannot be read or names no base, or the base is an adapter itself (and may
            name this one as its own).
    """
    config = adapter_config(name_or_path)
    if config is None:
        return None
    file, base = os.path.join(name_or_path, ADAPTER_CONFIG), config.get("base_model_name_or_path")
    if not isinstance(base, str) or not base:
        what = f"it names no base model (base_model_name_or_path is {base!r:.80})"
        raise Refused.because(file, what, "Write the folder or hub id of the adapter's base there.")
    require_no_adapter(base)
    return base


def require_no_adapter(base: str | os.PathLike[str]) -> None:
    """Check a base model.

    Raises:
        Refused: it is an adapter itself.
    """
    if adapter_config(base) is not None:
        what = "it is an adapter itself, with nothing for another adapter to go on"
        raise Refused.because(
            str(base), what, "Give a whole model as the base, merged with r1_aqa_repro.merge_adapter."
        )


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


def snapshot_of(hub_id: str | os.PathLike[str]) -> Path | None:
    """Where the files of a hub id that has been loaded lie on this disk; None if they are not there."""
    config = cached_file(str(hub_id), "config.json", local_files_only=True, _raise_exceptions_for_missing_entries=False)
    return None if config is None else Path(config).parent


def processor_files(name_or_path: str | os.PathLike[str]) -> dict[str, bytes]:
    """The `PROCESSOR_FILES` of a folder, or of a hub id whose processor or tokenizer has been loaded, by name.

    Raises:
        Refused: there are none.
    """
    # loading has put every file there is into the cache; to ask the hub again would need a network
    options = {"local_files_only": True, "_raise_exceptions_for_missing_entries": False}
    paths = {name: cached_file(str(name_or_path), name, **options) for name in PROCESSOR_FILES}
    files = {name: Path(path).read_bytes() for name, path in paths.items() if path is not None}
    if not files:
        what = "no files of a tokenizer or processor can be read there"
        raise Refused.because(str(name_or_path), what, "Copy those of the base model into the folder.")
    return files


def make_portable(folder: Path, files: dict[str, bytes]) -> None:
    """Let other programs, and transformers 4 too, read a model or an adapter that transformers 5 has just saved.

    transformers 5 writes processors that 4 cannot read: the folder gets `files`, those of the base model as
    `processor_files` read them, instead. And other users, as far as the umask lets them.
    """
    for name in PROCESSOR_FILES:
        (folder / name).unlink(missing_ok=True)
    for name, content in files.items():
        (folder / name).write_bytes(content)
    _let_others_read(folder, folder / next(iter(files)))
    add_older_names(folder)


def _let_others_read(folder: Path, like: Path) -> None:
    """Give weights the mode of another file: safetensors 0.8 lets their owner alone read them."""
    for weights in folder.glob("*.safetensors"):
        weights.chmod(stat.S_IMODE(like.stat().st_mode))


def add_older_names(folder: Path) -> None:
    """Let `config.json`, if there is one, say everything by the names of transformers 4 too; 5 takes them for the same.

    The positions of a model with YaRN become its trained length: 4.49 computes from that, and Qwen's model cards say
    it.
    """
    if not (folder / "config.json").is_file():  # an adapter's
        return
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    for part in (config, config.get("text_config", {})):
        if "dtype" in part:
            part["torch_dtype"] = part["dtype"]
        if rope := dict(part.get("rope_parameters", {})):
            part["rope_theta"] = rope.pop("rope_theta")
            if rope["rope_type"] != "default":
                part["rope_scaling"] = rope
            if rope["rope_type"] == "yarn":
                part["max_position_embeddings"] = rope["original_max_position_embeddings"]
    write_json(folder / "config.json", config)


def save_whole(out: Path, model: Any, tokenizer: PreTrainedTokenizerBase, *others: Any) -> None:
    """Save a model and what belongs to it in a new folder, which appears by one rename.

    The files are those of a published Qwen2 or Qwen2-Audio, which transformers 4 wrote.

    Raises:
        FileExistsError: `out` exists.
    """
    if out.exists():
        raise FileExistsError(f"{out} exists already")
    unfinished = out.with_name(f".{out.name}.partial")
    shutil.rmtree(unfinished, ignore_errors=True)
    save_files(unfinished, model, tokenizer, *others)
    os.replace(unfinished, out)


def save_files(folder: Path, model: Any, tokenizer: PreTrainedTokenizerBase, *others: Any) -> None:
    """Save the same files, one after the other, in a folder that is made if it is not there."""
    for part in (model, *others):
        part.save_pretrained(folder)
    add_older_names(folder)
    _save_tokenizer(folder, tokenizer)
    _let_others_read(folder, folder / "tokenizer_config.json")


def _save_tokenizer(folder: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    """`tokenizer.json`, `vocab.json`, `merges.txt` and `tokenizer_config.json` as transformers 4 wrote them."""
    backend = tokenizer.backend_tokenizer
    backend.save(str(folder / "tokenizer.json"))
    backend.model.save(str(folder))
    flags = ("content", "lstrip", "normalized", "rstrip", "single_word", "special")
    added = tokenizer.added_tokens_decoder
    write_json(
        folder / "tokenizer_config.json",
        {
            "add_prefix_space": False,
            "added_tokens_decoder": {id: {flag: getattr(token, flag) for flag in flags} for id, token in added.items()},
            "additional_special_tokens": [token.content for token in added.values() if token.special],
            "bos_token": None,
            "chat_template": tokenizer.chat_template,
            "clean_up_tokenization_spaces": False,
            "eos_token": tokenizer.eos_token,
            "errors": "replace",
            "model_max_length": tokenizer.model_max_length,
            "pad_token": tokenizer.pad_token,
            "padding_side": tokenizer.padding_side,
            "split_special_tokens": False,
            "tokenizer_class": "Qwen2Tokenizer",
            "unk_token": None,
        },
    )
