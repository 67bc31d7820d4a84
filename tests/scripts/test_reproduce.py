"""The graph of a reproduction: which stages there are, what makes them stale, and what a stage finds when it begins."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from eval.reproduction.reading import COST
from r1_aqa_repro.common.errors import Refused
from r1_aqa_repro.data import prompts
from scripts.reproduce.cost import EnergyMeter, noted, peak_of, power_of_gpus
from scripts.reproduce.settings import Study, merged, read_study
from scripts.reproduce.stage import begin
from scripts.reproduce.stages import TRAIN, stages_of
from scripts.reproduce.workflow import _by_name, put_aside
from scripts.reproduce_r1_aqa import CONFIG
from tests.conftest import ROOT

COPIED = ("configs", "data_prep", "eval", "r1_aqa_repro", "scripts", "tests/scripts/stage_stub.py")


def study_in(folder: Path, **more: Any) -> Study:
    """The rehearsal in a folder of its own."""
    return read_study(config_in(folder, **more), rehearse=True)


def config_in(folder: Path, **more: Any) -> Path:
    content = yaml.safe_load(CONFIG.read_text(encoding="utf-8"))
    content["rehearsal"] = merged(content["rehearsal"], {"output_dir": str(folder / "study"), **more})
    file = folder / "study.yaml"
    file.write_text(yaml.safe_dump(content), encoding="utf-8")
    return file


def downstream(study: Study, changed: set[str]) -> set[str]:
    """These stages and all that need what they leave, by the graph alone."""
    found, stages = set(changed), stages_of(study)
    for stage in stages.values():  # each stands behind those that it needs
        left = {file for name in found for file in (stages[name].mark, *stages[name].leaves, *stages[name].keeps)}
        if left & set(stage.needs):
            found.add(stage.name)
    return found


def changed_stages(before: Study, after: Study) -> set[str]:
    """Those that depend on something else than before, by themselves."""
    there = stages_of(before)
    return {name for name, stage in stages_of(after).items() if dict(stage.depends) != dict(there[name].depends)}


# --- Settings


@pytest.mark.parametrize("rehearse", [False, True])
def test_the_shipped_configuration_is_sound(rehearse: bool) -> None:
    study = read_study(CONFIG, rehearse)
    assert study.main().published == {"total": 64.5, "sound": 69.37, "music": 66.77, "speech": 57.36}
    assert len(study.keys.seeds) >= 2 and (study.embedded is not None) == rehearse


def test_a_rehearsal_differs_in_model_data_and_steps_alone() -> None:
    real, rehearsal = read_study(CONFIG, False), read_study(CONFIG, True)
    assert list(rehearsal.arms) == list(real.arms)
    for name, arm in real.arms.items():
        other, given = rehearsal.arms[name], rehearsal.arms[name].settings()
        assert (other.config, other.role, other.published) == (arm.config, arm.role, arm.published)
        kept = (
            "reward_funcs",
            "reward_weights",
            "num_generations",
            "prompts_per_step",
            "beta",
            "loss_type",
            "use_peft",
        )
        assert {key: given.get(key) for key in kept} == {key: arm.settings().get(key) for key in kept}
    assert any(arm.processes == 2 and arm.settings()["deepspeed"] for arm in rehearsal.arms.values())


def test_everything_wrong_with_a_configuration_is_named_at_once(tmp_path: Path) -> None:
    content = yaml.safe_load(CONFIG.read_text(encoding="utf-8"))
    content |= {"sedes": [1], "orders": 0, "seeds": [1, 1], "price_per_gpu_hour": {"value": 2}}
    content["arms"]["grpo"]["role"] = "hero"
    content["arms"]["sft_full"]["published"] = {"total": 51.8}
    content["prepare"]["avqa"] = "--annotations train_qa.json"
    del content["test"], content["sedes"]
    file = tmp_path / "study.yaml"
    file.write_text(yaml.safe_dump(content | {"sedes": [1]}), encoding="utf-8")
    with pytest.raises(Refused) as refusal:
        read_study(file, False)
    assert all(part in str(refusal.value) for part in ("no key sedes", "test is absent", "orders is 0"))
    file.write_text(yaml.safe_dump(content | {"test": "t.jsonl", "orders": 4}), encoding="utf-8")
    with pytest.raises(Refused) as refusal:
        read_study(file, False)
    said = str(refusal.value)
    for part in ("seeds: [1, 1]", "role is 'hero'", "arms.sft_full: published", "prepare: avqa", "price_per_gpu_hour"):
        assert part in said, part


def test_values_are_merged_and_an_empty_mapping_takes_the_place_of_all() -> None:
    assert merged({"a": {"b": 1, "c": 2}, "d": {"e": 1}}, {"a": {"b": 3}, "d": {}}) == {"a": {"b": 3, "c": 2}, "d": {}}


# --- What depends on what


def test_a_prompt_makes_those_stale_that_ask_with_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = study_in(tmp_path)
    there = {name: dict(stage.depends) for name, stage in stages_of(before).items()}
    monkeypatch.setitem(prompts._INSTRUCTION, "think", prompts._INSTRUCTION["think"].replace("thinking", "thinkinG"))
    changed = {name for name, stage in stages_of(before).items() if dict(stage.depends) != there[name]}
    thinking = {name for name in there if "/grpo_think/" in name}
    assert changed == thinking | {"matrix"}
    assert downstream(before, changed) == thinking | {"matrix", "report"}


def test_a_key_of_an_arm_makes_the_runs_of_that_arm_stale(tmp_path: Path) -> None:
    before = study_in(tmp_path)
    after = study_in(tmp_path, arms={"grpo_coin": {"keys": {"reward_weights": [1.0, 0.5]}}})
    coins = {f"{what}/grpo_coin/seed-{seed}" for what in ("train", "choose", "test") for seed in (0, 1)}
    assert changed_stages(before, after) == {name for name in coins if name.startswith("train/")}
    assert downstream(after, changed_stages(before, after)) == coins | {"report"}


def test_the_training_questions_concern_every_run_but_not_the_base_model(tmp_path: Path) -> None:
    study = study_in(tmp_path)
    stale = downstream(study, {"train_data"})
    assert not stale & {"embedded", "model", "test_data", "base"}
    assert {name for name in stages_of(study) if name.startswith("train/")} <= stale


def stub_project(folder: Path) -> Path:
    """A copy of the project whose stages only leave what they were made of."""
    project = folder / "project"
    for part in COPIED:
        source, target = ROOT / part, project / part
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copytree(source, target) if source.is_dir() else shutil.copy(source, target)
    shutil.copy(ROOT / "tests" / "scripts" / "stage_stub.py", project / "scripts" / "reproduce" / "stage.py")
    (project / "scripts" / "reproduce" / "check.py").write_text("def check(study):\n    pass\n")
    return project


def called(project: Path, config: Path, *options: str, **environment: str) -> str:
    """What the command prints."""
    command = [sys.executable, "scripts/reproduce_r1_aqa.py", "--config", str(config), "--rehearse", *options]
    own = os.environ | {"COLUMNS": "400", "PYTHONPATH": ""} | environment
    done = subprocess.run(command, cwd=project, capture_output=True, text=True, env=own)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.slow
def test_slurm_gets_a_job_a_stage_with_the_resources_that_are_named(tmp_path: Path) -> None:
    """By Snakemake's executor, with a stand-in for sbatch that records what it is given and carries it out."""
    project, config, tools = stub_project(tmp_path), config_in(tmp_path), tmp_path / "tools"
    content = yaml.safe_load(config.read_text())
    content["slurm"] = {"slurm_partition": "gpu", "runtime": 90, "mem_mb": 2000}
    config.write_text(yaml.safe_dump(content))
    profile = tmp_path / "profile"
    profile.mkdir()
    (profile / "config.yaml").write_text("slurm-init-seconds-before-status-checks: 1\n")  # it waits 40 otherwise
    shutil.copytree(ROOT / "tests" / "scripts" / "slurm", tools)
    path = f"{tools}:{os.environ['PATH']}"
    called(project, config, "--slurm", "--only", "embedded", PATH=path, SNAKEMAKE_PROFILE=str(profile))
    jobs = [json.loads(line) for line in (tools / "jobs.jsonl").read_text().splitlines()]
    assert len(jobs) == 1
    given = " ".join(jobs[0])
    assert all(part in given for part in ("gpu", "90", "2000", "rule_embedded", "--cpus-per-task=1")), given
    assert (tmp_path / "study" / "ran.txt").read_text() == "embedded\n"


