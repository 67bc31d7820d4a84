"""The text trainers under torchrun with two CPU processes: they train as one process does; DDP and ZeRO."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import PreTrainedTokenizerBase

from r1_aqa_repro.data.conversations import read_prompts
from r1_aqa_repro.model.generation import greedy_texts
from r1_aqa_repro.model.text_loading import load_policy
from r1_aqa_repro.run.samples import samples_of
from tests.conftest import ROOT
from tests.distributed.launching import ENVIRONMENT, apart_and_come, deepspeed, free_port, launch, log_history
from tests.text_world import ENTRIES, FURTHER, arguments, asking

pytestmark = [pytest.mark.distributed, pytest.mark.timeout(600)]

STEPS = 4  # of 8 of 24 records: the last is in the second epoch
EPS = torch.finfo(torch.float32).eps  # 1.2e-7
MORE = {"kto": ["--loss_type", "apo_zero_unpaired"]}  # TRL's `kto` estimates its KL within what a device has at once
Train = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def train(text_set: Path, policy: Path, tmp_path: Path) -> Train:
    """Trains in two processes, in `<tmp_path>/run`: `train(kind, strategy, "--key", "value")`."""

    def of(kind: str, strategy: str, *settings: str, processes: int = 2) -> subprocess.CompletedProcess[str]:
        return launch(
            (ENTRIES | FURTHER)[kind][0].__name__,
            *arguments(kind, tmp_path / "run", text_set, policy),
            *("--max_steps", STEPS, "--ddp_find_unused_parameters", "false"),
            *(*deepspeed(strategy), *MORE.get(kind, []), *settings),
            processes=processes,
        )

    return of


@pytest.fixture(scope="module")
def alone(text_set: Path, policy: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The folder of the same run in one process, which takes the examples of both at once."""

    def of(kind: str) -> Path:
        run = tmp_path_factory.mktemp("alone") / "run"
        settings = ["--examples_per_step", "8", "--max_examples_per_device", "8", "--max_steps", str(STEPS)]
        settings += MORE.get(kind, [])
        assert (ENTRIES | FURTHER)[kind][0].main([*arguments(kind, run, text_set, policy), *settings]) == 0
        return run

    return cache(of)


@pytest.mark.parametrize(
    ("kind", "strategy", "settings"),
    [
        ("reward_model", "ddp", ()),
        ("reward_model", "zero2", ()),
        ("dpo", "ddp", ("--precompute_ref_log_probs", "true")),
        ("dpo", "zero2", ()),
        ("dpo", "zero2", ("--precompute_ref_log_probs", "true")),
        ("kto", "ddp", ()),
    ],
    ids=["reward_model-ddp", "reward_model-zero2", "dpo-ddp-precomputed", "dpo-zero2", "dpo-zero2-precomputed", "kto"],
)
def test_two_processes_train_as_one(
    kind: str, strategy: str, settings: tuple[str, ...], train: Train, alone: Any, policy: Path, tmp_path: Path
) -> None:
    done = train(kind, strategy, "--examples_per_step", "8", *settings)
    assert done.returncode == 0, done.stderr[-3000:]
    one, two = alone(kind), tmp_path / "run"
    expected, got = (log_history(run / f"checkpoint-{STEPS}", "loss") for run in (one, two))
    names = {
        "reward_model": ("loss", "margin", "accuracy", "mean_reward"),
        "dpo": ("loss", "logps/chosen", "logps/rejected", "rewards/chosen", "rewards/rejected"),
        "kto": ("loss", "logps/chosen", "logps/rejected", "rewards/chosen", "rewards/rejected"),
    }[kind]
    for there, here in zip(expected, got, strict=True):
        for name in names:
            # means over 8 pairs of scores or of sums of log-probs (of size 100), in another order
            assert here[name] == pytest.approx(there[name], rel=100 * EPS, abs=100 * EPS), name
        assert here["grad_norm"] == pytest.approx(there["grad_norm"], rel=1e-4)
    assert expected[0]["loss"] != expected[-1]["loss"]

    apart, come = apart_and_come(policy, one / "final", two / "final")
    assert apart < 2e-4 * come


@pytest.mark.parametrize(("kind", "strategy"), [("reward_model", "ddp"), ("dpo", "zero3")])
def test_one_process_goes_on_where_two_were(
    kind: str, strategy: str, train: Train, policy: Path, tmp_path: Path
) -> None:
    settings = ("--examples_per_step", "8", "--max_examples_per_device", "4")
    run, whole = tmp_path / "run", tmp_path / "whole"
    assert train(kind, strategy, *settings).returncode == 0
    run.rename(whole)
    shutil.copytree(whole, run, ignore=shutil.ignore_patterns("final", f"checkpoint-{STEPS}"))
    done = train(kind, strategy, *settings, processes=1)
    assert done.returncode == 0, done.stderr[-3000:]
    assert f"resuming from {run / 'checkpoint-2'}" in done.stderr
    expected, got = (log_history(each / f"checkpoint-{STEPS}", "loss") for each in (whole, run))
    for there, here in zip(expected, got, strict=True):
        assert here["loss"] == pytest.approx(there["loss"], rel=100 * EPS, abs=100 * EPS)
        assert here["learning_rate"] == there["learning_rate"]
    apart, come = apart_and_come(policy, whole / "final", run / "final")
    assert apart < 2e-4 * come


