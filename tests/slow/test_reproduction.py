"""The rehearsal of the reproduction with hardly any data and steps: what follows from its bundle, and what kills do."""

from __future__ import annotations

import base64
import json
import os
import random
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from eval import verify
from eval.reproduction.bundle import seal
from scripts.reproduce.settings import Study, read_study
from scripts.reproduce.stages import stages_of
from tests.conftest import ROOT
from tests.files import read_json, read_lines, write_lines
from tests.scripts.test_reproduce import config_in

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

TINY = {
    "embedded": {"num_train": 32, "num_test": 12, "num_warm": 32, "warm_steps": 2},
    "seeds": [0],
    "held_out": 8,
    "max_new_tokens": 4,
    "keys": {
        "sft": {"max_steps": 2, "save_steps": 1, "examples_per_step": 4, "max_examples_per_device": 4},
        "grpo": {
            "max_steps": 2,
            "save_steps": 1,
            "prompts_per_step": 1,
            "max_prompts_per_device": 1,
            "max_completion_length": 4,
        },
    },
}
ARMS = ("sft_full", "grpo", "grpo_coin")  # the others go through the same stages
# a stage of each kind: training by either method and with a coin for a reward; every arm is chosen and tested alike
KILLED = (
    *("embedded", "train_data", "test_data", "model", "overlap", "base"),
    *("train/sft_full/seed-0", "train/grpo/seed-0", "train/grpo_coin/seed-0"),
    *("choose/grpo/seed-0", "test/sft_full/seed-0", "matrix", "report"),
)
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", "PYTHONPATH": str(ROOT)}
# the command but for its check, which takes as long as several stages and writes nothing
DYING = f"""
import shlex, sys
from pathlib import Path
from scripts.reproduce import settings, workflow

study = settings.read_study(Path(sys.argv[1]), rehearse=True)
argv = [sys.executable, "tests/scripts/stage_that_dies.py", "--config", sys.argv[1], "--rehearse"]
workflow.command_of_stage = lambda study: "cd {shlex.quote(str(ROOT))} && " + shlex.join(argv)
sys.exit(workflow.carry_out(study, cores=2))
"""


def tiny_study(folder: Path, arms: Iterable[str] = ARMS) -> Study:
    folder.mkdir()
    file = config_in(folder, **TINY)
    content = yaml.safe_load(file.read_text(encoding="utf-8"))
    content["arms"] = {name: content["arms"][name] for name in arms}
    for name in content["rehearsal"]["arms"].keys() - set(arms):
        del content["rehearsal"]["arms"][name]
    if not content["rehearsal"]["arms"]:  # an empty one would take the place of all arms
        del content["rehearsal"]["arms"]
    file.write_text(yaml.safe_dump(content), encoding="utf-8")
    return read_study(file, rehearse=True)


def carried_out(study: Study) -> int:
    script = str(ROOT / "scripts" / "reproduce_r1_aqa.py")
    command = [sys.executable, script, "--config", str(study.file), "--rehearse"]
    return subprocess.run([*command, "--cores", "2"], env=ENVIRONMENT).returncode


def killed_in(study: Study, names: Iterable[str]) -> None:
    """Start the study until each of these stages has been killed, with all that ran beside it; none that was done by
    then may run again."""
    to_die = study.file.with_name("to_die.txt")
    to_die.write_text("\n".join(names), encoding="utf-8")
    while left := to_die.read_text(encoding="utf-8").split():
        before = done_in(study)
        command = [sys.executable, "-c", DYING, str(study.file)]
        process = subprocess.Popen(command, cwd=ROOT, env=ENVIRONMENT | {"TO_DIE": str(to_die)}, start_new_session=True)
        assert process.wait() == -signal.SIGKILL, f"it ended before {', '.join(left)}"
        killed = set(left) - set(to_die.read_text(encoding="utf-8").split())
        assert killed and not killed & done_in(study).keys()
        assert before.items() <= done_in(study).items(), "a stage that was done has run again"


def done_in(study: Study) -> dict[str, int]:
    """When each stage was done that Snakemake has seen to be: one that ends as all is killed may run again."""
    incomplete = study.folder / ".snakemake" / "incomplete"
    unseen = {base64.b64decode(path.name).decode() for path in incomplete.glob("*")}
    marks = {name: stage.mark for name, stage in stages_of(study).items() if str(stage.mark) not in unseen}
    there = {name: study.folder / mark for name, mark in marks.items() if (study.folder / mark).is_file()}
    return {name: mark.stat().st_mtime_ns for name, mark in there.items()}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Study:
    """A tiny study that nothing has stopped."""
    study = tiny_study(tmp_path_factory.mktemp("reproduction") / "whole")
    assert carried_out(study) == 0
    return study


def test_killed_in_a_stage_of_each_kind_the_study_ends_with_the_same_report(whole: Study, tmp_path: Path) -> None:
    killed = tiny_study(tmp_path / "killed")
    killed_in(killed, KILLED)
    before = done_in(killed)
    assert carried_out(killed) == 0
    assert before.items() <= done_in(killed).items(), "a stage that was done has run again"
    assert report_of(killed) == report_of(whole)


def report_of(study: Study) -> dict[str, Any]:
    """What is reported, but for times, and paths by where they are in the study."""
    found: dict[str, Any] = {"stages": list(done_in(study))}
    for name in ("bundle/figures.json", "study.json", "report.md", "card/README.md"):
        text = (study.folder / name).read_text(encoding="utf-8").replace(str(study.folder), "")
        if name.endswith(".json"):
            found[name] = json.loads(text)
            found[name].pop("cost", None)
        else:
            found[name] = text.partition("## Cost")[0]
    return found


