"""Composing a Qwen2-Audio: it hears and reads as its parts do, any command takes it, and nothing half done is left."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoTokenizer,
    PreTrainedModel,
    Qwen2AudioForConditionalGeneration,
    Qwen2AudioProcessor,
    Qwen2ForCausalLM,
    WhisperFeatureExtractor,
    WhisperModel,
)

from eval import mmau
from r1_aqa_repro import ask
from r1_aqa_repro.compose import main
from r1_aqa_repro.data.audio import load_audio
from r1_aqa_repro.data.prompts import prompt_text
from r1_aqa_repro.data.questions import AudioQuestion, write_manifest
from r1_aqa_repro.model import composing, loading
from r1_aqa_repro.model.files import save_whole
from tests.random_parts import GEOMETRIES, Composed, Parts, made
from tests.real_parts import real_part

# float32: features and logits of size 1 to 30 from the same products, perhaps in another order
SAME = 1e-4


@pytest.fixture(scope="module")
def composed(questions: list[AudioQuestion], tmp_path_factory: pytest.TempPathFactory) -> Composed:
    """The first geometry, composed; shared, so change a copy only."""
    made_up = made(tmp_path_factory.mktemp("composed"), GEOMETRIES[0], questions)
    assert main(made_up.argv) == 0
    return made_up


@pytest.fixture
def parts(composed: Composed, tmp_path: Path) -> Composed:
    """A copy of its parts, to be changed."""
    for folder in (composed.encoder, composed.language_model):
        shutil.copytree(folder, tmp_path / folder.name)
    return Composed(tmp_path / "whisper", tmp_path / "qwen2", tmp_path / "composed", composed.window)


def plain_features(model: PreTrainedModel, processor: Any, clip: np.ndarray) -> torch.Tensor:
    """[tokens, d_model] of a clip as transformers itself computes them, on the whole window."""
    text = processor.apply_chat_template(
        [{"role": "user", "content": [{"type": "audio", "audio_url": "clip.wav"}]}], tokenize=False
    )
    inputs = processor(text=text, audio=[clip], sampling_rate=16_000, return_tensors="pt")
    seen = []
    tower = model.model.audio_tower
    hook = tower.register_forward_hook(lambda module, given, output: seen.append(output.last_hidden_state[0]))
    with torch.inference_mode():
        model(**inputs)
    hook.remove()
    return seen[0][: (inputs["input_ids"] == model.config.audio_token_id).sum()]


def whisper_on_frames(folder: Path, clip: np.ndarray, positions: int) -> torch.Tensor:
    """Whisper's own forward, with a window of as many positions as the clip has, and pooled before the layer norm."""
    whisper = WhisperModel.from_pretrained(folder, dtype=torch.float32).encoder.eval()
    extractor = WhisperFeatureExtractor.from_pretrained(folder)
    whisper.config.max_source_positions = positions
    whisper.embed_positions = torch.nn.Embedding.from_pretrained(whisper.embed_positions.weight[:positions])
    norm, whisper.layer_norm = whisper.layer_norm, torch.nn.Identity()
    mel = extractor(clip, sampling_rate=16_000, return_tensors="pt").input_features[..., : 2 * positions]
    with torch.inference_mode():
        hidden = whisper(mel).last_hidden_state[0]
        return norm(hidden.unfold(0, 2, 2).mean(-1))


