"""The plan of an evaluation: every default resolved, every question read, whatever cannot work refused."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from eval.checkpoints import HeldOutSet, base_folder, check_adapter, decoding_settings, held_out_set, local_folder
from eval.evaluation import NO_AUDIO, Evaluation
from eval.settings import RECORDED, EvalSettings
from r1_aqa_repro.common.console import say
from r1_aqa_repro.common.errors import Refused
from r1_aqa_repro.common.files import sha256_of
from r1_aqa_repro.data.audio import check_audio
from r1_aqa_repro.data.mmau_versions import version_of
from r1_aqa_repro.data.questions import read_questions, with_answers
from r1_aqa_repro.model.files import model_digest

DEFAULT_DATA = Path("data/mmau/manifest.jsonl")
_VERSIONS_OF = ("torch", "transformers", "librosa", "soundfile")  # the packages that predictions depend on


@dataclass(frozen=True)
class Plan:
    """An evaluation that can start.

    Attributes:
        evaluation: what is to be answered, without predictions; those made with other settings are never mixed in.
        folder: of the checkpoint.
        adapter: folder of a LoRA adapter on top of it.
        device: of the model; `cuda` is each process's own.
        strict: whether a clip that cannot be used is refused.
        embed_audio: whether the page holds the clips.
    """

    evaluation: Evaluation
    folder: Path
    adapter: Path | None
    device: str
    strict: bool
    embed_audio: bool


def prepare(settings: EvalSettings) -> Plan:
    """Resolve every default and read the questions, without loading the model.

    Raises:
        Refused: no such checkpoint, adapter or data, bad records, some questions without answers and others with, or
            not one clip in its place.
    """
    folder = local_folder(settings.ckpt)
    if settings.adapter is not None:
        check_adapter(settings.adapter, folder)
    source = _source(settings, folder)
    out = settings.out or _default_out(settings, folder, source.data)
    if source.data.suffix == ".parquet" and source.data.is_file():
        from data_prep import mmau  # codecs and workers: whoever has a manifest needs none of them

        mmau.prepare([source.data], [source.audio_dir] if source.audio_dir else [], out / "data")
        source = HeldOutSet(out / "data" / "manifest.jsonl", None, source.prompt_style)
    read = read_questions(source.data, source.audio_dir)
    questions = read.records[: settings.limit]
    withheld = with_answers(questions, source.data)  # a test split without any answers is answered, not scored
    problems = read.problems + (withheld if len(withheld) < len(questions) else [])
    if problems:
        raise Refused(problems)
    if source.audio_dir is not None and not any(
        question.audio_path.is_relative_to(source.audio_dir.absolute()) for question in read.records
    ):
        what = f"the records of {source.data} name their own clips, which are not in it"
        raise Refused.because(str(source.audio_dir), what, "Give --audio-dir for an MMAU JSON only.")
    if all(check_audio(question.audio_path) for question in questions):
        what = f"none of the {len(questions)} clips can be read, the first being {questions[0].audio_path}"
        raise Refused.because(str(source.data), what, "Give the folder of the clips as --audio-dir.")

    device = settings.device or _default_device()
    data_sha256 = sha256_of(source.data)
    own_decoding = decoding_settings(folder) if settings.decoding == "checkpoint" else None
    if settings.repeats > 1 and not (own_decoding or {}).get("do_sample"):
        say(
            f"warning: decoding is greedy, so that the {settings.repeats} repeats of a question will be the same; they "
            "differ with --decoding checkpoint if the checkpoint's generation_config.json samples"
        )
    digest = model_digest(settings.adapter or folder, folder if settings.adapter else base_folder(folder))
    style = source.prompt_style or "answer"
    made_with = recorded_settings(settings, data_sha256, len(questions), style, device, own_decoding)
    paths = {"checkpoint": settings.ckpt, "adapter": settings.adapter, "data": source.data}
    paths["audio_dir"] = source.audio_dir
    evaluation = Evaluation(
        folder=out,
        questions=questions,
        predictions={},
        settings={"checkpoint_sha256": digest, **made_with},
        paths={name: str(path) for name, path in paths.items() if path is not None},
        version=version_of(read.records),
    )
    return Plan(evaluation, folder, settings.adapter, device, settings.strict, settings.embed_audio)


def recorded_settings(
    settings: EvalSettings,
    data_sha256: str,
    num_questions: int,
    prompt_style: str,
    device: str,
    own_decoding: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """What predictions depend on beside the model, as settings.json records it."""
    return {
        "data_sha256": data_sha256,
        "questions": num_questions,
        **{name: getattr(settings, name) for name in RECORDED},
        "prompt_style": prompt_style,
        "generation_config": own_decoding,
        "dtype": settings.dtype or ("float32" if device == "cpu" else "bfloat16"),
        "device": device.split(":")[0],
        **{package: importlib.metadata.version(package) for package in _VERSIONS_OF},
    }


def _source(settings: EvalSettings, folder: Path) -> HeldOutSet:
    """The data named in the settings, otherwise MMAU, otherwise the checkpoint's own set."""
    data = settings.data or (DEFAULT_DATA if DEFAULT_DATA.is_file() else None)
    if data is not None:
        return HeldOutSet(data, settings.audio_dir, settings.prompt_style)
    own = held_out_set(folder)
    if own is None:
        raise Refused.because(
            str(DEFAULT_DATA),
            f"there is no such file, and no run.json of {folder} names a held-out set of its own",
            "Make it with `python -m data_prep.mmau`, or give --data.",
        )
    return HeldOutSet(own.data, settings.audio_dir or own.audio_dir, settings.prompt_style or own.prompt_style)


def _default_out(settings: EvalSettings, folder: Path, data: Path) -> Path:
    name = data.stem + (NO_AUDIO if settings.no_audio else "")
    if settings.adapter is not None:
        return settings.adapter / "eval" / name
    if Path(settings.ckpt).is_dir():
        return folder / "eval" / name
    return Path("runs/eval") / settings.ckpt.replace("/", "--") / name


def _default_device() -> str:
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"
