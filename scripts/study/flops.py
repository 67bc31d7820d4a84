"""Training FLOPs of a study's runs: the planner's counts of the model's work, for what each run did.

A run says how many prompts it asked, how many tokens it generated and how many steps it took; the planner counts on the
meta device what that is for prompts and completions of these lengths (the means of the run, between two whole numbers
of tokens by straight line). The frozen encoder's work counts once a clip. Padding, rewards and the optimizer are left
out, in all arms.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import Any

import pandas
import torch
from transformers import ProcessorMixin

from eval.score_predictions import read_predictions
from r1_aqa_repro.data.prompts import build_messages
from r1_aqa_repro.data.questions import AudioQuestion
from r1_aqa_repro.model.inputs import num_audio_tokens, target_ids
from r1_aqa_repro.model.loading import load_processor
from r1_aqa_repro.planning.counting import build_model
from r1_aqa_repro.planning.estimate import Parameters, count_work
from r1_aqa_repro.planning.job import FRAMES_A_SECOND, make_job, model_config
from r1_aqa_repro.run.config import AudioGRPOConfig, AudioSFTConfig, parse_config


@dataclass(frozen=True)
class Spent:
    """What a GRPO run did.

    prompts: asked, further ones of dynamic sampling among them.
    tokens: generated, of all completions.
    steps: of the optimizer.
    """

    prompts: float
    tokens: float
    steps: int

    @classmethod
    def of_log(cls, log: pandas.DataFrame, prompts_per_step: int) -> Spent:
        """From what the trainer logged at every step: `workshop.log_of`."""
        rows = log.dropna(subset="clips_per_second")  # the last row is a summary of the run
        further = rows.get("dynamic_sampling/drawn", pandas.Series(0.0, rows.index))
        prompts = prompts_per_step + further
        # both rates are of the same seconds, which their ratio does not hold
        tokens = prompts * rows["tokens_per_second"] / rows["clips_per_second"]
        return cls(float(prompts.sum()), float(tokens.sum()), len(rows))


class Meter:
    """Counts for a model whose encoder is frozen, and questions of which all clips are `seconds` long."""

    def __init__(self, model: Path, questions: Sequence[AudioQuestion], seconds: float):
        self.sizes, _ = model_config(str(model))
        self.processor: ProcessorMixin = load_processor(model)
        self.questions, self.seconds = questions, seconds
        self.clips = len({question.audio_path for question in questions})

    def prompt_tokens(self, style: str) -> int:
        """Of a prompt with its clip, in the mean."""
        texts = [
            self.processor.apply_chat_template(build_messages(one, style), add_generation_prompt=True, tokenize=False)
            for one in self.questions
        ]
        lengths = [len(ids) for ids in self.processor.tokenizer(texts)["input_ids"]]
        return round(fmean(lengths)) - 1 + int(num_audio_tokens(torch.ones(round(self.seconds * FRAMES_A_SECOND))))

    def target_tokens(self, style: str) -> float:
        """Of a right answer with the end of its turn, in the mean."""
        return fmean(len(target_ids(self.processor.tokenizer, one, style)) for one in self.questions)

    def sft(self, argv: Sequence[str]) -> Callable[[int], float]:
        """What steps of supervised fine-tuning with these arguments take, by their number."""
        data, training, model = parse_config(AudioSFTConfig, argv)
        step = self._step(training, model, data.prompt_style, self.target_tokens(data.prompt_style))
        clip = step.pop("encoder") / training.examples_per_step
        return lambda steps: steps * step["policy"] + clip * min(steps * training.examples_per_step, self.clips)

    def grpo(self, argv: Sequence[str], log: pandas.DataFrame) -> float:
        """Of a GRPO run with these arguments, from its log."""
        data, training, model = parse_config(AudioGRPOConfig, argv)
        spent = Spent.of_log(log, training.prompts_per_step)
        length = spent.tokens / (spent.prompts * training.num_generations)
        step = self._step(training, model, data.prompt_style, length)
        rollout, clip = step.pop("prefill") + step.pop("decoding"), step.pop("encoder") / training.prompts_per_step
        rollouts = spent.prompts / training.prompts_per_step  # more than steps, with further questions
        return rollouts * rollout + spent.steps * sum(step.values()) + clip * min(spent.prompts, self.clips)

    def answering(self, argv: Sequence[str], samples: int, predictions: Path) -> float:
        """Of an evaluation that asked every question `samples` times, by a model of GRPO with these arguments."""
        data, training, model = parse_config(AudioGRPOConfig, [*argv, "--prompts_per_step", "1"])
        step = self._step(training, model, data.prompt_style, self._answer_tokens(predictions))
        an_answer = step["decoding"] / training.num_generations
        return len(self.questions) * (step["encoder"] + step["prefill"] + samples * an_answer)

    def _answer_tokens(self, predictions: Path) -> float:
        """Of a completion with the end of its turn, in the mean."""
        texts = [one.completion or "" for one in read_predictions(predictions, self.questions).values()]
        return 1 + fmean(len(ids) for ids in self.processor.tokenizer(texts)["input_ids"])

    def _step(self, training: Any, model: Any, style: str, length: float) -> dict[str, float]:
        """FLOPs of a step by part if completions have `length` tokens in the mean and its clips are new."""

        prompt = self.prompt_tokens(style)

        def count(tokens: int) -> Mapping[str, float]:
            job = make_job(training, model, self.sizes, 1, prompt, self.seconds, tokens)
            network = build_model(self.sizes, torch.bfloat16, task=job.task, trained_parts=job.trained_parts)
            return count_work(replace(job, encoded=True), None, network, Parameters.of(network)).flops

        return between(count, length)


def between(count: Callable[[int], Mapping[str, float]], length: float) -> dict[str, float]:
    """Counts at a length between two whole numbers, by straight line."""
    low = max(1, int(length))
    share = max(0.0, length - low)
    below = count(low)
    above = count(low + 1) if share else below
    return {part: (1 - share) * below[part] + share * above[part] for part in below}


def steps_for(budget: float, flops_of: Callable[[int], float]) -> int:
    """The number of steps, 1 or more, whose FLOPs come nearest to a budget; `flops_of(steps)` grows with every step."""
    high = 1
    while flops_of(high) < budget:
        high *= 2
    low = max(1, high // 2)
    while low + 1 < high:
        middle = (low + high) // 2
        low, high = (middle, high) if flops_of(middle) < budget else (low, middle)
    return min(low, high, key=lambda steps: abs(flops_of(steps) - budget))
