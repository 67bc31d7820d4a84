"""The set of the sparse-reward demonstration: even guesses, a code that no text gives away, one right guess."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from r1_aqa_repro.common.errors import Refused
from r1_aqa_repro.data.conversations import read_prompts, read_sft
from r1_aqa_repro.embedded.sparse_reward import CODES, code_of, guesses, prompts, reply, write_sparse_set
from r1_aqa_repro.rewards.text_rules import math_reward
from tests.files import contents


def test_every_code_is_guessed_as_often_for_every_prompt() -> None:
    counts = Counter((each["prompt"][0]["content"], each["completion"][0]["content"]) for each in guesses())
    asked = {prompt["prompt"][0]["content"] for split in ("train", "held_out") for prompt in prompts(0, split)}
    assert set(counts) == {(text, reply(code)) for text in asked for code in range(CODES)}
    assert set(counts.values()) == {1}


def test_one_guess_in_a_hundred_is_right() -> None:
    rewards = math_reward(list(map(reply, range(CODES))), [str(code_of(3))] * CODES)
    assert [code for code, reward in enumerate(rewards) if reward] == [code_of(3)]


def test_the_code_changes_with_the_seed_and_the_texts_do_not() -> None:
    assert len({code_of(seed) for seed in range(20)}) > 10
    for split in ("train", "held_out"):
        texts = [[prompt["prompt"] for prompt in prompts(seed, split)] for seed in (0, 1)]
        assert texts[0] == texts[1]
        assert {prompt["answer"] for prompt in prompts(1, split)} == {str(code_of(1))}


def test_no_prompt_is_in_both_splits() -> None:
    train, held_out = (
        {prompt["prompt"][0]["content"] for prompt in prompts(0, split)} for split in ("train", "held_out")
    )
    assert len(train) == len(prompts(0, "train")) and len(held_out) == len(prompts(0, "held_out"))
    assert not train & held_out


def test_files_are_read_as_any_text_data_and_belong_to_one_seed(tmp_path: Path) -> None:
    write_sparse_set(tmp_path, seed=4)
    files = contents(tmp_path)
    asked = [read_prompts(tmp_path / f"prompts_{split}.jsonl").records for split in ("train", "held_out")]
    assert len(read_sft(tmp_path / "guesses.jsonl").records) == CODES * sum(map(len, asked))
    write_sparse_set(tmp_path, seed=4)
    assert contents(tmp_path) == files
    with pytest.raises(Refused, match="seed was 4, now it is 5"):
        write_sparse_set(tmp_path, seed=5)
