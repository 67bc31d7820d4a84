"""The keys of PPO; imports no library, for a quick `--help`. Their names are those of TRL's former PPOTrainer."""

from __future__ import annotations

from dataclasses import dataclass, field

from r1_aqa_repro.rewards.arguments import RewardArguments
from r1_aqa_repro.run.arguments import derive_batch


@dataclass
class PPOArguments(RewardArguments):
    """PPO; a step is a rollout with all its updates.

    `per_device_train_batch_size` and `gradient_accumulation_steps` are derived: a minibatch is
    `prompts_per_step / num_mini_batches` completions over all processes.
    """

    prompts_per_step: int = field(default=64, metadata={"help": "Prompts of a rollout, over all processes."})
    max_prompts_per_device: int = field(
        default=8, metadata={"help": "At most so many completions a device at once, in every model."}
    )
    local_rollout_forward_batch_size: int | None = field(
        default=None,
        metadata={"help": "So many completions a device are sampled at once; max_prompts_per_device unless given."},
    )
    max_completion_length: int = field(default=256, metadata={"help": "Longest completion, tokens."})
    temperature: float = field(default=1.0, metadata={"help": "Of sampling; log-probs are of the same distribution."})
    reward_weights: list[float] | None = field(
        default=None, metadata={"help": "One a reward, 1 unless given; a reward of weight 0 is logged only."}
    )
    missing_eos_penalty: float | None = field(
        default=None, metadata={"help": "Subtracted from the score of a completion that was cut off."}
    )
    num_ppo_epochs: int = field(default=4, metadata={"help": "Passes over a rollout."})
    num_mini_batches: int = field(default=1, metadata={"help": "Updates a pass."})
    kl_coef: float = field(default=0.05, metadata={"help": "Price of a nat of divergence from the reference."})
    cliprange: float = field(default=0.2, metadata={"help": "Clip of the probability ratio."})
    cliprange_value: float = field(default=0.2, metadata={"help": "Clip of the critic's change a rollout."})
    vf_coef: float = field(default=0.1, metadata={"help": "Weight of the critic's loss."})
    entropy_coef: float = field(default=0.0, metadata={"help": "Weight of an entropy bonus."})
    gamma: float = field(default=1.0, metadata={"help": "Discount."})
    lam: float = field(default=0.95, metadata={"help": "Lambda of the generalised advantages."})
    whiten_rewards: bool = field(default=False, metadata={"help": "Scale the tokens' rewards to variance 1."})
    value_model_name_or_path: str | None = field(
        default=None, metadata={"help": "Where the critic starts: the reward model unless given, else the policy."}
    )
    critic_learning_rate: float | None = field(default=None, metadata={"help": "learning_rate unless given."})
    ddp_find_unused_parameters: bool | None = field(
        default=False, metadata={"help": "Every parameter has its part in one of the two losses."}
    )

    def __post_init__(self) -> None:
        minibatch, rest = divmod(self.prompts_per_step, max(1, self.num_mini_batches))
        self.batch_problem = derive_batch(self, "minibatch", minibatch, self.max_prompts_per_device, 1)
        if rest or self.num_mini_batches < 1:
            self.batch_problem = f"prompts_per_step {self.prompts_per_step} is no multiple of num_mini_batches"
        super().__post_init__()  # type: ignore[misc]  # of the configuration that this is mixed into
