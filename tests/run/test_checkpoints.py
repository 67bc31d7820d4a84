"""Interrupted and resumed equals uninterrupted, to the byte; a checkpoint is whole or absent."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from r1_aqa_repro import train_grpo, train_sft
from r1_aqa_repro.data.questions import read_questions
from r1_aqa_repro.model import loading
from r1_aqa_repro.run.callbacks import StopOnSignal
from r1_aqa_repro.run.checkpoints import STAGING, ResumableTrainer, last_checkpoint
from r1_aqa_repro.run.config import AudioSFTConfig
from r1_aqa_repro.sft.trainer import AudioSFTTrainer

COMMON = [
    "--learning_rate", "1e-3", "--save_steps", "2", "--logging_steps", "1", "--report_to", "none",
    "--bf16", "false", "--activation_checkpointing", "false", "--dataloader_pin_memory", "false", "--use_cpu", "true",
    "--seed", "1",
]  # fmt: skip
# 24 questions: an epoch is 6 steps of 4, so that 8 steps and the resume from step 7 lie in the second
GRPO = [
    *COMMON, "--prompts_per_step", "4", "--max_prompts_per_device", "4", "--num_generations", "2",
    "--max_completion_length", "4", "--reward_funcs", "random", "--beta", "0.04", "--loss_type", "grpo",
    "--max_steps", "8",
]  # fmt: skip
SFT = [*COMMON, "--examples_per_step", "4", "--max_steps", "8"]
ENTRIES = {"grpo": (train_grpo, GRPO), "sft": (train_sft, SFT)}


class Killed(BaseException):
    """Stands for SIGKILL inside this process: nothing of the trainer's catches it."""


def kill_at(step: int) -> type[StopOnSignal]:
    class KillAt(StopOnSignal):
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if state.global_step == step:
                raise Killed

    return KillAt


def arguments(kind: str, folder: Path, manifest: Path, model_folder: Path) -> list[str]:
    where = ["--output_dir", str(folder), "--train_file", str(manifest), "--model_name_or_path", str(model_folder)]
    return [*ENTRIES[kind][1], *where]


