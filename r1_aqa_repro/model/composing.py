"""A Qwen2-Audio from pretrained parts: Whisper's encoder, a Qwen2 language model, and a fresh projector between them.

Qwen2-Audio (arXiv 2407.10759, section 2) was made like this: its encoder was Whisper-large-v3's, its language model
Qwen-7B, and what is new in its architecture is one linear layer and three tokens.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import nn
from transformers import (
    GenerationConfig,
    PreTrainedTokenizerBase,
    Qwen2AudioConfig,
    Qwen2AudioEncoderConfig,
    Qwen2AudioForConditionalGeneration,
    Qwen2AudioProcessor,
    Qwen2ForCausalLM,
    WhisperConfig,
    WhisperFeatureExtractor,
)
from transformers.models.whisper.modeling_whisper import WhisperEncoder

from r1_aqa_repro.common.errors import Problem
from r1_aqa_repro.data.audio import SAMPLING_RATE
from r1_aqa_repro.data.prompts import END_OF_TURN

PADDING = "<|endoftext|>"  # Qwen2-Audio's own
_CHATML = ("<|im_start|>", END_OF_TURN, PADDING)
AUDIO_TOKENS = ("<|AUDIO|>", "<|audio_bos|>", "<|audio_eos|>")  # in the order that Qwen2-Audio has them
TOLERANCE = 1e-4  # float32: the same products in another order; logits and features are of size 1 to 30
# letters, digits, white space, other scripts and characters of several tokens
_TEXTS = (
    "Which animal barks?\nChoose from: (A) a cat (B) the dog.\n\n\tIn 2024, 3.14 weren't: naïve café, 犬が吠える 🐕.",
    "def f(x):\n    return x ** 2  # <answer>(C) rain</answer>",
)


@dataclass(frozen=True)
class Originals:
    """What the parts compute by themselves, to compare a composed model with.

    Attributes:
        features: `whisper_features` of a `sample_clip` that fills the window, [tokens, d_model].
        ids: of the language model's tokenizer, of texts as they are and as conversations.
        logits: of the language model for each of `ids`, [len, vocabulary].
    """

    features: torch.Tensor
    ids: list[list[int]]
    logits: list[torch.Tensor]


def check_tokens(tokenizer: PreTrainedTokenizerBase, where: str) -> list[Problem]:
    """A problem for each token that Qwen2-Audio's chat template and padding need and the tokenizer lacks."""
    known, remedy = (
        tokenizer.get_vocab(),
        "Give a Qwen2 or Qwen2.5 that was made with ChatML, as all of them by Qwen are.",
    )
    return [Problem(where, f"the tokenizer has no token {token}", remedy) for token in _CHATML if token not in known]


def check_window(seconds: int, extractor: WhisperFeatureExtractor, config: WhisperConfig, where: str) -> list[Problem]:
    """A problem for all in which the feature extractor is not this Whisper's, and for a window longer than its own."""
    remedy = "Use the preprocessor_config.json that belongs to the model."
    problems = [
        Problem(where, f"the feature extractor has {what.format(found)} instead of {expected}", remedy)
        for what, found, expected in (
            ("{} mel bins", extractor.feature_size, config.num_mel_bins),
            ("a window of {} frames", extractor.nb_max_frames, 2 * config.max_source_positions),
            ("{} samples a second", extractor.sampling_rate, SAMPLING_RATE),
        )
        if found != expected
    ]
    if seconds > extractor.chunk_length:
        what = f"{seconds} s are more than the {extractor.chunk_length} s that this Whisper hears"
        problems.append(Problem("--window-seconds", what, f"Give at most {extractor.chunk_length}."))
    return problems


def compose_processor(
    tokenizer: PreTrainedTokenizerBase, extractor: WhisperFeatureExtractor, window_seconds: int
) -> Qwen2AudioProcessor:
    """The processor, with Qwen2-Audio's chat template.

    Args:
        tokenizer: of the language model; changed in place. The audio tokens get numbers behind its own, but for those
            that it has. It ends at `<|im_end|>` and pads on the left with `<|endoftext|>`.
        extractor: Whisper's own.
        window_seconds: of the clips that are heard; longer ones are cut.
    """
    known = tokenizer.get_vocab()
    tokenizer.add_tokens([token for token in AUDIO_TOKENS if token not in known], special_tokens=True)
    tokenizer.eos_token, tokenizer.pad_token, tokenizer.padding_side = END_OF_TURN, PADDING, "left"
    heard = WhisperFeatureExtractor(
        feature_size=extractor.feature_size,
        sampling_rate=extractor.sampling_rate,
        hop_length=extractor.hop_length,
        chunk_length=window_seconds,
        n_fft=extractor.n_fft,
        return_attention_mask=True,
    )
    tokenizer.chat_template = None
    processor = Qwen2AudioProcessor(feature_extractor=heard, tokenizer=tokenizer)
    tokenizer.chat_template = processor.chat_template  # in the tokenizer's file programs of all ages find it
    return processor


