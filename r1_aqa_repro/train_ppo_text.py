"""Train a text-only Qwen2 by PPO: actor, critic, reference and reward.

    python -m r1_aqa_repro.train_ppo_text --config configs/ppo_text_qwen2_7b.yaml [--key value ...]
    torchrun --nproc_per_node 8 -m r1_aqa_repro.train_ppo_text --config ...

The reward is a reward model, rule rewards, or both. The same command again resumes an interrupted run; `--overwrite`
starts anew.
"""

from __future__ import annotations

from dataclasses import replace

from transformers import PreTrainedConfig, PreTrainedModel, Qwen2ForCausalLM, Qwen2ForSequenceClassification, set_seed

from r1_aqa_repro.common.distributed import start_distributed
from r1_aqa_repro.common.errors import Problem, Refused, command
from r1_aqa_repro.embedded import true_reward
from r1_aqa_repro.model.text_loading import (
    TextModelConfig,
    check_reward_model,
    checked_config,
    load_configured_policy,
    load_reward_model,
    load_tokenizer,
)
from r1_aqa_repro.model.yarn import WHERE as ROPE_PARAMETERS
from r1_aqa_repro.ppo.trainer import ActorCritic, PPOConfig, PPOTrainer, zero_head
from r1_aqa_repro.rewards.arguments import REWARD_MODEL
from r1_aqa_repro.rewards.registry import check_rewards, rule_rewards
from r1_aqa_repro.rewards.reward_model import RewardModel
from r1_aqa_repro.run.config import parse_text_config
from r1_aqa_repro.run.loop import run_training
from r1_aqa_repro.run.text_preflight import prepare_text, prompts_to_answer


@command
def main(argv: list[str]) -> int:
    """Check everything, load, train or resume, and save `<output_dir>/final`. Returns the exit code."""
    true_reward.register()
    data, training, model_config = parse_text_config(PPOConfig, argv)
    problems = check_rewards(training) + check_ppo(training, model_config) + check_critic(training, model_config)
    kind = prompts_to_answer(training, critic=positions_of_critic(training, model_config))
    prompts, _ = prepare_text(data, training, model_config, problems, kind, actor_and_critic)

    def build_trainer() -> PPOTrainer:
        start_distributed(training)
        set_seed(training.seed)
        policy, tokenizer = load_configured_policy(model_config)
        reference, _ = load_configured_policy(model_config)
        reward_functions = rule_rewards(training)
        if REWARD_MODEL in training.reward_funcs:
            folder = str(training.reward_model_name_or_path)
            reward_tokenizer = load_tokenizer(folder)
            judge = load_reward_model(folder, reward_tokenizer, "auto")
            reward_functions[REWARD_MODEL] = RewardModel(judge, reward_tokenizer, training.max_prompts_per_device)
        return PPOTrainer(
            policy=policy,
            critic=load_critic(training, model_config),
            reference=reference,
            args=training,
            prompts=prompts,
            processing_class=tokenizer,
            reward_funcs={name: reward_functions[name] for name in training.reward_funcs},
        )

    return run_training(build_trainer, training, "ppo")


def actor_and_critic(config: PreTrainedConfig) -> ActorCritic:
    """Both of one configuration, for counting their parameters."""
    return ActorCritic(Qwen2ForCausalLM(config), Qwen2ForSequenceClassification(config))


def critic_source(training: PPOConfig) -> str | None:
    """The reward model that the critic starts as; None where it starts as the policy, with a head of zeros."""
    return training.value_model_name_or_path or training.reward_model_name_or_path


def load_critic(training: PPOConfig, model: TextModelConfig) -> PreTrainedModel:
    """The critic at its start; it reads the policy's token ids."""
    source = critic_source(training)
    critic = load_reward_model(
        source or str(model.model_name_or_path),
        load_tokenizer(str(model.model_name_or_path)),
        model.dtype or "float32",
        model.attn_implementation or "sdpa",
        model.rope,
        new_head=source is None,
    )
    if source is None:
        zero_head(critic)
    return critic


def check_critic(training: PPOConfig, model: TextModelConfig) -> list[Problem]:
    """A problem where the critic is no reward model, cannot have the run's rotary embeddings, or does not read the
    tokens that the policy writes."""
    source, policy = critic_source(training), model.model_name_or_path
    if source is None or policy is None:
        return []
    try:
        if source != training.reward_model_name_or_path:  # that one is checked as a reward
            check_reward_model(source)
        checked_config(source, model.rope)
        if load_tokenizer(source).get_vocab() != load_tokenizer(policy).get_vocab():
            what = f"its tokens are not those of {policy}, which the critic has to read"
            remedy = "Set value_model_name_or_path to a reward model of the policy's family."
            raise Refused.because(source, what, remedy)
    except Refused as refusal:  # what is wrong with rope_parameters does not say for whom
        return [
            replace(problem, where=f"{source}: {problem.where}") if problem.where == ROPE_PARAMETERS else problem
            for problem in refusal.problems
        ]
    return []


def positions_of_critic(training: PPOConfig, model: TextModelConfig) -> int | None:
    """The longest conversation that the critic can read; None where it starts as the policy, or cannot be read."""
    source = critic_source(training)
    try:
        return None if source is None else int(checked_config(source, model.rope).max_position_embeddings)
    except Refused:  # `check_critic` says why
        return None


def check_ppo(training: PPOConfig, model: TextModelConfig) -> list[Problem]:
    """A problem for each setting that PPO cannot work with, or would ignore."""
    bounds = {"num_ppo_epochs": 1, "num_mini_batches": 1, "max_completion_length": 1, "kl_coef": 0, "max_grad_norm": 0}
    if training.local_rollout_forward_batch_size is not None:
        bounds["local_rollout_forward_batch_size"] = 1
    problems = [
        Problem(key, f"{getattr(training, key)} is below {least}", f"Choose {least} or more.")
        for key, least in bounds.items()
        if getattr(training, key) < least
    ]
    problems += [
        Problem(key, f"{getattr(training, key)} is not above 0", "Choose a positive number.")
        for key in ("temperature", "cliprange", "cliprange_value")
        if getattr(training, key) <= 0
    ]
    problems += [
        Problem(key, f"{getattr(training, key)} is not from 0 to 1", "Choose from 0 to 1.")
        for key in ("gamma", "lam")
        if not 0 <= getattr(training, key) <= 1
    ]
    problems += [
        Problem(key, f"{value.value}: PPO logs and saves by steps", "Use steps or no.")
        for key in ("save_strategy", "logging_strategy")
        if (value := getattr(training, key)) not in ("steps", "no")
    ]
    if model.use_peft:
        what = "PPO trains policy and critic in full, without adapters"
        problems.append(Problem("use_peft", what, "Leave it out, or use r1_aqa_repro.train_grpo_text."))
    return problems


if __name__ == "__main__":
    main()
