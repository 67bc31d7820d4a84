"""Prompts and features: each row holds its own clip, and training and evaluation see the same."""

import copy
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from transformers import ProcessorMixin

from eval.grid import prompts_of
from r1_aqa_repro.data.audio import AudioError, load_audio
from r1_aqa_repro.model import generation, inputs, loading
from r1_aqa_repro.model.inputs import (
    ModelInputs,
    attention_mask_left,
    load_clip,
    minimum_seconds,
    num_audio_tokens,
    pad_left,
    pad_right,
    position_ids_of,
    question_inputs,
)
from r1_aqa_repro.run.clips import Clips
from r1_aqa_repro.sft.trainer import SFTCollator
from tests.eval.conftest import load_generator


@pytest.fixture(scope="module")
def model(model_folder):
    return loading.load_model(model_folder).eval()


def logits_of(model: torch.nn.Module, batch: ModelInputs) -> torch.Tensor:
    """Logits after each prompt's last token, [U, vocabulary]."""
    attention_mask = attention_mask_left(batch.prompt_ids)
    with torch.no_grad():
        output = model(
            input_ids=pad_left(batch.prompt_ids, 0),
            attention_mask=attention_mask,
            position_ids=position_ids_of(attention_mask),
            **batch.audio("cpu"),
        )
    return output.logits[:, -1]


class TestRows:
    """Every prompt belongs to its own clip."""

    def test_each_row_is_what_it_is_alone(self, processor, questions):
        together = question_inputs(processor, questions, "answer")
        assert len(together.prompt_ids) == len(together.input_features) == len(questions)
        for row, question in enumerate(questions):
            alone = question_inputs(processor, [question], "answer")
            assert together.prompt_ids[row] == alone.prompt_ids[0]
            assert torch.equal(together.feature_attention_mask[row], alone.feature_attention_mask[0])
            assert torch.equal(together.input_features[row], alone.input_features[0])

    def test_shapes_and_tokens_by_hand(self, processor, questions):
        """Clip 0 lasts 0.5 s: 25 frames of 320 samples, 13 after the convolutions, 6 after the pooling."""
        batch = question_inputs(processor, [questions[0], questions[23]], "answer")
        assert batch.input_features.shape == (2, 80, 150)
        assert batch.input_features.dtype == torch.float32
        assert batch.feature_attention_mask.sum(-1).tolist() == [25, 145]
        assert batch.feature_attention_mask[0].tolist() == [1] * 25 + [0] * 125  # padded on the right
        audio_token = processor.tokenizer.convert_tokens_to_ids("<|AUDIO|>")
        assert [ids.count(audio_token) for ids in batch.prompt_ids] == [6, 36]

    def test_swapped_clips_are_noticed_though_the_total_is_right(self, processor, questions, monkeypatch):
        original = type(processor).__call__

        def swapped(self: ProcessorMixin, **options: Any) -> dict[str, Any]:
            outputs = original(self, **options)
            return dict(outputs) | {key: np.asarray(outputs[key])[[1, 0]] for key in inputs.AUDIO_KEYS}

        monkeypatch.setattr(type(processor), "__call__", swapped)
        with pytest.raises(ValueError, match="prompt 0 holds 6 audio tokens, its clip gives 8 features"):
            question_inputs(processor, questions[:2], "answer")

    def test_a_long_clip_is_heard_up_to_the_window(self, processor, questions, tmp_path):
        samples = 0.1 * np.random.default_rng(0).standard_normal(5 * 16_000)
        soundfile.write(tmp_path / "long.wav", samples, 16_000)
        batch = question_inputs(processor, [replace(questions[0], audio_path=tmp_path / "long.wav")], "answer")
        assert batch.feature_attention_mask.sum().item() == 150  # 3 s

    def test_picked_rows(self, processor, questions):
        batch = question_inputs(processor, questions[:3], "answer")
        picked = batch.audio("cpu", torch.tensor([2, 2, 0]), trim=False)
        assert set(picked) == {"input_features", "feature_attention_mask"}
        assert torch.equal(picked["input_features"], batch.input_features[[2, 2, 0]])
        assert torch.equal(picked["feature_attention_mask"], batch.feature_attention_mask[[2, 2, 0]])


