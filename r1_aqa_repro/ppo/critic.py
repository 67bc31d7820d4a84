"""The critic of a PPO run: where it starts, and what can be known to be wrong with it and with PPO's settings."""

from __future__ import annotations

from dataclasses import replace

from peft import PeftModel, get_peft_model
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel, Qwen2ForCausalLM, Qwen2ForSequenceClassification
from transformers.integrations.deepspeed import is_deepspeed_zero3_enabled
from trl import get_peft_config

from r1_aqa_repro.common.errors import Problem, Refused
from r1_aqa_repro.model.files import adapter_config
from r1_aqa_repro.model.text_loading import (
    TextModelConfig,
    check_reward_model,
    checked_config,
    load_reward_model,
    load_tokenizer,
)
from r1_aqa_repro.model.yarn import WHERE as ROPE_PARAMETERS
from r1_aqa_repro.ppo.actor_critic import ActorCritic
from r1_aqa_repro.ppo.trainer import PPOConfig
from r1_aqa_repro.run.checks import check_lora_dropout


def actor_and_critic(config: PreTrainedConfig) -> ActorCritic:
    """Both of one configuration, for counting their parameters."""
    return ActorCritic(Qwen2ForCausalLM(config), Qwen2ForSequenceClassification(config))


def critic_source(training: PPOConfig) -> str | None:
    """The reward model that the critic starts as; None if it starts as the policy, with a head of zeros."""
    return training.value_model_name_or_path or training.reward_model_name_or_path


def with_adapter(network: PreTrainedModel, model: TextModelConfig, task_type: str) -> PreTrainedModel | PeftModel:
    """The policy (CAUSAL_LM) or the critic (SEQ_CLS, with its head trained in full) as the run trains it: with an
    adapter if `use_peft` asks for one."""
    peft_config = get_peft_config(model)
    if peft_config is None:
        return network
    peft_config.task_type = task_type
    is_sharded = is_deepspeed_zero3_enabled()  # whose buffers hold one type: TRL's trainers do the same
    adapted = get_peft_model(network, peft_config, autocast_adapter_dtype=not is_sharded)
    for parameter in adapted.parameters() if not is_sharded else ():  # the head too, which PEFT leaves as it was
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    return adapted


def load_critic(training: PPOConfig, model: TextModelConfig) -> PreTrainedModel:
    """The critic at its start; it reads the policy's token ids."""
    source = critic_source(training)
    critic = load_reward_model(
        source or str(model.model_name_or_path),
        load_tokenizer(str(model.model_name_or_path)),
        model.dtype or "float32",
        model.rope,
        new_head=source is None,
    )
    if source is None:
        zero_head(critic)
    return critic


def zero_head(critic: PreTrainedModel) -> None:
    """Let a critic whose head is new predict 0 everywhere: a random one would be noise of the rewards' own size."""
    if is_deepspeed_zero3_enabled():
        from deepspeed.zero import GatheredParameters

        with GatheredParameters(critic.score.weight, modifier_rank=0):
            nn.init.zeros_(critic.score.weight)
    else:
        nn.init.zeros_(critic.score.weight)


def check_critic(training: PPOConfig, model: TextModelConfig) -> list[Problem]:
    """A problem if the critic is no reward model, cannot have the run's rotary embeddings, or does not read the tokens
    that the policy writes."""
    source, policy = critic_source(training), model.model_name_or_path
    if source is None or policy is None:
        return []
    try:
        check_reward_model(source)  # what is wrong with it as the reward too is told once
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


def critic_positions(training: PPOConfig, model: TextModelConfig) -> int | None:
    """The longest conversation that the critic can read; None if it starts as the policy, or cannot be read."""
    source = critic_source(training)
    try:
        return None if source is None else int(checked_config(source, model.rope).max_position_embeddings)
    except Refused:  # `check_critic` says why
        return None


def check_ppo(training: PPOConfig, model: TextModelConfig) -> list[Problem]:
    """A problem for each setting that PPO cannot work with, or would ignore."""
    problems = [
        Problem(key, f"{value.value}: PPO logs and saves by steps", "Use steps or no.")
        for key in ("save_strategy", "logging_strategy")
        if (value := getattr(training, key)) not in ("steps", "no")
    ]
    if training.load_best_model_at_end:
        what = "PPO does not choose among checkpoints: a reward model's score is no reason to"
        problems.append(Problem("load_best_model_at_end", what, "Leave it out."))
    if training.adap_kl_ctrl and not (training.target_kl and training.kl_coef):
        what = "it multiplies kl_coef, which must be above 0, and needs a target"
        problems.append(Problem("adap_kl_ctrl", what, "Set kl_coef and target_kl, or leave it out."))
    if training.target_kl is not None and not training.adap_kl_ctrl:
        problems.append(Problem("target_kl", "the price is fixed", "Set adap_kl_ctrl: true, or leave it out."))
    source = critic_source(training)
    if model.use_peft and source is not None and adapter_config(source) is not None:
        what = "the critic would start from an adapter, and its own would be saved without it"
        problems.append(Problem(source, what, "Merge it into its base with r1_aqa_repro.merge_adapter."))
    return problems + check_lora_dropout(model)
