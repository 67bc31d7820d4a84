"""Zero-variance groups, their replacement, and the filter of the better completions."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import pytest
import torch

from r1_aqa_repro.data.questions import AudioQuestion
from r1_aqa_repro.grpo.rollout import picked_rows
from r1_aqa_repro.grpo.selection import better_completions, draw_further, informative_groups
from r1_aqa_repro.model.inputs import ModelInputs
from r1_aqa_repro.rewards.rules import REWARDS

REWARDS_OF_GROUPS = torch.tensor([0.3, 0.3, 0.3, 0.3, 1.0, 0.0, 0.0, 0.0, 2.0, 2.0, 1.0, 1.0])


def test_groups_are_informative_if_any_reward_differs() -> None:
    assert informative_groups(REWARDS_OF_GROUPS, 4).tolist() == [False, True, True]


@pytest.mark.parametrize("reward", [0.1, 0.3, 0.6, 0.7, 0.9, 1.2])
def test_equal_rewards_are_not_informative_however_their_mean_is_rounded(reward: float) -> None:
    """Their advantages by TRL's formula are not zero: the mean of eight such float32 numbers is rounded."""
    rewards = torch.full((8,), reward)
    assert not informative_groups(rewards, 8).any()
    assert not better_completions(rewards, 8, "above_mean", 0.5).any()


def test_in_float32_a_tiny_epsilon_makes_advantages_of_rounding_alone() -> None:
    """What day 5 of the course says of equal rewards whose mean is rounded, whatever the order of the sum is here."""
    rewards = torch.tensor([0.3, 0.7, 0.9, 1.3, -7.3]).repeat_interleave(8).view(-1, 8)
    centred = rewards - torch.nanmean(rewards, dim=1, keepdim=True)  # as TRL takes it
    assert 0 < centred.abs().max() < 1e-6
    assert (centred / (rewards.std(dim=1, correction=0, keepdim=True) + 1e-8)).abs().max() > 0.5
    assert (centred / (rewards.std(dim=1, keepdim=True) + 1e-4)).abs().max() < 0.01


@pytest.mark.parametrize(
    ("advantage_filter", "fraction", "kept"),
    [
        ("none", 0.5, [1] * 12),
        ("above_mean", 0.5, [0, 0, 0, 0, 1, 0, 0, 0, 1, 1, 0, 0]),
        ("top_fraction", 0.5, [1, 1, 0, 0, 1, 1, 0, 0, 1, 1, 0, 0]),
        ("top_fraction", 0.25, [1, 0, 0, 0, 1, 0, 0, 0, 1, 0, 0, 0]),
        ("top_fraction", 0.01, [1, 0, 0, 0, 1, 0, 0, 0, 1, 0, 0, 0]),
    ],
)
def test_better_completions(advantage_filter: str, fraction: float, kept: list[int]) -> None:
    assert better_completions(REWARDS_OF_GROUPS, 4, advantage_filter, fraction).int().tolist() == kept


def output_of(advantages: list[float], prompt: int, completion: int, token: int) -> dict[str, Any]:
    rows = len(advantages)
    return {
        "prompt_ids": torch.full((rows, prompt), token),
        "prompt_mask": torch.ones(rows, prompt, dtype=torch.long),
        "completion_ids": torch.full((rows, completion), token + 1),
        "completion_mask": torch.ones(rows, completion, dtype=torch.long),
        "ref_per_token_logps": torch.full((rows, completion), -float(token)),
        "advantages": torch.tensor(advantages),
        "num_items_in_batch": torch.tensor(rows * completion),
    }


