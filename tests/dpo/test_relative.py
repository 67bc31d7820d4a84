"""Relative preference optimisation: the loss from plain log-probs and the model's own table of embeddings."""

from __future__ import annotations

from math import exp, log
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import PreTrainedTokenizerBase

from r1_aqa_repro import train_dpo
from r1_aqa_repro.data.conversations import TextPrompt
from r1_aqa_repro.dpo.trainer import inverse_frequencies, relative_loss, relative_weights
from r1_aqa_repro.model.inputs import token_ids
from r1_aqa_repro.model.text_loading import load_policy
from tests.text_world import LORA, Build, answer_log_prob, arguments, first_batch, perturb, state_of

RELATIVE = ("--loss_type", "relative", "--beta", "0.7", "--relative_tau", "0.3")


def test_the_loss_by_hand() -> None:
    """Two prompts at right angles and a third like the first; tau 0.5."""
    embeddings = torch.tensor([[2.0, 0.0], [0.0, 1.0], [5.0, 0.0]])
    alike, apart = exp(1 / 0.5), 1.0
    rows = [(alike, apart, alike), (apart, alike, apart), (alike, apart, alike)]
    weights = relative_weights(embeddings, 0.5)
    np.testing.assert_allclose(weights, [[each / sum(row) for each in row] for row in rows], rtol=1e-6)
    chosen, rejected = [0.5, -1.0, 2.0], [-0.5, 0.25, 1.0]
    terms = [log(1 + exp(-0.1 * weights[i, j].item() * (chosen[i] - rejected[j]))) for i in range(3) for j in range(3)]
    loss = relative_loss(torch.tensor(chosen), torch.tensor(rejected), weights, 0.1)
    assert loss.item() == pytest.approx(sum(terms) / 9, rel=1e-6)
    # of one pair alone it is DPO's
    one = relative_loss(torch.tensor([0.5]), torch.tensor([-0.5]), relative_weights(embeddings[:1], 0.5), 0.1)
    assert one.item() == pytest.approx(log(1 + exp(-0.1)), rel=1e-6)


def test_tokens_of_all_prompts_count_nothing() -> None:
    found = inverse_frequencies([[7, 1, 1, 9], [7, 2], [7, 1]], 10)
    assert found[7] == 0
    np.testing.assert_allclose(found[[1, 2, 9, 0]], [log(4 / 3), log(4 / 2), log(4 / 2), log(4)], rtol=1e-6)


def embedded(table: np.ndarray, tokenizer: PreTrainedTokenizerBase, pairs: list[TextPrompt]) -> np.ndarray:
    """f of each prompt: the sum of log((1 + N) / (1 + n_t)) E_t over its tokens."""
    rows = token_ids(tokenizer, [pair.messages for pair in pairs], complete=False)
    holding = {token: sum(token in row for row in rows) for row in rows for token in row}
    return np.array([sum(log((1 + len(rows)) / (1 + holding[t])) * table[t] for t in row) for row in rows])


@pytest.mark.parametrize(
    "how", [(), ("--precompute_ref_log_probs", "true"), tuple(LORA)], ids=["copy", "precomputed", "lora"]
)
def test_the_loss_is_that_of_plain_log_probs(
    how: tuple[str, ...], build: Build, policy: Path, tokenizer: PreTrainedTokenizerBase, pairs: list[TextPrompt]
) -> None:
    """-1 / N^2 sum of log sigmoid(beta w_ij (h_i - h_j)), w a softmax of cosines, all of it in numpy."""
    trainer = build("dpo", *RELATIVE, *how)
    perturb(trainer.model, 0.1)

    def log_probs(model: torch.nn.Module) -> np.ndarray:
        with torch.no_grad():
            rows = [[answer_log_prob(model, tokenizer, each.messages, text) for text in each.answers.values()]
                    for each in pairs[:8]]  # fmt: skip
        return np.array(rows, dtype=np.float64)

    ratios = log_probs(trainer.model.eval()) - log_probs(load_policy(policy))
    table = trainer.model.get_input_embeddings().weight.detach().double().numpy()
    f = embedded(table, tokenizer, pairs)[:8]
    cosines = f @ f.T / np.outer(np.linalg.norm(f, axis=1), np.linalg.norm(f, axis=1))
    weights = np.exp(cosines / 0.3) / np.exp(cosines / 0.3).sum(axis=1, keepdims=True)
    contrasts = ratios[:, :1] - ratios[:, 1]
    expected = np.logaddexp(0, -0.7 * weights * contrasts).mean()
    loss = trainer.compute_loss(trainer.model.train(), first_batch(trainer))
    assert loss.item() == pytest.approx(expected, abs=1e-5)  # as DPO's, of which the terms are
    assert np.ptp(weights) > 0.1 and abs(expected - log(2)) > 1e-3  # the weights differ and the policy has moved
    assert loss.requires_grad


def test_it_adds_to_trls_losses_and_trains(build: Build) -> None:
    alone, sft, both = (
        build("dpo", *RELATIVE[2:], "--loss_type", *types, *more)
        for types, more in (
            (["relative"], ()),
            (["sft"], ()),
            (["relative", "sft"], ("--loss_weights", "2.0", "0.5")),
        )
    )
    losses = []
    for trainer in (alone, sft, both):
        perturb(trainer.model, 0.1)
        losses.append(trainer.compute_loss(trainer.model, first_batch(trainer)).item())
    assert losses[2] == pytest.approx(2 * losses[0] + 0.5 * losses[1], rel=1e-5)
    start = state_of(both.model)
    both.train()
    assert all(entry["loss/relative"] > 0 for entry in both.state.log_history if "loss" in entry)
    assert all(not torch.equal(start[name], value) for name, value in both.model.state_dict().items())


def test_what_it_cannot_work_with_is_refused(
    text_set: Path, policy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = ["--max_examples_per_device", "1", "--use_weighting", "true", *RELATIVE]
    assert train_dpo.main([*arguments("dpo", tmp_path / "run", text_set, policy), *settings]) == 2
    errors = capsys.readouterr().err
    assert "relative contrasts the pairs that a device has at once, and that is one" in errors
    assert "use_weighting: the loss relative takes none. Leave it at False" in errors
