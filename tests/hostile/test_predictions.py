"""Predictions, and what lies beside them, that would be scored as something they are not, or end with a traceback."""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from eval.predictions import predict
from r1_aqa_repro.common.files import sha256_of, write_lines
from r1_aqa_repro.data.questions import read_questions
from tests.eval.made_up import mmau_records
from tests.files import contents, read_json, write_json
from tests.hostile.conftest import Ends


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return write_json(tmp_path / "mmau.json", mmau_records(6))


def theirs(folder: Path, answered: int, **more: Any) -> Path:
    """Records of which the first so many have a prediction."""
    given = mmau_records(6, **more)
    for record in given[:answered]:
        record["model_prediction"] = "Woman"
    return write_json(folder / "theirs.json", given)


def ours(folder: Path, data: Path, completions: list[str | None], **settings: Any) -> Path:
    """A predictions.jsonl with its settings.json."""
    folder.mkdir(exist_ok=True)
    asked = zip(read_questions(data).records, completions, strict=False)
    write_lines(folder / "predictions.jsonl", [predict(one, text, "answer", "s").to_record() for one, text in asked])
    made = {"prompt_style": "answer", "questions": 6, "data_sha256": sha256_of(data)} | settings
    write_json(folder / "settings.json", {"settings": made, "paths": {"checkpoint": "ckpt", "data": str(data)}})
    return folder / "predictions.jsonl"


@pytest.mark.parametrize("given", ["no key", "null", "other keys", "no audio", "another file's key"])
@pytest.mark.parametrize("module", ["mmau", "compare"])
def test_predictions_of_nothing_are_refused(given: str, module: str, data: Path, tmp_path: Path, ends: Ends) -> None:
    if given == "no audio":
        file = ours(tmp_path / "run", data, [None] * 6)
    else:
        fields: dict[str, dict[str, Any]] = {
            "no key": {}, "null": {"model_output": None, "model_prediction": None}, "other keys": {"response": "x"},
            "another file's key": {"prediction": "Woman"},
        }  # fmt: skip
        file = write_json(tmp_path / "theirs.json", mmau_records(6, **fields[given]))
    argv = ["--predictions", file, "--out", tmp_path / "out"] if module == "mmau" else [file, file]
    ends(f"eval.{module}", *argv, "--data", data, code=2, names=[str(file), "none of its 6 records has a prediction"])
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("answered", "code"), [(6, 0), (3, 0), (2, 3), (1, 3)])
def test_more_than_half_missing_ends_with_3_and_says_so(
    answered: int, code: int, data: Path, tmp_path: Path, ends: Ends
) -> None:
    file, out = theirs(tmp_path, answered), tmp_path / "out"
    said = [f"{6 - answered} of 6 answers are missing and count as wrong"] if code else []
    ends("eval.mmau", "--predictions", file, "--data", data, "--out", out, code=code, names=said)
    report = (out / "report.md").read_text(encoding="utf-8")
    assert all(f"**{one}" in report for one in said)
    assert read_json(out / "scores.json")["missing"] == 6 - answered
    for run in (file, out):  # as a file and as the folder of an evaluation
        ends("eval.compare", run, run, "--data", data, "--data", data, code=code, names=said)
        ends("eval.reconcile", run, "--data", data, code=code, names=said)


def test_of_withheld_answers_too(tmp_path: Path, ends: Ends) -> None:
    data = write_json(tmp_path / "mmau.json", mmau_records(6, answer=""))
    file, out = theirs(tmp_path, 2, answer=""), tmp_path / "out"
    names = ["4 of 6 answers are missing"]
    ends("eval.mmau", "--predictions", file, "--data", data, "--out", out, code=3, names=names)
    assert len(read_json(out / "submission.json")) == 6


