"""How the scripts read what they are given."""

from __future__ import annotations

import subprocess

import pytest

from tests.conftest import ROOT


def in_bash(command: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a command after sourcing what the scripts share; `"$@"` are the arguments."""
    script = f'. {ROOT}/scripts/lib/setup.sh; {command} "$@"'
    return subprocess.run(["bash", "-c", script, "script", *arguments], capture_output=True, text=True, check=False)


OWN = [["--config", "a b.yaml"], ["--seed", "1", "--config=a b.yaml"], ["--train-file", "mine.jsonl"],
       ["--train_file=mine.jsonl"], ["--model-name-or-path=my/model"]]  # fmt: skip
EMBEDDED: list[list[str]] = [[], ["--output-dir", "runs/x"], ["--configs", "1"], ["config", "--seed=2"]]


@pytest.mark.parametrize(("arguments", "code"), [*((one, 1) for one in OWN), *((one, 0) for one in EMBEDDED)])
def test_a_run_is_the_embedded_one_unless_it_names_data_model_or_config(arguments: list[str], code: int) -> None:
    """transformers' parser takes hyphens and underscores, and so do the scripts."""
    assert in_bash("is_embedded_run", *arguments).returncode == code


@pytest.mark.parametrize(
    ("arguments", "value"),
    [(["--train-file", "a b"], "a b"), (["--train_file=a=b"], "a=b"), (["--x", "--train-file=c d"], "c d")],
)
def test_the_value_of_an_option(arguments: list[str], value: str) -> None:
    assert in_bash("option_value train_file", *arguments).stdout == f"{value}\n"


@pytest.mark.parametrize(
    ("own", "seen"), [(None, "expandable_segments:True"), ("", ""), ("backend:native", "backend:native")]
)
def test_the_memory_of_a_gpu_grows_in_segments_unless_the_user_says_otherwise(
    own: str | None, seen: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("PYTORCH_CUDA_ALLOC_CONF", raising=False)
    if own is not None:
        monkeypatch.setenv("PYTORCH_CUDA_ALLOC_CONF", own)
    assert in_bash("printenv PYTORCH_CUDA_ALLOC_CONF;").stdout == f"{seen}\n"
