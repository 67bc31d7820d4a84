"""transformers 4.49, which R1-AQA and other tools of its time use, reads what is saved here."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from r1_aqa_repro import compose, train_grpo
from r1_aqa_repro.data.questions import AudioQuestion
from r1_aqa_repro.embedded.tiny_qwen2 import TEST_TEXT, build_tiny_qwen2
from r1_aqa_repro.merge_adapter import merge_adapter
from r1_aqa_repro.ppo.trainer import CRITIC
from tests.random_parts import GEOMETRIES, made
from tests.text_world import COMMON, ENTRIES, LORA, PPO_ENTRY, PROMPTS, arguments

pytestmark = pytest.mark.slow


def test_audio_models_full_merged_and_composed(
    check_older: Callable[..., None],
    manifest: Path,
    questions: list[AudioQuestion],
    model_folder: Path,
    tmp_path: Path,
) -> None:
    for name, settings in (("full", []), ("lora", LORA)):
        where = ["--output_dir", tmp_path / name, "--train_file", manifest, "--model_name_or_path", model_folder]
        settings = [*COMMON, *PROMPTS, "--reward_funcs", "random", *settings]
        assert train_grpo.main([*settings, *map(str, where)]) == 0
    merged = merge_adapter(tmp_path / "lora" / "final", tmp_path / "merged")
    composed = made(tmp_path, GEOMETRIES[0], questions)
    assert compose.main(composed.argv) == 0
    check_older(model_folder, tmp_path / "full" / "checkpoint-2", tmp_path / "full" / "final", merged, composed.out)


def test_text_models(check_older: Callable[..., None], text_set: Path, policy: Path, tmp_path: Path) -> None:
    positions = tmp_path / "large weights"  # attention then depends enough on positions for YaRN to show
    build_tiny_qwen2(positions, texts=["Name 3 fruits."], seed=0, geometry=replace(TEST_TEXT, initializer_range=0.3))
    for kind, start, settings in (
        ("sft", positions, ["--rope_parameters", '{"rope_type": "yarn", "factor": 4.0}']),
        ("reward_model", policy, []),
        ("dpo", policy, LORA),
        ("ppo", policy, ["--reward_funcs", "random"]),
    ):
        entry = PPO_ENTRY[0] if kind == "ppo" else ENTRIES[kind][0]
        assert entry.main([*arguments(kind, tmp_path / kind, text_set, start), *settings]) == 0
    merged = merge_adapter(tmp_path / "dpo" / "final", tmp_path / "merged")
    whole = [tmp_path / name / "final" for name in ("sft", "reward_model", "ppo")]
    check_older(positions, merged, *whole, whole[-1] / CRITIC)
