"""The harness on a model that is being trained: what `eval_file` of a training configuration sets going.

Prompts, processor call, decoding, batch grid, parsing, matching and scoring are those of `python -m eval.mmau`, so that
a figure of step N is what that command gives for `checkpoint-N` where it computes with the same precision (on GPUs
training uses autocast, the command bfloat16 weights; `settings.json` says which it was). Each evaluation leaves the
harness's files in `<output_dir>/eval/step-N`.
"""

from __future__ import annotations

import shutil
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list, gather_object
from tqdm import tqdm
from transformers import PreTrainedModel, ProcessorMixin

from eval.generation import Generator
from eval.grid import batches, prompts_of
from eval.predictions import PredictionFile, predict
from eval.run import EvalSettings, Plan, effective_settings, write_scores
from r1_aqa_repro.common.console import say
from r1_aqa_repro.common.files import sha256_of
from r1_aqa_repro.data.audio import check_audio
from r1_aqa_repro.data.mmau_versions import version_of
from r1_aqa_repro.data.questions import AudioQuestion, limited, read_questions
from r1_aqa_repro.model.generation import greedy_config
from r1_aqa_repro.model.inputs import minimum_seconds
from r1_aqa_repro.run.arguments import DataArguments
from r1_aqa_repro.run.config import AudioGRPOConfig, AudioSFTConfig
from r1_aqa_repro.run.evaluating import EVALUATIONS, Autocast

_NAMED = 10  # ids of lost questions that are printed


