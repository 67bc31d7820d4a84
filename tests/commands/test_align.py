"""Aligning a projector: the closed form, its size, what it leaves alone, and what is refused."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from safetensors.torch import load_file, save_file
from transformers import PreTrainedModel, ProcessorMixin, Qwen2AudioForConditionalGeneration

from r1_aqa_repro.align import ACCOUNT, RIDGE, Sums, align, embedding_of, main
from r1_aqa_repro.data.questions import AudioQuestion, write_manifest
from r1_aqa_repro.data.yaml_file import read_yaml
from r1_aqa_repro.embedded.tiny_qwen2 import build_tiny_qwen2
from r1_aqa_repro.model.inputs import question_inputs
from r1_aqa_repro.model.loading import load_model
from tests.conftest import ROOT
from tests.files import contents, read_json, write_lines

PROJECTOR = "multi_modal_projector.linear"


def features_of(model: PreTrainedModel, processor: ProcessorMixin, question: AudioQuestion) -> torch.Tensor:
    """What the encoder gives for a clip, [tokens, d_model]."""
    inputs = question_inputs(processor, [question], "answer")
    with torch.no_grad():
        return model.model.audio_tower.encode(inputs.input_features, inputs.feature_attention_mask).T


def projected(model: PreTrainedModel, features: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return model.model.multi_modal_projector(features)


def make_tones(folder: Path, answers: Sequence[str], pitches: Sequence[float], seed: int) -> list[AudioQuestion]:
    """Five clips of noisy tones an answer, of different lengths and levels; the answer tells the pitch."""
    folder.mkdir(parents=True)
    rng, questions = np.random.default_rng(seed), []
    for index in range(5 * len(answers)):
        time = np.arange(int(rng.uniform(0.5, 2.5) * 16_000)) / 16_000
        pitch = pitches[index % len(answers)] * rng.uniform(0.97, 1.03)
        wave = rng.uniform(0.2, 0.5) * np.sin(2 * np.pi * pitch * time) + 0.02 * rng.standard_normal(len(time))
        soundfile.write(folder / f"{index}.wav", wave, 16_000)
        answer = answers[index % len(answers)]
        questions.append(
            AudioQuestion(f"{folder.name}-{index}", folder / f"{index}.wav", "Which?", tuple(answers), answer)
        )
    return questions


def run(model: Path | str, data: Path, out: Path, *more: str) -> int:
    return main(["--model", str(model), "--data", str(data), "--out", str(out), *more])


@pytest.fixture
def model(model_folder: Path) -> PreTrainedModel:
    return load_model(model_folder)


def test_the_solution_is_that_of_least_squares_with_rows_for_the_ridge() -> None:
    """numpy's lstsq on centred rows, each times the root of its weight, and below them the root of the penalty."""
    rng = np.random.default_rng(0)
    clips = [rng.normal(3, 2, (tokens, 5)) for tokens in (4, 1, 9)]
    targets = rng.normal(-1, 1, (3, 4))
    sums = Sums(5, 4)
    for clip, target in zip(clips, targets, strict=True):
        sums.add(torch.tensor(clip), torch.tensor(target))
    solution, r2, variance = (value.numpy() for value in sums.solve(0.1))

    x, y = np.concatenate(clips), np.repeat(targets, [4, 1, 9], 0)
    weights = np.repeat([1 / 4, 1, 1 / 9], [4, 1, 9])[:, None] / 3
    x, y = x - (weights * x).sum(0), y - (weights * y).sum(0)
    penalty = 0.1 * (weights * x**2).sum(0).mean()
    rows = np.concatenate([np.sqrt(weights) * x, np.sqrt(penalty) * np.eye(5)])
    expected = np.linalg.lstsq(rows, np.concatenate([np.sqrt(weights) * y, np.zeros((5, 4))]), rcond=None)[0]
    np.testing.assert_allclose(solution, expected, rtol=0, atol=1e-12)  # float64, numbers of size 1
    residual = (weights * (y - x @ expected) ** 2).sum()
    assert r2 == pytest.approx(1 - residual / (weights * y**2).sum(), abs=1e-12)
    assert variance == pytest.approx((weights * (x @ expected) ** 2).sum() / 4, abs=1e-12)


