"""Text SFT: what is learned is the answer and its end, a mean over tokens; nothing is cut or left out in silence."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from r1_aqa_repro import train_sft_text
from r1_aqa_repro.data.conversations import read_sft
from r1_aqa_repro.model.inputs import IGNORE
from tests.text_world import Build, answer_log_prob, arguments, first_batch, state_of, write_lines


def test_only_the_answer_is_labelled(build: Build, text_set: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    records = [json.loads(line) for line in (text_set / "sft.jsonl").read_text(encoding="utf-8").splitlines()[:3]]
    turns = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Name a tool."},
        {"role": "assistant", "content": "saw."},  # an earlier answer is part of the prompt
        {"role": "user", "content": "And another?"},
    ]
    records.append({"prompt": turns, "completion": [{"role": "assistant", "content": "drill."}]})
    file = write_lines(text_set.parent / "turns.jsonl", records)
    batch = first_batch(build("sft", "--train_file", str(file)), 4)
    for row, record in enumerate(records):
        labelled = batch["labels"][row] != IGNORE
        assert torch.equal(batch["labels"][row][labelled], batch["input_ids"][row][labelled])
        answer = record["completion"][0]["content"]
        assert tokenizer.decode(batch["labels"][row][labelled]) == f"{answer}<|im_end|>\n"
        seen = tokenizer.decode(batch["input_ids"][row][: int(labelled.nonzero()[0])])
        assert seen == tokenizer.apply_chat_template(record["prompt"], tokenize=False, add_generation_prompt=True)


def test_the_loss_is_the_mean_over_tokens(build: Build, text_set: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    trainer = build("sft")
    batch = first_batch(trainer)
    tokens = int((batch["labels"] != IGNORE).sum())
    loss = trainer.compute_loss(trainer.model, batch, num_items_in_batch=torch.tensor(tokens))
    examples = read_sft(text_set / "sft.jsonl").records[:8]
    with torch.no_grad():
        total = sum(float(answer_log_prob(trainer.model, tokenizer, each.prompt, each.completion)) for each in examples)
    # a mean of about 100 log-probs of size 6 from a softmax in float32
    assert loss.item() == pytest.approx(-total / tokens, abs=1e-5)


def test_training_learns_the_answers(build: Build) -> None:
    trainer = build("sft", "--max_steps", "10", "--learning_rate", "1e-2")
    before = state_of(trainer.model)
    trainer.train()
    after = trainer.model.state_dict()
    assert [name for name in before if torch.equal(before[name], after[name])] == []
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert losses[-1] < losses[0] - 1


def test_examples_too_long_are_refused_by_name_or_left_out_by_name(
    text_set: Path, policy: Path, tmp_path: Path, capsys: Any
) -> None:
    records = [json.loads(line) for line in (text_set / "sft.jsonl").read_text(encoding="utf-8").splitlines()[:8]]
    records[2] = {**records[2], "id": "endless", "completion": [{"role": "assistant", "content": "plum, " * 60}]}
    del records[5]["completion"]
    file = write_lines(tmp_path / "sft.jsonl", records)
    argv = [*arguments("sft", tmp_path / "run", text_set, policy), "--train_file", str(file), "--max_length", "100"]
    assert train_sft_text.main(argv) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 2 and not (tmp_path / "run").exists()
    assert f"{file}:line 6: completion is absent or null" in lines[0]
    assert f"{file}: endless: " in lines[1] and "tokens are more than the 100 that max_length allows" in lines[1]

    assert train_sft_text.main([*argv, "--skip_bad_records", "true"]) == 0
    skipped = json.loads((tmp_path / "run" / "skipped_records.json").read_text(encoding="utf-8"))
    assert [f"error: {problem}" for problem in skipped] == lines
    trained_on = Dataset.from_parquet(str(tmp_path / "run" / "examples" / "train.parquet"), cache_dir=str(tmp_path))
    kept = [record for index, record in enumerate(records) if index not in (2, 5)]
    assert trained_on["completion"] == [record["completion"] for record in kept]


def test_answers_that_look_like_dates_stay_texts(build: Build, tmp_path: Path) -> None:
    """Read from JSON lines, a column of nothing but dates would become one of timestamps."""
    answers = [f"2024-03-0{day}" for day in range(1, 7)]
    records = [
        {"prompt": [{"role": "user", "content": "When?"}], "completion": [{"role": "assistant", "content": text}]}
        for text in answers
    ]
    trainer = build("sft", "--train_file", str(write_lines(tmp_path / "dates.jsonl", records)))
    texts = [trainer.processing_class.decode(ids) for ids in trainer.train_dataset["input_ids"]]
    assert all(f"{answer}<|im_end|>" in text for answer, text in zip(answers, texts, strict=True))


def test_a_file_of_nothing_but_bad_examples_is_refused(
    text_set: Path, policy: Path, tmp_path: Path, capsys: Any
) -> None:
    file = write_lines(tmp_path / "sft.jsonl", [{"prompt": "Why?", "completion": "So."}] * 2)
    argv = [*arguments("sft", tmp_path / "run", text_set, policy), "--train_file", str(file)]
    assert train_sft_text.main([*argv, "--skip_bad_records", "true"]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 2 and not (tmp_path / "run").exists()


def test_the_longest_example_that_fits_is_whole(
    build: Build, text_set: Path, tokenizer: PreTrainedTokenizerBase
) -> None:
    """TRL cuts at max_length without a word: what passes the check is not cut."""
    lengths = [len(row["input_ids"]) for row in build("sft").train_dataset]
    cut_to = build("sft", "--max_length", str(max(lengths)))
    assert [len(row["input_ids"]) for row in cut_to.train_dataset] == lengths
