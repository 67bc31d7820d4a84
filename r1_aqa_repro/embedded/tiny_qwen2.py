"""A real Qwen2 small enough for a laptop: tokenizer and model from configuration, no download."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import (
    GenerationConfig,
    PretrainedConfig,
    PreTrainedTokenizerBase,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen2Tokenizer,
)
from transformers.models.qwen2.tokenization_qwen2 import PRETOKENIZE_REGEX

from r1_aqa_repro.model.files import save_whole

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

    def config(self, tokenizer: PreTrainedTokenizerBase) -> Qwen2Config:
        """Of a Qwen2 with the tokens of `tokenizer`."""
        return Qwen2Config(
            vocab_size=len(tokenizer),
            hidden_size=self.hidden,
            intermediate_size=self.intermediate,
            num_hidden_layers=self.layers,
            num_attention_heads=self.heads,
            num_key_value_heads=self.key_value_heads,
            max_position_embeddings=self.max_positions,
            tie_word_embeddings=False,  # as Qwen2-7B; the smaller ones tie
            initializer_range=self.initializer_range,
            bos_token_id=None,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )


TINY_TEXT = TextGeometry()
TEST_TEXT = TextGeometry(hidden=32, layers=1, heads=2, key_value_heads=1, intermediate=64, max_positions=512)


def build_text_tokenizer(geometry: TextGeometry, texts: Iterable[str]) -> Qwen2Tokenizer:
    """A tokenizer as Qwen2-Instruct has it, trained on `texts`; any text can be tokenised."""
    frame = f"system\n{_SYSTEM}\nuser\nassistant\n"
    tokenizer = train_tokenizer([*texts, frame, frame], geometry, _SPECIAL_TOKENS)  # what stands once is not merged
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def build_qwen2(tokenizer: PreTrainedTokenizerBase, geometry: TextGeometry, seed: int) -> Qwen2ForCausalLM:
    """A randomly initialised float32 model that fits `tokenizer`; greedy decoding, ends at `<|im_end|>`."""
    return random_model(Qwen2ForCausalLM, geometry.config(tokenizer), tokenizer, seed)


def build_tiny_qwen2(out: Path, *, texts: Iterable[str], seed: int, geometry: TextGeometry = TINY_TEXT) -> None:
    """Save model, tokenizer (trained on `texts`) and generation config in `out`, as those of a downloaded Qwen2 lie.

    Raises:
        FileExistsError: `out` exists.
    """
    tokenizer = build_text_tokenizer(geometry, texts)
    save_whole(out, build_qwen2(tokenizer, geometry, seed), tokenizer)


def train_tokenizer(texts: Iterable[str], geometry: TextGeometry, special_tokens: Sequence[str]) -> Qwen2Tokenizer:
    """Byte-level BPE with Qwen2's own splitting of words; ends at `<|im_end|>`, pads left with `<|endoftext|>`.

    Bytes are its alphabet, so any text can be tokenised. The special tokens follow the trained ones in their order.
    """
    bpe = Tokenizer(models.BPE())
    bpe.normalizer = normalizers.NFC()
    bpe.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PRETOKENIZE_REGEX), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=geometry.max_vocabulary - len(special_tokens),
        min_frequency=2,
        show_progress=False,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
    )
    bpe.train_from_iterator(texts, trainer)
    trained = json.loads(bpe.to_str())["model"]
    return Qwen2Tokenizer(
        vocab=trained["vocab"],
        merges=[tuple(merge) for merge in trained["merges"]],
        unk_token=None,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        additional_special_tokens=list(special_tokens),
        padding_side="left",
        model_max_length=geometry.max_positions,
    )


def random_model(
    architecture: Any,
    config: PretrainedConfig,
    tokenizer: PreTrainedTokenizerBase,
    seed: int,
    dtype: torch.dtype | None = None,
    device: torch.device | str = "cpu",
) -> Any:
    """A model whose weights the seed decides; it decodes greedily and ends at the tokenizer's end of a turn."""
    with torch.random.fork_rng(), torch.device(device):
        torch.manual_seed(seed)
        model = architecture._from_config(config, dtype=dtype, attn_implementation="sdpa")
    model.generation_config = GenerationConfig(
        eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id, do_sample=False
    )
    return model