@dataclass(frozen=True)
class HarnessEvaluator:
    """An `evaluating.Evaluator` over fixed questions.

    Attributes:
        settings: as of an evaluation from the command line; the checkpoint is the run folder.
        questions: in the order of the file, each with an answer.
        unheard: ids of those whose clip cannot be used: they are not asked and count as wrong.
        version: of the benchmark, see `mmau_versions.version_of`.
        data_sha256: of the file the questions come from.
        processor: the model's.
    """

    settings: EvalSettings
    questions: list[AudioQuestion]
    unheard: frozenset[str]
    version: str
    data_sha256: str
    processor: ProcessorMixin

    @classmethod
    def of(
        cls, data: DataArguments, training: AudioGRPOConfig | AudioSFTConfig, processor: ProcessorMixin
    ) -> HarnessEvaluator:
        """The evaluator that a configuration asks for; preflight has refused what is not usable, unless told not to.

        Told to skip it, questions without an answer are left out. Those without a usable clip count as wrong, as they
        do for `python -m eval.mmau`, which otherwise would give another figure for the same checkpoint and file.
        """
        file = Path(str(training.eval_file))
        read = read_questions(file)
        questions = [one for one in limited(read.records, training.eval_limit) if one.answer is not None]
        shortest = minimum_seconds(processor)
        unheard = [one.id for one in questions if check_audio(one.audio_path, shortest)]
        if unheard:
            named = ", ".join(unheard[:_NAMED]) + (" ..." if len(unheard) > _NAMED else "")
            say(f"{file}: {len(unheard)} of {len(questions)} questions count as wrong for want of a clip: {named}")
        settings = EvalSettings(
            ckpt=str(training.output_dir),
            data=file,
            prompt_style=data.prompt_style,
            batch_size=training.per_device_eval_batch_size,
            max_new_tokens=training.max_completion_length,
            audio_channel=data.audio_channel,
        )
        data_sha256 = sha256_of(file)
        version = version_of(data_sha256, read.records)
        return cls(settings, questions, frozenset(unheard), version, data_sha256, processor)

    @property
    def batch_size(self) -> int:
        return int(self.settings.batch_size)

    def __call__(self, model: PreTrainedModel, step: int, autocast: Autocast) -> dict[str, float]:
        """See `evaluating.Evaluator`. Accuracies and format rate 0-1, `unparsed`, `no_audio` numbers of questions."""
        start = time.perf_counter()
        completions = self._complete(model, step, autocast)
        figures: list[dict[str, float]] = [{}]
        if PartialState().is_main_process:
            with autocast():
                computed_in = _computed_in(model)
            scores = self._record(step, completions, computed_in, str(model.device))
            figures = [_figures(scores) | {"seconds": round(time.perf_counter() - start, 2)}]
        broadcast_object_list(figures)
        return figures[0]

    def _complete(self, model: PreTrainedModel, step: int, autocast: Autocast) -> list[str | None]:
        """One completion a question, None where it cannot be heard; the processes share the batches of the grid."""
        readable = [question for question in self.questions if question.id not in self.unheard]
        grid = batches(prompts_of(readable), self.batch_size)
        processes = PartialState()
        # under ZeRO-3 all must generate equally often: who has no batch left in the last round repeats one
        rounds = range(0, len(grid), processes.num_processes)
        mine = [(first + processes.process_index) % len(grid) for first in rounds]
        generator = Generator(
            model,
            self.processor,
            greedy_config(model, self.processor, self.settings.max_new_tokens),
            str(self.settings.prompt_style),
            self.settings.audio_channel,
            autocast=autocast,
        )
        progress = tqdm(
            mine, desc=f"evaluation, step {step}", unit="batch", leave=False, disable=not processes.is_main_process
        )
        done: dict[str, str | None] = {}
        for index in progress:
            completions = generator.answer(grid[index], _warn)
            done |= {one.question.id: texts[0] for one, texts in zip(grid[index], completions, strict=True)}
        by_id = {question_id: text for part in gather_object([done]) for question_id, text in part.items()}
        return [by_id.get(question.id) for question in self.questions]

    def _record(self, step: int, completions: list[str | None], computed_in: str, device: str) -> dict[str, Any]:
        """Write the files of this evaluation, in place of those of an interrupted attempt; the scores."""
        run_folder = Path(self.settings.ckpt)
        plan = Plan(
            folder=run_folder / f"checkpoint-{step}",
            adapter=None,
            questions=self.questions,
            version=self.version,
            out=run_folder / EVALUATIONS / f"step-{step}",
            device=device,
            strict=False,
            effective={
                "training_step": step,
                **effective_settings(
                    replace(self.settings, dtype=computed_in),
                    self.data_sha256,
                    len(self.questions),
                    str(self.settings.prompt_style),
                    device,
                ),
            },
            paths={
                "checkpoint": f"{run_folder}, step {step} of its training",
                "data": str(self.settings.data),
            },
        )
        shutil.rmtree(plan.out, ignore_errors=True)
        style = plan.effective["prompt_style"]
        with PredictionFile(plan.out, plan.effective, plan.paths, plan.prompts) as predictions:
            predictions.use_batch_size(self.batch_size)
            predictions.append(
                predict(question, completion, style, predictions.settings_hash)
                for question, completion in zip(self.questions, completions, strict=True)
            )
            return write_scores(plan, predictions.recorded)


def _figures(scores: dict[str, Any]) -> dict[str, float]:
    """What is worth a curve, of the content of a scores.json."""
    return {
        "accuracy": scores["total"]["correct"] / scores["n"],
        **{f"accuracy_{task}": tally["correct"] / tally["n"] for task, tally in scores["task"].items()},
        "format_rate": scores["format_rate"],
        "unparsed": scores["unparsed"],
        "no_audio": len(scores["no_audio"]),
    }


def _computed_in(model: PreTrainedModel) -> str:
    """Such as `float32`, or `bfloat16 autocast` where float32 weights are computed with in mixed precision."""
    kind = model.device.type
    autocast = torch.is_autocast_enabled(kind)
    dtype = torch.get_autocast_dtype(kind) if autocast else model.dtype
    return str(dtype).removeprefix("torch.") + (" autocast" if autocast else "")


def _warn(text: str) -> None:
    tqdm.write(f"warning: {text}", file=sys.stderr)
