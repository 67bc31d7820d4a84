"""One evaluation from beginning to end: `prepare` refuses what cannot work, `carry_out` does the rest."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from eval.checkpoints import (
    HeldOutSet,
    base_folder,
    check_adapter,
    decoding_settings,
    held_out_set,
    local_folder,
)
from eval.evaluation import NO_AUDIO, Evaluation, is_complete, scores_without_audio
from eval.grid import AudioPrompt, Key, prompts_of
from eval.predictions import PREDICTIONS, Prediction, PredictionFile
from eval.processes import Processes
from eval.results import write_results
from eval.score_predictions import score_file
from r1_aqa_repro.common.console import say
from r1_aqa_repro.common.errors import EXIT_DONE, EXIT_LOSSES, Refused
from r1_aqa_repro.common.files import sha256_of
from r1_aqa_repro.data.audio import check_audio
from r1_aqa_repro.data.mmau_versions import version_of
from r1_aqa_repro.data.questions import AudioQuestion, limited, read_questions, with_answers
from r1_aqa_repro.model.files import model_digest

AUTO = "auto"
DEFAULT_DATA = Path("data/mmau/manifest.jsonl")
_VERSIONS_OF = ("torch", "transformers", "librosa", "soundfile")  # the packages that predictions depend on
_ALONE = Processes()


@dataclass(frozen=True)
class EvalSettings:
    """What to evaluate and how.

    Attributes:
        ckpt: checkpoint folder or hub id.
        data: manifest, MMAU JSON file, or parquet file of the Hugging Face copy, which is unpacked to `<out>/data`.
            Default: `data/mmau/manifest.jsonl`; where that is absent, the embedded held-out set that the checkpoint's
            run.json names.
        audio_dir: folder of the clips of an MMAU JSON file. Default: the file's own.
        out: folder to write to. Default: `<ckpt>/eval/<stem of data>`, with `-no-audio` where that is set; for a hub id
            the same below `runs/eval/<id>`, with an adapter below the adapter.
        prompt_style: see `prompts.PROMPT_STYLES`. Default: the embedded set's own, otherwise `answer`.
        decoding: `greedy`, or `checkpoint`: as the checkpoint's generation_config.json says, as R1-AQA evaluates.
        repeats: completions of each prompt.
        permute_choices: orders in which a question's choices are asked, see `asking.choice_orders`.
        batch_size: prompts that are run at once, with all their repeats; `auto`: see `memory.starting_batch_size`.
            Lowered where memory runs out.
        limit: evaluate the first so many questions only.
        no_audio: put silence of the same length in place of every clip.
        max_new_tokens: longest completion.
        audio_channel: see `audio.load_audio`.
        adapter: folder of a LoRA adapter on top of `ckpt`.
        strict: refuse to start where a clip cannot be used, instead of listing its question as lost.
        dtype: `float32` or `bfloat16`. Default: bfloat16 on a GPU, otherwise float32.
        device: a torch device. Default: the GPU where there is one; of several processes, each its own.
        embed_audio: put the clips into report.html instead of linking them.
    """

    ckpt: str
    data: Path | None = None
    audio_dir: Path | None = None
    out: Path | None = None
    prompt_style: str | None = None
    decoding: str = "greedy"
    repeats: int = 1
    permute_choices: int = 1
    batch_size: int | str = AUTO
    limit: int | None = None
    no_audio: bool = False
    max_new_tokens: int = 256
    audio_channel: str = "first"
    adapter: Path | None = None
    strict: bool = False
    dtype: str | None = None
    device: str | None = None
    embed_audio: bool = False


@dataclass(frozen=True)
class Plan:
    """An evaluation that can start: every default resolved, every question read.

    `effective` holds whatever the predictions depend on; predictions made under another one are never mixed in.
    """

    folder: Path
    adapter: Path | None
    questions: list[AudioQuestion]
    version: str
    out: Path
    device: str
    strict: bool
    effective: dict[str, Any]
    paths: dict[str, str]
    embed_audio: bool = False

    @property
    def prompts(self) -> list[AudioPrompt]:
        return prompts_of(self.questions, self.effective["repeats"], self.effective["permute_choices"])


def evaluate(settings: EvalSettings) -> dict[str, Any]:
    """Evaluate a checkpoint in this process, or go on with an evaluation that was interrupted.

    Returns:
        The content of scores.json.

    Raises:
        Refused: before anything is generated; see `prepare` and `carry_out`.
    """
    return carry_out(prepare(settings))


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
    if _is_parquet(source.data):
        source = _unpacked(source, out / "data")
    read = read_questions(source.data, source.audio_dir)
    questions = limited(read.records, settings.limit)
    withheld = with_answers(questions, source.data)  # of a whole test split is well; it is answered, not scored
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
            "differ with --decoding checkpoint, where the checkpoint's generation_config.json samples"
        )
    return Plan(
        folder=folder,
        adapter=settings.adapter,
        questions=questions,
        version=version_of(data_sha256, read.records),
        out=out,
        device=device,
        strict=settings.strict,
        effective={
            "checkpoint_sha256": model_digest(
                settings.adapter or folder, folder if settings.adapter else base_folder(folder)
            ),
            **effective_settings(
                settings, data_sha256, len(questions), source.prompt_style or "answer", device, own_decoding
            ),
        },
        paths={
            "checkpoint": settings.ckpt,
            **({"adapter": str(settings.adapter)} if settings.adapter is not None else {}),
            "data": str(source.data),
            **({"audio_dir": str(source.audio_dir)} if source.audio_dir is not None else {}),
        },
        embed_audio=settings.embed_audio,
    )


def effective_settings(
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
        "prompt_style": prompt_style,
        "decoding": settings.decoding,
        "generation_config": own_decoding,
        "repeats": settings.repeats,
        "permute_choices": settings.permute_choices,
        "max_new_tokens": settings.max_new_tokens,
        "batch_size": settings.batch_size,
        "audio_channel": settings.audio_channel,
        "no_audio": settings.no_audio,
        "dtype": settings.dtype or ("float32" if device == "cpu" else "bfloat16"),
        "device": device.split(":")[0],
        **{package: importlib.metadata.version(package) for package in _VERSIONS_OF},
    }


def carry_out(plan: Plan, processes: Processes = _ALONE) -> dict[str, Any]:
    """Generate what is not recorded yet, score everything, and write the results to `plan.out`.

    The batches are a fixed grid over what is asked, so that a prompt meets the same neighbours, and hence the same
    padding, after an interruption and in whichever process: a batch that is recorded in part is generated again, and
    only what is missing of it is recorded.

    Returns:
        The content of scores.json.

    Raises:
        Refused: predictions made with other settings are in the folder; the checkpoint is no sound Qwen2-Audio; a clip
            cannot be used and the plan is strict.
    """
    with ExitStack() as stack:
        file = processes.on_main(
            lambda: stack.enter_context(PredictionFile(plan.out, plan.effective, plan.paths, plan.prompts))
        )
        if not processes.from_main(lambda: file.is_complete):
            from eval.answering import Answering  # torch: not needed to score what is complete

            Answering(plan, file, processes).run()
        return processes.from_main(lambda: _finish(plan, file))


def _finish(plan: Plan, file: PredictionFile) -> dict[str, Any]:
    """Score; and where this was the blind run beside a complete one that heard, let that one's report show it."""
    file.sort()
    scores = write_scores(plan, file.recorded)
    sighted = plan.out.with_name(plan.out.name.removesuffix(NO_AUDIO))
    if plan.effective["no_audio"] and is_complete(sighted, plan.effective | {"no_audio": False}):
        try:
            score_file(sighted / PREDICTIONS)
        except (Refused, OSError) as error:
            say(f"warning: the report in {sighted} does not show this blind run: {error}")
    return scores


