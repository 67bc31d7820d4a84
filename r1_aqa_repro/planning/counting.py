"""The model's work on the meta device: shapes without numbers, so that a 7B is counted in seconds on any machine.

Every function runs the real modules (encoder, projector, language model). What is counted is what PyTorch
would compute and what its autograd would keep, not a rule of thumb.
"""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack, nullcontext
from copy import deepcopy
from dataclasses import dataclass
from typing import Any, Literal

import torch
from peft import PeftConfig, get_peft_model
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode
from transformers import (
    AttentionInterface,
    DynamicCache,
    PreTrainedConfig,
    Qwen2AudioConfig,
    Qwen2AudioForConditionalGeneration,
    Qwen2ForCausalLM,
    Qwen2ForSequenceClassification,
)
from transformers.integrations.sdpa_attention import repeat_kv
from transformers.loss.loss_utils import ForCausalLMLoss

from r1_aqa_repro.model.audio_encoder import make_trimmable
from r1_aqa_repro.model.encoded_audio import is_frozen
from r1_aqa_repro.model.loading import base_of, freeze
from r1_aqa_repro.ppo.actor_critic import ActorCritic, of_logits

Task = Literal["grpo", "rloo", "sft", "dpo", "kto", "reward", "ppo"]
_EFFICIENT = "memory_efficient"


@dataclass(frozen=True)
class Shapes:
    """One forward and backward of one process.

    rows: rows of the language model (shared: one a question; plain: one a completion).
    clips: clips heard, each `frames` log-mel frames long; they give `audio_tokens` tokens each.
    prefix: positions of a row in front of the scored ones.
    row_tokens: positions of a row in all; the last `row_tokens - prefix` are scored.
    encoded: the clips come as a frozen encoder has put them out before.
    """

    rows: int
    clips: int
    frames: int
    audio_tokens: int
    prefix: int
    row_tokens: int
    encoded: bool = False

    @property
    def scored(self) -> int:
        return self.rows * (self.row_tokens - self.prefix)


def build_model(
    config: PreTrainedConfig,
    dtype: torch.dtype,
    peft_config: PeftConfig | None = None,
    checkpointing: bool = False,
    task: Task = "grpo",
    trained_parts: str = "all",
) -> nn.Module:
    """The model as the trainers set it up, in training mode, on the meta device: of PPO the policy with its critic."""

    def made(model_class: Any, **changes: Any) -> Any:
        own = deepcopy(config)
        own.update(changes)
        return model_class._from_config(own, dtype=dtype, attn_implementation="sdpa")

    with torch.device("meta"):
        if task == "reward":
            model = made(Qwen2ForSequenceClassification, num_labels=1)
        elif isinstance(config, Qwen2AudioConfig):
            model = made(Qwen2AudioForConditionalGeneration)
            make_trimmable(model)
            freeze(model, trained_parts)
        else:
            model = made(Qwen2ForCausalLM)
        critic = made(Qwen2ForSequenceClassification, num_labels=1) if task == "ppo" else None
        if peft_config is not None:  # adapters in the same type too, as DeepSpeed casts them
            model = get_peft_model(model, peft_config).to(dtype)
            if critic is not None:
                of_critic = deepcopy(peft_config)
                of_critic.task_type = "SEQ_CLS"
                critic = get_peft_model(critic, of_critic).to(dtype)
        if critic is not None:
            model = ActorCritic(model, critic)
    if checkpointing:
        model.activation_checkpointing_enable()
        if peft_config is not None and critic is None:  # of which PPO's two take care
            model.enable_input_require_grads()
    return model.train()


def networks(model: nn.Module) -> list[Any]:
    """The policy and then its critic, or the model itself if it has none."""
    return [model.policy, model.critic] if isinstance(model, ActorCritic) else [model]


def language_model(model: nn.Module) -> nn.Module:
    """The layers that text goes through, without a head: of a Qwen2-Audio a part of it."""
    inner = base_of(model).model
    return getattr(inner, "language_model", inner)


def encoder_is_frozen(model: nn.Module) -> bool:
    """Whether the model hears, with an encoder of which nothing is trained."""
    encoder = getattr(base_of(model).model, "audio_tower", None)
    return encoder is not None and is_frozen(encoder)


def encoding(model: nn.Module, clips: int, frames: int) -> torch.Tensor:
    """What the encoder makes of clips, [clips, tokens, d_model]; its positions are seen by a mask."""
    encoder, positions = base_of(model).model.audio_tower, frames // 2
    with torch.device(base_of(model).device):
        return encoder(
            torch.empty(clips, encoder.config.num_mel_bins, frames),
            attention_mask=torch.empty(clips, 1, positions, positions, dtype=torch.bool),
        ).last_hidden_state


