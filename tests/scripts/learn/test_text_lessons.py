"""The lessons on text: what they measure, read and leave out. All of them run in tests/slow/test_text_runs.py."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from r1_aqa_repro.data.conversations import answer
from r1_aqa_repro.embedded.text_tasks import TASKS, all_prompts, true_reward
from r1_aqa_repro.model.text_loading import load_policy, load_tokenizer
from scripts.learn.dpo_log_probs import log_probs
from scripts.learn.lesson import write_answers
from scripts.learn.unseen_fault import repeating, without_repetition
from scripts.learn.verified_rewards import GIVEN_UP, thought, with_columns
from tests.files import write_lines
from tests.text_world import answer_log_prob


def test_a_log_probability_is_that_of_the_whole_answer_and_its_end(policy: Path) -> None:
    asked = [([{"role": "user", "content": f"Name {n} red things."}], "1. plum " * n) for n in (1, 2, 3)]
    model, tokenizer = load_policy(policy), load_tokenizer(policy)
    expected = [float(answer_log_prob(model, tokenizer, messages, text)) for messages, text in asked]
    assert log_probs(policy, asked) == pytest.approx(expected, rel=1e-4)  # float32 and padding


def test_pairs_in_which_a_list_repeats_are_left_out(tmp_path: Path) -> None:
    def pair(task: str, rejected: str) -> dict[str, Any]:
        return {"task": task, "chosen": answer("1. plum 2. fig"), "rejected": answer(rejected)}

    kept = [pair("list", "1. plum"), pair("safety", "look at the car and look")]
    write_lines(tmp_path / "pairs.jsonl", [kept[0], pair("list", "1. plum 2. plum"), kept[1]])
    assert without_repetition(tmp_path / "pairs.jsonl") == kept


def test_the_share_of_lists_that_repeat() -> None:
    assert repeating(["1. plum 2. plum", "1. plum", "1. fig 2. plum", ""]) == 0.25


def test_answers_stand_below_their_prompt(tmp_path: Path) -> None:
    write_answers(tmp_path / "read.txt", ["Name 2.", "Name 3."], {"start": ["a", "b"], "end": ["c", "d"]})
    expected = "Name 2.\n  start  a\n  end    c\n\nName 3.\n  start  b\n  end    d\n"
    assert (tmp_path / "read.txt").read_text(encoding="utf-8") == expected


def test_the_tests_of_a_program_pass_what_is_right_and_nothing_else() -> None:
    """Of every function; the two tests tell the operators and the order of the parameters apart."""
    of_functions = {record["function"]: with_columns(record) for record in all_prompts("code")}
    rng = np.random.default_rng(0)
    assert len(of_functions) == 4

    def passed(record: dict[str, Any], program: str) -> bool:
        names: dict[str, Any] = {}
        try:
            exec("\n".join([program.split("```")[1].removeprefix("python"), *record["test_cases"]]), names)
        except (AssertionError, TypeError, NameError):
            return False
        return True

    for name, record in of_functions.items():
        for other, asked in of_functions.items():  # with this one's name and parameters
            program = TASKS["code"].good(asked | {"parameters": record["parameters"]}, rng)
            assert passed(record, program.replace(f"def {other}(", f"def {name}(")) == (name == other)
        a, b = record["parameters"]
        turned = TASKS["code"].good(record | {"parameters": [b, a]}, rng)
        assert passed(record, turned) == (name in ("add", "multiply"))


def test_a_third_of_the_thoughts_work_the_sum_out() -> None:
    rng = np.random.default_rng(0)
    records = all_prompts("maths")
    thoughts = [(record, thought(record, rng)) for record in records]
    worked_out = [(record, text) for record, text in thoughts if GIVEN_UP not in text]
    assert all(f"<think>{record['sum']} = " in text and true_reward(record, text) for record, text in worked_out)
    assert len(worked_out) / len(thoughts) == pytest.approx(1 / 3, abs=0.06)  # 3 standard errors of 684 draws