def test_replacing_by_hand() -> None:
    """Groups of two; the second gives way to a further one with longer prompts and shorter completions."""
    output = output_of([1.0, -1.0, 0.0, 0.0, 0.0, 0.0], prompt=2, completion=3, token=10)
    further = output_of([0.0, 0.0, 2.0, -2.0], prompt=4, completion=2, token=20)
    merged = picked_rows(output, further, torch.tensor([0, 1, 8, 9, 4, 5]), pad_token_id=99)
    assert merged["advantages"].tolist() == [1, -1, 2, -2, 0, 0]
    assert merged["prompt_ids"].tolist() == [[99, 99, 10, 10]] * 2 + [[20] * 4] * 2 + [[99, 99, 10, 10]] * 2
    assert merged["prompt_mask"].tolist() == [[0, 0, 1, 1]] * 2 + [[1] * 4] * 2 + [[0, 0, 1, 1]] * 2
    assert merged["completion_ids"].tolist() == [[11] * 3] * 2 + [[21, 21, 99]] * 2 + [[11] * 3] * 2
    assert merged["completion_mask"].tolist() == [[1, 1, 1]] * 2 + [[1, 1, 0]] * 2 + [[1, 1, 1]] * 2
    assert merged["ref_per_token_logps"].tolist() == [[-10] * 3] * 2 + [[-20, -20, 0]] * 2 + [[-10] * 3] * 2
    assert output["advantages"].tolist() == [1, -1, 0, 0, 0, 0]


def test_questions_are_replaced_with_their_clips() -> None:
    def inputs(*marks: int) -> ModelInputs:
        features = torch.stack([torch.full((2, 6), float(mark)) for mark in marks])
        return ModelInputs([[mark] for mark in marks], features, torch.tensor(marks)[:, None].expand(-1, 6).clone())

    merged = inputs(1, 2, 3).picked(inputs(7, 8), [4, 1, 3])
    assert merged.prompt_ids == [[8], [2], [7]]
    assert merged.input_features[:, 0, 0].tolist() == [8, 2, 7]
    assert merged.feature_attention_mask[:, 0].tolist() == [8, 2, 7]


def test_drawing_is_a_function_of_its_seeds() -> None:
    drawn = draw_further(10, [0, 1, 2], 5, 42, 3, 0, 1)
    assert drawn == draw_further(10, [0, 1, 2], 5, 42, 3, 0, 1)
    assert len(set(drawn)) == 5 and min(drawn) >= 3
    assert len({tuple(draw_further(10, [0, 1, 2], 5, 42, step, 0, 1)) for step in range(20)}) > 10


def some_vary_reward(prompts: Any, completions: list[Any], question: list[AudioQuestion], **_: Any) -> list[float]:
    """Questions with an odd number get rewards 0, 1, 2, ... in a group; all others the same."""
    return [float(row % 4 if int(asked.id[1:]) % 2 else 1) for row, asked in enumerate(question)]


