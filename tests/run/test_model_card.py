"""The model card of a run's checkpoints: it names base, data and settings, and its lines load the model."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from r1_aqa_repro.model.loading import load_model
from tests.run.conftest import Start


def card_of(folder: Path) -> tuple[dict[str, Any], str, dict[str, Any]]:
    """Its metadata, its text, and the settings in it."""
    _, head, text = (folder / "README.md").read_text(encoding="utf-8").split("---\n", 2)
    return yaml.safe_load(head), text, yaml.safe_load(re.findall(r"```yaml\n(.*?)```", text, re.DOTALL)[0])


def loaded_as_the_card_says(folder: Path) -> Any:
    [lines] = re.findall(r"```python\n(.*?)```", (folder / "README.md").read_text(encoding="utf-8"), re.DOTALL)
    names: dict[str, Any] = {}
    exec(lines.replace("path/to/this/folder", str(folder)), names)
    return names["model"]


def test_the_card_of_an_audio_run_names_base_data_settings_and_figures(
    start: Start, manifest: Path, model_folder: Path, tmp_path: Path
) -> None:
    run = tmp_path / "my_run"
    assert start("audio grpo", run, "--max_steps", "2", "--save_steps", "1", "--save_total_limit", "2") == 0
    metadata, text, settings = card_of(run / "final")
    assert metadata == {"library_name": "transformers", "tags": ["grpo", "r1-aqa-repro"]}  # a folder is no hub id
    assert "# `my_run`, step 2" in text and "step 1" in card_of(run / "checkpoint-1")[1]
    assert f"A Qwen2AudioForConditionalGeneration, trained from `{model_folder}` by GRPO" in text
    assert f"- `{manifest}`, SHA-256 {hashlib.sha256(manifest.read_bytes()).hexdigest()}" in text
    assert (settings["seed"], settings["reward_funcs"], settings["num_generations"]) == (1, ["random"], 2)
    assert re.search(r"^- reward: [01]", text, re.MULTILINE) and "- loss: " in text
    loaded, saved = loaded_as_the_card_says(run / "final"), load_model(run / "final")
    assert all(torch.equal(value, saved.state_dict()[name]) for name, value in loaded.state_dict().items())
    assert not (run / "README.md").exists()


@pytest.mark.parametrize(
    ("name", "method", "architecture"),
    [
        ("sft", "SFT", "Qwen2ForCausalLM"),
        ("reward_model", "Reward", "Qwen2ForSequenceClassification"),
        ("reward_model lora", "Reward", "Qwen2ForSequenceClassification"),
        ("dpo lora", "DPO", "Qwen2ForCausalLM"),
    ],
)
def test_the_card_of_a_text_run_loads_its_model(
    name: str, method: str, architecture: str, start: Start, policy: Path, tmp_path: Path
) -> None:
    assert start(name, tmp_path, "--max_steps", "2") == 0
    metadata, text, settings = card_of(tmp_path / "final")
    lora = "lora" in name
    assert metadata["library_name"] == ("peft" if lora else "transformers")
    assert f"trained from `{policy}` by {method} with" in text and architecture in text
    assert settings.get("lora_r") == (4 if lora else None)
    model = loaded_as_the_card_says(tmp_path / "final")
    assert type(model.get_base_model() if lora else model).__name__ == architecture
