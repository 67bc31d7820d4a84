"""Loading policy and processor, with a guard for everything known to make Qwen2-Audio silently wrong."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from transformers import (
    AutoConfig,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    ProcessorMixin,
    Qwen2AudioForConditionalGeneration,
    Qwen2AudioProcessor,
    Qwen2ForCausalLM,
    WhisperModel,
)
from transformers.integrations import deepspeed as integration
from transformers.integrations.deepspeed import is_deepspeed_zero3_enabled
from transformers.utils import logging
from trl import ModelConfig, get_quantization_config

from r1_aqa_repro.common.errors import Refused
from r1_aqa_repro.data.audio import SAMPLING_RATE
from r1_aqa_repro.data.prompts import PROMPT_STYLES, build_messages
from r1_aqa_repro.data.questions import AudioQuestion
from r1_aqa_repro.model.audio_encoder import make_trimmable
from r1_aqa_repro.model.files import adapter_base, adapter_config, snapshot_of
from r1_aqa_repro.model.folder import check_files, check_finite, check_settings_files, check_template, folder_of
from r1_aqa_repro.model.plain_text import keep_texts
from r1_aqa_repro.model.shared_attention import share_prefixes
from r1_aqa_repro.model.yarn import declare_reach

MODEL_TYPE, TEXT_MODEL_TYPE, ENCODER_MODEL_TYPE = "qwen2_audio", "qwen2", "whisper"
EXAMPLES = {
    MODEL_TYPE: "Qwen/Qwen2-Audio-7B-Instruct",
    TEXT_MODEL_TYPE: "Qwen/Qwen2-7B-Instruct",
    ENCODER_MODEL_TYPE: "openai/whisper-small",
}
_HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")
_CLASSES = {
    MODEL_TYPE: Qwen2AudioForConditionalGeneration,
    TEXT_MODEL_TYPE: Qwen2ForCausalLM,
    ENCODER_MODEL_TYPE: WhisperModel,
}


def read_or_refuse(read: Callable[[], Any], what: str, where: str, remedy: str) -> Any:
    """What transformers reads.

    Raises:
        Refused: it cannot; `what` was to be read.
    """
    try:
        return read()
    except Refused:
        raise
    except Exception as error:  # with files that somebody wrote by hand a library may raise anything
        reason = (str(error).splitlines() or [""])[0] or type(error).__name__
        raise Refused.because(where, f"no {what} can be read there ({reason})", remedy) from error


def read_config(
    name_or_path: str | os.PathLike[str], model_types: Sequence[str], remedy: str, **options: Any
) -> PreTrainedConfig:
    """The configuration of a model that can be built, without code of its own; `options` are `from_pretrained`'s.

    Raises:
        Refused: it cannot be read, is none of these types, or no model can be built of it; it attends to a window.
    """
    where = str(name_or_path)
    config = read_or_refuse(
        # a name of an attention may otherwise be that of a program on the hub
        lambda: AutoConfig.from_pretrained(
            name_or_path, trust_remote_code=False, attn_implementation="sdpa", **options
        ),
        "model",
        where,
        remedy,
    )
    if config.model_type not in model_types:
        what = f"the model is a {config.model_type}, not a {' or '.join(model_types)}"
        raise Refused.because(where, what, remedy)

    def build() -> None:
        with _whole_models():
            num_parameters(config)
        if config.model_type == ENCODER_MODEL_TYPE:
            return
        text = config.get_text_config()
        declare_reach(text)
        if set(text.layer_types) != {"full_attention"}:  # a window would end at a shared prompt
            what = f"layers of it attend to a window of {text.sliding_window} tokens, which is not supported here"
            remedy = "Take use_sliding_window and layer_types out of config.json: for shorter texts nothing changes."
            raise Refused.because(where, what, remedy)

    read_or_refuse(build, "configuration of a model", where, remedy)
    return config


def num_parameters(config: PreTrainedConfig) -> int:
    """Parameters of the model of a configuration (Qwen2-Audio, Qwen2, Whisper), without memory for them."""
    with torch.device("meta"):
        return int(_CLASSES[config.model_type](config).num_parameters())


def check_model_folder(
    name_or_path: str | os.PathLike[str], model_types: Sequence[str] = (MODEL_TYPE,), remedy: str | None = None
) -> PreTrainedConfig:
    """The configuration of a model (a folder or a hub id; of a LoRA adapter: its base's), reading nothing else.

    `remedy` is what to do if there is none; another model of these types unless given.

    Raises:
        Refused: the folder or id cannot be read, is none of these types, or is incomplete.
    """
    where, folder = str(name_or_path), folder_of(name_or_path)
    remedy = remedy or f"Give a {' or '.join(model_types)} folder or hub id, such as {EXAMPLES[model_types[0]]}."
    base = adapter_base(name_or_path)
    if folder is None and not _HUB_ID.fullmatch(where):
        raise Refused.because(where, "no model can be read there (there is no such folder)", remedy)
    if folder is not None:
        if base is None and not (folder / "config.json").is_file():
            raise Refused.because(where, "the folder holds no config.json", remedy)
        check_files(folder, remedy)
    return read_config(name_or_path, model_types, remedy) if base is None else check_model_folder(base, model_types)


def load_processor(name_or_path: str | os.PathLike[str]) -> ProcessorMixin:
    """Load the processor, which keeps texts texts; its tokenizer pads on the left, its feature extractor on the right.

    `AutoProcessor.from_pretrained(..., padding_side="left")`, TRL's own default, would also pad the *audio* on the
    left, so that the model hears leading silence; hence the tokenizer's side is set here and nowhere else.

    `AutoProcessor` would want a `config.json` beside it, which an adapter's folder has not.

    Raises:
        Refused: no processor can be read, or its audio padding is not on the right.
    """
    where, remedy = str(name_or_path), "Copy the base model's into the folder."
    if (folder := folder_of(name_or_path)) is not None:
        check_settings_files(folder)
    read = Qwen2AudioProcessor.from_pretrained
    processor = read_or_refuse(lambda: read(where, trust_remote_code=False), "processor", where, remedy)
    extractor = processor.feature_extractor
    if extractor.padding_side != "right":
        what = "the feature extractor pads on the left: the model would hear leading silence"
        remedy = 'Set "padding_side": "right" for the feature extractor in the processor files.'
        raise Refused.because(where, what, remedy)
    if extractor.sampling_rate != SAMPLING_RATE:
        what = f"the feature extractor takes {extractor.sampling_rate} samples a second, clips have {SAMPLING_RATE}"
        raise Refused.because(where, what, remedy)
    processor.tokenizer.padding_side = "left"
    sample = AudioQuestion("sample", Path("clip.wav"), "What is heard?", ("rain", "wind"), None)
    shown = {sample.question: 1, processor.audio_token: 1}
    check_template(processor, build_messages(sample, PROMPT_STYLES[0]), shown, where)
    return keep_texts(processor)


def load_model(
    name_or_path: str | os.PathLike[str],
    dtype: str | torch.dtype = "float32",
    base: str | os.PathLike[str] | None = None,
    **options: Any,
) -> PreTrainedModel:
    """Load a Qwen2AudioForConditionalGeneration (a folder holding a LoRA adapter: its base, with the adapter).

    `base` stands in for the base model that an adapter's configuration names; `options` are `from_pretrained`'s.

    Raises:
        Refused: see `check_model_folder` and `load_complete`; a head tied to the embeddings.
    """
    if adapter_config(name_or_path) is not None:
        return load_adapter(load_model(base or str(adapter_base(name_or_path)), dtype), Path(name_or_path))
    check_model_folder(name_or_path)
    model = load_complete(Qwen2AudioForConditionalGeneration, name_or_path, dtype, **options)
    check_head(model, str(name_or_path))
    # sinusoids that Qwen2-Audio keeps frozen; transformers 5.23 forgets that when it loads a checkpoint
    model.model.audio_tower.embed_positions.requires_grad_(False)
    prepare_for_sharing(model)
    if is_deepspeed_zero3_enabled():
        # transformers 5.23 keeps every renaming it knows, used or not, and saving would apply them all in reverse:
        # `language_model.model.model.*`, names that no other program knows
        model._weight_conversions = None
    return model


def check_tensors(
    model_class: type[PreTrainedModel],
    name_or_path: str | os.PathLike[str],
    accepted: Collection[str] = (),
    config: PreTrainedConfig | None = None,
) -> None:
    """Compare names and shapes of all tensors of a model's files with those that the model has, reading no weights:
    `from_pretrained` by itself fills missing tensors at random and drops those that are too many.

    Raises:
        Refused: there are such tensors, other than those `accepted`, or tensors of another shape.
    """
    where, remedy = str(name_or_path), "Use a complete checkpoint of this kind of model."
    options: dict[str, Any] = {"config": config, "attn_implementation": "sdpa", "use_safetensors": True}
    options |= {"device_map": "meta", "output_loading_info": True, "ignore_mismatched_sizes": True}
    with _whole_models():
        _, report = read_or_refuse(lambda: model_class.from_pretrained(where, **options), "model", where, remedy)
    for what in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        names = {key if isinstance(key, str) else key[0] for key in report[what]}  # with the shapes of a mismatch
        keys = sorted(names - set(accepted))
        if keys:
            found = f"the weights have {len(keys)} {what.replace('_', ' ')}, such as {keys[0]}"
            raise Refused.because(
                where, found, f"transformers would fill them at random or drop them: {remedy[0].lower()}{remedy[1:]}"
            )


def load_complete(
    model_class: type[PreTrainedModel],
    name_or_path: str | os.PathLike[str],
    dtype: str | torch.dtype,
    accepted: Collection[str] = (),
    config: PreTrainedConfig | None = None,
    **options: Any,
) -> PreTrainedModel:
    """`from_pretrained`, once it is known to find all tensors.

    Raises:
        Refused: see `check_tensors` and `check_finite`.
    """
    check_tensors(model_class, name_or_path, accepted, config)
    if (folder := folder_of(name_or_path) or snapshot_of(name_or_path)) is not None:
        check_finite(folder)
    options |= {"config": config, "attn_implementation": "sdpa", "use_safetensors": True}
    model = model_class.from_pretrained(name_or_path, dtype=dtype, **options)
    for module in model.modules():
        # bitsandbytes on a CPU repacks the weights of a model that answers, and its training goes wrong from there on
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False
    return model


@contextmanager
def _whole_models() -> Iterator[None]:
    """Inside, transformers 5.23 builds models as it does without ZeRO-3, where alone it compares all their tensors, and
    draws no bar for weights that it does not read."""
    held, integration._hf_deepspeed_config_weak_ref = integration._hf_deepspeed_config_weak_ref, None
    has_bar = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        integration._hf_deepspeed_config_weak_ref = held
        if has_bar:
            logging.enable_progress_bar()


def check_reference(policy: PreTrainedModel, reference: PreTrainedModel) -> None:
    """Compare the weights of a reference model that a library has loaded to the policy's before any step, in the
    reference's precision. With ZeRO-3 all processes have to call it.

    Raises:
        Refused: they differ: the KL divergence would be to another model than the start.
    """
    gathered: Any = nullcontext
    if is_deepspeed_zero3_enabled():
        import deepspeed

        gathered = deepspeed.zero.GatheredParameters
    own, others = (dict(model.named_parameters()) for model in (policy, reference))
    differing = sorted(own.keys() ^ others.keys())
    for name, weights in () if differing else others.items():
        with gathered(own[name]), gathered(weights):
            if not torch.equal(own[name].to(weights.device, weights.dtype), weights):
                differing.append(name)
    if differing:
        what = f"the reference model's weights are not the policy's in {len(differing)} tensors, such as {differing[0]}"
        raise Refused.because(policy.name_or_path, what, "Use a folder whose weights transformers loads completely.")


def load_adapter(base: PreTrainedModel, folder: Path) -> PreTrainedModel:
    """The base model with the adapter in `folder`, every tensor of which must find its place.

    Raises:
        Refused: the adapter has no weights, or they do not fit; PEFT goes on with fresh ones and a warning.
    """
    from peft import PeftModel, get_peft_model_state_dict
    from peft.utils import load_peft_weights

    if not any(folder.glob("adapter_model*.safetensors")):
        raise Refused.because(str(folder), "the folder holds no adapter weights", "Copy the adapter again.")
    check_files(folder, "Copy the adapter again.")
    check_finite(folder)
    try:
        model = PeftModel.from_pretrained(base, str(folder))
        taken = set(get_peft_model_state_dict(model, save_embedding_layers=False))
        differing = sorted(set(load_peft_weights(str(folder), device="cpu")) ^ taken)
        wrong = f"{len(differing)} tensors have no counterpart, such as {differing[0]}" if differing else ""
    except Exception as error:  # shapes; modules that the base lacks; settings that PEFT cannot read
        wrong = (str(error).splitlines() or [type(error).__name__])[0]
    if wrong:
        what = f"the adapter does not fit its base model {base.name_or_path} ({wrong})"
        raise Refused.because(str(folder), what, "Give the base model that it was trained on.")
    return model


def base_of(model: torch.nn.Module) -> PreTrainedModel:
    """The model inside PEFT's wrapper, or the model itself if it has none."""
    from peft import PeftModel

    return model.get_base_model() if isinstance(model, PeftModel) else model


def prepare_for_sharing(model: PreTrainedModel) -> None:
    """Let a Qwen2-Audio (not wrapped by PEFT) take trimmed clips and prompts that several completions share.

    Neither changes what it computes for anything else, nor what is saved.
    """
    make_trimmable(model)
    if model.config._attn_implementation == "sdpa":
        share_prefixes(model)


def freeze(model: PreTrainedModel, trained_parts: str) -> None:
    """Leave only the wanted parts of a Qwen2-Audio trainable: `all` as in the paper, `no_encoder` for all but the audio
    encoder, `projector` for the layer between encoder and language model alone, `language_model` for what is behind
    it, head and embeddings too."""
    if trained_parts in ("no_encoder", "language_model"):
        model.model.audio_tower.requires_grad_(False)
    if trained_parts == "language_model":
        model.model.multi_modal_projector.requires_grad_(False)
    elif trained_parts == "projector":
        model.requires_grad_(False)
        model.model.multi_modal_projector.requires_grad_(True)


def check_head(model: PreTrainedModel, where: str) -> None:
    """Refuse a model whose lm_head is its input embeddings: it generates audio markers only. Some versions of
    transformers (5.10.0 to 5.10.3) tie them.

    Raises:
        Refused: they are the same tensor, or equal ones, as a model that was tied and then saved has them.
    """
    head, embeddings = model.get_output_embeddings().weight, model.get_input_embeddings().weight
    if head is embeddings or (head.numel() > 0 and torch.equal(head, embeddings)):  # empty: ZeRO-3 has the parts
        what = "lm_head is tied to the embeddings, which Qwen2-Audio's is not"
        raise Refused.because(where, what, "Use transformers 5.23.0.")


def check_pair(config: PreTrainedConfig, processor: ProcessorMixin | PreTrainedTokenizerBase, where: str) -> None:
    """Refuse a processor, or a tokenizer, that does not fit the model: vocabulary, audio token, mel bins, window.

    Raises:
        Refused: with every mismatch found.
    """
    tokenizer, kind = tokenizer_of(processor), "tokenizer"
    # the numbers of tokens may have gaps
    tokens, embeddings = max(tokenizer.get_vocab().values()) + 1, config.get_text_config().vocab_size
    wrong = [f"{tokens} tokens for {embeddings} embeddings"] if tokens > embeddings else []
    if tokenizer is not processor:
        kind, extractor, encoder = "processor", processor.feature_extractor, config.audio_config
        window = 2 * encoder.max_source_positions  # frames; the second convolution halves them
        for what, found, expected in (
            ("audio token {}", tokenizer.convert_tokens_to_ids(processor.audio_token), config.audio_token_id),
            ("{} mel bins", extractor.feature_size, encoder.num_mel_bins),
            ("a window of {} frames", extractor.nb_max_frames, window),
        ):
            if found != expected:
                wrong.append(f"{what.format(found)} instead of {expected}")
    if wrong:
        what = f"the {kind} does not fit the model: {'; '.join(wrong)}"
        raise Refused.because(where, what, f"Use the {kind} that belongs to the checkpoint.")


def load(
    name_or_path: str | os.PathLike[str], dtype: str | torch.dtype = "float32", **options: Any
) -> tuple[PreTrainedModel, ProcessorMixin]:
    """Model and processor of one checkpoint, checked against each other; `options` are `from_pretrained`'s."""
    processor = load_processor(name_or_path)
    model = load_model(name_or_path, dtype, **options)
    check_pair(model.config, processor, str(name_or_path))
    return model, processor


def load_configured(config: ModelConfig) -> tuple[PreTrainedModel, ProcessorMixin]:
    """`load` for the model that a training configuration names."""
    return load(str(config.model_name_or_path), config.dtype or "float32", **in_4_bits(config))


def in_4_bits(config: ModelConfig) -> dict[str, Any]:
    """`from_pretrained`'s options for the layers of the language model in 4 bits (QLoRA, arXiv 2305.14314); none unless
    `load_in_4bit`.

    Embeddings and head stay as `dtype` has them, as in the paper, and so do audio encoder and projector: clips are
    heard as the base model hears them, for 1 GB more.
    """
    quantization = get_quantization_config(config)
    if quantization is None:
        return {}
    quantization.llm_int8_skip_modules = ["lm_head", "model.audio_tower", "model.multi_modal_projector"]
    return {"quantization_config": quantization, "device_map": {"": PartialState().device}}


def widen_adapter(model: torch.nn.Module) -> None:
    """The adapter of a base in 4 bits in float32, as PEFT has every other: TRL casts it to bfloat16, where the steps of
    a small learning rate are below the resolution."""
    if getattr(base_of(model), "is_loaded_in_4bit", False):
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.data = parameter.data.float()


def tokenizer_of(processor: ProcessorMixin | PreTrainedTokenizerBase) -> PreTrainedTokenizerBase:
    """The tokenizer of a processor; a tokenizer itself."""
    return getattr(processor, "tokenizer", processor)


def eos_token_ids(model: PreTrainedModel, processor: ProcessorMixin | PreTrainedTokenizerBase) -> list[int]:
    """Every token that ends a completion: the tokenizer's end of turn and those of the generation config."""
    declared: Any = model.generation_config.eos_token_id
    ids = [] if declared is None else [declared] if isinstance(declared, int) else list(declared)
    return list(dict.fromkeys([tokenizer_of(processor).eos_token_id, *ids]))
