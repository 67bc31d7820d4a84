"""The keys of PPO; imports no library, for a quick `--help`. Their names are those of TRL's former PPOTrainer."""

from __future__ import annotations

from dataclasses import dataclass

from r1_aqa_repro.common.console import key
from r1_aqa_repro.rewards.arguments import RewardArguments
from r1_aqa_repro.run.arguments import HeldOutArguments, derive_batch


@dataclass
class PPOArguments(RewardArguments, HeldOutArguments):
    """PPO; a step is a rollout with all its updates.

    `per_device_train_batch_size` and `gradient_accumulation_steps` are derived: a minibatch is
    `prompts_per_step / num_mini_batches` completions over all processes.
    """

    prompts_per_step: int = key(64, "Prompts of a rollout, over all processes.")
    max_prompts_per_device: int = key(8, "At most so many completions a device at once, in every model.")
    local_rollout_forward_batch_size: int | None = key(
        None, "So many completions a device are sampled at once; max_prompts_per_device unless given."
    )
    max_completion_length: int = key(256, "Longest completion, tokens.")
    temperature: float = key(1.0, "Of sampling; log-probs are of the same distribution.")
    reward_weights: list[float] | None = key(None, "One a reward, 1 unless given; a reward of weight 0 is logged only.")
    missing_eos_penalty: float | None = key(None, "Subtracted from the score of a completion that was cut off.")
    num_ppo_epochs: int = key(4, "Passes over a rollout.")
    num_mini_batches: int = key(1, "Updates a pass.")
    kl_coef: float = key(0.05, "Price of a nat of divergence from the reference; with adap_kl_ctrl that of the start.")
    adap_kl_ctrl: bool = key(False, "Let the price follow the divergence: raise it above target_kl, lower it below.")
    target_kl: float | None = key(None, "Of adap_kl_ctrl: nats an answer that the policy is to be from the reference.")
    horizon: int = key(10_000, "Of adap_kl_ctrl: completions over which the price may change by about a fifth.")
    cliprange: float = key(0.2, "Clip of the probability ratio.")
    cliprange_value: float = key(0.2, "Clip of the critic's change a rollout.")
    vf_coef: float = key(0.1, "Weight of the critic's loss.")
    entropy_coef: float = key(0.0, "Weight of an entropy bonus.")
    gamma: float = key(1.0, "Discount.")
    lam: float = key(0.95, "Lambda of the generalised advantages.")
    whiten_rewards: bool = key(False, "Scale the tokens' rewards to variance 1.")
    value_model_name_or_path: str | None = key(
        None, "Where the critic starts: the reward model unless given, else the policy."
    )
    critic_learning_rate: float | None = key(None, "learning_rate unless given.")
    ddp_find_unused_parameters: bool | None = key(False, "Every parameter has its part in one of the two losses.")

    def __post_init__(self) -> None:
        minibatch, rest = divmod(self.prompts_per_step, max(1, self.num_mini_batches))
        self.batch_problem = derive_batch(self, "minibatch", minibatch, self.max_prompts_per_device, 1)
        if rest or self.num_mini_batches < 1:
            self.batch_problem = f"prompts_per_step {self.prompts_per_step} is no multiple of num_mini_batches"
        super().__post_init__()
