"""GRPO on text: rewards and columns arrive, and a run learns from them. `tests/grpo` has the shared prompt."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import PreTrainedTokenizerBase

from r1_aqa_repro import train_grpo_text
from r1_aqa_repro.data.conversations import TextPrompt
from r1_aqa_repro.embedded.text_tasks import true_reward
from r1_aqa_repro.model.text_loading import load_policy, load_reward_model
from r1_aqa_repro.rewards import registry
from r1_aqa_repro.rewards.reward_model import RewardModel
from tests.files import write_lines
from tests.text_world import LORA, Build, arguments, perturb

ASKED = [{"role": "user", "content": "Why?"}]


def judged_by(reward_model: Path) -> tuple[str, ...]:
    return (
        *("--reward_funcs", "reward_model", "length_penalty", "true", "--reward_weights", "1.0", "0.5", "0.0"),
        *("--length_penalty_cache", "8", "--reward_model_name_or_path", str(reward_model)),
    )


def test_a_rollout_by_hand(build: Build, reward_model: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    """Rewards by name, their weighted sum and advantages (sample deviation + 1e-4), from what was sampled."""
    trainer = build("grpo", *judged_by(reward_model))
    perturb(trainer.model, 0.05)
    questions = [row["question"] for row in (trainer.train_dataset[index] for index in range(4))]
    rows = [trainer.train_dataset[index] for index in range(4) for _ in range(4)]
    output = trainer._generate_and_score_completions(rows)

    lengths = output["completion_mask"].sum(1).tolist()
    assert min(lengths) < max(lengths) == 8
    texts = tokenizer.batch_decode(output["completion_ids"], skip_special_tokens=True)
    prompts = [question.messages for question in questions for _ in range(4)]
    judge = RewardModel(load_reward_model(reward_model, tokenizer), tokenizer)
    by_name = {
        "reward_model": judge(prompts, texts),
        "length_penalty": [-length / 8 for length in lengths],  # the penalty falls from the first of 8 tokens on
        "true": [
            true_reward(question.columns, text)
            for question, text in zip([q for q in questions for _ in range(4)], texts, strict=True)
        ],
    }
    logged = trainer._metrics["train"]
    for name, values in by_name.items():
        assert logged[f"rewards/{name}/mean"] == [pytest.approx(np.mean(values), abs=1e-5)], name
    total = np.array(by_name["reward_model"]) + 0.5 * np.array(by_name["length_penalty"])
    assert logged["reward"] == [pytest.approx(total.mean(), abs=1e-5)]
    groups = total.reshape(4, 4)
    expected = (groups - groups.mean(1, keepdims=True)) / (groups.std(1, ddof=1, keepdims=True) + 1e-4)
    # scores that differ by 1e-6 with another padding, over deviations of about .1
    np.testing.assert_allclose(output["advantages"].reshape(4, 4), expected, rtol=0, atol=1e-3)


def test_columns_reach_the_rewards_and_absent_ones_are_none(
    build: Build, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: dict[str, list[Any]] = {}

    def look(completions: list[Any], **columns: Any) -> list[float]:
        for name in ("id", "prompt", "task", "answer", "hint", "prompts"):
            seen.setdefault(name, []).extend(columns.get(name, ["no such column"]))
        return [float(len(completion[0]["content"])) for completion in completions]

    monkeypatch.setitem(registry.RULES, "random", registry.Rule(lambda args: look))
    records = [
        {"id": f"p{index}", "prompt": [{"role": "user", "content": f"What is {index}?"}]}
        | ({"answer": str(index), "task": "maths"} if index % 2 else {"hint": ["x", {"y": index}]})
        for index in range(4)
    ]
    file = write_lines(tmp_path / "prompts.jsonl", records)
    trainer = build("grpo", "--train_file", str(file), "--max_steps", "1")
    trainer.train()
    order = [int(messages[0]["content"][8:-1]) for messages in seen["prompts"]]
    assert sorted(order) == sorted([0, 1, 2, 3] * 4)
    assert seen["answer"] == [str(index) if index % 2 else None for index in order]
    assert seen["hint"] == [None if index % 2 else ["x", {"y": index}] for index in order]
    assert seen["task"] == ["maths" if index % 2 else None for index in order]
    [logged] = [entry for entry in trainer.state.log_history if "reward" in entry]
    assert "reward/maths" in logged and not any(name.endswith("/None") for name in logged)


# --- Whole runs


def test_a_run_learns_what_its_reward_model_likes(
    text_set: Path, policy: Path, reward_model: Path, tmp_path: Path, tokenizer: PreTrainedTokenizerBase
) -> None:
    folder = tmp_path / "run"
    argv = [*arguments("grpo", folder, text_set, policy), *judged_by(reward_model)]
    argv += ["--max_steps", "16", "--learning_rate", "5e-2", "--beta", "0.0", "--reward_weights", "1.0", "0.0", "0.0"]
    assert train_grpo_text.main([*argv, "--save_steps", "16", "--num_generations", "8"]) == 0
    state = json.loads((folder / "checkpoint-16" / "trainer_state.json").read_text(encoding="utf-8"))
    log = [entry for entry in state["log_history"] if "reward" in entry]
    rewards = [entry["rewards/reward_model/mean"] for entry in log]
    spread = np.mean([entry["rewards/reward_model/std"] for entry in log[:3]])
    # the mean of three steps' 96 completions has a standard error of a tenth of the spread
    assert np.mean(rewards[-3:]) > np.mean(rewards[:3]) + spread
    for name in ("reward_model", "length_penalty", "true"):
        assert f"rewards/{name}/mean" in log[0] and f"rewards/{name}/list" in log[0]
    start, end = load_policy(policy).state_dict(), load_policy(folder / "final").state_dict()
    assert [name for name in start if torch.equal(start[name], end[name])] == []

    with open(folder / "completions.csv", encoding="utf-8", newline="") as file:
        table = list(csv.DictReader(file))
    assert len(table) == 16 * 8 and list(table[0]) == [
        *("step", "id", "prompt", "completion", "reward_model", "length_penalty", "true", "advantage")
    ]


def test_lora_trains_the_adapter_alone(build: Build) -> None:
    trainer = build("grpo", *LORA)
    assert trainer.ref_model is None  # the base is
    trained = [name for name, value in trainer.model.named_parameters() if value.requires_grad]
    assert trained and all("lora_" in name for name in trained)


def test_prompts_of_the_same_text_are_different_questions(build: Build, tmp_path: Path) -> None:
    """A group is found by the sampler's rows, not by what is asked."""
    records = [{"id": f"p{index}", "prompt": ASKED, "answer": str(index)} for index in range(4)]
    trainer = build("grpo", "--train_file", str(write_lines(tmp_path / "prompts.jsonl", records)))
    output = trainer._generate_and_score_completions([trainer.train_dataset[k] for k in range(4) for _ in range(4)])
    assert output["group"].tolist() == [0] * 4 + [1] * 4 + [2] * 4 + [3] * 4
    assert trainer.train_dataset[2]["question"] == TextPrompt("p2", ASKED, {"answer": "2"})
