"""Generating completions: the prompt and its audio are computed once a question, however many completions it gets."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from transformers import (
    DynamicCache,
    GenerationConfig,
    LogitsProcessorList,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    ProcessorMixin,
)

from r1_aqa_repro.model.inputs import PromptInputs, attention_mask_left, pad_left, position_ids_of
from r1_aqa_repro.model.loading import base_of, eos_token_ids, tokenizer_of
from r1_aqa_repro.model.shared_attention import share_cache


def device_and_dtype() -> tuple[str, str]:
    """Where a model answers and how precisely: on the GPU in bfloat16 if there is one, else on the CPU in float32."""
    return ("cuda", "bfloat16") if torch.cuda.is_available() else ("cpu", "float32")


def generate(
    model: PreTrainedModel,
    inputs: PromptInputs,
    rows: torch.Tensor,
    generation_config: GenerationConfig,
    *,
    share: bool = True,
    autocast: AbstractContextManager[object] | None = None,
    logits_processor: LogitsProcessorList | None = None,
) -> list[list[int]]:
    """One completion for each entry of `rows`.

    `generation_config` decides alone. Left to itself, `generate()` takes what it leaves open from the checkpoint's own
    (Qwen2-Audio's has a repetition penalty, which changes greedy decoding too).

    Args:
        model: unwrapped policy.
        inputs: prompts of U questions, and their clips if they have any.
        rows: int64 [N], the question of each completion wanted. With `share` these are whole groups: 0, 0, 1, 1, ...
        generation_config: with `pad_token_id` and `eos_token_id` set.
        share: run each prompt once, and let its rows attend to the one key-value cache of it. Off, every row runs its
            own prompt through `generate()` alone; both give the same distribution.
        autocast: the mixed-precision context the model trains in.
        logits_processor: applied after those that the configuration gives.

    Returns:
        N lists of token ids, each up to and including its first end-of-sequence token.

    Raises:
        ValueError: `share`, and the rows are not whole groups.
    """
    device = model.device
    rows = rows.to(device)
    # Padding is masked, but a repetition penalty counts it among the tokens that a row has seen. The first token of the
    # prompts is among them anyway, so that a completion does not depend on how long its neighbours are.
    input_ids = pad_left(inputs.prompt_ids, inputs.prompt_ids[0][0]).to(device)  # [U, L]
    attention_mask = attention_mask_left(inputs.prompt_ids).to(device)  # [U, L]
    base = base_of(model)
    with torch.no_grad(), autocast or nullcontext(), _without_own_settings(base):
        if share:
            check_whole_groups(rows, len(input_ids))
            cache = _prefill(base, inputs, input_ids, attention_mask)
            if len(rows) > len(input_ids):
                cache = share_cache(cache, attention_mask[:, :-1], len(rows))
            continued = {"past_key_values": cache}
        else:
            continued = inputs.audio(device, rows, trim=False)
        sequences = model.generate(
            input_ids=input_ids[rows],
            attention_mask=attention_mask[rows],
            **continued,
            generation_config=generation_config,
            logits_processor=logits_processor,
        )
    return cut_after_eos(sequences[:, input_ids.size(1) :].tolist(), generation_config.eos_token_id)


def greedy_config(
    model: PreTrainedModel, processor: ProcessorMixin | PreTrainedTokenizerBase, max_new_tokens: int
) -> GenerationConfig:
    """Greedy decoding up to any of the model's end-of-sequence tokens, whatever its own settings say."""
    return GenerationConfig(
        do_sample=False, num_beams=1, max_new_tokens=max_new_tokens, **_special_tokens(model, processor)
    )


def sampling_config(
    model: PreTrainedModel,
    processor: ProcessorMixin | PreTrainedTokenizerBase,
    max_new_tokens: int,
    temperature: float = 1.0,
) -> GenerationConfig:
    """Sampling from the full softmax up to any of the model's end-of-sequence tokens, whatever its settings say."""
    return GenerationConfig(
        do_sample=True,
        temperature=temperature,
        top_k=0,
        top_p=1.0,
        max_new_tokens=max_new_tokens,
        **_special_tokens(model, processor),
    )


def _special_tokens(model: PreTrainedModel, processor: ProcessorMixin | PreTrainedTokenizerBase) -> dict[str, Any]:
    audio_token_id = getattr(model.config, "audio_token_id", None)
    return {
        "eos_token_id": eos_token_ids(model, processor),
        "pad_token_id": tokenizer_of(processor).pad_token_id,
        # a generated placeholder would stand for a clip that does not exist
        "suppress_tokens": None if audio_token_id is None else [audio_token_id],
    }


def check_whole_groups(rows: torch.Tensor, num_prompts: int) -> None:
    """Raise ValueError unless the rows are 0, ..., 0, 1, ..., 1, ...: equally many for each prompt, in their order."""
    groups = torch.arange(num_prompts, device=rows.device).repeat_interleave(len(rows) // num_prompts)
    if not torch.equal(rows, groups):
        raise ValueError("the rows are not equally many for each prompt, in the prompts' order")


@contextmanager
def _without_own_settings(model: PreTrainedModel) -> Iterator[None]:
    own, model.generation_config = model.generation_config, GenerationConfig()
    try:
        yield
    finally:
        model.generation_config = own


def _prefill(
    model: PreTrainedModel, inputs: PromptInputs, input_ids: torch.Tensor, attention_mask: torch.Tensor
) -> DynamicCache:
    """Key-value cache of each prompt without its last token (which `generate` needs to start from)."""
    cache = DynamicCache(config=model.config.get_text_config())
    model.model(  # the backbone: the head's logits of the prompt are not needed
        input_ids=input_ids[:, :-1],
        attention_mask=attention_mask[:, :-1],
        position_ids=position_ids_of(attention_mask)[:, :-1],
        past_key_values=cache,
        use_cache=True,
        **inputs.audio(input_ids.device),
    )
    return cache


def cut_after_eos(sequences: Sequence[Sequence[int]], eos_token_id: int | list[int]) -> list[list[int]]:
    """Each sequence up to and including its first end-of-sequence token."""
    ends = {eos_token_id} if isinstance(eos_token_id, int) else set(eos_token_id)
    return [
        list(ids[: next((index + 1 for index, token in enumerate(ids) if token in ends), len(ids))])
        for ids in sequences
    ]