@pytest.mark.slow
def test_snakemake_runs_what_is_stale_and_status_names_why(tmp_path: Path) -> None:
    """Each of the three changes is one: a prompt's wording, a reward's weight, a line of data."""
    project = stub_project(tmp_path)
    config = config_in(tmp_path, seeds=[0])
    out = tmp_path / "study"

    def ran() -> list[str]:
        return (out / "ran.txt").read_text().split()

    def stale() -> dict[str, str]:
        rows = (
            re.split(" *[│┃] *", line) for line in called(project, config, "--status").splitlines() if "stale" in line
        )
        return {row[1]: row[3] for row in rows}

    called(project, config, "--cores", "2")
    names = list(stages_of(read_study(config, True)))
    assert sorted(ran()) == sorted(names), "every stage once"
    called(project, config)
    assert len(ran()) == len(names), "and none again"

    wording, content = project / "r1_aqa_repro" / "data" / "prompts.py", config.read_text()
    wording.write_text(wording.read_text().replace("Output the thinking", "Output your thinking"))
    own = {f"{what}/grpo_think/seed-0" for what in ("train", "choose", "test")}
    found = stale()
    assert set(found) == own | {"matrix", "report"}
    assert "prompt of think was" in found["train/grpo_think/seed-0"] and "prompt of think was" in found["matrix"]
    called(project, config)
    assert sorted(ran()[len(names) :]) == sorted(found), "and they run, and no other"

    before = len(ran())
    config_in(tmp_path, seeds=[0], arms={"grpo": {"keys": {"reward_weights": [1.0, 0.5]}}})
    found = stale()
    assert "reward_weights was [1.0, 1.0], now it is [1.0, 0.5]" in found["train/grpo/seed-0"]
    assert set(found) == {f"{what}/grpo/seed-0" for what in ("train", "choose", "test")} | {"matrix", "report"}
    config.write_text(content)
    assert stale() == {}, "what was changed back is as it was"

    lines = out / "embedded" / "train.jsonl"
    lines.write_text(lines.read_text() + "one line more\n")
    found = stale()
    assert "train.jsonl has changed" in found["train_data"]
    assert set(found) == downstream(read_study(config, True), {"train_data"})
    called(project, config, "--from", "report")
    assert {"train_data", "report"} <= set(ran()[before:])


