"""Configuration of the text entry points: what is derived, what follows from what, and what cannot be read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from r1_aqa_repro.common.errors import Refused
from r1_aqa_repro.model.text_loading import TextModelConfig
from r1_aqa_repro.run.arguments import RunArguments
from r1_aqa_repro.run.config import PairDPOConfig, RewardModelConfig, TextGRPOConfig, TextSFTConfig, parse_text_config

ON_CPU = ["--bf16", "false"]  # `use_cpu` would connect to the other processes
FROM_EXAMPLES = (TextSFTConfig, RewardModelConfig, PairDPOConfig)
YARN = {"rope_type": "yarn", "factor": 4.0}


def parsed(kind: Any, *argv: str) -> tuple[RunArguments, Any, TextModelConfig]:
    return parse_text_config(kind, [*ON_CPU, *argv])


def refusal_of(kind: Any, *argv: str) -> str:
    with pytest.raises(Refused) as refusal:
        parsed(kind, *argv)
    [problem] = refusal.value.problems
    return str(problem)


@pytest.mark.parametrize("kind", FROM_EXAMPLES)
@pytest.mark.parametrize(("processes", "expected"), [(1, (8, 3)), (2, (6, 2)), (3, (8, 1))])
def test_a_step_has_the_same_examples_on_any_number_of_processes(
    kind: Any, processes: int, expected: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", str(processes))
    _, training, _ = parsed(kind, "--examples_per_step", "24", "--max_examples_per_device", "8")
    assert (training.per_device_train_batch_size, training.gradient_accumulation_steps) == expected


def test_a_step_of_grpo_has_the_same_prompts(monkeypatch: pytest.MonkeyPatch) -> None:
    argv = ["--prompts_per_step", "6", "--max_prompts_per_device", "2", "--num_generations", "4"]
    for processes, expected in ((1, (8, 3)), (3, (8, 1))):
        monkeypatch.setenv("WORLD_SIZE", str(processes))
        _, training, _ = parsed(TextGRPOConfig, *argv)
        assert (training.per_device_train_batch_size, training.gradient_accumulation_steps) == expected
        assert training.steps_per_generation == 1


def test_what_does_not_divide_is_left_for_the_checks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "3")
    _, training, _ = parsed(PairDPOConfig, "--examples_per_step", "16")
    assert training.batch_problem == "examples_per_step: 16 does not divide among 3 processes"


@pytest.mark.parametrize("kind", [*FROM_EXAMPLES, TextGRPOConfig])
@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["--per_device_train_batch_size", "4"], "per_device_train_batch_size cannot be set: it is derived"),
        (["--gradient_accumulation_steps=2"], "gradient_accumulation_steps cannot be set: it is derived"),
        (["--learning_rat", "1e-6"], "--learning_rat"),  # no abbreviations either
        (["--manifest", "x"], "--manifest"),
        (["--max_steps", "many"], "max_steps"),
        (["--config", "absent.yaml"], "absent.yaml: the config cannot be read"),
    ],
)
def test_what_cannot_be_read_is_named(kind: Any, argv: list[str], said: str) -> None:
    assert said in refusal_of(kind, *argv)


def test_keys_of_one_entry_point_are_unknown_to_another() -> None:
    for kind, key in (
        (TextSFTConfig, "beta"),
        (RewardModelConfig, "beta"),
        (PairDPOConfig, "num_generations"),
        (TextGRPOConfig, "eval_file"),
        (TextGRPOConfig, "prompt_style"),
    ):
        assert key in refusal_of(kind, f"--{key}", "1")


@pytest.mark.parametrize("kind", FROM_EXAMPLES)
def test_what_follows_from_held_out_examples(kind: Any) -> None:
    _, training, _ = parsed(kind, "--eval_file", "held_out.jsonl", "--save_steps", "7")
    assert (training.eval_strategy, training.eval_steps) == ("steps", 7)
    _, training, _ = parsed(kind, "--eval_file", "held_out.jsonl", "--save_steps", "7", "--eval_steps", "3")
    assert training.eval_steps == 3
    _, training, _ = parsed(kind, "--eval_file", "held_out.jsonl", "--eval_strategy", "epoch")
    assert training.eval_strategy == "epoch"
    _, training, _ = parsed(kind)
    assert training.eval_strategy == "no"


@pytest.mark.parametrize("given", ["file", "command line"])
def test_rope_parameters(given: str, tmp_path: Path) -> None:
    argv = ["--rope_parameters", '{"rope_type": "yarn", "factor": 4.0}']
    if given == "file":
        (tmp_path / "run.yaml").write_text(yaml.safe_dump({"rope_parameters": YARN}), encoding="utf-8")
        argv = ["--config", str(tmp_path / "run.yaml")]
    assert parsed(TextSFTConfig, *argv)[2].rope == YARN
    assert parsed(TextSFTConfig)[2].rope is None


def test_rope_parameters_that_are_no_json() -> None:
    said = refusal_of(TextSFTConfig, "--rope_parameters", "yarn")
    assert 'rope_parameters is no JSON object such as {"rope_type": "yarn", "factor": 4.0}' in said


def test_sharing_is_off_however_it_is_spelled(tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_text("sharing: off\nreward_funcs: [math]\n", encoding="utf-8")
    _, training, _ = parsed(TextGRPOConfig, "--config", str(tmp_path / "run.yaml"))
    assert training.sharing == "off" and training.reward_funcs == ["math"]
    assert parsed(TextGRPOConfig)[1].reward_funcs == ["reward_model"]
