"""A model's folder is somebody else's: what is checked of its files before any library reads them.

Nothing in it decides by its word alone what else is read, what is run, or how much memory is taken: weights lie in the
folder itself and are no pickles, numbers that something is made as large as have limits, and a chat template has to
show a text within seconds.
"""

from __future__ import annotations

import functools
import os
import signal
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from r1_aqa_repro.common.errors import Problem, Refused
from r1_aqa_repro.common.files import read_json, unreadable
from r1_aqa_repro.model.files import ADAPTER_CONFIG, MODEL_FILES, adapter_config

INDEX = "model.safetensors.index.json"
_AGAIN = "Fetch or write it again."
_LARGEST_FILE = 2**28  # bytes of a file that is no weights; Qwen2's tokenizer.json has 11 million
_NO_SETTINGS = ("tokenizer.json", "vocab.json", "added_tokens.json", INDEX)  # of the JSON files
# what transformers and PEFT make something as large as, and the largest that is believed
_LIMITS = {
    **dict.fromkeys(("num_hidden_layers", "encoder_layers"), 1000),
    **dict.fromkeys(("num_attention_heads", "num_key_value_heads", "encoder_attention_heads"), 2**16),
    **dict.fromkeys(("hidden_size", "intermediate_size", "head_dim", "d_model", "encoder_ffn_dim"), 2**20),
    **dict.fromkeys(("num_mel_bins", "feature_size"), 2**12),
    **dict.fromkeys(("n_fft", "hop_length", "max_source_positions"), 2**16),
    **{"vocab_size": 2**24, "max_position_embeddings": 2**30, "chunk_length": 3600, "sampling_rate": 2**20, "r": 2**16},
}
_LARGEST_ID = 2**24  # of a token
_TEMPLATE_SECONDS = 10.0


def folder_of(name_or_path: str | os.PathLike[str]) -> Path | None:
    """The folder of a model; None for a hub id, or what could be one.

    Raises:
        Refused: it is a file, or it cannot be looked into.
    """
    where = str(name_or_path)
    try:
        os.listdir(where)
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:  # no permission, a name that nothing can have
        reason = "it is a file" if os.path.isfile(where) else getattr(error, "strerror", None) or error
        what = f"it is no folder that can be read ({reason})"
        raise Refused.because(where, what, "Give the folder of a model that this user can read.") from None
    return Path(where)


def check_files(folder: Path, remedy: str) -> None:
    """Check the files of a model or an adapter that libraries would read, of weights the headers only.

    Args:
        folder: of the model.
        remedy: what to do if it holds no weights.

    Raises:
        Refused: see `check_settings_files`; weights that are absent, pickled, damaged, or lie elsewhere; an adapter of
            another rank than it says.
    """
    check_settings_files(folder)
    _check_weights(folder, remedy)


def check_settings_files(folder: Path) -> None:
    """Check what libraries would read beside the weights.

    Raises:
        Refused: with every file that cannot be read or is not to be believed.
    """
    problems = []
    for file in sorted({file for pattern in MODEL_FILES for file in folder.glob(pattern)}):
        if file.suffix == ".bin":
            continue
        if (reason := unreadable(file)) is not None:
            problems.append(Problem(str(file), reason, "Make it a file that this user can read."))
        elif file.suffix != ".safetensors" and (size := file.stat().st_size) > _LARGEST_FILE:
            problems.append(Problem(str(file), f"{size:,} bytes are no settings of a model", _AGAIN))
        elif file.suffix == ".json" and file.name not in _NO_SETTINGS:
            wrong = list(_absurd(read_json(file, _AGAIN)))
            problems += [Problem(str(file), what, "Take the file of the model as it was published.") for what in wrong]
    if problems:
        raise Refused(problems)


def _absurd(settings: Mapping[str, Any]) -> Iterator[str]:
    """What is wrong with the numbers among settings, and with those inside them."""
    for key, value in settings.items():
        if isinstance(value, Mapping):
            yield from _absurd(value)
        elif key in _LIMITS and value is not None:
            if type(value) is not int or not 1 <= value <= _LIMITS[key]:
                yield f"{key} is {value!r:.80}, no number from 1 to {_LIMITS[key]:,}"
        elif key.endswith("_token_id") and value is not None:
            ids = value if isinstance(value, list) else [value]
            if not all(type(one) is int and -1 <= one <= _LARGEST_ID for one in ids):
                yield f"{key} is {value!r:.80}, not the number of a token"


