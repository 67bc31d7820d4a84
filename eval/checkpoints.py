"""What an evaluation needs to know about a checkpoint before loading it: its folder, its own decoding and questions."""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from r1_aqa_repro.common.errors import Problem, Refused
from r1_aqa_repro.common.files import read_json
from r1_aqa_repro.model.files import MODEL_FILES, adapter_base, adapter_config, require_no_adapter
from r1_aqa_repro.model.folder import check_files, folder_of

_REMEDY = "Give a checkpoint folder, or a hub id such as Qwen/Qwen2-Audio-7B-Instruct."


def _is_count(value: Any) -> bool:
    return type(value) is int and value >= 0


def _is_factor(value: Any) -> bool:
    """As transformers has it: 2 is refused, 2.0 is not."""
    return (isinstance(value, float) or value == 1) and 0 < value < math.inf


def _is_share(value: Any) -> bool:
    return isinstance(value, int | float) and 0 < value <= 1


def _is_cutoff(value: Any) -> bool:
    return isinstance(value, int | float) and 0 <= value < 1


def _are_tokens(value: Any) -> bool:
    return isinstance(value, list) and all(map(_is_count, value))


def _are_words(value: Any) -> bool:
    return isinstance(value, list) and value != [] and all(word and _are_tokens(word) for word in value)


def _are_biases(value: Any) -> bool:
    pairs = value if isinstance(value, list) else []
    return pairs != [] and all(
        isinstance(pair, list) and len(pair) == 2 and _are_words(pair[:1]) and isinstance(pair[1], float)
        for pair in pairs
    )


# of a generation_config.json: what decides which token comes next, and whether a value can be meant; lengths and
# special tokens are not left to it
_DECODING: dict[str, Callable[[Any], bool]] = {
    "do_sample": lambda value: isinstance(value, bool),
    "temperature": _is_factor,
    "top_h": _is_share,
    "top_k": _is_count,
    "top_p": _is_share,
    "min_p": lambda value: _is_cutoff(value) or value == 1,
    "typical_p": _is_share,
    "epsilon_cutoff": _is_cutoff,
    "eta_cutoff": _is_cutoff,
    "repetition_penalty": _is_factor,
    "no_repeat_ngram_size": _is_count,
    "bad_words_ids": _are_words,
    "sequence_bias": _are_biases,
    "suppress_tokens": _are_tokens,
    "begin_suppress_tokens": _are_tokens,
}
_DEFAULT_TOP_K = 50  # transformers' own, for a checkpoint that samples and names no other


def local_folder(checkpoint: str | os.PathLike[str]) -> Path:
    """The folder of a checkpoint; a hub id is downloaded, or found in the local cache.

    Raises:
        Refused: there is neither such a folder nor such a model on the hub, or its files are not sound.
    """
    folder = folder_of(checkpoint) or _downloaded(Path(checkpoint))
    check_files(folder, _REMEDY)
    return folder


def _downloaded(name: Path) -> Path:
    if name.is_absolute() or len(name.parts) != 2 or name.parts[0] in (".", ".."):
        raise Refused.because(str(name), "there is no such folder", _REMEDY)
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(str(name), allow_patterns=list(MODEL_FILES)))
    except (OSError, ValueError) as error:
        what = f"there is no such folder, nor can it be had from the hub ({str(error).splitlines()[0]})"
        raise Refused.because(str(name), what, _REMEDY) from None


def base_folder(folder: Path) -> Path | None:
    """The base model of a folder that holds an adapter, downloaded if need be; None for a whole model."""
    base = adapter_base(folder)
    return None if base is None else local_folder(base)


def check_adapter(adapter: Path, base: Path) -> None:
    """Check that `adapter` can be put on `base`.

    Raises:
        Refused: `adapter` holds no sound adapter, or `base` holds one itself.
    """
    if adapter_config(adapter) is None:
        what = "the folder holds no adapter_config.json"
        raise Refused.because(str(adapter), what, "Give the folder of a LoRA adapter, or a whole model as --ckpt.")
    check_files(adapter, "Give the folder of a LoRA adapter.")
    require_no_adapter(base)


def decoding_settings(folder: Path) -> dict[str, Any]:
    """How a checkpoint itself would decode, by its generation_config.json; without one it is greedy.

    `do_sample` is always there; if it is true, so is `top_k`.

    Raises:
        Refused: the file is damaged, asks for beam search, or for what cannot be.
    """
    file = (base_folder(folder) or folder) / "generation_config.json"
    remedy = "Repair it, or evaluate with --decoding greedy."
    own = read_json(file, remedy) if file.is_file() else {}
    if own.get("num_beams") not in (None, 0, 1):
        raise Refused.because(str(file), "it asks for beam search, which this evaluation does not do", remedy)
    chosen = {name: own[name] for name in _DECODING if own.get(name) is not None}
    wrong = [Problem(str(file), f"{name} is {chosen[name]!r:.80}", remedy)
             for name in chosen if not _DECODING[name](chosen[name])]  # fmt: skip
    if wrong:
        raise Refused(wrong)
    if not chosen.get("do_sample", False):
        return chosen | {"do_sample": False}
    return {"top_k": _DEFAULT_TOP_K} | chosen


def held_out_set(folder: Path) -> dict[str, Any] | None:
    """The embedded held-out set that the run.json of a checkpoint folder, or of the folder above, names under
    `embedded_held_out`: `data` and, if they are named, `audio_dir` and `prompt_style`; None if neither names any.

    Raises:
        Refused: run.json is damaged.
    """
    for run_file in (folder / "run.json", folder.absolute().parent / "run.json"):
        if not run_file.is_file():
            continue
        try:
            named = read_json(run_file, "Give --data.").get("embedded_held_out")
            if named is not None:  # its paths are relative to run.json
                paths = {key: run_file.parent / named[key] for key in ("data", "audio_dir") if named.get(key)}
                return {"data": paths["data"], **named, **paths}
        except (ValueError, KeyError, AttributeError, TypeError) as error:
            what = f"the held-out set it names cannot be read ({error!r})"
            raise Refused.because(str(run_file), what, "Give --data.") from None
    return None
