"""Supervised fine-tuning: what is learned, how the loss is averaged, and when it stops."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import TrainerControl, TrainerState

from r1_aqa_repro import train_sft
from r1_aqa_repro.data.questions import AudioQuestion
from r1_aqa_repro.model import loading
from r1_aqa_repro.model.audio_encoder import TrimmableAudioEncoder
from r1_aqa_repro.model.encoded_audio import ENCODED, EncodedAudio
from r1_aqa_repro.model.inputs import AUDIO_KEYS, IGNORE
from r1_aqa_repro.run.callbacks import StopAtLoss
from r1_aqa_repro.run.clips import Clips
from r1_aqa_repro.run.config import AudioSFTConfig
from r1_aqa_repro.sft import trainer as trainer_module
from r1_aqa_repro.sft.trainer import AudioSFTTrainer, SFTCollator


def collated(processor: Any, questions: list[AudioQuestion]) -> dict[str, torch.Tensor]:
    batch = SFTCollator(processor, "answer", "first", Clips(Path("no run")))(questions)
    assert (batch.pop("questions"), batch.pop("reasons")) == (questions, [None] * len(questions))
    clips = dict.fromkeys(question.audio_path for question in questions)
    assert [question.audio_path for question in batch.pop("heard")] == list(clips)
    return batch


def test_only_answer_and_end_of_turn_are_labelled(model_folder: Path, questions: list[AudioQuestion]) -> None:
    processor = loading.load_processor(model_folder)
    batch = collated(processor, questions[:3])
    for row, question in enumerate(questions[:3]):
        labelled = batch["labels"][row] != IGNORE
        text = processor.tokenizer.decode(batch["labels"][row][labelled])
        assert text == f"<answer>{question.answer}</answer><|im_end|>"
        assert torch.equal(batch["labels"][row][labelled], batch["input_ids"][row][labelled])
        assert labelled.nonzero().max() == batch["attention_mask"][row].sum() - 1  # the last real token


def one_step(
    model_folder: Path,
    folder: Path,
    questions: list[AudioQuestion],
    resume: str | None = None,
    peft_config: LoraConfig | None = None,
    weak_weight: float | None = None,
    **overrides: Any,
) -> Any:
    settings: dict[str, Any] = {
        "output_dir": str(folder), "examples_per_step": 6, "max_examples_per_device": 6, "max_steps": 1,
        "learning_rate": 0.1, "optim": "sgd", "save_strategy": "no", "report_to": "none", "use_cpu": True,
        "logging_steps": 1, "dataloader_pin_memory": False,
    }  # fmt: skip
    args = AudioSFTConfig(**(settings | overrides))
    model, processor = loading.load(model_folder)
    loading.freeze(model, args.trained_parts)
    policy: Any = get_peft_model(model, peft_config) if peft_config else model
    trainer = AudioSFTTrainer(policy, args, questions, processor, "answer", weak_weight=weak_weight)
    trainer.train(resume_from_checkpoint=resume)
    return trainer


def test_the_loss_is_the_mean_over_the_tokens_of_the_step(
    model_folder: Path, questions: list[AudioQuestion], tmp_path: Path
) -> None:
    """Accumulated over micro-batches with answers of different lengths, as all at once, as the model's own loss."""
    asked = questions[:6]
    whole = one_step(model_folder, tmp_path / "whole", asked)
    accumulated = one_step(model_folder, tmp_path / "accumulated", asked, max_examples_per_device=2)
    assert accumulated.args.gradient_accumulation_steps == 3

    model, processor = loading.load(model_folder)
    with torch.no_grad():
        expected = float(model(**collated(processor, asked)).loss)  # mean over the batch's tokens
    for trainer in (whole, accumulated):
        assert trainer.state.log_history[0]["loss"] == pytest.approx(expected, rel=1e-4)
    # float32 gradients of the same sum, taken in another order
    assert accumulated.state.log_history[0]["grad_norm"] == pytest.approx(
        whole.state.log_history[0]["grad_norm"], rel=1e-4
    )


