"""The embedded text runs: every stage from nothing to a results.json, each keeping what it has done.

A stage trains with an entry point, as a user does, on the embedded text set. What it starts from (the set, the common
start made by supervised fine-tuning, the reward model) is made first where it is not there, in folders beside its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from r1_aqa_repro import train_reward_model, train_sft_text
from r1_aqa_repro.common.errors import EXIT_DONE
from r1_aqa_repro.common.files import open_locked
from r1_aqa_repro.common.intervals import mean_interval, paired_gain
from r1_aqa_repro.common.stopwatch import Stages
from r1_aqa_repro.data.conversations import TextPrompt, answer
from r1_aqa_repro.embedded.text_set import write_text_set
from r1_aqa_repro.embedded.text_tasks import TASKS, true_reward, vocabulary_texts
from r1_aqa_repro.embedded.tiny_qwen2 import build_tiny_qwen2
from r1_aqa_repro.model.generation import generate, greedy_config, sampling_config
from r1_aqa_repro.model.inputs import text_inputs
from r1_aqa_repro.model.text_loading import load_policy, load_reward_model, load_tokenizer
from r1_aqa_repro.rewards.reward_model import score_conversations
from r1_aqa_repro.run.checkpoints import FINAL

ROOT = Path(__file__).resolve().parent.parent
MAX_NEW_TOKENS = 24  # the longest good answer takes 22
_AT_ONCE = 120  # prompts


class Interrupted(Exception):
    """A stage ended before it was done; `code` is the exit code."""

    def __init__(self, code: int):
        self.code = code


class Workshop:
    """What the embedded text runs of one seed start from, in one folder; made when it is asked for.

    Args:
        folder: `runs`, or wherever a run's own folder lies.
        seed: of the text set and of every training.

    Raises:
        Refused: another process has the folder.
    """

    def __init__(self, folder: Path, seed: int):
        self.folder, self.seed = folder, seed
        self._lock = open_locked(folder / ".text_runs.lock", "Choose an --output_dir in another folder.")
        self.stages = Stages(folder / "text_stages.json")

    def data(self) -> Path:
        """The embedded text set."""
        out = self.folder / "train_sft_text" / "data"
        with self.stages("data"):
            write_text_set(out, seed=self.seed)
        return out

    def start(self) -> Path:
        """A small Qwen2 with random weights."""
        out = self.folder / "train_sft_text" / "start"
        with self.stages("model"):
            if not out.is_dir():
                build_tiny_qwen2(out, texts=vocabulary_texts(), seed=self.seed)
        return out

    def policy(self) -> Path:
        """The common start: `start` after supervised fine-tuning on answers of mixed quality; the one that is there."""
        data, start = self.data() / "sft.jsonl", self.start()
        return self._there("sft", "train_sft_text") or self.train(
            "sft", train_sft_text, "sft_text_embedded", "train_sft_text", start, data
        )

    def reward_model(self) -> Path:
        """A reward model that has learned from preference pairs; the one that is there."""
        data, start = self.data() / "pairs_train.jsonl", self.policy()
        return self._there("reward_model", "train_reward_model") or self.train(
            "reward_model", train_reward_model, "reward_model_embedded", "train_reward_model", start, data
        )

    def _there(self, stage: str, folder: str) -> Path | None:
        """What a stage has made, with settings of one's own perhaps; None where it is not done."""
        final = self.folder / folder / FINAL
        if not final.is_dir():
            return None
        with self.stages(stage):
            return final

    def train(
        self, stage: str, entry: Any, config: str, folder: str, model: Path, data: Path, overrides: Sequence[str] = ()
    ) -> Path:
        """`train_with`, counted for a stage, in one of the shared folders or below it."""
        with self.stages(stage):
            return train_with(entry, config, self.folder / folder, model, data, self.seed, overrides)


