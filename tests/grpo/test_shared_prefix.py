"""The shared forward is the plain forward: mask by hand, then log-probabilities, loss, gradients and tokens."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from peft import LoraConfig
from transformers import GenerationConfig

from r1_aqa_repro.data.questions import AudioQuestion
from r1_aqa_repro.grpo import shared_prefix
from r1_aqa_repro.grpo.shared_prefix import pack_groups
from r1_aqa_repro.grpo.trainer import AudioGRPOTrainer, Batch
from r1_aqa_repro.model.generation import cut_after_eos, generate
from r1_aqa_repro.model.inputs import IGNORE, attention_mask_left, pad_left, pad_right, question_inputs

# float32 sums in another order: two forwards of the same row differ by up to ~2e-6 in log-probability here
LOGP_TOLERANCE = 2e-5
PAD = 99


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


def completions_of(trainer: AudioGRPOTrainer, lengths: list[int], seed: int = 0) -> list[list[int]]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(5, 250, (length,), generator=generator).tolist() for length in lengths]


def scored_batch(
    trainer: AudioGRPOTrainer, asked: list[AudioQuestion], group: list[int], lengths: list[int]
) -> tuple[Batch, dict[str, torch.Tensor]]:
    """A batch as TRL hands it to the loss: left-padded prompts, right-padded completions of the given lengths."""
    inputs = question_inputs(trainer.processing_class, asked, trainer.prompt_style)
    rows = torch.tensor(group)
    prompts = [inputs.prompt_ids[index] for index in group]
    completions = completions_of(trainer, lengths)
    pad = trainer.processing_class.tokenizer.pad_token_id
    return Batch(inputs, rows), {
        "prompt_ids": pad_left(prompts, pad),
        "prompt_mask": attention_mask_left(prompts),
        "completion_ids": pad_right(completions, pad),
        "completion_mask": pad_right([[1] * len(ids) for ids in completions], 0),
        "advantages": torch.linspace(-1, 1, len(group)),
        "num_items_in_batch": torch.tensor(float(sum(lengths))),
        "group": rows,
    }


CASES = {
    "one group": ([0, 0, 0, 0], [3, 5, 1, 4]),
    "ragged groups in shuffled order": ([2, 0, 1, 0, 2, 1, 1, 0], [1, 7, 3, 3, 6, 2, 5, 8]),
    "groups of different size": ([1, 0, 1, 1, 2], [4, 2, 9, 1, 3]),
    "think length": ([0, 1, 0, 1], [120, 64, 87, 101]),
}


@pytest.mark.parametrize(
    ("case", "checkpointed"), [*((case, False) for case in CASES), ("ragged groups in shuffled order", True)]
)
@pytest.mark.parametrize("lora", [False, True], ids=["full", "lora"])
@pytest.mark.parametrize("split", [False, True], ids=["one mask", "two masks"])
def test_log_probs_loss_and_gradients_equal_the_plain_forward(
    case: str,
    checkpointed: bool,
    lora: bool,
    split: bool,
    make_trainer: Any,
    questions: list[AudioQuestion],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(shared_prefix, "SPLIT_FROM", 0 if split else float("inf"))
    group, lengths = CASES[case]
    asked = [questions[index] for index in (0, 23, 11)]  # 0.5 s, 2.9 s and 1.6 s of audio, prompts of two lengths
    peft_config = LoraConfig(r=4, target_modules=["q_proj", "v_proj"], init_lora_weights=False) if lora else None
    trainer = make_trainer(beta=0.04, peft_config=peft_config, activation_checkpointing=checkpointed)
    trainer.model.train()
    trainer.current_gradient_accumulation_steps = 1
    batch, rows = scored_batch(trainer, asked, group, lengths)
    trainer._inputs["train"] = batch.inputs
    mask = rows["completion_mask"].bool()
    rows["ref_per_token_logps"] = -4 - torch.rand(mask.shape, generator=torch.Generator().manual_seed(1))

    measured = {}
    for share in (True, False):
        trainer.share = share
        trainer.model.zero_grad()
        with trainer._working_on(batch):
            log_probs, entropy, _ = trainer._get_per_token_logps_and_entropies(
                trainer.model,
                torch.cat([rows["prompt_ids"], rows["completion_ids"]], 1),
                torch.cat([rows["prompt_mask"], rows["completion_mask"]], 1),
                mask.size(1),
                compute_entropy=True,
            )
        loss = trainer._compute_loss(trainer.model, rows)
        loss.backward()
        gradients = {
            name: parameter.grad.clone()
            for name, parameter in trainer.model.named_parameters()
            if parameter.grad is not None
        }
        measured[share] = (log_probs[mask], entropy[mask], loss, gradients)

    shared, plain = measured[True], measured[False]
    torch.testing.assert_close(shared[0], plain[0], atol=LOGP_TOLERANCE, rtol=0)
    torch.testing.assert_close(shared[1], plain[1], atol=LOGP_TOLERANCE, rtol=0)
    torch.testing.assert_close(shared[2], plain[2], atol=1e-5, rtol=1e-5)
    assert shared[3].keys() == plain[3].keys() and len(plain[3]) >= (4 if lora else 20)
    for name, gradient in plain[3].items():
        # relative to the gradient's own size: sums of up to ~1000 float32 terms in another order
        error = (shared[3][name] - gradient).norm() / gradient.norm().clamp(min=1e-8)
        assert error < 1e-3, f"{name}: {error:.2e}"


def test_sharing_adds_no_error_in_bfloat16(make_trainer: Any, questions: list[AudioQuestion]) -> None:
    """Under autocast both forwards round at every operation; the shared one strays no farther from float32."""
    group, lengths = CASES["ragged groups in shuffled order"]
    asked = [questions[index] for index in (0, 23, 11)]
    trainer = make_trainer()
    batch, rows = scored_batch(trainer, asked, group, lengths)
    mask = rows["completion_mask"].bool()

    def score(share: bool) -> torch.Tensor:
        trainer.share = share
        with trainer._working_on(batch), torch.no_grad():
            return trainer._get_per_token_logps_and_entropies(
                trainer.model,
                torch.cat([rows["prompt_ids"], rows["completion_ids"]], 1),
                torch.cat([rows["prompt_mask"], rows["completion_mask"]], 1),
                mask.size(1),
            )[0][mask]

    exact = score(share=False)
    trainer.accelerator.autocast = lambda: torch.autocast("cpu", torch.bfloat16)
    errors = {share: (score(share) - exact).norm() for share in (True, False)}
    assert 1e-3 < errors[False] < 1  # bfloat16 it is
    assert errors[True] < 1.5 * errors[False]


def test_log_probs_equal_a_row_alone(make_trainer: Any, questions: list[AudioQuestion]) -> None:
    """Independent of both forwards: the model itself, one prompt and completion at a time, and log_softmax."""
    group, lengths = CASES["ragged groups in shuffled order"]
    asked = [questions[index] for index in (0, 23, 11)]
    trainer = make_trainer()
    batch, rows = scored_batch(trainer, asked, group, lengths)
    with trainer._working_on(batch), torch.no_grad():
        log_probs, _, _ = trainer._get_per_token_logps_and_entropies(
            trainer.model,
            torch.cat([rows["prompt_ids"], rows["completion_ids"]], 1),
            torch.cat([rows["prompt_mask"], rows["completion_mask"]], 1),
            rows["completion_ids"].size(1),
        )
    for row, (question, length) in enumerate(zip(group, lengths, strict=True)):
        alone = question_inputs(trainer.processing_class, [asked[question]], "answer")
        completion = rows["completion_ids"][row, :length]
        ids = torch.cat([torch.tensor(alone.prompt_ids[0]), completion])[None]
        with torch.no_grad():
            logits = trainer.model(input_ids=ids, attention_mask=torch.ones_like(ids), **alone.audio("cpu")).logits[0]
        expected = logits[-length - 1 : -1].log_softmax(-1).gather(1, completion[:, None])[:, 0]
        torch.testing.assert_close(log_probs[row, :length], expected, atol=LOGP_TOLERANCE, rtol=0)


def test_every_row_hears_its_own_clip(make_trainer: Any, questions: list[AudioQuestion]) -> None:
    """With clips laid out by `repeat` instead of `repeat_interleave`, rows are scored against another question's clip.

    The questions have the same text and clips of the same length, so that only what is heard tells them apart and a
    wrong layout cannot fail for the number of audio tokens.
    """
    trainer = make_trainer()
    inputs = question_inputs(trainer.processing_class, [questions[0], questions[0]], "answer")
    features = inputs.input_features.clone()
    features[1] = features[1].flip(0) * 0.5  # another clip of the same length
    inputs = replace(inputs, input_features=features)
    completion = completions_of(trainer, [5])[0]
    pad = trainer.processing_class.tokenizer.pad_token_id
    right, wrong = torch.tensor([0, 0, 1, 1]), torch.tensor([0, 1, 0, 1])

    def score(group: torch.Tensor, share: bool) -> torch.Tensor:
        prompts = [inputs.prompt_ids[index] for index in group]
        trainer.share = share
        with trainer._working_on(Batch(inputs, group)), torch.no_grad():
            return trainer._get_per_token_logps_and_entropies(
                trainer.model,
                torch.cat([pad_left(prompts, pad), torch.tensor([completion] * 4)], 1),
                torch.cat([attention_mask_left(prompts), torch.ones(4, 5, dtype=torch.long)], 1),
                5,
            )[0]

    for share in (True, False):
        rows = score(right, share)
        torch.testing.assert_close(rows[0], rows[1], atol=LOGP_TOLERANCE, rtol=0)
        torch.testing.assert_close(rows[2], rows[3], atol=LOGP_TOLERANCE, rtol=0)
        assert (rows[0] - rows[2]).abs().max() > 100 * LOGP_TOLERANCE  # the model does hear the difference
        assert (score(wrong, share) - rows).abs().max() > 100 * LOGP_TOLERANCE


def test_greedy_tokens_equal_with_and_without_sharing_and_one_by_one(
    make_trainer: Any, questions: list[AudioQuestion]
) -> None:
    trainer = make_trainer()
    tokenizer = trainer.processing_class.tokenizer
    config = GenerationConfig(
        max_new_tokens=20,
        do_sample=False,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        repetition_penalty=1.5,  # a random model repeats one token for ever; this makes the rows differ
    )
    asked = [questions[index] for index in (0, 23, 11, 4)]
    inputs = question_inputs(trainer.processing_class, asked, "answer")
    rows = torch.arange(4).repeat_interleave(2)

    def alone(question: AudioQuestion) -> list[int]:
        own = question_inputs(trainer.processing_class, [question], "answer")
        return generate(trainer.model, own, torch.tensor([0]), config, share=False)[0]

    expected = [alone(question) for question in asked]
    assert len(set(map(tuple, expected))) >= 3
    for share in (True, False):
        assert generate(trainer.model, inputs, rows, config, share=share) == [expected[index] for index in rows]


def test_rows_that_are_no_whole_groups_are_refused(make_trainer: Any, questions: list[AudioQuestion]) -> None:
    trainer = make_trainer()
    inputs = question_inputs(trainer.processing_class, questions[:2], "answer")
    for rows in ([0, 1, 0, 1], [0, 0, 1], [1, 1, 0, 0]):
        with pytest.raises(ValueError, match="equally many"):
            generate(trainer.model, inputs, torch.tensor(rows), trainer.generation_config)


def test_only_scored_positions_reach_the_head(make_trainer: Any, questions: list[AudioQuestion]) -> None:
    trainer = make_trainer(beta=0.04)
    group, lengths = CASES["ragged groups in shuffled order"]
    batch, rows = scored_batch(trainer, [questions[index] for index in (0, 23, 11)], group, lengths)
    shapes: list[tuple[int, ...]] = []
    for model in (trainer.model, trainer.ref_model):
        hook = model.base_model.register_forward_hook(lambda *call: shapes.append(tuple(call[-1][0].shape)))
        with trainer._working_on(batch), torch.no_grad():
            trainer._get_per_token_logps_and_entropies(
                model,
                torch.cat([rows["prompt_ids"], rows["completion_ids"]], 1),
                torch.cat([rows["prompt_mask"], rows["completion_mask"]], 1),
                rows["completion_ids"].size(1),
            )
        hook.remove()
    assert shapes == [(1, sum(lengths), 32)] * 2


def test_cut_after_eos() -> None:
    assert cut_after_eos([[1, 2, 9, 9], [9, 1], [1, 2], [8, 9]], [9, 8]) == [[1, 2, 9], [9], [1, 2], [8]]
    assert cut_after_eos([[1, 7, 3]], 7) == [[1, 7]]