def write_scores(plan: Plan, predictions: Mapping[Key, Prediction]) -> dict[str, Any]:
    """Score the predictions and write the results to `plan.out`; the scores."""
    without_audio = scores_without_audio(plan.out, plan.effective)
    evaluation = Evaluation(
        plan.out, plan.questions, predictions, plan.effective, plan.paths, plan.version, without_audio
    )
    write_results(evaluation, plan.embed_audio)
    return evaluation.scores


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


def _is_parquet(file: Path) -> bool:
    return file.suffix == ".parquet" and file.is_file()


def _unpacked(source: HeldOutSet, folder: Path) -> HeldOutSet:
    """The manifest that `data_prep.mmau` makes of a parquet file, whose clips are embedded.

    Raises:
        Refused: it could make none.
    """
    from data_prep import mmau  # only here: whoever has a manifest needs none of it

    audio = ["--audio", str(source.audio_dir)] if source.audio_dir is not None else []
    if mmau.main(["--questions", str(source.data), *audio, "--out", str(folder)]) not in (EXIT_DONE, EXIT_LOSSES):
        raise Refused.because(str(source.data), "it could not be unpacked, as said above", "Mend it or fetch it again.")
    return HeldOutSet(folder / "manifest.jsonl", None, source.prompt_style)


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
