"""The lessons on text: what they measure, read and leave out. All of them run in tests/slow/test_text_runs.py."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from r1_aqa_repro.data.conversations import answer
from r1_aqa_repro.model.text_loading import load_policy, load_tokenizer
from scripts.learn.dpo_log_probs import log_probs
from scripts.learn.lesson import write_answers
from scripts.learn.unseen_fault import repeating, without_repetition
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