def compose_model(
    encoder: WhisperEncoder,
    language_model: Qwen2ForCausalLM,
    processor: Qwen2AudioProcessor,
    new_tokens: list[int],
    features: torch.Tensor,
    seed: int,
) -> Qwen2AudioForConditionalGeneration:
    """The model, in float32. It takes the parts' weights over and copies none but embeddings and head.

    The positions of the encoder are the first of Whisper's. New tokens are embedded as the mean of the others, and
    their logit is the mean of the others' (Hewitt 2021, "Initializing New Word Embeddings for Pretrained Language
    Models"), so that greedy decoding never says one. `<|AUDIO|>` is embedded as zeros, which nothing reads (audio takes
    its places): with that, a head that was tied to the embeddings is no longer equal to them (`loading.check_head`).

    The projector's weights are drawn such that its outputs are as large as the language model's embeddings (root mean
    square); its bias is zero.

    Args:
        encoder, language_model: in float32; not to be used by themselves afterwards.
        processor: as `compose_processor` made it.
        new_tokens: numbers of the audio tokens that the language model has not seen.
        features: [tokens, d_model] of any clip, whose size the projector is scaled by.
        seed: of the projector.
    """
    tokenizer, text = processor.tokenizer, language_model.config
    known = min(new_tokens, default=len(tokenizer))
    embeddings, head = (
        _with_new_rows(layer.weight.detach(), known, new_tokens)
        for layer in (language_model.get_input_embeddings(), language_model.get_output_embeddings())
    )
    size = _root_mean_square(embeddings[:known]) / (_root_mean_square(features) * features.size(-1) ** 0.5)
    audio_token = tokenizer.convert_tokens_to_ids(processor.audio_token)
    embeddings[audio_token] = 0

    positions = processor.feature_extractor.nb_max_frames // 2  # the second convolution halves them
    heard = encoder.config
    audio = Qwen2AudioEncoderConfig(
        num_mel_bins=heard.num_mel_bins,
        d_model=heard.d_model,
        encoder_layers=heard.encoder_layers,
        encoder_attention_heads=heard.encoder_attention_heads,
        encoder_ffn_dim=heard.encoder_ffn_dim,
        activation_function=heard.activation_function,
        max_source_positions=positions,
    )
    text.vocab_size, text.tie_word_embeddings = len(embeddings), False
    text.eos_token_id, text.pad_token_id, text.bos_token_id = tokenizer.eos_token_id, tokenizer.pad_token_id, None
    text._name_or_path = ""  # the same parts elsewhere are the same model
    config = Qwen2AudioConfig(audio_config=audio, text_config=text, audio_token_index=audio_token)
    with torch.device("meta"):
        model = Qwen2AudioForConditionalGeneration._from_config(config, dtype=torch.float32, attn_implementation="sdpa")

    weights = encoder.state_dict()
    weights["embed_positions.weight"] = weights["embed_positions.weight"][:positions].clone()
    model.model.audio_tower.load_state_dict(weights, assign=True)
    model.model.language_model = language_model.model
    model.set_input_embeddings(nn.Embedding.from_pretrained(embeddings, freeze=False))
    model.lm_head.weight = nn.Parameter(head)
    projector = model.model.multi_modal_projector.linear
    drawn = torch.randn(projector.weight.shape, generator=torch.Generator().manual_seed(seed))
    projector.weight, projector.bias = nn.Parameter(size * drawn), nn.Parameter(torch.zeros(projector.out_features))
    model.generation_config = GenerationConfig(
        eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id, do_sample=False
    )
    return model.eval()


def _root_mean_square(tensor: torch.Tensor) -> float:
    return float(tensor.norm()) / tensor.numel() ** 0.5