def backbone(model: nn.Module, shapes: Shapes, cache: DynamicCache | None = None) -> torch.Tensor:
    """Hidden states [rows, row_tokens, hidden] of prompts with their clips, if they have any, under a 4-D mask as the
    shared prefix has it."""
    base = base_of(model)
    with torch.device(base.device):
        embeddings = base.get_input_embeddings()(torch.empty(shapes.rows, shapes.row_tokens, dtype=torch.long))
        if shapes.clips:
            if shapes.encoded:
                shape = (shapes.clips, shapes.audio_tokens, base.config.audio_config.d_model)
                encoded = torch.empty(shape, dtype=base.dtype)
            else:
                encoded = encoding(model, shapes.clips, shapes.frames)
            features = base.model.multi_modal_projector(encoded)[:, : shapes.audio_tokens]
            # the same copy as `masked_scatter`, whose mask would need numbers
            embeddings = torch.cat([features.to(embeddings.dtype), embeddings[:, shapes.audio_tokens :]], dim=1)
        return language_model(model)(
            inputs_embeds=embeddings,
            attention_mask=torch.empty(shapes.rows, 1, shapes.row_tokens, shapes.row_tokens, dtype=torch.bool),
            position_ids=torch.empty(shapes.rows, shapes.row_tokens, dtype=torch.long),
            past_key_values=cache,
            use_cache=cache is not None,
        ).last_hidden_state


def hidden_states(model: nn.Module, shapes: Shapes) -> Sequence[torch.Tensor]:
    """What is common to the losses: the forward of every network, without a head."""
    return [backbone(network, shapes) for network in networks(model)]


def cross_entropy(model: nn.Module, shapes: Shapes) -> Sequence[torch.Tensor]:
    """The loss of SFT: logits, in float32 for the softmax, of AudioSFTTrainer where a token of the target is predicted,
    of text at every position."""
    hidden = backbone(model, shapes)
    if shapes.clips:
        hidden = hidden[:, shapes.prefix - 1 : -1].flatten(0, 1)  # [rows * target, hidden], a copy
    logits = base_of(model).get_output_embeddings()(hidden)
    labels = torch.empty(logits.shape[:-1], dtype=torch.long, device=hidden.device)
    return [ForCausalLMLoss(logits, None, logits.size(-1), shift_labels=labels)]


def rewards(model: nn.Module, shapes: Shapes) -> Sequence[torch.Tensor]:
    """What the loss of a reward model compares: a score at every position, of which the last counts."""
    return [base_of(model).score(backbone(model, shapes))[:, -1]]


def ppo_terms(model: ActorCritic, shapes: Shapes, entropy_gradient: bool = False) -> Sequence[torch.Tensor]:
    """What PPO's losses are made of, as `ActorCritic.forward` computes it."""
    length = shapes.row_tokens - shapes.prefix
    logits = model.policy.get_output_embeddings()(backbone(model.policy, shapes)[:, -length - 1 :])
    token_ids = torch.empty(shapes.rows, length, dtype=torch.long, device=logits.device)
    log_probs, entropies = of_logits(logits[:, :-1], token_ids, 1.0, entropy_gradient)
    del logits
    values = model.critic.score(backbone(model.critic, shapes)[:, -length - 1 : -1]).float()
    return [log_probs, entropies, values]


def decode_flops(model: nn.Module, rows: int, prompt_tokens: int, completion_tokens: int) -> int:
    """FLOPs of generating `completion_tokens` for `rows` sequences, the prompt less one token being cached.

    A step costs a constant and, in attention, a multiple of the cache's length: the mean of the first and the last
    step times their number is exact.
    """
    base = base_of(model)
    text = base.config.get_text_config()
    head_dim = text.hidden_size // text.num_attention_heads

    def step(cached: int) -> None:
        cache = DynamicCache(config=text)
        for layer in range(text.num_hidden_layers):
            past = torch.empty(rows, text.num_key_value_heads, cached, head_dim, device="meta", dtype=base.dtype)
            cache.update(past, past, layer)
        hidden = language_model(model)(
            inputs_embeds=torch.empty(rows, 1, text.hidden_size, device="meta", dtype=base.dtype),
            attention_mask=torch.empty(rows, 1, 1, cached + 1, device="meta", dtype=torch.bool),
            position_ids=torch.empty(rows, 1, device="meta", dtype=torch.long),
            past_key_values=cache,
        ).last_hidden_state
        base.get_output_embeddings()(hidden)

    first = count_flops(lambda: step(prompt_tokens - 1))
    last = count_flops(lambda: step(prompt_tokens - 2 + completion_tokens))
    return (first + last) * completion_tokens // 2


def count_flops(work: Callable[[], Any], grad: bool = False) -> int:
    """FLOPs of `work`, attention counted as its matrix products whichever kernel a device has for it."""
    with (
        FlopCounterMode(display=False) as counter,
        sdpa_kernel(SDPBackend.MATH),
        nullcontext() if grad else torch.no_grad(),
    ):
        work()
    return counter.get_total_flops()


