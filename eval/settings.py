"""What to evaluate and how: one list of settings, from which commands make their options. Imports nothing heavy."""

from __future__ import annotations

import shlex
from argparse import ArgumentParser, _ArgumentGroup
from collections.abc import Callable, Collection, Mapping
from dataclasses import MISSING, dataclass, fields
from pathlib import Path
from typing import Annotated, Any, get_type_hints

from r1_aqa_repro.common.console import positive
from r1_aqa_repro.data.prompts import PROMPT_STYLES

AUTO = "auto"
# what settings.json records of the settings under the same name, because predictions depend on it
RECORDED = (
    "prompt_style", "decoding", "repeats", "permute_choices", "max_new_tokens", "batch_size", "audio_channel",
    "no_audio", "dtype",
)  # fmt: skip


def _auto_or_positive(text: str) -> int | str:
    return text if text == AUTO else positive(text)


@dataclass(frozen=True)
class _Option:
    """How a setting is given on a command line; see argparse."""

    help: str
    type: Callable[[str], Any] = str
    metavar: str | None = None
    choices: Collection[str] | None = None


@dataclass(frozen=True)
class EvalSettings:
    """What to evaluate and how; each is an option of `eval.mmau`, which explains it."""

    ckpt: Annotated[str, _Option("checkpoint folder or hub id", metavar="DIR_OR_HUB_ID")]
    adapter: Annotated[Path | None, _Option("LoRA adapter on top of --ckpt", Path, "DIR")] = None
    data: Annotated[
        Path | None,
        _Option(
            "manifest, MMAU JSON or parquet file, which is unpacked to OUT/data (default: data/mmau/manifest.jsonl, "
            "else the embedded held-out set of the checkpoint)",
            Path,
            "FILE",
        ),
    ] = None
    audio_dir: Annotated[
        Path | None, _Option("folder of an MMAU file's clips (default: the file's own)", Path, "DIR")
    ] = None
    out: Annotated[
        Path | None,
        _Option(
            "where to write (default: CKPT/eval/STEM_OF_DATA, with -no-audio at its end with --no-audio; of a hub id "
            "below runs/eval, with an adapter below the adapter)",
            Path,
            "DIR",
        ),
    ] = None
    prompt_style: Annotated[str | None, _Option("default: answer (embedded set: its own)", choices=PROMPT_STYLES)] = (
        None
    )
    decoding: Annotated[
        str,
        _Option(
            "the likeliest token, or as the checkpoint's generation_config.json says, as R1-AQA evaluates",
            choices=("greedy", "checkpoint"),
        ),
    ] = "greedy"
    repeats: Annotated[int, _Option("completions a question", positive, "K")] = 1
    permute_choices: Annotated[
        int, _Option("orders of the choices to ask each question in, the first being the file's", positive, "K")
    ] = 1
    batch_size: Annotated[
        int | str,
        _Option(
            "questions at once, with all their repeats; auto: what half of the free memory holds; either is lowered if "
            "memory runs out",
            _auto_or_positive,
            "auto|N",
        ),
    ] = AUTO
    limit: Annotated[int | None, _Option("only the first N questions", positive, "N")] = None
    no_audio: Annotated[bool, _Option("silence of the same length in place of every clip")] = False
    max_new_tokens: Annotated[int, _Option("longest completion", positive, "N")] = 256
    audio_channel: Annotated[str, _Option("of several channels", choices=("first", "mean"))] = "first"
    strict: Annotated[bool, _Option("refuse to start if a clip cannot be read")] = False
    dtype: Annotated[
        str | None, _Option("default: bfloat16 on a GPU, otherwise float32", choices=("float32", "bfloat16"))
    ] = None
    device: Annotated[
        str | None, _Option("such as cpu, cuda, cuda:1 (default: the GPU if there is one)", metavar="DEVICE")
    ] = None
    embed_audio: Annotated[bool, _Option("put the clips into report.html, so that it can be handed on alone")] = False


NAMES = tuple(one.name for one in fields(EvalSettings))


def add_options(parser: ArgumentParser | _ArgumentGroup, names: Collection[str]) -> None:
    """Add the options of these settings to a parser, in the order of the settings."""
    hints = get_type_hints(EvalSettings, include_extras=True)
    for one in fields(EvalSettings):
        if one.name in names:
            flag, option = f"--{one.name.replace('_', '-')}", hints[one.name].__metadata__[0]
            default = None if one.default is MISSING else one.default
            if default is False:
                parser.add_argument(flag, action="store_true", help=option.help)
            else:
                told = option.help + ("" if default is None else f" (default: {default})")
                given = {"type": option.type, "metavar": option.metavar, "choices": option.choices}
                parser.add_argument(flag, default=default, help=told, **given)


def repeating_command(settings: Mapping[str, Any], paths: Mapping[str, str]) -> str:
    """The command line that makes the same predictions, or scores the same ones; empty for a model in training.

    Args:
        settings, paths: as in settings.json.
    """
    is_scoring = "predictions" in paths
    if "training_step" in settings and not is_scoring:
        return ""
    where = {name: path for name, path in paths.items() if not is_scoring or name not in ("checkpoint", "adapter")}
    given = where | {"limit": settings.get("questions")}
    given |= {name: settings.get(name) for name in (("prompt_style",) if is_scoring else RECORDED)}
    command = ["python", "-m", "eval.mmau"]
    for name, value in given.items():
        option = "--ckpt" if name == "checkpoint" else f"--{name.replace('_', '-')}"
        if value not in (None, False):
            command += [option] if value is True else [option, str(value)]
    return shlex.join(command)
