"""What the paper's configuration computes: advantages, loss and its gradient, against the formulas in float64.

    A_i  = (r_i - mean r) / (std r + 1e-4)               over the 8 completions of a question, std with n - 1
    J    = 1/N sum_i 1/|o_i| sum_t [ratio_it A_i - beta k3_it]
    k3   = exp(ref - logp) - (ref - logp) - 1
    loss = -J, with ratio = exp(logp - logp when sampled), which is 1 at the one update of a rollout

The formulas are written here with NumPy and share nothing with TRL. Every setting that they rest on is changed in turn,
to show that the comparison would notice.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from r1_aqa_repro.data.questions import AudioQuestion
from r1_aqa_repro.grpo.rollout import Rollout
from r1_aqa_repro.grpo.trainer import AudioGRPOTrainer
from r1_aqa_repro.model.inputs import PromptInputs, question_inputs
from r1_aqa_repro.rewards.rules import REWARDS
from tests.grpo.conftest import MakeTrainer

Array = NDArray[np.float64]

GROUP = 8
BETA = 0.04


# --- Advantages

# accuracy and format of 8 completions; binary where not said otherwise
REWARD_GROUPS: dict[str, tuple[list[float], list[float]]] = {
    "mixed": ([1, 0, 1, 0, 0, 0, 1, 0], [1, 1, 1, 0, 0, 1, 1, 1]),
    "all right": ([1] * 8, [1] * 8),
    "all wrong": ([0] * 8, [0] * 8),
    "one right": ([0, 0, 0, 0, 0, 1, 0, 0], [0] * 8),
    "format alone differs": ([1] * 8, [1, 1, 0, 1, 1, 1, 1, 1]),
    "half and half": ([1, 1, 1, 1, 0, 0, 0, 0], [1, 1, 1, 1, 0, 0, 0, 0]),
    "sums all equal": ([1, 0, 1, 0, 1, 1, 0, 0], [0, 1, 0, 1, 0, 0, 1, 1]),
    "graded": ([0.5, 0.25, 0, 1, 0.75, 0.125, 0.5, 0.5], [0, 1, 0.5, 1, 0, 0, 1, 0.25]),
    # differences of 2**-13, about 1.2e-4: here the 1e-4 halves the advantage
    "nearly equal": ([1 + k * 2.0**-13 for k in (0, 1, 0, 2, 1, 0, 0, 1)], [1] * 8),
}


def paper_advantages(rewards: Array, *, ddof: int = 1, epsilon: float = 1e-4) -> Array:
    """[U, 8] -> [U, 8]."""
    centred = rewards - rewards.mean(axis=1, keepdims=True)
    return centred / (rewards.std(axis=1, ddof=ddof, keepdims=True) + epsilon)


def advantages_of(trainer: AudioGRPOTrainer, num_questions: int) -> Array:
    """Advantages [U, 8] that the trainer gives to fresh completions of U questions."""
    rows = [trainer.train_dataset[index] for index in range(num_questions) for _ in range(GROUP)]
    output = trainer._generate_and_score_completions(rows)
    return np.asarray(output["advantages"], dtype=np.float64).reshape(-1, GROUP)


@pytest.fixture
def fixed_rewards(monkeypatch: pytest.MonkeyPatch) -> Array:
    """The paper's rewards give REWARD_GROUPS' values, row by row. Their sums, [U, 8]."""
    for column, name in enumerate(("r1_aqa_accuracy", "r1_aqa_format")):
        values = [float(value) for pair in REWARD_GROUPS.values() for value in pair[column]]

        def reward(completions: Any, values: list[float] = values, **_: Any) -> list[float]:
            assert len(completions) == len(values)
            return values

        monkeypatch.setitem(REWARDS, name, reward)
    return np.array([np.add(*pair) for pair in REWARD_GROUPS.values()], dtype=np.float64)


SHORT = ("--max_completion_length", "2")  # what is said does not matter where the rewards are given


def test_advantages(paper: MakeTrainer, fixed_rewards: Array) -> None:
    advantages = advantages_of(paper(*SHORT), len(fixed_rewards))
    expected = paper_advantages(fixed_rewards)
    # the rewards are exact in float32; what is left is the rounding of a few operations on values up to 2.5
    np.testing.assert_allclose(advantages, expected, rtol=1e-5, atol=1e-6)
    by_name = dict(zip(REWARD_GROUPS, advantages, strict=True))
    for equal in ("all right", "all wrong", "sums all equal"):
        assert not by_name[equal].any(), equal
    assert np.abs(advantages.sum(axis=1)).max() < 1e-5
    # the same tolerance tells the formula from its neighbours
    for neighbour in (paper_advantages(fixed_rewards, ddof=0), paper_advantages(fixed_rewards, epsilon=1e-8)):
        assert np.abs(neighbour - expected).max() > 0.1


@pytest.mark.parametrize(
    "override",
    [
        ("--scale_rewards", "batch"),
        ("--scale_rewards", "none"),
        ("--multi_objective_aggregation", "normalize_then_sum"),
        ("--reward_weights", "1.0", "0.5"),
    ],
    ids=" ".join,
)
def test_settings_of_the_advantages_act(paper: MakeTrainer, fixed_rewards: Array, override: tuple[str, ...]) -> None:
    advantages = advantages_of(paper(*SHORT, *override), len(fixed_rewards))
    assert np.abs(advantages - paper_advantages(fixed_rewards)).max() > 0.1


# --- Loss


def loss_terms(log_probs: Array, sampled: Array, reference: Array, advantages: Array, mask: Array) -> Array:
    """What each token adds to the loss, [N, C]; `sampled` are the log-probs at sampling, a constant."""
    ratio = np.exp(log_probs - sampled)
    k3 = np.exp(reference - log_probs) - (reference - log_probs) - 1
    per_token = ratio * advantages[:, None] - BETA * k3
    return -per_token * mask / mask.sum(axis=1, keepdims=True) / len(mask)


def loss_gradient(log_probs: Array, reference: Array, advantages: Array, mask: Array) -> Array:
    """d loss / d log-probs, [N, C], where the ratio is 1: d ratio / d logp = 1, d k3 / d logp = 1 - exp(ref - logp)."""
    share = mask / mask.sum(axis=1, keepdims=True) / len(mask)
    return (BETA * (1 - np.exp(reference - log_probs)) - advantages[:, None]) * share


class Step:
    """A step's 128 completions of 1 to 256 tokens: log-probs of policy and reference, advantages, entropies."""

    def __init__(self, seed: int) -> None:
        rng = np.random.default_rng(seed)
        self.lengths = rng.integers(1, 257, 16 * GROUP)
        self.lengths[[0, 5, 127]] = 1
        self.lengths[[1, 40]] = 256
        shape = (16 * GROUP, 256)
        self.mask = (np.arange(256) < self.lengths[:, None]).astype(np.float64)
        # float32 values, since that is what the trainer sees; k3 up to about 3
        self.log_probs = -rng.exponential(1.5, shape).astype(np.float32).astype(np.float64)
        self.reference = (self.log_probs + rng.normal(0, 0.5, shape)).astype(np.float32).astype(np.float64)
        # not centred as real ones are: their part of the loss would then be 0 whatever is done to it
        self.advantages = rng.normal(0.1, 1, 16 * GROUP).astype(np.float32).astype(np.float64)
        self.entropies = rng.uniform(0, 5, shape)

    @property
    def expected(self) -> tuple[float, Array]:
        """Loss and gradient by the formula."""
        terms = loss_terms(self.log_probs, self.log_probs, self.reference, self.advantages, self.mask)
        return terms.sum(), loss_gradient(self.log_probs, self.reference, self.advantages, self.mask)

    def of(self, trainer: AudioGRPOTrainer) -> tuple[float, Array]:
        """Loss and gradient of one optimizer step of the trainer: 8 batches of 16 rows on one process."""
        size, accumulation = trainer.args.per_device_train_batch_size, trainer.args.gradient_accumulation_steps
        assert size * accumulation == len(self.mask)
        trainer.current_gradient_accumulation_steps = accumulation
        log_probs = torch.tensor(self.log_probs, dtype=torch.float32, requires_grad=True)
        total = 0.0
        for start in range(0, len(self.mask), size):
            rows = slice(start, start + size)
            longest = int(self.lengths[rows].max())

            def given(values: Any, rows: slice = rows, longest: int = longest) -> torch.Tensor:
                return torch.as_tensor(values[rows, :longest], dtype=torch.float32)

            mask = given(self.mask).long()
            trainer._get_per_token_logps_and_entropies = (  # type: ignore[method-assign]
                lambda *_, given=given, **__: (given(log_probs), given(self.entropies), None)
            )
            loss = trainer._compute_loss(
                trainer.model,
                {
                    "prompt_ids": torch.zeros(size, 1, dtype=torch.long),
                    "prompt_mask": torch.ones(size, 1, dtype=torch.long),
                    "completion_ids": torch.zeros(size, longest, dtype=torch.long),
                    "completion_mask": mask,
                    "advantages": torch.tensor(self.advantages[rows], dtype=torch.float32),
                    "ref_per_token_logps": given(self.reference),
                    "num_items_in_batch": mask.sum(),
                    "group": torch.zeros(size, dtype=torch.long),
                    "rollout": [Rollout(PromptInputs([]), torch.zeros(size))],  # the model isn't asked
                },
            )
            loss.backward()
            total += loss.item()
        assert log_probs.grad is not None
        return total, log_probs.grad.double().numpy()


