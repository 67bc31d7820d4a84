"""The step benchmark: its figures, its floor against PyTorch's own counter, and both modes at work."""

from __future__ import annotations

import json
import multiprocessing
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import get_peft_model
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from transformers import (
    DynamicCache,
    Qwen2AudioConfig,
    Qwen2AudioEncoderConfig,
    Qwen2AudioForConditionalGeneration,
    Qwen2Config,
)

from r1_aqa_repro.common.errors import Failed
from r1_aqa_repro.model import loading
from r1_aqa_repro.planning.geometries import mid_config, qwen2_audio_7b_config
from scripts import bench_grpo_step as bench

KEYS = {
    "geometry", "mode", "parameters", "prompts", "prompt_tokens", "completions", "completion_tokens", "gflop_per_step",
    "seconds_per_step", "completions_per_second", "peak_memory_mb", "breakdown",
    "gflop_breakdown", "memory_over_models_mb", "floor_gflop", "share_of_floor",
}  # fmt: skip
BREAKDOWN = {"generation", "reward", "reference", "forward", "backward", "optimizer", "other"}


def test_both_modes_step_by_step(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "figures.json"
    size = ["--prompts", "2", "--completion_tokens", "4", "--steps", "2"]
    assert bench.main(["--geometry", "tiny", "--mode", "compare", *size, "--json", str(file)]) == 0
    report = json.loads(file.read_text(encoding="utf-8"))
    assert set(report) == {"shared", "plain", "ratio"}
    for mode in ("shared", "plain"):
        figures = report[mode]
        assert set(figures) == KEYS and set(figures["breakdown"]) == BREAKDOWN
        assert (figures["geometry"], figures["mode"]) == ("tiny", mode)
        assert (figures["prompts"], figures["completions"], figures["completion_tokens"]) == (2, 16, 4)
        # each part is the median of its own two steps, that is their mean; every figure is rounded to 5e-5
        assert sum(figures["breakdown"].values()) == pytest.approx(figures["seconds_per_step"], abs=8 * 5e-5)
        assert figures["completions_per_second"] == pytest.approx(16 / figures["seconds_per_step"], rel=0.01)
        assert all(figures["breakdown"][name] > 0 for name in BREAKDOWN)
        assert sum(figures["gflop_breakdown"].values()) == pytest.approx(figures["gflop_per_step"], abs=8 * 5e-4)
        assert 0 < figures["memory_over_models_mb"] < figures["peak_memory_mb"]
    shared, plain = report["shared"], report["plain"]
    assert shared["floor_gflop"] == plain["floor_gflop"] <= shared["gflop_per_step"]
    # 8 completions a prompt of which prompt and clip are nearly everything
    assert 5 * shared["gflop_per_step"] < plain["gflop_per_step"] < 8 * shared["gflop_per_step"]
    assert shared["parameters"] == plain["parameters"]
    assert report["ratio"]["min"] <= report["ratio"]["median"] <= report["ratio"]["max"]
    assert "GFLOP a step" in capsys.readouterr().out


WINDOW_OF_TINY = 150  # frames of 20 ms: 3 s


def test_one_mode_with_adapters_as_7b_has_them(tmp_path: Path) -> None:
    """What 7b does on a GPU, in small: weights drawn in place, bfloat16, LoRA, the reference without adapters."""
    setup = replace(bench.SETUPS["tiny"], prompts=1, completion_tokens=3, lora=True)
    results, _ = bench.measure(setup, ["shared"], tmp_path, warmup=1, steps=1, threads=1, peak_tflops=0.1)
    figures = results["shared"]
    assert set(figures) == KEYS | {"model_flop_utilisation"}
    work = sum(figures["gflop_breakdown"][name] for name in ("forward", "backward"))
    seconds = sum(figures["breakdown"][name] for name in ("forward", "backward"))
    # 0.1 TFLOP/s; the parts are rounded to 5e-4 GFLOP of about 0.1 and 5e-5 s of about 0.05
    assert figures["model_flop_utilisation"] == pytest.approx(work / seconds / 100, rel=0.02, abs=1e-4)
    # below the floor of a step by itself, since an earlier one has encoded the clip; but by no more than that
    config = Qwen2AudioConfig.from_pretrained(next(tmp_path.rglob("config.json")).parent)
    whole = bench.forward_of(config, bench.Prompt(figures["prompt_tokens"], WINDOW_OF_TINY), 8, 3)
    encoding = 3 * (whole.first + whole.encoder) / 1e9
    assert figures["floor_gflop"] - encoding < figures["gflop_per_step"] < figures["floor_gflop"]
    assert figures["gflop_breakdown"]["backward"] < 1.5 * figures["gflop_breakdown"]["forward"]  # frozen weights


def test_ratio_is_of_pairs() -> None:
    # pairs 4, 2 and 10: not the ratio of the medians, which would be 3
    ratio = bench.ratio_of(shared=[1.0, 2.0, 0.5], plain=[4.0, 4.0, 5.0])
    assert ratio == {"median": 4.0, "min": 2.0, "max": 10.0}


def test_a_process_that_ends_or_works_differently_is_a_failure() -> None:
    ours, theirs = multiprocessing.Pipe()
    theirs.send({"parameters": 1, "memory_mb": 1.0})
    theirs.send({"tokens": 160})
    theirs.send({"tokens": 159})  # a completion ended early
    stepper = bench.Stepper("plain", ours, tokens_of_step=160)
    assert stepper.take_step() == {"tokens": 160}
    with pytest.raises(Failed, match="159 tokens"):
        stepper.take_step()
    assert theirs.recv() == theirs.recv() == "step"
    theirs.close()
    with pytest.raises(Failed, match="ended early"):
        bench.Stepper("plain", ours, tokens_of_step=160)


def test_7b_is_refused_without_a_gpu(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert bench.main(["--geometry", "7b", "--mode", "shared"]) == 2
    assert "needs a GPU" in capsys.readouterr().err


@pytest.mark.parametrize(("geometry", "prompts"), [("mid", 2), ("7b", 3)])
def test_prompts_have_exactly_the_published_length(geometry: str, prompts: int, tmp_path: Path) -> None:
    setup = replace(bench.SETUPS[geometry], prompts=prompts)
    config, questions = bench.prepare(setup, tmp_path)
    processor = loading.load_processor(tmp_path / "model")
    inputs = bench.question_inputs(processor, questions, bench.PROMPT_STYLE)
    audio = [ids.count(config.audio_token_id) for ids in inputs.prompt_ids]
    assert [len(ids) for ids in inputs.prompt_ids] == [351] * prompts and audio == [250] * prompts
    assert (tmp_path / "model" / "model.safetensors").is_file() == (geometry == "mid")
    loading.check_pair(Qwen2AudioConfig.from_pretrained(tmp_path / "model"), processor, geometry)


def test_7b_has_its_shapes_and_adapters() -> None:
    with torch.device("meta"):
        model = Qwen2AudioForConditionalGeneration(qwen2_audio_7b_config())
    shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    assert sum(parameter.numel() for parameter in model.parameters()) == 8_397_094_912
    assert shapes["lm_head.weight"] == (156_032, 4096)
    adapted = get_peft_model(model, bench.adapters())
    trained = {name for name, parameter in adapted.named_parameters() if parameter.requires_grad}
    assert len(trained) == 32 * 4 * 2 and all("language_model" in name for name in trained)


# --- The floor


SMALL = Qwen2AudioConfig(
    audio_config=Qwen2AudioEncoderConfig(
        num_mel_bins=10,
        d_model=16,
        encoder_layers=2,
        encoder_attention_heads=2,
        encoder_ffn_dim=24,
        max_source_positions=20,
    ),
    text_config=Qwen2Config(
        vocab_size=50,
        hidden_size=32,
        intermediate_size=40,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        tie_word_embeddings=False,
        bos_token_id=None,
    ),
)
WINDOW = 2 * SMALL.audio_config.max_source_positions  # frames


def heard(model: Qwen2AudioForConditionalGeneration) -> torch.Tensor:
    """The projected features of a clip that fills the window: [1, positions // 2, hidden]."""
    features = torch.randn(1, SMALL.audio_config.num_mel_bins, WINDOW)
    return model.model.multi_modal_projector(model.model.audio_tower(features).last_hidden_state)


def count(work: Callable[[], Any]) -> int:
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        work()
    return counter.get_total_flops()


def test_forward_is_what_decoding_with_a_cache_costs() -> None:
    """Fed one token at a time, a cache makes PyTorch compute exactly the visible pairs."""
    model = Qwen2AudioForConditionalGeneration(SMALL)
    prompt, num_completions, completion_tokens = bench.Prompt(9, WINDOW), 3, 4

    @torch.no_grad()
    def decode() -> None:
        heard(model)
        cache = DynamicCache(config=SMALL.text_config)
        embeds = torch.randn(num_completions, 1, SMALL.text_config.hidden_size)
        language = model.model.language_model
        for _ in range(prompt.tokens):
            hidden = language(inputs_embeds=embeds[:1], past_key_values=cache, use_cache=True).last_hidden_state
        model.lm_head(hidden)
        cache.batch_select_indices(torch.zeros(num_completions, dtype=torch.long))
        for _ in range(completion_tokens - 1):
            hidden = language(inputs_embeds=embeds, past_key_values=cache, use_cache=True).last_hidden_state
            model.lm_head(hidden)

    assert count(decode) == bench.forward_of(SMALL, prompt, num_completions, completion_tokens).base


@pytest.mark.parametrize("lora", [False, True], ids=["every weight", "LoRA"])
def test_step_is_what_one_token_costs(lora: bool) -> None:
    """A prompt of one token: nothing is masked, so PyTorch counts exactly the floor, backward passes included."""
    model = Qwen2AudioForConditionalGeneration(SMALL)
    adapted = get_peft_model(model, bench.adapters()) if lora else None

    def score() -> torch.Tensor:
        embeds = heard(model).mean(1, keepdim=True)
        return model.lm_head(model.model.language_model(inputs_embeds=embeds).last_hidden_state).sum()

    def step() -> None:
        with torch.no_grad():
            score()  # rollout
            with adapted.disable_adapter() if adapted else nullcontext():
                score()  # reference
        score().backward()

    floor = bench.step_floor(SMALL, [bench.Prompt(1, WINDOW)], num_completions=8, completion_tokens=1, lora=lora)
    assert count(step) == floor


def test_floor_of_mid() -> None:
    """The share of the parts, by hand: encoder 250 tokens of audio, language model 351 + 8 x 15 positions."""
    forward = bench.forward_of(mid_config(), bench.Prompt(351, 1000), 8, 16)
    tokens = 351 + 8 * 15
    assert forward.linear == 2 * tokens * 8 * (4 * 512 * 512 + 3 * 512 * 1408)
    assert forward.attention == 8 * 4 * 512 * (351 * 352 // 2 + 8 * (15 * 351 + 15 * 16 // 2))
    assert forward.head == 2 * (1 + 8 * 15) * 512 * 8192
    assert forward.first == 2 * 1000 * 256 * 128 * 3
    layer = 2 * 500 * (4 * 256**2 + 2 * 256 * 1024) + 4 * 500**2 * 256
    assert forward.encoder == 2 * 500 * 256 * 256 * 3 + 4 * layer + 2 * 250 * 256 * 512
