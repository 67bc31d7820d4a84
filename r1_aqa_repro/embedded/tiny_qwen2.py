"""A real Qwen2 small enough for a laptop: tokenizer and model from configuration, no download."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from transformers import PreTrainedTokenizerBase, Qwen2Config, Qwen2ForCausalLM, Qwen2Tokenizer

from r1_aqa_repro.embedded.tiny_model import random_model, save_whole, train_tokenizer

_SPECIAL_TOKENS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
_SYSTEM = "You are a helpful assistant."  # what Qwen2-Instruct adds if a conversation has no system message
CHAT_TEMPLATE = (  # ChatML
    "{% for message in messages %}"
    "{% if loop.first and message['role'] != 'system' %}"
    "{{ '<|im_start|>system\n"
    f"{_SYSTEM}"
    "<|im_end|>\n' }}"
    "{% endif %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


@dataclass(frozen=True)
class TextGeometry:
    """The sizes of a Qwen2; the defaults are those of the embedded model."""

    max_vocabulary: int = 1000
    hidden: int = 128
    layers: int = 2
    heads: int = 4
    key_value_heads: int = 2
    intermediate: int = 384
    max_positions: int = 1024
    initializer_range: float = 0.04  # 0.02 suits a hidden size of thousands; a narrow model would shrink its input


TINY_TEXT = TextGeometry()
TEST_TEXT = TextGeometry(hidden=32, layers=1, heads=2, key_value_heads=1, intermediate=64, max_positions=512)


def build_text_tokenizer(geometry: TextGeometry, texts: Iterable[str]) -> Qwen2Tokenizer:
    """A tokenizer as Qwen2-Instruct has it, trained on `texts`; any text can be tokenised."""
    frame = f"system\n{_SYSTEM}\nuser\nassistant\n"
    corpus = [*texts, frame, frame]  # twice: what stands once is not merged
    tokenizer = train_tokenizer(corpus, geometry.max_vocabulary, geometry.max_positions, _SPECIAL_TOKENS)
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def build_qwen2(tokenizer: PreTrainedTokenizerBase, geometry: TextGeometry, seed: int) -> Qwen2ForCausalLM:
    """A randomly initialised float32 model that fits `tokenizer`; greedy decoding, ends at `<|im_end|>`."""
    config = Qwen2Config(
        vocab_size=len(tokenizer),
        hidden_size=geometry.hidden,
        intermediate_size=geometry.intermediate,
        num_hidden_layers=geometry.layers,
        num_attention_heads=geometry.heads,
        num_key_value_heads=geometry.key_value_heads,
        max_position_embeddings=geometry.max_positions,
        tie_word_embeddings=False,  # as Qwen2-7B; the smaller ones tie
        initializer_range=geometry.initializer_range,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return random_model(Qwen2ForCausalLM, config, tokenizer, seed)


def build_tiny_qwen2(out: Path, *, texts: Iterable[str], seed: int, geometry: TextGeometry = TINY_TEXT) -> None:
    """Save model, tokenizer and generation config in `out`, in the layout of a downloaded Qwen2.

    Written under another name and then renamed, so that a folder called `out` is complete.

    Args:
        out: folder to make; must not exist.
        texts: what the tokenizer is trained on.
        seed: seed of the weights.
        geometry: sizes.

    Raises:
        FileExistsError: `out` exists.
    """
    tokenizer = build_text_tokenizer(geometry, texts)
    save_whole(out, build_qwen2(tokenizer, geometry, seed), tokenizer)
