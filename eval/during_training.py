"""The harness on a model that is being trained: what `eval_file` of a training configuration sets going.

Prompts, processor call, decoding, loop, parsing, matching and scoring are those of `python -m eval.mmau`, so that a
figure of step N is what that command gives for `checkpoint-N` if it computes with the same precision (on GPUs training
uses autocast, the command bfloat16 weights; `settings.json` says which it was). Each evaluation leaves the harness's
files in `<output_dir>/eval/step-N`; with `eval_no_audio` those of the same questions without audio are in
`step-N-no-audio`, and run.json has both accuracies of each evaluated step.
"""

from __future__ import annotations

import shutil
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedConfig, PreTrainedModel, ProcessorMixin
from transformers.integrations.deepspeed import is_deepspeed_zero3_enabled

from eval.benchmarks import benchmark_of, version_of
from eval.evaluation import NO_AUDIO, Evaluation
from eval.generation import Generator
from eval.processes import of_this_run
from eval.run import complete, recorded_settings
from eval.settings import EvalSettings
from r1_aqa_repro.common.console import say
from r1_aqa_repro.common.files import sha256_of
from r1_aqa_repro.data.audio import check_audio
from r1_aqa_repro.data.questions import read_questions
from r1_aqa_repro.model.generation import greedy_config
from r1_aqa_repro.model.inputs import minimum_seconds, too_long
from r1_aqa_repro.run.arguments import DataArguments
from r1_aqa_repro.run.config import AudioGRPOConfig, AudioSFTConfig
from r1_aqa_repro.run.evaluating import EVALUATIONS, WITHOUT_AUDIO, Autocast
from r1_aqa_repro.run.folder import recorded, update_run

_NAMED = 10  # ids of lost questions that are printed


class HarnessEvaluator:
    """An `evaluating.Evaluator` over the questions of a configuration's `eval_file`.

    Preflight has refused what is not usable, unless told to skip it. Questions without an answer, and those that the
    model has no room for, are left out then. Those without a usable clip count as wrong, as they do for `python -m
    eval.mmau`, which otherwise would give another figure for the same checkpoint and file.

    Args:
        data, training: of the configuration.
        processor, config: the model's.
    """

    def __init__(
        self,
        data: DataArguments,
        training: AudioGRPOConfig | AudioSFTConfig,
        processor: ProcessorMixin,
        config: PreTrainedConfig,
    ):
        self.file, self.run_folder = Path(str(training.eval_file)), Path(str(training.output_dir))
        self.settings = EvalSettings(
            ckpt=str(self.run_folder),
            prompt_style=data.prompt_style,
            batch_size=training.per_device_eval_batch_size,
            max_new_tokens=training.max_completion_length,
            audio_channel=data.audio_channel,
        )
        self.without_audio_too = training.eval_no_audio
        read = read_questions(self.file)
        answered = [one for one in read.records[: training.eval_limit] if one.answer is not None]
        style, room = data.prompt_style, training.max_completion_length
        beyond = {one.id for one, _ in too_long(processor, config, answered, style, room)}
        self.questions = [one for one in answered if one.id not in beyond]
        self.data_sha256 = sha256_of(self.file)
        self.version = version_of(read.records)
        self.processor = processor
        shortest = minimum_seconds(processor)
        self.unreadable = [one.id for one in self.questions if check_audio(one.audio_path, shortest)]
        if self.unreadable:
            named = ", ".join(self.unreadable[:_NAMED]) + (" ..." if len(self.unreadable) > _NAMED else "")
            lost = f"{len(self.unreadable)} of {len(self.questions)} questions"
            most = ", more than half," if 2 * len(self.unreadable) > len(self.questions) else ""
            say(f"{self.file}: {lost}{most} count as wrong for want of a clip: {named}")

    def __call__(self, model: PreTrainedModel, step: int, autocast: Autocast) -> dict[str, float]:
        """See `evaluating.Evaluator`. Accuracies and format rate 0-1, `unparsed`, `no_audio` numbers of questions.

        With `eval_no_audio` there is the accuracy without audio too, `WITHOUT_AUDIO`.
        """
        start, processes = time.perf_counter(), of_this_run()
        # first: the report of the one with audio then shows it
        without = self._scores(model, step, autocast, no_audio=True) if self.without_audio_too else None
        scores, main_group = self._scores(model, step, autocast), benchmark_of(self.questions).main_group

        def noted() -> dict[str, float]:
            figures = _figures(scores, main_group)
            if without is not None:
                figures[WITHOUT_AUDIO] = _figures(without, main_group)["accuracy"]
                at_step = {name: figures[name] for name in ("accuracy", WITHOUT_AUDIO)}
                earlier = recorded(self.run_folder).get("evaluations", {})
                update_run(self.run_folder, evaluations=earlier | {str(step): at_step})
            return figures | {"seconds": round(time.perf_counter() - start, 2)}

        return processes.from_main(noted)

    def _scores(self, model: PreTrainedModel, step: int, autocast: Autocast, no_audio: bool = False) -> dict[str, Any]:
        """The content of scores.json, on every process."""
        with autocast():
            dtype, device = _computed_in(model), str(model.device)
        settings = replace(self.settings, dtype=dtype, device=device, no_audio=no_audio)
        made_with = recorded_settings(settings, self.data_sha256, len(self.questions))
        evaluation = Evaluation(
            folder=self.run_folder / EVALUATIONS / f"step-{step}{NO_AUDIO if no_audio else ''}",
            questions=self.questions,
            predictions={},
            settings={"training_step": step, **made_with},
            paths={"checkpoint": f"{self.run_folder}, step {step} of its training", "data": str(self.file)},
            version=self.version,
        )
        generator = Generator(
            model,
            self.processor,
            greedy_config(model, self.processor, settings.max_new_tokens),
            str(settings.prompt_style),
            settings.audio_channel,
            no_audio,
            autocast,
        )
        processes = of_this_run()
        if processes.is_main:
            shutil.rmtree(evaluation.folder, ignore_errors=True)  # of an interrupted attempt
        return complete(
            evaluation,
            lambda: generator,
            processes,
            unreadable=self.unreadable,
            in_step=is_deepspeed_zero3_enabled(),
        )


def _figures(scores: dict[str, Any], main_group: str) -> dict[str, float]:
    """What is worth a curve, of the content of a scores.json; `main_group` is the benchmark's."""
    return {
        "accuracy": scores["total"]["correct"] / scores["n"],
        **{f"accuracy_{label}": tally["correct"] / tally["n"] for label, tally in scores[main_group].items()},
        "format_rate": scores["format_rate"],
        "unparsed": scores["unparsed"],
        "no_audio": len(scores["no_audio"]),
    }


def _computed_in(model: PreTrainedModel) -> str:
    """Such as `float32`, or `bfloat16 autocast` if float32 weights are computed with in mixed precision."""
    kind = model.device.type
    autocast = torch.is_autocast_enabled(kind)
    dtype = torch.get_autocast_dtype(kind) if autocast else model.dtype
    return str(dtype).removeprefix("torch.") + (" autocast" if autocast else "")
