"""Train a text-only Qwen2 by PPO: actor, critic, reference and reward.

    python -m r1_aqa_repro.train_ppo_text --config configs/ppo_text_qwen2_7b.yaml [--key value ...]
    torchrun --nproc_per_node 8 -m r1_aqa_repro.train_ppo_text --config ...

The reward is a reward model, rule rewards, or both. The same command again resumes an interrupted run; `--overwrite`
starts anew.
"""

from __future__ import annotations

from r1_aqa_repro.common.console import show_help_if_asked
from r1_aqa_repro.model.arguments import RopeArguments
from r1_aqa_repro.ppo.arguments import PPOArguments
from r1_aqa_repro.run.arguments import TextRunArguments

# without the imports below, which take seconds
show_help_if_asked(__name__, __doc__, "transformers.TrainingArguments", TextRunArguments, PPOArguments, RopeArguments)

from r1_aqa_repro.common.errors import command
from r1_aqa_repro.embedded import true_reward
from r1_aqa_repro.model.text_loading import load_configured_policy, load_configured_reference
from r1_aqa_repro.ppo.critic import (
    actor_and_critic,
    check_critic,
    check_ppo,
    critic_positions,
    load_critic,
    with_adapter,
)
from r1_aqa_repro.ppo.trainer import PPOConfig, PPOTrainer
from r1_aqa_repro.rewards.registry import check_rewards, load_rewards
from r1_aqa_repro.run.config import parse_text_config
from r1_aqa_repro.run.kinds import prompts_to_answer
from r1_aqa_repro.run.loop import run_training
from r1_aqa_repro.run.preflight import prepare, sole_run


@command
def main(argv: list[str]) -> int:
    """Check everything, load, train or resume, and save `<output_dir>/final`. Returns the exit code."""
    true_reward.register()
    data, training, model_config = parse_text_config(PPOConfig, argv)
    problems = check_rewards(training) + check_ppo(training, model_config) + check_critic(training, model_config)
    longest = critic_positions(training, model_config)
    kind = prompts_to_answer(training, critic=longest, build=actor_and_critic)
    with sole_run(training):
        prompts, held_out = prepare(data, training, model_config, kind, problems)

        def build_trainer() -> PPOTrainer:
            policy, tokenizer = load_configured_policy(model_config)
            reference = load_configured_reference(model_config)
            return PPOTrainer(
                policy=with_adapter(policy, model_config, "CAUSAL_LM"),
                critic=with_adapter(load_critic(training, model_config), model_config, "SEQ_CLS"),
                reference=reference,
                args=training,
                prompts=prompts,
                held_out=held_out,
                processing_class=tokenizer,
                reward_funcs=load_rewards(training, batch_size=training.max_prompts_per_device),
            )

        return run_training(build_trainer, training, "ppo", kind.sampled)


if __name__ == "__main__":
    main()