@pytest.mark.parametrize("kind", ENTRIES)
def test_killed_before_and_after_the_epoch_end_then_resumed_gives_the_same_bytes(
    kind: str, manifest: Path, model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    entry, _ = ENTRIES[kind]
    assert entry.main(arguments(kind, tmp_path / "whole", manifest, model_folder)) == 0

    broken = arguments(kind, tmp_path / "broken", manifest, model_folder)
    for step in (3, 7):
        with monkeypatch.context() as patched, pytest.raises(Killed):
            patched.setattr("r1_aqa_repro.run.loop.StopOnSignal", kill_at(step))
            entry.main(broken)
        assert last_checkpoint(tmp_path / "broken") == tmp_path / "broken" / f"checkpoint-{step - 1}"
    assert entry.main(broken) == 0

    whole, resumed = (tmp_path / name / "final" / "model.safetensors" for name in ("whole", "broken"))
    assert whole.read_bytes() == resumed.read_bytes()
    start = load_file(model_folder / "model.safetensors")
    moved = [name for name, value in load_file(whole).items() if not torch.equal(value, start[name])]
    assert len(moved) > 20  # it did train


def test_weights_right_after_a_resume_are_the_checkpoints(
    manifest: Path, model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """transformers would go on from the initial weights with a warning: no key name matches the live model's."""
    argv = arguments("grpo", tmp_path / "run", manifest, model_folder)
    assert train_grpo.main([*argv, "--max_steps", "4"]) == 0
    checkpoint = tmp_path / "run" / "checkpoint-2"
    seen: dict[str, torch.Tensor] = {}

    class Look(StopOnSignal):
        def on_train_begin(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
            seen.update({name: value.clone() for name, value in model.state_dict().items()})
            raise Killed

    monkeypatch.setattr("r1_aqa_repro.run.loop.StopOnSignal", Look)
    monkeypatch.setattr("r1_aqa_repro.run.loop.last_checkpoint", lambda folder: checkpoint)
    (tmp_path / "run" / "final").rename(tmp_path / "run" / "set-aside")
    with pytest.raises(Killed):
        train_grpo.main([*argv, "--max_steps", "4"])
    saved = loading.load_model(checkpoint).state_dict()
    initial = loading.load_model(model_folder).state_dict()
    assert seen.keys() == saved.keys()
    assert all(torch.equal(seen[name], saved[name]) for name in saved)
    assert not all(torch.equal(seen[name], initial[name]) for name in initial)


def test_a_checkpoint_cut_off_while_being_written_is_never_used(
    manifest: Path, model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    argv = arguments("sft", tmp_path / "run", manifest, model_folder)
    written = []

    def cut_off(self: Any, output_dir: str) -> None:
        written.append(output_dir)
        if output_dir.endswith("checkpoint-4"):
            raise Killed

    monkeypatch.setattr(ResumableTrainer, "_save_optimizer_and_scheduler", cut_off)
    with pytest.raises(Killed):
        train_sft.main(argv)
    folder = tmp_path / "run"
    assert (folder / STAGING / "checkpoint-4" / "model.safetensors").is_file()
    assert not (folder / "checkpoint-4").exists()
    assert last_checkpoint(folder) == folder / "checkpoint-2"


@pytest.mark.parametrize("kind", ENTRIES)
def test_killed_between_the_last_checkpoint_and_the_end(
    kind: str, manifest: Path, model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Trainer itself would take one step more: the learning rate is constant here, so that it would show."""
    entry, _ = ENTRIES[kind]
    argv = [*arguments(kind, tmp_path / "run", manifest, model_folder), "--lr_scheduler_type", "constant"]
    argv += ["--max_steps", "4"]

    def killed(self: Any) -> None:
        raise Killed

    with monkeypatch.context() as patched, pytest.raises(Killed):
        patched.setattr(ResumableTrainer, "save_final", killed)
        entry.main(argv)
    last = tmp_path / "run" / "checkpoint-4"
    assert last_checkpoint(tmp_path / "run") == last and not (tmp_path / "run" / "final").exists()
    assert entry.main(argv) == 0
    final = tmp_path / "run" / "final"
    assert (final / "model.safetensors").read_bytes() == (last / "model.safetensors").read_bytes()
    assert not (tmp_path / "run" / "checkpoint-5").exists()

    whole = [argument.replace(str(tmp_path / "run"), str(tmp_path / "whole")) for argument in argv]
    assert entry.main(whole) == 0
    names = {path.name for path in (tmp_path / "whole" / "final").iterdir()}
    assert {path.name for path in final.iterdir()} == names
    for name in names - {"training_args.bin", "README.md"}:  # these name the run's folder
        assert (final / name).read_bytes() == (tmp_path / "whole" / "final" / name).read_bytes(), name


def test_a_checkpoint_without_optimizer_is_refused(
    manifest: Path, model_folder: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    argv = arguments("sft", tmp_path / "run", manifest, model_folder)
    assert train_sft.main([*argv, "--save_total_limit", "9"]) == 0
    for name in ("final", "checkpoint-8"):
        (tmp_path / "run" / name).rename(tmp_path / name)
    (tmp_path / "run" / "checkpoint-6" / "optimizer.pt").unlink()
    assert train_sft.main(argv) == 2
    assert "checkpoint-6: the checkpoint has no optimizer state" in capfd.readouterr().err


def test_best_model_is_loaded_strictly(manifest: Path, model_folder: Path, tmp_path: Path) -> None:
    argv = arguments("sft", tmp_path / "run", manifest, model_folder)
    assert train_sft.main(argv) == 0
    model, processor = loading.load(model_folder)
    args = AudioSFTConfig(output_dir=str(tmp_path / "other"), report_to="none", use_cpu=True)
    trainer = AudioSFTTrainer(model, args, read_questions(manifest).records, processor, "answer")
    trainer.state.best_model_checkpoint = str(tmp_path / "run" / "checkpoint-4")
    trainer._load_best_model()
    saved = loading.load_model(tmp_path / "run" / "checkpoint-4").state_dict()
    assert all(torch.equal(value, saved[name]) for name, value in trainer.model.state_dict().items())


def test_last_checkpoint_takes_the_highest_number(tmp_path: Path) -> None:
    assert last_checkpoint(tmp_path) is None
    for name in ("checkpoint-9", "checkpoint-10", "checkpoint-11.partial", "final", "checkpoint-x"):
        (tmp_path / name).mkdir()
    assert last_checkpoint(tmp_path) == tmp_path / "checkpoint-10"


def test_checkpoints_load_as_users_do_and_hold_processor_and_generation_config(
    manifest: Path, model_folder: Path, tmp_path: Path
) -> None:
    from transformers import AutoProcessor, GenerationConfig, Qwen2AudioForConditionalGeneration

    assert train_grpo.main([*arguments("grpo", tmp_path / "run", manifest, model_folder), "--max_steps", "2"]) == 0
    for name in ("checkpoint-2", "final"):
        folder = tmp_path / "run" / name
        Qwen2AudioForConditionalGeneration.from_pretrained(folder)
        assert AutoProcessor.from_pretrained(folder).feature_extractor.padding_side == "right"
        saved, start = (GenerationConfig.from_pretrained(path) for path in (folder, model_folder))
        assert (saved.do_sample, saved.eos_token_id) == (start.do_sample, start.eos_token_id)
        assert saved.suppress_tokens is None  # training's sampling settings stay out of the checkpoint


def test_a_finished_run_is_left_alone(manifest: Path, model_folder: Path, tmp_path: Path, capfd: Any) -> None:
    argv = [*arguments("sft", tmp_path / "run", manifest, model_folder), "--max_steps", "2"]
    assert train_sft.main(argv) == 0
    before = (tmp_path / "run" / "final" / "model.safetensors").stat().st_mtime_ns
    assert train_sft.main(argv) == 0
    assert "complete" in capfd.readouterr().err
    assert (tmp_path / "run" / "final" / "model.safetensors").stat().st_mtime_ns == before