@pytest.mark.parametrize(
    ("damage", "named"),
    [
        ({"repeats": 10**9}, "repeats is not what an evaluation records"),
        ({"repeats": 5_000, "permute_choices": 5_000}, "permute_choices, repeats are not what"),
        ({"repeats": "many"}, "repeats is not what"),
        ({"repeats": 1.5}, "repeats is not what"),
        ({"permute_choices": 0}, "permute_choices is not what"),
        ({"questions": -1}, "questions is not what"),
        ({"questions": [6]}, "questions is not what"),
        ({"prompt_style": "unknown"}, "prompt_style is not what"),
        ("[1]", "it holds no JSON object but a list"),
        ("{", "malformed JSON"),
        ("", "malformed JSON"),
        ("[" * 100_000, "nested too deeply"),
        ('{"settings": 5, "paths": {}}', "it is damaged"),
        ('{"settings": {}, "paths": {"data": 5}}', "data is not what"),
        ('{"paths": {}}', "it is damaged"),
    ],
    ids=lambda value: repr(value)[:30],
)
def test_damaged_settings_are_named(damage: Any, named: str, data: Path, tmp_path: Path, ends: Ends) -> None:
    file = ours(tmp_path / "run", data, ["Woman"] * 6)
    settings = tmp_path / "run" / "settings.json"
    if isinstance(damage, str):
        settings.write_text(damage)
    else:
        content = read_json(settings)
        write_json(settings, content | {"settings": content["settings"] | damage})
    before = contents(tmp_path)
    ends("eval.mmau", "--predictions", file, "--data", data, code=2, names=[str(settings), named])
    ends("eval.compare", tmp_path / "run", file, "--data", data, code=2, names=[str(settings), named])
    ends("eval.reconcile", tmp_path / "run", "--data", data, code=2, names=[str(settings), named])
    assert contents(tmp_path) == before


@pytest.mark.parametrize(
    ("line", "named"),
    [
        ({"repeat": 10**12}, "line 1: the line is damaged"),
        ({"repeat": 1e3}, "line 1: the line is damaged"),
        ({"completion": ["Woman"]}, "line 1: the line is damaged"),
        ({"id": "q0\0"}, "the id 'q0\\x00' is not among the questions"),
        ({"id": "é" * 10**6}, "is not among the questions"),
        ({"settings_hash": "\ud800"}, "2 different settings"),
        ('{"id": "q0", "id": "q1"}', "the key 'id' of the record 'q1' stands twice"),
        ('{"id": "q0", "model_output": NaN}', "NaN is no JSON"),
        (f'{{"id": "q0", "model_output": {"[" * 60}{"]" * 60}}}', "the prediction for 'q0' is [[[["),
        (f'{{"id": "q0", "model_output": {"[" * 900}{"]" * 900}}}', "'model_output' is nested too deeply"),
        ('{"id": "q0", "model_output": 1e999}', "too large"),
    ],
    ids=lambda value: repr(value)[:40],
)
def test_a_hostile_prediction_is_named(line: Any, named: str, data: Path, tmp_path: Path, ends: Ends) -> None:
    file = ours(tmp_path / "run", data, ["Woman"] * 6)
    first, *others = file.read_text(encoding="utf-8").splitlines()
    line = line if isinstance(line, str) else json.dumps(json.loads(first) | line)
    file.write_text("\n".join([line, *others]), encoding="utf-8")
    ended = ends("eval.mmau", "--predictions", file, code=2, names=[str(file), named])
    assert len(ended.err) < 3_000


@contextmanager
def nobody(folder: Path) -> Iterator[None]:
    """Without the rights of the root user, if this one has them."""
    if os.geteuid():
        yield
        return
    above = [one for one in folder.parents if one.stat().st_uid == 0 and not one.stat().st_mode & 0o010]
    for one in above:
        one.chmod(one.stat().st_mode | 0o010)  # its group stays that of root
    folder.chmod(0o755)
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)
        for one in above:
            one.chmod(one.stat().st_mode & ~0o010)


@pytest.mark.parametrize("barred", ["theirs.json", "mmau.json", "run/settings.json", "run"])
def test_without_permission(barred: str, data: Path, tmp_path: Path, ends: Ends) -> None:
    theirs(tmp_path, 6)
    own = ours(tmp_path / "run", data, ["Woman"] * 6)
    file = own if barred.startswith("run") else tmp_path / "theirs.json"
    (tmp_path / barred).chmod(0)
    (tmp_path / "out").mkdir()
    (tmp_path / "out").chmod(0o777)
    with nobody(tmp_path):
        arguments = ["--predictions", file, "--data", data, "--out", tmp_path / "out"]
        ends("eval.mmau", *arguments, code=2, names=[str(tmp_path / barred), "Permission denied"])
    (tmp_path / barred).chmod(0o755)


@pytest.mark.parametrize("made", ["pipe", "device", "folder", "long name", "null character", "link to itself"])
@pytest.mark.parametrize("option", ["--predictions", "--data"])
def test_what_is_no_file_is_named(made: str, option: str, data: Path, tmp_path: Path, ends: Ends) -> None:
    path = tmp_path / "it"
    {
        "pipe": lambda: os.mkfifo(path), "device": lambda: path.symlink_to("/dev/zero"), "folder": path.mkdir,
        "link to itself": lambda: path.symlink_to(path),
    }.get(made, lambda: None)()  # fmt: skip
    given: Any = {"long name": "x" * 5_000, "null character": "a\0b"}.get(made, path)
    arguments = {"--predictions": theirs(tmp_path, 6), "--data": data} | {option: given}
    argv = [part for pair in arguments.items() for part in pair]
    ends("eval.mmau", *argv, "--out", tmp_path / "out", code=2, names=[str(given)[:100].replace("\0", r"\x00")])


