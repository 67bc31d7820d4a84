"""Text SFT: what is learned is the answer and its end, a mean over tokens; nothing is cut or left out in silence."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from transformers import PreTrainedTokenizerBase

from r1_aqa_repro.data.conversations import read_sft
from r1_aqa_repro.model.inputs import IGNORE
from tests.files import write_lines
from tests.text_world import Build, answer_log_prob, first_batch


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
        total = sum(
            float(answer_log_prob(trainer.model, tokenizer, each.messages, each.answers["completion"]))
            for each in examples
        )
    # a mean of about 100 log-probs of size 6 from a softmax in float32
    assert loss.item() == pytest.approx(-total / tokens, abs=1e-5)


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


def test_the_longest_example_that_fits_is_whole(
    build: Build, text_set: Path, tokenizer: PreTrainedTokenizerBase
) -> None:
    """TRL cuts at max_length without a word: what passes the check is not cut."""
    lengths = [len(row["input_ids"]) for row in build("sft").train_dataset]
    cut_to = build("sft", "--max_length", str(max(lengths)))
    assert [len(row["input_ids"]) for row in cut_to.train_dataset] == lengths
