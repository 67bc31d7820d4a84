"""The tiny Qwen2: a real checkpoint folder with a chat template, whose tokenizer fits the text tasks."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer, Qwen2ForCausalLM

from r1_aqa_repro.embedded.text_tasks import CATEGORIES, TASKS, all_prompts, demonstrate, vocabulary_texts
from r1_aqa_repro.embedded.tiny_qwen2 import (
    TEST_TEXT,
    TINY_TEXT,
    build_qwen2,
    build_text_tokenizer,
    build_tiny_qwen2,
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("model") / "tiny"
    build_tiny_qwen2(out, texts=vocabulary_texts(), seed=0, geometry=TEST_TEXT)
    return out


def test_a_saved_model_gives_the_same_logits(folder: Path) -> None:
    tokenizer = build_text_tokenizer(TEST_TEXT, vocabulary_texts())
    built = build_qwen2(tokenizer, TEST_TEXT, seed=0).eval()
    loaded, loaded_tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    assert isinstance(loaded, Qwen2ForCausalLM)
    text = "Name 3 fruits, but not plum."
    inputs, loaded_inputs = (t(text, return_tensors="pt") for t in (tokenizer, loaded_tokenizer))
    assert torch.equal(inputs["input_ids"], loaded_inputs["input_ids"])
    with torch.no_grad():
        assert torch.equal(built(**inputs).logits, loaded.eval()(**loaded_inputs).logits)


def test_conversations_are_written_as_qwen2_instruct_writes_them(folder: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    messages = [{"role": "user", "content": "ah?"}, {"role": "assistant", "content": "oh."}]
    asked = "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\nah?<|im_end|>\n"
    rendered = tokenizer.apply_chat_template(messages[:1], add_generation_prompt=True, tokenize=False)
    assert rendered == f"{asked}<|im_start|>assistant\n"
    assert tokenizer.apply_chat_template(messages, tokenize=False) == f"{asked}<|im_start|>assistant\noh.<|im_end|>\n"
    own = [{"role": "system", "content": "Be brief."}, *messages[:1]]
    assert tokenizer.apply_chat_template(own, tokenize=False) == (
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nah?<|im_end|>\n"
    )


def test_generation_ends_at_the_end_of_the_turn(folder: Path) -> None:
    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModelForCausalLM.from_pretrained(folder)
    assert (tokenizer.eos_token, tokenizer.pad_token) == ("<|im_end|>", "<|endoftext|>")
    assert model.generation_config.eos_token_id == model.config.eos_token_id == tokenizer.eos_token_id
    assert model.generation_config.pad_token_id == model.config.pad_token_id == tokenizer.pad_token_id
    assert model.generation_config.do_sample is False
    assert tokenizer.padding_side == "left"


def test_a_reward_model_can_start_from_it(folder: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForSequenceClassification.from_pretrained(folder, num_labels=1).eval()
    batch = tokenizer(["fig", "fig, pear."], return_tensors="pt", padding=True)
    assert model(**batch).logits.shape == (2, 1)


def test_the_seed_decides_the_weights_and_leaves_the_global_generator_alone() -> None:
    tokenizer = build_text_tokenizer(TEST_TEXT, vocabulary_texts())
    torch.manual_seed(7)
    expected = torch.rand(1)
    torch.manual_seed(7)
    models = [build_qwen2(tokenizer, TEST_TEXT, seed) for seed in (0, 0, 1)]
    assert torch.equal(torch.rand(1), expected)
    first, same, other = (model.get_output_embeddings().weight for model in models)
    assert torch.equal(first, same)
    assert not torch.equal(first, other)


def test_words_are_single_tokens_and_completions_short() -> None:
    tokenizer = build_text_tokenizer(TINY_TEXT, vocabulary_texts())
    for member in (member for members in CATEGORIES.values() for member in members):
        assert len(tokenizer.tokenize(f" {member}")) == 1  # in answers it stands behind a number
    rng = np.random.default_rng(0)
    for task in TASKS:
        for record in all_prompts(task):
            end = 1  # the end of the turn
            assert len(tokenizer.tokenize(demonstrate(record, rng))) + end <= 24
    assert 0.3e6 < build_qwen2(tokenizer, TINY_TEXT, seed=0).num_parameters() < 0.8e6


def test_any_text_survives() -> None:
    tokenizer = build_text_tokenizer(TEST_TEXT, vocabulary_texts())
    for text in ("apple, fig.", "ünïcode 你好 \U0001f3b5", "```python\ndef f(a, b):\n    return a + b\n```"):
        assert tokenizer.decode(tokenizer(text)["input_ids"]) == text


def test_an_existing_folder_is_not_overwritten_and_leftovers_are_replaced(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(FileExistsError):
        build_tiny_qwen2(folder, texts=["ah"], seed=0, geometry=TEST_TEXT)
    (tmp_path / ".model.partial").mkdir()
    (tmp_path / ".model.partial" / "model.safetensors").write_bytes(b"half")
    build_tiny_qwen2(tmp_path / "model", texts=["ah"], seed=0, geometry=TEST_TEXT)
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
