"""PPO on a tiny Qwen2: what a rollout holds, what an update does, that it learns, and that a resume is exact."""

from __future__ import annotations

import json
import math
import os
import signal
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from safetensors.torch import load_file
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    GenerationConfig,
    PreTrainedModel,
    set_seed,
)

from r1_aqa_repro import train_ppo_text
from r1_aqa_repro.common.errors import Failed
from r1_aqa_repro.data.conversations import TextPrompt
from r1_aqa_repro.embedded.tiny_qwen2 import TEST_TEXT, build_tiny_qwen2
from r1_aqa_repro.model.files import processor_files
from r1_aqa_repro.model.inputs import text_inputs, token_ids
from r1_aqa_repro.model.text_loading import TextModelConfig, load_policy, load_reward_model, load_tokenizer
from r1_aqa_repro.ppo.objectives import generalized_advantages
from r1_aqa_repro.ppo.rollout import Rollout
from r1_aqa_repro.ppo.trainer import CRITIC, PPOConfig, PPOTrainer, indices_of_step
from r1_aqa_repro.rewards import registry
from r1_aqa_repro.rewards.reward_model import RewardModel
from r1_aqa_repro.rewards.rules import Completion
from r1_aqa_repro.run.callbacks import StopOnSignal
from r1_aqa_repro.run.checkpoints import last_checkpoint
from tests.text_world import arguments, letter_reward, state_of

SETTINGS: dict[str, Any] = {
    "prompts_per_step": 8, "max_prompts_per_device": 8, "max_completion_length": 6, "num_ppo_epochs": 2,
    "num_mini_batches": 2, "vf_coef": 0.5, "learning_rate": 1e-3, "max_steps": 1, "save_steps": 2, "logging_steps": 1,
    "report_to": "none", "use_cpu": True, "seed": 1,
}  # fmt: skip
Make = Callable[..., PPOTrainer]