def test_a_clip_counts_once_and_stands_for_the_mean_of_its_answers(
    model: PreTrainedModel, processor: ProcessorMixin, questions: list[AudioQuestion]
) -> None:
    """Asked twice with one answer, and with two: least squares on the pairs, of which those of a clip share its 1."""
    again = replace(questions[0], id="again", question="And what is this?")
    other = replace(questions[1], id="other", choices=("loud", "soft"), answer="soft")
    fit = align(model, processor, [*questions[:6], again, other], ridge=0.2)

    pairs = [*((question, 1.0) for question in (questions[0], *questions[2:6])), (questions[1], 0.5), (other, 0.5)]
    table = model.get_input_embeddings().weight.detach()
    x, y, weights = [], [], []
    for question, weight in pairs:
        features = features_of(model, processor, question).double()
        x.append(features)
        y.append(embedding_of(str(question.answer), processor.tokenizer, table).expand(len(features), -1))
        weights += [weight / len(features) / 6] * len(features)
    features, targets, w = torch.cat(x), torch.cat(y), torch.tensor(weights, dtype=torch.float64)[:, None]
    features, targets = features - (w * features).sum(0), targets - (w * targets).sum(0)
    covariance = features.T @ (w * features)
    covariance += 0.2 * covariance.diagonal().mean() * torch.eye(len(covariance))
    expected = torch.linalg.solve(covariance, features.T @ (w * targets))
    found = model.model.multi_modal_projector.linear.weight.detach().T.double()
    scale = (found * expected).sum() / expected.square().sum()  # by which the outputs have been brought to size
    assert scale > 0 and torch.allclose(found, scale * expected, rtol=0, atol=1e-5 * float(found.abs().max()))
    assert (fit.clips, fit.answers) == (6, len({question.answer for question, _ in pairs}))
    distinct = {question.audio_path: question for question in questions[:6]}
    assert fit.tokens == sum(len(features_of(model, processor, one)) for one in distinct.values())


def test_outputs_have_the_mean_and_the_size_of_token_embeddings(
    model: PreTrainedModel, processor: ProcessorMixin, questions: list[AudioQuestion]
) -> None:
    with torch.no_grad():
        model.get_input_embeddings().weight.add_(0.05)  # a mean that is not about 0
    align(model, processor, questions)
    table = model.get_input_embeddings().weight.detach()
    outputs = [projected(model, features_of(model, processor, question)) for question in questions]
    mean = torch.stack([output.mean(0) for output in outputs]).mean(0)
    assert torch.allclose(mean, table.mean(0), atol=1e-5)  # float32 sums of numbers below 1
    size = torch.stack([(output - mean).square().mean() for output in outputs]).mean()
    assert float(size) == pytest.approx(float((table - table.mean(0)).square().mean()), rel=1e-4)


def test_the_right_answer_is_the_nearest_for_clips_never_heard(
    model: PreTrainedModel, processor: ProcessorMixin, tmp_path: Path
) -> None:
    """Three pitches that the random encoder tells apart; without it a third would be right."""
    answers, pitches = ("low", "high", "silence"), (150.0, 900.0, 5000.0)
    heard = make_tones(tmp_path / "heard", answers, pitches, seed=0)
    held_out = make_tones(tmp_path / "held-out", answers, pitches, seed=1)
    table = model.get_input_embeddings().weight.detach()
    embedded = torch.stack([embedding_of(answer, processor.tokenizer, table) for answer in answers])

    def share_right() -> float:
        right = []
        for question in held_out:
            output = projected(model, features_of(model, processor, question)).mean(0).double()
            near = torch.cosine_similarity(output - table.mean(0), embedded - embedded.mean(0), dim=-1)
            right.append(answers[int(near.argmax())] == question.answer)
        return sum(right) / len(right)

    assert share_right() < 0.7
    assert align(model, processor, heard).r2 > 0.5
    assert share_right() == 1.0


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_folder_differs_from_the_model_in_the_projector_alone(
    model_folder: Path, manifest: Path, tmp_path: Path, capfd: Any, dtype: torch.dtype
) -> None:
    """Twice the same bytes; the weights keep their type, and the files of the processor theirs."""
    base = model_folder
    if dtype is not torch.float32:
        base = tmp_path / "base"
        load_model(model_folder, dtype).save_pretrained(base)
        for name, content in contents(model_folder).items():
            if name not in ("config.json", "model.safetensors"):
                (base / name).write_bytes(content)
    first, second = tmp_path / "1" / "aligned", tmp_path / "2" / "aligned"
    assert run(base, manifest, first) == 0 and run(base, manifest, second) == 0
    assert contents(first) == contents(second)
    assert set(os.listdir(tmp_path / "1")) == {"aligned"}
    before, after = (load_file(folder / "model.safetensors") for folder in (base, first))
    assert before.keys() == after.keys() and {tensor.dtype for tensor in after.values()} == {dtype}
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == {name for name in before if PROJECTOR in name} and len(changed) == 2
    own = {name: content for name, content in contents(first).items() if name not in (ACCOUNT, "README.md")}
    assert own.keys() == contents(base).keys()
    same = own.keys() - {"config.json", "model.safetensors"}
    assert {name: own[name] for name in same} == {name: contents(base)[name] for name in same}
    Qwen2AudioForConditionalGeneration.from_pretrained(first)

    account = read_json(first / ACCOUNT)
    assert (account["clips"], account["answers"], account["ridge"]) == (24, 4, RIDGE)
    said = f"24 clips, {account['tokens']} audio tokens, R2 {account['r2']:.3f}"
    assert said in capfd.readouterr().err and 0 < account["r2"] < 1
    assert f"R2 on these clips: {account['r2']:.3f}" in (first / "README.md").read_text(encoding="utf-8")