def test_a_question_of_weight_two_counts_as_two_of_it(
    model_folder: Path, questions: list[AudioQuestion], tmp_path: Path
) -> None:
    """Sums over tokens are the same; the mean is over the tokens that there are. Accumulated as well as at once."""
    labelled = [replace(one, contribution="strong") for one in questions[:4]]
    labelled[1] = replace(labelled[1], contribution="weak")
    processor = loading.load_processor(model_folder)

    def total(asked: list[AudioQuestion], name: str, at_once: int, **settings: Any) -> float:
        """The sum behind the loss of a step on all of them."""
        sizes: dict[str, Any] = {"examples_per_step": len(asked), "max_examples_per_device": at_once}
        trainer = one_step(model_folder, tmp_path / name, asked, **sizes, **settings)
        tokens = int((collated(processor, asked)["labels"] != IGNORE).sum())
        return float(trainer.state.log_history[0]["loss"]) * tokens

    once, twice = total(labelled, "once", 4), total([*labelled, labelled[1]], "twice", 5)
    assert twice > 1.1 * once
    for at_once in (4, 2):
        # float32 sums in another order
        assert total(labelled, f"weighed-{at_once}", at_once, weak_weight=2.0) == pytest.approx(twice, rel=1e-4)
        assert total(labelled, f"same-{at_once}", at_once, weak_weight=1.0) == pytest.approx(once, rel=1e-4)
    assert total(labelled, "none", 4, weak_weight=0.0) == pytest.approx(2 * once - twice, rel=1e-3)


