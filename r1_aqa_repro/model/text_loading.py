"""Loading text-only Qwen2: policies, reward models and their tokenizer, with the guards of `loading`."""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from transformers import (
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    Qwen2ForCausalLM,
    Qwen2ForSequenceClassification,
)
from trl import ModelConfig
from trl.trainer.reward_trainer import suppress_seqcls_warning

from r1_aqa_repro.common.errors import Refused
from r1_aqa_repro.model.arguments import RopeArguments
from r1_aqa_repro.model.files import adapter_base, adapter_config
from r1_aqa_repro.model.folder import check_settings_files, check_template, folder_of
from r1_aqa_repro.model.loading import (
    TEXT_MODEL_TYPE,
    check_model_folder,
    check_pair,
    check_tensors,
    in_4_bits,
    load_adapter,
    load_complete,
    read_or_refuse,
)
from r1_aqa_repro.model.plain_text import keep_texts
from r1_aqa_repro.model.shared_attention import share_prefixes
from r1_aqa_repro.model.yarn import apply_rope_parameters

_SCORE_HEAD = "score.weight"
_HEADS = (_SCORE_HEAD, "lm_head.weight")  # where a new one is made the first may be missing, the other too many
_TRAIN_ONE = "Train one with r1_aqa_repro.train_reward_model."


@dataclass
class TextModelConfig(RopeArguments, ModelConfig):
    """TRL's ModelConfig, and another rotary embedding than the checkpoint's."""


def load_tokenizer(name_or_path: str | os.PathLike[str]) -> PreTrainedTokenizerBase:
    """The tokenizer, which keeps texts texts; it pads on the left, as generating needs it.

    Raises:
        Refused: no tokenizer can be read, or it has no vocabulary, chat template, end-of-turn or padding token.
    """
    where, remedy = str(name_or_path), "Copy the tokenizer of the base model into the folder."
    if (folder := folder_of(name_or_path)) is not None:
        check_settings_files(folder)
    tokenizer = read_or_refuse(
        lambda: AutoTokenizer.from_pretrained(name_or_path, padding_side="left", trust_remote_code=False),
        "tokenizer",
        where,
        remedy,
    )
    for attribute in ("chat_template", "eos_token", "pad_token"):
        if getattr(tokenizer, attribute) is None:
            raise Refused.because(where, f"the tokenizer has no {attribute.replace('_', ' ')}", remedy)
    if not tokenizer("text")["input_ids"]:  # without tokenizer.json transformers 5.23 knows the special tokens alone
        raise Refused.because(where, "the tokenizer has no vocabulary: every text would be empty", remedy)
    sample = "What is a sample?"
    check_template(tokenizer, [{"role": "user", "content": sample}], {sample: 1}, where)
    return keep_texts(tokenizer)


def take_rope(model: PreTrainedModel, config: PreTrainedConfig) -> None:
    """Give a Qwen2ForCausalLM that a library has loaded the rotary embeddings of `config`, a run's own perhaps."""
    own = model.config
    if own.rope_parameters != config.rope_parameters:
        own.rope_parameters, own.max_position_embeddings = config.rope_parameters, config.max_position_embeddings
        model.model.rotary_emb = type(model.model.rotary_emb)(own).to(model.device)


def load_policy(
    name_or_path: str | os.PathLike[str],
    dtype: str | torch.dtype = "float32",
    rope_parameters: Mapping[str, Any] | None = None,
    **options: Any,
) -> PreTrainedModel:
    """Load a Qwen2ForCausalLM (a folder holding a LoRA adapter: its base, with the adapter).

    `options` are `from_pretrained`'s.

    Raises:
        Refused: see `checked_config` and `load_complete`.
    """
    base = adapter_base(name_or_path)
    if base is not None:
        return load_adapter(load_policy(base, dtype, rope_parameters), Path(name_or_path))
    config = checked_config(name_or_path, rope_parameters)
    model = load_complete(Qwen2ForCausalLM, name_or_path, dtype, config=config, **options)
    share_prefixes(model)
    return model


