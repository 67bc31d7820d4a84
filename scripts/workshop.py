"""What runs of several stages share: running and timing a stage, evaluating, results.json and its table.

A stage trains with an entry point, as a user does, and keeps what it has done: the same command goes on after an
interruption. The embedded text runs also share what they start from (`TextWorkshop`).
"""

from __future__ import annotations

import functools
import os
import shutil
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pandas
import torch
from rich.table import Table

from eval.text_run import trainer_log, write_text_page
from r1_aqa_repro import best_of_n, train_reward_model, train_sft_text
from r1_aqa_repro.common.console import Options, say
from r1_aqa_repro.common.errors import EXIT_DONE, command
from r1_aqa_repro.common.files import LOCK, sole_use, write_json, write_lines
from r1_aqa_repro.common.intervals import mean_interval, paired_gain
from r1_aqa_repro.common.stopwatch import Stages
from r1_aqa_repro.data.conversations import TextPrompt, answer, read_prompts
from r1_aqa_repro.embedded.text_set import write_text_set
from r1_aqa_repro.embedded.text_tasks import TASKS, true_reward, vocabulary_texts
from r1_aqa_repro.embedded.tiny_qwen2 import build_tiny_qwen2
from r1_aqa_repro.grpo.divergence import token_kls
from r1_aqa_repro.model.encoded_audio import ENCODED
from r1_aqa_repro.model.generation import generate, greedy_config, sampling_config
from r1_aqa_repro.model.inputs import text_inputs
from r1_aqa_repro.model.text_loading import load_policy, load_reward_model, load_tokenizer
from r1_aqa_repro.rewards.reward_model import score_conversations
from r1_aqa_repro.run.checkpoints import FINAL, last_checkpoint
from scripts.launching import launched, waited_for
from scripts.shown import show, table

ROOT = Path(__file__).resolve().parent.parent
STATE = "trainer_state.json"
MAX_NEW_TOKENS = 24  # the longest good answer of the text set takes 22
FIGURES = ("accuracy", "pair_accuracy", "true_reward")  # one of them stands in every block of results.json
_AT_ONCE = 120  # prompts

# of results.json: a figure, its `ci95` and `n`; of a text policy `greedy` and `greedy_ci95` beside what it samples.
# `rewards` and `greedy_rewards` hold one value a question
Block = dict[str, Any]


class Interrupted(Exception):
    """A stage ended before it was done, and has said why; `code` is the exit code."""

    def __init__(self, code: int):
        self.code = code


def command_of_stages(main: Callable[[list[str]], int]) -> Callable[..., int]:
    """`command` for a run of several stages: a stage that ends early ends the run with its own exit code.

    It hides the GPUs, for which the models are too small, and the progress bars for every thousand short lines of data.
    """

    @command
    @functools.wraps(main)
    def run(argv: list[str]) -> int:
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
        datasets.disable_progress_bars()
        try:
            return main(argv)
        except Interrupted as interrupted:
            return interrupted.code

    return run


def options_of_run(doc: str | None, folder: str, seeds: Sequence[int] = (0,)) -> Options:
    """The options that every text run has; `folder` is its default folder, `seeds` are the default ones."""
    parser = Options(doc)
    parser.add_argument("--output-dir", type=Path, help=f"folder of the run (default: {folder})")
    parser.add_seed(seeds, "of data, models and trainings")
    return parser


# --- Running and timing