def loss_bytes(
    config: PreTrainedConfig,
    shapes: Shapes,
    dtype: torch.dtype,
    peft_config: PeftConfig | None = None,
    checkpointing: bool = False,
    autocast: bool = False,
    task: Task = "grpo",
    trained_parts: str = "all",
    loss: Callable[[Any, Shapes], Sequence[torch.Tensor]] = hidden_states,
) -> int:
    """Most bytes that live at once in a forward and its backward, apart from the weights and accumulated gradients.

    Counted are the tensors that autograd keeps, the temporaries beside them and each weight's fresh gradient until it
    is added to the accumulated one (or reduced away). Attention is PyTorch's memory-efficient kernel, which a GPU
    takes for a boolean mask: its scores are never held, its mask is, once a layer in the computation's dtype.

    Args:
        autocast: compute in bfloat16 with float32 weights, whose casts autograd keeps.
        loss: its forward, as far as it counts.
    """
    model = build_model(config, dtype, peft_config, checkpointing, task, trained_parts)
    for network in networks(model):
        base_of(network).set_attn_implementation(_EFFICIENT)
    with ExitStack() as stack:
        if autocast:  # which passes over meta tensors: fake ones are the same under a CPU's name
            stack.enter_context(FakeTensorMode())
            _name_cpu(model)
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.register_post_accumulate_grad_hook(_drop_gradient)
        live = stack.enter_context(LiveBytes([*model.parameters(), *model.buffers()]))
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            results = loss(model, shapes)
        torch.stack([result.sum() for result in results if result.requires_grad]).sum().backward()
    return live.peak


class LiveBytes(TorchDispatchMode):
    """Bytes of the storages that operations make inside this context, those of `apart` left out.

    now, peak: at this moment, and the most so far.
    """

    def __init__(self, apart: Iterable[torch.Tensor] = ()):
        super().__init__()
        self.now = self.peak = 0
        self._known = weakref.WeakSet(tensor.untyped_storage() for tensor in apart)

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        output = function(*args, **(kwargs or {}))
        for tensor in tree_leaves(output):
            if isinstance(tensor, torch.Tensor):
                self._add(tensor.untyped_storage())
        return output

    def _add(self, storage: torch.UntypedStorage) -> None:
        if storage in self._known:
            return
        self._known.add(storage)
        self.now += storage.nbytes()
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._remove, storage.nbytes())

    def _remove(self, size: int) -> None:
        self.now -= size


class Operations(TorchDispatchMode):
    """Counts what is dispatched inside this context.

    all: operations. kernels: those of them that make or change numbers. attention: calls of each kind of attention, by
    PyTorch's name of it; `math` if it takes no kernel for it, which shows by the softmax that nothing else takes.
    """

    def __init__(self) -> None:
        super().__init__()
        self.all = self.kernels = 0
        self.attention: Counter[str] = Counter()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name, returns = function._schema.name, function._schema.returns
        views = any(each.alias_info is not None and not each.alias_info.is_write for each in returns)
        self.all += 1
        self.kernels += not views and not any(free in name for free in ("empty", "detach", "_unsafe_view"))
        if "attention" in name or name == "aten::_safe_softmax":
            self.attention["math" if "softmax" in name else name.removeprefix("aten::")] += 1
        return function(*args, **(kwargs or {}))


def operations_a_token(decode: Callable[[int], Any]) -> tuple[float, float]:
    """Operations and kernels that one more token takes in `decode(tokens)`; what all lengths need does not count."""
    counted = []
    for tokens in (3, 5):
        with Operations() as operations:
            decode(tokens)
        counted.append(operations)
    return (counted[1].all - counted[0].all) / 2, (counted[1].kernels - counted[0].kernels) / 2


def _name_cpu(model: nn.Module) -> None:
    """Put fake tensors of the CPU in place of the model's meta tensors, inside a FakeTensorMode."""
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            fake = torch.empty(parameter.shape, dtype=parameter.dtype, device="cpu")
            setattr(module, name, nn.Parameter(fake, requires_grad=parameter.requires_grad))
        for name, buffer in module.named_buffers(recurse=False):
            setattr(module, name, torch.empty(buffer.shape, dtype=buffer.dtype, device="cpu"))


def _drop_gradient(parameter: torch.Tensor) -> None:
    parameter.grad = None


def _memory_efficient_attention(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor,
    scaling: float | None = None,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """What `scaled_dot_product_attention` does on a GPU with a boolean mask [U, 1, T, T]."""
    groups = query.size(1) // key.size(1)  # each head of the keys serves several of the queries, and is copied for them
    key, value = repeat_kv(key, groups), repeat_kv(value, groups)
    bias = torch.empty_like(attention_mask, dtype=query.dtype).expand(-1, query.size(1), -1, -1)
    output, *_rest = torch.ops.aten._scaled_dot_product_efficient_attention(
        query, key, value, bias, torch.is_grad_enabled(), 0.0, False, scale=scaling
    )
    return output.transpose(1, 2).contiguous(), None


AttentionInterface.register(_EFFICIENT, _memory_efficient_attention)
