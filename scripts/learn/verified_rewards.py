"""Rewards that verify, and one without a verifier: reasoning about sums, and programs that are run.

    python scripts/learn/verified_rewards.py --out runs/learn/verified_rewards [--seed N]

A small Qwen2 has learned from demonstrations that think first. Of three sums they work out one, "<think>3 + 4 =
7.</think><answer>7</answer>"; else "I don't know." and a guess. Of their programs half are right. From there GRPO of
configs/grpo_text_embedded.yaml goes on with other rewards:

- RLPR (`answer_probability`, arXiv 2506.18254) pays for reasoning that makes the right answer likely, and never reads
  the answer that is given; groups whose rewards hardly differ are left out (`std_filter_beta`);
- the verifier (`math`) pays for the right answer;
- the tests (`code`) pay for a program that passes them, run in a sandbox.

What all of them are worth on held-out prompts is judged by a rule that none of them learns from, and that runs nothing.
answers.txt has sampled answers to read.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # the project also without an installation

import numpy as np
import pandas

from r1_aqa_repro import train_grpo_text, train_sft_text
from r1_aqa_repro.common.errors import EXIT_DONE
from r1_aqa_repro.common.files import write_lines
from r1_aqa_repro.data.conversations import answer, read_prompts
from r1_aqa_repro.embedded.draws import Rng
from r1_aqa_repro.embedded.text_set import split_prompts
from r1_aqa_repro.embedded.text_tasks import FUNCTIONS, Record, demonstrate
from r1_aqa_repro.embedded.tiny_qwen2 import build_tiny_qwen2
from scripts.learn.lesson import options, report, running_mean, write_answers
from scripts.shown import plotted, table
from scripts.workshop import (
    Block,
    Workshop,
    answers_of,
    command_of_stages,
    log_of,
    true_rewards,
    with_half_width,
    worth,
)

PICTURE, ANSWERS = "verified_rewards.png", "answers.txt"
READ = 12  # prompts of answers.txt
DEMONSTRATIONS, SFT_STEPS = 19200, 300  # each is shown once; three of four are sums, which take longer to learn
WORKED_OUT = 0.4  # of the demonstrated sums
SUMS, PROGRAMS = "maths", "code"  # tasks of the embedded text world
START, RLPR, VERIFIER, TESTS = "start", "RLPR", "verifier", "tests"
RUNS: dict[
    str, tuple[str, str, dict[str, float]]
] = {  # task, reward, further keys; programs take longer to run than to write
    RLPR: (SUMS, "answer_probability", {"std_filter_beta": 0.5}),
    VERIFIER: (SUMS, "math", {}),
    TESTS: (PROGRAMS, "code", {"prompts_per_step": 8, "max_prompts_per_device": 8, "max_steps": 20}),
}
WINDOW = 5  # steps of a mean
WITH, WITHOUT = "with reasoning", "without"
LOGGED = {
    "reward": "reward",
    WITH: "answer_probability/with_reasoning",
    WITHOUT: "answer_probability/without_reasoning",
    "no answer": "answer_probability/no_answer",
    "groups left out": "std_filter/below",
}
GIVEN_UP = "I don't know."
THOUGHT = "<think>{}</think><answer>{}</answer>"


@command_of_stages
def main(argv: list[str]) -> int:
    """Train, evaluate and report. Returns the exit code."""
    own = options(__doc__).parse_args(argv)
    workshop = Workshop(own.out, own.seed)
    models = trained(workshop)
    with workshop.stages("evaluation"):
        found = {task: of_policies(own.out, own.seed, task, policies) for task, policies in models.items()}
    logs = {name: log_of(own.out / name.lower()) for name in RUNS}
    draw(own.out / PICTURE, logs)
    paid = {"first steps": of_steps(logs[RLPR].head(WINDOW)), "last steps": of_steps(logs[RLPR].tail(WINDOW))}
    rows = {
        f"{'sums' if task == SUMS else 'programs'}, {name}": {
            "sampled": with_half_width(block, "true_reward", "ci95"),
            "greedy": with_half_width(block, "greedy", "greedy_ci95"),
            "that reason": f"{block['reason']:.3f}" if "reason" in block else "",
        }
        for task, blocks in found.items()
        for name, block in blocks.items()
    }
    shown = {name: {figure: f"{value:.3f}" for figure, value in figures.items()} for name, figures in paid.items()}
    report(
        own.out,
        PICTURE,
        {"seed": own.seed, "models": found, "rlpr": paid},
        table("share of right answers to held-out prompts", rows),
        table("what RLPR pays for", shown),
        f"To read: {own.out}/{ANSWERS}",
    )
    return EXIT_DONE


def trained(workshop: Workshop) -> dict[str, dict[str, Path]]:
    """Checkpoints by task and name: the start, and what each reward has made of it."""
    out, data = workshop.folder, workshop.folder / "data"
    with workshop.stages("data"):
        write_data(data, out / "model", workshop.seed)
    more = ["--max_steps", str(SFT_STEPS)]
    start = workshop.train(train_sft_text, "sft_text_embedded", out / "sft", out / "model", data / "sft.jsonl", more)
    models = {SUMS: {START: start}, PROGRAMS: {START: start}}
    for name, (task, reward, further) in RUNS.items():
        keys = ["--reward_funcs", reward, "true", "--reward_weights", "1", "0"]  # the second is only watched
        keys += [part for key, value in further.items() for part in (f"--{key}", str(value))]
        prompts = data / f"{task}_train.jsonl"
        models[task][name] = workshop.train(
            train_grpo_text, "grpo_text_embedded", out / name.lower(), start, prompts, keys
        )
    return models


def write_data(data: Path, model: Path, seed: int) -> None:
    """Prompts to train on and held-out ones, with what their rewards read; demonstrations; a model with random weights
    whose tokenizer knows their words."""
    prompts = {
        task: {
            split: [with_columns(record) for record in records] for split, records in split_prompts(task, seed).items()
        }
        for task in (SUMS, PROGRAMS)
    }
    for name, splits in prompts.items():
        for split, records in splits.items():
            write_lines(data / f"{name}_{split}.jsonl", records)
    rng = np.random.default_rng(seed)
    shown = []
    for index in range(DEMONSTRATIONS):
        task = PROGRAMS if index % 4 == 3 else SUMS
        asked = prompts[task]["train"]
        record = asked[int(rng.integers(len(asked)))]
        completion = thought(record, rng) if task == SUMS else demonstrate(record, rng)
        shown.append({"prompt": record["prompt"], "completion": answer(completion)})
    write_lines(data / "sft.jsonl", shown)
    if not model.is_dir():
        texts = [each[part][0]["content"] for each in shown for part in ("prompt", "completion")]
        build_tiny_qwen2(model, texts=texts, seed=seed)


def with_columns(record: Record) -> Record:
    """A prompt with the columns of the rewards: the form of its answer, or tests of its program."""
    if record["task"] == SUMS:
        return record | {"prompt_style": "think"}
    (operator, _), (a, b) = FUNCTIONS[record["function"]], record["parameters"]
    calls = ((f"{a}=6, {b}=3", f"6 {operator} 3"), (f"{b}=2, {a}=8", f"8 {operator} 2"))
    return record | {"test_cases": [f"assert {record['function']}({given}) == {result}" for given, result in calls]}


def thought(record: Record, rng: Rng) -> str:
    """A demonstration of an answer to a sum: worked out, or given up and guessed."""
    if rng.random() < WORKED_OUT:
        return THOUGHT.format(f"{record['sum']} = {record['answer']}.", record["answer"])
    return THOUGHT.format(GIVEN_UP, rng.integers(13))


def of_policies(out: Path, seed: int, task: str, models: Mapping[str, Path]) -> dict[str, Block]:
    """What models are worth on held-out prompts of a task, and how many sums they reason about; sums are to be read."""
    prompts = read_prompts(out / "data" / f"{task}_held_out.jsonl").records
    found: dict[str, Block] = {}
    answers: dict[str, list[str]] = {}
    for name, model in models.items():
        sampled, greedy = (answers_of(model, prompts, seed, greedy=greedy) for greedy in (False, True))
        block = worth(prompts, true_rewards(prompts, sampled), true_rewards(prompts, greedy))
        found[name] = {key: block[key] for key in ("true_reward", "ci95", "greedy", "greedy_ci95", "n")}
        if task == SUMS:
            found[name]["reason"] = sum(GIVEN_UP not in text for text in sampled) / len(sampled)
        answers[name] = sampled[:READ]
    if task == SUMS:
        write_answers(out / ANSWERS, [prompt.messages[-1]["content"] for prompt in prompts[:READ]], answers)
    return found


def of_steps(log: pandas.DataFrame) -> dict[str, float]:
    """What RLPR's reward was in some steps, and what it is made of: means."""
    return {name: float(log[column].mean()) for name, column in LOGGED.items()}


def draw(path: Path, logs: Mapping[str, pandas.DataFrame]) -> None:
    """What is right of the samples, by task, and the probabilities of RLPR, over steps."""
    with plotted(path, "sums that are right", "RLPR: probability of the answer", "programs that pass") as axes:
        curves = [(axes[0], name, logs[name]["rewards/true/mean"]) for name in (RLPR, VERIFIER)]
        curves += [(axes[1], name, logs[RLPR][LOGGED[name]]) for name in (WITH, WITHOUT)]
        curves += [(axes[2], TESTS, logs[TESTS]["rewards/code/mean"])]
        for axis, name, values in curves:
            axis.plot(values.index, running_mean(values.to_numpy(), WINDOW), label=name)
            axis.set_ylim(0, 1)


if __name__ == "__main__":
    main()
