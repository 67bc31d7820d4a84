"""The keys of a configuration that say what completions are rewarded for; imports no library, for a quick `--help`."""

from __future__ import annotations

from dataclasses import dataclass

from r1_aqa_repro.common.console import key

REWARD_MODEL = "reward_model"
ANSWER_PROBABILITY = "answer_probability"  # of the policy itself: r1_aqa_repro.grpo.answer_probability


@dataclass
class RewardArguments:
    """What completions are rewarded for: `reward_model` or names of `RULES`, and what some of them need."""

    reward_funcs: list[str] = key(
        [REWARD_MODEL], "reward_model, or names of rule rewards: see r1_aqa_repro.rewards.registry."
    )
    reward_model_name_or_path: str | None = key(None, "Folder or hub id of the model behind the reward `reward_model`.")
    persona_rubric: str | None = key(None, "YAML rubric of the reward `persona`.")
    length_penalty_cache: int = key(
        64, "The reward `length_penalty` falls over so many last tokens of max_completion_length."
    )

    code_timeout: float = key(5.0, "Seconds of processor time of a program that the reward `code` tests.")
    code_memory_mb: int = key(512, "MiB of address space of a process of such a program.")

    def __post_init__(self) -> None:
        # as of `deepspeed`, '' on a command line takes back what the config has
        self.reward_model_name_or_path = self.reward_model_name_or_path or None
        self.persona_rubric = self.persona_rubric or None
        super().__post_init__()  # type: ignore[misc]  # of the configuration that this is mixed into
