"""The small study from its command to its tables, with random parts, generated clips and hardly any steps; killed on
the way, and once more by itself."""

from __future__ import annotations

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import soundfile
import yaml

from scripts.small_study import CONFIG
from scripts.study import seed as stages
from scripts.study.settings import read_settings
from scripts.workshop import Workshop
from tests.conftest import ROOT, make_questions
from tests.files import contents
from tests.random_parts import GEOMETRIES, made

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

LABELS = {"pitch": ("low", "middle", "high"), "beat": ("slow", "fast", "none")}
RECORDINGS = 24  # of a label
NUMBERS = {
    "per_family": 12, "unheard_per_family": 2, "held_out_per_family": 24, "held_out_per_source": 12,
    "warm_start_steps": 2, "grpo_steps": 2,
    "pilot_samples": 2, "think_probe_steps": 1, "orders": 2, "answer_tokens": 4, "think_tokens": 6,
    "eval_batch_size": 24, "completions_shown": 1,
}  # fmt: skip
KEYS = {"prompts_per_step": 2, "max_prompts_per_device": 2, "num_generations": 2, "max_completion_length": 4}


def write_clips(folder: Path) -> None:
    """Noise of a third of a second under made-up labels; every fourth recording is of another source."""
    rng, rows = np.random.default_rng(0), []
    folder.mkdir(parents=True)
    for family, labels in LABELS.items():
        for label in labels:
            for number in range(RECORDINGS):
                name = f"{family}-{label}-{number}.wav"
                soundfile.write(folder / name, 0.1 * rng.standard_normal(5_000), 16_000)
                source = "other" if number % 4 == 3 else "home"
                rows.append({"path": name, "family": family, "label": label, "recording": name, "source": source})
    with open(folder / "clips.csv", "w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


@pytest.fixture(scope="module")
def command(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """All but the output folder."""
    folder = tmp_path_factory.mktemp("study")
    parts = made(folder / "parts", GEOMETRIES[0], make_questions(folder / "texts", 4))
    write_clips(folder / "clips")
    content = yaml.safe_load(CONFIG.read_text(encoding="utf-8"))
    content |= {"families": list(LABELS), "labels": {}, "choices": 3, "seconds": 0.5, "window_seconds": 1}
    content |= {"hold_out": 0.5, "held_out_sources": ["other"], "small": NUMBERS}
    # of runs of one or two steps the warm-up would be all
    common = {"bf16": False, "use_cpu": True, "warmup_steps": 0}
    few, some = {"examples_per_step": 4, "max_examples_per_device": 4} | common, KEYS | common
    content["arms"] = {"warm_start": few, "sft": few, "grpo": some, "grpo_think": some | {"max_completion_length": 6}}
    (folder / "study.yaml").write_text(yaml.safe_dump(content), encoding="utf-8")
    return [
        sys.executable, str(ROOT / "scripts" / "small_study.py"), "--encoder", str(parts.encoder), "--language-model",
        str(parts.language_model), "--data", str(folder / "clips" / "clips.csv"), "--audio", str(folder / "clips"),
        "--config", str(folder / "study.yaml"), "--seeds", "2", "--jobs", "2",
    ]  # fmt: skip


def test_a_killed_study_goes_on_and_ends_as_one_that_was_not(command: list[str], tmp_path: Path) -> None:
    folder = tmp_path / "study"
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": ""}
    killed = subprocess.Popen([*command, "--output-dir", str(folder)], env=environment, stderr=subprocess.PIPE)
    while not (folder / "seed-1" / "grpo" / "final").is_dir():
        assert killed.poll() is None, killed.communicate()[1].decode()[-3000:]
        time.sleep(0.05)
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    before = contents(folder / "seed-1" / "grpo" / "final")
    done = subprocess.run([*command, "--output-dir", str(folder)], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    assert contents(folder / "seed-1" / "grpo" / "final") == before  # not trained again

    results = json.loads((folder / "results.json").read_text(encoding="utf-8"))
    assert results["seeds"] == [1, 2] and results["chance"] == pytest.approx(1 / 3)
    for name, model in results["models"].items():
        held_out = model["held_out"]
        assert set(held_out["by_family"]) == set(LABELS) and set(held_out["by_seed"]) == {"1", "2"}, name
        low, high = held_out["ci95"]
        assert low <= held_out["accuracy"] <= high and held_out["recordings"] <= held_out["n"]
        assert model["without_audio"]["n"] == model["permuted"]["n"] == held_out["n"]
        assert model["held_out_sources"]["n"] > 0 and model["flops"] > 0 and model["seconds"] > 0
        assert name in results["completions"][0]["completions"]
    assert {(one["after"], one["before"]) for one in results["differences"]} >= {
        ("grpo", "sft"),
        ("grpo_think", "grpo"),
    }
    models = results["models"]
    # to half a step, of which SFT takes so many
    assert models["sft"]["flops"] == pytest.approx(models["grpo"]["flops"], rel=0.5 / models["sft"]["steps"] + 1e-6)
    printed = done.stdout
    assert "warm start" in printed and "Without audio within 7 points of chance" in printed
    for report in ("results.md", "results.html", "accuracy.png"):
        assert (folder / report).stat().st_size > 1000

    asked = [folder / f"seed-{seed}" / "questions" / "report" / "manifest.jsonl" for seed in (1, 2)]
    assert asked[0].read_bytes() != asked[1].read_bytes()  # other questions
    trained = [folder / "seed-1" / "questions" / part / "manifest.jsonl" for part in ("warm_start", "arms")]
    warm, arms, first, second = (
        {json.loads(line)["source_video"] for line in file.read_text(encoding="utf-8").splitlines()}
        for file in (*trained, *asked)
    )
    assert not arms & (first | second) and not warm & (first | second) and not warm & arms  # about the same split
    check_again(command, folder, tmp_path / "again")


def check_again(command: list[str], folder: Path, again: Path) -> None:
    """Seed 1 once more, by itself and uninterrupted: the same questions, the same models."""
    options = dict(zip(command[2::2], command[3::2], strict=True))
    settings = read_settings(Path(options["--config"]), "small")
    shutil.copytree(folder / "base", again / "base")
    study = stages.Study(again, settings, Path(options["--data"]), Path(options["--audio"]), None, "report", "float32")
    workshop = Workshop(study.of_seed(1), 1)
    questions = stages.make_questions(study, workshop)
    stages.compare(study, workshop, questions, stages.warm_start(study, workshop, questions))
    for part in ("questions", *(f"{model}/final" for model in stages.MODELS)):
        before, after = contents(folder / "seed-1" / part), contents(again / "seed-1" / part)
        files = (name for name in before if not Path(name).name.startswith("."))  # a journal tells who was first
        made = {name for name in files if Path(name).suffix in (".jsonl", ".safetensors", ".flac")}
        assert made and {name for name in made if before[name] != after.get(name)} == set(), part
