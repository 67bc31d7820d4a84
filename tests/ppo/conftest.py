"""Prompts and models for the PPO tests."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from transformers import GenerationConfig, set_seed

from r1_aqa_repro.data.conversations import TextPrompt, read_prompts
from r1_aqa_repro.embedded.tiny_qwen2 import TEST_TEXT, build_tiny_qwen2
from r1_aqa_repro.model.text_loading import load_reward_model, load_tokenizer


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """24 prompts of different lengths; every third has a column."""
    file = tmp_path_factory.mktemp("prompts") / "prompts.jsonl"
    records = [
        {"id": f"p{index}", "prompt": [{"role": "user", "content": f"Say {'aardvark ' * (index % 4)}{index}."}]}
        | ({"answer": str(index)} if index % 3 == 0 else {})
        for index in range(24)
    ]
    file.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return file


@pytest.fixture(scope="session")
def prompts(data: Path) -> list[TextPrompt]:
    return read_prompts(data).records


@pytest.fixture(scope="session")
def model(prompts: list[TextPrompt], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "tiny"
    build_tiny_qwen2(folder, texts=[prompt.messages[0]["content"] for prompt in prompts], seed=0, geometry=TEST_TEXT)
    ends = GenerationConfig.from_pretrained(folder)
    ends.eos_token_id = [ends.eos_token_id, *range(100, 160)]  # of about 300 tokens: completions end early and late
    ends.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def reward_model(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A reward model with a random head, saved as users have it."""
    folder, tokenizer = tmp_path_factory.mktemp("models") / "reward", load_tokenizer(model)
    set_seed(5)
    load_reward_model(model, tokenizer, new_head=True).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