@pytest.fixture(autouse=True)
def letter(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(registry.RULES, "letter", registry.Rule(lambda args: letter_reward))


@pytest.fixture
def make(policy: Path, reward_model: Path, prompts: list[TextPrompt], tmp_path: Path) -> Make:
    """A trainer as `run_training` gets it, with its reward functions by name and settings of the test's own."""

    def of(rewards: dict[str, Any] | None = None, **settings: Any) -> PPOTrainer:
        rewards = rewards or {"letter": letter_reward}
        args = PPOConfig(output_dir=str(tmp_path / "run"), **(SETTINGS | settings), reward_funcs=list(rewards))
        tokenizer = load_tokenizer(policy)
        critic = load_reward_model(reward_model, tokenizer)
        return PPOTrainer(load_policy(policy), critic, load_policy(policy), args, prompts, tokenizer, rewards)

    return of


def rolled_out(trainer: PPOTrainer) -> tuple[list[TextPrompt], Rollout, dict[str, float]]:
    prompts = trainer._prompts_of_step(0)
    return prompts, *trainer._roll_out(prompts)


# --- The rollout


def test_a_rollout_holds_what_each_completion_gives_by_itself(make: Make, prompts: list[TextPrompt]) -> None:
    """Each row again, without padding, neighbours and cache, with the formulas written out."""
    trainer = make(kl_coef=0.1, lam=0.9, gamma=0.98, temperature=0.7, missing_eos_penalty=0.25)
    assert trainer.reference is not None
    with torch.no_grad():  # a reference that differs
        for parameter in trainer.reference.parameters():
            parameter.add_(0.02 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(3)))
    asked, rollout, figures = rolled_out(trainer)
    actor, critic, tokenizer = trainer.model.policy, trainer.model.critic, trainer.processing_class
    lengths = rollout.mask.sum(dim=1).tolist()
    assert len({len(prompt.messages[0]["content"]) for prompt in asked}) > 1 and len(set(lengths)) > 1
    advantages, expected_kl, scores, ended = [], [], [], []
    for row, (prompt, length) in enumerate(zip(asked, lengths, strict=True)):
        ids = rollout.input_ids[row][rollout.attention_mask[row].bool()][None]
        completion = ids[0, -length:]
        text = tokenizer.apply_chat_template(prompt.messages, tokenize=False, add_generation_prompt=True)
        assert tokenizer.decode(ids[0, :-length]) == text
        with torch.no_grad():
            log_probs, reference = (
                (each(ids).logits[0, -length - 1 : -1] / 0.7).log_softmax(-1).gather(1, completion[:, None])[:, 0]
                for each in (actor, trainer.reference)
            )
            values = critic.score(critic.model(ids).last_hidden_state)[0, -length - 1 : -1, 0]
        # float32; padding and attention masks change the order of sums
        torch.testing.assert_close(rollout.log_probs[row, :length], log_probs, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(rollout.values[row, :length], values, rtol=1e-4, atol=1e-5)
        ended.append(int(completion[-1]) in actor.generation_config.eos_token_id)
        score = letter_reward([tokenizer.decode(completion, skip_special_tokens=True)])[0] - 0.25 * (not ended[-1])
        rewards = -0.1 * (log_probs - reference)
        rewards[-1] += score
        advantage, returns = generalized_advantages(
            rewards[None], values[None], torch.ones(1, length, dtype=torch.bool), 0.98, 0.9
        )
        torch.testing.assert_close(rollout.returns[row, :length], returns[0], rtol=1e-4, atol=1e-5)
        advantages.append(advantage[0])
        expected_kl.append(float((log_probs - reference).sum()))
        scores.append(score)
    together = torch.cat(advantages)
    whitened = (together - together.mean()) / together.std(correction=0)
    torch.testing.assert_close(rollout.advantages[rollout.mask], whitened, rtol=1e-3, atol=1e-4)
    for values in (rollout.log_probs, rollout.values, rollout.advantages, rollout.returns):
        assert not values[~rollout.mask].any()
    assert figures["kl_per_answer"] == pytest.approx(sum(expected_kl) / len(asked), rel=1e-3)
    assert figures["kl"] == pytest.approx(sum(expected_kl) / sum(lengths), rel=1e-3)
    assert figures["reward"] == pytest.approx(sum(scores) / len(asked), rel=1e-4)
    assert figures["completions/ended"] == pytest.approx(sum(ended) / len(asked))
    assert figures["completions/mean_length"] == pytest.approx(sum(lengths) / len(asked))


def test_rewards_of_several_kinds(make: Make, reward_model: Path, policy: Path) -> None:
    """Functions see the columns, one of weight 0 is only watched, and what does not apply does not count."""
    tokenizer = load_tokenizer(policy)

    def every_third(answer: Sequence[str | None], prompts: Sequence[Any], **_: Any) -> list[float | None]:
        assert len(answer) == len(prompts)
        return [None if each is None else float(each) for each in answer]

    judge = RewardModel(load_reward_model(reward_model, tokenizer), tokenizer)
    rewards = {"reward_model": judge, "third": every_third, "letter": letter_reward}
    trainer = make(rewards, reward_weights=[1.0, 0.5, 0.0], kl_coef=0.0, gamma=1.0, lam=1.0)
    asked, rollout, figures = rolled_out(trainer)
    completions = [
        tokenizer.decode(ids[-rollout.mask.size(1) :][mask], skip_special_tokens=True)
        for ids, mask in zip(rollout.input_ids, rollout.mask, strict=True)
    ]
    scores = judge([prompt.messages for prompt in asked], completions)
    thirds = [float(prompt.columns["answer"]) for prompt in asked if "answer" in prompt.columns]
    assert 0 < len(thirds) < len(asked)
    assert figures["rewards/reward_model"] == pytest.approx(sum(scores) / len(scores), rel=1e-4)
    assert figures["rewards/third"] == pytest.approx(sum(thirds) / len(thirds))
    assert figures["rewards/letter"] == pytest.approx(sum(letter_reward(completions)) / len(asked), rel=1e-5)
    assert figures["reward"] == pytest.approx((sum(scores) + 0.5 * sum(thirds)) / len(asked), rel=1e-4)
    # without discount and KL every token's return is the score of its completion
    total = [score + 0.5 * float(prompt.columns.get("answer", 0)) for score, prompt in zip(scores, asked, strict=True)]
    torch.testing.assert_close(rollout.returns[:, 0], torch.tensor(total), rtol=1e-4, atol=1e-4)


def test_sampling_in_batches(make: Make) -> None:
    """In batches of 3, 3 and 2, and all at once: what each prompt gives by itself, where nothing is left to chance."""
    trainer = make()
    inputs = text_inputs(trainer.processing_class, [prompt.messages for prompt in trainer.prompts[:8]])
    trainer.generation_config.top_k = 1
    with torch.no_grad():
        for parameter in trainer.model.policy.parameters():
            parameter.mul_(3)  # at its start it says the same to everything
    sampled = []
    for at_once in (1, 3, 8):
        trainer.args.local_rollout_forward_batch_size = at_once
        sampled.append(trainer._generate(inputs))
    assert sampled[0] == sampled[1] == sampled[2]
    assert len(sampled[0]) == 8 and len(set(map(tuple, sampled[0]))) > 4


def test_no_model_sees_more_completions_at_once_than_set(
    text_set: Path, policy: Path, reward_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    built: list[PPOTrainer] = []

    def keep(build: Callable[[], PPOTrainer], *_: Any) -> int:
        built.append(build())
        return 0

    monkeypatch.setattr(train_ppo_text, "run_training", keep)
    settings = {"max_prompts_per_device": 2, "max_steps": 1, "reward_funcs": ["reward_model"]}
    argv = run_of(tmp_path / "run", text_set, policy, reward_model_name_or_path=reward_model, **settings)
    assert train_ppo_text.main(argv) == 0
    [trainer] = built
    judge = trainer.reward_funcs["reward_model"]
    assert isinstance(judge, RewardModel)
    models = [trainer.model.policy, trainer.model.critic.base_model, trainer.reference, judge.model]
    seen: list[set[int]] = [set() for _ in models]
    for model, sizes in zip(models, seen, strict=True):
        model.register_forward_pre_hook(
            lambda _, args, kwargs, sizes=sizes: sizes.add(len(kwargs["input_ids"])), with_kwargs=True
        )
    trainer.train()
    assert seen == [{2}] * 4


# --- The updates


def test_a_step_moves_every_parameter_but_the_frozen_ones(make: Make, reward_model: Path, policy: Path) -> None:
    judge = RewardModel(load_reward_model(reward_model, load_tokenizer(policy)), load_tokenizer(policy))
    trainer = make({"reward_model": judge})
    assert trainer.reference is not None
    before, frozen = state_of(trainer.model), [*trainer.reference.parameters(), *judge.model.parameters()]
    start = [parameter.clone() for parameter in frozen]
    trainer.train()
    moved = {name for name, value in trainer.model.state_dict().items() if not torch.equal(value, before[name])}
    assert moved == set(before)
    assert all(map(torch.equal, frozen, start)) and not any(parameter.requires_grad for parameter in frozen)


def test_the_critic_has_a_learning_rate_of_its_own(make: Make) -> None:
    trainer = make(critic_learning_rate=0.0, weight_decay=0.1)
    before = state_of(trainer.model)
    trainer.train()
    moved = {name.split(".")[0] for name, value in trainer.model.state_dict().items() if not value.equal(before[name])}
    assert moved == {"policy"}
    for group in trainer.optimizer.param_groups:
        decays = {parameter.dim() > 1 for parameter in group["params"]}  # matrices, not norms and biases
        assert decays == {group["weight_decay"] == 0.1}


def test_small_batches_add_up_to_the_same_update(make: Make) -> None:
    """Completions have different lengths: a mean of the batches' means would be another loss."""
    whole, parts = make(max_prompts_per_device=8), make(max_prompts_per_device=2)
    assert (parts.args.per_device_train_batch_size, parts.args.gradient_accumulation_steps) == (2, 2)
    _, rollout, _ = rolled_out(whole)
    lengths = rollout.mask.sum(dim=1)
    assert lengths.min() < lengths.max()
    gradients = []
    for trainer in (whole, parts):
        trainer._prepare_for_training(1, None, None)
        set_seed(0)  # of the minibatches
        seen: list[list[torch.Tensor]] = []
        gradients.append(seen)
        step = trainer.optimizer.step

        def look(*args: Any, trainer=trainer, seen=seen, step=step) -> None:
            if trainer.accelerator.sync_gradients:
                seen.append([parameter.grad.clone() for parameter in trainer.model.parameters()])
            step(*args)

        trainer.optimizer.step = look
        trainer._update(rollout)
    assert len(gradients[0]) == len(gradients[1]) == 4  # epochs x minibatches
    for one, other in zip(gradients[0][0], gradients[1][0], strict=True):
        # the first update: later ones start from weights that differ by rounding, which Adam may double
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-6)


def test_a_max_grad_norm_of_0_clips_nothing(make: Make) -> None:
    """As for Trainer and DeepSpeed; the norm is still logged."""
    states, norms = [], []
    for bound in (0.0, 1e9):
        trainer = make(max_grad_norm=bound)
        before = state_of(trainer.model)
        trainer.train()
        states.append(state_of(trainer.model))
        norms.append(trainer.state.log_history[0]["grad_norm"])
        assert not any(value.equal(before[name]) for name, value in states[-1].items())
    assert all(value.equal(states[1][name]) for name, value in states[0].items())
    assert norms[0] == norms[1] > 0


def test_the_loss_is_weighed_and_the_bonus_differentiated(make: Make) -> None:
    trainer = make(vf_coef=0.5, entropy_coef=0.1)
    terms = {"loss/policy": torch.tensor(1.0), "loss/value": torch.tensor(2.0), "entropy": torch.tensor(3.0)}
    assert float(trainer._loss(terms)) == pytest.approx(1 + 0.5 * 2 - 0.1 * 3)
    _, rollout, _ = rolled_out(trainer)
    assert trainer._loss_terms(rollout)["entropy"].requires_grad
    trainer.args.entropy_coef = 0.0
    assert not trainer._loss_terms(rollout)["entropy"].requires_grad


def test_figures_of_the_first_update(make: Make) -> None:
    """One update a rollout: the ratio is 1, nothing is clipped, and whitened advantages have mean 0."""
    trainer = make(num_ppo_epochs=1, num_mini_batches=1)
    trainer.train()
    figures = trainer.state.log_history[0]
    assert figures["clip_fraction/policy"] == figures["clip_fraction/value"] == 0
    assert figures["loss/policy"] == pytest.approx(0, abs=1e-5)
    assert figures["approx_kl"] == pytest.approx(0, abs=1e-9)
    assert figures["kl"] == 0  # the policy is still the reference
    assert figures["loss/value"] > 0 and figures["entropy"] > 1 and figures["tokens_per_second"] > 0


def test_activation_checkpointing_changes_nothing(make: Make) -> None:
    states = []
    for checkpointing in (False, True):
        trainer = make(activation_checkpointing=checkpointing)
        trainer.train()
        assert trainer.model.policy.is_activation_checkpointing == checkpointing
        states.append(trainer.model.state_dict())
    assert all(torch.equal(value, states[1][name]) for name, value in states[0].items())


def test_it_learns(make: Make) -> None:
    trainer = make(max_steps=16, prompts_per_step=24, max_prompts_per_device=24, learning_rate=1e-2, kl_coef=0.01)
    trainer.train()
    reward = [entry["reward"] for entry in trainer.state.log_history]
    kl = [entry["kl_per_answer"] for entry in trainer.state.log_history]
    assert sum(reward[-3:]) > 3 * sum(reward[:3])  # seen: 5.3 times
    assert kl[0] == 0 and kl[-1] > 1


# --- Whose turn it is


def test_every_prompt_once_an_epoch_in_an_order_of_its_own() -> None:
    steps = [indices_of_step(step, 8, 12, seed=3) for step in range(6)]  # 4 epochs
    flat = [index for step in steps for index in step]
    epochs = [flat[start : start + 12] for start in range(0, 48, 12)]
    assert all(sorted(epoch) == list(range(12)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 4
    assert steps[4] == indices_of_step(4, 8, 12, seed=3) != indices_of_step(4, 8, 12, seed=4)
    assert sorted(indices_of_step(0, 30, 12, seed=0)[:24]) == sorted(2 * list(range(12)))  # more than there are


# --- The entry point: resuming, checkpoints, bad input


class Killed(BaseException):
    """Stands for SIGKILL inside this process: nothing of the trainer's catches it."""


def run_of(folder: Path, text_set: Path, policy: Path, **settings: Any) -> list[str]:
    """The command line of 6 steps, unless `settings` say otherwise."""
    argv = arguments("ppo", folder, text_set, policy)
    for key, value in ({"max_steps": 6, "reward_funcs": "letter"} | settings).items():
        argv += [f"--{key}", *map(str, value if isinstance(value, list) else [value])]
    return argv


def weights_of(folder: Path) -> list[bytes]:
    return [path.read_bytes() for path in (folder / "model.safetensors", folder / CRITIC / "model.safetensors")]


def test_killed_and_stopped_then_resumed_gives_the_same_bytes(
    text_set: Path, policy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert train_ppo_text.main(run_of(tmp_path / "whole", text_set, policy)) == 0

    class KillAtThree(StopOnSignal):
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if state.global_step == 3:
                raise Killed

    broken = run_of(tmp_path / "broken", text_set, policy)
    with monkeypatch.context() as patched, pytest.raises(Killed):
        patched.setattr("r1_aqa_repro.run.loop.StopOnSignal", KillAtThree)
        train_ppo_text.main(broken)
    assert last_checkpoint(tmp_path / "broken") == tmp_path / "broken" / "checkpoint-2"

    def stops_in_the_fifth(completions: Sequence[Completion], **columns: Any) -> list[float]:
        calls.append(1)
        if len(calls) == 3:  # of steps 3, 4, 5
            os.kill(os.getpid(), signal.SIGTERM)
        return letter_reward(completions, **columns)

    calls: list[int] = []
    with monkeypatch.context() as patched:
        patched.setitem(registry.RULES, "letter", registry.Rule(lambda args: stops_in_the_fifth))
        assert train_ppo_text.main(broken) == 130
    assert last_checkpoint(tmp_path / "broken") == tmp_path / "broken" / "checkpoint-5"
    assert not (tmp_path / "broken" / "final").exists()

    assert train_ppo_text.main(broken) == 0
    assert weights_of(tmp_path / "whole" / "final") == weights_of(tmp_path / "broken" / "final")
    logs = [
        json.loads((tmp_path / run / "checkpoint-6" / "trainer_state.json").read_text(encoding="utf-8"))["log_history"]
        for run in ("whole", "broken")
    ]
    for one, other in zip(*logs, strict=True):
        assert one | {"tokens_per_second": 0} == other | {"tokens_per_second": 0}
    tables = [(tmp_path / run / "completions.csv").read_text(encoding="utf-8") for run in ("whole", "broken")]
    assert tables[0] == tables[1] and len(tables[0].splitlines()) >= 1 + 6 * 4


def test_checkpoints_load_as_users_do(text_set: Path, policy: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    assert train_ppo_text.main(run_of(run, text_set, policy, max_steps=2, dtype="float32")) == 0
    start = load_file(policy / "model.safetensors")
    for folder in (run / "checkpoint-2", run / "final"):
        actor, report = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
        assert not report["missing_keys"] and not report["unexpected_keys"]
        critic, report = AutoModelForSequenceClassification.from_pretrained(folder / CRITIC, output_loading_info=True)
        assert not report["missing_keys"] and not report["unexpected_keys"]
        assert critic.config.num_labels == 1 and critic.score.weight.any()
        assert processor_files(folder) == processor_files(folder / CRITIC) == processor_files(policy)
        assert actor.generation_config.eos_token_id == GenerationConfig.from_pretrained(policy).eos_token_id
    saved = load_file(run / "final" / "model.safetensors")
    assert saved.keys() == start.keys() and not any(saved[name].equal(start[name]) for name in start)


def test_where_the_critic_starts(policy: Path, reward_model: Path) -> None:
    def critic_of(**keys: Any) -> Any:
        args = PPOConfig(output_dir="unused", use_cpu=True, **keys)
        return train_ppo_text.load_critic(args, TextModelConfig(model_name_or_path=str(policy)))

    as_policy, as_reward = critic_of(), critic_of(reward_model_name_or_path=str(reward_model))
    start = load_file(policy / "model.safetensors")
    assert all(value.equal(start[f"model.{name}"]) for name, value in as_policy.model.state_dict().items())
    assert not as_policy.score.weight.any()
    judge = load_file(reward_model / "model.safetensors")
    assert all(value.equal(judge[name]) for name, value in as_reward.state_dict().items())


def test_updates_that_are_not_finite_move_nothing_and_the_third_in_a_row_ends_the_run(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A rollout has several updates: what counts as one in a row is an update."""
    backward = Accelerator.backward
    monkeypatch.setattr(Accelerator, "backward", lambda self, loss, **rest: backward(self, loss * math.nan, **rest))
    trainer = make(num_ppo_epochs=1)
    before = state_of(trainer.model)
    trainer.train()
    after = state_of(trainer.model)
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert trainer.finite_steps.skipped == [1, 1]
    [entry] = [entry for entry in trainer.state.log_history if "reward" in entry]
    assert entry["grad_norm"] is None and entry["skipped_steps"] == 2

    trainer = make()
    with pytest.raises(Failed, match="not finite 3 times in a row, up to step 1: "):
        trainer.train()
    assert all(torch.equal(before[name], value) for name, value in state_of(trainer.model).items())


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_reward_that_is_no_number_ends_the_run(value: float, make: Make) -> None:
    trainer = make({"broken": lambda completions, **_: [None] * (len(completions) - 1) + [value]})
    with pytest.raises(Failed, match=f"the reward broken gave {value} for the completion '"):
        trainer.train()


def test_what_cannot_work_is_refused_at_once(
    text_set: Path, policy: Path, reward_model: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    other = tmp_path / "other"
    build_tiny_qwen2(other, texts=["quite other words, other words, words"], seed=0, geometry=TEST_TEXT)
    wrong = {
        "num_mini_batches": 3, "eval_strategy": "steps", "save_strategy": "epoch", "use_peft": True,
        "reward_weights": [1, 1], "value_model_name_or_path": other,
    }  # fmt: skip
    assert train_ppo_text.main(run_of(tmp_path / "run", text_set, policy, **wrong)) == 2
    said = capfd.readouterr().err
    for what in (
        "no multiple of num_mini_batches",
        "eval_strategy: there is nothing to evaluate on", "save_strategy: epoch: PPO logs and saves by steps",
        "lora_dropout: 0.05", "reward_weights: 2 weights",
        f"{other}: the model has no score head",
    ):  # fmt: skip
        assert what in said, (what, said)
    assert not (tmp_path / "run").exists()
    # a reward model of another vocabulary would read other words than the policy writes
    load_reward_model(other, load_tokenizer(other), new_head=True).save_pretrained(other)
    assert train_ppo_text.main(run_of(tmp_path / "run", text_set, policy, value_model_name_or_path=other)) == 2
    assert f"{other}: its tokens are not those of {policy}" in capfd.readouterr().err


YARN = '{"rope_type": "yarn", "factor": 2.0}'


@pytest.fixture
def critic_of(policy: Path, reward_model: Path, tmp_path: Path) -> Callable[..., Path]:
    """The folder of a reward model that was trained at so many positions."""

    def of(positions: int) -> Path:
        tokenizer, folder = load_tokenizer(policy), tmp_path / f"reward-{positions}"
        critic: PreTrainedModel = load_reward_model(reward_model, tokenizer)
        critic.config.max_position_embeddings = positions
        critic.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        return folder

    return of


@pytest.mark.parametrize("short", ["value_model_name_or_path", "reward_model_name_or_path"])
def test_prompts_too_long_for_the_critic_or_the_judge_are_refused(
    short: str, critic_of: Callable[..., Path], text_set: Path, policy: Path, prompts: list[TextPrompt], tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    longest = max(map(len, token_ids(load_tokenizer(policy), [prompt.messages for prompt in prompts], complete=False)))
    room = SETTINGS["max_completion_length"]
    readers = {
        "reward_funcs": ["reward_model"], "value_model_name_or_path": critic_of(512),
        "reward_model_name_or_path": critic_of(511), short: critic_of(longest + room - 1),
    }  # fmt: skip
    run = run_of(tmp_path / "run", text_set, policy, **readers)
    assert train_ppo_text.main(run) == 2
    reader = {"value_model_name_or_path": "critic", "reward_model_name_or_path": "reward model"}[short]
    assert f"{longest} tokens are more than the {longest - 1} that the {reader} can take" in capfd.readouterr().err
    assert not (tmp_path / "run").exists()
    # the critic has the run's rotary embeddings, the judge its own
    can = short == "value_model_name_or_path"
    assert train_ppo_text.main([*run, "--rope_parameters", YARN, "--max_steps", "1"]) == (0 if can else 2)


def test_rotary_embeddings_that_the_critic_cannot_have_are_refused(
    critic_of: Callable[..., Path], text_set: Path, policy: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    critic = critic_of(256)  # the policy was trained at 512
    rope = json.dumps(json.loads(YARN) | {"original_max_position_embeddings": 512})
    run = run_of(tmp_path / "run", text_set, policy, value_model_name_or_path=critic, rope_parameters=rope)
    assert train_ppo_text.main(run) == 2
    [line] = capfd.readouterr().err.splitlines()
    what = "original_max_position_embeddings is 512, the checkpoint's trained length 256"
    assert line.startswith(f"error: {critic}: rope_parameters: {what}")
    assert not (tmp_path / "run").exists()
