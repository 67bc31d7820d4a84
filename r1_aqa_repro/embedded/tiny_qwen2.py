"""A real Qwen2 small enough for a laptop: tokenizer and model from configuration, no download."""

from __future__ import annotations

import json
import os
import shutil
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

from r1_aqa_repro.common.files import write_json
from r1_aqa_repro.model.files import add_older_names

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


def save_whole(out: Path, model: Any, tokenizer: PreTrainedTokenizerBase, *others: Any) -> None:
    """Save a model and what belongs to it in a new folder, which appears by one rename.

    The files are those of a published Qwen2 or Qwen2-Audio, which transformers 4 wrote.

    Raises:
        FileExistsError: `out` exists.
    """
    if out.exists():
        raise FileExistsError(f"{out} exists already")
    unfinished = out.with_name(f".{out.name}.partial")
    shutil.rmtree(unfinished, ignore_errors=True)
    for part in (model, *others):
        part.save_pretrained(unfinished)
    add_older_names(unfinished)
    _save_tokenizer(unfinished, tokenizer)
    os.replace(unfinished, out)


def _save_tokenizer(folder: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    """`tokenizer.json`, `vocab.json`, `merges.txt` and `tokenizer_config.json` as transformers 4 wrote them."""
    backend = tokenizer.backend_tokenizer
    backend.save(str(folder / "tokenizer.json"))
    backend.model.save(str(folder))
    flags = ("content", "lstrip", "normalized", "rstrip", "single_word", "special")
    added = tokenizer.added_tokens_decoder
    write_json(
        folder / "tokenizer_config.json",
        {
            "add_prefix_space": False,
            "added_tokens_decoder": {id: {flag: getattr(token, flag) for flag in flags} for id, token in added.items()},
            "additional_special_tokens": [token.content for token in added.values()],
            "bos_token": None,
            "chat_template": tokenizer.chat_template,
            "clean_up_tokenization_spaces": False,
            "eos_token": tokenizer.eos_token,
            "errors": "replace",
            "model_max_length": tokenizer.model_max_length,
            "pad_token": tokenizer.pad_token,
            "padding_side": tokenizer.padding_side,
            "split_special_tokens": False,
            "tokenizer_class": "Qwen2Tokenizer",
            "unk_token": None,
        },
    )
