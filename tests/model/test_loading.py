"""Every way known to load a silently wrong Qwen2-Audio is refused, and a sound one is what was saved."""

import copy
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file
from transformers import (
    AutoModelForMultimodalLM,
    AutoProcessor,
    AutoTokenizer,
    Qwen2AudioForConditionalGeneration,
)
from transformers.integrations import HfDeepSpeedConfig, is_deepspeed_zero3_enabled
from transformers.models.whisper.modeling_whisper import sinusoids

from r1_aqa_repro.data.audio import SAMPLING_RATE
from r1_aqa_repro.model import loading
from r1_aqa_repro.model.audio_encoder import TrimmableAudioEncoder
from r1_aqa_repro.model.inputs import question_inputs
from tests.model.damages import Change, cut_off, edit, edit_weights, refusal_of, remove

WEIGHTS = "model.safetensors"


@pytest.fixture
def folder(model_folder, tmp_path) -> Path:
    """A copy of the model that a test may damage."""
    return Path(shutil.copytree(model_folder, tmp_path / "model"))


def lose_a_shard(folder: Path) -> None:
    tensors = load_file(folder / WEIGHTS)
    index = {name: f"model-{1 + number % 2}-of-2.safetensors" for number, name in enumerate(tensors)}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": index}))
    (folder / WEIGHTS).rename(folder / "model-1-of-2.safetensors")


@pytest.mark.parametrize("function", [loading.check_model_folder, loading.load_model], ids=["check", "load"])
@pytest.mark.parametrize(
    ("change", "what"),
    [
        (shutil.rmtree, "no model can be read there (there is no such folder)"),
        (remove("config.json"), "the folder holds no config.json"),
        (cut_off("config.json", 30), "config.json: malformed JSON"),
        (edit("config.json", model_type="qwen2"), "the model is a qwen2, not a qwen2_audio"),
        (remove(WEIGHTS), "the folder holds no weights"),
        (cut_off(WEIGHTS, 4), f"{WEIGHTS}: damaged or cut off"),
        (cut_off(WEIGHTS, 1000), f"{WEIGHTS}: damaged or cut off"),
        (cut_off(WEIGHTS, -1), f"{WEIGHTS}: damaged or cut off"),
        (lose_a_shard, "weight files are missing: model-2-of-2.safetensors"),
    ],
)
def test_folders_that_are_refused_by_their_headers(
    function: Callable[..., Any], change: Change, what: str, folder: Path
) -> None:
    """`check_model_folder` reads configuration and headers only; `load_model` refuses the same."""
    change(folder)
    said = refusal_of(function, folder)
    assert said.startswith(str(folder)) and what in said


class TestWeights:
    @pytest.mark.parametrize(
        ("change", "what"),
        [
            (lambda weights: weights.pop("multi_modal_projector.linear.weight"),
             "1 missing keys, such as .*multi_modal_projector.linear.weight"),
            # transformers would tie or initialise it
            (lambda weights: weights.pop("language_model.lm_head.weight"), "1 missing keys, such as lm_head"),
            (lambda weights: weights.update({"audio_tower.extra.weight": torch.zeros(2)}),
             "1 unexpected keys, such as .*audio_tower.extra.weight"),
            (lambda weights: weights.update({"multi_modal_projector.linear.bias": torch.zeros(2)}),
             "1 mismatched keys, such as model.multi_modal_projector.linear.bias"),
        ],
        ids=["missing", "head missing", "too many", "another shape"],
    )  # fmt: skip
    @pytest.mark.parametrize("zero3", [False, True], ids=["", "zero3"])
    def test_other_tensors_than_the_models_are_refused(self, folder, monkeypatch, change, what, zero3):
        """Under ZeRO-3 transformers itself misses those that are too many or of another shape."""
        edit_weights(change)(folder)
        monkeypatch.setattr("transformers.integrations.deepspeed._hf_deepspeed_config_weak_ref", None)
        held = HfDeepSpeedConfig({"zero_optimization": {"stage": 3}}) if zero3 else None  # in force until restored
        assert is_deepspeed_zero3_enabled() == zero3 == (held is not None)
        assert re.search(what, refusal_of(loading.load_model, folder))

    @pytest.mark.parametrize("equal", [False, True], ids=["the same tensor", "equal tensors"])
    def test_a_head_tied_to_the_embeddings_is_refused(self, folder, monkeypatch, equal):
        """As transformers 5.10.0 to 5.10.3 tied it in loading; equal tensors are what such a model saves."""
        original = Qwen2AudioForConditionalGeneration.from_pretrained

        def tying(*args, **kwargs):
            loaded = original(*args, **kwargs)
            model = loaded[0] if isinstance(loaded, tuple) else loaded  # with a report
            embeddings = model.get_input_embeddings()
            model.set_output_embeddings(copy.deepcopy(embeddings) if equal else embeddings)
            return loaded

        monkeypatch.setattr(Qwen2AudioForConditionalGeneration, "from_pretrained", tying)
        assert refusal_of(loading.load_model, folder).startswith(f"{folder}: lm_head is tied to the embeddings")

    def test_round_trip(self, model_folder, tmp_path):
        """What is saved loads as the same weights under the published names, also through the Auto class."""
        model = loading.load_model(model_folder)
        assert isinstance(model.model.audio_tower, TrimmableAudioEncoder) and model.dtype == torch.float32
        model.save_pretrained(tmp_path)
        assert "shared_prefix" not in (tmp_path / "config.json").read_text(encoding="utf-8")
        saved, original = load_file(tmp_path / WEIGHTS), load_file(model_folder / WEIGHTS)
        assert {name.split(".")[0] for name in saved} == {"audio_tower", "language_model", "multi_modal_projector"}
        assert saved.keys() == original.keys()
        assert all(torch.equal(saved[name], original[name]) for name in original)
        through_auto = AutoModelForMultimodalLM.from_pretrained(tmp_path).state_dict()
        assert all(torch.equal(tensor, through_auto[name]) for name, tensor in model.state_dict().items())

    def test_positions_are_whispers_sinusoids(self, model_folder):
        """Built from a configuration they would be random, and they are never trained."""
        model = loading.load_model(model_folder, "bfloat16")
        positions = model.model.audio_tower.embed_positions.weight
        assert model.dtype == positions.dtype == torch.bfloat16 and not positions.requires_grad
        assert torch.equal(positions, sinusoids(*positions.shape).bfloat16())


