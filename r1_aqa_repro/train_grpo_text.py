"""Train a text-only Qwen2 by GRPO, with a reward model, rule rewards, or both.

    python -m r1_aqa_repro.train_grpo_text --config configs/grpo_text_qwen2_7b.yaml [--key value ...]
    torchrun --nproc_per_node 8 -m r1_aqa_repro.train_grpo_text --config ...

The trainer is that of `train_grpo`, the shared prefix included. The same command again resumes an interrupted run;
`--overwrite` starts anew.
"""

from __future__ import annotations

from transformers import set_seed
from trl import get_peft_config

from r1_aqa_repro.common.distributed import start_distributed
from r1_aqa_repro.common.errors import command
from r1_aqa_repro.embedded import true_reward
from r1_aqa_repro.grpo.checks import check_adapter, check_signal
from r1_aqa_repro.grpo.trainer import TextGRPOTrainer
from r1_aqa_repro.model.text_loading import load_configured_policy, load_reward_model, load_tokenizer
from r1_aqa_repro.rewards.arguments import REWARD_MODEL
from r1_aqa_repro.rewards.registry import check_rewards, rule_rewards
from r1_aqa_repro.run.config import TextGRPOConfig, parse_text_config
from r1_aqa_repro.run.loop import run_training
from r1_aqa_repro.run.text_preflight import prepare_text, prompts_to_answer


@command
def main(argv: list[str]) -> int:
    """Check everything, load, train or resume, and save `<output_dir>/final`. Returns the exit code."""
    true_reward.register()
    data, training, model_config = parse_text_config(TextGRPOConfig, argv)
    problems = check_rewards(training) + check_signal(training) + check_adapter(model_config)
    prompts, _ = prepare_text(data, training, model_config, problems, prompts_to_answer(training))

    def build_trainer() -> TextGRPOTrainer:
        start_distributed(training)
        set_seed(training.seed)  # an adapter's weights are drawn before any trainer seeds
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
