"""The small Qwen2-Audio and Qwen2: real checkpoint folders, and the traps of building one from configuration."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    Qwen2AudioForConditionalGeneration,
    Qwen2ForCausalLM,
)

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


@dataclass(frozen=True)
class Kind:
    """One of the two: how a folder is made, what turns inputs into tensors, and how a model is built for that."""

    make: Callable[[Path], None]
    inputs: Any
    build: Callable[[int], Any]
    example: dict[str, Any]


def kind_of(name: str) -> Kind:
    if name == "audio":
        processor = build_processor(TEST, AUDIO_TEXTS)
        wave = np.random.default_rng(0).standard_normal(30_000).astype(np.float32)
        text = "<|im_start|>user\n<|audio_bos|><|AUDIO|><|audio_eos|>ah<|im_end|>\n"
        return Kind(
            partial(build_tiny_qwen2_audio, texts=AUDIO_TEXTS, seed=0, geometry=TEST),
            processor,
            partial(build_qwen2_audio, processor, TEST),
            {"text": text, "audio": wave, "sampling_rate": 16_000},
        )
    tokenizer = build_text_tokenizer(TEST_TEXT, vocabulary_texts())
    return Kind(
        partial(build_tiny_qwen2, texts=vocabulary_texts(), seed=0, geometry=TEST_TEXT),
        tokenizer,
        partial(build_qwen2, tokenizer, TEST_TEXT),
        {"text": "Name 3 fruits, but not plum."},
    )


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    made = {name: tmp_path_factory.mktemp("model") / name for name in ("audio", "text")}
    for name, folder in made.items():
        kind_of(name).make(folder)
    return made


both = pytest.mark.parametrize("name", ["audio", "text"])


@both
def test_a_saved_model_gives_the_same_logits(name: str, folders: dict[str, Path]) -> None:
    kind = kind_of(name)
    if name == "audio":
        loaded, loaded_inputs = load(folders[name])
    else:
        loaded = AutoModelForCausalLM.from_pretrained(folders[name])
        loaded_inputs = AutoTokenizer.from_pretrained(folders[name])
        assert isinstance(loaded, Qwen2ForCausalLM)
    inputs, again = (make(**kind.example, return_tensors="pt") for make in (kind.inputs, loaded_inputs))
    assert torch.equal(inputs["input_ids"], again["input_ids"])
    with torch.no_grad():
        assert torch.equal(kind.build(0).eval()(**inputs).logits, loaded.eval()(**again).logits)


@both
def test_the_seed_decides_the_weights_and_leaves_the_global_generator_alone(name: str) -> None:
    build = kind_of(name).build
    torch.manual_seed(7)
    expected = torch.rand(1)
    torch.manual_seed(7)
    first, same, other = (build(seed).get_output_embeddings().weight for seed in (0, 0, 1))
    assert torch.equal(torch.rand(1), expected)
    assert torch.equal(first, same)
    assert not torch.equal(first, other)


@both
def test_an_existing_folder_is_not_overwritten_and_leftovers_are_replaced(
    name: str, folders: dict[str, Path], tmp_path: Path
) -> None:
    make = kind_of(name).make
    with pytest.raises(FileExistsError):
        make(folders[name])
    (tmp_path / ".model.partial").mkdir()
    (tmp_path / ".model.partial" / "model.safetensors").write_bytes(b"half")
    make(tmp_path / "model")
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


@both
def test_any_text_survives_tokenization(name: str) -> None:
    inputs = kind_of(name).inputs
    tokenizer = inputs.tokenizer if name == "audio" else inputs
    for text in (
        "apple, fig.",
        "ünïcode 你好 \U0001f3b5",
        "<answer>ah</answer>",
        "```python\ndef f(a, b):\n    return a\n```",
    ):
        assert tokenizer.decode(tokenizer(text)["input_ids"]) == text


@both
def test_generation_is_greedy_and_ends_at_the_end_of_the_turn(name: str, folders: dict[str, Path]) -> None:
    tokenizer = AutoTokenizer.from_pretrained(folders[name])
    model = (Qwen2AudioForConditionalGeneration if name == "audio" else Qwen2ForCausalLM).from_pretrained(folders[name])
    text_config = model.config.get_text_config()
    assert (tokenizer.eos_token, tokenizer.pad_token, tokenizer.padding_side) == ("<|im_end|>", "<|endoftext|>", "left")
    assert model.generation_config.eos_token_id == text_config.eos_token_id == tokenizer.eos_token_id
    assert model.generation_config.pad_token_id == text_config.pad_token_id == tokenizer.pad_token_id
    assert model.generation_config.do_sample is False


def test_conversations_are_written_as_qwen2_instruct_writes_them(folders: dict[str, Path]) -> None:
    tokenizer = AutoTokenizer.from_pretrained(folders["text"])
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
