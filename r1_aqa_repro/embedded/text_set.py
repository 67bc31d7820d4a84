"""The embedded text set: prompts, demonstrations and preference pairs as files, a pure function of the seed."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from itertools import chain, zip_longest
from pathlib import Path

from r1_aqa_repro.common.claim import check_claim
from r1_aqa_repro.common.files import write_json, write_lines
from r1_aqa_repro.data.conversations import answer
from r1_aqa_repro.embedded.draws import Rng, stream
from r1_aqa_repro.embedded.text_tasks import TASKS, Record, all_prompts, demonstrate, name_again, true_reward

GENERATOR_VERSION = 3  # raise it whenever the same seed would give other bytes
ASSIST = ("list", "safety")  # whose reward has to be learned from preferences
OBJECTIVE = ("maths", "code")  # whose reward is a rule
_PAIRS_OF = ("list", "list", "safety")  # the first is harder to judge
HELD_OUT = 240  # prompts of each task
_AGAIN = 0.6  # share of the pairs of lists whose worse answer is the better one but for members that it names again
_TRIES = 100  # to find two answers of different reward


def split_prompts(task: str, seed: int) -> dict[str, list[Record]]:
    """All prompts of a task in random order, in `train` and `held_out`: no text is in both."""
    prompts = all_prompts(task)
    order = stream(seed, GENERATOR_VERSION, "split", zlib.crc32(task.encode())).permutation(len(prompts))
    shuffled = [prompts[i] for i in order]
    return {"held_out": shuffled[:HELD_OUT], "train": shuffled[HELD_OUT:]}


def write_text_set(
    out: Path, *, seed: int, num_sft: int = 9600, num_pairs_train: int = 8000, num_pairs_held_out: int = 600
) -> None:
    """Write everything that the text trainers read; tasks take turns in every file: any run of lines is balanced.

    - `sft.jsonl`: demonstrations of mixed quality for the training prompts of all tasks;
    - `pairs_train.jsonl`, `pairs_held_out.jsonl`: two answers to a prompt of `ASSIST`, the better one chosen, with the
      true rewards `score_chosen` and `score_rejected`: two demonstrations, or a list and a copy that repeats itself;
    - `assist_prompts_train.jsonl`, `assist_prompts_held_out.jsonl`, `objective_prompts_train.jsonl`,
      `objective_prompts_held_out.jsonl`: prompts with the columns of `text_tasks.all_prompts`;
    - `text_set.json`: the seed and the counts. It is written last and marks the set as complete.

    Raises:
        Refused: `out` holds another set (seed, counts or generator version differ).
    """
    description = {
        "generator_version": GENERATOR_VERSION,
        "seed": seed,
        "num_sft": num_sft,
        "num_pairs_train": num_pairs_train,
        "num_pairs_held_out": num_pairs_held_out,
    }
    complete = out / "text_set.json"
    if check_claim(complete, description, f"Choose an --output_dir in another folder than {out.parent.parent}."):
        return
    prompts = {task: split_prompts(task, seed) for task in TASKS}
    for split in ("train", "held_out"):
        for name, tasks in (("assist", ASSIST), ("objective", OBJECTIVE)):
            turns = zip_longest(*(prompts[task][split] for task in tasks))
            write_lines(out / f"{name}_prompts_{split}.jsonl", filter(None, chain.from_iterable(turns)))
    train = [prompts[task]["train"] for task in TASKS]
    shown = (_demonstration(i, _in_turn(train, i), stream(seed, GENERATOR_VERSION, "sft", i)) for i in range(num_sft))
    write_lines(out / "sft.jsonl", shown)
    for split, count in (("train", num_pairs_train), ("held_out", num_pairs_held_out)):
        asked = [prompts[task][split] for task in _PAIRS_OF]
        pairs = (_pair(i, split, _in_turn(asked, i), stream(seed, GENERATOR_VERSION, split, i)) for i in range(count))
        write_lines(out / f"pairs_{split}.jsonl", pairs)
    write_json(complete, description)


def _in_turn(groups: Sequence[Sequence[Record]], index: int) -> Record:
    """Number `index` when the groups take turns and each starts again at its end."""
    group = groups[index % len(groups)]
    return group[index // len(groups) % len(group)]


def _demonstration(index: int, record: Record, rng: Rng) -> Record:
    return {
        "id": f"sft-{index:05d}",
        "task": record["task"],
        "prompt": record["prompt"],
        "completion": answer(demonstrate(record, rng)),
    }


def _pair(index: int, split: str, record: Record, rng: Rng) -> Record:
    """Two answers to one prompt, of different true reward: two demonstrations, or a list and a copy that repeats."""
    repeats = record["task"] == "list" and rng.random() < _AGAIN
    for _ in range(_TRIES):
        first = demonstrate(record, rng)
        second = name_again(first, rng) if repeats else demonstrate(record, rng)
        if true_reward(record, first) != true_reward(record, second):
            break
    else:
        raise RuntimeError(f"{record['id']}: {_TRIES} answers of the same true reward")
    better, worse = sorted((first, second), key=lambda text: true_reward(record, text), reverse=True)
    return {
        "id": f"pair-{split}-{index:05d}",
        "task": record["task"],
        "prompt": record["prompt"],
        "chosen": answer(better),
        "rejected": answer(worse),
        "score_chosen": true_reward(record, better),
        "score_rejected": true_reward(record, worse),
    }
