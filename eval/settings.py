"""What to evaluate and how: one list of settings, from which commands make their options. Imports nothing heavy."""

from __future__ import annotations

from argparse import ArgumentParser, _ArgumentGroup
from collections.abc import Callable, Collection
from dataclasses import MISSING, dataclass, fields
from pathlib import Path
from typing import Any, get_type_hints

from r1_aqa_repro.common.console import key, one_of, positive
from r1_aqa_repro.common.files import output_folder
from r1_aqa_repro.data.prompts import PROMPT_STYLES

AUTO = "auto"
# what settings.json records of the settings under the same name, because predictions depend on it
RECORDED = (
    "prompt_style", "decoding", "repeats", "permute_choices", "max_new_tokens", "batch_size", "audio_channel",
    "no_audio", "dtype",
)  # fmt: skip


def _auto_or_positive(text: str) -> int | str:
    return text if text == AUTO else positive(text)


# how options are read, and what their help calls the value, by the type of the setting
_READ: dict[Any, tuple[Callable[[str], Any], str]] = {
    Path | None: (Path, "PATH"),
    int: (positive, "N"),
    int | None: (positive, "N"),
    int | str: (_auto_or_positive, "auto|N"),
}


@dataclass(frozen=True)
class EvalSettings:
    """What to evaluate and how; each is an option of `eval.benchmark` and `eval.mmau`, which explain it."""

    ckpt: str = key(MISSING, "checkpoint folder or hub id")
    adapter: Path | None = key(None, "folder of a LoRA adapter on top of --ckpt")
    data: Path | None = key(
        None,
        "manifest, the benchmark's JSON or a parquet file, which is unpacked to OUT/data (default: "
        "data/BENCHMARK/manifest.jsonl; of mmau, else the embedded held-out set of the checkpoint)",
    )
    audio_dir: Path | None = key(None, "folder of a benchmark file's clips (default: the file's own)")
    out: Path | None = key(
        None,
        "folder to write to (default: CKPT/eval/STEM_OF_DATA, of another benchmark than mmau CKPT/eval/BENCHMARK, with "
        "-no-audio at its end with --no-audio; of a hub id below runs/eval, with an adapter below the adapter)",
    )
    prompt_style: str | None = key(None, "default: answer (embedded set: its own)", PROMPT_STYLES)
    decoding: str = key(
        "greedy",
        "the likeliest token; as the checkpoint's generation_config.json says, as R1-AQA evaluates; or sampled at "
        "temperature 1 from the whole vocabulary, as training samples",
        ("greedy", "checkpoint", "sample"),
    )
    repeats: int = key(1, "completions a question")
    permute_choices: int = key(1, "orders of the choices to ask each question in, the first being the file's")
    batch_size: int | str = key(
        AUTO,
        "questions at once, with all their repeats; auto: what half of the free memory holds; either is lowered if "
        "memory runs out",
    )
    limit: int | None = key(None, "only the first N questions")
    no_audio: bool = key(False, "silence of the same length in place of every clip")
    max_new_tokens: int = key(256, "longest completion")
    audio_channel: str = key("first", "of several channels", ("first", "mean"))
    strict: bool = key(False, "refuse to start if a clip cannot be read")
    dtype: str | None = key(None, "default: bfloat16 on a GPU, otherwise float32", ("float32", "bfloat16"))
    device: str | None = key(None, "such as cpu, cuda, cuda:1 (default: the GPU if there is one)")
    embed_audio: bool = key(False, "put the clips into report.html, so that it can be handed on alone")


NAMES = tuple(one.name for one in fields(EvalSettings))


def readers(names: Collection[str]) -> dict[str, Callable[[str], Any]]:
    """How these settings are read in a configuration, for `yaml_file.as_options`: as their options are."""
    kinds, found = get_type_hints(EvalSettings), {}
    for one in fields(EvalSettings):
        if one.name in names:
            choices, kind = one.metadata.get("choices"), kinds[one.name]
            found[one.name] = one_of(choices) if choices else bool if kind is bool else _READ.get(kind, (str, None))[0]
    return found


def add_options(parser: ArgumentParser | _ArgumentGroup, names: Collection[str]) -> None:
    """Add the options of these settings to a parser, in the order of the settings."""
    kinds = get_type_hints(EvalSettings)
    for one in fields(EvalSettings):
        if one.name in names:
            flag, kind, told = f"--{one.name.replace('_', '-')}", kinds[one.name], one.metadata["help"]
            if kind is bool:
                parser.add_argument(flag, action="store_true", help=told)
                continue
            default = None if one.default is MISSING else one.default
            told += "" if default is None else f" (default: {default})"
            read, metavar = (output_folder, "PATH") if one.name == "out" else _READ.get(kind, (str, None))
            choices = one.metadata.get("choices")
            parser.add_argument(flag, type=read, metavar=metavar, choices=choices, default=default, help=told)
