"""The tiny Qwen2-Audio: a real checkpoint folder, and the traps of building one from configuration."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoProcessor, Qwen2AudioForConditionalGeneration
from transformers.models.whisper.modeling_whisper import sinusoids

from r1_aqa_repro.embedded.tiny_model import TEST, TINY, build_processor, build_qwen2_audio, build_tiny_qwen2_audio
from r1_aqa_repro.model.loading import load

TEXTS = [
    "Which vowel is it? ['ah', 'ee', 'getting louder']. Output the final answer in <answer> </answer>.",
    "getting louder",
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("model") / "tiny"
    build_tiny_qwen2_audio(out, texts=TEXTS * 3, seed=0, geometry=TEST)
    return out


def test_a_saved_model_gives_the_same_logits(folder: Path) -> None:
    processor = build_processor(TEST, TEXTS * 3)
    built = build_qwen2_audio(processor, TEST, seed=0).eval()
    loaded, loaded_processor = load(folder)
    rng = np.random.default_rng(0)
    text = "<|im_start|>user\n<|audio_bos|><|AUDIO|><|audio_eos|>ah<|im_end|>\n"
    wave = rng.standard_normal(30_000).astype(np.float32)
    inputs, loaded_inputs = (
        p(text=text, audio=wave, sampling_rate=16_000, return_tensors="pt") for p in (processor, loaded_processor)
    )
    assert torch.equal(inputs["input_ids"], loaded_inputs["input_ids"])
    with torch.no_grad():
        assert torch.equal(built(**inputs).logits, loaded.eval()(**loaded_inputs).logits)


def test_the_folder_loads_as_users_load_it(folder: Path) -> None:
    processor = AutoProcessor.from_pretrained(folder)
    assert processor.feature_extractor.padding_side == "right"
    assert processor.tokenizer.padding_side == "left"
    parts = [{"type": "audio", "audio": "clip.wav"}, {"type": "text", "text": "ah?"}]
    rendered = processor.apply_chat_template([{"role": "user", "content": parts}], add_generation_prompt=True)
    assert rendered == (
        "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n"
        "Audio 1: <|audio_bos|><|AUDIO|><|audio_eos|>\nah?<|im_end|>\n<|im_start|>assistant\n"
    )
    model = Qwen2AudioForConditionalGeneration.from_pretrained(folder)
    assert model.generation_config.eos_token_id == processor.tokenizer.convert_tokens_to_ids("<|im_end|>")
    assert model.generation_config.do_sample is False


def test_the_seed_decides_the_weights_and_leaves_the_global_generator_alone() -> None:
    processor = build_processor(TEST, TEXTS)
    torch.manual_seed(7)
    expected = torch.rand(1)
    torch.manual_seed(7)
    models = [build_qwen2_audio(processor, TEST, seed) for seed in (0, 0, 1)]
    assert torch.equal(torch.rand(1), expected)
    first, same, other = (model.get_output_embeddings().weight for model in models)
    assert torch.equal(first, same)
    assert not torch.equal(first, other)


def test_encoder_positions_are_sinusoids(folder: Path) -> None:
    model, _ = load(folder)
    positions = model.model.audio_tower.embed_positions.weight
    assert torch.equal(positions, sinusoids(*positions.shape))


def test_tags_never_merge_with_the_answer_and_any_text_survives() -> None:
    tokenizer = build_processor(TINY, TEXTS * 3).tokenizer
    assert ">" in tokenizer.tokenize("<answer>getting louder</answer>")
    for text in ("getting louder", "ünïcode 你好 \U0001f3b5", "<answer>ah</answer>"):
        assert tokenizer.decode(tokenizer(text)["input_ids"]) == text


def test_an_existing_folder_is_not_overwritten_and_leftovers_are_replaced(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(FileExistsError):
        build_tiny_qwen2_audio(folder, texts=TEXTS, seed=0, geometry=TEST)
    (tmp_path / ".model.partial").mkdir()
    (tmp_path / ".model.partial" / "model.safetensors").write_bytes(b"half")
    build_tiny_qwen2_audio(tmp_path / "model", texts=TEXTS, seed=0, geometry=TEST)
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
