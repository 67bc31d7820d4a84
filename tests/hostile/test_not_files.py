"""Pipes, sockets and devices in place of anything that a command is given to read: told by kind, never waited for."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any, cast

import pytest

from r1_aqa_repro.common.errors import Refused
from r1_aqa_repro.data.questions import write_manifest
from r1_aqa_repro.planning.seconds import measured
from tests.conftest import make_questions
from tests.data_prep.conftest import avqa_record, mmau_record, wav
from tests.files import write_json
from tests.hostile.test_clips import SPECIAL
from tests.text_world import COMMON, EXAMPLES

KINDS = ["pipe", "link to /dev/zero", "link to what has no end", "socket"]


@pytest.fixture(params=KINDS)
def given(request, tmp_path, monkeypatch) -> tuple[Path, str]:
    """What is no file, and what is said of it."""
    monkeypatch.chdir(tmp_path)
    make, said = SPECIAL[request.param]
    make(tmp_path / "given")
    return tmp_path / "given", said


@pytest.mark.parametrize("option", ["--questions", "--audio"])
def test_no_source_of_mmau(given, option, tmp_path, ends) -> None:
    path, said = given
    write_json(tmp_path / "questions.json", [mmau_record(0)])
    options = {"--questions": "questions.json", "--audio": wav(tmp_path / "clips" / "a.wav").parent, option: path}
    more = [part for pair in options.items() for part in pair]
    ends("data_prep.mmau", *more, "--out", "out", code=2, names=[str(path), said])


def test_no_annotations_of_avqa(given, tmp_path, ends) -> None:
    path, said = given
    write_json(tmp_path / "train.json", [avqa_record(1, "-HG3Omg_89c_000030")])
    more = ["--annotations", tmp_path / "train.json", path, "--media", tmp_path, "--out", "out"]
    ends("data_prep.avqa", *more, code=2, names=[str(path), said])


@pytest.mark.parametrize(
    ("module", "more"),
    [
        ("data_prep.validate", []),
        ("data_prep.stats", []),
        ("data_prep.split", ["--held-out", 1, "--by", "clip"]),
        ("data_prep.preferences", ["--out", "out", "--input"]),
    ],
)
def test_no_records(given, module, more, ends) -> None:
    path, said = given
    ends(module, *more, path, code=2, names=[str(path), said])


def test_no_prompts(given, ends, policy) -> None:
    path, said = given
    more = ["--model", policy, "--rewards", "length_penalty", "--out", "out", "--prompts", path]
    ends("r1_aqa_repro.best_of_n", *more, code=2, names=[str(path), said])


@pytest.mark.parametrize("option", ["--config", "--train_file", "--deepspeed"])
def test_no_part_of_a_configuration(given, option, tmp_path, ends, model_folder, manifest) -> None:
    path, said = given
    options = {"--train_file": manifest, "--model_name_or_path": model_folder, "--output_dir": "run", option: path}
    more = [part for pair in options.items() for part in pair]
    ends("r1_aqa_repro.train_sft", *COMMON, *EXAMPLES, *more, code=2, names=[str(path), said])
    assert not (tmp_path / "run").exists()


def test_no_measurements(given) -> None:
    path, said = given
    with pytest.raises(Refused, match=f"given: it cannot be read .{said}"):
        measured(path, cast(Any, None), cast(Any, None))  # neither the machine nor the job is looked at before


@pytest.mark.parametrize("option", ["--data", "--predictions"])
def test_no_questions_or_predictions(given, option, tmp_path, ends, manifest) -> None:
    path, said = given
    write_json(tmp_path / "theirs.json", [{"id": "q0", "model_output": "low"}])
    options = {"--data": manifest, "--predictions": tmp_path / "theirs.json", "--out": "out", option: path}
    more = [part for pair in options.items() for part in pair]
    ends("eval.mmau", *more, code=2, names=[str(path), said])


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory, model_folder) -> tuple[Path, list[object]]:
    """The folder of a complete evaluation, and the options that made it."""
    folder = tmp_path_factory.mktemp("evaluated")
    write_manifest(folder / "manifest.jsonl", make_questions(folder / "clips", 2))
    from eval.mmau import main

    made = ["--ckpt", model_folder, "--data", folder / "manifest.jsonl", "--max-new-tokens", 2, "--device", "cpu"]
    assert main([*map(str, made), "--out", str(folder / "out")]) == 0
    return folder / "out", made


@pytest.mark.parametrize("name", ["predictions.jsonl", "settings.json", "clips.json", "scores.json", "verdicts.jsonl"])
@pytest.mark.parametrize("kind", KINDS)
def test_no_result_of_an_earlier_evaluation(name, kind, evaluated, tmp_path, ends) -> None:
    """What cannot be done without is refused, and what can be made anew is."""
    before, made = evaluated
    out = Path(shutil.copytree(before, tmp_path / "out"))
    (out / name).unlink()
    SPECIAL[kind][0](out / name)
    again = name in ("scores.json", "verdicts.jsonl")
    ends("eval.mmau", *made, "--out", out, code=0 if again else 2, names=[] if again else [str(out)])