def load_reward_model(
    name_or_path: str | os.PathLike[str],
    tokenizer: PreTrainedTokenizerBase,
    dtype: str | torch.dtype = "float32",
    rope_parameters: Mapping[str, Any] | None = None,
    *,
    new_head: bool = False,
) -> PreTrainedModel:
    """Load a Qwen2ForSequenceClassification with one output, read at the last token, which it finds by the tokenizer's
    padding token (a folder holding a LoRA adapter: its base, with the adapter and its head).

    With `new_head` a policy is taken too, and the head is drawn from the random generator.

    Raises:
        Refused: see `checked_config` and `load_complete`; without `new_head` also a policy.
    """
    base = adapter_base(name_or_path)
    if base is not None:
        model = load_reward_model(base, tokenizer, dtype, rope_parameters, new_head=True)
        # merged: TRL takes a PEFT model for no reward model, and PPO's critic reads the layer below the head
        return load_adapter(model, Path(name_or_path)).merge_and_unload().requires_grad_(True)
    config = checked_config(name_or_path, rope_parameters)
    config.num_labels, config.pad_token_id = 1, tokenizer.pad_token_id
    if not new_head:
        _require_head(name_or_path)
    accepted = _HEADS if new_head else ()
    with suppress_seqcls_warning() if new_head else nullcontext():
        return load_complete(Qwen2ForSequenceClassification, name_or_path, dtype, accepted, config=config)


def check_text_model(
    name_or_path: str | os.PathLike[str],
    rope_parameters: Mapping[str, Any] | None = None,
    *,
    makes_head: bool = False,
) -> tuple[PreTrainedConfig, PreTrainedTokenizerBase]:
    """Configuration and tokenizer of a policy, reading no weights but their names and shapes; with `makes_head` of what
    can become a reward model.

    Raises:
        Refused: see `checked_config`, `load_tokenizer`, `check_pair` and `check_tensors`.
    """
    config, tokenizer = checked_config(name_or_path, rope_parameters), load_tokenizer(name_or_path)
    check_pair(config, tokenizer, str(name_or_path))
    if adapter_config(name_or_path) is None:
        model_class, accepted = (Qwen2ForSequenceClassification, _HEADS) if makes_head else (Qwen2ForCausalLM, ())
        check_tensors(model_class, name_or_path, accepted, config)
    return config, tokenizer


def check_reward_model(name_or_path: str | os.PathLike[str]) -> PreTrainedConfig:
    """The configuration of a reward model, reading no weights but their names.

    Raises:
        Refused: see `check_model_folder`, `load_tokenizer` and `check_pair`; a folder without a score head or with
            another number of outputs.
    """
    missing = f"It should be a reward model: give its folder or hub id. {_TRAIN_ONE}"
    config = check_model_folder(name_or_path, (TEXT_MODEL_TYPE,), missing)
    check_pair(config, load_tokenizer(name_or_path), str(name_or_path))
    _require_head(name_or_path)
    if adapter_base(name_or_path) is None and config.num_labels != 1:
        raise Refused.because(str(name_or_path), f"the model has {config.num_labels} outputs, not 1", _TRAIN_ONE)
    return config


def _require_head(name_or_path: str | os.PathLike[str]) -> None:
    adapter, names = adapter_config(name_or_path), set()
    for file in Path(name_or_path).glob("*.safetensors"):
        with safe_open(file, framework="pt") as opened:
            names.update(opened.keys())
    has_none = names and _SCORE_HEAD not in names if adapter is None else adapter.get("task_type") != "SEQ_CLS"
    if has_none:
        raise Refused.because(str(name_or_path), "the model has no score head: it is no reward model", _TRAIN_ONE)


def checked_config(
    name_or_path: str | os.PathLike[str], rope_parameters: Mapping[str, Any] | None = None
) -> PreTrainedConfig:
    """The configuration of a Qwen2 in a folder that can be loaded, with other rotary embeddings if asked.

    Raises:
        Refused: see `check_model_folder` and `apply_rope_parameters`.
    """
    config = check_model_folder(name_or_path, (TEXT_MODEL_TYPE,))
    if rope_parameters is not None:
        apply_rope_parameters(config, rope_parameters)
    return config


def load_configured_policy(config: TextModelConfig) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Policy and tokenizer that a training configuration names."""
    name = str(config.model_name_or_path)
    policy = load_policy(name, config.dtype or "float32", config.rope, **in_4_bits(config))
    return policy, load_tokenizer(name)


def load_configured_reference(config: TextModelConfig) -> PreTrainedModel | None:
    """The policy once more, which stays as it starts; None with an adapter, whose base is the reference."""
    return None if config.use_peft else load_configured_policy(config)[0]


def load_configured_reward_model(config: TextModelConfig) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """What a training configuration names as a reward model, with its tokenizer; a policy gets a new head."""
    name = str(config.model_name_or_path)
    tokenizer = load_tokenizer(name)
    return load_reward_model(name, tokenizer, config.dtype or "float32", config.rope, new_head=True), tokenizer