@pytest.fixture
def some_vary(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(REWARDS, "some_vary", some_vary_reward)


def test_dynamic_sampling_in_training(
    make_trainer: Any, questions: list[AudioQuestion], some_vary: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Zero-variance groups are replaced by informative ones, and each row is scored with its own clip."""
    trainer = make_trainer(dynamic_sampling=9, reward_funcs=["some_vary"], beta=0.04, max_steps=3)
    seen = []
    rollout = type(trainer)._generate_and_score_completions

    def watch(self: Any, inputs: Any) -> Any:
        output = rollout(self, inputs)
        seen.append(output)
        return output

    monkeypatch.setattr(type(trainer), "_generate_and_score_completions", watch)
    trainer.train()
    assert len(seen) == 3
    replaced = sum(entry.get("dynamic_sampling/replaced", 0) for entry in trainer.state.log_history)
    assert replaced >= 1
    with open(Path(trainer.args.output_dir) / "completions.csv", encoding="utf-8", newline="") as lines:
        table = list(csv.DictReader(lines))
    assert [float(row["some_vary"]) for row in table] == [0, 1, 2, 3] * 3
    assert all(int(row["id"][1:]) % 2 for row in table)  # the questions that took the places
    for output in seen:
        rows, inputs = output["rollout"][0].rows, output["rollout"][0].inputs
        # nine further prompts for three groups: half of the questions vary, so all places are filled with these seeds
        assert informative_groups(output["advantages"], 4).all()
        for group, row in enumerate(rows[::4]):
            assert int(row["question"].id[1:]) % 2
            ids = output["prompt_ids"][4 * group][output["prompt_mask"][4 * group].bool()].tolist()
            assert ids == inputs.prompt_ids[group]
        assert len({row["question"].id for row in rows}) == 3
        assert output["num_items_in_batch"] == output["completion_mask"].sum()


def test_dynamic_sampling_draws_no_more_than_asked_or_there_is(
    make_trainer: Any, questions: list[AudioQuestion], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(REWARDS, "constant", lambda completions, **_: [1.0] * len(completions))
    trainer = make_trainer(dynamic_sampling=4, reward_funcs=["constant"], max_steps=2, prompts_per_step=4,
                           max_prompts_per_device=2)  # fmt: skip
    trainer.train()
    logged = [entry for entry in trainer.state.log_history if "dynamic_sampling/drawn" in entry]
    assert [entry["dynamic_sampling/drawn"] for entry in logged] == [2, 2]  # mean over the step's two batches
    assert [entry["dynamic_sampling/replaced"] for entry in logged] == [0, 0]
    # clips and tokens count all that was asked, eight prompts a step
    assert all(entry["tokens_per_second"] > 4 * entry["clips_per_second"] for entry in logged)
    # and it ends where the questions do
    trainer = make_trainer(questions[:4], dynamic_sampling=9, reward_funcs=["constant"], max_steps=1)
    trainer.train()
    assert trainer.state.log_history[0]["dynamic_sampling/drawn"] == 1


def test_what_is_logged_is_of_the_questions_asked_first(make_trainer: Any, some_vary: None) -> None:
    logs = []
    for further in (0, 9):
        trainer = make_trainer(dynamic_sampling=further, reward_funcs=["some_vary"], max_steps=1)
        trainer.train()
        logs.append(trainer.state.log_history[0])
    assert logs[1]["dynamic_sampling/drawn"] > 0
    for name in ("reward", "frac_reward_zero_std", "completions/mean_length", "reward/sound", "reward/music"):
        assert logs[0].get(name) == logs[1].get(name), name


@pytest.mark.parametrize("sharing", ["auto", "off"])
def test_filtered_completions_count_as_zero(make_trainer: Any, sharing: str, some_vary: None) -> None:
    """The loss with a filter is the sum over the kept completions, over all of them: written out from the log-probs."""
    losses = {}
    for advantage_filter in ("none", "above_mean"):
        trainer = make_trainer(advantage_filter=advantage_filter, reward_funcs=["some_vary"], sharing=sharing, seed=5)
        trainer.create_optimizer_and_scheduler(2)
        trainer.model.train()
        trainer.current_gradient_accumulation_steps = 1
        rows = [trainer.train_dataset[index] for index in (1, 2, 3) for _ in range(4)]
        torch.manual_seed(0)
        output = trainer._generate_and_score_completions(rows)
        loss = trainer._compute_loss(trainer.model, output)
        loss.backward()
        losses[advantage_filter] = (output, loss, trainer.model.lm_head.weight.grad.clone())
    output, loss, gradient = losses["above_mean"]
    kept = output["advantages"] > 0  # three rewards 0, 1, 2, 3 and one group without a difference
    assert kept.tolist() == [False, False, True, True] + [False] * 4 + [False, False, True, True]
    assert (output["completion_mask"].any(1) == kept).all()
    # ratio 1, no KL: a completion's mean over its tokens is minus its advantage
    assert loss.item() == pytest.approx(-float(output["advantages"][kept].sum()) / 12, abs=1e-5)
    assert losses["none"][1].item() == pytest.approx(-float(losses["none"][0]["advantages"].sum()) / 12, abs=1e-5)
    assert gradient.norm() > 0 and not torch.allclose(gradient, losses["none"][2])


def test_a_batch_without_any_completion_left_gives_a_zero_gradient(
    make_trainer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(REWARDS, "constant", lambda completions, **_: [1.0] * len(completions))
    trainer = make_trainer(advantage_filter="above_mean", reward_funcs=["constant"], beta=0.04, max_steps=1)
    before = {name: value.clone() for name, value in trainer.model.state_dict().items()}
    trainer.train()
    assert trainer.state.log_history[0]["grad_norm"] == 0
    assert all(value.equal(before[name]) for name, value in trainer.model.state_dict().items())
