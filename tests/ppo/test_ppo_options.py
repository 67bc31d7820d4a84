"""PPO with adapters, with a price that follows the divergence, and with an evaluation while training."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from math import exp
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from r1_aqa_repro import train_ppo_text
from r1_aqa_repro.merge_adapter import merge_adapter
from r1_aqa_repro.model.text_loading import load_policy, load_reward_model, load_tokenizer
from r1_aqa_repro.ppo.objectives import adapted_kl_coef
from r1_aqa_repro.ppo.trainer import CRITIC, PPOTrainer
from r1_aqa_repro.rewards import registry
from tests.files import write_lines
from tests.text_world import LORA, arguments, letter_reward, state_of

STEPS = {"max_steps": 4, "save_steps": 2, "learning_rate": 1e-2}


@pytest.fixture(autouse=True)
def letter(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(registry.RULES, "letter", registry.Rule(lambda args: letter_reward))


def command(folder: Path, text_set: Path, policy: Path, *more: str, **settings: Any) -> list[str]:
    keys = [part for key, value in (STEPS | settings).items() for part in (f"--{key}", str(value))]
    return [*arguments("ppo", folder, text_set, policy), *keys, *more]


def trainer_of(argv: Sequence[str], monkeypatch: pytest.MonkeyPatch) -> PPOTrainer:
    built: list[PPOTrainer] = []

    def keep(build_trainer: Callable[[], PPOTrainer], *_: Any) -> int:
        built.append(build_trainer())
        return 0

    monkeypatch.setattr(train_ppo_text, "run_training", keep)
    assert train_ppo_text.main(list(argv)) == 0
    return built[0]


def log_of(folder: Path) -> list[dict[str, Any]]:
    state = json.loads((folder / "trainer_state.json").read_text(encoding="utf-8"))
    return [entry | {"tokens_per_second": 0} for entry in state["log_history"]]


# --- Adapters


def test_adapters_are_trained_and_the_base_is_the_reference(
    text_set: Path, policy: Path, reward_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The KL is to the base: 0 at first, and once an adapter has moved the log-ratio of both, computed apart."""
    argv = command(tmp_path / "run", text_set, policy, *LORA, value_model_name_or_path=reward_model, max_steps=1)
    trainer = trainer_of(argv, monkeypatch)
    assert trainer.reference is None
    before = state_of(trainer.model)
    trainer.train()
    figures = trainer.state.log_history[0]
    assert figures["kl_per_answer"] == figures["kl"] == 0
    after = trainer.model.state_dict()
    moved = {name for name in before if not torch.equal(after[name], before[name])}
    # both matrices of an adapter move, though one of them begins at 0: a rollout has several updates
    assert moved == {name for name in before if "lora_" in name or "score.modules_to_save" in name}

    answers = trainer._answer(trainer._prompts_of_step(1))
    rows, base = answers.rows, load_policy(policy)
    row = next(index for index, ids in enumerate(answers.completion_ids) if len(ids) > 2)
    ids = rows["input_ids"][row][rows["attention_mask"][row].bool()][None]
    length = len(answers.completion_ids[row])
    with torch.no_grad():
        logits = base(ids).logits[0, -length - 1 : -1].log_softmax(-1)
    expected = logits.gather(1, ids[0, -length:, None])[:, 0]
    # float32; padding changes the order of sums
    torch.testing.assert_close(answers.reference_log_probs[row, :length], expected, rtol=1e-4, atol=1e-5)
    assert (answers.log_probs - answers.reference_log_probs).abs().max() > 1e-3


def test_a_run_with_adapters_goes_on_exactly_and_loads_elsewhere(
    text_set: Path, policy: Path, reward_model: Path, tmp_path: Path
) -> None:
    settings = {"value_model_name_or_path": reward_model, "activation_checkpointing": "true"}
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert train_ppo_text.main(command(whole, text_set, policy, *LORA, **settings)) == 0
    assert train_ppo_text.main(command(parts, text_set, policy, *LORA, **settings)) == 0
    for ended in (parts / "final", parts / "checkpoint-4"):  # as if it had been killed after step 2
        ended.rename(tmp_path / f"away-{ended.name}")
    assert train_ppo_text.main(command(parts, text_set, policy, *LORA, **settings)) == 0
    for name in (".", CRITIC):
        one, other = (load_file(run / "final" / name / "adapter_model.safetensors") for run in (whole, parts))
        assert one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)
    assert log_of(whole / "checkpoint-4") == log_of(parts / "checkpoint-4")
    assert "adapter" in (whole / "final" / "README.md").read_text(encoding="utf-8")
    merged, start = load_policy(merge_adapter(whole / "final", tmp_path / "merged")), load_policy(policy)
    assert not torch.equal(merged.model.layers[0].mlp.up_proj.weight, start.model.layers[0].mlp.up_proj.weight)
    critic = load_reward_model(whole / "final" / CRITIC, load_tokenizer(policy))
    judge = load_reward_model(reward_model, load_tokenizer(policy))
    assert not torch.equal(critic.score.weight, judge.score.weight)


