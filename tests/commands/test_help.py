"""`--help` of the commands: at once, without the libraries, and with every key of our own."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import fields

import pytest
from transformers import TrainingArguments
from trl import DPOConfig, GRPOConfig, KTOConfig, ModelConfig, RewardConfig, RLOOConfig, SFTConfig

from r1_aqa_repro.model.text_loading import TextModelConfig
from r1_aqa_repro.ppo.trainer import PPOConfig
from r1_aqa_repro.run import config
from r1_aqa_repro.run.arguments import DataArguments, TextRunArguments
from tests.conftest import ROOT

ENTRIES = {
    "train_sft": (config.AudioSFTConfig, TrainingArguments),
    "train_grpo": (config.AudioGRPOConfig, GRPOConfig),
    "train_sft_text": (config.TextSFTConfig, SFTConfig),
    "train_reward_model": (config.RewardModelConfig, RewardConfig),
    "train_dpo": (config.PairDPOConfig, DPOConfig),
    "train_grpo_text": (config.TextGRPOConfig, GRPOConfig),
    "train_ppo_text": (PPOConfig, TrainingArguments),
    "train_kto": (config.JudgedKTOConfig, KTOConfig),
    "train_rloo_text": (config.TextRLOOConfig, RLOOConfig),
}
SHOW = """
import runpy, sys
try:
    runpy.run_module(sys.argv.pop(1), run_name="__main__", alter_sys=True)
finally:
    slow = "torch transformers trl datasets matplotlib numba pandas pyarrow scipy".split()
    print(sorted(set(slow) & set(sys.modules)))
"""
# what asks for options, unlike a command that has moved
EVALUATIONS = sorted(
    path.stem for path in (ROOT / "eval").glob("*.py") if " = Options(__doc__" in path.read_text("utf-8")
)


def help_of(command: str) -> str:
    """What a command says to `--help`, without importing the libraries."""
    done = subprocess.run([sys.executable, "-c", SHOW, command, "--help"], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0 and done.stdout.splitlines()[-1] == "[]", done.stderr
    assert f"usage: python -m {command} " in done.stdout
    return done.stdout


@pytest.mark.parametrize("name", ["align", "ask", "best_of_n", "compose", "plan", "score"])
def test_help_of_other_commands_comes_at_once_too(name: str) -> None:
    assert "--" in help_of(f"r1_aqa_repro.{name}")


@pytest.mark.parametrize("name", EVALUATIONS)
def test_help_of_every_evaluation_comes_at_once_too(name: str) -> None:
    assert "--" in help_of(f"eval.{name}")


def test_help_of_labelling_comes_at_once_too() -> None:
    assert "--answers" in help_of("data_prep.contribution")


def test_evaluations_are_found() -> None:
    assert {"mmau", "benchmark", "compare", "reconcile", "suite", "sweep"} <= set(EVALUATIONS)


@pytest.mark.parametrize(
    ("command", "given", "said"),
    [
        ("r1_aqa_repro.align", ["--ridge", "0"], "argument --ridge: 0 is not a positive number"),
        ("r1_aqa_repro.align", ["--config", "absent.yaml"], "absent.yaml: the config cannot be read"),
        ("r1_aqa_repro.compose", ["--seed", "-1"], "argument --seed: -1 is not from 0"),
        ("scripts.learn.dqn", ["--out", "x", "--seed", "-1"], "argument --seed: -1 is not from 0"),
        ("scripts.learn.policy_gradients", ["--seed", "1", "2"], "the following arguments are required: --out"),
        ("scripts.small_study", ["--seeds", "0"], "argument --seeds: 0 is not from 1"),
        (
            "scripts.small_study",
            ["--encoder", "x", "--language-model", "x", "--audio", "x", "--config", "absent.yaml"],
            "absent.yaml: the config cannot be read",
        ),
    ],
)
def test_mistakes_are_answered_without_importing_the_libraries(command: str, given: list[str], said: str) -> None:
    done = subprocess.run([sys.executable, "-c", SHOW, command, *given], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 2 and said in done.stderr and done.stdout.splitlines()[-1] == "[]"


@pytest.mark.parametrize("name", ENTRIES)
def test_help_names_every_own_key_without_importing_the_libraries(name: str) -> None:
    said = help_of(f"r1_aqa_repro.{name}")
    assert "--config FILE" in said and "--help-all" in said
    training, library = ENTRIES[name]
    audio = name in ("train_sft", "train_grpo")
    data, model = (DataArguments, ModelConfig) if audio else (TextRunArguments, TextModelConfig)
    ours = {field.name for each in (training, data, model) for field in fields(each)}
    ours -= {field.name for each in (library, ModelConfig) for field in fields(each)}
    assert "train_file" in ours and all(f"--{key} " in said for key in ours)


def test_help_all_names_the_keys_of_the_libraries_too(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        config.parse_config(config.AudioGRPOConfig, ["--help-all"])
    shown = capsys.readouterr().out
    assert ended.value.code == 0 and all(key in shown for key in ("--learning_rate", "--lora_r", "--prompts_per_step"))
