"""Compose a Qwen2-Audio from pretrained parts: Whisper's encoder, a Qwen2 language model, and a fresh projector.

    python -m r1_aqa_repro.compose --encoder openai/whisper-small --language-model Qwen/Qwen2-0.5B-Instruct \\
        --window-seconds 10 --out models/small

The encoder is that of any Whisper (80 or 128 mel bins), the language model any Qwen2 or Qwen2.5 for text (tied head or
not), each a folder or a hub id. The folder is a Qwen2-Audio like any other, which hears and reads as its parts do and
has not learned yet what one has to do with the other: r1_aqa_repro.align is the next step.

Weights are written in float32, the one type that holds those of both parts exactly (Whisper's are float16 or float32,
Qwen2's bfloat16), and that a small model trains in. Before the folder gets its name it is loaded as every command here
loads a model; features and logits that differ from the parts' own by more than 1e-4 are refused.

Exit codes: 0 done; 1 what was written is not what the parts are, or the disk filled up; 2 refused before anything was
written; 130 interrupted, nothing is left.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from r1_aqa_repro.common.console import Options, not_negative, positive, say
from r1_aqa_repro.common.errors import EXIT_DONE, Failed, Problem, Refused, answer_at_once, collecting, command
from r1_aqa_repro.common.escaping import code
from r1_aqa_repro.common.files import lock_beside, output_folder, size_of, sole_use, whole_folder, write_atomically


def _parser() -> Options:
    parser = Options(__doc__, "python -m r1_aqa_repro.compose")
    add = parser.add_argument
    add("--encoder", required=True, metavar="DIR_OR_HUB_ID", help="a Whisper, such as openai/whisper-small")
    add(
        "--language-model",
        required=True,
        metavar="DIR_OR_HUB_ID",
        help="a Qwen2 or Qwen2.5 for text, such as Qwen/Qwen2-0.5B-Instruct",
    )
    add("--window-seconds", required=True, type=positive, metavar="S", help="of a clip that are heard, 1 to 30")
    add("--out", required=True, type=output_folder, metavar="DIR", help="folder to make")
    add("--seed", type=not_negative, default=0, metavar="N", help="of the projector's weights (default: 0)")
    return parser


answer_at_once(__name__, _parser().parse_args)

import torch
import yaml
from transformers import (
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedTokenizerBase,
    Qwen2ForCausalLM,
    WhisperFeatureExtractor,
    WhisperModel,
)

from r1_aqa_repro.model import composing
from r1_aqa_repro.model.files import require_no_adapter, save_files
from r1_aqa_repro.model.folder import folder_of
from r1_aqa_repro.model.loading import (
    ENCODER_MODEL_TYPE,
    TEXT_MODEL_TYPE,
    check_model_folder,
    check_pair,
    check_tensors,
    load,
    load_complete,
    read_or_refuse,
)
from r1_aqa_repro.run.checks import check_free_space
from r1_aqa_repro.run.model_card import CARD, licence_of

_HEAD_OF_WHISPER = ("proj_out.weight",)  # its decoder's, tied to the decoder's embeddings; some files hold it too


@command
def main(argv: list[str]) -> int:
    """Run the command; returns its exit code."""
    arguments = _parser().parse_args(argv)
    out = compose(arguments.encoder, arguments.language_model, arguments.window_seconds, arguments.out, arguments.seed)
    say(f"wrote {out} ({size_of(out) / 1e6:,.1f} MB, float32)")
    return EXIT_DONE


def compose(encoder: str, language_model: str, window_seconds: int, out: Path, seed: int = 0) -> Path:
    """Write a Qwen2-Audio to `out`, whole or not at all: model, processor, generation config and model card.

    Each part is in memory once, in float32; what is written is read again for the comparison when they are gone.

    Args:
        encoder: folder or hub id of a Whisper.
        language_model: folder or hub id of a Qwen2 or Qwen2.5.
        window_seconds: of the clips that are heard, from 1 to Whisper's 30.
        seed: of the projector.

    Returns `out`.

    Raises:
        Refused: `out` exists, a part cannot be read or is of another kind, no ChatML in the tokenizer, the window, too
            little space; everything at once.
        Failed: what was written does not compute what its parts do, or could not be written; nothing is left of it.
    """
    with sole_use(lock_beside(out), "Choose another --out."):
        tokenizer, extractor = check_parts(encoder, language_model, window_seconds, out)
        with whole_folder(out) as folder:
            originals, new_tokens = _write(encoder, language_model, tokenizer, extractor, window_seconds, folder, seed)
            _verify(folder, originals, new_tokens)
    return out


def check_parts(
    encoder: str, language_model: str, window_seconds: int, out: Path
) -> tuple[PreTrainedTokenizerBase, WhisperFeatureExtractor]:
    """Tokenizer and feature extractor of the parts.

    Raises:
        Refused: see `compose`.
    """
    problems, configs = [], []
    if out.exists():
        problems.append(Problem(str(out), "is there already", "Choose another --out, or delete it."))
    with collecting(problems):
        heard = check_model_folder(encoder, (ENCODER_MODEL_TYPE,))
        configs.append(heard)
        check_tensors(WhisperModel, encoder, _HEAD_OF_WHISPER)
        remedy = "Copy the preprocessor_config.json of the Whisper that it was made from into the folder."
        extractor: Any = read_or_refuse(
            lambda: WhisperFeatureExtractor.from_pretrained(encoder), "feature extractor", encoder, remedy
        )
        problems += composing.check_window(window_seconds, extractor, heard, encoder)
    with collecting(problems):
        require_no_adapter(language_model)
        said = check_model_folder(language_model, (TEXT_MODEL_TYPE,))
        configs.append(said)
        check_tensors(Qwen2ForCausalLM, language_model)
        remedy = "Copy the tokenizer of the base model into the folder."
        tokenizer = read_or_refuse(
            lambda: AutoTokenizer.from_pretrained(language_model, trust_remote_code=False),
            "tokenizer",
            language_model,
            remedy,
        )
        check_pair(said, tokenizer, language_model)
        problems += composing.check_tokens(tokenizer, language_model)
    if len(configs) == 2:
        remedy = "Free some space, or choose another --out."
        full = check_free_space(out.parent, _bytes(*configs), "the composed weights")
        problems += [replace(problem, remedy=remedy) for problem in full]
    if problems:
        raise Refused(problems)
    return tokenizer, extractor


def _bytes(heard: PreTrainedConfig, said: PreTrainedConfig) -> int:
    """Of the composed weights in float32, all but those of projector and new tokens."""
    with torch.device("meta"):
        parameters = WhisperModel(heard).encoder.num_parameters() + Qwen2ForCausalLM(said).num_parameters()
    untied = said.vocab_size * said.hidden_size if said.tie_word_embeddings else 0
    return int(torch.float32.itemsize * (parameters + untied))


def _write(
    encoder: str,
    language_model: str,
    tokenizer: PreTrainedTokenizerBase,
    extractor: WhisperFeatureExtractor,
    window_seconds: int,
    folder: Path,
    seed: int,
) -> tuple[composing.Originals, list[int]]:
    """Write all files to a folder; what the parts compute, and the numbers of the new tokens."""
    say(f"reading the encoder of {encoder}")
    heard = load_complete(WhisperModel, encoder, "float32", _HEAD_OF_WHISPER).encoder.eval()
    clip = composing.sample_clip(window_seconds, extractor.sampling_rate)
    features = composing.whisper_features(heard, extractor, clip).clone()
    say(f"reading the language model {language_model}")
    said = load_complete(Qwen2ForCausalLM, language_model, "float32").eval()
    ids = composing.text_ids(tokenizer)
    originals = composing.Originals(features, ids, composing.text_logits(said, ids))

    known = tokenizer.get_vocab()
    processor = composing.compose_processor(tokenizer, extractor, window_seconds)
    new_tokens = [tokenizer.convert_tokens_to_ids(token) for token in composing.AUDIO_TOKENS if token not in known]
    model = composing.compose_model(heard, said, processor, new_tokens, features, seed)
    say(f"writing {model.num_parameters() / 1e6:,.1f} million parameters")
    save_files(folder, model, processor.tokenizer, processor.feature_extractor)
    write_atomically(folder / CARD, _card(encoder, language_model, window_seconds, seed))
    return originals, new_tokens


def _verify(folder: Path, originals: composing.Originals, new_tokens: list[int]) -> None:
    """Load what was written and compare it to its parts.

    Raises:
        Failed: features, token ids or logits differ.
    """
    say("comparing it to its parts")
    apart = composing.deviations(*load(folder), originals, new_tokens)
    wrong = [f"{what} by {size:.2g}" for what, size in apart.items() if size > composing.TOLERANCE]
    if wrong:
        raise Failed(
            f"the composed model differs from its parts: {', '.join(wrong)} (at most {composing.TOLERANCE:g}). Nothing "
            "of it is left: use complete checkpoints of Whisper and Qwen2 as they were published."
        )
    say(f"features within {apart['features']:.1g} of Whisper's, logits within {apart['logits']:.1g} of Qwen2's")


def _card(encoder: str, language_model: str, window_seconds: int, seed: int) -> str:
    """The model card: what the parts are, under which licences, and how they were put together."""
    parts = {"Whisper's encoder": encoder, "the language model": language_model}
    licences = {name: licence_of(name, asks_hub=True) for name in parts.values()}
    data: dict[str, Any] = {"library_name": "transformers", "pipeline_tag": "audio-text-to-text"}
    if on_hub := [name for name in parts.values() if folder_of(name) is None]:
        data["base_model"] = on_hub
    if len(set(licences.values())) == 1 and None not in licences.values():
        data["license"] = licences[encoder]
    data["tags"] = ["r1-aqa-repro"]
    rows = "\n".join(
        f"- {part}: {code(name)}, licence {code(licences[name]) if licences[name] else 'unknown: see where it is from'}"
        for part, name in parts.items()
    )
    return f"""---
{yaml.safe_dump(data, sort_keys=False)}---

# A Qwen2-Audio of {code(Path(encoder).name)} and {code(Path(language_model).name)}

Composed by r1_aqa_repro of pretrained parts, whose licences apply to it:

{rows}

Between them lies a projector that has learned nothing: random weights of seed {seed}, scaled so that what the
language model is given of a clip is as large as its embeddings of words. **Align and train it before use**
(`python -m r1_aqa_repro.align`).

Clips are heard for {window_seconds} s; what is longer is cut. The encoder computes on a clip's frames what Whisper's
layers compute on them (padding is hidden from it, two positions are averaged before the last layer norm, as in every
Qwen2-Audio), and the language model reads texts as before: both were compared when this folder was written, in float32,
within {composing.TOLERANCE:g}.

## Loading

```python
from transformers import Qwen2AudioForConditionalGeneration, Qwen2AudioProcessor

folder = "path/to/this/folder"
processor = Qwen2AudioProcessor.from_pretrained(folder)
model = Qwen2AudioForConditionalGeneration.from_pretrained(folder)
```
"""


if __name__ == "__main__":
    main()