def _check_weights(folder: Path, remedy: str) -> None:
    if (folder / INDEX).is_file():
        index = read_json(folder / INDEX, _AGAIN).get("weight_map")
        shards: list[Any] = list(index.values()) if isinstance(index, dict) else [None]
        for shard in shards:
            if not isinstance(shard, str) or Path(shard).name != shard or not shard.endswith(".safetensors"):
                what = f"it names {shard!r:.80}, which is no file of weights in this folder"
                raise Refused.because(str(folder / INDEX), what, _AGAIN)
        missing = sorted({shard for shard in shards if not (folder / shard).is_file()})
        if missing:
            raise Refused.because(str(folder), f"weight files are missing: {', '.join(missing)}", "Fetch them again.")
    files, pickles = sorted(folder.glob("*.safetensors")), sorted(folder.glob("*.bin"))
    if not files and pickles:
        what = f"its weights are pickled ({pickles[0].name}), and to read a pickle is to run what somebody wrote"
        raise Refused.because(str(folder), what, "Convert them to safetensors where you trust who made them.")
    if not files:
        raise Refused.because(str(folder), "the folder holds no weights", remedy)
    shapes: dict[str, list[int]] = {}
    for file in files:
        try:
            with safe_open(file, framework="pt") as opened:
                shapes |= {name: opened.get_slice(name).get_shape() for name in opened.keys()}  # noqa: SIM118
        except (SafetensorError, OSError) as error:
            raise Refused.because(str(file), f"damaged or cut off ({error})", _AGAIN) from error
    _check_rank(folder, shapes)


def _check_rank(folder: Path, shapes: Mapping[str, list[int]]) -> None:
    """Refuse an adapter whose configuration says another rank than its tensors have: PEFT makes room by that first."""
    config = adapter_config(folder) or {}
    found = {shape[0] for name, shape in shapes.items() if "lora_A" in name or "lora_embedding_A" in name}
    pattern = config.get("rank_pattern") or {}
    said = {config.get("r"), *(pattern.values() if isinstance(pattern, Mapping) else [pattern])}
    if found and (found - said or any(type(rank) is not int or rank > max(found) for rank in said)):
        ranks, named = (", ".join(map(str, sorted(those, key=str))) for those in (found, said))
        what = f"it says rank {named:.80}, the adapter's tensors have {ranks}"
        raise Refused.because(str(folder / ADAPTER_CONFIG), what, "Copy configuration and weights of one adapter.")


def check_finite(folder: Path) -> None:
    """Read all weights of a model's or an adapter's files, one tensor after the other, at some 5 GB a second.

    A process that asks again, as it does when it loads what it has checked before, reads what has changed since.

    Raises:
        Refused: one of them is not finite; file and tensor are named. A file is damaged.
    """
    for file in sorted(folder.glob("*.safetensors")):
        try:
            state = file.stat()
            tensor = _known_not_finite(file, state.st_ino, state.st_size, state.st_mtime_ns)
        except (SafetensorError, OSError) as error:
            raise Refused.because(str(folder), f"its weights are damaged or cut off ({error})", _AGAIN) from error
        if tensor is not None:
            what = f"the tensor {tensor} is not finite (NaN or infinity): every answer of this model would be noise"
            raise Refused.because(str(file), what, "Take an earlier checkpoint.")


@functools.cache
def _known_not_finite(file: Path, *state: int) -> str | None:
    """`not_finite` of a file in this state."""
    return not_finite(file)


def not_finite(file: Path) -> str | None:
    """The first tensor in a file of weights that holds a number that is not finite; None if there is none."""
    with safe_open(file, framework="pt") as opened:
        for name in opened.keys():  # noqa: SIM118
            tensor = opened.get_tensor(name)
            if tensor.numel() and tensor.is_floating_point():
                tensor = tensor.half() if tensor.itemsize == 1 else tensor  # of 8 bits there are no extremes
                # one pass and no copy; NaN is both
                if not all(extreme.isfinite() for extreme in tensor.aminmax()):
                    return str(name)
    return None


def check_template(processor: Any, messages: list[dict[str, Any]], shown: Mapping[str, int], where: str) -> None:
    """Try the chat template of a processor or tokenizer on a conversation.

    Args:
        processor: whose template it is.
        messages: the conversation.
        shown: texts that have to be in what it makes, and how often.
        where: the model, for the message.

    Raises:
        Refused: the template fails, does not end, or leaves something out.
    """
    remedy = "Copy the chat template of the base model into the folder."
    try:
        with _at_most(_TEMPLATE_SECONDS):
            text = processor.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    except Exception as error:  # a template may raise anything
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise Refused.because(where, f"the chat template fails ({reason})", remedy) from error
    lost = [part for part, times in shown.items() if text.count(part) != times]
    if lost:
        what = f"the chat template does not show {lost[0]!r} of a conversation as often as it is there"
        raise Refused.because(where, what, remedy)


@contextmanager
def _at_most(seconds: float) -> Iterator[None]:
    """End what runs inside after so many seconds with a TimeoutError; only the main thread can be ended."""

    def stop(*_: object) -> None:
        raise TimeoutError(f"it was not done after {seconds:g} s")

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
