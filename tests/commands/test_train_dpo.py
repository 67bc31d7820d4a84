"""DPO: its loss from plain log-probs, a reference that stays, and the ways to have one that come to the same."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerBase

from r1_aqa_repro.data.conversations import TextPrompt
from r1_aqa_repro.model.text_loading import load_policy
from tests.text_world import LORA, Build, answer_log_prob, first_batch, perturb, state_of

# a sum of up to 20 log-probs of size 6, each from a softmax in float32 over 730 tokens
LOGP_TOLERANCE = 1e-4


def log_probs(
    model: torch.nn.Module, tokenizer: PreTrainedTokenizerBase, pairs: list[TextPrompt]
) -> NDArray[np.float64]:
    """log p(answer | prompt) of the chosen and the rejected answers: [N, 2]."""
    answers = [(pair.messages, text) for pair in pairs for text in pair.answers.values()]
    with torch.no_grad():
        values = [float(answer_log_prob(model, tokenizer, prompt, text)) for prompt, text in answers]
    return np.array(values).reshape(-1, 2)


def dpo_loss(policy: NDArray[np.float64], reference: NDArray[np.float64], beta: float) -> float:
    """-log sigmoid(beta (log-ratio chosen - log-ratio rejected)), a mean over pairs (arXiv 2305.18290, equation 7)."""
    ratios = policy - reference
    return float(np.logaddexp(0, -beta * (ratios[:, 0] - ratios[:, 1])).mean())


@pytest.mark.parametrize(
    ("how", "beta"),
    [((), 0.1), ((), 0.5), (("--precompute_ref_log_probs", "true"), 0.1), (tuple(LORA), 0.5)],
    ids=["copy", "copy, other beta", "precomputed", "lora"],
)
def test_the_loss_is_that_of_plain_log_probs(
    how: tuple[str, ...],
    beta: float,
    build: Build,
    policy: Path,
    tokenizer: PreTrainedTokenizerBase,
    pairs: list[TextPrompt],
) -> None:
    trainer = build("dpo", "--beta", str(beta), *how)
    perturb(trainer.model, 0.1)  # with LoRA the adapter alone
    own = log_probs(trainer.model.eval(), tokenizer, pairs[:8])
    start = log_probs(load_policy(policy), tokenizer, pairs[:8])
    expected = dpo_loss(own, start, beta)
    loss = trainer.compute_loss(trainer.model.train(), first_batch(trainer))
    assert loss.item() == pytest.approx(expected, abs=1e-5)  # beta times sums that are much closer than their terms
    assert abs(expected - np.log(2)) > 20 * LOGP_TOLERANCE  # the policy has moved
    logged = {name: values[0] for name, values in trainer._metrics["train"].items()}
    for index, name in enumerate(("chosen", "rejected")):
        assert logged[f"logps/{name}"] == pytest.approx(own[:, index].mean(), abs=LOGP_TOLERANCE)
        moved = beta * (own - start)[:, index].mean()
        assert logged[f"rewards/{name}"] == pytest.approx(moved, abs=LOGP_TOLERANCE)


@pytest.mark.parametrize("peft", [(), tuple(LORA)], ids=["full", "lora"])
def test_precomputed_references_train_the_same_weights(build: Build, text_set: Path, peft: tuple[str, ...]) -> None:
    """With plain SGD the distance of the weights is that of the gradients."""
    held_out = ("--eval_file", str(text_set / "pairs_held_out.jsonl"), "--eval_steps", "4")
    settings = ("--optim", "sgd", "--learning_rate", "1.0", "--max_steps", "4", *held_out, *peft)
    ends, logs = [], []
    for precomputed in ("false", "true"):
        trainer = build("dpo", *settings, "--precompute_ref_log_probs", precomputed)
        start = state_of(trainer.model)
        trainer.train()
        ends.append(state_of(trainer.model))
        logs.append([entry for entry in trainer.state.log_history if "loss" in entry or "eval_loss" in entry])
    come, apart = (
        sum(float((ends[0][name] - other[name]).square().sum()) for name in start) ** 0.5 for other in (start, ends[1])
    )
    # the reference's log-probs were computed in another batch, with other padding: float32 sums in another order
    assert come > 1e-3 and apart < 1e-5 * come
    names = ("loss", "rewards/chosen", "rewards/rejected")
    compared = {*names, *(f"eval_{name}" for name in names)}
    for one, other in zip(*logs, strict=True):
        for name in one.keys() & compared:
            assert one[name] == pytest.approx(other[name], abs=1e-5), name
    # a hundred times the tolerance: policy and reference are no longer one
    assert abs(logs[0][3]["rewards/chosen"]) > 1e-3 and abs(logs[0][4]["eval_rewards/rejected"]) > 1e-3


@pytest.mark.parametrize("peft", [(), tuple(LORA)], ids=["full", "lora"])
def test_training_moves_the_policy_and_not_its_reference(
    peft: tuple[str, ...],
    build: Build,
    text_set: Path,
    policy: Path,
    tokenizer: PreTrainedTokenizerBase,
    pairs: list[TextPrompt],
    tmp_path: Path,
) -> None:
    few = (text_set / "pairs_train.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)[:4]
    (tmp_path / "few.jsonl").write_text("".join(few), encoding="utf-8")  # the same batch in every step
    settings = ("--train_file", str(tmp_path / "few.jsonl"), "--max_steps", "4", "--learning_rate", "1e-2")
    trainer = build("dpo", *settings, *peft)
    before = state_of(trainer.model)
    trainer.train()
    log = [entry for entry in trainer.state.log_history if "loss" in entry]
    assert {"rewards/chosen", "rewards/rejected", "logps/chosen", "logps/rejected"} <= log[0].keys()
    # at the first step policy and reference are one
    assert log[0]["rewards/chosen"] == log[0]["rewards/rejected"] == 0
    assert log[0]["loss"] == pytest.approx(np.log(2), abs=1e-6)
    assert log[-1]["rewards/margins"] > 0 and log[-1]["rewards/chosen"] != 0

    after = trainer.model.state_dict()
    unchanged = [name for name in before if torch.equal(before[name], after[name])]
    if peft:
        assert trainer.ref_model is None
        assert [name for name in before if "lora_" in name and name in unchanged] == []
        assert all(name in unchanged for name in before if "lora_" not in name)
    else:
        assert unchanged == []
        start = load_policy(policy).state_dict()
        assert all(torch.equal(value, start[name]) for name, value in trainer.ref_model.state_dict().items())
    final = trainer.save_final()
    own, reloaded = (log_probs(model.eval(), tokenizer, pairs[:2]) for model in (trainer.model, load_policy(final)))
    np.testing.assert_allclose(reloaded, own, rtol=0, atol=1e-6)  # the same operations on the same numbers
