"""The set of the sparse-reward demonstration: even guesses, a code that no text gives away, one right guess."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from r1_aqa_repro.common.errors import Refused
from r1_aqa_repro.data.conversations import read_prompts, read_sft
from r1_aqa_repro.embedded.sparse_reward import CODES, REPLIES, prompts, write_sparse_set
from r1_aqa_repro.rewards.text_rules import math_reward
from tests.files import contents


def test_one_guess_in_a_hundred_is_right_and_the_seed_alone_decides_which() -> None:
    codes = {prompts(seed, split)[0]["answer"] for seed in range(20) for split in ("train", "held_out")}
    assert 10 < len(codes) <= 20
    for code in codes:
        assert sum(math_reward(REPLIES, [code] * CODES)) == 1
    assert {each["answer"] for each in prompts(1, "train")} == {prompts(1, "held_out")[0]["answer"]}


def test_files_are_text_data_of_one_seed_with_even_guesses_and_no_prompt_in_both_splits(tmp_path: Path) -> None:
    write_sparse_set(tmp_path, seed=4)
    files = contents(tmp_path)
    train, held_out = (
        [prompt.messages[0]["content"] for prompt in read_prompts(tmp_path / f"prompts_{split}.jsonl").records]
        for split in ("train", "held_out")
    )
    assert len({*train, *held_out}) == len(train) + len(held_out)
    read = read_sft(tmp_path / "guesses.jsonl").records
    guesses = Counter((each.messages[0]["content"], each.answers["completion"]) for each in read)
    assert guesses == Counter((text, reply) for text in (*train, *held_out) for reply in REPLIES)
    write_sparse_set(tmp_path, seed=4)
    assert contents(tmp_path) == files
    with pytest.raises(Refused, match="seed was 4, now it is 5"):
        write_sparse_set(tmp_path, seed=5)
