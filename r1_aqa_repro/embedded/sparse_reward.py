"""A task whose reward is rare: the code of a safe, a number from 0 to 99, which nothing but trying reveals.

A model that knows the form of an answer and guesses is right once in a hundred times. The code is asked for in many
ways, some of which are kept for evaluation.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

from r1_aqa_repro.common.claim import check_claim
from r1_aqa_repro.common.files import write_json, write_lines
from r1_aqa_repro.data.conversations import answer

CODES = 100
SPLITS = ("train", "held_out")
_ASKING = ("Guess", "Tell me", "Try to guess", "Please guess", "Say", "Give me", "Please tell me", "Name")
_NAMING = {
    "train": ("the code of the safe", "the code", "the number of the safe", "the number that opens it"),
    "held_out": ("the number that opens the safe", "the code that opens it"),
}
_ENDINGS = (".", ", will you?", " once more.")


def code_of(seed: int) -> int:
    """The code of the safe."""
    return int(np.random.default_rng(seed).integers(CODES))


def prompts(seed: int, split: str) -> list[dict[str, Any]]:
    """The prompts of a split, with the code as a text in `answer`."""
    return [
        {
            "id": f"{split}-{index}",
            "prompt": [{"role": "user", "content": f"{asking} {naming}{ending}"}],
            "task": "safe",
            "answer": str(code_of(seed)),
        }
        for index, (asking, naming, ending) in enumerate(product(_ASKING, _NAMING[split], _ENDINGS))
    ]


def reply(number: int) -> str:
    """How an answer is worded."""
    return f"It is {number}."


def guesses() -> Iterator[dict[str, Any]]:
    """Demonstrations of guessing: every prompt with every code, so that none is likelier than another."""
    for split in SPLITS:
        for prompt in prompts(0, split):
            for number in range(CODES):
                completion = answer(reply(number))
                yield {"id": f"{prompt['id']}-{number}", "prompt": prompt["prompt"], "completion": completion}


def vocabulary_texts() -> list[str]:
    """What a tokenizer is trained on; always the same."""
    asked = [prompt["prompt"][0]["content"] for split in SPLITS for prompt in prompts(0, split)]
    return [*asked, *map(reply, range(CODES))]


def write_sparse_set(out: Path, *, seed: int) -> None:
    """Write `guesses.jsonl`, `prompts_train.jsonl` and `prompts_held_out.jsonl`; `sparse_set.json`, written last, marks
    the set as complete.

    Args:
        out: folder of the set.
        seed: of the code, not negative.

    Raises:
        Refused: `out` holds the set of another seed.
    """
    description, complete = {"seed": seed}, out / "sparse_set.json"
    if check_claim(complete, description, "Choose another --output_dir."):
        return
    write_lines(out / "guesses.jsonl", guesses())
    for split in SPLITS:
        write_lines(out / f"prompts_{split}.jsonl", prompts(seed, split))
    write_json(complete, description)
