"""How many questions fit into memory at once."""

from __future__ import annotations

import gc
import os

import psutil
import torch
from accelerate.utils.memory import should_reduce_batch_size
from transformers import PreTrainedModel

_LARGEST = {"cpu": 16, "cuda": 64}  # what a larger batch would gain is little by then
_TEXT_TOKENS = 256  # of a prompt, beside its audio
_SHARE = 0.5  # of the free memory: the rest is for what the estimate leaves out, and for fragmentation


def starting_batch_size(model: PreTrainedModel, repeats: int, max_new_tokens: int) -> int:
    """The batch size that `auto` begins with: a power of two.

    It is the largest of 64 questions on a GPU and 16 on a CPU that half of the free memory holds, by
    `bytes_a_question`. On a CPU this is where it ends, unless an allocation fails; on a GPU running out of memory is
    noticed, and halves it.
    """
    if model.device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(model.device)
    else:
        free = psutil.virtual_memory().available // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    size = _LARGEST.get(model.device.type, 16)
    while size > 1 and size * bytes_a_question(model, repeats, max_new_tokens) > _SHARE * free:
        size //= 2
    return size


def bytes_a_question(model: PreTrainedModel, repeats: int, max_new_tokens: int) -> int:
    """An estimate of what one question with the longest clip takes: the sum of keys and values, the encoder's and the
    language model's widest activations in the prefill, and the scores that a token is chosen from."""
    audio, text = model.config.audio_config, model.config.get_text_config()
    number = model.dtype.itemsize
    tokens = audio.max_source_positions // 2 + _TEXT_TOKENS
    head_dim = text.hidden_size // text.num_attention_heads
    cache = 2 * text.num_hidden_layers * text.num_key_value_heads * head_dim * (tokens + repeats * max_new_tokens)
    encoder = 2 * audio.max_source_positions * (4 * audio.d_model + 2 * audio.encoder_ffn_dim)
    prefill = tokens * (6 * text.hidden_size + 3 * text.intermediate_size)
    scores = 6 * repeats * text.vocab_size * torch.float32.itemsize
    return number * (cache + encoder + prefill) + scores


def is_out_of_memory(error: RuntimeError) -> bool:
    """Whether a smaller batch might not fail so."""
    return isinstance(error, torch.OutOfMemoryError) or should_reduce_batch_size(error)


def free_cached() -> None:
    """Give back what a failed batch has left."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
