"""One evaluation from beginning to end: `prepare` refuses what cannot work, `carry_out` does the rest."""

from __future__ import annotations

import importlib.metadata
import json
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from eval.checkpoints import HeldOutSet, checkpoint_hash, held_out_set, local_folder
from eval.matcher import official
from eval.predictions import Prediction, PredictionFile
from eval.report import markdown_report
from eval.scores import score, version_of
from r1_aqa_repro.audio import check_audio
from r1_aqa_repro.errors import Refused
from r1_aqa_repro.files import sha256_of, write_atomically, write_json
from r1_aqa_repro.schema import AudioQuestion, limited, read_questions, with_answers

DEFAULT_DATA = Path("data/mmau/manifest.jsonl")
_VERSIONS_OF = ("torch", "transformers", "librosa", "soundfile")  # the packages that predictions depend on


@dataclass(frozen=True)
class EvalSettings:
    """What to evaluate and how.

    Attributes:
        ckpt: checkpoint folder or hub id.
        data: manifest or MMAU JSON file. Default: `data/mmau/manifest.jsonl`; where that is absent, the embedded
            held-out set that the checkpoint's run.json names.
        audio_dir: folder of the clips of an MMAU JSON file. Default: the file's own.
        out: folder to write to. Default: `<ckpt>/eval/<stem of data>`, with `-no-audio` where that is set; for a hub id
            the same below `runs/eval/<id>`.
        prompt_style: see `prompts.PROMPT_STYLES`. Default: the embedded set's own, otherwise `answer`.
        batch_size: questions generated for at once.
        limit: evaluate the first so many questions only.
        no_audio: put silence of the same length in place of every clip.
        max_new_tokens: longest completion.
        audio_channel: see `audio.load_audio`.
        strict: refuse to start where a clip cannot be used, instead of listing its question as lost.
        dtype: `float32` or `bfloat16`. Default: bfloat16 on a GPU, otherwise float32.
        device: a torch device. Default: the GPU where there is one.
    """

    ckpt: str
    data: Path | None = None
    audio_dir: Path | None = None
    out: Path | None = None
    prompt_style: str | None = None
    batch_size: int = 16
    limit: int | None = None
    no_audio: bool = False
    max_new_tokens: int = 256
    audio_channel: str = "first"
    strict: bool = False
    dtype: str | None = None
    device: str | None = None


@dataclass(frozen=True)
class Plan:
    """An evaluation that can start: every default resolved, every question read.

    `effective` holds whatever the predictions depend on; predictions made under another one are never mixed in.
    """

    folder: Path
    questions: list[AudioQuestion]
    version: str
    out: Path
    device: str
    strict: bool
    effective: dict[str, Any]
    paths: dict[str, str]


def evaluate(settings: EvalSettings) -> dict[str, Any]:
    """Evaluate a checkpoint, or go on with an evaluation that was interrupted.

    Returns:
        The content of scores.json.

    Raises:
        Refused: before anything is generated; see `prepare` and `carry_out`.
    """
    return carry_out(prepare(settings))


def prepare(settings: EvalSettings) -> Plan:
    """Resolve every default and read the questions, without loading the model.

    Raises:
        Refused: no such checkpoint or data, bad records, questions without answers, or not one clip in its place.
    """
    folder = local_folder(settings.ckpt)
    source = _source(settings, folder)
    read = read_questions(source.data, source.audio_dir)
    problems = read.problems + with_answers(read.questions, source.data)
    if problems:
        raise Refused(problems)
    questions = limited(read.questions, settings.limit)
    if all(check_audio(question.audio_path) for question in questions):
        what = f"none of the {len(questions)} clips can be read, the first being {questions[0].audio_path}"
        raise Refused.because(str(source.data), what, "Give the folder of the clips as --audio-dir.")

    device = settings.device or _default_device()
    data_sha256 = sha256_of(source.data)
    return Plan(
        folder=folder,
        questions=questions,
        version=version_of(data_sha256, questions),
        out=settings.out or _default_out(settings, folder, source.data),
        device=device,
        strict=settings.strict,
        effective={
            "checkpoint_sha256": checkpoint_hash(folder),
            **effective_settings(settings, data_sha256, len(questions), source.prompt_style or "answer", device),
        },
        paths={
            "checkpoint": settings.ckpt,
            "data": str(source.data),
            "audio_dir": str(source.audio_dir or source.data.parent),
        },
    )


