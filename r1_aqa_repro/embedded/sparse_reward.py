"""A task whose reward is rare: the code of a safe, a number from 0 to 99, which nothing but trying reveals.

A model that knows the form of an answer and guesses is right once in a hundred times. The code is asked for in many
ways, some of which are kept for evaluation.
"""

from __future__ import annotations

from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

from r1_aqa_repro.common.claim import check_claim
from r1_aqa_repro.common.files import write_json, write_lines
from r1_aqa_repro.data.conversations import answer

CODES = 100
_ASKING = ("Guess", "Tell me", "Try to guess", "Please guess", "Say", "Give me", "Please tell me", "Name")
_NAMING = {
    "train": ("the code of the safe", "the code", "the number of the safe", "the number that opens it"),
    "held_out": ("the number that opens the safe", "the code that opens it"),
}
_ENDINGS = (".", ", will you?", " once more.")
REPLIES = [f"It is {number}." for number in range(CODES)]


def prompts(seed: int, split: str) -> list[dict[str, Any]]:
    """The prompts of a split, with the code as a text in `answer`."""
    code = str(np.random.default_rng(seed).integers(CODES))
    texts = [f"{asking} {naming}{ending}" for asking, naming, ending in product(_ASKING, _NAMING[split], _ENDINGS)]
    return [
        {"id": f"{split}-{index}", "prompt": [{"role": "user", "content": text}], "task": "safe", "answer": code}
        for index, text in enumerate(texts)
    ]


def vocabulary_texts() -> list[str]:
    """What a tokenizer is trained on; always the same."""
    return [*(prompt["prompt"][0]["content"] for split in _NAMING for prompt in prompts(0, split)), *REPLIES]


def write_sparse_set(out: Path, *, seed: int) -> None:
    """Write `prompts_train.jsonl`, `prompts_held_out.jsonl` and, to learn guessing from, `guesses.jsonl`: every prompt
    with every code. `sparse_set.json`, written last, marks the set as complete.

    Raises:
        Refused: `out` holds the set of another seed.
    """
    description, complete = {"seed": seed}, out / "sparse_set.json"
    if check_claim(complete, description, "Choose another --output_dir."):
        return
    asked = {split: prompts(seed, split) for split in _NAMING}
    guesses = (
        {"id": f"{one['id']}-{number}", "prompt": one["prompt"], "completion": answer(reply)}
        for split in asked
        for one in asked[split]
        for number, reply in enumerate(REPLIES)
    )
    write_lines(out / "guesses.jsonl", guesses)
    for split, records in asked.items():
        write_lines(out / f"prompts_{split}.jsonl", records)
    write_json(complete, description)
