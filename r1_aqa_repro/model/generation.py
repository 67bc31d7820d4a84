"""Generating completions: the prompt and its audio are computed once a question, however many completions it gets."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers import (
    Cache,
    DynamicCache,
    EpsilonLogitsWarper,
    EtaLogitsWarper,
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    MinPLogitsWarper,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    ProcessorMixin,
    SuppressTokensLogitsProcessor,
    TemperatureLogitsWarper,
    TopHLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
    TypicalLogitsWarper,
)
from transformers.distributed.fsdp import is_fsdp_managed_module
from transformers.integrations.deepspeed import is_deepspeed_zero3_enabled

from r1_aqa_repro.model.inputs import PromptInputs, attention_mask_left, pad_left, position_ids_of, text_inputs
from r1_aqa_repro.model.loading import base_of, eos_token_ids, tokenizer_of
from r1_aqa_repro.model.shared_attention import shared_cache

_GRAPH_BLOCK = 64  # tokens whose steps have one shape, if they are replayed as a CUDA graph
_LOOK_EVERY = 16  # steps on a GPU between two looks at whether every row has ended: the host waits for the device
_KERNELS = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]  # cuDNN's plans a shape anew
# What shapes the distribution that is sampled from, in the order in which `generate()` applies it: the value that
# changes nothing, and the class.
WARPERS: dict[str, tuple[float | None, type[LogitsProcessor]]] = {
    "temperature": (1.0, TemperatureLogitsWarper),
    "top_h": (None, TopHLogitsWarper),
    "top_k": (0, TopKLogitsWarper),
    "top_p": (1.0, TopPLogitsWarper),
    "min_p": (None, MinPLogitsWarper),
    "typical_p": (1.0, TypicalLogitsWarper),
    "epsilon_cutoff": (0.0, EpsilonLogitsWarper),
    "eta_cutoff": (0.0, EtaLogitsWarper),
}
# settings of a generation that the loop acts on or need not act on (top_h reads its numbers on the host), and values of
# others that ask for nothing
_KNOWN = {
    "do_sample", "suppress_tokens", "max_new_tokens", "eos_token_id", "pad_token_id", "bos_token_id",
    "transformers_version", "disable_compile", *(WARPERS.keys() - {"top_h"}),
}  # fmt: skip
_NEUTRAL = {"repetition_penalty": 1.0, "num_beams": 1}


def device_and_dtype() -> tuple[str, str]:
    """Where a model answers and how precisely: on the GPU in bfloat16 if there is one, else on the CPU in float32."""
    return ("cuda", "bfloat16") if torch.cuda.is_available() else ("cpu", "float32")


@dataclass(frozen=True)
class Completions:
    """N sampled completions.

    token_ids: N lists, each up to and including its first end-of-sequence token.
    log_probs: N lists, the log-probability of each of these tokens when it was sampled, under the full softmax of the
        logits over the temperature, as scoring forms it. None if `generate()` of transformers has sampled them.
    """

    token_ids: list[list[int]]
    log_probs: list[list[float]] | None = None


def generate(
    model: PreTrainedModel,
    inputs: PromptInputs,
    rows: torch.Tensor,
    generation_config: GenerationConfig,
    **options: Any,
) -> list[list[int]]:
    """One completion for each entry of `rows`, as lists of token ids, see `complete`."""
    return complete(model, inputs, rows, generation_config, **options).token_ids


def complete(
    model: PreTrainedModel,
    inputs: PromptInputs,
    rows: torch.Tensor,
    generation_config: GenerationConfig,
    *,
    share: bool = True,
    autocast: AbstractContextManager[object] | None = None,
    logits_processor: LogitsProcessorList | None = None,
    cuda_graphs: bool = False,
) -> Completions:
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
        cuda_graphs: with `share` on a GPU, replay recorded steps instead of launching each kernel anew.

    Raises:
        ValueError: `share`, and the rows are not whole groups.
    """
    device, eos = model.device, generation_config.eos_token_id
    rows = rows.to(device)
    # Padding is masked, but a repetition penalty counts it among the tokens that a row has seen. The first token of the
    # prompts is among them anyway, so that a completion does not depend on how long its neighbours are.
    input_ids = pad_left(inputs.prompt_ids, inputs.prompt_ids[0][0]).to(device)  # [U, L]
    attention_mask = attention_mask_left(inputs.prompt_ids).to(device)  # [U, L]
    base = base_of(model)
    kernels = sdpa_kernel(_KERNELS) if device.type == "cuda" else nullcontext()
    with torch.no_grad(), autocast or nullcontext(), _without_own_settings(base), kernels:
        if share:
            check_whole_groups(rows, len(input_ids))
            block = _GRAPH_BLOCK if cuda_graphs else 1
            room = generation_config.max_new_tokens
            cache = _prefill(base, inputs, input_ids, attention_mask, len(rows), room, block)
            loop = Loop.of(base, generation_config) if len(rows) > len(input_ids) and not logits_processor else None
            if loop is not None:
                start = position_ids_of(attention_mask)[rows, -1]
                token_ids, log_probs = loop(cache, input_ids[rows, -1], start, cuda_graphs)
                completions = cut_after_eos(token_ids.tolist(), eos)
                kept = [row[: len(ids)] for row, ids in zip(log_probs.tolist(), completions, strict=True)]
                return Completions(completions, kept)
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
    return Completions(cut_after_eos(sequences[:, input_ids.size(1) :].tolist(), eos))