class Workshop:
    """A folder in which one process at a time carries out stages, all of one seed, and their seconds.

    Raises:
        Refused: another process has the folder.
    """

    def __init__(self, folder: Path, seed: int):
        self.folder, self.seed = folder, seed
        self._held = ExitStack()
        self._held.enter_context(sole_use(folder / LOCK, "Choose an --output_dir in another folder."))
        self.stages = Stages(folder / "stages.json")

    def run(self, stage: str, entry: Any, argv: Sequence[str], processes: int = 1) -> None:
        """Run the command of a module, here or in several processes of their own.

        Raises:
            Interrupted: it did not end with exit code 0.
        """
        with self.stages(stage):
            code = entry.main(list(argv)) if processes == 1 else launched(entry.__name__, argv, processes)
        if code != EXIT_DONE:
            raise Interrupted(code)

    def run_apart(self, stage: str, entry: Any, argv: Sequence[str]) -> None:
        """Run the command of a module in a process of its own: one with workers, each of which imports what the process
        that was started first imports.

        Raises:
            Interrupted: it did not end with exit code 0.
        """
        with self.stages(stage):
            code = waited_for([sys.executable, "-m", entry.__name__, *argv])
        if code != EXIT_DONE:
            raise Interrupted(code)

    def train(
        self,
        entry: Any,
        config: Path | str,
        out: Path,
        model: Path,
        data: Path,
        overrides: Sequence[str] = (),
        stage: str | None = None,
        processes: int = 1,
    ) -> Path:
        """Train with an entry point, from `model` on the file `data`, unless that is done: the final checkpoint.

        `config` is a file, or the name of one in `configs/`; `overrides` are further keys of it. The seconds are those
        of `stage`, or of the folder `out`.

        Raises:
            Interrupted: it refused, failed or was interrupted.
        """
        file = ROOT / "configs" / f"{config}.yaml" if isinstance(config, str) else config
        argv = ["--config", str(file), "--output_dir", str(out), "--seed", str(self.seed)]
        argv += ["--model_name_or_path", str(model), "--train_file", str(data), *self.keys_of(entry), *overrides]
        self.run(stage or str(out.relative_to(self.folder)), entry, argv, processes)
        return out / FINAL

    def keys_of(self, entry: Any) -> list[str]:
        """Further keys of every training with an entry point; `overrides` come after them."""
        return []

    def report(self, folder: Path, summary: Mapping[str, Any], *shown: Table | str, file: str = "results.json") -> None:
        """Write what a run has found, show it, and say what the run has taken."""
        write_json(folder / file, summary)
        show(*shown)
        say(f"{sum(self.stages.asked_for.values()):.0f} s in all, set-up aside")


class TextWorkshop(Workshop):
    """What the embedded text runs of one seed start from, each made when it is first asked for.

    Their folders lie beside each other in one folder, `runs` unless asked otherwise.
    """

    def data(self) -> Path:
        """The embedded text set."""
        out = self.folder / "train_sft_text" / "data"
        with self.stages("data"):
            write_text_set(out, seed=self.seed)
        return out

    def prompts(self, name: str) -> list[TextPrompt]:
        """Those of a file of the text set."""
        return read_prompts(self.data() / f"{name}.jsonl").records

    def sample_prompts(self) -> Path:
        """A file of eight held-out prompts, two of each task."""
        out = self.folder / "train_sft_text" / "sample_prompts.jsonl"
        chosen = []
        for name in ("assist", "objective"):
            prompts = self.prompts(f"{name}_prompts_held_out")
            for task in dict.fromkeys(prompt.columns["task"] for prompt in prompts):
                chosen += [prompt for prompt in prompts if prompt.columns["task"] == task][:2]
        write_lines(out, ({"id": prompt.id, "prompt": prompt.messages} for prompt in chosen))
        return out

    def keys_of(self, entry: Any) -> list[str]:
        """A run keeps what the model makes of held-out prompts, a reward model of held-out pairs, before and after
        (`samples_of`)."""
        of_pairs = entry is train_reward_model
        return ["--sample_file", str(self.data() / "pairs_held_out.jsonl" if of_pairs else self.sample_prompts())]

    def report(self, folder: Path, summary: Mapping[str, Any], *shown: Table | str, file: str = "results.json") -> None:
        """As in any workshop, and the page of a run that has a results.json."""
        super().report(folder, summary, *shown, file=file)
        if file == "results.json":
            say(f"all on one page: {write_text_page(folder)}")

    def start(self) -> Path:
        """A small Qwen2 with random weights."""
        out = self.folder / "train_sft_text" / "start"
        with self.stages("model"):
            if not out.is_dir():
                build_tiny_qwen2(out, texts=vocabulary_texts(), seed=self.seed)
        return out

    def policy(self) -> Path:
        """The common start: `start` after supervised fine-tuning on answers of mixed quality."""
        return self._trained_once(train_sft_text, "sft_text_embedded", self.start(), "sft.jsonl")

    def reward_model(self) -> Path:
        """A reward model that has learned from preference pairs."""
        return self._trained_once(train_reward_model, "reward_model_embedded", self.policy(), "pairs_train.jsonl")

    def _trained_once(self, entry: Any, config: str, model: Path, data: str) -> Path:
        """The model that is there, trained with settings of the user's own perhaps; otherwise trained now."""
        out = self.folder / entry.__name__.rpartition(".")[2]
        if (out / FINAL).is_dir():
            with self.stages(out.name):
                return out / FINAL
        say(f"{out / FINAL} is not there: it is made first, by {out.name}")
        return self.train(entry, config, out, model, self.data() / data)

    def pairs(self, model: Path, prompts: Path, out: Path, options: Sequence[str]) -> Path:
        """Preference pairs that rewards have made of a model's own answers.

        Raises:
            Interrupted: see `run`.
        """
        argv = ["--model", str(model), "--prompts", str(prompts), "--out", str(out), "--seed", str(self.seed)]
        argv += ["--max-new-tokens", str(MAX_NEW_TOKENS), *options]
        self.run(str(out.relative_to(self.folder)), best_of_n, argv)
        return out / "pairs.jsonl"


