"""SFT on audio in two processes of ZeRO-3: as in one, also where their batches have different numbers of clips."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from r1_aqa_repro.data.questions import AudioQuestion, write_manifest
from tests.distributed.launching import apart_and_come, deepspeed, launch, log_history

pytestmark = [pytest.mark.distributed, pytest.mark.timeout(600)]

# 24 questions about 3 clips, 2 a device: every third batch has one clip, often in one process alone
STEPS = 8
SETTINGS = [
    "--learning_rate", "1e-3", "--examples_per_step", "4", "--max_steps", str(STEPS), "--save_steps", str(STEPS),
    "--logging_steps", "1", "--report_to", "none", "--activation_checkpointing", "false",
    "--dataloader_pin_memory", "false", "--use_cpu", "true", "--ddp_find_unused_parameters", "false",
]  # fmt: skip


def test_two_processes_learn_what_one_learns(
    questions: list[AudioQuestion], model_folder: Path, tmp_path: Path
) -> None:
    """The encoder is trained too: both processes run it once a batch, on as many clips as theirs has."""
    shared = [replace(question, audio_path=questions[row % 3].audio_path) for row, question in enumerate(questions)]
    manifest = tmp_path / "manifest.jsonl"
    write_manifest(manifest, shared)
    logs = {}
    for processes, strategy in ((1, "ddp"), (2, "zero3")):
        folder = tmp_path / str(processes)
        where = ["--train_file", manifest, "--model_name_or_path", model_folder, "--output_dir", folder]
        how = ["--max_examples_per_device", 4 // processes, *deepspeed(strategy)]
        done = launch("r1_aqa_repro.train_sft", *SETTINGS, *where, *how, processes=processes)
        assert done.returncode == 0, done.stderr[-3000:]
        logs[processes] = log_history(folder / f"checkpoint-{STEPS}", "grad_norm")
    assert len(logs[1]) == len(logs[2]) == STEPS
    for one, two in zip(logs[1], logs[2], strict=True):
        # float32 sums in another order, whose rounding Adam's steps carry on
        assert two["loss"] == pytest.approx(one["loss"], rel=1e-4)
        assert two["grad_norm"] == pytest.approx(one["grad_norm"], rel=1e-3)
    apart, come = apart_and_come(model_folder, tmp_path / "1" / "final", tmp_path / "2" / "final")
    assert apart < 0.01 * come