def _with_new_rows(weight: torch.Tensor, known: int, new_tokens: list[int]) -> torch.Tensor:
    """A copy of [vocabulary, hidden], larger if it has to be, in which the rows of `new_tokens` are the mean of the
    first `known`, those of the tokenizer's own tokens. Other rows, such as those a vocabulary is filled up with, stay.
    """
    mean = weight[:known].mean(0)
    missing = max(0, max(new_tokens, default=0) + 1 - len(weight))
    larger = torch.cat([weight, mean.expand(missing, -1)])
    larger[new_tokens] = mean
    return larger


def sample_clip(seconds: int, sampling_rate: int) -> np.ndarray:
    """A tone that rises to 4 kHz, in noise, the same every time; float32 [samples].

    Its last 25 ms are silent: a mel frame there sees what comes after the clip, which is silence for Whisper, and with
    a window of this length the clip's end once more, backwards.
    """
    time = np.arange(seconds * sampling_rate) / sampling_rate
    tone = np.sin(2 * np.pi * (100 + 1950 * time / seconds) * time)
    clip = 0.4 * tone + 0.02 * np.random.default_rng(0).standard_normal(len(time))
    clip[-sampling_rate // 40 :] = 0
    return clip.astype(np.float32)


@torch.inference_mode()
def whisper_features(encoder: WhisperEncoder, extractor: WhisperFeatureExtractor, clip: np.ndarray) -> torch.Tensor:
    """What Whisper's own feature extractor and modules make of the frames of a clip, [tokens, d_model] in float32.

    Whisper by itself attends to 30 s whatever a clip has, so that no encoder with another window computes the same.
    This is Whisper on the first frames of its 30 s, as many as the clip has, and with what Qwen2-Audio adds: two
    positions are averaged before the last layer norm.
    """
    heard = extractor(clip, sampling_rate=extractor.sampling_rate, return_tensors="pt")
    mel = heard.input_features[..., : len(clip) // extractor.hop_length]
    hidden = nn.functional.gelu(encoder.conv2(nn.functional.gelu(encoder.conv1(mel)))).transpose(1, 2)
    hidden = hidden + encoder.embed_positions.weight[: hidden.size(1)]
    for layer in encoder.layers:
        hidden = layer(hidden, None)
    pooled = nn.functional.avg_pool1d(hidden.transpose(1, 2), 2).transpose(1, 2)
    return encoder.layer_norm(pooled)[0]


def text_ids(tokenizer: PreTrainedTokenizerBase) -> list[list[int]]:
    """`Originals.ids`: also with the marks of ChatML, which are spelled out here."""
    turns = f"<|im_start|>user\n{_TEXTS[0]}<|im_end|>\n<|im_start|>assistant\n"
    return [tokenizer(text)["input_ids"] for text in (*_TEXTS, turns)]


@torch.inference_mode()
def text_logits(model: nn.Module, ids: list[list[int]]) -> list[torch.Tensor]:
    """`Originals.logits`."""
    return [model(input_ids=torch.tensor([one])).logits[0] for one in ids]


@torch.inference_mode()
def deviations(
    model: Qwen2AudioForConditionalGeneration,
    processor: Qwen2AudioProcessor,
    originals: Originals,
    new_tokens: list[int],
) -> dict[str, float]:
    """How far a composed model, loaded with `loading.load`, is from its parts at most: `features` and `logits` (of all
    but the new tokens), and `token ids`, infinity if a text has others than before."""
    extractor = processor.feature_extractor
    clip = sample_clip(extractor.chunk_length, extractor.sampling_rate)
    heard = extractor(clip, sampling_rate=extractor.sampling_rate, return_attention_mask=True, return_tensors="pt")
    features = model.model.audio_tower.encode(heard.input_features, heard.attention_mask).T
    apart = {"features": _apart(features, originals.features), "token ids": 0.0, "logits": 0.0}
    if text_ids(processor.tokenizer) != originals.ids:
        return apart | {"token ids": float("inf")}
    for logits, expected in zip(text_logits(model, originals.ids), originals.logits, strict=True):
        old = [column for column in range(expected.size(-1)) if column not in new_tokens]
        apart["logits"] = max(apart["logits"], _apart(logits[:, old], expected[:, old]))
    return apart


def _apart(found: torch.Tensor, expected: torch.Tensor) -> float:
    """The largest difference; infinity between shapes or if one of them is not a number."""
    if found.shape != expected.shape:
        return float("inf")
    return float((found - expected).abs().nan_to_num(nan=float("inf")).max())