class TestAdapter:
    @pytest.fixture
    def adapter(self, model_folder, tmp_path) -> Path:
        """An adapter that changes the model: LoRA's second factor is not zero."""
        config = LoraConfig(target_modules=r".*language_model.*q_proj", init_lora_weights=False)
        get_peft_model(loading.load_model(model_folder), config).save_pretrained(tmp_path / "adapter")
        loading.load_processor(model_folder).save_pretrained(tmp_path / "adapter")
        return tmp_path / "adapter"

    def test_it_is_loaded_on_its_base(self, adapter, model_folder):
        assert loading.check_model_folder(adapter).model_type == "qwen2_audio"
        model, _ = loading.load(adapter)
        base = loading.load_model(model_folder)
        merged = model.merge_and_unload().state_dict()
        changed = {name for name, tensor in base.state_dict().items() if not torch.equal(tensor, merged[name])}
        assert changed == {"model.language_model.layers.0.self_attn.q_proj.weight"}

    def test_a_base_that_is_gone_is_refused(self, adapter):
        edit("adapter_config.json", base_model_name_or_path=str(adapter / "gone"))(adapter)
        assert f"{adapter / 'gone'}: no model can be read there" in refusal_of(loading.check_model_folder, adapter)


class TestProcessor:
    def test_trls_default_pads_the_audio_left(self, model_folder, questions):
        """The pitfall: with this argument the model hears leading silence, without an error."""
        pitfall = AutoProcessor.from_pretrained(model_folder, padding_side="left")
        assert question_inputs(pitfall, questions[:1], "answer").feature_attention_mask[0, :100].sum() == 0
        ours = loading.load_processor(model_folder)
        assert question_inputs(ours, questions[:1], "answer").feature_attention_mask[0, :25].all()
        assert ours.tokenizer.padding_side == "left"
        assert ours.feature_extractor.sampling_rate == SAMPLING_RATE

    @pytest.mark.parametrize(
        ("make", "what"),
        [
            (lambda good, folder: AutoProcessor.from_pretrained(good, padding_side="left").save_pretrained(folder),
             "the feature extractor pads on the left"),
            (lambda good, folder: loading.check_model_folder(good).save_pretrained(folder),
             "no processor can be read there"),
            (lambda good, folder: AutoTokenizer.from_pretrained(good).save_pretrained(folder),
             "no processor can be read there"),
        ],
        ids=["left padding", "none", "a tokenizer alone"],
    )  # fmt: skip
    def test_what_is_no_sound_processor_is_refused(self, model_folder, tmp_path, make, what):
        make(model_folder, tmp_path)
        assert refusal_of(loading.load_processor, tmp_path).startswith(f"{tmp_path}: {what}")


@pytest.mark.parametrize(
    ("change", "what"),
    [
        (lambda config, processor: setattr(processor.feature_extractor, "feature_size", 128),
         "128 mel bins instead of 80"),
        (lambda config, processor: setattr(processor.feature_extractor, "nb_max_frames", 3000),
         "a window of 3000 frames instead of 150"),
        (lambda config, processor: setattr(config, "audio_token_id", 7), "audio token {audio} instead of 7"),
        (lambda config, processor: processor.tokenizer.add_tokens(["<new>"]), "{more} tokens for {size} embeddings"),
    ],
    ids=["mel bins", "window", "audio token", "vocabulary"],
)  # fmt: skip
def test_a_processor_that_does_not_fit_is_refused(model_folder, change, what):
    processor, config = loading.load_processor(model_folder), loading.check_model_folder(model_folder)
    loading.check_pair(config, processor, "here")
    size = config.text_config.vocab_size
    what = what.format(audio=config.audio_token_id, size=size, more=size + 1)
    change(config, processor)
    text = refusal_of(loading.check_pair, config, processor, "here")
    assert text.startswith(f"here: the processor does not fit the model: {what}. ")


def test_every_mismatch_of_a_processor_is_named_when_loading(folder):
    edit("preprocessor_config.json", feature_size=128, chunk_length=30)(folder)
    text = refusal_of(loading.load, folder)
    assert "128 mel bins instead of 80; a window of 1500 frames instead of 150" in text


@pytest.mark.parametrize(
    ("declared", "others"), [(None, []), (5, [5]), ([5, 6], [5, 6]), ([6, "own", 6], [6]), ("own", [])]
)
def test_end_tokens(model_folder, declared, others):
    model, processor = loading.load(model_folder)
    own = processor.tokenizer.convert_tokens_to_ids("<|im_end|>")
    declared = [own if token == "own" else token for token in declared] if isinstance(declared, list) else declared
    model.generation_config.eos_token_id = own if declared == "own" else declared
    assert loading.eos_token_ids(model, processor) == [own, *others]