def effective_settings(
    settings: EvalSettings, data_sha256: str, num_questions: int, prompt_style: str, device: str
) -> dict[str, Any]:
    """What predictions depend on beside the model, as settings.json records it."""
    return {
        "data_sha256": data_sha256,
        "questions": num_questions,
        "prompt_style": prompt_style,
        "decoding": "greedy",
        "max_new_tokens": settings.max_new_tokens,
        "batch_size": settings.batch_size,
        "audio_channel": settings.audio_channel,
        "no_audio": settings.no_audio,
        "dtype": settings.dtype or ("float32" if device == "cpu" else "bfloat16"),
        "device": device.split(":")[0],
        **{package: importlib.metadata.version(package) for package in _VERSIONS_OF},
    }


def carry_out(plan: Plan) -> dict[str, Any]:
    """Generate what is not recorded yet, score everything, and write the results to `plan.out`.

    The batches are a fixed grid over the questions, so that a question meets the same neighbours, and hence the same
    padding, after an interruption: a batch that is recorded in part is generated again, and only what is missing of it
    is appended.

    Returns:
        The content of scores.json.

    Raises:
        Refused: predictions made with other settings are in the folder; the checkpoint is no sound Qwen2-Audio; a clip
            cannot be used and the plan is strict.
    """
    with PredictionFile(plan.out, plan.effective, plan.paths, plan.questions) as predictions:
        open_batches = [
            batch
            for batch in batches(plan.questions, plan.effective["batch_size"])
            if any(question.id not in predictions.recorded for question in batch)
        ]
        if open_batches:
            _generate(plan, open_batches, predictions)
        return write_scores(plan, predictions.recorded)


def write_scores(plan: Plan, predictions: Mapping[str, Prediction]) -> dict[str, Any]:
    """Score the predictions (by question id) and write scores.json, verdicts.jsonl and report.md to `plan.out`.

    Returns:
        The content of scores.json.
    """
    scores, verdicts = score(plan.questions, predictions, plan.effective["prompt_style"], plan.version)
    write_json(plan.out / "scores.json", scores)
    lines = [json.dumps(verdict, ensure_ascii=False) + "\n" for verdict in verdicts]
    write_atomically(plan.out / "verdicts.jsonl", "".join(lines))
    report = markdown_report(scores, plan.effective, plan.paths, plan.questions, predictions)
    write_atomically(plan.out / "report.md", report)
    return scores


def _generate(plan: Plan, batches: list[list[AudioQuestion]], predictions: PredictionFile) -> None:
    """Generate and record the batches, with a progress bar that shows the accuracy so far."""
    from eval.generate import Generator, Hearing, require_audio  # torch: not needed to score what is complete

    effective = plan.effective
    hearing = Hearing(effective["audio_channel"], effective["no_audio"])
    if plan.strict:
        require_audio(plan.folder, plan.questions, hearing)
    generator = Generator.load(
        plan.folder,
        dtype=effective["dtype"],
        device=plan.device,
        style=effective["prompt_style"],
        hearing=hearing,
        max_new_tokens=effective["max_new_tokens"],
    )
    by_id = {question.id: question for question in plan.questions}
    right = sum(_is_right(by_id[one.id], one) for one in predictions.recorded.values())
    with tqdm(total=len(by_id), initial=len(predictions.recorded), desc=plan.out.name, unit="question") as progress:
        for batch in batches:
            before = set(predictions.recorded)
            completions = generator.complete(batch, warn=lambda text: tqdm.write(f"warning: {text}", file=sys.stderr))
            predictions.append(zip(batch, completions, strict=True))
            new = [question for question in batch if question.id not in before]
            right += sum(_is_right(question, predictions.recorded[question.id]) for question in new)
            progress.set_postfix_str(f"accuracy {100 * right / len(predictions.recorded):.1f} %", refresh=False)
            progress.update(len(new))


def batches(questions: list[AudioQuestion], size: int) -> Iterator[list[AudioQuestion]]:
    """The fixed grid over the questions: a question's neighbours, and so its padding, are always the same."""
    return (questions[start : start + size] for start in range(0, len(questions), size))


def _is_right(question: AudioQuestion, prediction: Prediction) -> bool:
    return prediction.answer is not None and official(prediction.answer, question.answer or "", question.choices)


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
    name = data.stem + ("-no-audio" if settings.no_audio else "")
    if Path(settings.ckpt).is_dir():
        return folder / "eval" / name
    return Path("runs/eval") / settings.ckpt.replace("/", "--") / name


def _default_device() -> str:
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"
