"""AudioGRPOTrainer as a whole, and the TRL internals it stands on."""

from __future__ import annotations

from dataclasses import replace
from itertools import islice
from typing import Any

import pytest
import torch
from trl.trainer.utils import RepeatSampler, create_model_from_path

from r1_aqa_repro.common.errors import Refused
from r1_aqa_repro.data.prompts import build_messages
from r1_aqa_repro.data.questions import AudioQuestion
from r1_aqa_repro.grpo import rollout
from r1_aqa_repro.grpo import trainer as module
from r1_aqa_repro.grpo.rollout import Rollout, group_rows
from r1_aqa_repro.grpo.selection import EpochRepeatSampler
from r1_aqa_repro.model import loading
from r1_aqa_repro.model.generation import Completions, complete
from r1_aqa_repro.model.inputs import PromptInputs, question_inputs


def test_trl_suppresses_the_sampled_audio_token(make_trainer: Any) -> None:
    trainer = make_trainer()
    assert trainer.generation_config.suppress_tokens == [trainer.model.config.audio_token_id]
    assert not hasattr(trainer.model.config, "image_token_id")


def test_a_reference_with_other_weights_than_the_policys_is_refused(make_trainer: Any, monkeypatch: Any) -> None:
    """TRL loads it by itself, and would train with what transformers then fills at random."""

    def loaded(*args: Any, **kwargs: Any) -> torch.nn.Module:
        model = create_model_from_path(*args, **kwargs)
        with torch.no_grad():
            model.lm_head.weight[0, 0] += 0.01
        return model

    monkeypatch.setattr("trl.trainer.grpo_trainer.create_model_from_path", loaded)
    with pytest.raises(Refused, match=r"not the policy's in 1 tensors, such as lm_head\.weight\. "):
        make_trainer(beta=0.04)


def test_training_changes_every_parameter_and_logs_the_rewards(make_trainer: Any) -> None:
    trainer = make_trainer(reward_funcs=["random"], max_steps=2)
    before = {name: parameter.detach().clone() for name, parameter in trainer.model.named_parameters()}
    trainer.train()
    unchanged = [name for name, parameter in trainer.model.named_parameters() if torch.equal(parameter, before[name])]
    # positions are frozen in Qwen2-Audio; a bias of the keys shifts all scores of a query alike and gets no gradient
    frozen = [name for name in unchanged if "k_proj.bias" not in name]
    assert frozen == ["model.audio_tower.embed_positions.weight"]
    logged = [entry for entry in trainer.state.log_history if "reward" in entry]
    assert len(logged) == 2 and 0 < logged[0]["rewards/random/mean"] < 1


def test_advantages_are_multiplied_by_the_weight_of_their_question(questions: list[AudioQuestion]) -> None:
    weak, strong = (replace(questions[0], contribution=label) for label in ("weak", "strong"))
    rows = [{"question": question} for question in (strong, strong, weak, weak)]
    rollout = Rollout(PromptInputs([[1], [2]]), torch.tensor([0, 0, 1, 1]), rows)
    rollout.output = {"advantages": torch.tensor([1.0, -1.0, 0.5, -0.5])}
    rollout.weigh(0.25)
    assert rollout.output["advantages"].tolist() == [1.0, -1.0, 0.125, -0.125]