@pytest.mark.parametrize("strategy", ["ddp", "zero3"])
def test_the_probability_of_the_answer_is_the_same_in_two_processes(
    strategy: str, text_set: Path, policy: Path, tmp_path: Path
) -> None:
    """One step of the same prompts and completions as one process; under ZeRO-3 every process gathers equally often."""
    figures = {}
    for processes in (1, 2):
        run = tmp_path / str(processes)
        settings = ("--prompts_per_step", "8", "--max_prompts_per_device", "4", "--max_steps", "2", "--beta", "0")
        done = launch(
            "tests.distributed.answering_driver",
            *(*arguments("grpo", run, text_set, policy), *settings, "--reward_funcs", "answer_probability"),
            *("--train_file", str(asking(tmp_path)), "--ddp_find_unused_parameters", "false"),
            *("--std_filter_beta", "0.5", "--std_filter_ema_start_step", "1", "--std_filter_start_step", "2"),
            *(deepspeed(strategy) if processes == 2 else ()),
            processes=processes,
        )
        assert done.returncode == 0, done.stderr[-3000:]
        figures[processes] = log_history(run / "checkpoint-2")[0]
    reward = "rewards/answer_probability/mean"
    for name in (reward, "answer_probability/with_reasoning", "answer_probability/no_answer"):
        # the first step's, of the same weights: sums in another order
        assert figures[2][name] == pytest.approx(figures[1][name], rel=1e-4), name
    assert figures[1][reward] > 0


def test_rloo_trains_as_in_one_process(text_set: Path, policy: Path, tmp_path: Path) -> None:
    """With the same completions; in two processes of half the prompts each, under DDP."""
    one, two = runs = [tmp_path / str(processes) for processes in (1, 2)]
    for processes, run in enumerate(runs, start=1):
        settings = ("--max_steps", STEPS, "--reward_funcs", "letter", "--ddp_find_unused_parameters", "false")
        given = (*arguments("rloo", run, text_set, policy), *settings, "--max_prompts_per_device", 4 // processes)
        done = launch("tests.distributed.fixed_driver", "rloo", *given, processes=processes)
        assert done.returncode == 0, done.stderr[-3000:]
    expected, got = (log_history(run / f"checkpoint-{STEPS}") for run in runs)
    for there, here in zip(expected, got, strict=True):
        for name in ("loss", "reward", "kl", "grad_norm"):
            # sums of numbers of the order of 1 in another order, from weights that differ by as much
            assert here[name] == pytest.approx(there[name], rel=1e-3, abs=1e-5), name
    # the policy has moved; a mean log-ratio, of either sign where the policy has not sampled the completions
    assert expected[0]["kl"] == 0 and abs(expected[-1]["kl"]) > 1e-4
    apart, come = apart_and_come(policy, one / "final", two / "final")
    assert apart < 2e-4 * come


def test_grpo_with_a_reward_model_under_zero2(train: Train, policy: Path, reward_model: Path, tmp_path: Path) -> None:
    judge = ("--reward_funcs", "reward_model", "true", "--reward_model_name_or_path", str(reward_model))
    done = train("grpo", "zero2", *judge, "--reward_weights", "1.0", "0.0", "--max_prompts_per_device", "1")
    assert done.returncode == 0, done.stderr[-3000:]
    run = tmp_path / "run"
    log = log_history(run / f"checkpoint-{STEPS}")
    assert log[0]["kl"] == pytest.approx(0, abs=1e-6) and log[-1]["kl"] > 1e-5
    assert log[0]["num_tokens"] > 0 and log[0]["rewards/true/mean"] >= 0
    start, final = (load_file(folder / "model.safetensors") for folder in (policy, run / "final"))
    assert start.keys() == final.keys() and not any(torch.equal(start[name], final[name]) for name in start)


def test_two_machines_with_one_folder(text_set: Path, policy: Path, tmp_path: Path) -> None:
    """On each there is a process of local rank 0; one of the two writes the examples that both read."""
    port = str(free_port())
    run = arguments("dpo", tmp_path / "run", text_set, policy)
    started = [
        subprocess.Popen(
            [
                *(sys.executable, "-m", "r1_aqa_repro.launch", "--nnodes", "2", "--node-rank", rank),
                *("--master-addr", "127.0.0.1", "--master-port", port, "--nproc-per-node", "1"),
                *("-m", "r1_aqa_repro.train_dpo", *run, "--ddp_find_unused_parameters", "false"),
            ],
            stderr=subprocess.PIPE, text=True, env=ENVIRONMENT, cwd=ROOT,
        )
        for rank in "01"
    ]  # fmt: skip
    said = [process.communicate(timeout=300)[1] for process in started]
    assert [process.returncode for process in started] == [0, 0], said
    assert (tmp_path / "run" / "final").is_dir()


def test_what_is_refused_is_refused_once(train: Train, tmp_path: Path) -> None:
    done = train("reward_model", "ddp", "--examples_per_step", "3", "--eval_file", "absent.jsonl")
    assert done.returncode == 2, done.stderr[-3000:]
    for said in ("3 does not divide among 2 processes", "absent.jsonl: there is no such file"):
        assert done.stderr.count(said) == 1
    assert not (tmp_path / "run").exists()


def test_samples_of_two_processes_are_those_of_the_model_in_one(
    train: Train, text_set: Path, policy: Path, tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    file, run = text_set / "objective_prompts_held_out.jsonl", tmp_path / "run"
    done = train("grpo", "ddp", "--sample_file", str(file))
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stderr.count("8 held-out prompts before and after training") == 1
    samples, prompts = samples_of(run), [prompt.messages for prompt in read_prompts(file).records[:8]]
    for when, folder in (("before", policy), ("after", run / "final")):
        texts = [text for text, _ in greedy_texts(load_policy(folder), tokenizer, prompts, 8)]
        assert [one[when] for one in samples] == texts
    assert any(one["before"] != one["after"] for one in samples)