def train_with(
    entry: Any, config: str, out: Path, model: Path, data: Path, seed: int, overrides: Sequence[str] = ()
) -> Path:
    """Run an entry point where that is not yet done; the final checkpoint.

    Raises:
        Interrupted: it refused, failed or was interrupted, and has said why.
    """
    argv = ["--config", str(ROOT / "configs" / f"{config}.yaml"), "--output_dir", str(out), "--seed", str(seed)]
    code = entry.main([*argv, "--model_name_or_path", str(model), "--train_file", str(data), *overrides])
    if code != EXIT_DONE:
        raise Interrupted(code)
    return out / FINAL


def answers_of(checkpoint: Path, prompts: Sequence[TextPrompt], seed: int, *, greedy: bool = False) -> list[str]:
    """One completion a prompt: sampled from the full softmax at temperature 1, or the greedy one."""
    tokenizer, model = load_tokenizer(checkpoint), load_policy(checkpoint).eval()
    config = (greedy_config if greedy else sampling_config)(model, tokenizer, MAX_NEW_TOKENS)
    texts: list[str] = []
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        for first in range(0, len(prompts), _AT_ONCE):
            inputs = text_inputs(tokenizer, [prompt.messages for prompt in prompts[first : first + _AT_ONCE]])
            rows = generate(model, inputs, torch.arange(len(inputs.prompt_ids)), config)
            texts += tokenizer.batch_decode(rows, skip_special_tokens=True)
    return texts


def true_rewards(prompts: Sequence[TextPrompt], texts: Sequence[str]) -> list[float]:
    """What answers to prompts of the embedded set are worth."""
    return [true_reward(prompt.columns, text) for prompt, text in zip(prompts, texts, strict=True)]


def judged(
    checkpoint: Path, prompts: Sequence[TextPrompt], seed: int, reward_model: Path | None = None
) -> dict[str, Any]:
    """What a policy is worth on held-out prompts, as a block of results.json; `rewards` holds one value a prompt."""
    texts = answers_of(checkpoint, prompts, seed)
    rewards = true_rewards(prompts, texts)
    block = _mean(rewards) | {"rewards": rewards}
    tasks = [prompt.columns["task"] for prompt in prompts]
    block["by_task"] = {
        task: _mean([reward for reward, its in zip(rewards, tasks, strict=True) if its == task])
        for task in dict.fromkeys(tasks)
    }
    block["greedy"] = float(np.mean(true_rewards(prompts, answers_of(checkpoint, prompts, seed, greedy=True))))
    if reward_model is not None:
        tokenizer = load_tokenizer(reward_model)
        conversations = [[*prompt.messages, *answer(text)] for prompt, text in zip(prompts, texts, strict=True)]
        scores = score_conversations(load_reward_model(reward_model, tokenizer), tokenizer, conversations)
        block["model_reward"] = float(np.mean(scores))
    return block


def chance_of(prompts: Sequence[TextPrompt], seed: int) -> dict[str, Any]:
    """What a good answer to another prompt of the same task is worth: the form without the content."""
    rng = np.random.default_rng(seed)
    rewards = []
    for prompt in prompts:
        task = prompt.columns["task"]
        others = [other for other in prompts if other.columns["task"] == task and other.id != prompt.id]
        other = others[int(rng.integers(len(others)))]
        rewards.append(true_reward(prompt.columns, TASKS[task].good(other.columns, rng)))
    return _mean(rewards)


def results(
    chance: dict[str, Any], before: dict[str, Any], after: dict[str, Any], workshop: Workshop
) -> dict[str, Any]:
    """The content of results.json for a policy before and after a training, on the same prompts."""
    gain, low, high = paired_gain(before.pop("rewards"), after.pop("rewards"))
    return {
        "chance": chance,
        "before": before,
        "after": after,
        "gain": {"true_reward": gain, "ci95": [low, high]},
        "seconds": workshop.stages.asked_for,
        "seed": workshop.seed,
    }


def _mean(rewards: Sequence[float]) -> dict[str, Any]:
    mean, low, high = mean_interval(rewards)
    return {"true_reward": mean, "ci95": [low, high], "n": len(rewards)}
