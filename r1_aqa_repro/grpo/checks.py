"""Settings of GRPO that cannot be carried out, whatever the questions are."""

from __future__ import annotations

from trl import ModelConfig

from r1_aqa_repro.common.errors import Problem
from r1_aqa_repro.run.config import SharedPrefixGRPOConfig


def check_signal(training: SharedPrefixGRPOConfig) -> list[Problem]:
    """A problem for each choice of what is learned from that cannot be carried out."""
    problems = []
    batches = training.world_size * training.gradient_accumulation_steps
    if training.dynamic_sampling < 0 or training.dynamic_sampling % batches:
        what = f"{training.dynamic_sampling} further prompts do not divide among the {batches} batches of a step"
        problems.append(Problem("dynamic_sampling", what, f"Choose a multiple of {batches}, or 0."))
    chooses = training.dynamic_sampling or training.advantage_filter != "none"
    if chooses and training.multi_objective_aggregation != "sum_then_normalize":
        what = f"{training.multi_objective_aggregation} beside dynamic_sampling or advantage_filter"
        problems.append(Problem("multi_objective_aggregation", what, "They go by the sum: use sum_then_normalize."))
    if training.advantage_filter != "none" and training.loss_type not in ("grpo", "dr_grpo"):
        what = f"{training.advantage_filter} with loss_type {training.loss_type}, whose mean is over tokens"
        problems.append(Problem("advantage_filter", what, "Use loss_type grpo or dr_grpo."))
    if training.num_iterations > 1 and training.gradient_accumulation_steps > 1:
        what = f"{training.num_iterations} updates a rollout need all prompts of a step in one batch a process"
        problems.append(Problem("num_iterations", what, "Raise max_prompts_per_device or the number of processes."))
    if training.num_iterations > 1 and training.save_steps % training.num_iterations:
        what = f"{training.save_steps:g}: a resume would begin in the middle of a rollout's updates"
        problems.append(
            Problem("save_steps", what, f"Choose a multiple of num_iterations ({training.num_iterations}).")
        )
    if not 0 < training.advantage_top_fraction <= 1:
        problems.append(Problem("advantage_top_fraction", f"{training.advantage_top_fraction}", "Choose from 0 to 1."))
    return problems


def check_adapter(model: ModelConfig) -> list[Problem]:
    """A problem with an adapter that cannot be trained by its own samples."""
    if not model.use_peft or model.lora_dropout == 0:
        return []
    what = f"{model.lora_dropout}: completions would be scored by another model than the one that sampled them"
    return [Problem("lora_dropout", what, "Set it to 0.")]
