"""The small Qwen2-Audio and Qwen2: real checkpoint folders, and the traps of building one from configuration."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerBase

from r1_aqa_repro.embedded.text_tasks import CATEGORIES, TASKS, all_prompts, demonstrate, vocabulary_texts
from r1_aqa_repro.embedded.tiny_model import TEST, TINY, build_processor, build_qwen2_audio, build_tiny_qwen2_audio
from r1_aqa_repro.embedded.tiny_qwen2 import (
    TEST_TEXT,
    TINY_TEXT,
    build_qwen2,
    build_text_tokenizer,
    build_tiny_qwen2,
)
from r1_aqa_repro.model.loading import load

AUDIO_TEXTS = [
    "Which vowel is it? ['ah', 'ee', 'getting louder']. Output the final answer in <answer> </answer>.",
    "getting louder",
] * 3
ASKED = "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n"
TURN = "<|im_start|>assistant\n"


@pytest.fixture(scope="module")
def text_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model") / "text"
    build_tiny_qwen2(folder, texts=vocabulary_texts(), seed=0, geometry=TEST_TEXT)
    return folder


@pytest.fixture(scope="module")
def tokenizer(text_folder: Path) -> PreTrainedTokenizerBase:
    return AutoTokenizer.from_pretrained(text_folder)


def check_saved(built: Any, loaded: Any, inputs: Any, again: Any, tokenizer: PreTrainedTokenizerBase) -> None:
    """The same logits from disk; generation is greedy and ends at the end of the turn."""
    assert type(loaded) is type(built) and torch.equal(inputs["input_ids"], again["input_ids"])
    with torch.no_grad():
        assert torch.equal(built.eval()(**inputs).logits, loaded.eval()(**again).logits)
    text_config, settings = loaded.config.get_text_config(), loaded.generation_config
    assert (tokenizer.eos_token, tokenizer.pad_token, tokenizer.padding_side) == ("<|im_end|>", "<|endoftext|>", "left")
    assert settings.eos_token_id == text_config.eos_token_id == tokenizer.eos_token_id
    assert settings.pad_token_id == text_config.pad_token_id == tokenizer.pad_token_id
    assert settings.do_sample is False


def test_a_saved_qwen2_gives_the_same_logits(text_folder: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    own = build_text_tokenizer(TEST_TEXT, vocabulary_texts())
    inputs, again = (each("Name 3 fruits, but not plum.", return_tensors="pt") for each in (own, tokenizer))
    loaded = AutoModelForCausalLM.from_pretrained(text_folder)
    check_saved(build_qwen2(own, TEST_TEXT, seed=0), loaded, inputs, again, tokenizer)


def test_a_saved_qwen2_audio_gives_the_same_logits(tmp_path: Path) -> None:
    build_tiny_qwen2_audio(tmp_path / "audio", texts=AUDIO_TEXTS, seed=0, geometry=TEST)
    own, (loaded, processor) = build_processor(TEST, AUDIO_TEXTS), load(tmp_path / "audio")
    wave = np.random.default_rng(0).standard_normal(30_000).astype(np.float32)
    text = "<|im_start|>user\n<|audio_bos|><|AUDIO|><|audio_eos|>ah<|im_end|>\n"
    example = {"text": text, "audio": wave, "sampling_rate": 16_000, "return_tensors": "pt"}
    inputs, again = own(**example), processor(**example)
    check_saved(build_qwen2_audio(own, TEST, seed=0), loaded, inputs, again, processor.tokenizer)


def test_the_seed_decides_the_weights_and_leaves_the_global_generator_alone(tokenizer: PreTrainedTokenizerBase) -> None:
    torch.manual_seed(7)
    expected = torch.rand(1)
    torch.manual_seed(7)
    first, same, other = (build_qwen2(tokenizer, TEST_TEXT, seed).lm_head.weight for seed in (0, 0, 1))
    assert torch.equal(torch.rand(1), expected)
    assert torch.equal(first, same)
    assert not torch.equal(first, other)


def test_an_existing_folder_is_not_overwritten_and_leftovers_are_replaced(text_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(FileExistsError):
        build_tiny_qwen2(text_folder, texts=["ah"], seed=0, geometry=TEST_TEXT)
    (tmp_path / ".model.partial").mkdir()
    (tmp_path / ".model.partial" / "model.safetensors").write_bytes(b"half")
    build_tiny_qwen2(tmp_path / "model", texts=["ah"], seed=0, geometry=TEST_TEXT)
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_any_text_survives_tokenization(tokenizer: PreTrainedTokenizerBase) -> None:
    for text in ("ünïcode 你好 \U0001f3b5", "<answer>ah</answer>", "```python\ndef f(a, b):\n    return a\n```"):
        assert tokenizer.decode(tokenizer(text)["input_ids"]) == text


def test_conversations_are_written_as_qwen2_instruct_writes_them(tokenizer: PreTrainedTokenizerBase) -> None:
    messages = [{"role": "user", "content": "ah?"}, {"role": "assistant", "content": "oh."}]
    rendered = tokenizer.apply_chat_template(messages[:1], add_generation_prompt=True, tokenize=False)
    assert rendered == f"{ASKED}ah?<|im_end|>\n{TURN}"
    assert tokenizer.apply_chat_template(messages, tokenize=False) == f"{ASKED}ah?<|im_end|>\n{TURN}oh.<|im_end|>\n"
    own = [{"role": "system", "content": "Be brief."}, *messages[:1]]
    assert tokenizer.apply_chat_template(own, tokenize=False) == (
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nah?<|im_end|>\n"
    )


def test_tags_never_merge_with_the_answer() -> None:
    assert ">" in build_processor(TINY, AUDIO_TEXTS).tokenizer.tokenize("<answer>getting louder</answer>")


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
