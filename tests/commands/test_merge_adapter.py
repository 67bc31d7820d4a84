"""Merging an adapter: the same answers without PEFT, a folder that every command takes, and nothing half done."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from eval import mmau
from r1_aqa_repro.data.conversations import TextPrompt
from r1_aqa_repro.data.prompts import prompt_text
from r1_aqa_repro.data.questions import AudioQuestion
from r1_aqa_repro.embedded.tiny_model import TEST, build_tiny_qwen2_audio
from r1_aqa_repro.merge_adapter import main, merge_adapter
from r1_aqa_repro.model import loading
from r1_aqa_repro.model.files import make_portable, processor_files
from r1_aqa_repro.model.inputs import token_ids
from r1_aqa_repro.model.text_loading import load_policy, load_reward_model
from r1_aqa_repro.score import pair_scores

TEXT_TARGETS = r".*\.(q_proj|v_proj|down_proj)"
TARGETS = r".*language_model.*\.(q_proj|k_proj|v_proj|o_proj|gate_proj|up_proj|down_proj)"


@pytest.fixture(scope="module")
def base(questions: list[AudioQuestion], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base model of its own, whose weights are enlarged until questions and clips get different answers."""
    folder = tmp_path_factory.mktemp("base") / "tiny"
    texts = [prompt_text(question, "answer") for question in questions]
    build_tiny_qwen2_audio(folder, texts=texts, seed=0, geometry=TEST)
    model = loading.load_model(folder)
    with torch.no_grad():
        for name, weights in model.named_parameters():
            if weights.ndim == 2 and "embed_positions" not in name:
                weights.mul_(40 if "projector" in name else 4)
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def made(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An adapter as training leaves it, drawn at random; shared, so change a copy only."""
    folder = tmp_path_factory.mktemp("adapter") / "final"
    adapted(loading.load_model(base), folder, TARGETS)
    make_portable(folder, processor_files(base))
    return folder


def adapted(model: PreTrainedModel, folder: Path, targets: str, task: str = "CAUSAL_LM") -> PeftModel:
    """The model with an adapter drawn at random, which is saved."""
    torch.manual_seed(0)
    config = LoraConfig(r=4, lora_alpha=16, target_modules=targets, init_lora_weights=False, task_type=task)
    peft = get_peft_model(model, config).eval()
    peft.save_pretrained(folder)
    return peft


@pytest.fixture
def adapter(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "final"))


def change_config(adapter: Path, **values: Any) -> None:
    path = adapter / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text(encoding="utf-8")) | values), encoding="utf-8")


def completions(checkpoint: Path, manifest: Path, out: Path) -> list[str]:
    """What `eval.mmau` records of a checkpoint."""
    argv = ["--ckpt", str(checkpoint), "--data", str(manifest), "--out", str(out), "--max-new-tokens", "12"]
    assert mmau.main([*argv, "--device", "cpu"]) == 0
    lines = (out / "predictions.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line)["completion"] for line in lines]


def test_the_merged_model_answers_as_base_and_adapter_do(
    base: Path, adapter: Path, manifest: Path, questions: list[AudioQuestion], tmp_path: Path, capfd: Any
) -> None:
    out = tmp_path / "merged"
    assert main(["--adapter", str(adapter), "--out", str(out)]) == 0
    assert f"wrote {out} (0.2 MB, float32)" in capfd.readouterr().err
    assert {path.name for path in out.iterdir()} == {path.name for path in base.iterdir()}
    assert processor_files(out) == processor_files(base)

    said = completions(adapter, manifest, tmp_path / "adapter-eval")
    assert completions(out, manifest, tmp_path / "merged-eval") == said
    assert len(set(said)) > 5  # the answers can differ
    assert said != completions(base, manifest, tmp_path / "base-eval")


def test_merged_weights_are_base_plus_scaled_product_of_the_adapter(base: Path, adapter: Path, tmp_path: Path) -> None:
    start = load_file(base / "model.safetensors")
    lora = load_file(adapter / "adapter_model.safetensors")
    merged = load_file(merge_adapter(adapter, tmp_path / "merged") / "model.safetensors")
    assert merged.keys() == start.keys()
    changed = [name for name in start if not torch.equal(merged[name], start[name])]
    assert len(changed) == 7
    for name in changed:
        module = next(key for key in lora if name.split("layers.0.")[1].removesuffix("weight") in key)
        a, b = (lora[module.replace("lora_A", kind).replace("lora_B", kind)] for kind in ("lora_A", "lora_B"))
        # float32, numbers of size 10
        assert torch.allclose(merged[name], start[name] + 16 / 4 * b @ a, atol=1e-5), name


def test_bfloat16_is_the_sum_rounded(adapter: Path, tmp_path: Path) -> None:
    full = load_file(merge_adapter(adapter, tmp_path / "full") / "model.safetensors")
    half = tmp_path / "half"
    assert main([f"--adapter={adapter}", "--out", str(half), "--dtype=bfloat16"]) == 0
    rounded = load_file(half / "model.safetensors")
    assert all(torch.equal(value.to(torch.bfloat16), rounded[name]) for name, value in full.items())


def test_a_base_that_was_moved_is_given_as_an_option(base: Path, adapter: Path, tmp_path: Path, capfd: Any) -> None:
    expected = merge_adapter(adapter, tmp_path / "expected") / "model.safetensors"
    change_config(adapter, base_model_name_or_path="/gone/base")
    argv = ["--adapter", str(adapter), "--out", str(tmp_path / "merged")]
    assert main(argv) == 2
    said = capfd.readouterr().err
    assert "error: /gone/base: " in said and "as --base." in said and not (tmp_path / "merged").exists()
    assert main([*argv, "--base", str(base)]) == 0
    assert (tmp_path / "merged" / "model.safetensors").read_bytes() == expected.read_bytes()


def test_a_text_policy_answers_as_base_and_adapter_do(
    policy: Path, tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    together = adapted(load_policy(policy), tmp_path / "final", TEXT_TARGETS)
    assert main(["--adapter", str(tmp_path / "final"), "--out", str(tmp_path / "merged")]) == 0
    ids = torch.tensor(token_ids(tokenizer, [[{"role": "user", "content": "Name 3 fruits."}]], complete=False))
    logits = load_policy(tmp_path / "merged").eval()(input_ids=ids).logits
    torch.testing.assert_close(logits, together(input_ids=ids).logits, atol=1e-4, rtol=0)
    assert not torch.allclose(logits, load_policy(policy)(input_ids=ids).logits, atol=1e-2)


def test_a_reward_model_scores_as_base_and_adapter_do(
    policy: Path, tokenizer: PreTrainedTokenizerBase, pairs: list[TextPrompt], tmp_path: Path
) -> None:
    """The head too, which the adapter brings along."""
    together = adapted(load_reward_model(policy, tokenizer, new_head=True), tmp_path / "final", TEXT_TARGETS, "SEQ_CLS")
    assert main(["--adapter", str(tmp_path / "final"), "--out", str(tmp_path / "merged")]) == 0
    merged = load_reward_model(tmp_path / "merged", tokenizer)
    for scores, expected in zip(*(pair_scores(model, tokenizer, pairs) for model in (merged, together)), strict=True):
        assert scores == pytest.approx(expected, abs=1e-4)


def lose_a_tensor(weights: Path) -> None:
    save_file(dict(list(load_file(weights).items())[1:]), weights)


@pytest.mark.parametrize(
    ("damage", "what"),
    [
        (lambda config, weights: change_config(config.parent, peft_type="IA3"), "the adapter is a IA3, not a LORA"),
        (lambda config, weights: config.unlink(), "the folder holds no adapter_config.json"),
        (lambda config, weights: weights.unlink(), "the folder holds no weights"),
        (lambda config, weights: lose_a_tensor(weights), "the adapter does not fit its base model"),
        (lambda config, weights: os.truncate(weights, 1000), "damaged or cut off"),
    ],
)
def test_a_damaged_adapter_is_refused(adapter: Path, tmp_path: Path, capfd: Any, damage: Any, what: str) -> None:
    damage(adapter / "adapter_config.json", adapter / "adapter_model.safetensors")
    assert main(["--adapter", str(adapter), "--out", str(tmp_path / "merged")]) == 2
    said = capfd.readouterr().err
    assert f"error: {adapter}" in said and what in said
    assert {path.name for path in tmp_path.iterdir()} == {"final"}


def test_an_output_folder_that_is_there_is_refused(adapter: Path, tmp_path: Path, capfd: Any) -> None:
    out = tmp_path / "merged"
    out.mkdir()
    assert main(["--adapter", str(adapter), "--out", str(out)]) == 2
    assert f"error: {out}: is there already" in capfd.readouterr().err
    assert not list(out.iterdir())


def test_too_little_space_is_refused(adapter: Path, tmp_path: Path, capfd: Any, monkeypatch: Any) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda path: shutil._ntuple_diskusage(10, 10, 0))
    assert main(["--adapter", str(adapter), "--out", str(tmp_path / "merged")]) == 2
    assert "the merged weights need" in capfd.readouterr().err
