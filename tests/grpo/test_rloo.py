"""RLOO: its loss is minus the leave-one-out advantage times the log-probability, and a resume is exact."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from r1_aqa_repro import train_rloo_text
from r1_aqa_repro.model.text_loading import load_policy
from r1_aqa_repro.rewards import registry
from tests.files import read_lines
from tests.text_world import LORA, Build, arguments, letter_reward, perturb


@pytest.fixture(autouse=True)
def letter(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(registry.RULES, "letter", registry.Rule(lambda args: letter_reward))


@pytest.mark.parametrize("how", [(), tuple(LORA)], ids=["copy", "lora"])
def test_advantages_and_loss_are_the_formulas(how: tuple[str, ...], build: Build, policy: Path) -> None:
    """A_i = R_i - mean of the others' R, R = reward - beta log(pi / pi_ref); loss = -mean of A_i log pi's gradient."""
    trainer = build("rloo", "--reward_funcs", "letter", *how)
    perturb(trainer.model, 0.1)
    rows = [dict(trainer.train_dataset[index]) for index in (0, 3) for _ in range(4)]
    output = trainer._generate_and_score_completions(rows)
    start = load_policy(policy)

    def log_prob_of(model: torch.nn.Module, row: int) -> torch.Tensor:
        prompt = output["prompt_ids"][row][output["prompt_mask"][row].bool()]
        answer = output["completion_ids"][row][output["completion_mask"][row].bool()]
        logits = model(input_ids=torch.cat([prompt, answer])[None]).logits[0, len(prompt) - 1 : -1]
        return logits.log_softmax(-1).gather(1, answer[:, None]).sum()

    texts = trainer.processing_class.batch_decode(output["completion_ids"], skip_special_tokens=True)
    own = trainer.model.eval()
    with torch.no_grad():
        kl = torch.stack([log_prob_of(own, row) - log_prob_of(start, row) for row in range(8)])
    returns = (torch.tensor(letter_reward(texts)) - 0.1 * kl).view(2, 4)
    expected = (returns - (returns.sum(dim=1, keepdim=True) - returns) / 3).view(-1)
    # float32 sums of log-probs in other orders
    torch.testing.assert_close(output["advantages"], expected, rtol=1e-3, atol=1e-4)
    assert expected.abs().max() > 0.01 and kl.abs().max() > 0.01

    trainer.model.train()
    loss = trainer._compute_loss(trainer.model, output)
    loss.backward()
    gradients = {name: value.grad.clone() for name, value in trainer.model.named_parameters() if value.grad is not None}
    trainer.model.zero_grad()
    by_hand = -torch.stack([expected[row] * log_prob_of(trainer.model, row) for row in range(8)]).mean()
    by_hand.backward()
    for name, value in trainer.model.named_parameters():
        if value.grad is not None:  # at ratio 1 the clipped loss has the gradient of the plain one
            torch.testing.assert_close(gradients[name], value.grad, rtol=1e-2, atol=1e-5)
    assert gradients and max(gradient.abs().max() for gradient in gradients.values()) > 1e-3


def test_a_run_logs_keeps_completions_and_goes_on_exactly(text_set: Path, policy: Path, tmp_path: Path) -> None:
    """Over the end of an epoch of 6 steps: another order follows, and the resumed run has the same."""
    keys = ["--max_steps", "8", "--save_steps", "4", "--reward_funcs", "letter"]
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    for folder in (whole, parts):
        assert train_rloo_text.main([*arguments("rloo", folder, text_set, policy), *keys]) == 0
    for ended in (parts / "final", parts / "checkpoint-8"):  # as if it had been killed after step 4
        ended.rename(tmp_path / f"away-{ended.name}")
    assert train_rloo_text.main([*arguments("rloo", parts, text_set, policy), *keys]) == 0
    one, other = (load_file(folder / "final" / "model.safetensors") for folder in (whole, parts))
    assert all(torch.equal(one[name], other[name]) for name in one)
    tables = [(folder / "completions.csv").read_text(encoding="utf-8") for folder in (whole, parts)]
    assert tables[0] == tables[1] and tables[0].splitlines()[0] == "step,id,prompt,completion,letter"
    assert "RLOO" in (whole / "final" / "README.md").read_text(encoding="utf-8")


def test_what_cannot_work_is_refused(
    text_set: Path, policy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lora: list[Any] = ["--use_peft", "true", "--lora_target_modules", "q_proj", "v_proj"]
    settings = ["--prompts_per_step", "32", "--reward_funcs", "nice", *lora]
    assert train_rloo_text.main([*arguments("rloo", tmp_path / "run", text_set, policy), *settings]) == 2
    errors = capsys.readouterr().err
    prompts = len(read_lines(text_set / "prompts.jsonl"))
    assert f"its {prompts} usable records are fewer than the 32 of a step" in errors
    assert "there is no reward 'nice'" in errors and "lora_dropout: 0.05" in errors
