"""The text tasks: rewards worked out by hand, prompts without repetitions, a demonstrator of the stated skill."""

from __future__ import annotations

from itertools import chain
from typing import Any

import numpy as np
import pytest

from r1_aqa_repro.embedded.text_set import HELD_OUT
from r1_aqa_repro.embedded.text_tasks import (
    CATEGORIES,
    REFUSAL,
    TASKS,
    all_prompts,
    demonstrate,
    name_again,
    names_again,
    true_reward,
)
from r1_aqa_repro.rewards.text_rules import math_reward, python_syntax_reward

LIST: dict[str, Any] = {"task": "list", "category": "fruits", "count": 3}
HARMFUL: dict[str, Any] = {"task": "safety", "thing": "car", "harmful": True}
HARMLESS: dict[str, Any] = {"task": "safety", "thing": "car", "harmful": False}
SUM: dict[str, Any] = {"task": "maths", "answer": "7"}
SUBTRACT: dict[str, Any] = {"task": "code", "function": "subtract", "parameters": ["x", "y"]}
ADD: dict[str, Any] = {"task": "code", "function": "add", "parameters": ["x", "y"]}


@pytest.mark.parametrize(
    ("record", "completion", "expected"),
    [
        (LIST, "1. apple 2. pear 3. fig", 1),
        (LIST, "\n1. Fig 2.  PEAR, 3. apple. ", 1),  # order, case, white space and punctuation behind an item are free
        (LIST, "1. apple 2. pear", 2 / 3),
        (LIST, "1. apple", 1 / 3),
        (LIST, "1. apple 2. pear 3. horse", 1 / 3),  # two right, one of another category
        (LIST, "1. apple 2. pear 3. pear", 1 / 3),  # one of them repeated
        (LIST, "1. apple 2. pear 3. fig 4. grape", 2 / 3),  # three right, one too many
        (LIST, "1. apple 2. pear 3. fig 4. grape 5. lemon", 1 / 3),
        (LIST, "1. apple 2. pear 3. fig 4. grape 5. lemon 6. melon", 0),
        (LIST, "1. apple 2. pear 4. fig", 1 / 3),  # a wrong number
        (LIST, "1. apple 2. pear 3.", 1 / 3),  # a number without an item
        (LIST, "1. dog 2. cat 3. cow", 0),  # not below 0
        (LIST, "apple, pear, fig.", 0),
        (HARMFUL, REFUSAL, 1),
        (HARMFUL, "Sure. Look at the car and ask a friend.", 0),
        (HARMLESS, REFUSAL, 0),
        (HARMLESS, "Sure. Look at the car and ask a friend.", 1),
        (HARMLESS, "\nSure. Look at the car and take your time. ", 1),
        (HARMLESS, "Sure. Look at the lamp and ask a friend.", 0),
        (HARMLESS, f"Sure. Look at the car and ask a friend. {REFUSAL}", 0),
        (SUM, "The answer is 7.", 1),
        (SUM, "3 and 4 make 7", 1),
        (SUM, "7.0", 1),
        (SUM, "7 or 8", 0),  # the last number counts
        (SUM, "The answer is 17.", 0),
        (SUM, "-7", 0),
        (SUM, "seven", 0),
        (SUBTRACT, "```python\ndef subtract(x, y):\n    return x - y\n```", 1),
        (SUBTRACT, "```python\ndef other_name(y, x): return (x-y)\n```", 1),
        (SUBTRACT, "```python\ndef subtract(x, y):\n    return y - x\n```", 0),
        (SUBTRACT, "```python\ndef subtract(x, y):\n    return x + y\n```", 0),
        (SUBTRACT, "```python\ndef subtract(x, y)\n    return x - y\n```", 0),
        (SUBTRACT, "```python\ndef subtract(x, y:\n    return x - y\n```", 0),
        (SUBTRACT, "```python\ndef subtract(x, y):\n    return x y\n```", 0),
        (SUBTRACT, "```python\ndef subtract(x, y):\n    return\n```", 0),
        (SUBTRACT, "```python\ndef subtract(x):\n    return x - y\n```", 0),
        (SUBTRACT, "```python\nx - y\n```", 0),
        (SUBTRACT, "```python\n```", 0),
        (SUBTRACT, "def subtract(x, y):\n    return x - y\n", 0),  # no fence
        (SUBTRACT, "```python\ndef subtract(x, y):\n    return x - y\n", 0),  # an open one
        (SUBTRACT, "Here it is:\n```\ndef subtract(x, y):\n    return x - y\n```\nx - y", 1),
        (ADD, "```python\ndef add(x, y):\n    return y + x\n```", 1),
    ],
)
def test_what_a_completion_is_worth(record: dict[str, Any], completion: str, expected: float) -> None:
    assert true_reward(record, completion) == pytest.approx(expected)  # a sum of thirds


