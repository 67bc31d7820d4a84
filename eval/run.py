"""One evaluation from its settings to its results: plan it, generate what is not recorded yet, score, write it down."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Callable, Collection, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from eval.benchmarks import MMAU, benchmark_of, version_of
from eval.benchmarks.record import Benchmark
from eval.checkpoints import base_folder, check_adapter, decoding_settings, held_out_set, local_folder
from eval.evaluation import NO_AUDIO, Evaluation, is_complete, scores_without_audio
from eval.grid import AudioPrompt, prompts_of
from eval.long_clips import recorded_long_clips
from eval.predictions import MOST_REPEATS, PREDICTIONS, PredictionFile
from eval.processes import ALONE, Processes
from eval.results import write_results
from eval.score_predictions import score_file
from eval.settings import RECORDED, EvalSettings
from r1_aqa_repro.common.console import say
from r1_aqa_repro.common.distributed import local_rank
from r1_aqa_repro.common.errors import Failed, Refused, failing_plainly
from r1_aqa_repro.common.files import sha256_of
from r1_aqa_repro.data.audio import check_audio
from r1_aqa_repro.data.questions import AudioQuestion, question_of, read_questions, with_answers
from r1_aqa_repro.data.records import parse_records
from r1_aqa_repro.model.files import model_digest
from r1_aqa_repro.model.folder import check_finite

if TYPE_CHECKING:
    from eval.generation import Generator

AS_TRAINING = {"do_sample": True, "temperature": 1.0, "top_k": 0, "top_p": 1.0}  # as GRPO samples
Load = Callable[[EvalSettings, Mapping[str, Any] | None], "Generator"]
_VERSIONS_OF = ("torch", "transformers", "librosa", "soundfile")  # the packages that predictions depend on


class Checkpoint:
    """A model that evaluations are of, whose files are read once for all of them.

    Args:
        ckpt, adapter: as in the settings.

    Raises:
        Refused: no such checkpoint or adapter, or its files are not sound.
    """

    def __init__(self, ckpt: str, adapter: Path | None = None):
        self.folder, self.adapter = local_folder(ckpt), adapter
        self.results = self.folder / "eval" if Path(ckpt).is_dir() else Path("runs/eval") / ckpt.replace("/", "--")
        if adapter is not None:
            check_adapter(adapter, self.folder)
            self.results = adapter / "eval"

    @cached_property
    def digest(self) -> str:
        """See `model_digest`.

        Raises:
            Refused: a weight is not finite.
        """
        for one in filter(None, (self.folder, self.adapter, base_folder(self.folder))):
            check_finite(one)
        return model_digest(self.adapter or self.folder, self.folder if self.adapter else base_folder(self.folder))


@dataclass(frozen=True)
class Plan:
    """An evaluation that can start: `evaluation` has no predictions yet, `settings` leave nothing to defaults."""

    evaluation: Evaluation
    settings: EvalSettings


def prepare(settings: EvalSettings, benchmark: Benchmark | None = None, checkpoint: Checkpoint | None = None) -> Plan:
    """Resolve every default and read the questions, without loading the model.

    Args:
        settings: what to evaluate and how.
        benchmark: the one that the questions have to be of; None takes whatever they are, and MMAU by default.
        checkpoint: that of the settings, if another plan has needed it before.

    Raises:
        Refused: no such checkpoint, adapter or data, bad records, some questions without answers and others with, or
            not one clip in its place; more answers to a question than are read back; another benchmark's questions.
    """
    if (times := settings.repeats * settings.permute_choices) > MOST_REPEATS:
        what = f"each question would be asked {times:,} times"
        raise Refused.because("--repeats, --permute-choices", what, f"Choose {MOST_REPEATS:,} at most together.")
    checkpoint = checkpoint or Checkpoint(settings.ckpt, settings.adapter)
    folder = checkpoint.folder
    paths = {"checkpoint": settings.ckpt, "adapter": settings.adapter}
    named = benchmark or MMAU
    data, audio_dir, style = _source(settings, folder, named)
    if data.suffix == ".parquet" and data.is_file():
        found = _benchmark_of_rows(data)
        if benchmark is None:
            named = found
        elif found is not MMAU:  # whose copies have rows that tell nothing
            named.require([], found, str(data))
        out = settings.out or checkpoint.results / _results_name(settings, data, named)
        named.prepare([data], [audio_dir] if audio_dir else [], out / "data")
        data, audio_dir = out / "data" / "manifest.jsonl", None
        read = read_questions(data)
    else:
        read = read_questions(data, audio_dir)
        out = settings.out or checkpoint.results / _results_name(settings, data, benchmark_of(read.records))
    if benchmark is not None and read.records:
        benchmark.require(read.records, benchmark_of(read.records), str(data))
    questions = read.records[: settings.limit]
    withheld = with_answers(questions, data)  # a test split without any answers is answered, not scored
    problems = read.problems + (withheld if len(withheld) < len(questions) else [])
    if problems:
        raise Refused(problems)
    if audio_dir and not any(one.audio_path.is_relative_to(audio_dir.absolute()) for one in read.records):
        what = f"the records of {data} name their own clips, which are not in it"
        raise Refused.because(str(audio_dir), what, "Give --audio-dir for an MMAU JSON only.")
    if all(check_audio(question.audio_path) for question in questions):
        what = f"none of the {len(questions)} clips can be read, the first being {questions[0].audio_path}"
        raise Refused.because(str(data), what, "Give the folder of the clips as --audio-dir.")

    own_decoding = None
    if settings.decoding != "greedy":
        own_decoding = AS_TRAINING if settings.decoding == "sample" else decoding_settings(folder)
    if settings.repeats > 1 and not (own_decoding or {}).get("do_sample"):
        say(
            f"warning: decoding is greedy, so that the {settings.repeats} repeats of a question will be the same; they "
            "differ with --decoding sample, or checkpoint if its generation_config.json samples"
        )
    data_sha256 = sha256_of(data)
    digest = checkpoint.digest  # before anything is written
    device = settings.device or _default_device()
    dtype = settings.dtype or ("float32" if device == "cpu" else "bfloat16")
    settings = replace(settings, ckpt=str(folder), prompt_style=style, device=device, dtype=dtype)
    made_with = recorded_settings(settings, data_sha256, len(questions), own_decoding)
    evaluation = Evaluation(
        folder=out,
        questions=questions,
        predictions={},
        settings={"checkpoint_sha256": digest, **made_with},
        paths={name: str(path) for name, path in (paths | {"data": data, "audio_dir": audio_dir}).items() if path},
        version=version_of(read.records),
    )
    return Plan(evaluation, settings)


def recorded_settings(
    settings: EvalSettings, data_sha256: str, num_questions: int, own_decoding: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """What predictions depend on beside the model, as settings.json records it; `settings` are a plan's."""
    return {
        "data_sha256": data_sha256,
        "questions": num_questions,
        **{name: getattr(settings, name) for name in RECORDED},
        "generation_config": own_decoding,
        "device": str(settings.device).split(":")[0],
        **{package: importlib.metadata.version(package) for package in _VERSIONS_OF},
    }