@pytest.mark.parametrize("out", ["mmau.json", "mmau.json/deeper", "x" * 300])
def test_a_folder_that_cannot_be_made(out: str, data: Path, tmp_path: Path, ends: Ends) -> None:
    before = contents(tmp_path) | {"theirs.json": theirs(tmp_path, 6).read_bytes()}
    arguments = ["--predictions", tmp_path / "theirs.json", "--data", data, "--out", tmp_path / out]
    ends("eval.mmau", *arguments, code=2, names=[str(tmp_path / out)[:250], "cannot be written to"])
    assert contents(tmp_path) == before


@pytest.mark.parametrize("damage", ["", "{}\n", '{"id": "q0", "repeat": 0, "official": 7}\n', "[" * 10_000, "\0"])
def test_damaged_verdicts_are_named(damage: str, data: Path, tmp_path: Path, ends: Ends) -> None:
    ends("eval.mmau", "--predictions", theirs(tmp_path, 6), "--data", data, "--out", tmp_path / "out", code=0, names=[])
    verdicts = tmp_path / "out" / "verdicts.jsonl"
    verdicts.write_text(damage)
    ends(
        "eval.compare", tmp_path / "out", tmp_path / "out", code=2, names=[str(verdicts if damage else verdicts.parent)]
    )


@pytest.mark.parametrize("damage", ["[]", "{", "[" * 10_000, '{"n": "many"}', '{"n": 6, "asked": 6, "missing": 6}'])
def test_scores_that_are_none_are_named(damage: str, data: Path, tmp_path: Path, ends: Ends) -> None:
    ends("eval.mmau", "--predictions", theirs(tmp_path, 6), "--data", data, "--out", tmp_path / "out", code=0, names=[])
    (tmp_path / "out" / "scores.json").write_text(damage)
    ends("eval.compare", tmp_path / "out", tmp_path / "out", code=2, names=[str(tmp_path / "out")])


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], list[str]]:
    """`disk(5)`: it is full from the 5th write that is to reach it; returns what was written, as it grows."""

    reach = os.fsync

    def full_from(number: int) -> list[str]:
        written: list[str] = []

        def limited(file: int) -> None:
            written.append(os.readlink(f"/proc/self/fd/{file}"))
            if len(written) >= number:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            reach(file)

        monkeypatch.setattr(os, "fsync", limited)
        return written

    return full_from


def evaluation(model: Path, manifest: Path, out: Path) -> list[Any]:
    more = ["--limit", 6, "--batch-size", 3, "--max-new-tokens", 2, "--device", "cpu"]
    return ["--ckpt", model, "--data", manifest, "--out", out, *more]


def test_a_full_disk_in_an_evaluation(
    model_folder: Path, manifest: Path, tmp_path: Path, ends: Ends, disk: Callable[[int], list[str]]
) -> None:
    """Wherever it is, the command says so, leaves nothing in part, and goes on once there is room."""
    out, writes = tmp_path / "out", disk(10**9)
    ends("eval.mmau", *evaluation(model_folder, manifest, tmp_path / "whole"), code=0, names=[])
    assert len(writes) > 6
    for number in range(1, len(writes) + 1):
        disk(number)
        ends("eval.mmau", *evaluation(model_folder, manifest, out), code=1, names=[str(out), "is kept"])
        disk(10**9)
        ends("eval.mmau", *evaluation(model_folder, manifest, out), code=0, names=[])
        same = {"predictions.jsonl", "scores.json", "verdicts.jsonl", "clips.json", "report.html"}
        made, whole = contents(out), contents(tmp_path / "whole")
        assert {name: made[name] for name in same} == {name: whole[name] for name in same}
        shutil.rmtree(out)


def test_no_more_answers_are_asked_for_than_are_read_back(tmp_path: Path, ends: Ends) -> None:
    """Those from the 10,000th on would be taken for damaged lines, and asked for again by every start."""
    options = ["--repeats", "5001", "--permute-choices", "2"]
    ends("eval.mmau", "--ckpt", tmp_path, *options, code=2, names=["--repeats, --permute-choices: ", "10,002 times"])