def test_the_gradient_of_a_weak_question_is_multiplied_by_its_weight(
    make_trainer: Any, questions: list[AudioQuestion]
) -> None:
    """A step of SGD at a rate of 1 is the gradient: linear in the weight, and with a weight of 1 what it is without."""
    asked = [
        replace(each, contribution=label)
        for each, label in zip(questions[:3], ["weak", "strong", "strong"], strict=True)
    ]
    sgd = {"optim": "sgd", "learning_rate": 1.0, "lr_scheduler_type": "constant", "max_grad_norm": 0.0}

    def stepped(weight: float | None) -> torch.Tensor:
        trainer = make_trainer(asked, reward_funcs=["random"], max_steps=1, **sgd)
        trainer.weak_weight = weight
        trainer.train()
        return torch.cat([parameter.detach().flatten() for parameter in trainer.model.parameters()])

    unweighed, none, one, two = map(stepped, (None, 0.0, 1.0, 2.0))
    assert torch.equal(one, unweighed)
    assert (one - none).abs().max() > 1e-3  # the weak question's own gradient
    # differences of weights of up to 1 or so, in float32
    torch.testing.assert_close(two - one, one - none, atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("settings", [{"temperature": 1.3}, {"num_iterations": 2}, {"dynamic_sampling": 3}], ids=str)
def test_log_probs_as_sampled_and_as_scored_agree(make_trainer: Any, settings: dict[str, Any]) -> None:
    trainer = make_trainer(reward_funcs=["random"], max_prompts_per_device=1, **settings)
    trainer.train()
    apart = [entry["sampling/logp_difference"] for entry in trainer.state.log_history if "reward" in entry]
    assert len(apart) == 2 and max(apart) < 1e-5  # float32 sums in another order
    assert max(apart) > 0


def test_sampling_from_another_distribution_than_is_scored_shows_in_the_log(make_trainer: Any) -> None:
    trainer = make_trainer(reward_funcs=["random"])
    trainer.generation_config.temperature = 2.0
    trainer.train()
    assert trainer.state.log_history[0]["sampling/logp_difference"] > 0.01


@pytest.mark.parametrize(("beta", "at_once"), [(0.0, 3), (0.04, 3), (0.04, 1)], ids=["", "kl", "kl, accumulated"])
def test_shared_and_plain_training_take_the_same_step(
    make_trainer: Any, model_folder: Any, tmp_path: Any, beta: float, at_once: int
) -> None:
    """Same seed, same samples: two whole optimizer steps with and without sharing end at the same weights.

    With plain SGD the distance of the weights is that of the gradients.
    """
    start = loading.load_model(model_folder).state_dict()
    weights, logs = {}, {}
    for sharing in ("auto", "off"):
        trainer = make_trainer(
            sharing=sharing,
            beta=beta,
            max_prompts_per_device=at_once,
            reward_funcs=["random"],
            output_dir=str(tmp_path / sharing),
            optim="sgd",
            learning_rate=0.1,
        )
        trainer.train()
        weights[sharing] = {name: value.clone() for name, value in trainer.model.state_dict().items()}
        logs[sharing] = [entry for entry in trainer.state.log_history if "reward" in entry]
    for one, other in zip(logs["auto"], logs["off"], strict=True):
        assert one["completions/mean_length"] == other["completions/mean_length"]
        assert one["reward"] == other["reward"]
        # gradient norms in float32, summed in another order
        assert one["grad_norm"] == pytest.approx(other["grad_norm"], rel=1e-4)
    for name, value in weights["off"].items():
        moved = (value - start[name]).norm()
        # a step is stored in float32 weights of size ~0.1: each is rounded by up to 4e-9, whatever the gradient
        rounding = 1e-8 * value.numel() ** 0.5
        assert (weights["auto"][name] - value).norm() <= 1e-3 * moved + rounding, name


def test_the_model_is_given_what_evaluation_gives_it(
    make_trainer: Any, questions: list[AudioQuestion], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The ids and features of `question_inputs`, with every prompt rendered once for its group."""
    given: list[Any] = []
    rendered: list[str] = []

    def watched_complete(model: Any, inputs: Any, *args: Any, **keys: Any) -> Completions:
        given.append(inputs)
        return complete(model, inputs, *args, **keys)

    def watched_messages(question: AudioQuestion, style: str) -> list[dict[str, Any]]:
        rendered.append(question.id)
        return build_messages(question, style)

    monkeypatch.setattr(module, "complete", watched_complete)
    monkeypatch.setattr(rollout, "build_messages", watched_messages)
    trainer = make_trainer([questions[index] for index in (0, 23, 9)], max_steps=1)
    trainer.train()
    [inputs], by_id = given, {question.id: question for question in questions}
    assert sorted(rendered) == ["q0", "q23", "q9"]
    expected = question_inputs(trainer.processing_class, [by_id[name] for name in rendered], "answer")
    assert inputs.prompt_ids == expected.prompt_ids
    assert torch.equal(inputs.input_features, expected.input_features)
    assert torch.equal(inputs.feature_attention_mask, expected.feature_attention_mask)


def test_group_rows(questions: list[AudioQuestion]) -> None:
    a, b, c = questions[:3]
    same_text = replace(b, question=a.question, choices=a.choices, answer=a.answer)
    assert group_rows([a, a, same_text, same_text, c, c], 2).tolist() == [0, 0, 1, 1, 2, 2]


@pytest.mark.parametrize("order", [(0, 1), (0, 0, 0), (0, 0, 1, 0)])
def test_group_rows_refuses_broken_groups(questions: list[AudioQuestion], order: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="group"):
        group_rows([questions[index] for index in order], 2)


def sampler_of(kind: type[RepeatSampler]) -> RepeatSampler:
    return kind(list(range(10)), mini_repeat_count=2, batch_size=5, repeat_count=1, shuffle=True, seed=3)


def test_sampler_epochs_differ_and_repeat() -> None:
    first = sampler_of(EpochRepeatSampler)
    assert isinstance(first, EpochRepeatSampler)
    epochs = []
    for epoch in range(3):
        first.set_epoch(epoch)
        epochs.append(list(first))
    assert sorted(epochs[0]) == sorted(epochs[1]) == sorted(list(range(10)) * 2)
    assert epochs[0] != epochs[1] != epochs[2]
    resumed = sampler_of(EpochRepeatSampler)
    assert isinstance(resumed, EpochRepeatSampler)
    resumed.set_epoch(2)
    assert list(resumed) == epochs[2]
    assert epochs[0] == list(sampler_of(RepeatSampler))  # epoch 0 is TRL's own order
    assert all(one == other for one, other in zip(islice(epochs[0], 0, None, 2), epochs[0][1::2], strict=True))