class TestHearing:
    """The clip reaches the model: a processor keyword of another name would be ignored without an error."""

    def test_silence_changes_the_logits_and_nothing_else_of_the_inputs(self, model, processor, questions):
        heard = question_inputs(processor, questions[:4], "answer")
        blind = question_inputs(processor, questions[:4], "answer", blind=True)
        assert blind.prompt_ids == heard.prompt_ids
        assert torch.equal(blind.feature_attention_mask, heard.feature_attention_mask)
        difference = (logits_of(model, heard) - logits_of(model, blind)).abs().amax(-1)
        assert (difference > 1e-3).all()

    def test_blind_hears_silence(self, processor, questions):
        clip = load_clip(questions[3], "first", processor)
        silence = load_clip(questions[3], "first", processor, blind=True)
        assert np.array_equal(clip, load_audio(questions[3].audio_path))
        assert silence.shape == clip.shape and silence.dtype == clip.dtype and not silence.any()

    def test_the_chosen_channel_is_heard(self, processor, questions, tmp_path):
        left, right = (0.1 * np.random.default_rng(seed).standard_normal(16_000) for seed in (0, 1))
        for name, samples in {"stereo": np.stack([left, right], 1), "left": left, "mean": (left + right) / 2}.items():
            soundfile.write(tmp_path / f"{name}.wav", samples, 16_000, subtype="DOUBLE")

        def features(name: str, channel: str) -> torch.Tensor:
            question = replace(questions[0], audio_path=tmp_path / f"{name}.wav")
            return question_inputs(processor, [question], "answer", channel).input_features

        assert torch.allclose(features("stereo", "first"), features("left", "first"), atol=1e-4)
        assert torch.allclose(features("stereo", "mean"), features("mean", "first"), atol=1e-4)
        assert not torch.allclose(features("stereo", "mean"), features("left", "first"), atol=1e-2)

    def test_logits_in_a_batch_are_those_alone(self, model, processor, questions):
        asked = [questions[0], questions[23], questions[10], questions[5]]
        together = logits_of(model, question_inputs(processor, asked, "answer"))
        for row, question in enumerate(asked):
            alone = logits_of(model, question_inputs(processor, [question], "answer"))
            torch.testing.assert_close(together[row], alone[0], atol=1e-5, rtol=1e-5)


class TestTrainingAndEvaluation:
    """SFT and evaluation give the model the same ids and features for a question; GRPO: tests/grpo/test_trainer.py."""

    @pytest.fixture
    def asked(self, questions):
        return [questions[0], questions[23], questions[9]]

    @pytest.mark.parametrize("style", ["answer", "think"])
    def test_evaluation(self, asked, model_folder, processor, monkeypatch, style):
        seen = []

        def generate(model: Any, batch: ModelInputs, *args: Any, **kwargs: Any) -> list[list[int]]:
            seen.append(batch)
            return [[0]] * len(batch.prompt_ids)

        monkeypatch.setattr(generation, "generate", generate)
        generator = load_generator(model_folder, prompt_style=style, max_new_tokens=4)
        generator.answer(prompts_of(asked), warn=pytest.fail)
        expected = question_inputs(processor, asked, style)
        assert seen[0].prompt_ids == expected.prompt_ids
        assert all(torch.equal(getattr(seen[0], key), getattr(expected, key)) for key in inputs.AUDIO_KEYS)

    def test_sft(self, asked, processor, tmp_path):
        expected = question_inputs(processor, asked, "answer")
        batch = SFTCollator(processor, "answer", "first", Clips(tmp_path))(asked)
        for row, ids in enumerate(expected.prompt_ids):
            assert batch["input_ids"][row, : len(ids)].tolist() == ids
            assert (batch["labels"][row, : len(ids)] == -100).all()
            learned = batch["labels"][row][batch["labels"][row] != -100].tolist()
            assert processor.tokenizer.decode(learned) == f"<answer>{asked[row].answer}</answer><|im_end|>"
        for key, tensor in expected.audio("cpu").items():
            assert torch.equal(batch[key], tensor)


@pytest.mark.parametrize(
    ("frames", "tokens"), [(6, 1), (7, 2), (10, 2), (25, 6), (145, 36), (150, 37), (1000, 250), (3000, 750)]
)
def test_number_of_audio_tokens(frames, tokens):
    assert num_audio_tokens(torch.ones(1, frames)).tolist() == [tokens]


class TestShortestClip:
    """A prompt with a single audio token would be merged by another rule of transformers."""

    def test_it_gives_two_tokens(self, processor):
        assert minimum_seconds(processor) == pytest.approx(0.14)  # 7 frames of 20 ms
        assert minimum_seconds(with_hop(processor, 160)) == pytest.approx(0.1)  # Qwen2-Audio's own frames of 10 ms

    def test_a_shorter_one_is_refused(self, processor, questions, tmp_path):
        question = replace(questions[0], audio_path=tmp_path / "short.wav")
        soundfile.write(question.audio_path, np.full(2240, 0.1), 16_000)
        question_inputs(processor, [question], "answer")
        soundfile.write(question.audio_path, np.full(2239, 0.1), 16_000)
        with pytest.raises(AudioError, match=r"short\.wav: the clip is too short \(0\.140 s\)"):
            question_inputs(processor, [question], "answer")


def with_hop(processor: ProcessorMixin, hop_length: int) -> ProcessorMixin:
    changed = copy.copy(processor)
    changed.feature_extractor = copy.copy(processor.feature_extractor)
    changed.feature_extractor.hop_length = hop_length
    return changed


def test_padding():
    sequences = [[1, 2, 3], [4]]
    assert pad_left(sequences, 9).tolist() == [[1, 2, 3], [9, 9, 4]]
    assert pad_right(sequences, 9).tolist() == [[1, 2, 3], [4, 9, 9]]
    assert attention_mask_left(sequences).tolist() == [[1, 1, 1], [0, 0, 1]]
    assert pad_left(sequences, 9).dtype == torch.int64
    assert position_ids_of(torch.tensor([[1, 1, 1], [0, 0, 1]])).tolist() == [[0, 1, 2], [0, 0, 0]]
    assert position_ids_of(torch.tensor([[0, 1, 1, 1]])).tolist() == [[0, 0, 1, 2]]
