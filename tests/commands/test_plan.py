"""The planner's command: as training would read the configuration, what it recommends, and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from r1_aqa_repro.model.text_loading import load_policy, load_reward_model, load_tokenizer
from r1_aqa_repro.plan import main
from tests.conftest import ROOT


def plan(capsys: pytest.CaptureFixture[str], out: Path, *options: str) -> tuple[int, dict[str, Any], str]:
    code = main([*options, "--json", str(out)])
    report = json.loads(out.read_text()) if out.exists() else {}
    captured = capsys.readouterr()
    return code, report, captured.out + captured.err


@pytest.fixture
def small_config(model_folder: Path, tmp_path: Path) -> Path:
    path = tmp_path / "grpo.yaml"
    path.write_text(
        f"model_name_or_path: {model_folder}\nnum_generations: 4\nprompts_per_step: 8\nmax_prompts_per_device: 4\n"
        "max_completion_length: 16\nbeta: 0.04\nbf16: true\nactivation_checkpointing: false\n"
    )
    return path


def test_the_command_plans_as_training_would(
    small_config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--config", str(small_config), "--gpus", "2", "--gpu-memory", "80"]
    code, report, text = plan(capsys, tmp_path / "a.json", *options)
    assert code == 0
    assert (report["step"]["prompts_at_once"], report["step"]["accumulation"]) == (4, 1)
    assert report["recommended"] == "ZeRO-2" and "configs/deepspeed/zero2.json" in report["advice"]
    assert [strategy["strategy"] for strategy in report["strategies"]][-4:] == [
        "LoRA, DDP", "LoRA, ZeRO-2", "LoRA, ZeRO-3", "LoRA, ZeRO-3, offload",
    ]  # fmt: skip
    assert "estimates" in text and "ZeRO-3, offload" in text

    # overrides, in training's spelling; an underscore in an own option
    _, other, _ = plan(
        capsys, tmp_path / "b.json", "--config", str(small_config), "--gpus", "1", "--gpu_memory", "80",
        "--max_prompts_per_device", "2", "--beta", "0",
    )  # fmt: skip
    assert (other["step"]["prompts_at_once"], other["step"]["accumulation"]) == (2, 4)
    assert other["recommended"] == "one process"
    full, plain = report["strategies"][1], other["strategies"][1]
    assert full["memory_bytes"]["reference"] > 0 == plain["memory_bytes"]["reference"]
    assert "reference" in full["flops"] and "reference" not in plain["flops"]


def test_nothing_fits_and_what_would(small_config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    # between the peaks of LoRA with four prompts at once and with one
    options = ["--config", str(small_config), "--gpus", "1", "--gpu-memory", "0.02", "--use_peft", "true"]
    options += ["--lora_target_modules", ".*q_proj"]
    code, report, text = plan(capsys, tmp_path / "a.json", *options)
    assert code == 0 and report["recommended"] is None
    assert "Nothing fits" in text and "max_prompts_per_device: 1" in report["advice"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--gpus", "3"], "does not divide among 3 processes"),
        (["--gpus", "1", "--prompt-tokens", "20"], "cannot hold"),
        (["--gpus", "1", "--no_such_key", "1"], "no_such_key"),
        (["--gpus", "1", "--model_name_or_path", "/no/such/folder"], "no model can be read there"),
    ],
)
def test_bad_arguments_are_refused(
    small_config: Path, capsys: pytest.CaptureFixture[str], options: list[str], message: str
) -> None:
    assert main(["--config", str(small_config), "--gpu-memory", "80", *options]) == 2
    assert message in capsys.readouterr().err


def test_sft_is_told_by_its_keys(model_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "sft.yaml"
    path.write_text(f"model_name_or_path: {model_folder}\nexamples_per_step: 8\nmax_examples_per_device: 4\n")
    code, report, _ = plan(capsys, tmp_path / "a.json", "--config", str(path), "--gpus", "2", "--gpu-memory", "80")
    assert code == 0
    assert report["step"]["completions_at_once"] == 4
    assert list(report["strategies"][0]["flops"]) == ["policy"]
    assert report["strategies"][0]["memory_bytes"]["kv_cache"] == 0


@pytest.mark.slow
@pytest.mark.parametrize("name", ["grpo_qwen2_audio_7b", "sft_lora_qwen2_audio_7b", "ppo_text_qwen2_7b"])
def test_a_7b_config_is_planned_without_its_weights(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = ROOT / "configs" / f"{name}.yaml"
    code, report, text = plan(capsys, tmp_path / "a.json", "--config", str(config), "--gpus", "8", "--gpu-memory", "80")
    assert code == 0 and report["recommended"]
    parameters = "14.69 G" if name.startswith("ppo") else "8.40 G"  # PPO: the critic too
    assert f"{parameters} parameters" in text or "use_peft: true" in config.read_text()


TEXT = {
    "grpo": "prompts_per_step: 8\nmax_prompts_per_device: 2\nnum_generations: 4\nmax_completion_length: 16\nbeta: 0.1\n"
    "reward_funcs: [reward_model, random]\n",
    "sft": "examples_per_step: 8\nmax_examples_per_device: 4\n",
    "dpo": "examples_per_step: 8\nmax_examples_per_device: 2\nbeta: 0.1\n",
    "reward": "examples_per_step: 8\nmax_examples_per_device: 2\ncenter_rewards_coefficient: 0.01\n",
    "ppo": "prompts_per_step: 16\nmax_prompts_per_device: 2\nnum_mini_batches: 2\nkl_coef: 0.1\n",
}


@pytest.mark.parametrize(
    ("name", "sequences", "parts", "frozen"),
    [
        ("grpo", 8, ["prefill", "decoding", "reward models", "reference", "policy"], ["policy", "judge"]),
        ("sft", 4, ["policy"], []),
        ("dpo", 4, ["reference", "policy"], ["policy"]),
        ("reward", 4, ["policy"], []),
        (
            "ppo",
            2,
            ["prefill", "decoding", "reward models", "scoring", "reference", "policy", "critic"],
            ["policy", "judge"],
        ),
    ],
)
def test_a_run_on_text_is_planned(
    name: str, sequences: int, parts: list[str], frozen: list[str], policy: Path, tmp_path: Path, capsys: Any
) -> None:
    path = tmp_path / "text.yaml"
    path.write_text(f"model_name_or_path: {policy}\nbf16: true\n{TEXT[name]}")
    options = ["--config", str(path), "--gpus", "2", "--gpu-memory", "80", "--prompt-tokens", "30"]
    options += ["--completion-tokens", "16"]
    code, report, text = plan(capsys, tmp_path / "a.json", *options)
    assert code == 0, text
    step = report["step"]
    assert (step["task"], step["completions_at_once"], step["encoder_frames"]) == (name, sequences, 0)
    ddp = report["strategies"][0]
    assert list(ddp["flops"]) == parts
    judge = load_reward_model(policy, load_tokenizer(policy), new_head=True).num_parameters()
    models = {"policy": load_policy(policy).num_parameters(), "judge": judge}
    assert ddp["memory_bytes"]["reference"] == 4 * sum(models[each] for each in frozen)
    assert ddp["parameters"] == {"ppo": sum(models.values()), "reward": judge}.get(name, models["policy"])
    assert (ddp["memory_bytes"]["kv_cache"] > 0) == (name in ("grpo", "ppo"))
    assert "least" in text and ddp["seconds_a_step"][0] <= ddp["seconds_a_step"][1]
    # layers of seven adapted matrices: the same model, no audio
    adapted = [strategy["trainable_parameters"] for strategy in report["strategies"] if strategy["lora"]]
    assert len(adapted) == 4 and all(0 < each < ddp["parameters"] for each in adapted)
    assert main([*options, "--clip-seconds", "10"]) == 2
    assert "reads text alone" in capsys.readouterr().err


def test_a_base_in_4_bits_is_planned_without_deepspeed(
    small_config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--config", str(small_config), "--gpus", "1", "--gpu-memory", "24", "--use_peft", "true"]
    options += ["--lora_target_modules", ".*language_model.*q_proj", "--dtype", "bfloat16"]
    _, whole, _ = plan(capsys, tmp_path / "a.json", *options)
    code, report, _ = plan(capsys, tmp_path / "b.json", *options, "--load_in_4bit", "true")
    assert code == 0 and [strategy["strategy"] for strategy in report["strategies"]] == ["QLoRA, one process"]
    assert "load_in_4bit: true" in report["advice"]
    small, large = (plan["strategies"][0]["memory_bytes"]["weights"] for plan in (report, whole))
    assert small < large


def test_measured_constants_are_named_and_used(
    small_config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "gpu.json"
    file.write_text(json.dumps({"machine": {"matmul_tflops": 0.5, "copy_tb_per_second": 0.001, "kernel_us": 100.0}}))
    options = ["--config", str(small_config), "--gpus", "1", "--gpu-memory", "80"]
    _, assumed, _ = plan(capsys, tmp_path / "a.json", *options)
    _, report, text = plan(capsys, tmp_path / "b.json", *options, "--measured", str(file))
    assert "Measured: 0.5 TFLOP/s (a matrix product), 0.001 TB/s, 100 to 100 us a kernel" in text
    low, high = report["strategies"][0]["seconds"]["decoding"]
    assert low == high > assumed["strategies"][0]["seconds"]["decoding"][1]
    _, replayed, _ = plan(capsys, tmp_path / "c.json", *options, "--cuda_graphs", "true")
    low, high = replayed["strategies"][0]["seconds"]["decoding"]
    assert low == high < assumed["strategies"][0]["seconds"]["decoding"][0]  # no launches to wait for
