"""One evaluation from its plan to its results: generate what is not recorded yet, score everything, write it down."""

from __future__ import annotations

from collections.abc import Callable, Collection
from contextlib import ExitStack
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from eval.evaluation import NO_AUDIO, Evaluation, is_complete, scores_without_audio
from eval.grid import prompts_of
from eval.plan import Plan, prepare
from eval.predictions import PREDICTIONS, PredictionFile
from eval.processes import ALONE, Processes
from eval.results import write_results
from eval.score_predictions import score_file
from eval.settings import EvalSettings
from r1_aqa_repro.common.console import say
from r1_aqa_repro.common.distributed import local_rank
from r1_aqa_repro.common.errors import Failed, Refused

if TYPE_CHECKING:
    from eval.generation import Generator


def evaluate(settings: EvalSettings) -> dict[str, Any]:
    """Evaluate a checkpoint in this process, or go on with an evaluation that was interrupted.

    Returns:
        The content of scores.json.

    Raises:
        Refused: before anything is generated; see `plan.prepare` and `carry_out`.
    """
    return carry_out(prepare(settings))


def carry_out(plan: Plan, processes: Processes = ALONE) -> dict[str, Any]:
    """Carry out a plan; see `complete`.

    Raises:
        Refused: predictions made with other settings are in the folder; the checkpoint is no sound Qwen2-Audio; a clip
            cannot be used and the plan is strict.
    """

    def load() -> Generator:
        from eval.generation import Generator, require_audio  # torch: not needed to score what is complete

        settings = plan.evaluation.settings
        if plan.strict:
            processes.on_main(lambda: require_audio(plan.folder, plan.evaluation.questions, settings["audio_channel"]))
        return processes.together(
            lambda: Generator.load(
                plan.folder,
                adapter=plan.adapter,
                dtype=settings["dtype"],
                device=f"cuda:{local_rank()}" if plan.device == "cuda" and processes.count > 1 else plan.device,
                style=settings["prompt_style"],
                audio_channel=settings["audio_channel"],
                no_audio=settings["no_audio"],
                max_new_tokens=settings["max_new_tokens"],
                own_settings=settings["generation_config"],
            )
        )

    return complete(plan.evaluation, load, processes, embed_audio=plan.embed_audio)


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
        Failed: what other processes have answered is not in the folder.
    """
    settings = evaluation.settings
    prompts = prompts_of(evaluation.questions, settings["repeats"], settings["permute_choices"])
    with ExitStack() as stack:
        file = processes.on_main(
            lambda: stack.enter_context(PredictionFile(evaluation.folder, settings, evaluation.paths, prompts))
        )
        if not processes.from_main(lambda: file.is_complete):
            from eval.loop import Loop

            Loop(load(), evaluation, prompts, file, processes, unreadable=unreadable, in_step=in_step).run()
            if not processes.from_main(lambda: file.is_complete):  # they would count as wrong
                raise Failed(f"{evaluation.folder}: answers of other processes are not there; is the folder shared?")
        return processes.from_main(lambda: _finish(evaluation, file, embed_audio))


def _finish(evaluation: Evaluation, file: PredictionFile, embed_audio: bool) -> dict[str, Any]:
    """Score; after a run without audio also the complete one with audio anew, whose report then shows it."""
    file.sort()
    folder, settings = evaluation.folder, dict(evaluation.settings)
    without_audio = scores_without_audio(folder, settings)
    answered = replace(evaluation, predictions=file.recorded, without_audio=without_audio)
    write_results(answered, embed_audio)
    with_audio = folder.with_name(folder.name.removesuffix(NO_AUDIO))
    if settings["no_audio"] and is_complete(with_audio, settings | {"no_audio": False}):
        try:
            score_file(with_audio / PREDICTIONS)
        except (Refused, OSError) as error:
            say(f"warning: the report in {with_audio} does not show this run without audio: {error}")
    return answered.scores