@pytest.mark.parametrize("seed", [0, 1])
def test_loss_and_gradient_of_a_step(paper: MakeTrainer, seed: int) -> None:
    step = Step(seed)
    loss, gradient = step.of(paper())
    expected_loss, expected_gradient = step.expected
    # float32: sums of at most 256 terms of size ~1 and an absolute error of about 1e-6 at most
    assert loss == pytest.approx(expected_loss, abs=2e-6)
    np.testing.assert_allclose(gradient, expected_gradient, rtol=1e-5, atol=1e-9)
    assert not gradient[step.mask == 0].any()


@pytest.mark.parametrize(
    "override",
    [
        ("--loss_type", "dapo"),  # TRL's default: a mean over tokens, so that long completions weigh more
        ("--loss_type", "bnpo"),
        ("--loss_type", "dr_grpo"),
        ("--beta", "0.0"),  # TRL's default
        ("--beta", "0.001"),
        ("--top_entropy_quantile", "0.5"),
        ("--use_bias_correction_kl", "true"),  # TRL's default: k3 times the ratio, so that k3 joins its own gradient
    ],
    ids=" ".join,
)
def test_settings_of_the_loss_act(paper: MakeTrainer, override: tuple[str, ...]) -> None:
    step = Step(0)
    _, gradient = step.of(paper(*override))
    _, expected = step.expected
    assert np.linalg.norm(gradient - expected) > 1e-3 * np.linalg.norm(expected)  # a hundred times the tolerance above