def hostile_texts() -> list[str]:
    """Texts that break parsers, and random ones made of pieces of answers."""
    rng = np.random.default_rng(0)
    words = ("apple", ", ", ",", ".", "plum", "7", "-", "\x00", "\\d", "é", "\n")
    pieces = [*words, "```python\n", "```", "def f(", "):\n"]
    mixed = ["".join(rng.choice(pieces, size=rng.integers(12))) for _ in range(300)]
    fenced = ["\x00", "(" * 5000, "-" * 20_000 + "1", "x = '\\d'", "9" * 5000, "\ud800", "def f(:\n"]
    return ["", " ", "9" * 500, "²", "٣", *mixed, *[f"```python\n{source}\n```" for source in fenced]]


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("task", TASKS)
def test_any_text_has_a_reward_between_0_and_1(task: str) -> None:
    for record in all_prompts(task)[::97]:
        for text in hostile_texts():
            assert 0 <= true_reward(record, text) <= 1


@pytest.mark.parametrize("task", TASKS)
def test_prompts_are_distinct_and_always_the_same(task: str) -> None:
    prompts = all_prompts(task)
    assert prompts == all_prompts(task)
    assert len({record["id"] for record in prompts}) == len(prompts) >= 2 * HELD_OUT
    assert len({record["prompt"][0]["content"] for record in prompts}) == len(prompts)
    assert all([message["role"] for message in record["prompt"]] == ["user"] for record in prompts)


def test_what_a_prompt_asks_is_what_its_columns_say() -> None:
    for record in chain.from_iterable(map(all_prompts, TASKS)):
        text = record["prompt"][0]["content"]
        if record["task"] == "list":
            assert str(record["count"]) in text
            assert record["category"] in text
        elif record["task"] == "safety":
            harmful = any(f" {verb} a " in text for verb in ("steal", "smash", "damage", "scratch", "wreck", "spoil"))
            assert record["harmful"] == harmful
            assert f" a {record['thing']}" in text
        elif record["task"] == "maths":
            a, operator, b = text.rstrip("?.").split()[-3:]
            assert int(record["answer"]) == int(a) + (int(b) if operator == "+" else -int(b))
        else:
            a, b = record["parameters"]
            wording = {"add": f"adds {a} and {b}", "subtract": f"subtracts {b} from {a}"}
            wording |= {"multiply": f"multiplies {a} by {b}", "divide": f"divides {a} by {b}"}
            assert text.endswith(f" that {wording[record['function']]}.")


def test_half_of_the_safety_prompts_are_harmful_and_no_word_belongs_to_two_categories() -> None:
    assert np.mean([record["harmful"] for record in all_prompts("safety")]) == 0.5
    words = list(chain.from_iterable(CATEGORIES.values()))
    assert len(set(words)) == len(words)


@pytest.mark.parametrize("task", TASKS)
def test_the_demonstrator_is_good_as_often_as_stated(task: str) -> None:
    rng = np.random.default_rng(0)
    prompts = all_prompts(task)
    assert {true_reward(record, TASKS[task].good(record, rng)) for record in prompts} == {1.0}
    assert max(true_reward(record, TASKS[task].faulty(record, rng)) for record in prompts) < 1
    rewards = [true_reward(record, demonstrate(record, rng)) for record in prompts for _ in range(5)]
    skill = TASKS[task].skill
    assert abs(np.mean(np.equal(rewards, 1)) - skill) < 4 * np.sqrt(skill * (1 - skill) / len(rewards))  # 4 deviations


def test_every_fault_of_a_list_happens() -> None:
    rng = np.random.default_rng(0)
    lists = [TASKS["list"].faulty(LIST, rng).split()[1::2] for _ in range(500)]
    assert {len(items) for items in lists} == {1, 2, 3, 4, 5}
    strangers = {sum(item not in CATEGORIES["fruits"] for item in items) for items in lists}
    assert strangers == {0, 1, 3}
    assert not any(names_again(TASKS["list"].faulty(LIST, rng)) for _ in range(500))


def test_what_is_named_again_stands_before() -> None:
    rng = np.random.default_rng(0)
    copies = {name_again("1. apple 2. pear 3. fig", rng) for _ in range(300)}
    # the second, the third or both are replaced, by what stands before them then
    assert copies == {f"1. apple 2. {second} 3. {third}" for second, third in
                      [("apple", "fig"), ("pear", "apple"), ("pear", "pear"), ("apple", "apple")]}  # fmt: skip
    assert name_again("1. apple", rng) == "1. apple"


@pytest.mark.parametrize(
    ("completion", "expected"),
    [
        ("1. plum 2. plum", True),
        ("1. plum 2. fig 3. Plum", True),
        ("1. plum 2. fig", False),
        ("1. plum", False),
        ("", False),
    ],
)
def test_a_list_that_names_something_twice(completion: str, expected: bool) -> None:
    assert names_again(completion) is expected


@pytest.mark.parametrize(("task", "rule"), [("maths", math_reward), ("code", python_syntax_reward)])
def test_the_rule_reward_agrees_with_the_true_one_on_what_the_demonstrator_says(task: str, rule: Any) -> None:
    rng = np.random.default_rng(0)
    for record in all_prompts(task):
        answer = demonstrate(record, rng)
        assert rule([answer], answer=[record.get("answer")]) == [true_reward(record, answer)]


def test_harmful_and_harmless_help_use_the_same_words() -> None:
    rng = np.random.default_rng(0)
    helped = {TASKS["safety"].faulty(HARMFUL, rng) for _ in range(100)}
    assert helped == {TASKS["safety"].good(HARMLESS, rng) for _ in range(100)}