def greedy_texts(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    conversations: Sequence[list[dict[str, str]]],
    max_new_tokens: int,
    autocast: AbstractContextManager[object] | None = None,
) -> list[tuple[str, bool]]:
    """The greedy answer of a text policy to each conversation, and whether it came to its end; no random number is
    drawn."""
    config, inputs = greedy_config(base_of(model), tokenizer, max_new_tokens), text_inputs(tokenizer, conversations)
    rows = generate(model, inputs, torch.arange(len(conversations)), config, autocast=autocast)
    texts = tokenizer.batch_decode(rows, skip_special_tokens=True)
    return [(text, ids[-1] in config.eos_token_id) for text, ids in zip(texts, rows, strict=True)]


def warpers_of(settings: Mapping[str, Any]) -> LogitsProcessorList:
    """What makes the distribution that `generate()` samples from with these settings of it."""
    return LogitsProcessorList(
        kind(settings[name]) for name, (neutral, kind) in WARPERS.items() if settings.get(name, neutral) != neutral
    )


@dataclass(frozen=True)
class Loop:
    """Samples on from a shared cache, step by step, without waiting for the device: what `generate()` does, less what
    it decides on the host. The same tokens from the same random numbers.

    backbone, head: of the language model.
    processors: change the logits; none of them looks at the tokens before.
    temperature: that the logits are divided by.
    """

    backbone: nn.Module
    head: nn.Module
    config: GenerationConfig
    processors: LogitsProcessorList
    temperature: float

    @classmethod
    def of(cls, model: PreTrainedModel, config: GenerationConfig) -> Loop | None:
        """The loop for a model, or None if the configuration or ZeRO-3 and FSDP ask for more than it can."""
        if is_deepspeed_zero3_enabled() or is_fsdp_managed_module(model):  # all processes must make as many steps
            return None
        asked = config.to_diff_dict().items()
        if any(name not in _KNOWN and value != _NEUTRAL.get(name) for name, value in asked):
            return None
        if config.do_sample and config.top_k is None:  # transformers puts 50
            return None
        processors = LogitsProcessorList()
        if config.suppress_tokens:
            processors.append(SuppressTokensLogitsProcessor(config.suppress_tokens, device=str(model.device)))
        temperature = 1.0
        if config.do_sample:
            processors += warpers_of(config.to_diff_dict())
            temperature = config.temperature or 1.0
        backbone = getattr(model.model, "language_model", model.model)
        return cls(backbone, model.get_output_embeddings(), config, processors, temperature)

    def __call__(
        self, cache: Cache, token: torch.Tensor, position: torch.Tensor, graphs: bool
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """New tokens and their log-probabilities, both [N, <= max_new_tokens].

        Args:
            cache: of the prompts without their last tokens.
            token, position: int64 [N], these last tokens and where they stand.
            graphs: record a step as a CUDA graph and replay it.
        """
        rows = cache.layers[0].rows
        room, pad = self.config.max_new_tokens, self.config.pad_token_id
        eos = torch.as_tensor(self.config.eos_token_id, device=token.device).view(-1)
        ids, log_probs = token.new_full((len(token), room), pad), token.new_zeros((len(token), room), dtype=torch.float)
        token, position, column = token.clone(), position.clone(), token.new_zeros(1)
        ended = torch.zeros_like(token, dtype=torch.bool)

        def step() -> None:
            output = self.backbone(
                input_ids=token[:, None],
                attention_mask=rows.mask,  # the layers know better; with any such mask, transformers makes none
                position_ids=position[:, None],
                past_key_values=cache,
            )
            logits = self.head(output.last_hidden_state[:, -1]).float()
            token.copy_(self._picked(logits).masked_fill(ended, pad))
            ids.index_copy_(1, column, token[:, None])
            logits /= self.temperature
            log_probs.index_copy_(1, column, logits.gather(1, token[:, None]) - logits.logsumexp(-1, keepdim=True))
            ended.logical_or_((token[:, None] == eos).any(-1))
            position.add_(1)
            column.add_(1)

        run, captured = step, 0
        every = 1 if token.device.type == "cpu" else _LOOK_EVERY
        for done in range(1, room + 1):
            rows.tokens = done - 1  # a replayed step does not count itself
            if graphs and done > 2 and rows.seen(done) != captured:  # two steps have warmed libraries up
                run, captured = _recorded(step), rows.seen(done)
            run()
            if done % every == 0 and ended.all():
                break
        return ids[:, :done], log_probs[:, :done]

    def _picked(self, logits: torch.Tensor) -> torch.Tensor:
        """A token of each row: [N, vocabulary] -> [N]."""
        scores = self.processors(None, logits)
        if not self.config.do_sample:
            return scores.argmax(-1)
        # the numbers of `torch.multinomial`, without its checks, which wait for the device
        return (scores.softmax(-1) / torch.empty_like(scores).exponential_()).argmax(-1)


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
    model: PreTrainedModel,
    inputs: PromptInputs,
    input_ids: torch.Tensor,
    attention_mask: torch.Tensor,
    num_rows: int,
    room: int,
    block: int,
) -> Cache:
    """Key-value cache of each prompt without its last token (which sampling needs to start from).

    It has room for `room` tokens of `num_rows` rows if they are more than the prompts.
    """
    config, device = model.config.get_text_config(), input_ids.device.type
    if num_rows > len(input_ids):
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else model.dtype
        cache = shared_cache(
            config, attention_mask[:, :-1], num_rows, room, dtype, interleaved=device != "cpu", block=block
        )
    else:
        cache = DynamicCache(config=config)
    model.model(  # the backbone: the head's logits of the prompt are not needed
        input_ids=input_ids[:, :-1],
        attention_mask=attention_mask[:, :-1],
        position_ids=position_ids_of(attention_mask)[:, :-1],
        past_key_values=cache,
        use_cache=True,
        **inputs.audio(input_ids.device),
    )
    return cache


def _recorded(step: Callable[[], None]) -> Callable[[], None]:
    """A step as a CUDA graph, to be replayed on the same tensors. Other threads may go on, such as one that pins what
    the next batch holds."""
    with torch.cuda.graph(graph := torch.cuda.CUDAGraph(), capture_error_mode="thread_local"):
        step()
    return graph.replay


def cut_after_eos(sequences: Sequence[Sequence[int]], eos_token_id: int | list[int]) -> list[list[int]]:
    """Each sequence up to and including its first end-of-sequence token."""
    ends = {eos_token_id} if isinstance(eos_token_id, int) else set(eos_token_id)
    return [
        list(ids[: next((index + 1 for index, token in enumerate(ids) if token in ends), len(ids))])
        for ids in sequences
    ]