# --- The price of a nat


def test_the_controller_by_hand() -> None:
    assert adapted_kl_coef(0.2, 6.6, 6.0, 64, 10_000) == pytest.approx(0.2 * (1 + 0.1 * 0.0064))
    assert adapted_kl_coef(0.2, 60.0, 6.0, 64, 640) == pytest.approx(0.2 * 1.02)  # no more than a fifth of an error
    assert adapted_kl_coef(0.2, -5.0, 6.0, 64, 640) == pytest.approx(0.2 * 0.98)
    price = 1.0
    for _ in range(1000):
        price = adapted_kl_coef(price, 100.0, 6.0, 10, 10_000)
    assert price == pytest.approx(exp(0.2), rel=1e-3)  # over a horizon


def test_the_price_follows_the_divergence_also_after_a_resume(text_set: Path, policy: Path, tmp_path: Path) -> None:
    settings = {"adap_kl_ctrl": "true", "target_kl": 0.5, "horizon": 40, "kl_coef": 0.1}
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert train_ppo_text.main(command(whole, text_set, policy, **settings)) == 0
    assert train_ppo_text.main(command(parts, text_set, policy, **settings)) == 0
    for ended in (parts / "final", parts / "checkpoint-4"):
        ended.rename(tmp_path / f"away-{ended.name}")
    assert train_ppo_text.main(command(parts, text_set, policy, **settings)) == 0
    log = log_of(whole / "checkpoint-4")
    assert log == log_of(parts / "checkpoint-4")
    price = 0.1
    for entry in log:  # the price of a rollout follows from the divergence of those before
        assert entry["kl_coef"] == pytest.approx(price, rel=1e-6)
        price *= 1 + min(max(entry["kl_per_answer"] / 0.5 - 1, -0.2), 0.2) * 8 / 40
    assert log[1]["kl_coef"] == pytest.approx(0.096)  # nothing had moved: lower
    assert len({entry["kl_coef"] for entry in log}) == 4


# --- Evaluation


def test_held_out_prompts_are_answered_by_the_same_numbers_and_disturb_nothing(
    text_set: Path, policy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    prompts = [{"prompt": [{"role": "user", "content": f"Speak {'aardvark ' * number}."}]} for number in range(5)]
    held_out = {
        "eval_file": write_lines(tmp_path / "held_out.jsonl", prompts),
        "eval_steps": 2,
        "eval_on_start": "true",
    }
    evaluated, plain = tmp_path / "evaluated", tmp_path / "plain"
    assert train_ppo_text.main(command(evaluated, text_set, policy, **held_out)) == 0
    assert train_ppo_text.main(command(plain, text_set, policy)) == 0
    log = log_of(evaluated / "checkpoint-4")
    found = [entry for entry in log if "eval_reward" in entry]
    assert [entry["step"] for entry in found] == [0, 2, 4]
    assert found[0]["eval_kl_per_answer"] == 0 < abs(found[2]["eval_kl_per_answer"])
    for entry in found:
        assert entry["eval_reward"] == entry["eval_rewards/letter"]
        assert 1 <= entry["eval_completions/mean_length"] <= 6
    # training is that of the run without
    assert [entry for entry in log if "eval_reward" not in entry] == log_of(plain / "checkpoint-4")
    one, other = (load_file(run / "final" / "model.safetensors") for run in (evaluated, plain))
    assert all(torch.equal(one[name], other[name]) for name in one)
    train = text_set / "prompts.jsonl"
    assert train_ppo_text.main(command(tmp_path / "no", text_set, policy, eval_file=train)) == 2
    assert "its prompt is trained on" in capsys.readouterr().err


def test_what_would_be_ignored_is_refused(
    text_set: Path, policy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cases: dict[str, dict[str, Any]] = {
        "target_kl: the price is fixed": {"target_kl": 6},
        "adap_kl_ctrl: it multiplies kl_coef": {"adap_kl_ctrl": "true"},
        "load_best_model_at_end: PPO does not choose": {
            "load_best_model_at_end": "true", "eval_file": text_set / "assist_prompts_held_out.jsonl", "eval_steps": 2,
        },
    }  # fmt: skip
    for what, settings in cases.items():
        assert train_ppo_text.main(command(tmp_path / "run", text_set, policy, **settings)) == 2
        assert what in capsys.readouterr().err
