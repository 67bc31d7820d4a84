"""Rewards by name: each is what it is called, applies to what it can, and has what it needs before a run starts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from r1_aqa_repro.data.conversations import TextPrompt
from r1_aqa_repro.embedded import true_reward as embedded_reward
from r1_aqa_repro.embedded.text_tasks import TASKS, all_prompts
from r1_aqa_repro.rewards.registry import RULES, check_prompts, check_rewards, check_uses, load_rewards
from r1_aqa_repro.run.config import TextGRPOConfig, parse_text_config
from tests.conftest import ROOT

embedded_reward.register()
RUBRIC = str(sorted((ROOT / "configs" / "personas").glob("*.yaml"))[0])


def config(**settings: Any) -> TextGRPOConfig:
    given: dict[str, Any] = {"reward_funcs": ["random"], "max_completion_length": 64, "bf16": False}
    return TextGRPOConfig(**(given | settings))


def prompt(name: str = "p", **columns: Any) -> TextPrompt:
    return TextPrompt(name, [{"role": "user", "content": "Why?"}], columns)


def embedded(task: str, index: int = 0) -> TextPrompt:
    record = all_prompts(task)[index]
    columns = {key: value for key, value in record.items() if key not in ("id", "prompt")}
    return TextPrompt(record["id"], record["prompt"], columns)


def said(problems: list[Any]) -> list[str]:
    assert all(problem.remedy.endswith(".") for problem in problems)
    return [f"{problem.where}: {problem.what}" for problem in problems]


def test_every_rule_rewards_a_completion_it_was_made_for() -> None:
    rules = [name for name in RULES if name not in ("answer_probability", "code")]  # a policy, a sandbox
    args = config(reward_funcs=rules, persona_rubric=RUBRIC, length_penalty_cache=32)
    assert check_rewards(args) == []
    columns: dict[str, list[Any]] = {
        "completion_ids": [[1] * 48],  # halfway between 32, where the penalty begins, and 64
        "answer": ["4"],
        "harmful": [False],
        "prompt_style": ["answer"],
        **{key: [value] for key, value in embedded("maths").columns.items() if key != "answer"},
    }
    completion = [[{"role": "assistant", "content": "<answer>4</answer>"}]]
    rewards = {name: rule(completions=completion, **columns) for name, rule in load_rewards(args).items()}
    assert list(rewards) == rules and all(len(values) == 1 for values in rewards.values())
    expected = {"math": 1, "length_penalty": -0.5, "safety": 1, "format": 1, "python_syntax": 0}
    assert {name: rewards[name] for name in expected} == {name: [value] for name, value in expected.items()}
    assert rewards["random"][0] in (0, 1)


def test_a_rule_leaves_out_the_prompts_that_are_not_its_own() -> None:
    rule = load_rewards(config(reward_funcs=["math"]))["math"]
    assert rule(["4", "4", "5"], answer=["4", None, "4"], task=["maths", "list", "maths"]) == [1, None, 0]
    assert rule(["4"], task=["list"]) == [None]


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"reward_funcs": ["maths"]}, ["reward_funcs: there is no reward 'maths'"]),
        # what a bare `true` in YAML is
        ({"reward_funcs": [True]}, ["reward_funcs: there is no reward True"]),
        ({"reward_funcs": ["math", "math"]}, ["reward_funcs: ['math', 'math'] has a reward twice"]),
        ({"reward_weights": [1.0, 0.5]}, ["reward_weights: 2 weights for 1 rewards"]),
        ({"reward_funcs": ["reward_model"]}, ["reward_model_name_or_path: the reward reward_model needs it"]),
        ({"reward_model_name_or_path": "x"}, ["reward_model_name_or_path: no reward uses it"]),
        ({"reward_funcs": ["persona"]}, ["persona_rubric: the reward persona needs it"]),
        ({"persona_rubric": RUBRIC}, ["persona_rubric: no reward uses it"]),
        (
            {"reward_funcs": ["length_penalty"], "length_penalty_cache": 65},
            ["length_penalty_cache: a penalty over the last 65 of 64 tokens"],
        ),
        (
            {"reward_funcs": ["persona", "nice"], "reward_weights": [1.0], "reward_model_name_or_path": "x"},
            [
                "reward_funcs: there is no reward 'nice'",
                "reward_weights: 1 weights for 2 rewards",
                "reward_model_name_or_path: no reward uses it",
                "persona_rubric: the reward persona needs it",
            ],
        ),
    ],
)
def test_configurations_that_no_reward_can_work_with_are_named(settings: dict[str, Any], expected: list[str]) -> None:
    assert said(check_rewards(config(**settings))) == expected


def test_a_config_with_other_rewards_gives_its_keys_back() -> None:
    """A persona alone, beginning from a config that names a reward model; and the config of rules alone."""
    assert check_rewards(config(reward_funcs=["persona"], persona_rubric=RUBRIC, reward_model_name_or_path="")) == []
    rules = ["--config", str(ROOT / "configs" / "grpo_text_rules_qwen2_7b.yaml"), "--deepspeed", "", "--bf16", "false"]
    _, args, _ = parse_text_config(TextGRPOConfig, rules)
    assert check_rewards(args) == [] and "reward_model" not in args.reward_funcs
    _, args, _ = parse_text_config(TextGRPOConfig, [*rules, "--reward_funcs", "math", "--persona_rubric", ""])
    assert said(check_rewards(args)) == ["reward_weights: 2 weights for 1 rewards"]


def test_files_that_rewards_cannot_read_are_named(tmp_path: Path, policy: Path, reward_model: Path) -> None:
    absent = str(tmp_path / "absent")
    [problem] = check_rewards(config(reward_funcs=["persona"], persona_rubric=absent))
    assert absent in problem.where
    for folder, what in ((absent, "no model can be read there"), (str(policy), "the model has no score head")):
        [problem] = check_rewards(config(reward_funcs=["reward_model"], reward_model_name_or_path=folder))
        assert problem.where == folder and problem.what.startswith(what)
    assert check_rewards(config(reward_funcs=["reward_model"], reward_model_name_or_path=str(reward_model))) == []


@pytest.mark.parametrize(
    ("rewards", "bad", "what"),
    [
        (["random"], prompt(trainer_state=1), "the column trainer_state has a name that is taken"),
        (["random"], prompt(task=["a", "b"]), "task is ['a', 'b']"),
        (["math"], prompt(answer="four"), "answer is 'four'"),
        (["math"], prompt(), "no reward applies to it"),
        (["math", "safety"], prompt(hint=1), "no reward applies to it"),
        *((["safety"], prompt(harmful=value), f"harmful is {value!r}") for value in ("true", 0, ["yes"])),
        (["answer_probability"], prompt(answer=4), "answer is 4"),
        (["answer_probability"], prompt(answer="4", prompt_style="direct"), "answer is '4'"),
        (["format"], prompt(prompt_style="loud"), "prompt_style is 'loud'"),
        (["true"], prompt(task="list"), "task is 'list'"),
        (["true"], prompt(task="chess"), "task is 'chess'"),
        (["true"], prompt(task="maths", answer="many"), "task is 'maths'"),
        (["true", "random"], prompt(task="code"), "task is 'code'"),
    ],
)
def test_prompts_that_a_reward_cannot_work_with_are_named(rewards: list[str], bad: TextPrompt, what: str) -> None:
    good = prompt("good", answer="4", harmful=True, prompt_style="think") if "true" not in rewards else embedded("code")
    assert said(check_prompts(config(reward_funcs=rewards), [good, bad], "file")) == [f"file: p: {what}"]


def test_prompts_of_several_tasks_may_stand_in_one_file() -> None:
    mixed = [*map(embedded, TASKS), prompt(harmful=False)]
    args = config(reward_funcs=["true", "math", "safety", "random"])
    assert check_prompts(args, mixed, "file") == check_uses(args, mixed, "file") == []


def test_a_reward_that_applies_to_no_prompt_is_named() -> None:
    """Its column is misspelt: another reward alone would shape the run."""
    args = config(reward_funcs=["safety", "math", "random"])
    misspelt = [prompt(harmfull=True, answer="4"), prompt(harmfull=False)]
    assert check_prompts(args, misspelt, "file") == []
    assert said(check_uses(args, misspelt, "file")) == [
        "file: no prompt has 'harmful', without which the reward safety does not apply"
    ]
