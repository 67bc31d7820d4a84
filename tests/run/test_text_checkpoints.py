"""Text trainers: interrupted and resumed equals uninterrupted, to the byte; a checkpoint is whole or absent."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from r1_aqa_repro.run.checkpoints import STAGING, ResumableTrainer, last_checkpoint
from tests.run.test_checkpoints import Killed, kill_at
from tests.text_world import ENTRIES, LORA, arguments

# 24 records: an epoch is 6 steps of 4. What goes on from step 4 crosses its end; step 6 is its end.
STEPS = ["--max_steps", "8", "--save_steps", "2"]
LORA_OF_A_REWARD_MODEL = [*LORA, "--lora_task_type", "SEQ_CLS"]
RUNS: dict[str, tuple[str, list[str]]] = {
    "sft": ("sft", []),
    "reward_model": ("reward_model", []),
    "reward_model lora": ("reward_model", LORA_OF_A_REWARD_MODEL),
    "dpo": ("dpo", []),
    "dpo precomputed": ("dpo", ["--precompute_ref_log_probs", "true"]),
    "dpo lora": ("dpo", LORA),
    "grpo": ("grpo", ["--reward_funcs", "random", "reward_model"]),
}


def command(name: str, folder: Path, text_set: Path, policy: Path, reward_model: Path) -> list[str]:
    kind, more = RUNS[name]
    judge = ["--reward_model_name_or_path", str(reward_model)] if kind == "grpo" else []
    return [*arguments(kind, folder, text_set, policy), *STEPS, *more, *judge]


@pytest.mark.parametrize(
    ("name", "kills"),
    [
        *((name, (5,)) for name in ENTRIES),
        *(pytest.param(name, (3, 7), marks=pytest.mark.slow) for name in RUNS if name not in ENTRIES),
    ],
)
def test_killed_and_resumed_gives_the_same_bytes(
    name: str,
    kills: tuple[int, ...],
    text_set: Path,
    policy: Path,
    reward_model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    entry = ENTRIES[RUNS[name][0]][0]
    assert entry.main(command(name, tmp_path / "whole", text_set, policy, reward_model)) == 0

    broken = command(name, tmp_path / "broken", text_set, policy, reward_model)
    for step in kills:
        with monkeypatch.context() as patched, pytest.raises(Killed):
            patched.setattr("r1_aqa_repro.run.loop.StopOnSignal", kill_at(step))
            entry.main(broken)
        assert last_checkpoint(tmp_path / "broken") == tmp_path / "broken" / f"checkpoint-{step - 1}"
    assert entry.main(broken) == 0

    file = "adapter_model.safetensors" if "lora" in name else "model.safetensors"
    whole, resumed = (tmp_path / run / "final" / file for run in ("whole", "broken"))
    assert whole.read_bytes() == resumed.read_bytes()
    losses = [
        [entry["loss"] for entry in json.loads(state.read_text(encoding="utf-8"))["log_history"] if "loss" in entry]
        for state in (tmp_path / run / "checkpoint-8" / "trainer_state.json" for run in ("whole", "broken"))
    ]
    assert losses[0] == losses[1] and len(losses[0]) == 8

    # it did train: the weights at the end are not those of the checkpoint that it went on from
    before, after = (
        load_file(tmp_path / "broken" / folder / file) for folder in (f"checkpoint-{kills[-1] - 1}", "final")
    )
    assert before.keys() == after.keys()
    moved = [key for key in before if not torch.equal(before[key], after[key])]
    assert len(moved) == len(before)


@pytest.mark.parametrize("name", ENTRIES)
def test_a_checkpoint_cut_off_while_being_written_is_never_used(
    name: str, text_set: Path, policy: Path, reward_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What writes under another name comes before TRL's own trainer, which writes a model card on the way."""

    def cut_off(self: Any, output_dir: str) -> None:
        if output_dir.endswith("checkpoint-4"):
            raise Killed

    monkeypatch.setattr(ResumableTrainer, "_save_optimizer_and_scheduler", cut_off)
    with pytest.raises(Killed):
        ENTRIES[RUNS[name][0]][0].main(command(name, tmp_path / "run", text_set, policy, reward_model))
    assert (tmp_path / "run" / STAGING / "checkpoint-4" / "model.safetensors").is_file()
    assert not (tmp_path / "run" / "checkpoint-4").exists()
    assert last_checkpoint(tmp_path / "run") == tmp_path / "run" / "checkpoint-2"