def test_the_card_of_the_model_is_kept(model_folder: Path, manifest: Path, tmp_path: Path) -> None:
    base = Path(shutil.copytree(model_folder, tmp_path / "base"))
    (base / "README.md").write_text("---\nlicense: apache-2.0\n---\n\n# A model of two parts\n", encoding="utf-8")
    assert run(base, manifest, tmp_path / "aligned") == 0
    card = (tmp_path / "aligned" / "README.md").read_text(encoding="utf-8")
    assert card.startswith("---\nlicense: apache-2.0\n---\n\n# A model of two parts\n\n## Alignment\n")


def test_options_stand_in_a_config_and_the_command_line_overrides_it(
    model_folder: Path, manifest: Path, tmp_path: Path
) -> None:
    config = tmp_path / "align.yaml"
    config.write_text(f"ridge: 1e-1\naudio_channel: mean\nmodel: {model_folder}\n", encoding="utf-8")
    given = ["--config", str(config), "--data", str(manifest), "--out", str(tmp_path / "aligned")]
    assert main([*given, "--audio-channel", "first"]) == 0
    account = read_json(tmp_path / "aligned" / ACCOUNT)
    assert (account["ridge"], account["audio_channel"], list(account["model"])) == (0.1, "first", [str(model_folder)])


def test_the_published_config_says_every_setting() -> None:
    assert read_yaml(ROOT / "configs" / "align_small.yaml") == {"ridge": RIDGE, "audio_channel": "first"}


def test_all_that_is_wrong_with_a_config_is_named(tmp_path: Path, capfd: Any) -> None:
    config = tmp_path / "align.yaml"
    config.write_text("ridge: -1\naudio_channel: left\nrigde: 0.1\nmodel:\nout: [aligned]\n", encoding="utf-8")
    assert main(["--config", str(config)]) == 2
    said = capfd.readouterr().err
    assert f"error: {config}: ridge: -1 is not a positive number" in said
    assert f"error: {config}: audio_channel: left is not one of first, mean" in said
    assert f"error: {config}: rigde: there is no such key" in said
    assert f"error: {config}: model: None is no text and no number" in said
    assert f"error: {config}: out: ['aligned'] is no text and no number" in said


def test_what_is_not_given_is_named(tmp_path: Path, capfd: Any) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["--out", str(tmp_path / "aligned")])
    assert ended.value.code == 2 and "arguments are required: --model, --data" in capfd.readouterr().err


