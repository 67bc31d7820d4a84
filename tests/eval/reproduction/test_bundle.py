"""What a bundle holds, what it is refused for, and that the same study has the same bytes."""

import os
import shutil
import subprocess
import sys

import pytest

from eval.reproduction.bundle import collect, seal
from r1_aqa_repro.common.errors import Refused
from r1_aqa_repro.common.files import sha256_of
from tests.eval.reproduction.study_folder import write_evaluation, write_study, write_training
from tests.files import contents, read_json, read_lines, write_json


def test_it_holds_what_decides_and_neither_audio_nor_weights_nor_scores(study, sealed):
    there = contents(sealed)
    run = "trainings/grpo/seed-1"
    for source, target in {
        "study.json": "study.json",
        "data/test.jsonl": "questions/test.jsonl",
        "data/held_out.jsonl": "questions/held_out.jsonl",
        "data/split.json": "data/split.json",
        "base/test/predictions.jsonl": "evaluations/base/test/predictions.jsonl",
        "base/test/settings.json": "evaluations/base/test/settings.json",
        "arms/grpo/seed-1/chosen.json": "evaluations/grpo/seed-1/chosen.json",
        "arms/grpo/seed-1/test-permuted/predictions.jsonl": "evaluations/grpo/seed-1/test-permuted/predictions.jsonl",
        "arms/grpo/seed-1/run/run.json": f"{run}/run.json",
        "arms/grpo/seed-1/run/config.resolved.yaml": f"{run}/config.resolved.yaml",
        "arms/grpo/seed-1/cost.json": f"{run}/cost.json",
        "arms/grpo/seed-1/held_out/checkpoint-300/predictions.jsonl": (
            "evaluations/grpo/seed-1/held_out/checkpoint-300/predictions.jsonl"
        ),
    }.items():
        assert there[target] == (study / source).read_bytes(), target
    assert [entry["kl"] for entry in read_lines(sealed / run / "log.jsonl")] == [0.1, None]
    names = {name.rpartition("/")[2] for name in there}
    assert names == {
        "bundle.json", "figures.json", "study.json", "test.jsonl", "held_out.jsonl", "split.json", "predictions.jsonl",
        "settings.json", "chosen.json", "run.json", "config.resolved.yaml", "cost.json", "log.jsonl",
    }  # fmt: skip


def test_the_seal_names_every_other_file(sealed):
    seal = read_json(sealed / "bundle.json")
    assert seal["files"] == {name: sha256_of(sealed / name) for name in contents(sealed) if name != "bundle.json"}
    assert (seal["format"], seal["name"], seal["rehearsed"]) == (1, "by hand", True)


def test_the_same_study_gives_the_same_bytes_in_any_process(out, sealed, tmp_path):
    """Also without torch: whoever checks a bundle may have none."""
    script = (
        "import sys; from pathlib import Path; from eval.reproduction.bundle import collect, seal\n"
        "seal(collect(Path(sys.argv[1]))); assert not {'torch', 'transformers', 'soundfile'} & set(sys.modules)"
    )
    for seed in ("1", "2"):
        environment = os.environ | {"PYTHONHASHSEED": seed, "PYTHONPATH": os.pathsep.join(sys.path)}
        done = subprocess.run([sys.executable, "-c", script, out], env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert contents(out / "bundle") == contents(sealed)


def test_collecting_anew_leaves_nothing_of_before(out):
    (collect(out) / "left.txt").touch()
    shutil.rmtree(out / "arms/grpo_think")
    there = contents(collect(out))
    assert "left.txt" not in there and not any("grpo_think" in name for name in there)


def test_an_evaluation_that_a_sweep_took_over_from_elsewhere_is_found(out):
    sweep = out / "arms/grpo/seed-1/held_out"
    elsewhere = out / "arms/grpo/seed-1/run/eval/step-100"
    elsewhere.parent.mkdir(parents=True)
    (sweep / "checkpoint-100").rename(elsewhere)
    points = read_json(sweep / "sweep.json")["points"]
    points[0]["folder"] = "../run/eval/step-100"
    write_json(sweep / "sweep.json", {"points": points})
    target = collect(out) / "evaluations/grpo/seed-1/held_out/checkpoint-100/predictions.jsonl"
    assert target.read_bytes() == (elsewhere / "predictions.jsonl").read_bytes()


def test_the_log_is_that_of_the_last_checkpoint(out):
    state = out / "arms/grpo/seed-1/run/checkpoint-1000/trainer_state.json"
    state.parent.mkdir()
    write_json(state, {"log_history": [{"step": 1000, "loss": 1.0}]})
    assert read_lines(collect(out) / "trainings/grpo/seed-1/log.jsonl") == [{"step": 1000, "loss": 1.0}]


def test_clips_are_told_once_for_each_set_of_questions(out):
    write_json(out / "base/test/clips.json", {"q0": "abc"})
    assert read_json(collect(out) / "questions/test.clips.json") == {"q0": "abc"}


def test_everything_that_cannot_be_collected_is_named_at_once(tmp_path):
    out = write_study(tmp_path / "out")
    write_training(out / "arms/grpo/seed-2", 1, 1, [])
    predictions = out / "arms/grpo/seed-1/test/predictions.jsonl"
    predictions.write_bytes(predictions.read_bytes().splitlines(keepends=True)[0])
    with open(out / "data/held_out.jsonl", "a") as file:
        file.write("\n")
    (out / "arms/grpo/seed-2/run/checkpoint-200/trainer_state.json").write_text("{}")
    with pytest.raises(Refused) as refusal:
        collect(out)
    said = [str(problem) for problem in refusal.value.problems]
    assert any("seed-1/test: the evaluation is not complete" in one for one in said)
    assert any("seed-1/held_out/checkpoint-100: its questions in" in one for one in said)
    assert any("trainer_state.json: it has no log_history" in one for one in said)
    assert not (out / "bundle").exists()


def test_other_questions_under_the_same_name_are_refused(out):
    data = out / "data/other.jsonl"
    shutil.copy(out / "data/held_out.jsonl", data)
    data.write_text(data.read_text() + "\n")
    write_evaluation(out / "arms/grpo/seed-1/test", data, "111111")
    with pytest.raises(Refused, match=r"seed-1/test: it is on other questions than .*test\.jsonl"):
        collect(out)


def test_a_study_without_any_test_has_no_figures(out):
    shutil.rmtree(out / "arms")
    shutil.rmtree(out / "base")
    with pytest.raises(Refused, match="nothing in it was evaluated"):
        seal(collect(out))