def _source(settings: EvalSettings, folder: Path, benchmark: Benchmark) -> tuple[Path, Path | None, str]:
    """The data, the folder of their clips and the prompt style: those named, otherwise the benchmark's, otherwise, in
    place of MMAU, the checkpoint's own."""
    default, remedy = benchmark.default_data, f"Make it with `python -m data_prep.{benchmark.name}`, or give --data."
    data = settings.data or (default if default.is_file() else None)
    own = {} if data else held_out_set(folder) if benchmark is MMAU else None
    if own is None:
        what = "there is no such file"
        if benchmark is MMAU:
            what += f", and no run.json of {folder} names a held-out set of its own"
        raise Refused.because(str(default), what, remedy)
    style = settings.prompt_style or own.get("prompt_style") or "answer"
    return data or own["data"], settings.audio_dir or own.get("audio_dir"), style


def _benchmark_of_rows(file: Path) -> Benchmark:
    """The benchmark that the first question of a parquet file is of; if no row is in a format of questions, MMAU, whose
    Hugging Face copy has rows of its own."""
    from data_prep.named_clips import AUDIO_COLUMNS  # codecs and workers: whoever has a manifest needs none of them

    rows = parse_records(file, lambda row, _: question_of(row, file, None), AUDIO_COLUMNS)
    return benchmark_of(next(([one] for _, one in rows if isinstance(one, AudioQuestion)), []))


def _results_name(settings: EvalSettings, data: Path, benchmark: Benchmark) -> str:
    return (data.stem if benchmark is MMAU else benchmark.name) + (NO_AUDIO if settings.no_audio else "")