# --- What follows from the bundle

PLACES = {"base": "base", **{arm: f"{arm}/seed-0" for arm in ARMS}}
# how many of the 12 questions are right: nearly none are after so little training
MADE_UP = {
    "reproduced": {"base": 2, "sft_full": 3, "grpo": 11, "grpo_coin": 2},
    "not reproduced": {"base": 11, "sft_full": 10, "grpo": 1, "grpo_coin": 12},
    "undecided": {"base": 6, "sft_full": 6, "grpo": 6, "grpo_coin": 7},
    "undecided against SFT alone": {"base": 1, "sft_full": 9, "grpo": 10, "grpo_coin": 0},
}


@pytest.mark.parametrize("made_up", [None, *MADE_UP])
def test_verdicts_follow_from_the_predictions(made_up: str | None, whole: Study, tmp_path: Path) -> None:
    """Recomputed by the exact distribution of the bootstrap, from what was said and what is right alone."""
    bundle = copied(whole, tmp_path)
    if made_up is not None:
        for row, right in MADE_UP[made_up].items():
            order = random.Random(f"{made_up} {row}").sample(range(12), 12)
            answer(bundle, row, {place: rank < right for rank, place in enumerate(order)})
        seal(bundle)
    findings = {one["id"]: one for one in read_json(bundle / "figures.json")["findings"]}
    rights = {row: right_in(bundle, row) for row in PLACES}
    sft, base, coin = ((rights["grpo"], rights[other]) for other in ("sft_full", "base", "grpo_coin"))
    expected = {"rl_beats_sft": [sft], "data_suffice": [sft, base], "reward_matters": [coin]}
    for name, pairs in expected.items():
        parts = findings[name]["parts"]
        for part, (after, before) in zip(parts, pairs, strict=True):
            gains = [b - a for a, b in zip(before, after, strict=True)]
            assert part["difference"] == pytest.approx(100 * sum(gains) / 12)
            require_percentiles(gains, part["ci95"])
        assert findings[name]["verdict"] == verdict_of([part["ci95"] for part in parts]), name
    assert {findings[name]["verdict"] for name in ("thinking_does_not_help", "far_from_human")} == {"not run"}
    if made_up in ("reproduced", "not reproduced", "undecided"):
        assert {findings[name]["verdict"] for name in expected} == {made_up}


def test_one_prediction_changed_is_told_with_the_figures_that_move(whole: Study, tmp_path: Path) -> None:
    bundle = copied(whole, tmp_path)
    assert verify.verify(bundle)["agrees"]
    place = right_in(bundle, "grpo").index(0)
    answer(bundle, "grpo", {place: True})
    found = verify.verify(bundle)
    assert found["files"]["changed"] == ["evaluations/grpo/seed-0/test/predictions.jsonl"] and not found["agrees"]
    moved = {one["figure"]: one["difference"] for one in found["figures"] if not one["agrees"]}
    one = pytest.approx(100 / 12)
    for name in ("table/grpo/mean", "findings/rl_beats_sft/difference", "findings/reward_matters/difference"):
        assert moved[name] == one
    task = read_lines(bundle / "questions" / "test.jsonl")[place]["task"]
    assert {name for name in moved if name.startswith("table/grpo/task/")} == {f"table/grpo/task/{task}"}
    others = ("table/base", "table/sft_full", "table/grpo_coin", "curves", "suite", "overlap", "cost")
    assert not [name for name in moved if name.startswith(others)]


def copied(study: Study, folder: Path) -> Path:
    return Path(shutil.copytree(study.folder / "bundle", folder / "bundle"))


def answer(bundle: Path, row: str, right: Mapping[int, bool]) -> None:
    """Let the answers of a row to these questions be right or wrong."""
    file = bundle / "evaluations" / PLACES[row] / "test" / "predictions.jsonl"
    lines, questions = read_lines(file), read_lines(bundle / "questions" / "test.jsonl")
    for place, is_right in right.items():
        question = questions[place]
        text = next(one for one in question["choices"] if (one == question["answer"]) == is_right)
        lines[place] |= {"completion": f"<answer>{text}</answer>", "answer": text, "status": "ok"}
    write_lines(file, lines)


def right_in(bundle: Path, row: str) -> list[int]:
    """Of each question whether its answer is the right choice, 1 or 0."""
    said = read_lines(bundle / "evaluations" / PLACES[row] / "test" / "predictions.jsonl")
    by_id = {one["id"]: one["answer"] for one in said}
    return [int(by_id[one["id"]] == one["answer"]) for one in read_lines(bundle / "questions" / "test.jsonl")]


def require_percentiles(gains: Sequence[int], ci95: Sequence[float]) -> None:
    """The bounds are percentiles of the mean of as many gains as there are, drawn with replacement, in points.

    Of 10,000 draws a share differs from its probability by 4 standard errors, .0063, once in 16,000 times.
    """
    one = np.bincount(np.asarray(gains) + 1, minlength=3) / len(gains)  # probability of -1, 0 and 1
    probability = np.ones(1)
    for _ in gains:
        probability = np.convolve(probability, one)  # of each sum, from -n on
    sums = 100 * np.arange(-len(gains), len(gains) + 1) / len(gains)
    for bound, share in zip(ci95, (0.025, 0.975), strict=True):
        below, up_to = probability[sums < bound - 1e-6].sum(), probability[sums <= bound + 1e-6].sum()
        assert below <= share + 0.0063 and up_to >= share - 0.0063, (bound, share)


def verdict_of(intervals: Sequence[Sequence[float]]) -> str:
    if any(high < 0 for _, high in intervals):
        return "not reproduced"
    return "reproduced" if all(low > 0 for low, _ in intervals) else "undecided"
