"""The shared forward is the plain forward: mask by hand, then log-probabilities, loss, gradients and tokens."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from transformers import GenerationConfig

from r1_aqa_repro.data.questions import AudioQuestion
from r1_aqa_repro.grpo import shared_prefix
from r1_aqa_repro.grpo.rollout import Rollout
from r1_aqa_repro.grpo.shared_prefix import pack_groups
from r1_aqa_repro.model.generation import cut_after_eos, generate
from r1_aqa_repro.model.inputs import IGNORE, question_inputs
from tests.grpo.conftest import World, rows_for_loss, scores_of

# float32 sums in another order: two forwards of the same row differ by up to ~2e-6 in log-probability here
LOGP_TOLERANCE = 2e-5
PAD = 99
BOTH = pytest.mark.parametrize("world", ["audio", "text"], indirect=True)


def test_packing_by_hand() -> None:
    """Two completions of prompt [1 2 3] and one of [8 9], shuffled; lengths 2, 3 and 1."""
    input_ids = torch.tensor([[1, 2, 3, 4, 5, PAD], [PAD, 8, 9, 7, PAD, PAD], [1, 2, 3, 6, 5, 4]])
    attention_mask = torch.tensor([[1, 1, 1, 1, 1, 0], [0, 1, 1, 1, 0, 0], [1, 1, 1, 1, 1, 1]])
    packed = pack_groups(input_ids, attention_mask, torch.tensor([0, 1, 0]), 3, PAD)

    assert packed.input_ids.tolist() == [[1, 2, 3, 4, 5, 3, 6, 5], [PAD, 8, 9, 7, PAD, PAD, PAD, PAD]]
    assert packed.position_ids[0].tolist() == [0, 1, 2, 3, 4, 2, 3, 4]
    assert packed.position_ids[1, 1:4].tolist() == [0, 1, 2]
    assert packed.shift_labels.tolist() == [
        [IGNORE, IGNORE, 4, 5, IGNORE, 6, 5, 4],
        [IGNORE, IGNORE, 7, IGNORE, IGNORE, IGNORE, IGNORE, IGNORE],
    ]
    joint = packed.joint_mask()
    sees = joint[0, 0]
    assert sees[5].tolist() == [True, True, False, False, False, True, False, False]  # prompt and itself, no sibling
    assert sees[7].tolist() == [True, True, False, False, False, True, True, True]
    assert joint[1, 0, 2].tolist() == [False, True, True, False, False, False, False, False]
    assert joint.diagonal(dim1=2, dim2=3).all()
    assert packed.scored.nonzero().tolist() == [[0, 2], [0, 3], [0, 5], [0, 6], [0, 7], [1, 2]]
    assert packed.unpack(torch.arange(1, 7)).tolist() == [[1, 2, 0], [6, 0, 0], [3, 4, 5]]


RAGGED = "ragged groups in shuffled order"
CASES = {
    "one group": ([0, 0, 0, 0], [3, 5, 1, 4]),
    RAGGED: ([2, 0, 1, 0, 2, 1, 1, 0], [1, 7, 3, 3, 6, 2, 5, 60]),
    "groups of different size": ([1, 0, 1, 1, 2], [4, 2, 9, 1, 3]),
    "think length": ([0, 1, 0, 1], [120, 64, 87, 101]),
}


@pytest.mark.parametrize(
    ("world", "case", "checkpointing"),
    [*(("audio", case, False) for case in CASES), ("audio", RAGGED, True), ("text", "one group", False),
     ("text", RAGGED, True)],
    indirect=["world"],
)  # fmt: skip
@pytest.mark.parametrize("lora", [False, True], ids=["full", "lora"])
@pytest.mark.parametrize("split", [False, True], ids=["one mask", "two masks"])
def test_log_probs_loss_and_gradients_equal_the_plain_forward(
    world: World, case: str, checkpointing: bool, lora: bool, split: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shared_prefix, "SPLIT_FROM", 0 if split else float("inf"))
    trainer = world.trainer(lora, checkpointing)
    trainer.model.train()
    trainer.current_gradient_accumulation_steps = 1
    rows = rows_for_loss(trainer, world.inputs(trainer, world.asked), *CASES[case])
    mask = rows["completion_mask"].bool()
    measured = []
    for share in (True, False):
        trainer.model.zero_grad()
        log_probs, entropy = scores_of(trainer, rows, share=share)
        loss = trainer._compute_loss(trainer.model, rows)
        loss.backward()
        gradients = {
            name: parameter.grad.clone()
            for name, parameter in trainer.model.named_parameters()
            if parameter.grad is not None
        }
        measured.append((log_probs[mask], entropy[mask], loss, gradients))

    shared, plain = measured
    torch.testing.assert_close(shared[0], plain[0], atol=LOGP_TOLERANCE, rtol=0)
    torch.testing.assert_close(shared[1], plain[1], atol=LOGP_TOLERANCE, rtol=0)
    torch.testing.assert_close(shared[2], plain[2], atol=1e-5, rtol=1e-5)
    trained = [name for name, parameter in trainer.model.named_parameters() if parameter.requires_grad]
    assert list(shared[3]) == list(plain[3]) == trained and len(trained) >= 4
    for name, gradient in plain[3].items():
        # relative to the gradient's own size: sums of up to ~1000 float32 terms in another order
        error = (shared[3][name] - gradient).norm() / gradient.norm().clamp(min=1e-8)
        assert error < 1e-3, f"{name}: {error:.2e}"


def test_sharing_adds_no_error_in_bfloat16(audio_world: World) -> None:
    """Under autocast both forwards round at every operation; the shared one strays no farther from float32."""
    trainer = audio_world.trainer()
    rows = rows_for_loss(trainer, audio_world.inputs(trainer, audio_world.asked), *CASES[RAGGED])
    mask = rows["completion_mask"].bool()
    with torch.no_grad():
        exact = scores_of(trainer, rows, share=False)[0][mask]
        trainer.accelerator.autocast = lambda: torch.autocast("cpu", torch.bfloat16)
        errors = {share: (scores_of(trainer, rows, share=share)[0][mask] - exact).norm() for share in (True, False)}
    assert 1e-3 < errors[False] < 1  # bfloat16 it is
    assert errors[True] < 1.5 * errors[False]


@BOTH
@pytest.mark.parametrize("which", ["policy", "reference"])
def test_log_probs_equal_a_row_alone(world: World, which: str) -> None:
    """Independent of both forwards: the model itself, one prompt and completion at a time, and log_softmax.

    The reference is a model of its own, which TRL loads and the trainer prepares.
    """
    trainer = world.trainer()
    model = trainer.model if which == "policy" else trainer.ref_model
    group, lengths = CASES[RAGGED]
    rows = rows_for_loss(trainer, world.inputs(trainer, world.asked), group, lengths)
    with torch.no_grad():
        found = [scores_of(trainer, rows, model, share)[0] for share in (True, False)]
        for row, (question, length) in enumerate(zip(group, lengths, strict=True)):
            alone = world.inputs(trainer, [world.asked[question]])
            completion = rows["completion_ids"][row, :length]
            ids = torch.cat([torch.tensor(alone.prompt_ids[0]), completion])[None]
            logits = model(input_ids=ids, attention_mask=torch.ones_like(ids), **alone.audio("cpu")).logits[0]
            expected = logits[-length - 1 : -1].log_softmax(-1).gather(1, completion[:, None])[:, 0]
            for log_probs in found:
                torch.testing.assert_close(log_probs[row, :length], expected, atol=LOGP_TOLERANCE, rtol=0)


def test_every_row_hears_its_own_clip(audio_world: World, questions: list[AudioQuestion]) -> None:
    """With clips laid out by `repeat` instead of `repeat_interleave`, rows are scored against another question's clip.

    The questions have the same text and clips of the same length, so that only what is heard tells them apart and a
    wrong layout cannot fail for the number of audio tokens.
    """
    trainer = audio_world.trainer()
    inputs = question_inputs(trainer.processing_class, [questions[0], questions[0]], "answer")
    features = inputs.input_features.clone()
    features[1] = features[1].flip(0) * 0.5  # another clip of the same length
    inputs = replace(inputs, input_features=features)
    rows = rows_for_loss(trainer, inputs, [0, 0, 1, 1], [5, 5, 5, 5])
    rows["completion_ids"][:] = rows["completion_ids"][0]
    wrong = rows | {"rollout": [Rollout(inputs, torch.tensor([0, 1, 0, 1]))]}
    for share in (True, False):
        with torch.no_grad():
            right, other = (scores_of(trainer, each, share=share)[0] for each in (rows, wrong))
        torch.testing.assert_close(right[0], right[1], atol=LOGP_TOLERANCE, rtol=0)
        torch.testing.assert_close(right[2], right[3], atol=LOGP_TOLERANCE, rtol=0)
        assert (right[0] - right[2]).abs().max() > 100 * LOGP_TOLERANCE  # the model does hear the difference
        assert (other - right).abs().max() > 100 * LOGP_TOLERANCE


@BOTH
def test_greedy_tokens_equal_with_and_without_sharing_and_one_by_one(world: World) -> None:
    trainer = world.trainer()
    config = GenerationConfig(
        max_new_tokens=20,
        do_sample=False,
        pad_token_id=trainer._tokenizer.pad_token_id,
        eos_token_id=trainer._tokenizer.eos_token_id,
        repetition_penalty=1.5,  # a random model repeats one token for ever; this makes the rows differ
    )
    inputs, rows = world.inputs(trainer, world.asked), torch.arange(3).repeat_interleave(2)
    one_by_one = [world.inputs(trainer, [asked]) for asked in world.asked]
    expected = [generate(trainer.model, each, torch.tensor([0]), config, share=False)[0] for each in one_by_one]
    assert len(set(map(tuple, expected))) == 3
    for share in (True, False):
        assert generate(trainer.model, inputs, rows, config, share=share) == [expected[index] for index in rows]


def test_rows_that_are_no_whole_groups_are_refused(make_trainer: Any, questions: list[AudioQuestion]) -> None:
    trainer = make_trainer()
    inputs = question_inputs(trainer.processing_class, questions[:2], "answer")
    for rows in ([0, 1, 0, 1], [0, 0, 1], [1, 1, 0, 0]):
        with pytest.raises(ValueError, match="equally many"):
            generate(trainer.model, inputs, torch.tensor(rows), trainer.generation_config)


@BOTH
def test_only_scored_positions_reach_the_head(world: World) -> None:
    trainer = world.trainer()
    group, lengths = CASES[RAGGED]
    rows = rows_for_loss(trainer, world.inputs(trainer, world.asked), group, lengths)
    shapes: list[tuple[int, ...]] = []
    model: Any
    for model in (trainer.model, trainer.ref_model):
        hook = model.base_model.register_forward_hook(lambda *call: shapes.append(tuple(call[-1][0].shape)))
        with torch.no_grad():
            scores_of(trainer, rows, model)
        hook.remove()
    assert shapes == [(1, sum(lengths), 32)] * 2


def test_cut_after_eos() -> None:
    assert cut_after_eos([[1, 2, 9, 9], [9, 1], [1, 2], [8, 9]], [9, 8]) == [[1, 2, 9], [9], [1, 2], [8]]
    assert cut_after_eos([[1, 7, 3]], 7) == [[1, 7]]