def check_hears_and_reads(composed: Composed, clip: np.ndarray, texts: Sequence[str]) -> None:
    """With transformers alone, from the folder as it is: features are Whisper's, ids and logits Qwen2's.

    Args:
        clip: [samples], as long as the window; its last 25 ms are silence.
    """
    model = Qwen2AudioForConditionalGeneration.from_pretrained(composed.out).eval()
    processor = Qwen2AudioProcessor.from_pretrained(composed.out)
    features = plain_features(model, processor, clip)
    assert features.shape == (25 * composed.window, model.config.audio_config.d_model)
    expected = whisper_on_frames(composed.encoder, clip, 50 * composed.window)
    torch.testing.assert_close(features, expected, atol=SAME, rtol=0)

    original = Qwen2ForCausalLM.from_pretrained(composed.language_model, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(composed.language_model)
    new = [processor.tokenizer.convert_tokens_to_ids(token) for token in composing.AUDIO_TOKENS]
    old = [column for column in range(original.config.vocab_size) if column not in new]
    for text in texts:
        ids = tokenizer(text, return_tensors="pt")["input_ids"]
        assert processor.tokenizer(text)["input_ids"] == ids[0].tolist()
        with torch.inference_mode():
            logits, before = model(input_ids=ids).logits, original(input_ids=ids).logits
        torch.testing.assert_close(logits[..., old], before[..., old], atol=SAME, rtol=0)
        assert not set(logits[0].argmax(-1).tolist()) & set(new)  # a mean is no maximum

    with torch.inference_mode():  # what the language model is given of a clip is as large as its words
        given = model.model.multi_modal_projector(features)
        words = original.get_input_embeddings().weight[: len(tokenizer)].detach()
    # of 1,000 weights or more, drawn at random, a few decide if few channels are large: a quarter for 32 channels
    assert float((given.square().mean() / words.square().mean()).sqrt()) == pytest.approx(1, rel=0.25)


def window_of(clip: np.ndarray, seconds: int) -> np.ndarray:
    """The clip cut or repeated to a window, with 25 ms of silence at its end: there mel frames see past the window."""
    cut = np.resize(clip, seconds * 16_000).astype(np.float32)
    cut[-400:] = 0
    return cut


def check_commands_take_it(folder: Path, manifest: Path, questions: Sequence[AudioQuestion], out: Path) -> None:
    loading.load(folder)  # with all guards
    argv = ["--ckpt", str(folder), "--data", str(manifest), "--out", str(out), "--max-new-tokens", "2"]
    assert mmau.main([*argv, "--device", "cpu"]) == 0
    scores = json.loads((out / "scores.json").read_text(encoding="utf-8"))
    assert scores["n"] == len((out / "predictions.jsonl").read_text(encoding="utf-8").splitlines())
    question = questions[0]
    asked = ["--ckpt", str(folder), "--audio", str(question.audio_path), "--question", question.question]
    assert ask.main([*asked, "--choices", *question.choices]) == 0


def test_a_composed_model_hears_and_reads_as_its_parts_do(composed: Composed, questions: list[AudioQuestion]) -> None:
    clip = window_of(load_audio(questions[-1].audio_path), composed.window)
    check_hears_and_reads(composed, clip, [prompt_text(question, "answer") for question in questions[:2]])


def test_commands_take_a_composed_model(
    composed: Composed, manifest: Path, questions: list[AudioQuestion], tmp_path: Path
) -> None:
    check_commands_take_it(composed.out, manifest, questions, tmp_path / "eval")


@pytest.mark.slow
@pytest.mark.parametrize("geometry", GEOMETRIES[1:])
def test_other_geometries_hear_and_read_too(
    geometry: Parts, manifest: Path, questions: list[AudioQuestion], tmp_path: Path
) -> None:
    composed = made(tmp_path, geometry, questions)
    assert main(composed.argv) == 0
    clip = window_of(load_audio(questions[-1].audio_path), composed.window)
    check_hears_and_reads(composed, clip, [prompt_text(question, "answer") for question in questions[:2]])
    check_commands_take_it(composed.out, manifest, questions, tmp_path / "eval")


@pytest.mark.slow
def test_real_parts_hear_and_read(questions: list[AudioQuestion], tmp_path: Path) -> None:
    composed = Composed(real_part("whisper-base"), real_part("smollm2-135m"), tmp_path / "composed", window=3)
    assert main(composed.argv) == 0
    clip = window_of(load_audio(sorted(real_part("clips").glob("**/*.flac"))[0]), composed.window)
    check_hears_and_reads(composed, clip, [prompt_text(questions[0], "answer"), "The capital of France is"])
    write_manifest(tmp_path / "manifest.jsonl", questions[:2])
    check_commands_take_it(composed.out, tmp_path / "manifest.jsonl", questions, tmp_path / "eval")


def test_audio_tokens_follow_those_of_the_language_model(composed: Composed) -> None:
    tokenizer = AutoTokenizer.from_pretrained(composed.language_model)
    processor = loading.load_processor(composed.out)
    ids = processor.tokenizer.convert_tokens_to_ids(list(composing.AUDIO_TOKENS))
    assert ids == [len(tokenizer), len(tokenizer) + 1, len(tokenizer) + 2]
    assert processor.audio_token_id == ids[0]
    config = json.loads((composed.out / "config.json").read_text(encoding="utf-8"))
    assert config["audio_token_index"] == ids[0] and config["text_config"]["vocab_size"] == ids[-1] + 1


def test_a_tokenizer_that_has_audio_tokens_keeps_them(parts: Composed) -> None:
    """As Qwen2-Audio's own beside a Qwen2, whose vocabulary has rows to spare."""
    original = Qwen2ForCausalLM.from_pretrained(parts.language_model, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(parts.language_model)
    tokenizer.add_tokens(["<|something|>", *composing.AUDIO_TOKENS[::-1]], special_tokens=True)
    ids = tokenizer.convert_tokens_to_ids(list(composing.AUDIO_TOKENS))
    original.resize_token_embeddings(len(tokenizer) + 5, mean_resizing=False)
    shutil.rmtree(parts.language_model)
    save_whole(parts.language_model, original, tokenizer)
    assert main(parts.argv) == 0

    model, processor = loading.load(parts.out)  # its head is not taken for a tied one
    assert processor.tokenizer.convert_tokens_to_ids(list(composing.AUDIO_TOKENS)) == ids
    assert model.config.audio_token_id == ids[0] and model.config.text_config.vocab_size == len(tokenizer) + 5
    assert torch.equal(model.lm_head.weight, original.lm_head.weight)
    own = [row for row in range(len(tokenizer) + 5) if row != ids[0]]
    assert torch.equal(model.get_input_embeddings().weight[own], original.get_input_embeddings().weight[own])


def test_it_ends_a_turn_decodes_greedily_and_pads_as_qwen2_audio_does(composed: Composed) -> None:
    model, processor = loading.load(composed.out)
    end, padding = processor.tokenizer.convert_tokens_to_ids(["<|im_end|>", "<|endoftext|>"])
    assert (processor.tokenizer.eos_token_id, processor.tokenizer.pad_token_id) == (end, padding)
    generation = model.generation_config
    assert (generation.eos_token_id, generation.pad_token_id, generation.do_sample) == (end, padding, False)


def test_the_same_seed_gives_the_same_files_and_another_another_projector(composed: Composed, tmp_path: Path) -> None:
    again, other = (Composed(composed.encoder, composed.language_model, tmp_path / name, 3) for name in "ab")
    assert main(again.argv) == 0 and main([*other.argv, "--seed", "1"]) == 0
    for path in composed.out.iterdir():
        assert (again.out / path.name).read_bytes() == path.read_bytes(), path.name
    before, after = (load_file(each.out / "model.safetensors") for each in (composed, other))
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == {"multi_modal_projector.linear.weight"}


def test_the_card_names_parts_and_their_licences(parts: Composed) -> None:
    (parts.encoder / "README.md").write_text("---\nlicense: apache-2.0\n---\n# A Whisper", encoding="utf-8")
    assert main(parts.argv) == 0
    card = (parts.out / "README.md").read_text(encoding="utf-8")
    assert f"`{parts.encoder}`, licence `apache-2.0`" in card
    assert f"`{parts.language_model}`, licence unknown" in card
    assert "license:" not in card  # of the whole: nobody has said it of both parts


def on_hub(folder: Path, cache: Path, hub_id: str) -> None:
    """Put a folder into the hub's cache, as a download does."""
    repository, revision = cache / f"models--{hub_id.replace('/', '--')}", "0" * 40
    shutil.copytree(folder, repository / "snapshots" / revision)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(revision)


def test_parts_of_the_hub_are_named_and_linked_in_the_card(
    parts: Composed, composed: Composed, tmp_path: Path, monkeypatch: Any
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    for folder, hub_id, licence in (
        (parts.encoder, "someone/hears", "license: apache-2.0"),
        (parts.language_model, "someone/reads", "license: other\nlicense_name: reads-research"),
    ):
        (folder / "README.md").write_text(f"---\n{licence}\n---\n# A part\n", encoding="utf-8")
        on_hub(folder, tmp_path / "cache", hub_id)
    argv = ["--encoder", "someone/hears", "--language-model", "someone/reads", "--window-seconds", "3"]
    assert main([*argv, "--out", str(parts.out)]) == 0
    card = (parts.out / "README.md").read_text(encoding="utf-8")
    assert "base_model:\n- someone/hears\n- someone/reads\n" in card
    assert "`someone/hears`, licence `apache-2.0`" in card and "`someone/reads`, licence `reads-research`" in card
    for name in ("model.safetensors", "tokenizer.json", "config.json"):
        assert (parts.out / name).read_bytes() == (composed.out / name).read_bytes()


def change_json(file: Path, **values: Any) -> None:
    file.write_text(json.dumps(json.loads(file.read_text(encoding="utf-8")) | values), encoding="utf-8")


def lose_a_tensor(folder: Path) -> None:
    file = folder / "model.safetensors"
    save_file(dict(sorted(load_file(file).items())[:-1]), file, metadata={"format": "pt"})


def spoil(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    weights["model.norm.weight"][0] = float("nan")
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def rename_turns(folder: Path) -> None:
    """A tokenizer without ChatML."""
    for file in (folder / "tokenizer.json", folder / "tokenizer_config.json"):
        file.write_text(file.read_text(encoding="utf-8").replace("<|im_start|>", "<|turn|>"), encoding="utf-8")


def swap(parts: Composed) -> None:
    parts.encoder.rename(parts.encoder.with_name("other"))
    parts.language_model.rename(parts.encoder)
    parts.encoder.with_name("other").rename(parts.language_model)


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (swap, ["whisper: the model is a qwen2, not a whisper", "qwen2: the model is a whisper, not a qwen2"]),
        (lambda parts: parts.out.mkdir(), ["composed: is there already"]),
        (lambda parts: lose_a_tensor(parts.encoder), ["whisper: the weights have 1 missing keys"]),
        (lambda parts: lose_a_tensor(parts.language_model), ["qwen2: the weights have 1 missing keys"]),
        (lambda parts: spoil(parts.language_model), ["the tensor model.norm.weight is not finite"]),
        (lambda parts: rename_turns(parts.language_model), ["qwen2: the tokenizer has no token <|im_start|>"]),
        (
            lambda parts: (parts.encoder / "preprocessor_config.json").unlink(),
            ["whisper: no feature extractor can be read there"],
        ),
        (
            lambda parts: change_json(parts.encoder / "preprocessor_config.json", chunk_length=30),
            ["whisper: the feature extractor has a window of 3000 frames instead of 800"],
        ),
        (
            lambda parts: change_json(parts.encoder / "preprocessor_config.json", feature_size=128),
            ["whisper: the feature extractor has 128 mel bins instead of 80"],
        ),
    ],
)
def test_parts_that_do_not_do_are_refused_by_name(parts: Composed, capfd: Any, damage: Any, said: list[str]) -> None:
    damage(parts)
    before = set(parts.out.parent.iterdir())
    assert main(parts.argv) == 2
    error = capfd.readouterr().err
    assert all(what in error for what in said), error
    assert set(parts.out.parent.iterdir()) == before


def test_the_folder_it_is_started_in_is_refused(
    composed: Composed, tmp_path: Path, capfd: Any, monkeypatch: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(Composed(composed.encoder, composed.language_model, Path("."), window=3).argv) == 2
    assert "error: .: is there already" in capfd.readouterr().err
    assert not list(tmp_path.iterdir()) and not (tmp_path.parent / f".{tmp_path.name}.lock").exists()


def test_a_window_beyond_whispers_own_is_refused(composed: Composed, tmp_path: Path, capfd: Any) -> None:
    argv = Composed(composed.encoder, composed.language_model, tmp_path / "composed", window=9).argv
    assert main(argv) == 2
    assert "--window-seconds: 9 s are more than the 8 s that this Whisper hears" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("tensor", "said"),
    [("audio_tower.conv2.bias", "features by 0."), ("language_model.model.norm.weight", "logits by ")],
)
def test_weights_that_are_not_the_parts_get_no_name(
    composed: Composed, tmp_path: Path, capfd: Any, monkeypatch: Any, tensor: str, said: str
) -> None:
    """Such as by an error here or in transformers, which is stood in for by a change of what was written."""
    from r1_aqa_repro import compose

    def load(folder: Path) -> Any:
        weights = load_file(folder / "model.safetensors")
        weights[tensor][0] += 0.1
        save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
        return loading.load(folder)

    monkeypatch.setattr(compose, "load", load)
    argv = Composed(composed.encoder, composed.language_model, tmp_path / "composed", composed.window).argv
    assert main(argv) == 1
    assert f"error: the composed model differs from its parts: {said}" in capfd.readouterr().err
    assert not list(tmp_path.iterdir())
