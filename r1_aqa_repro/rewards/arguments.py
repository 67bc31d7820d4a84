"""The keys of a configuration that say what completions are rewarded for; imports no library, for a quick `--help`."""

from __future__ import annotations

from dataclasses import dataclass, field

REWARD_MODEL = "reward_model"


@dataclass
class RewardArguments:
    """What completions are rewarded for: `reward_model` or names of `RULES`, and what some of them need."""

    reward_funcs: list[str] = field(
        default_factory=lambda: [REWARD_MODEL],
        metadata={"help": "reward_model, or names of rule rewards: see r1_aqa_repro.rewards.registry."},
    )
    reward_model_name_or_path: str | None = field(
        default=None, metadata={"help": "Folder or hub id of the model behind the reward `reward_model`."}
    )
    persona_rubric: str | None = field(default=None, metadata={"help": "YAML rubric of the reward `persona`."})
    length_penalty_cache: int = field(
        default=64,
        metadata={"help": "The reward `length_penalty` falls over so many last tokens of max_completion_length."},
    )