# --- Evaluating text policies


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
    """What answers to prompts of the embedded text set are worth."""
    return [true_reward(prompt.columns, text) for prompt, text in zip(prompts, texts, strict=True)]


def evaluated(checkpoint: Path, prompts: Sequence[TextPrompt], seed: int, reward_model: Path | None = None) -> Block:
    """What a policy is worth on held-out prompts, sampled and greedy, all of them and by task."""
    texts = answers_of(checkpoint, prompts, seed)
    greedy = true_rewards(prompts, answers_of(checkpoint, prompts, seed, greedy=True))
    block = worth(prompts, true_rewards(prompts, texts), greedy)
    if reward_model is not None:
        tokenizer = load_tokenizer(reward_model)
        conversations = [[*prompt.messages, *answer(text)] for prompt, text in zip(prompts, texts, strict=True)]
        scores = score_conversations(load_reward_model(reward_model, tokenizer), tokenizer, conversations)
        block["model_reward"] = float(np.mean(scores))
    return block


def divergence(final: Path, start: Path, prompts: Sequence[TextPrompt], seed: int) -> dict[str, float]:
    """KL(final || start) in nats, a whole answer and a token; exact over the vocabulary at each token."""
    tokenizer = load_tokenizer(final)
    inputs = text_inputs(tokenizer, [prompt.messages for prompt in prompts])
    answers = token_kls(load_policy(final), load_policy(start), tokenizer, inputs, MAX_NEW_TOKENS, seed)
    return {
        "nats_an_answer": float(torch.stack([answer.sum() for answer in answers]).mean()),
        "nats_a_token": float(torch.cat(answers).mean()),
    }


def worth(prompts: Sequence[TextPrompt], rewards: Sequence[float], greedy: Sequence[float] | None = None) -> Block:
    """The block of the true rewards of answers to prompts, with the same by task."""
    block = mean_reward(rewards, greedy) | {"rewards": list(rewards)}
    if greedy is not None:
        block["greedy_rewards"] = list(greedy)
    by_task: dict[str, list[int]] = {}
    for index, prompt in enumerate(prompts):
        by_task.setdefault(prompt.columns["task"], []).append(index)
    block["by_task"] = {
        task: mean_reward([rewards[i] for i in own], None if greedy is None else [greedy[i] for i in own])
        for task, own in by_task.items()
    }
    return block


def chance_of(prompts: Sequence[TextPrompt], seed: int) -> Block:
    """What a good answer to another prompt of the same task is worth: the form without the content."""
    rng = np.random.default_rng(seed)
    rewards = []
    for prompt in prompts:
        task = prompt.columns["task"]
        others = [other for other in prompts if other.columns["task"] == task and other.id != prompt.id]
        other = others[int(rng.integers(len(others)))]
        rewards.append(true_reward(prompt.columns, TASKS[task].good(other.columns, rng)))
    return mean_reward(rewards)


# --- results.json


def mean_reward(rewards: Sequence[float], greedy: Sequence[float] | None = None) -> Block:
    """The block of a mean true reward, with that of the greedy answers to the same questions if they are given."""
    mean, low, high = mean_interval(rewards)
    block = {"true_reward": mean, "ci95": [low, high], "n": len(rewards)}
    if greedy is not None:
        mean, low, high = mean_interval(greedy)
        block |= {"greedy": mean, "greedy_ci95": [low, high]}
    return block


