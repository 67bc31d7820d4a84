"""Train an audio language model by GRPO.

    python -m r1_aqa_repro.train_grpo --config configs/grpo_qwen2_audio_7b.yaml [--key value ...]
    torchrun --nproc_per_node 8 -m r1_aqa_repro.train_grpo --config ...

The same command again resumes an interrupted run; `--overwrite` starts anew.
"""

from __future__ import annotations

import sys

from transformers import set_seed
from trl import ModelConfig, get_peft_config

from r1_aqa_repro.config import AudioGRPOConfig, parse_config
from r1_aqa_repro.distributed import start_distributed
from r1_aqa_repro.errors import Problem, command
from r1_aqa_repro.grpo.trainer import AudioGRPOTrainer
from r1_aqa_repro.modeling import freeze, load_configured
from r1_aqa_repro.preflight import prepare
from r1_aqa_repro.rewards import REWARDS
from r1_aqa_repro.training import run_training


@command
def main(argv: list[str]) -> int:
    """Check everything, load, train or resume, and save `<output_dir>/final`. Returns the exit code."""
    data, training, model_config = parse_config(AudioGRPOConfig, argv)
    problems = check_rewards(training) + check_signal(training, model_config)
    questions = prepare(data, training, model_config, problems)

    def build_trainer() -> AudioGRPOTrainer:
        start_distributed(training)
        set_seed(training.seed)  # an adapter's weights are drawn before any trainer seeds
        model, processor = load_configured(model_config)
        freeze(model, training.trained_parts)
        evaluator = None
        if training.eval_file is not None:
            from eval.during_training import HarnessEvaluator  # only here: the library does not depend on `eval`

            evaluator = HarnessEvaluator.of(data, training, processor)
        return AudioGRPOTrainer(
            model=model,
            args=training,
            questions=questions,
            processing_class=processor,
            prompt_style=data.prompt_style,
            audio_channel=data.audio_channel,
            evaluator=evaluator,
            peft_config=get_peft_config(model_config),
        )

    return run_training(build_trainer, training, "grpo")


def check_rewards(training: AudioGRPOConfig) -> list[Problem]:
    """A problem for each reward that does not exist, and for weights that do not fit."""
    problems = [
        Problem("reward_funcs", f"there is no reward {name!r}", f"Choose among {', '.join(REWARDS)}.")
        for name in training.reward_funcs
        if name not in REWARDS
    ]
    weights = training.reward_weights
    if weights is not None and len(weights) != len(training.reward_funcs):
        what = f"{len(weights)} weights for {len(training.reward_funcs)} rewards"
        problems.append(Problem("reward_weights", what, "Give one weight a reward."))
    return problems


def check_signal(training: AudioGRPOConfig, model: ModelConfig) -> list[Problem]:
    """A problem for each choice of what is learned from, and of what is trained, that cannot be carried out."""
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
    if model.use_peft and model.lora_dropout > 0:
        what = f"{model.lora_dropout}: completions would be scored by another model than the one that sampled them"
        problems.append(Problem("lora_dropout", what, "Set it to 0."))
    if not 0 < training.advantage_top_fraction <= 1:
        problems.append(Problem("advantage_top_fraction", f"{training.advantage_top_fraction}", "Choose from 0 to 1."))
    if model.use_peft and training.trained_parts != "all":
        what = f"{training.trained_parts} beside an adapter, which leaves everything but itself as it is"
        problems.append(Problem("trained_parts", what, "Choose the adapter's modules with lora_target_modules."))
    return problems


if __name__ == "__main__":
    sys.exit(main())
