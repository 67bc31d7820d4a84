"""Numbers that no run can work with: refused before anything is loaded, by key, value and what would be allowed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.conftest import ROOT
from tests.hostile.conftest import TRAININGS, Ends

INTEGER, NUMBER = "Give an integer", "Give a finite number"


# entry point, key, value as YAML has it, what the remedy begins with
IN_CONFIG: list[tuple[str, str, str, str]] = [
    ("train_grpo", "learning_rate", ".inf", f"{NUMBER} from 0."),
    ("train_grpo", "learning_rate", ".nan", f"{NUMBER} from 0."),
    ("train_sft", "learning_rate", "-1.0e-6", f"{NUMBER} from 0."),
    ("train_sft", "learning_rate", "1e400", f"{NUMBER} from 0."),  # without a dot it is a text to YAML
    ("train_sft_text", "learning_rate", "true", NUMBER),
    ("train_dpo", "learning_rate", "fast", NUMBER),
    ("train_ppo_text", "critic_learning_rate", "-1", f"{NUMBER} from 0."),
    ("train_grpo", "encoder_learning_rate", ".nan", f"{NUMBER} from 0."),
    ("train_grpo", "max_steps", "-5", "Give -1, or an integer from 1 to 2,147,483,647."),
    ("train_sft_text", "max_steps", "0", "Give -1, or an integer from 1"),
    ("train_sft_text", "max_steps", "10.5", INTEGER),
    ("train_grpo", "max_completion_length", "100000000000000000000", "Give an integer from 1 to 1,048,576."),
    ("train_grpo", "max_completion_length", "null", INTEGER),
    ("train_grpo_text", "max_completion_length", "null", INTEGER),
    ("train_ppo_text", "max_completion_length", "0", "Give an integer from 1 to 1,048,576."),
    ("train_dpo", "max_length", "-1", "Give an integer from 1 to 1,048,576."),
    ("train_grpo", "top_p", "7.5", f"{NUMBER} above 0 to 1."),
    ("train_grpo", "top_p", "0", f"{NUMBER} above 0 to 1."),
    ("train_grpo", "top_k", "-1", "Give an integer from 0"),
    ("train_grpo", "min_p", "1.5", f"{NUMBER} from 0 to 1."),
    ("train_grpo", "temperature", "-1.0", f"{NUMBER} above 0."),
    ("train_grpo_text", "temperature", "0", f"{NUMBER} above 0."),
    ("train_ppo_text", "temperature", ".inf", f"{NUMBER} above 0."),
    ("train_grpo", "repetition_penalty", "0", f"{NUMBER} above 0."),
    ("train_grpo", "num_generations", "0", "Give an integer from 2"),
    ("train_grpo_text", "num_generations", "-8", "Give an integer from 2"),
    ("train_grpo", "seed", "-1", "Give an integer from 0 to 2,147,483,647."),
    ("train_reward_model", "seed", "99999999999999999999", "Give an integer from 0 to 2,147,483,647."),
    ("train_sft", "seed", "yes", INTEGER),
    ("train_grpo", "reward_weights", "[.nan, 1.0]", NUMBER),
    ("train_grpo_text", "reward_weights", "[1.0, -.inf]", NUMBER),
    ("train_ppo_text", "reward_weights", "[true]", NUMBER),
    ("train_grpo", "beta", "-0.04", f"{NUMBER} from 0."),
    ("train_grpo", "epsilon", ".nan", f"{NUMBER} from 0."),
    ("train_grpo", "prompts_per_step", "99999999999999999999", "Give an integer from 1"),
    ("train_sft", "examples_per_step", "0", "Give an integer from 1"),
    ("train_sft_text", "max_examples_per_device", "-2", "Give an integer from 1"),
    ("train_ppo_text", "num_mini_batches", "0", "Give an integer from 1"),
    ("train_ppo_text", "gamma", "1.1", f"{NUMBER} from 0 to 1."),
    ("train_ppo_text", "cliprange", "0", f"{NUMBER} above 0."),
    ("train_ppo_text", "kl_coef", ".nan", f"{NUMBER} from 0."),
    ("train_ppo_text", "entropy_coef", ".inf", f"{NUMBER}."),  # a key of which only that is known
    ("train_dpo", "label_smoothing", "2", f"{NUMBER} from 0 to 1."),
    ("train_sft", "num_train_epochs", ".nan", f"{NUMBER} above 0."),
    ("train_sft", "warmup_steps", "-3", f"{NUMBER} from 0."),
    ("train_sft", "weight_decay", "-0.1", f"{NUMBER} from 0."),
    ("train_sft", "adam_beta1", "1.5", f"{NUMBER} from 0 to 1."),
    ("train_sft", "max_grad_norm", ".nan", f"{NUMBER} from 0."),
    ("train_sft", "logging_steps", "0", f"{NUMBER} above 0."),
    ("train_sft", "save_steps", "-1", f"{NUMBER} from 0."),
    ("train_sft", "save_total_limit", "-1", "Give an integer from 0"),
    ("train_sft", "lora_r", "0", "Give an integer from 1"),
    ("train_sft", "lora_dropout", "-0.5", f"{NUMBER} from 0 to 1."),
    ("train_sft", "dataloader_num_workers", "-1", "Give an integer from 0"),
    ("train_sft", "ddp_timeout", "1000000000000", "Give an integer from 1"),
    ("train_sft", "stop_at_loss", ".nan", f"{NUMBER}."),
    ("train_sft", "lr_scheduler_kwargs", "{num_cycles: .inf}", f"{NUMBER}."),
    ("train_sft", "save_on_signal", "0", f"{NUMBER} above 0."),
    ("train_grpo", "max_bad_clips", "-1", "Give an integer from 0"),
    ("train_grpo", "advantage_top_fraction", "0", f"{NUMBER} above 0 to 1."),
    ("train_grpo", "dynamic_sampling", "-16", "Give an integer from 0"),
]


@pytest.mark.parametrize(("entry", "key", "value", "remedy"), IN_CONFIG)
def test_a_number_in_a_config_that_no_run_can_work_with_is_refused(
    entry: str, key: str, value: str, remedy: str, ends: Ends, tmp_path: Path
) -> None:
    content = yaml.safe_load((ROOT / "configs" / f"{TRAININGS[entry]}.yaml").read_text(encoding="utf-8"))
    content.pop(key, None)
    config = tmp_path / "config.yaml"
    config.write_text(yaml.safe_dump(content) + f"{key}: {value}\n", encoding="utf-8")
    ended = ends(
        f"r1_aqa_repro.{entry}",
        *("--config", config, "--output_dir", tmp_path / "run", "--use_cpu", "true"),
        code=2,
        names=[f"{config}: {key} is ", remedy],
    )
    assert ended.err.count("error:") == 1
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("entry", "arguments", "said"),
    [
        ("train_grpo", ["--learning_rate", "inf"], "learning_rate is inf"),
        ("train_grpo", ["--learning-rate=nan"], "learning_rate is nan"),
        ("train_sft", ["--max_steps", "-5"], "max_steps is -5"),
        ("train_sft", ["--max_steps=-5"], "max_steps is -5"),
        ("train_sft", ["--max_steps", "many"], "max_steps is 'many'"),
        ("train_grpo", ["--reward_weights", "1.0", "nan"], "reward_weights is nan"),
        ("train_grpo", ["--num_generations", "0"], "num_generations is 0"),
        ("train_ppo_text", ["--prompts_per_step", "1" + "0" * 30], "prompts_per_step is 1000"),
        ("train_ppo_text", ["--seed", "9" * 5000], "seed is '999"),  # more digits than Python reads
    ],
)
def test_a_number_on_a_training_s_command_line_is_held_to_the_same(
    entry: str, arguments: list[str], said: str, ends: Ends, tmp_path: Path
) -> None:
    config = ROOT / "configs" / f"{TRAININGS[entry]}.yaml"
    ended = ends(
        f"r1_aqa_repro.{entry}",
        *("--config", config, "--output_dir", tmp_path / "run", "--use_cpu", "true", *arguments),
        code=2,
        names=[f"command line: {said}"],
    )
    assert len(ended.err) < 1000


def test_a_number_of_5000_digits_in_a_config_is_refused(ends: Ends, tmp_path: Path) -> None:
    config = tmp_path / "config.yaml"
    config.write_text(f"seed: {'9' * 5000}\n", encoding="utf-8")
    ends("r1_aqa_repro.train_sft", "--config", config, code=2, names=[str(config)])


OPTIONS: list[tuple[str, list[Any], list[str]]] = [
    ("eval.mmau", ["--ckpt", "nowhere"], [
        "--limit 0", "--limit -3", "--batch-size 0", "--repeats 1.5", "--repeats nan", "--permute-choices -1",
        "--max-new-tokens 100000000000000000000", "--max-new-tokens inf",
    ]),
    ("eval.sweep", ["nowhere"], ["--limit 0", "--max-new-tokens inf"]),
    ("eval.compare", ["one", "two"], ["--seed -1", "--seed 99999999999999999999"]),
    ("data_prep.split", ["--manifest", "m", "--out", "o"], ["--held-out 0", "--held-out nan", "--seed -1"]),
    ("data_prep.preferences", ["--input", "i", "--out", "o"], ["--held-out nan", "--held-out 1.5", "--seed -7"]),
    ("data_prep.avqa", ["--out", "o"], ["--workers 0", "--min-kept nan", "--min-kept -1", "--min-kept inf"]),
    ("r1_aqa_repro.score", ["--model", "m", "--file", "f"], ["--batch-size 0", "--limit -1"]),
    ("r1_aqa_repro.best_of_n", ["--model", "m", "--prompts", "p", "--out", "o"], [
        "--num 1", "--num 99999999999999999999", "--temperature 0", "--temperature nan", "--temperature inf",
        "--reward-weights nan", "--reward-weights -inf", "--seed -1", "--max-new-tokens -4",
    ]),
    ("r1_aqa_repro.plan", ["--config", "c"], ["--gpus 0", "--gpu-memory nan", "--gpu-memory -80", "--utilisation 1.5"]),
    ("scripts.two_stage_text", [], ["--seed -1"]),
    ("scripts.embedded_run", [], ["--num-train 0"]),
]  # fmt: skip


@pytest.mark.parametrize(
    ("module", "given", "option"),
    [(module, given, option) for module, given, options in OPTIONS for option in options],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_number_that_an_option_does_not_take_is_refused(
    module: str, given: list[Any], option: str, ends: Ends
) -> None:
    name, value = option.split()
    ends(module, *given, f"{name}={value}", code=2, names=[f"argument {name}"])


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("null", "it holds no JSON object but a NoneType"),
        ("[]", "it holds no JSON object but a list"),
        ("", "malformed JSON"),
        ("[" * 100_000, "malformed JSON (nested too deeply)"),
        ("{}", "it has no zero_optimization"),
        ('{"zero_optimization": 3}', "zero_optimization is 3, no mapping"),
        ('{"zero_optimization": {"stage": "three"}}', "stage of zero_optimization is 'three', not 0, 1, 2 or 3"),
        ('{"zero_optimization": {"stage": 2, "offload_optimizer": "cpu"}}', "offload_optimizer is 'cpu', no mapping"),
        ('{"zero_optimization": {"stage": 2}, "bf16": true}', "bf16 is True, no mapping"),
        ('{"zero_optimization": {"stage": 2}, "gradient_clipping": NaN}', "deepspeed is nan"),
    ],
)
def test_settings_of_deepspeed_that_it_cannot_work_with(content: str, said: str, ends: Ends, tmp_path: Path) -> None:
    settings = tmp_path / "deepspeed.json"
    settings.write_text(content)
    config = ROOT / "configs/grpo_embedded.yaml"
    ends("r1_aqa_repro.train_grpo", "--config", config, "--deepspeed", settings, code=2, names=[f"{settings}: {said}"])


@pytest.mark.parametrize("given", ["null", "{}", "e30=", "0", "nothing.json"])
def test_what_is_no_file_of_deepspeed_settings(given: str, ends: Ends) -> None:
    config = ROOT / "configs/sft_embedded.yaml"
    ends("r1_aqa_repro.train_sft", "--config", config, "--deepspeed", given, code=2, names=[f"{given}: it cannot be"])


@pytest.mark.parametrize("given", ["3", "[]", "false", "[a]"])
def test_what_is_no_deepspeed_in_a_config(given: str, ends: Ends, tmp_path: Path) -> None:
    config = tmp_path / "config.yaml"
    config.write_text(f"deepspeed: {given}\noutput_dir: {tmp_path / 'run'}\n")
    ends("r1_aqa_repro.train_sft", "--config", config, code=2, names=[f"{config}: deepspeed is ", "no file"])
