"""KTO: its loss from plain log-probs, what it reads, and a resume that is exact."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import PreTrainedTokenizerBase

from r1_aqa_repro import train_kto
from r1_aqa_repro.data.conversations import read_judged
from r1_aqa_repro.model.text_loading import load_policy
from tests.files import read_lines, write_lines
from tests.text_world import LORA, Build, answer_log_prob, arguments, first_batch, perturb

USER, GOOD = {"role": "user", "content": "Why?"}, [{"role": "assistant", "content": "Because."}]


def test_pairs_are_two_judged_answers_and_labels_are_true_or_false(tmp_path: Path) -> None:
    pair = {"id": "p", "prompt": [USER], "chosen": GOOD, "rejected": [GOOD[0] | {"content": "No."}], "task": "list"}
    judged = {"id": "j", "prompt": [USER], "completion": GOOD, "label": False}
    file = write_lines(tmp_path / "judged.jsonl", [pair, judged, judged | {"id": "k", "label": 1}])
    read = read_judged(file)
    found = [(each.id, each.label, each.answers) for each in read.records]
    assert found == [
        ("p/chosen", True, {"completion": "Because."}),
        ("p/rejected", False, {"completion": "No."}),
        ("j", False, {"completion": "Because."}),
    ]
    assert read.records[2].row() == {"prompt": [USER], "completion": GOOD, "label": False}
    (problem,) = read.problems
    assert "line 3: label is 1. Give label: true for a good answer, false for a bad one" in str(problem)


@pytest.mark.parametrize("how", [(), tuple(LORA)], ids=["copy", "lora"])
def test_the_loss_is_that_of_plain_log_probs(
    how: tuple[str, ...], build: Build, policy: Path, tokenizer: PreTrainedTokenizerBase, text_set: Path
) -> None:
    """1 - sigmoid(beta (h - z)) of good answers and 1 - sigmoid(beta (z - h)) of bad ones (arXiv 2402.01306, equation
    8), z the mean log-ratio, at least 0, of each prompt with its neighbour's answer."""
    trainer = build("kto", "--beta", "0.4", "--desirable_weight", "1.5", *how)
    perturb(trainer.model, 0.1)
    batch = first_batch(trainer, 4)
    by_text = {
        (each.messages[-1]["content"], each.answers["completion"]): each
        for each in read_judged(text_set / "pairs_train.jsonl").records
    }
    records = []
    for row in (trainer.train_dataset[index] for index in range(4)):
        asked = tokenizer.decode(row["prompt_ids"])
        said = tokenizer.decode(row["completion_ids"], skip_special_tokens=True).strip()
        (one,) = [
            each
            for (_, text), each in by_text.items()
            if text.strip() == said and each.messages[-1]["content"] in asked
        ]
        assert row["label"] == one.label
        records.append(one)
    assert {each.label for each in records} == {True, False}, "shuffled: both kinds are in the batch"

    start, own = load_policy(policy), trainer.model.eval()

    def ratios(texts: list[str]) -> np.ndarray:
        with torch.no_grad():
            both = [
                [
                    answer_log_prob(model, tokenizer, each.messages, text)
                    for each, text in zip(records, texts, strict=True)
                ]
                for model in (own, start)
            ]
        return np.subtract(*np.array(both, dtype=np.float64))

    texts = [each.answers["completion"] for each in records]
    h, z = ratios(texts), max(0.0, ratios(texts[-1:] + texts[:-1]).mean())
    sign = np.array([1 if each.label else -1 for each in records])
    losses = (1 - 1 / (1 + np.exp(-0.4 * sign * (h - z)))) * np.where(sign > 0, 1.5, 1.0)
    loss = trainer.compute_loss(trainer.model.train(), batch)
    assert loss.item() == pytest.approx(losses.mean(), abs=1e-5)  # as DPO's
    assert (
        trainer._metrics["train"]["kl_per_answer"] == [pytest.approx(z, abs=1e-4)]
        and "kl" not in trainer._metrics["train"]
    )
    assert np.ptp(losses) > 0.05  # the policy has moved


def test_an_interrupted_run_ends_with_the_same_weights(text_set: Path, policy: Path, tmp_path: Path) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    keys = ["--max_steps", "4", "--save_steps", "2"]
    for folder in (whole, parts):
        assert train_kto.main([*arguments("kto", folder, text_set, policy), *keys]) == 0
    for ended in (parts / "final", parts / "checkpoint-4"):  # as if it had been killed after step 2
        ended.rename(tmp_path / f"away-{ended.name}")
    assert train_kto.main([*arguments("kto", parts, text_set, policy), *keys]) == 0
    one, other = (load_file(folder / "final" / "model.safetensors") for folder in (whole, parts))
    assert all(torch.equal(one[name], other[name]) for name in one)
    start = load_file(policy / "model.safetensors")
    assert not any(torch.equal(one[name], start[name]) for name in one)
    assert "KTO" in (whole / "final" / "README.md").read_text(encoding="utf-8")


def test_what_cannot_teach_is_refused(
    text_set: Path, policy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    good = [
        {"prompt": pair["prompt"], "completion": pair["chosen"], "label": True}
        for pair in read_lines(text_set / "pairs_train.jsonl")
    ]
    file = write_lines(tmp_path / "good.jsonl", good)
    settings = ["--train_file", str(file), "--max_examples_per_device", "1", "--train_sampling_strategy", "random"]
    assert train_kto.main([*arguments("kto", tmp_path / "run", text_set, policy), *settings]) == 2
    errors = capsys.readouterr().err
    assert f"{file}: all of its 24 answers are good ones" in errors
    assert "max_examples_per_device: the KL is estimated from the other examples" in errors
    assert "train_sampling_strategy: random" in errors
