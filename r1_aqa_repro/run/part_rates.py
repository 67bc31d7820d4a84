"""A learning rate for each part of a Qwen2-Audio."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from transformers import Trainer, TrainingArguments

from r1_aqa_repro.common.console import say
from r1_aqa_repro.common.distributed import is_main_process
from r1_aqa_repro.common.errors import Problem
from r1_aqa_repro.run.arguments import PartArguments

_MODULES = {"encoder": "audio_tower", "projector": "multi_modal_projector"}


def part_rates(training: TrainingArguments) -> dict[str, float]:
    """The learning rates that are set, by part."""
    if not isinstance(training, PartArguments):
        return {}
    rates = {part: getattr(training, f"{part}_learning_rate") for part in _MODULES}
    return {part: rate for part, rate in rates.items() if rate is not None}


def trained_of(model: torch.nn.Module, part: str) -> set[torch.nn.Parameter]:
    """The trained parameters of a part; with an adapter, those of its matrices."""
    module = _MODULES[part]
    return {value for name, value in model.named_parameters() if value.requires_grad and module in name.split(".")}


def check_part_rates(training: TrainingArguments, model: torch.nn.Module) -> list[Problem]:
    """A problem for each rate that is no rate, or of a part of which this model has nothing to train."""
    problems = []
    for part, rate in part_rates(training).items():
        key = f"{part}_learning_rate"
        if rate <= 0:
            problems.append(Problem(key, f"{rate:g} trains nothing", "Leave the part out with trained_parts."))
        elif not trained_of(model, part):
            what = f"nothing of the {part} is trained: the rate acts on nothing"
            remedy = "Leave the key out, or train the part: trained_parts, with LoRA lora_target_modules."
            problems.append(Problem(key, what, remedy))
    if problems or not part_rates(training):
        return problems
    if training.deepspeed and "optimizer" in training.hf_deepspeed_config.config:
        what = "the DeepSpeed file names an optimizer, which has one learning rate"
        problems.append(Problem("deepspeed", what, "Leave optimizer out of the file: optim names it."))
    return problems


class PartRatesTrainer(Trainer):
    """A Trainer (to be mixed in before any subclass of it) whose optimizer has a group for each part with a rate."""

    def create_optimizer(self, model: torch.nn.Module | None = None) -> torch.optim.Optimizer:
        new = self.optimizer is None
        optimizer = super().create_optimizer(model)
        if new and (rates := part_rates(self.args)):
            parts = {part: trained_of(self.model if model is None else model, part) for part in rates}
            optimizer.param_groups[:] = _divided(optimizer.param_groups, parts, rates)
            if is_main_process():
                counts = {part: sum(getattr(each, "ds_numel", each.numel()) for each in parts[part]) for part in rates}
                said = ", ".join(f"{part} {rates[part]:g} ({counts[part]:,} weights)" for part in rates)
                say(f"learning rates: {self.args.learning_rate:g}; {said}")
        return optimizer


def _divided(
    groups: list[dict[str, Any]], parts: Mapping[str, set[torch.nn.Parameter]], rates: Mapping[str, float]
) -> list[dict[str, Any]]:
    """Groups of one part and one kind of weight decay each.

    None is empty: DeepSpeed drops empty groups, and the schedule would give the next ones the wrong rates.
    """
    elsewhere = set().union(*parts.values())
    divided = []
    for group in groups:
        divided.append(group | {"params": [value for value in group["params"] if value not in elsewhere]})
        for part, members in parts.items():
            inside = [value for value in group["params"] if value in members]
            divided.append(group | {"params": inside, "lr": rates[part]})
    return [group for group in divided if group["params"]]
