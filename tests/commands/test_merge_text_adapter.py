"""Adapters of text models, merged: the same log-probs and the same scores without PEFT."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import PreTrainedTokenizerBase

from r1_aqa_repro.data.conversations import PreferencePair
from r1_aqa_repro.merge_adapter import main
from r1_aqa_repro.model.inputs import token_ids
from r1_aqa_repro.model.text_loading import load_policy, load_reward_model
from r1_aqa_repro.score import pair_scores

TARGETS = ["q_proj", "v_proj", "down_proj"]


def test_a_policy(policy: Path, tokenizer: PreTrainedTokenizerBase, tmp_path: Path) -> None:
    torch.manual_seed(0)
    config = LoraConfig(r=4, target_modules=TARGETS, init_lora_weights=False, task_type="CAUSAL_LM")
    adapted = get_peft_model(load_policy(policy), config).eval()
    adapted.save_pretrained(tmp_path / "final")
    assert main(["--adapter", str(tmp_path / "final"), "--out", str(tmp_path / "merged")]) == 0
    ids = torch.tensor(token_ids(tokenizer, [[{"role": "user", "content": "Name 3 fruits."}]], complete=False))
    merged = load_policy(tmp_path / "merged").eval()
    torch.testing.assert_close(merged(input_ids=ids).logits, adapted(input_ids=ids).logits, atol=1e-4, rtol=0)
    assert not torch.allclose(merged(input_ids=ids).logits, load_policy(policy)(input_ids=ids).logits, atol=1e-2)


def test_a_reward_model(
    policy: Path, tokenizer: PreTrainedTokenizerBase, pairs: list[PreferencePair], tmp_path: Path
) -> None:
    torch.manual_seed(0)
    config = LoraConfig(r=4, target_modules=TARGETS, init_lora_weights=False, task_type="SEQ_CLS")
    adapted = get_peft_model(load_reward_model(policy, tokenizer, new_head=True), config)
    adapted.save_pretrained(tmp_path / "final")
    tokenizer.save_pretrained(tmp_path / "final")
    assert main(["--adapter", str(tmp_path / "final"), "--out", str(tmp_path / "merged")]) == 0
    chosen, rejected = pair_scores(adapted, tokenizer, pairs)
    merged = load_reward_model(tmp_path / "merged", tokenizer)
    assert pair_scores(merged, tokenizer, pairs) == (
        pytest.approx(chosen, abs=1e-4),
        pytest.approx(rejected, abs=1e-4),
    )  # the head too, which the adapter brings along
