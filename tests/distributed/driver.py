"""The real GRPO entry point, watched: what the tests need to know, to fix or to break inside its processes.

    torchrun --nproc-per-node 2 -m tests.distributed.driver RECORDS [--fixed] [--break HOW] -- --any_key value ...

RECORDS: folder for `rank-R.jsonl`, a line for each batch of rows: the question ids of the rows and their completions.
The reward `hashed` is a function of the completion alone; `hashed_of_some` too, but only every third question has one.
--fixed: completions are a function of (question id, sample index) alone.
--break: what happens to process 1 in its third batch (its time is the modification time of RECORDS/broken):
    reward      a reward function raises
    infinite    its loss is, while the gradient stays what it was
    kill        SIGKILL before it generates
    kill-peer-stuck     the same, while process 0 does not come back from its generation
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import sys
import time
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from r1_aqa_repro import train_grpo
from r1_aqa_repro.common.errors import leave
from r1_aqa_repro.grpo.trainer import AudioGRPOTrainer
from r1_aqa_repro.rewards.rules import REWARDS, Completion, completion_text

RANK = int(os.environ.get("RANK", "0"))
BREAK_AT = 3  # batches


def fixed_completion(question_id: str, sample: int, words: Sequence[int], eos: int, max_length: int) -> list[int]:
    """Random token ids of a random length, which end with `eos` unless they are cut off at `max_length`."""
    rng = random.Random(f"{question_id}/{sample}")
    ids = [rng.choice(words) for _ in range(rng.randint(1, max_length))]
    return ids if len(ids) == max_length else [*ids, eos]


def hashed_reward(completions: Sequence[Completion], **_: Any) -> list[float]:
    """0 to 1 by a hash of the text: varies within a group, and is the same in every process."""
    return [zlib.crc32(completion_text(completion).encode()) % 101 / 100 for completion in completions]


def main(argv: list[str]) -> int:
    own, entry_argv = argv[: argv.index("--")], argv[argv.index("--") + 1 :]
    parser = argparse.ArgumentParser()
    parser.add_argument("records", type=Path)
    parser.add_argument("--fixed", action="store_true")
    parser.add_argument("--break", dest="how", choices=("reward", "kill", "infinite", "kill-peer-stuck"), default="")
    options = parser.parse_args(own)
    options.records.mkdir(parents=True, exist_ok=True)
    batches = 0

    def breaks_now(how: str) -> bool:
        """Whether this is process 1 at the moment to break; notes the time."""
        now = RANK == 1 and batches == BREAK_AT and options.how.startswith(how)
        if now:
            (options.records / "broken").touch()
        return now

    class WatchedTrainer(AudioGRPOTrainer):
        question_ids: list[str]

        def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
            nonlocal batches
            batches += 1
            self.question_ids = [row["question"].id for row in inputs]
            return super()._generate_and_score_completions(inputs)

        def _compute_loss(self, *args: Any, **kwargs: Any) -> Any:
            loss = super()._compute_loss(*args, **kwargs)
            return loss + float("inf") if breaks_now("infinite") else loss

        def _generate_single_turn(self, *args: Any, **kwargs: Any) -> Any:
            if breaks_now("kill"):
                os.kill(os.getpid(), signal.SIGKILL)
            if options.how == "kill-peer-stuck" and batches == BREAK_AT:
                time.sleep(3600)  # goes on after a signal handler
            completions, *rest = super()._generate_single_turn(*args, **kwargs)
            if options.fixed:
                completions, rest = self._fixed_completions(), [None]  # nobody has sampled them
            line = {"step": self.state.global_step + 1, "ids": self.question_ids, "completions": completions}
            with open(options.records / f"rank-{RANK}.jsonl", "a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")
            return completions, *rest

        def _fixed_completions(self) -> list[list[int]]:
            tokenizer = self.processing_class.tokenizer
            words = [word for word in range(len(tokenizer)) if word not in tokenizer.all_special_ids]
            return [
                fixed_completion(
                    question_id,
                    self.question_ids[:row].count(question_id),
                    words,
                    tokenizer.eos_token_id,
                    self.max_completion_length,
                )
                for row, question_id in enumerate(self.question_ids)
            ]

    def reward(completions: Sequence[Completion], **columns: Any) -> list[float]:
        if breaks_now("reward"):
            raise RuntimeError("this reward is broken")
        return hashed_reward(completions, **columns)

    def reward_of_some(completions: Sequence[Completion], question: Sequence[Any], **columns: Any) -> list[float]:
        """The same for all completions of every third question."""
        hashed = hashed_reward(completions, **columns)
        return [0.3 if int(each.id[1:]) % 3 else value for each, value in zip(question, hashed, strict=True)]

    REWARDS["hashed"] = reward
    REWARDS["hashed_of_some"] = reward_of_some
    train_grpo.AudioGRPOTrainer = WatchedTrainer  # type: ignore[misc]
    return train_grpo.main(entry_argv)


if __name__ == "__main__":
    leave(main(sys.argv[1:]))
