"""Which strategy to train with on given GPUs, and what would fit if none does."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftConfig
from trl import get_peft_config

from r1_aqa_repro.planning.estimate import ENGINES, Strategy, as_json, strategies
from r1_aqa_repro.planning.job import QUANTISABLE, Job, make_job, read_training
from r1_aqa_repro.planning.seconds import Machine, Range, measured, step_seconds, total

# what LoRA adapts if a configuration says nothing: the language model's linear layers, as configs/sft_lora_*.yaml
_LORA_TARGETS = r"(.*language_model|model).*\.(q_proj|k_proj|v_proj|o_proj|gate_proj|up_proj|down_proj)"
_SCORES = "SEQ_CLS"  # PEFT's name of a task whose adapter has the head beside it
# what to prefer if it fits: ZeRO-2 communicates as little as DDP, ZeRO-3 half as much again (arXiv 1910.02054,
# section 7), offloading moves every weight over PCIe as well, and LoRA trains something else
_PREFERENCE = ("zero2", "zero3", "zero3_offload", "ddp")


@dataclass(frozen=True)
class Plan:
    """What a step of `job` takes on `machine` under each strategy.

    source: where the model's sizes are from.
    chosen: the strategy to use, None if none fits.
    advice: what to set for it, or what would fit.
    measured: the constants of the machine that were measured, in words.
    """

    source: str
    job: Job
    machine: Machine
    found: list[Strategy]
    chosen: Strategy | None
    advice: str
    measured: list[str]

    def seconds(self, strategy: Strategy) -> dict[str, Range]:
        """Of a step, by part, at least and at most."""
        return step_seconds(strategy, self.job, self.machine)

    def report(self) -> dict[str, Any]:
        """The plan as JSON."""
        job = self.job
        return {
            "model": self.source,
            "step": {
                "task": job.task,
                "prompts_at_once": job.prompts,
                "completions_at_once": job.completions,
                "accumulation": job.accumulation,
                "sampled_at_once": job.rollout.completions if job.generates else 0,
                "passes": job.passes,
                "updates": job.updates,
                "prompt_tokens": job.prompt_tokens,
                "completion_tokens": job.completion_tokens,
                "encoder_frames": job.frames,
            },
            "strategies": [
                as_json(strategy, job, self.machine.gpu_bytes)
                | {"seconds": self.seconds(strategy), "seconds_a_step": total(self.seconds(strategy))}
                for strategy in self.found
            ],
            "measured": self.measured,
            "recommended": self.chosen.name(job.num_processes) if self.chosen else None,
            "advice": self.advice,
        }


def make_plan(
    config: str,
    overrides: Sequence[str],
    machine: Machine,
    prompt_tokens: int | None,
    clip_seconds: float | None,
    completion_tokens: int | None,
    measurements: Path | None = None,
) -> Plan:
    """Plan the run of a configuration file with further keys (`--key`, `value`, ...) on a machine, some of whose
    constants `measurements` holds.

    Raises:
        Refused: see `read_training`, `make_job` and `measured`.
    """
    training, model, sizes, source = read_training(config, overrides)
    job = make_job(training, model, sizes, machine.gpus, prompt_tokens, clip_seconds, completion_tokens)
    machine, known = (machine, []) if measurements is None else measured(measurements, machine, job)
    adapters: list[PeftConfig | None] = [get_peft_config(model)]
    if adapters == [None]:
        task_type = _SCORES if job.task == "reward" else None
        adapters.append(LoraConfig(target_modules=_LORA_TARGETS, task_type=task_type))
    found = strategies(job, adapters)
    chosen = choose(found, machine)
    advice = recommend(chosen, job) if chosen else what_would_fit(job, adapters, machine)
    return Plan(source, job, machine, found, chosen, advice, known)


def choose(found: Sequence[Strategy], machine: Machine) -> Strategy | None:
    """The preferred strategy among those that fit; one that trains the whole model before any LoRA."""
    preference = ("ddp", *_PREFERENCE[:-1]) if machine.gpus == 1 else _PREFERENCE
    fitting = [strategy for strategy in found if strategy.fits(machine.gpu_bytes)]
    return min(fitting, key=lambda strategy: (strategy.lora, preference.index(strategy.engine)), default=None)


def recommend(chosen: Strategy, job: Job) -> str:
    """What to set for it, in one sentence."""
    setting = "no deepspeed key" if chosen.engine == "ddp" else f"deepspeed: configs/deepspeed/{chosen.engine}.json"
    lora = " and use_peft: true" if chosen.lora else ""
    lora += f" and lora_task_type: {_SCORES}" if chosen.lora and job.task == "reward" else ""
    lora += " and load_in_4bit: true" if chosen.quantised else ""
    return (
        f"Use {chosen.name(job.num_processes)} ({setting}{lora}): {gigabytes(chosen.memory.peak)} GB a GPU at the peak."
    )


def what_would_fit(job: Job, adapters: Sequence[PeftConfig | None], machine: Machine) -> str:
    """The first changes, each alone, then together, under which a strategy fits."""
    changes: dict[str, Job] = {}
    rounds = job.prompts * job.accumulation
    one_prompt = replace(job, prompts=1, completions=job.completions // job.prompts, accumulation=rounds)
    key = "max_prompts_per_device" if job.generates else "max_examples_per_device"
    if job.prompts > 1:
        changes[f"{key}: 1"] = one_prompt
    if not job.checkpointing:
        changes["activation_checkpointing: true"] = replace(job, checkpointing=True)
        if job.prompts > 1:
            changes[f"{key}: 1 and activation_checkpointing: true"] = replace(one_prompt, checkpointing=True)
    if not job.quantised and job.task in QUANTISABLE:
        changes["load_in_4bit: true"] = replace(job, quantised=True, dtype=torch.bfloat16)
        if job.prompts > 1:
            changes[f"load_in_4bit: true and {key}: 1"] = replace(one_prompt, quantised=True, dtype=torch.bfloat16)
    for factor in (2, 4, 8):
        changes[f"{factor * machine.gpus} GPUs"] = replace(job, num_processes=factor * machine.gpus)
    would = []
    for change, changed in changes.items():
        chosen = choose(strategies(changed, adapters, ENGINES[1:]), machine)
        if chosen:
            would.append(f"{change} with {chosen.name(changed.num_processes)} ({gigabytes(chosen.memory.peak)} GB)")
    what = "; ".join(would) if would else "none of fewer prompts at once, checkpointing, or eight times the GPUs"
    return f"Nothing fits in {machine.gpu_bytes / 1e9:g} GB a GPU. What would: {what}."


def gigabytes(size: float) -> str:
    """Bytes in units of 1e9."""
    return f"{size / 1e9:.3g}" if size < 1e9 else f"{size / 1e9:.1f}"