def test_what_snakemake_prints_of_a_set_is_read_back() -> None:
    assert _by_name("'reward_weights: [1.0, 2.0]','beta: 0.04'") == {"reward_weights": "[1.0, 2.0]", "beta": "0.04"}
    assert _by_name(" <nothing exclusive> ") == {}


# --- A stage that begins


def test_a_stage_goes_on_in_its_folder_and_puts_aside_what_is_made_of_something_else(tmp_path: Path) -> None:
    study = study_in(tmp_path)
    name = "train/grpo/seed-0"
    stage = stages_of(study)[name]
    for file in stage.needs:
        (study.folder / file).parent.mkdir(parents=True, exist_ok=True)
        (study.folder / file).write_text("{}")
    begin(study, stage)
    made = study.of("grpo", 0) / "run" / "checkpoint-30"
    made.mkdir(parents=True)
    begin(study, stage)
    assert made.is_dir(), "the same stage goes on"

    (study.folder / TRAIN).write_text('{"a": 1}')
    begin(study, stage)
    aside = study.folder / "superseded" / stage.rule / "1" / stage.own[0]
    assert not made.exists() and (aside / "checkpoint-30").is_dir()
    made.mkdir(parents=True)
    other = study_in(tmp_path, arms={"grpo": {"keys": {"beta": 0.5}}})
    begin(other, stages_of(other)[name])
    assert (study.folder / "superseded" / stage.rule / "2" / stage.own[0] / "checkpoint-30").is_dir()
    claim = json.loads((study.folder / "claims" / f"{stage.rule}.json").read_text())
    assert claim["depends"]["beta"] == 0.5


def test_nothing_is_put_aside_where_nothing_is(tmp_path: Path) -> None:
    study = study_in(tmp_path)
    assert put_aside(study, stages_of(study)["report"]) is None


# --- Cost


def test_energy_is_what_the_power_comes_to_over_interruptions_too(tmp_path: Path) -> None:
    file = tmp_path / COST
    for _ in range(2):
        with EnergyMeter(file, power=lambda: 3600.0, every=0.05):
            time.sleep(0.2)
    # 3.6 kW for 0.4 s are 0.0004 kWh; threads end late rather than early, by less than a second each
    assert 0.0004 <= noted(file)["energy_kwh"] < 0.0024
    with EnergyMeter(tmp_path / "none.json", power=lambda: None):
        pass
    assert noted(tmp_path / "none.json") == {}, "what cannot be read is not there"


def test_the_power_of_all_gpus_is_read_as_nvidia_smi_prints_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tool = tmp_path / "nvidia-smi"
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    for told, watts in (("321.5\n300.5\n", 622.0), ("[N/A]\n", None), ("", None)):
        tool.write_text(f"#!/bin/sh\ncat <<END\n{told}END\n")
        tool.chmod(0o755)
        assert power_of_gpus() == watts


def test_the_peak_is_known_of_known_gpus_alone() -> None:
    assert peak_of(["NVIDIA H100 80GB HBM3", "NVIDIA A100-SXM4-80GB"]) == 989e12 + 312e12
    assert peak_of(["NVIDIA H100 80GB HBM3", "Some other"]) is None and peak_of([]) is None