def test_questions_that_cannot_be_learned_from_are_all_named(
    model_folder: Path, questions: list[AudioQuestion], tmp_path: Path, capfd: Any
) -> None:
    """Records first; clips, which take longer, once nothing else is wrong."""
    (tmp_path / "short.wav").write_bytes(b"")
    soundfile.write(tmp_path / "short.wav", np.zeros(100), 16_000)
    gone, short = (replace(questions[0], id=name, audio_path=tmp_path / f"{name}.wav") for name in ("gone", "short"))
    manifest, out = tmp_path / "manifest.jsonl", tmp_path / "aligned"

    write_manifest(manifest, [gone, questions[1], replace(questions[2], answer=None)])
    assert run(model_folder, manifest, out) == 2
    said = capfd.readouterr().err
    assert f"error: {manifest}: q2: the question has no answer" in said and "gone" not in said

    write_manifest(manifest, [gone, short, *questions[1:3]])
    assert run(model_folder, manifest, out) == 2
    said = capfd.readouterr().err
    assert f"error: {manifest}: gone: {gone.audio_path}: no such audio file" in said
    assert f"error: {manifest}: short: {short.audio_path}: the clip is too short" in said
    assert set(os.listdir(tmp_path)) == {"manifest.jsonl", "short.wav"}


def test_answers_that_are_all_the_same_are_refused(
    model_folder: Path, questions: list[AudioQuestion], tmp_path: Path, capfd: Any
) -> None:
    manifest = tmp_path / "manifest.jsonl"
    write_manifest(manifest, [replace(question, answer="low") for question in questions])
    assert run(model_folder, manifest, tmp_path / "aligned") == 2
    assert f"error: {manifest}: all clips have the same answer" in capfd.readouterr().err


def test_models_without_such_a_projector_are_refused(
    model_folder: Path, manifest: Path, tmp_path: Path, capfd: Any
) -> None:
    text, adapter, deeper = (tmp_path / name for name in ("text", "adapter", "deeper"))
    build_tiny_qwen2(text, texts=["low high"], seed=0)
    adapter.mkdir()
    (adapter / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": str(model_folder)}))
    shutil.copytree(model_folder, deeper)
    tensors = load_file(deeper / "model.safetensors")
    second = {
        name.replace("linear", "linear_2"): tensor.clone() for name, tensor in tensors.items() if PROJECTOR in name
    }
    save_file(tensors | second, deeper / "model.safetensors", {"format": "pt"})
    for folder, what in (
        (text, "the model is a qwen2, not a qwen2_audio"),
        (adapter, "it is an adapter, which has no projector of its own"),
        (deeper, "the weights have 2 unexpected keys"),
    ):
        assert run(folder, manifest, tmp_path / "aligned") == 2
        assert f"error: {folder}: {what}" in capfd.readouterr().err


def test_model_data_and_folder_are_refused_at_once(
    model_folder: Path, tmp_path: Path, capfd: Any, monkeypatch: Any
) -> None:
    out, data = tmp_path / "aligned", write_lines(tmp_path / "data.jsonl", ['{"id": 1}'])
    out.mkdir()
    monkeypatch.setattr("r1_aqa_repro.run.checks.shutil.disk_usage", lambda folder: type("", (), {"free": 10}))
    assert run(model_folder, data, out) == 2
    said = capfd.readouterr().err
    assert f"error: {out}: is there already" in said and f"error: {data}:line 1: unknown record format" in said
    assert f"error: {tmp_path}: the aligned weights need 0.0 GB" in said
    assert not list(out.iterdir())


def test_clips_that_tell_nothing_end_it_and_leave_nothing(
    model_folder: Path, questions: list[AudioQuestion], tmp_path: Path, capfd: Any
) -> None:
    silent = []
    for question in questions[:4]:
        path = tmp_path / f"{question.id}.wav"
        soundfile.write(path, np.zeros(16_000), 16_000)
        silent.append(replace(question, audio_path=path))
    write_manifest(tmp_path / "manifest.jsonl", silent)
    (tmp_path / "out").mkdir()
    assert run(model_folder, tmp_path / "manifest.jsonl", tmp_path / "out" / "aligned") == 1
    assert "the encoder's features tell nothing of the answers" in capfd.readouterr().err
    assert not list((tmp_path / "out").iterdir())


def test_an_interrupted_run_leaves_nothing(
    model_folder: Path, manifest: Path, tmp_path: Path, monkeypatch: Any
) -> None:
    def interrupt(*args: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("r1_aqa_repro.align.make_portable", interrupt)  # the weights have been written
    assert run(model_folder, manifest, tmp_path / "aligned") == 130
    assert not list(tmp_path.iterdir())