def _default_device() -> str:
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def check(plan: Plan) -> None:
    """Find what carrying a plan out would refuse, short of loading the model.

    Raises:
        Refused: see `carry_out`.
    """
    prompts = _prompts(plan.evaluation)
    with PredictionFile(plan.evaluation.folder, plan.evaluation.settings, plan.evaluation.paths, prompts) as file:
        if not file.is_complete:
            _check_questions(plan)


def _check_questions(plan: Plan) -> None:
    from eval.generation import check_prompts, require_audio  # torch: not needed to score what is complete

    check_prompts(plan.evaluation.questions, plan.settings, plan.evaluation.paths["data"])
    if plan.settings.strict:
        require_audio(plan.evaluation.questions, plan.settings)


def carry_out(plan: Plan, processes: Processes = ALONE, load: Load | None = None) -> dict[str, Any]:
    """Carry out a plan; see `complete`.

    Args:
        plan: of one evaluation.
        processes: that share the work; all call this.
        load: gives the model of a plan that has passed `check`; None checks it, if anything is left to generate, and
            loads its model with `Generator.load`.

    Raises:
        Refused: predictions made with other settings are in the folder; the checkpoint is no sound Qwen2-Audio; a clip
            cannot be used and the settings are strict; the model has no room for a question.
    """
    evaluation, settings = plan.evaluation, plan.settings

    def generator() -> Generator:
        from eval.generation import Generator  # torch: not needed to score what is complete

        if load is None:
            processes.on_main(lambda: _check_questions(plan))
        own = f"cuda:{local_rank()}" if settings.device == "cuda" and processes.count > 1 else settings.device
        own_decoding = evaluation.settings["generation_config"]
        return processes.together(lambda: (load or Generator.load)(replace(settings, device=own), own_decoding))

    return complete(evaluation, generator, processes, embed_audio=settings.embed_audio)


def complete(
    evaluation: Evaluation,
    load: Callable[[], Generator],
    processes: Processes,
    *,
    unreadable: Collection[str] = (),
    in_step: bool = False,
    embed_audio: bool = False,
) -> dict[str, Any]:
    """Generate what is not recorded yet, score everything, and write the results to the folder of the evaluation.

    Args:
        evaluation: what is to be answered, without predictions.
        load: gives the model; called on every process, if anything is left to generate.
        processes: that share the work; all call this.
        unreadable, in_step: see `loop.Loop`.
        embed_audio: see `results.write_results`.

    Returns:
        The content of scores.json, on every process.

    Raises:
        Refused: predictions made with other settings are in the folder.
        Failed: what other processes have answered is not in the folder; something cannot be read or written.
    """
    settings = evaluation.settings
    prompts = _prompts(evaluation)
    kept = "What was generated is kept: give the same command again once it can be."
    with failing_plainly(evaluation.folder, kept), ExitStack() as stack:
        file = processes.on_main(
            lambda: stack.enter_context(PredictionFile(evaluation.folder, settings, evaluation.paths, prompts))
        )
        if not processes.from_main(lambda: file.is_complete):
            from eval.loop import Loop

            Loop(load(), evaluation, prompts, file, processes, unreadable=unreadable, in_step=in_step).run()
            if not processes.from_main(lambda: file.is_complete):  # they would count as wrong
                raise Failed(f"{evaluation.folder}: answers of other processes are not there; is the folder shared?")
        return processes.from_main(lambda: _finish(evaluation, file, embed_audio))


def _prompts(evaluation: Evaluation) -> list[AudioPrompt]:
    settings = evaluation.settings
    return prompts_of(evaluation.questions, settings["repeats"], settings["permute_choices"])


def _finish(evaluation: Evaluation, file: PredictionFile, embed_audio: bool) -> dict[str, Any]:
    """Score; after a run without audio also the complete one with audio anew, whose report then shows it."""
    file.sort()
    folder, settings = evaluation.folder, dict(evaluation.settings)
    answered = replace(
        evaluation,
        predictions=file.recorded,
        without_audio=scores_without_audio(folder, settings),
        long_clips=recorded_long_clips(folder),
    )
    write_results(answered, embed_audio)
    with_audio = folder.with_name(folder.name.removesuffix(NO_AUDIO))
    if settings["no_audio"] and is_complete(with_audio, settings | {"no_audio": False}):
        try:
            score_file(with_audio / PREDICTIONS)
        except (Refused, OSError) as error:
            say(f"warning: the report in {with_audio} does not show this run without audio: {error}")
    return answered.scores
