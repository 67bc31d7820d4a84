"""The step benchmark: its figures, and both modes at work."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from peft import get_peft_model
from transformers import Qwen2AudioConfig, Qwen2AudioForConditionalGeneration

from r1_aqa_repro.common.errors import Failed
from r1_aqa_repro.model import loading
from r1_aqa_repro.planning.geometries import qwen2_audio_7b_config
from scripts import bench_grpo_step as bench

KEYS = {
    "geometry", "mode", "parameters", "prompts", "prompt_tokens", "completions", "completion_tokens", "gflop_per_step",
    "seconds_per_step", "completions_per_second", "peak_memory_mb", "breakdown", "memory_over_models_mb",
}  # fmt: skip
BREAKDOWN = {"audio", "generation", "reward", "reference", "forward", "backward", "optimizer", "other"}


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
        assert sum(figures["breakdown"].values()) == pytest.approx(figures["seconds_per_step"], abs=9 * 5e-5)
        assert figures["completions_per_second"] == pytest.approx(16 / figures["seconds_per_step"], rel=0.01)
        assert all(figures["breakdown"][name] > 0 for name in BREAKDOWN)
        assert 0 < figures["memory_over_models_mb"] < figures["peak_memory_mb"]
    shared, plain = report["shared"], report["plain"]
    # 8 completions a prompt of which prompt and clip are nearly everything
    assert 5 * shared["gflop_per_step"] < plain["gflop_per_step"] < 8 * shared["gflop_per_step"]
    assert report["ratio"]["min"] <= report["ratio"]["median"] <= report["ratio"]["max"]
    assert "GFLOP a step" in capsys.readouterr().out


def test_both_modes_with_adapters_as_7b_has_them(tmp_path: Path) -> None:
    """What 7b does on a GPU, in small: weights drawn in place, bfloat16, LoRA, the reference without adapters."""
    setup = replace(bench.SETUPS["tiny"], prompts=1, completion_tokens=3, lora=True)
    results = bench.measure(setup, ["shared", "plain"], tmp_path, steps=1)
    # an earlier step has encoded the clip, once for all: nothing of it is left
    assert 8 * results["shared"]["gflop_per_step"] < results["plain"]["gflop_per_step"]


def test_ratio_is_of_pairs() -> None:
    # pairs 4, 2 and 10: not the ratio of the medians, which would be 3
    ratio = bench.ratio_of(fast=[1.0, 2.0, 0.5], slow=[4.0, 4.0, 5.0])
    assert ratio == {"median": 4.0, "min": 2.0, "max": 10.0}


def test_a_completion_of_another_length_is_a_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    build, setup = bench.build_trainer, replace(bench.SETUPS["tiny"], prompts=1, completion_tokens=3)
    monkeypatch.setattr(bench, "build_trainer", lambda setup, *more: build(replace(setup, completion_tokens=2), *more))
    with pytest.raises(Failed, match="the same work"):
        bench.measure(setup, ["shared"], tmp_path, steps=1)


def test_7b_is_refused_without_a_gpu(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert bench.main(["--geometry", "7b", "--mode", "shared"]) == 2
    assert "needs a GPU" in capsys.readouterr().err


@pytest.mark.parametrize(("geometry", "prompts"), [("mid", 2), ("7b", 3)])
def test_prompts_have_exactly_the_published_length(geometry: str, prompts: int, tmp_path: Path) -> None:
    setup = replace(bench.SETUPS[geometry], prompts=prompts)
    questions = bench.prepare(setup, tmp_path)
    config = Qwen2AudioConfig.from_pretrained(tmp_path / "model")
    processor = loading.load_processor(tmp_path / "model")
    inputs = bench.question_inputs(processor, questions, bench.PROMPT_STYLE)
    audio = [ids.count(config.audio_token_id) for ids in inputs.prompt_ids]
    assert [len(ids) for ids in inputs.prompt_ids] == [351] * prompts and audio == [250] * prompts
    assert (tmp_path / "model" / "model.safetensors").is_file() == (geometry == "mid")
    loading.check_pair(config, processor, geometry)


def test_7b_trains_adapters_of_the_language_model() -> None:
    with torch.device("meta"):
        model = Qwen2AudioForConditionalGeneration(qwen2_audio_7b_config())
    adapted = get_peft_model(model, bench.adapters())
    trained = {name for name, parameter in adapted.named_parameters() if parameter.requires_grad}
    assert len(trained) == 32 * 4 * 2 and all("language_model" in name for name in trained)