def gain(before: Block, after: Block) -> Block:
    """What `after` is worth above `before` on the same questions, with the 95 % interval of a paired bootstrap."""
    mean, low, high = paired_gain(before["rewards"], after["rewards"])
    gained = {figure_of(after): mean, "ci95": [low, high]}
    if "greedy_rewards" in before and "greedy_rewards" in after:
        mean, low, high = paired_gain(before["greedy_rewards"], after["greedy_rewards"])
        gained |= {"greedy": mean, "greedy_ci95": [low, high]}
    return gained


def figure_of(block: Block) -> str:
    """The name of the figure that a block holds."""
    return next(name for name in FIGURES if name in block)


def without_rewards(block: Block) -> Block:
    """A block as results.json holds it."""
    return {key: value for key, value in block.items() if key not in ("rewards", "greedy_rewards")}


def results(workshop: Workshop, chance: Block, before: Block, after: Block, **more: Any) -> dict[str, Any]:
    """The content of results.json; with the gain if the blocks hold `rewards`, of the same questions."""
    blocks = {"chance": chance, "before": without_rewards(before), "after": without_rewards(after)}
    if "rewards" in before:
        blocks["gain"] = gain(before, after)
    return {**blocks, **more, "seconds": workshop.stages.asked_for, "seed": workshop.seed}


def log_of(run: Path) -> pandas.DataFrame:
    """What the trainer of a finished run has logged: a row a step, a column a figure, where it was logged."""
    return pandas.DataFrame(trainer_log(run)).set_index("step")


def keep_model_alone(run: Path) -> None:
    """Delete what a finished run could be resumed from, the larger part of its folder; `log_of` still reads its log.

    If it is killed, the next call goes on: as soon as one checkpoint is not whole, the log is no longer in it.
    """
    if not (run / STATE).is_file() and (checkpoint := last_checkpoint(run)) is not None:
        os.replace(checkpoint / STATE, run / STATE)
    for each in run.glob("checkpoint-*"):
        shutil.rmtree(each)
    shutil.rmtree(run / ENCODED, ignore_errors=True)


# --- Tables


def interval(block: Mapping[str, Any], ci95: str = "ci95") -> str:
    """Such as `0.403 to 0.463`."""
    low, high = block[ci95]
    return f"{low:.3f} to {high:.3f}"


def with_half_width(block: Mapping[str, Any], figure: str, ci95: str, sign: str = "") -> str:
    """Such as `0.433 ±0.030`: a figure with half the width of its 95 % interval; `sign` is `+` for a gain."""
    low, high = block[ci95]
    return f"{block[figure]:{sign}.3f} ±{(high - low) / 2:.3f}"


def outcome(title: str, summary: Mapping[str, Any]) -> Table:
    """What chance, the start, the end and the controls of a results.json are worth; of a text policy also greedily."""
    before, after = summary["before"], summary["after"]
    blocks = {name: summary[name] for name in ("chance", "before", "after")}
    for task, block in after.get("by_task", {}).items():
        blocks |= {f"  {task}, before": before["by_task"][task], f"  {task}, after": block}
    if "blind_after" in summary:
        blocks["after, without audio"] = summary["blind_after"]
    blocks |= {f"control: {name.replace('_', ' ')}": block for name, block in summary.get("controls", {}).items()}
    if "gain" in summary:
        blocks["gain"] = summary["gain"] | {"n": after["n"]}
    figure, decoded = figure_of(after), "greedy" in after
    rows = {}
    for name, block in blocks.items():
        row = {"sampled" if decoded else "value": f"{block[figure]:.3f}", "95 % interval": interval(block)}
        if decoded:
            of_greedy = (f"{block['greedy']:.3f}", interval(block, "greedy_ci95")) if "greedy" in block else ("", "")
            row |= dict(zip(("greedy", "its interval"), of_greedy, strict=True))
        rows[name] = row | {"n": str(block["n"])}
    return table(title, rows)


def by_task(title: str, blocks: Mapping[str, Block], greedy: bool = False) -> Table:
    """What policies are worth, one a row: on each task and on all, with half the width of the 95 % interval."""
    keys = ("greedy", "greedy_ci95") if greedy else ("true_reward", "ci95")
    rows = {}
    for name, block in blocks.items():
        row = {task: with_half_width(each, *keys) for task, each in block["by_task"].items()}
        rows[name] = row | {"all": with_half_width(block, *keys)}
    return table(title, rows)
