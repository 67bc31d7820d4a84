"""How the scripts read what they are given."""

from __future__ import annotations

import subprocess

import pytest

from tests.conftest import ROOT


def in_bash(command: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a command after sourcing what the scripts share; `"$@"` are the arguments."""
    script = f'. {ROOT}/scripts/lib/setup.sh; {command} "$@"'
    return subprocess.run(["bash", "-c", script, "script", *arguments], capture_output=True, text=True, check=False)


@pytest.mark.parametrize(
    "arguments",
    [
        ["--config", "a b.yaml"],
        ["--seed", "1", "--config=a b.yaml"],
        ["--train-file", "mine.jsonl"],
        ["--train_file=mine.jsonl"],
        ["--model-name-or-path=my/model"],
    ],
)
def test_what_makes_a_run_ones_own(arguments: list[str]) -> None:
    """transformers' parser takes hyphens and underscores, and so do the scripts."""
    assert in_bash("is_embedded_run", *arguments).returncode == 1


@pytest.mark.parametrize("arguments", [[], ["--output-dir", "runs/x"], ["--configs", "1"], ["config", "--seed=2"]])
def test_what_does_not(arguments: list[str]) -> None:
    assert in_bash("is_embedded_run", *arguments).returncode == 0


@pytest.mark.parametrize(
    ("arguments", "value"),
    [(["--train-file", "a b"], "a b"), (["--train_file=a=b"], "a=b"), (["--x", "--train-file=c d"], "c d")],
)
def test_the_value_of_an_option(arguments: list[str], value: str) -> None:
    assert in_bash("option_value train_file", *arguments).stdout == f"{value}\n"
