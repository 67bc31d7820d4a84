"""What a configuration file asks for, as the planner reads it."""

from __future__ import annotations

from pathlib import Path

import pytest
from trl import get_peft_config

from r1_aqa_repro.common.errors import Refused
from r1_aqa_repro.planning.estimate import strategies
from r1_aqa_repro.planning.job import make_job, read_training
from r1_aqa_repro.planning.seconds import step_seconds, total
from tests.conftest import TRAINING_CONFIGS
from tests.planning.test_seconds import MACHINE

PPO = "prompts_per_step: 16\nmax_prompts_per_device: 4\nnum_mini_batches: 2\nkl_coef: 0.1\n"
REWARD = "examples_per_step: 8\nmax_examples_per_device: 2\ncenter_rewards_coefficient: 0.01\n"
DPO = "examples_per_step: 8\nbeta: 0.1\n"


@pytest.mark.parametrize("config", TRAINING_CONFIGS, ids=lambda path: path.stem)
def test_every_config_is_planned(config: Path, model_folder: Path, policy: Path) -> None:
    """As what it is, with a small model in the place of its own."""
    task = config.stem.split("_")[0]
    hears = task in ("grpo", "sft") and "text" not in config.stem
    small = str(model_folder if hears else policy)
    training, model, sizes, source = read_training(str(config), ["--model_name_or_path", small])
    job = make_job(training, model, sizes, 1, 60, 1.0 if hears else None, 16)
    (strategy,) = strategies(job, [get_peft_config(model)], ["ddp"])
    assert (job.task, source, job.frames > 0) == (task, small, hears)
    assert strategy.memory.peak > strategy.memory.held > 0
    low, high = total(step_seconds(strategy, job, MACHINE))
    assert 0 < low <= high


def test_what_ppo_does_in_a_step(policy: Path, tmp_path: Path) -> None:
    """By hand, of 2 processes: 16 prompts are 8 each, 4 of each minibatch of 8; four passes of two updates each."""
    path = tmp_path / "ppo.yaml"
    path.write_text(f"model_name_or_path: {policy}\n{PPO}num_ppo_epochs: 4\nentropy_coef: 0.1\n")
    for overrides, sampled, rounds in ([], 4, 2), (["--local-rollout-forward-batch-size=3"], 3, 3):
        training, model, sizes, _ = read_training(str(path), overrides)
        job = make_job(training, model, sizes, 2, 30, None, 16)
        assert (job.prompts, job.completions, job.accumulation) == (4, 4, 2)
        assert (job.passes, job.updates, job.reference, job.reward_models) == (4, 8, True, 1)
        assert (job.rollout.completions, job.rollout.accumulation) == (sampled, rounds)
        assert job.entropy_gradient and not job.shared


@pytest.mark.parametrize(
    ("settings", "options", "message"),
    [
        (PPO, ["--use_peft", "true"], "completions would be scored by another model"),
        (PPO, ["--save_strategy", "epoch"], "PPO logs and saves by steps"),
        (PPO, ["--num_mini_batches", "3"], "no multiple of num_mini_batches"),
        (REWARD, ["--use_peft", "true"], "would leave the reward head as it was drawn"),
        (REWARD, ["--load_in_4bit", "true"], "it is for GRPO and SFT"),
        (DPO, ["--load_in_4bit", "true", "--use_peft", "true"], "it is for GRPO and SFT"),
        (DPO, ["--no_such_key", "1"], "no_such_key"),
    ],
)
def test_what_training_would_refuse_is_not_planned(
    settings: str, options: list[str], message: str, policy: Path, tmp_path: Path
) -> None:
    path = tmp_path / "text.yaml"
    path.write_text(f"model_name_or_path: {policy}\n{settings}")
    with pytest.raises(Refused, match=message):
        training, model, sizes, _ = read_training(str(path), options)
        make_job(training, model, sizes, 1, 30, None, 16)