# --- A rollout through the model


def full_softmax_log_probs(
    trainer: AudioGRPOTrainer, model: Any, output: dict[str, torch.Tensor], asked: list[AudioQuestion], top: int | None
) -> Array:
    """Log-probs of the completions row by row: plain forward, softmax in float64 over all or the best `top`."""
    inputs = question_inputs(trainer.processing_class, asked, "answer")
    rows = np.zeros(output["completion_ids"].shape)
    for row, (completion, mask) in enumerate(zip(output["completion_ids"], output["completion_mask"], strict=True)):
        prompt, length = inputs.prompt_ids[row // GROUP], int(mask.sum())
        ids = torch.tensor([prompt + completion[:length].tolist()])
        audio = inputs.audio("cpu", torch.tensor([row // GROUP]), trim=False)
        with torch.no_grad():
            logits = model(input_ids=ids, attention_mask=torch.ones_like(ids), **audio).logits[0].double()
        logits = logits[len(prompt) - 1 : -1]  # [length, vocabulary]
        if top is not None:
            logits = logits.masked_fill(logits < logits.topk(top).values[:, -1:], -np.inf)
        rows[row, :length] = logits.log_softmax(-1)[torch.arange(length), completion[:length]].numpy()
    return rows


def test_loss_of_a_rollout(paper: MakeTrainer, questions: list[AudioQuestion], monkeypatch: pytest.MonkeyPatch) -> None:
    """Sampling, reference, rewards and loss together, on a policy that has moved away from its start."""
    rewards = [float(value) for value in np.random.default_rng(0).integers(0, 2, 2 * GROUP)]
    monkeypatch.setitem(REWARDS, "r1_aqa_accuracy", lambda completions, **_: rewards)
    monkeypatch.setitem(REWARDS, "r1_aqa_format", lambda completions, **_: [0.0] * len(completions))
    trainer = paper("--max_completion_length", "12")
    with torch.no_grad():
        for parameter in trainer.model.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
    asked = questions[:2]
    output = trainer._generate_and_score_completions([trainer.train_dataset[k] for k in (0, 1) for _ in range(GROUP)])
    assert "old_per_token_logps" not in output  # the ratio is then 1 by construction
    trainer.current_gradient_accumulation_steps = 1
    loss = trainer._compute_loss(trainer.model, output)

    log_probs, reference = (
        full_softmax_log_probs(trainer, model, output, asked, None) for model in (trainer.model, trainer.ref_model)
    )
    mask = output["completion_mask"].double().numpy()
    assert mask.sum(axis=1).max() == 12  # some are cut off, and count like any other
    # a forward in float32, in another order of operations
    np.testing.assert_allclose(output["ref_per_token_logps"].double().numpy() * mask, reference, atol=1e-5)
    advantages = paper_advantages(np.array(rewards).reshape(2, GROUP)).ravel()
    assert loss.item() == pytest.approx(loss_terms(log_probs, log_probs, reference, advantages, mask).sum(), abs=1e-6)
    k3 = np.exp(reference - log_probs) - (reference - log_probs) - 1
    assert k3.max() > 1e-2  # otherwise the KL term would not have been tested
    assert trainer._metrics["train"]["kl"] == [pytest.approx((k3 * mask).sum() / mask.sum(), rel=1e-3)]
    # a softmax over what top_k leaves would be far off
    of_top_k = full_softmax_log_probs(trainer, trainer.ref_model, output, asked, 50)
    assert np.median((of_top_k - reference)[mask > 0]) > 0.1
