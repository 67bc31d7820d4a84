"""Interrupted and resumed equals uninterrupted, to the byte; a checkpoint is whole or absent."""

from __future__ import annotations

import json
import os
import shutil
import signal
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoProcessor, GenerationConfig, Qwen2AudioForConditionalGeneration
from transformers.integrations.deepspeed import unset_hf_deepspeed_config

from r1_aqa_repro.common.errors import Refused
from r1_aqa_repro.data.questions import read_questions
from r1_aqa_repro.model import loading
from r1_aqa_repro.model.files import processor_files
from r1_aqa_repro.run.callbacks import StopOnSignal
from r1_aqa_repro.run.checkpoints import ResumableTrainer, last_checkpoint
from r1_aqa_repro.run.config import AudioSFTConfig
from r1_aqa_repro.run.training_state import STAGING, check_resumable
from r1_aqa_repro.sft.trainer import AudioSFTTrainer
from tests.run.conftest import AUDIO, TEXT, VARIANTS, Killed, Start, kill_at


@pytest.mark.parametrize(
    ("name", "kills"),
    [
        *((name, (3, 7)) for name in AUDIO),
        *((name, (5,)) for name in TEXT),
        *(pytest.param(name, (3, 7), marks=pytest.mark.slow) for name in VARIANTS),
    ],
)
def test_killed_before_and_after_the_epoch_end_then_resumed_gives_the_same_bytes(
    name: str, kills: tuple[int, ...], start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    assert start(name, whole) == 0
    for step in kills:
        with monkeypatch.context() as patched, pytest.raises(Killed):
            patched.setattr("r1_aqa_repro.run.loop.StopOnSignal", kill_at(step))
            start(name, broken)
        assert last_checkpoint(broken) == broken / f"checkpoint-{step - 1}"
    assert start(name, broken) == 0

    file = "adapter_model.safetensors" if "lora" in name else "model.safetensors"
    assert (whole / "final" / file).read_bytes() == (broken / "final" / file).read_bytes()
    losses = [
        [entry["loss"] for entry in json.loads(state.read_text(encoding="utf-8"))["log_history"] if "loss" in entry]
        for state in (run / "checkpoint-8" / "trainer_state.json" for run in (whole, broken))
    ]
    assert losses[0] == losses[1] and len(losses[0]) == 8

    # it did train: the weights at the end are not those of the checkpoint that it went on from
    before, after = (load_file(broken / folder / file) for folder in (f"checkpoint-{kills[-1] - 1}", "final"))
    unmoved = [key for key in before if torch.equal(before[key], after[key])]
    assert all("embed_positions" in key for key in unmoved)  # Whisper's sinusoids


def test_weights_right_after_a_resume_are_the_checkpoints(
    start: Start, model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """transformers would go on from the initial weights with a warning: no key name matches the live model's."""
    assert start("audio grpo", tmp_path / "run", "--max_steps", "4") == 0
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
        start("audio grpo", tmp_path / "run", "--max_steps", "4")
    saved = loading.load_model(checkpoint).state_dict()
    initial = loading.load_model(model_folder).state_dict()
    assert seen.keys() == saved.keys()
    assert all(torch.equal(seen[name], saved[name]) for name in saved)
    assert not all(torch.equal(seen[name], initial[name]) for name in initial)


@pytest.mark.parametrize("name", ["audio sft", *TEXT])
def test_a_checkpoint_cut_off_while_being_written_is_never_used(
    name: str, start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What writes under another name comes before TRL's own trainer, which would write a model card on the way."""

    def cut_off(self: Any, output_dir: str) -> None:
        if output_dir.endswith("checkpoint-4"):
            raise Killed

    monkeypatch.setattr(ResumableTrainer, "_save_optimizer_and_scheduler", cut_off)
    with pytest.raises(Killed):
        start(name, tmp_path)
    assert (tmp_path / STAGING / "checkpoint-4" / "model.safetensors").is_file()
    assert not (tmp_path / "checkpoint-4").exists()
    assert last_checkpoint(tmp_path) == tmp_path / "checkpoint-2"


@pytest.mark.parametrize("name", AUDIO)
def test_killed_between_the_last_checkpoint_and_the_end_the_run_takes_no_step_more(
    name: str, start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Trainer itself would: the learning rate is constant here, so that it would show."""
    run, whole, more = tmp_path / "run", tmp_path / "whole", ["--lr_scheduler_type", "constant", "--max_steps", "4"]

    def killed(self: Any) -> None:
        raise Killed

    with monkeypatch.context() as patched, pytest.raises(Killed):
        patched.setattr(ResumableTrainer, "save_final", killed)
        start(name, run, *more)
    last = run / "checkpoint-4"
    assert last_checkpoint(run) == last and not (run / "final").exists()
    assert start(name, run, *more) == 0
    assert (run / "final" / "model.safetensors").read_bytes() == (last / "model.safetensors").read_bytes()
    assert not (run / "checkpoint-5").exists()

    assert start(name, whole, *more) == 0
    names = {path.name for path in (whole / "final").iterdir()}
    assert {path.name for path in (run / "final").iterdir()} == names
    for file in names - {"training_args.bin"}:  # which holds the run's folder
        expected = (whole / "final" / file).read_bytes().replace(b"# `whole`, step 4", b"# `run`, step 4")
        assert (run / "final" / file).read_bytes() == expected, file


def test_a_checkpoint_without_optimizer_is_refused(
    start: Start, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    assert start("audio sft", run, "--save_total_limit", "9") == 0
    for name in ("final", "checkpoint-8"):
        (run / name).rename(tmp_path / name)
    (run / "checkpoint-6" / "optimizer.pt").unlink()
    assert start("audio sft", run) == 2
    assert "checkpoint-6: the checkpoint has no optimizer state" in capfd.readouterr().err


@pytest.mark.parametrize("killed", [False, True])
def test_only_the_newest_checkpoint_keeps_the_optimizer_if_asked(
    killed: bool, start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """A kill while the older ones lose theirs leaves none that looks whole and is not."""
    more = ["--max_steps", "6", "--save_total_limit", "9", "--keep_optimizer", "last"]
    rename_really = os.rename

    def rename(path: Path, to: Path) -> None:
        if path.name == "scheduler.pt":  # which goes after the optimizer
            raise Killed
        rename_really(path, to)

    if killed:
        with monkeypatch.context() as patched, pytest.raises(Killed):
            patched.setattr("os.rename", rename)
            start("audio sft", tmp_path, *more)
        assert last_checkpoint(tmp_path) == tmp_path / "checkpoint-4"
        assert not (tmp_path / "checkpoint-2" / "optimizer.pt").exists()
        assert (tmp_path / "checkpoint-2" / "scheduler.pt").exists()
    assert start("audio sft", tmp_path, *more) == 0
    state = {"optimizer.pt", "scheduler.pt", "rng_state.pth"}
    names = {step: {path.name for path in (tmp_path / f"checkpoint-{step}").iterdir()} for step in (2, 4, 6)}
    assert state <= names[6] and names[2] == names[4] == names[6] - state
    assert "trainer_state.json" in names[2] and not (tmp_path / STAGING).exists()
    loading.load(tmp_path / "checkpoint-2")

    for folder in ("final", "checkpoint-6"):
        (tmp_path / folder).rename(tmp_path / f"{folder} set aside")
    assert start("audio sft", tmp_path, *more) == 2
    assert "checkpoint-4: the checkpoint has no optimizer state" in (said := capfd.readouterr().err)
    assert "keep_optimizer: last" in said


def test_a_run_goes_on_with_less_memory_and_is_told_that_its_bits_may_differ(
    start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Fewer examples at once, and activations computed twice: another order of the same sums."""
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    assert start("audio sft", whole) == 0
    with monkeypatch.context() as patched, pytest.raises(Killed):
        patched.setattr("r1_aqa_repro.run.loop.StopOnSignal", kill_at(5))
        start("audio sft", broken)
    less = ["--max_examples_per_device", "1", "--activation_checkpointing", "true"]
    capfd.readouterr()
    assert start("audio sft", broken, *less) == 0
    said = capfd.readouterr().err
    assert "activation_checkpointing was False, now it is True, max_examples_per_device was " in said
    assert "the last bits may differ" in said and "random numbers" not in said
    [change] = json.loads((broken / "run.json").read_text(encoding="utf-8"))["resumed"]
    assert change["after"] == "checkpoint-4" and len(change["changes"]) == 2

    logs = [
        json.loads((run / "checkpoint-8" / "trainer_state.json").read_text())["log_history"] for run in (whole, broken)
    ]
    losses = [[entry["loss"] for entry in log if "loss" in entry] for log in logs]
    assert losses[1] == pytest.approx(losses[0], rel=1e-5) and losses[0][4] != losses[0][5]
    one, other = (load_file(run / "final" / "model.safetensors") for run in (whole, broken))
    assert all(torch.allclose(one[name], other[name], atol=1e-4) for name in one)

    (broken / "final").rename(broken / "set aside")
    assert start("audio sft", broken, *less, "--learning_rate", "0.5") == 2
    assert "is the folder of another run: learning_rate was " in capfd.readouterr().err


@pytest.mark.parametrize(
    ("more", "others"),
    [
        (["--max_prompts_per_device", "2"], True),
        (["--activation_checkpointing", "true"], False),
        (["--sharing", "off"], False),
    ],
)
def test_a_run_that_samples_in_other_batches_is_told_that_it_draws_others(
    more: list[str], others: bool, start: Start, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert start("audio grpo", tmp_path, "--max_steps", "4") == 0
    drawn = (tmp_path / "completions.csv").read_text(encoding="utf-8")
    for name in ("final", "checkpoint-4"):
        shutil.rmtree(tmp_path / name)
    capfd.readouterr()
    assert start("audio grpo", tmp_path, "--max_steps", "4", *more) == 0
    said = capfd.readouterr().err
    assert "the last bits may differ" in said and ("other ones are drawn than would have been" in said) == others
    assert ((tmp_path / "completions.csv").read_text(encoding="utf-8") != drawn) == others


def test_random_numbers_of_another_number_of_processes_are_drawn_anew_of_seed_and_step(
    start: Start, tmp_path: Path
) -> None:
    """A reward by coin: with its own numbers a run ends with the same bytes; these runs do with one another's."""
    whole, finals = tmp_path / "whole", []
    assert start("audio grpo", whole, "--max_steps", "4") == 0
    for name in ("one", "other"):
        shutil.copytree(whole, tmp_path / name, ignore=shutil.ignore_patterns("final", "checkpoint-4"))
        state = tmp_path / name / "checkpoint-2" / "rng_state.pth"
        for rank in (0, 1):
            shutil.copy(state, state.with_name(f"rng_state_{rank}.pth"))
        state.unlink()
        assert start("audio grpo", tmp_path / name, "--max_steps", "4") == 0
        finals.append((tmp_path / name / "final" / "model.safetensors").read_bytes())
    assert finals[0] == finals[1] != (whole / "final" / "model.safetensors").read_bytes()


@pytest.mark.parametrize(
    ("files", "deepspeed", "refused"),
    [
        (["optimizer.pt", "scheduler.pt"], None, None),
        (["optimizer.pt"], "zero2", "saved without ZeRO and cannot be read with ZeRO-1 or 2"),
        (["global_step2/mp_rank_00_model_states.pt"], "zero2", None),
        (["global_step2/mp_rank_00_model_states.pt"], "zero3", "with ZeRO-1 or 2 and cannot be read with ZeRO-3"),
        (["global_step2/zero_pp_rank_0_mp_rank_00_model_states.pt"], "zero3_offload", None),
        (["global_step2/zero_pp_rank_0_mp_rank_00_model_states.pt"], None, "with ZeRO-3 and cannot be read without"),
    ],
)
def test_the_state_of_another_zero_stage_is_refused(
    files: list[str], deepspeed: str | None, refused: str | None, tmp_path: Path
) -> None:
    for file in [*files, "rng_state.pth"]:
        (tmp_path / file).parent.mkdir(exist_ok=True)
        (tmp_path / file).touch()
    config = deepspeed and f"configs/deepspeed/{deepspeed}.json"
    args = AudioSFTConfig(output_dir=str(tmp_path), report_to="none", use_cpu=True, deepspeed=config)
    unset_hf_deepspeed_config()
    if refused is None:
        check_resumable(tmp_path, args)
    else:
        with pytest.raises(Refused, match=refused):
            check_resumable(tmp_path, args)


@pytest.mark.parametrize(("weight_decay", "processes", "refused"), [(0.1, 2, True), (0.0, 2, False), (0.1, 1, False)])
def test_groups_of_weights_that_zero3_would_mix_are_not_converted_for_other_processes(
    weight_decay: float, processes: int, refused: bool, tmp_path: Path
) -> None:
    for name in (
        "global_step2/zero_pp_rank_0_mp_rank_00_model_states.pt",
        *(f"rng_state_{i}" for i in range(processes)),
    ):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    zero3 = "configs/deepspeed/zero3.json"
    args = AudioSFTConfig(
        output_dir=str(tmp_path), report_to="none", use_cpu=True, deepspeed=zero3, weight_decay=weight_decay
    )
    unset_hf_deepspeed_config()
    with pytest.raises(Refused, match="saved by 2 processes, not 1") if refused else nullcontext():
        check_resumable(tmp_path, args)


def test_best_model_is_loaded_strictly(start: Start, manifest: Path, model_folder: Path, tmp_path: Path) -> None:
    assert start("audio sft", tmp_path / "run") == 0
    model, processor = loading.load(model_folder)
    args = AudioSFTConfig(output_dir=str(tmp_path / "other"), report_to="none", use_cpu=True)
    trainer = AudioSFTTrainer(model, args, read_questions(manifest).records, processor, "answer")
    trainer.state.best_model_checkpoint = str(tmp_path / "run" / "checkpoint-4")
    trainer._load_best_model()
    saved = loading.load_model(tmp_path / "run" / "checkpoint-4").state_dict()
    assert all(torch.equal(value, saved[name]) for name, value in trainer.model.state_dict().items())


def test_an_interrupted_run_goes_on_from_the_last_checkpoint_though_another_is_the_best(
    start: Start, text_set: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """transformers deletes the last one when training ends, however it does, if only one is to be kept."""
    lines = (text_set / "sft.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
    (tmp_path / "train.jsonl").write_text("".join(lines[:16]), encoding="utf-8")
    (tmp_path / "held_out.jsonl").write_text("".join(lines[16:]), encoding="utf-8")
    run, more = tmp_path / "run", ["--train_file", str(tmp_path / "train.jsonl")]
    more += ["--eval_file", str(tmp_path / "held_out.jsonl"), "--load_best_model_at_end", "true"]
    more += ["--save_total_limit", "1", "--keep_optimizer", "last", "--learning_rate", "1"]  # which makes it worse

    class Interrupt(StopOnSignal):
        def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if state.global_step == 4:
                signal.raise_signal(signal.SIGTERM)

    with monkeypatch.context() as patched:
        patched.setattr("r1_aqa_repro.run.loop.StopOnSignal", Interrupt)
        assert start("sft", run, *more) == 130
    last = last_checkpoint(run)
    assert last == run / "checkpoint-5" and (last / "optimizer.pt").is_file()
    state = json.loads((last / "trainer_state.json").read_text(encoding="utf-8"))
    assert state["best_model_checkpoint"] == str(run / "checkpoint-2")
    assert start("sft", run, *more) == 0


def test_every_process_knows_where_the_best_checkpoint_is(
    model_folder: Path, manifest: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was written in another folder than it lies in, and only the main process renames it."""
    model, processor = loading.load(model_folder)
    args = AudioSFTConfig(output_dir=str(tmp_path), report_to="none", use_cpu=True, save_only_model=True)
    trainer = AudioSFTTrainer(model, args, read_questions(manifest).records, processor, "answer")
    trainer.state.global_step = trainer.state.best_global_step = 2
    (tmp_path / STAGING / "checkpoint-2").mkdir(parents=True)  # by the main process
    monkeypatch.setattr(AudioSFTConfig, "should_save", False)
    trainer._save_checkpoint(trainer.model, None)
    assert trainer.state.best_model_checkpoint == str(tmp_path / "checkpoint-2")


def test_last_checkpoint_takes_the_highest_number(tmp_path: Path) -> None:
    assert last_checkpoint(tmp_path) is None
    for name in ("checkpoint-9", "checkpoint-10", "checkpoint-11.partial", "final", "checkpoint-x"):
        (tmp_path / name).mkdir()
    assert last_checkpoint(tmp_path) == tmp_path / "checkpoint-10"


def test_checkpoints_load_as_users_do_and_a_finished_run_is_left_alone(
    start: Start, model_folder: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """They hold the base model's processor files and generation config; transformers 4 loads them too, as
    tests/slow/test_older_transformers.py shows."""
    assert start("audio grpo", tmp_path, "--max_steps", "2") == 0
    for folder in (tmp_path / "checkpoint-2", tmp_path / "final"):
        Qwen2AudioForConditionalGeneration.from_pretrained(folder)
        assert AutoProcessor.from_pretrained(folder).feature_extractor.padding_side == "right"
        assert processor_files(folder) == processor_files(model_folder)
        saved, original = (GenerationConfig.from_pretrained(path) for path in (folder, model_folder))
        assert (saved.do_sample, saved.eos_token_id) == (original.do_sample, original.eos_token_id)
        assert saved.suppress_tokens is None  # training's sampling settings stay out of the checkpoint
    before = (tmp_path / "final" / "model.safetensors").stat().st_mtime_ns
    assert start("audio grpo", tmp_path, "--max_steps", "2") == 0
    assert "complete" in capfd.readouterr().err
    assert (tmp_path / "final" / "model.safetensors").stat().st_mtime_ns == before
