"""Train a text-only Qwen2 by GRPO, with a reward model, rule rewards, or both.

    python -m r1_aqa_repro.train_grpo_text --config configs/grpo_text_qwen2_7b.yaml [--key value ...]
    torchrun --nproc_per_node 8 -m r1_aqa_repro.train_grpo_text --config ...

The trainer is that of `train_grpo`, the shared prefix included. The same command again resumes an interrupted run;
`--overwrite` starts anew.
"""

from __future__ import annotations

from r1_aqa_repro.common.console import show_help_if_asked
from r1_aqa_repro.model.arguments import RopeArguments
from r1_aqa_repro.run.arguments import RunArguments, TextGRPOArguments

# without the imports below, which take seconds
show_help_if_asked(__name__, __doc__, "trl.GRPOConfig", RunArguments, TextGRPOArguments, RopeArguments)

from trl import get_peft_config

from r1_aqa_repro.common.errors import command
from r1_aqa_repro.embedded import true_reward
from r1_aqa_repro.grpo.trainer import TextGRPOTrainer
from r1_aqa_repro.model.text_loading import load_configured_policy, load_reward_model, load_tokenizer
from r1_aqa_repro.rewards.arguments import REWARD_MODEL
from r1_aqa_repro.rewards.registry import check_rewards, rule_rewards
from r1_aqa_repro.run.checks import check_grpo
from r1_aqa_repro.run.config import TextGRPOConfig, parse_text_config
from r1_aqa_repro.run.kinds import prompts_to_answer
from r1_aqa_repro.run.loop import run_training
from r1_aqa_repro.run.preflight import prepare


@command
def main(argv: list[str]) -> int:
    """Check everything, load, train or resume, and save `<output_dir>/final`. Returns the exit code."""
    true_reward.register()
    data, training, model_config = parse_text_config(TextGRPOConfig, argv)
    problems = check_rewards(training) + check_grpo(training, model_config)
    prompts, _ = prepare(data, training, model_config, prompts_to_answer(training), problems)

    def build_trainer() -> TextGRPOTrainer:
        model, tokenizer = load_configured_policy(model_config)
        reward_functions = rule_rewards(training)
        reward_tokenizer = None
        if REWARD_MODEL in training.reward_funcs:
            folder = str(training.reward_model_name_or_path)
            reward_tokenizer = load_tokenizer(folder)
            reward_functions[REWARD_MODEL] = load_reward_model(folder, reward_tokenizer, "auto")
        return TextGRPOTrainer(
            model=model,
            args=training,
            questions=prompts,
            processing_class=tokenizer,
            reward_funcs=[(name, reward_functions[name]) for name in training.reward_funcs],
            reward_processing_classes=[
                reward_tokenizer if name == REWARD_MODEL else None for name in training.reward_funcs
            ],
            peft_config=get_peft_config(model_config),
        )

    return run_training(build_trainer, training, "grpo")


if __name__ == "__main__":
    main()