@pytest.fixture
def encoded(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Clips of each call of the encoder, but for those that pass on what has been encoded."""
    seen: list[int] = []
    forward = TrimmableAudioEncoder.forward

    def counted(self: Any, input_features: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        if input_features.size(1) != self.config.d_model:
            seen.append(len(input_features))
        return forward(self, input_features, *args, **kwargs)

    monkeypatch.setattr(TrimmableAudioEncoder, "forward", counted)
    return seen


@pytest.fixture
def asked(questions: list[AudioQuestion]) -> list[AudioQuestion]:
    """Six questions about three clips of 0.5, 1.6 and 2.9 s."""
    clips = [questions[clip].audio_path for clip in (0, 23, 0, 11, 23, 0)]
    return [replace(each, audio_path=clip) for each, clip in zip(questions, clips, strict=False)]


@pytest.mark.parametrize("parts", ["all", "no_encoder"])
def test_the_gradient_is_that_of_all_logits_and_of_a_clip_a_question(
    parts: str, asked: list[AudioQuestion], model_folder: Path, tmp_path: Path, encoded: list[int]
) -> None:
    """A step of SGD at a rate of 1 is the gradient; the model's own loss takes logits everywhere, and a clip a row."""
    settings: dict[str, Any] = {
        "learning_rate": 1.0,
        "lr_scheduler_type": "constant",
        "max_grad_norm": 0.0,
        "trained_parts": parts,
    }
    trainer = one_step(model_folder, tmp_path, asked, **settings)
    assert encoded == ([3] if parts == "all" else [1, 1, 1])

    model, processor = loading.load(model_folder)
    loading.freeze(model, parts)
    batch = collated(processor, asked)
    rows = batch.pop("clip_of_row")
    assert rows.tolist() == [0, 1, 0, 2, 1, 0]
    batch |= {key: batch[key][rows] for key in AUDIO_KEYS}
    model(**batch).loss.backward()
    moved = dict(trainer.model.named_parameters())
    for name, start in model.named_parameters():
        expected = start.detach() if start.grad is None else start.detach() - start.grad
        # float32 sums in another order; gradients are up to 0.5, and most weights 0.02
        torch.testing.assert_close(moved[name].detach(), expected, atol=2e-6, rtol=1e-5)


def test_the_head_is_computed_where_a_token_is_learned(
    questions: list[AudioQuestion], model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of adapters too; a batch of which nothing is left to learn has no row and changes nothing."""
    loss_of, rows = trainer_module.token_loss, []

    def watched(outputs: Any, labels: torch.Tensor, **kwargs: Any) -> torch.Tensor:
        rows.append((outputs.logits.shape[:-1], labels.shape))
        return loss_of(outputs, labels, **kwargs)

    monkeypatch.setattr(trainer_module, "token_loss", watched)
    asked = questions[:4]
    labelled = int((collated(loading.load_processor(model_folder), asked)["labels"] != IGNORE).sum())
    one_step(model_folder, tmp_path / "heard", asked, examples_per_step=4)
    adapter = LoraConfig(task_type="CAUSAL_LM", r=4, target_modules=r".*language_model.*\.(q_proj|v_proj)")
    adapted = one_step(model_folder, tmp_path / "adapted", asked, peft_config=adapter, examples_per_step=4)
    assert rows == [((1, labelled), (labelled,))] * 2
    assert adapted.state.log_history[0]["grad_norm"] > 0

    monkeypatch.setattr(Clips, "are_lost", lambda self, asked, reasons, step: [True] * len(asked))
    trainer = one_step(model_folder, tmp_path / "lost", asked, examples_per_step=4)
    assert rows[2:] == [((1, 0), (0,))]
    assert trainer.state.log_history[0]["loss"] == trainer.state.log_history[0]["grad_norm"] == 0.0


def test_the_command_trains_the_parts_it_is_told(model_folder: Path, manifest: Path, tmp_path: Path) -> None:
    given: dict[str, Any] = {"train_file": manifest, "model_name_or_path": model_folder, "output_dir": tmp_path}
    given |= {"trained_parts": "language_model", "examples_per_step": 4, "max_steps": 1, "learning_rate": 0.1}
    given |= {"optim": "sgd", "report_to": "none", "use_cpu": True, "dataloader_pin_memory": False}
    assert train_sft.main([part for key, value in given.items() for part in (f"--{key}", str(value))]) == 0
    start, final = (loading.load_model(folder).state_dict() for folder in (model_folder, tmp_path / "final"))
    moved = {name for name, value in final.items() if not value.equal(start[name])}
    assert {name.removeprefix("model.").split(".")[0] for name in moved} == {"language_model", "lm_head"}


def test_a_frozen_encoder_encodes_a_clip_once_a_run_and_once_over_a_resume(
    asked: list[AudioQuestion],
    model_folder: Path,
    tmp_path: Path,
    encoded: list[int],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Four steps of three questions; the weights of a run that encodes at every step, and bytes that a resume keeps."""
    settings: dict[str, Any] = {"trained_parts": "no_encoder", "examples_per_step": 3, "max_steps": 4}
    saving: dict[str, Any] = {"save_strategy": "steps", "save_steps": 2}
    cached = one_step(model_folder, tmp_path / "run", asked, **settings, **saving)
    assert encoded == [1, 1, 1]
    assert len(list((tmp_path / "run" / ENCODED).glob("*/*.safetensors"))) == 3

    checkpoint = str(tmp_path / "run" / "checkpoint-2")
    resumed = one_step(model_folder, tmp_path / "run", asked, resume=checkpoint, **settings, **saving)
    assert encoded == [1, 1, 1]
    monkeypatch.setattr(EncodedAudio, "of_run", lambda *args: None)
    plain = one_step(model_folder, tmp_path / "plain", asked, **settings)
    assert sum(encoded[3:]) >= 4
    for name, value in cached.model.state_dict().items():
        assert value.equal(resumed.model.state_dict()[name]), name
        # a clip encoded alone and in a batch differs by float32 rounding (1e-6), carried through four steps
        torch.testing.assert_close(value, plain.model.state_dict()[name], atol=2e-5, rtol=0)


def test_stop_at_loss_looks_at_the_last_twenty_steps() -> None:
    stop, state = StopAtLoss(1.0), TrainerState()

    def stops_after(losses: list[float]) -> bool:
        control = TrainerControl()
        state.log_history = [{"loss": loss, "step": step} for step, loss in enumerate(losses)]
        stop.on_log(None, state, control)
        return control.should_training_stop

    assert not stops_after([0.5] * 19)
    assert stops_after([0.5] * 20)
    assert stops_after([9.0, *[1.0] * 20])
    assert not stops_after([9.0, *[1.0] * 19])
    assert not stops_after([0.1] * 20 + [1.1] * 20)
