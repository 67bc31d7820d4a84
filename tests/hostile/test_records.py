"""Files of records and YAML that try to mislead, to blow up or to end a command with anything but its own words."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
import unicodedata
from collections import deque
from pathlib import Path
from typing import Any

import pytest
import yaml
from transformers import TrainingArguments

from r1_aqa_repro.common.errors import Problem, Refused
from r1_aqa_repro.common.record_file import RecordFile
from r1_aqa_repro.data.conversations import read_pairs, read_prompts
from r1_aqa_repro.data.questions import read_questions
from r1_aqa_repro.data.records import read_records
from r1_aqa_repro.data.yaml_file import read_yaml
from r1_aqa_repro.run.checkpoints import is_last
from r1_aqa_repro.run.clips import MEASURED, SKIPPED, Clips
from r1_aqa_repro.run.folder import check_run_folder
from tests.conftest import ROOT
from tests.files import read_json, read_lines, write_json, write_lines, write_parquet
from tests.hostile.conftest import Ended

QUESTION = {
    "id": "a", "audio_id": "a.wav", "question": "What is heard?", "choices": ["a dog", "a cat"], "answer": "a cat",
}  # fmt: skip
LINE = json.dumps(QUESTION)
OTHER = json.dumps(QUESTION | {"id": "b"})
DEEP = "[" * 100 + "]" * 100


@pytest.mark.parametrize(
    ("line", "named"),
    [
        (LINE.replace('"a cat"}', '"a dog", "answer": "a cat"}'), "the key 'answer' of the record 'a' stands twice"),
        (LINE.replace('"answer"', '"score": NaN, "answer"'), "NaN is no JSON"),
        (LINE.replace('"answer"', '"score": -Infinity, "answer"'), "-Infinity is no JSON"),
        (LINE.replace('"answer"', '"score": 1e999, "answer"'), "the number 1e999 is too large"),
        (LINE.replace('"answer"', f'"score": {"9" * 5000}, "answer"'), "a number has too many digits"),
        (LINE.replace('"answer"', f'"more": {DEEP}, "answer"'), "'more' is nested too deeply"),
        (LINE.replace('"answer"', f'"more": {"[" * 100_000}'), "nested too deeply"),
        (LINE.replace("heard", r"\ud800"), "'question' is no valid Unicode"),
        (LINE.replace("heard", "\0"), "Invalid control character"),
        (LINE[:-9], "malformed JSON"),
        (f"{LINE}\r{OTHER}", "malformed JSON (Extra data)"),
        (LINE.replace('"id": "a"', '"id": ""'), "id is ''"),
        (LINE.replace('"id": "a"', f'"id": {DEEP[45:-45]}'), "id is [[[["),
        (json.dumps({str(number): 1 for number in range(100_000)}), "unknown record format"),
    ],
    ids=lambda value: value[-40:],
)
def test_a_hostile_line_is_named(line: str, named: str, tmp_path: Path, ends: Any) -> None:
    file = tmp_path / "questions.jsonl"
    file.write_text(f"{OTHER}\n{line}\n", encoding="utf-8")
    ended = ends("data_prep.stats", file, code=2, names=[f"{file}:line 2", named])
    assert len(ended.err) < 5_000 and ended.err.count("\n") == 1


@pytest.mark.parametrize(
    ("content", "named"),
    [
        (LINE.encode("utf-16"), "not UTF-8 text"),
        (b"\xff" + LINE.encode(), "not UTF-8 text"),
        (b" \n   \n\t\n", "the file holds no records"),
        (b"\0" * 100, "line 1: malformed JSON"),
        (f'[{LINE},\n{LINE[:-1]}, "answer": 1}}]'.encode(), "the key 'answer' of the record 'a' stands twice"),
        (f'[{LINE}, {{"id": NaN}}]'.encode(), "NaN is no JSON"),
    ],
    ids=lambda value: repr(value)[:30],
)
def test_a_hostile_file_is_named(content: bytes, named: str, tmp_path: Path, ends: Any) -> None:
    file = tmp_path / "questions.json"
    file.write_bytes(content)
    ends("data_prep.stats", file, code=2, names=[str(file), named])


@pytest.mark.parametrize("form", ["bom", "carriage returns", "spaces", "no line feed at the end"])
def test_what_only_looks_odd_is_read(form: str, tmp_path: Path) -> None:
    lines = {
        "bom": f"\ufeff{LINE}\n{OTHER}\n",
        "carriage returns": f"{LINE}\r\n{OTHER}\r\n",
        "spaces": f"   \n{LINE}\n \t \n  {OTHER}  \n",
        "no line feed at the end": f"{LINE}\n{OTHER}",
    }
    (tmp_path / "file").write_text(lines[form], encoding="utf-8", newline="")
    read = read_questions(tmp_path / "file")
    assert [one.id for one in read.records] == ["a", "b"] and not read.problems


def test_a_record_of_megabytes_is_read_from_every_kind_of_file(tmp_path: Path) -> None:
    long = "heard " * 400_000  # 2.4 MB
    records = [QUESTION | {"question": long}, QUESTION | {"id": "b"}]
    files = [
        write_lines(tmp_path / "lines", records),
        write_json(tmp_path / "list", records),
        write_parquet(tmp_path / "rows", records),
    ]
    for file in files:
        read = read_questions(file)
        assert [len(one.question) for one in read.records] == [len(long), 14] and not read.problems
    prompt = {"prompt": [{"role": "user", "content": long}]}
    assert read_prompts(write_lines(tmp_path / "prompts", [prompt])).records[0].messages[0]["content"] == long
    sides = {side: [{"role": "assistant", "content": side + long}] for side in ("chosen", "rejected")}
    assert len(read_pairs(write_lines(tmp_path / "pairs", [prompt | sides])).records) == 1


def test_a_list_of_a_million_is_read(tmp_path: Path) -> None:
    (tmp_path / "list").write_text("[" + ",".join(["{}"] * 1_000_000) + "]")
    assert deque(read_records(tmp_path / "list"), maxlen=1).pop() == ("record 1000000", {})


def test_ids_that_differ_only_in_their_unicode_form_are_one(tmp_path: Path) -> None:
    ids = [unicodedata.normalize(form, "café") for form in ("NFC", "NFD")]
    file = write_lines(tmp_path / "file", [QUESTION | {"id": one} for one in ids])
    read = read_questions(file)
    assert [one.id for one in read.records] == ids[:1]
    assert [(one.where, one.what) for one in read.problems] == [
        (f"{file}:line 2", f"id {ids[1]!r} was already used at line 1")
    ]


IDS = [
    "..", ".", "/etc/passwd", "../../up", "a/b", "a\\b", "a\0b", "-rf", "x" * 5_000, "line\nfeed", "\u202egnp.exe",
]  # fmt: skip


def test_no_id_leads_anywhere(tmp_path: Path, questions: Any, ends: Any) -> None:
    """Of MMAU's Parquet files, whose clips get names after their ids."""
    clip = questions[0].audio_path.read_bytes()
    answers = {"instruction": "What?", "choices": ["(A) x", "(B) y"], "answer": "(A) x"}
    attributes = [json.dumps({"id": one, "task": "sound"}) for one in IDS]
    rows = [answers | {"context": {"bytes": clip, "path": None}, "other_attributes": one} for one in attributes]
    source = write_parquet(tmp_path / "rows.parquet", rows)
    out = tmp_path / "deep" / "er" / "out"
    before = set(tmp_path.iterdir())
    ends("data_prep.mmau", "--questions", source, "--out", out, "--workers", 1, code=0, names=[])
    assert set(tmp_path.iterdir()) - before == {tmp_path / "deep"}
    assert [one["id"] for one in read_lines(out / "manifest.jsonl")] == IDS
    clips = [(out / one["audio_path"]).resolve() for one in read_lines(out / "manifest.jsonl")]
    assert len(set(clips)) == len(IDS) and {one.parent for one in clips} == {(out / "audio").resolve()}
    assert read_json(out / "prep_report.json")["kept"] == len(IDS)


LAUGHS = "a0: &a0 [ha, ha, ha]\n" + "".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 12))


@pytest.mark.parametrize(
    ("content", "named"),
    [
        (LAUGHS, "with its aliases it holds more than 100,000 values"),
        ("a: &a [*a]\n", "with its aliases it holds more than 100,000 values"),
        ("a: &a {b: *a}\n", "with its aliases it holds more than 100,000 values"),
        ("a: &a {b: 1}\nc: {<<: *a}\n", "merging with << is not supported"),
        ("a: !!python/object/apply:os.system ['touch /tmp/x']\n", "the tag 'tag:yaml.org,2002:python/object/apply:os"),
        ("a: !!binary x\n", "the tag 'tag:yaml.org,2002:binary' is not supported"),
        ("a: !!int x\n", "'x' is no int"),
        ("a: !!bool x\n", "'x' is no bool"),
        ("max_steps: 010\n", "'010' is a number to base 8 in YAML"),
        ("max_steps: 1:30\n", "'1:30' is a number to base 60 in YAML"),
        ("seed: 1\nseed: 2\n", "the key 'seed' stands twice"),
        ("null: 1\n~: 2\n", "the key '~' stands twice"),
        ("? [a]\n: 1\n", "a key is no text and no number"),
        ("a: " + "9" * 5000, "is no int"),
        ("a: " + "[" * 200_000, "nested too deeply"),
        ("".join(" " * n + "a:\n" for n in range(700)), "nested too deeply"),
        (r'a: "\ud800"', "is no str"),
        (r'a: "\UFFFFFFFF"', "cannot be read"),
        ("a: \0", "special characters are not allowed"),
        ("a: 1\n---\nb: 2\n", "expected a single document"),
        ("a: " + "x" * 300_000, "it has more than 262,144 bytes"),
        ("", "the config is no mapping"),
        ("- 1\n", "the config is no mapping"),
    ],
    ids=lambda value: repr(value)[:30],
)
def test_a_hostile_config_is_named(content: str, named: str, tmp_path: Path, ends: Any) -> None:
    file = tmp_path / "config.yaml"
    file.write_text(content, encoding="utf-8")
    start = time.monotonic()
    ended = ends("r1_aqa_repro.train_grpo", "--config", file, code=2, names=[f"{file}: ", named])
    assert ended.err.count("\n") == 1 and time.monotonic() - start < 20


def test_a_date_is_a_text(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("run_name: 2026-11-29\nother: 2026-99-99\nzero: 0\nhalf: 0.5\n")
    assert read_yaml(str(tmp_path / "config.yaml")) == {
        "run_name": "2026-11-29", "other": "2026-99-99", "zero": 0, "half": 0.5
    }  # fmt: skip


def test_a_message_is_one_line_that_a_terminal_only_shows() -> None:
    problem = Problem("\x1b[2Jrun\r\nerror: all is well\u202e", "a\n  message\nof a library\udcff", "Mend it\x07.")
    assert str(problem) == (
        r"\x1b[2Jrun\r\nerror: all is well\u202e: a message of a library\udcff. Mend it\x07."
    )  # fmt: skip
    assert str(Refused([problem])) == str(problem)
    assert len(str(Problem("file", "x" * 10**7, "Mend it."))) < 3_000


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
def test_a_terminal_that_cannot_print_a_path_shows_it_escaped(encoding: str, tmp_path: Path) -> None:
    folder = tmp_path / "süß 录音"
    folder.mkdir()
    file = write_lines(folder / "questions\udcff.jsonl", [QUESTION | {"audio_id": "ü.wav", "task": "гул\udcff"[:3]}])
    environment = {"PYTHONPATH": str(ROOT), "PYTHONIOENCODING": encoding, "LC_ALL": "C", "PATH": "/usr/bin:/bin"}
    for module, code in (("stats", 0), ("validate", 3)):
        ended = subprocess.run(
            [sys.executable, "-m", f"data_prep.{module}", str(file)],
            env=environment, capture_output=True, check=False,
        )  # fmt: skip
        assert ended.returncode == code, ended.stderr
        assert b"Traceback" not in ended.stderr + ended.stdout


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (["--question", "-x", "--choices", "-a", "-b"], ("-x", ["-a", "-b"])),
        (["--question=-x", "--choices", "a", "-1"], ("-x", ["a", "-1"])),
        (["--question=--raw", "--choices=--a", "--choices=--b"], ("--raw", ["--a", "--b"])),
    ],
    ids=lambda value: " ".join(map(str, value)),
)
def test_a_question_may_begin_with_a_hyphen(given: list[str], expected: Any, monkeypatch: Any, tmp_path: Path) -> None:
    from r1_aqa_repro import ask

    (tmp_path / "clip.wav").touch()
    seen: list[Any] = []

    def complete(_: str, question: Any, *__: Any) -> str:
        seen.append(question)
        return "a"

    monkeypatch.setattr(ask, "complete", complete)
    assert ask.main(["--ckpt", "any", "--audio", str(tmp_path / "clip.wav"), *given]) == 0
    assert [(one.question, list(one.choices)) for one in seen] == [expected]


def test_a_value_that_could_be_an_option_is_asked_for_with_an_equals_sign(ends: Any) -> None:
    arguments = ["--ckpt", "any", "--audio", "clip.wav", "--question", "--x", "--choices", "a", "b"]
    ended: Ended = ends("r1_aqa_repro.ask", *arguments, code=2, names=["--question", "--option=VALUE"])
    assert not ended.out


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("run.json", "{"), ("run.json", "[]"), ("run.json", "[" * 10_000),
        ("run.json", '{"data": [1]}'), ("config.resolved.yaml", "a: ["), ("config.resolved.yaml", "- 1"),
        ("config.resolved.yaml", "data: 5\n"), ("config.resolved.yaml", LAUGHS), ("config.resolved.yaml", ""),
    ],
    ids=lambda value: repr(value)[:30],
)  # fmt: skip
def test_damaged_records_of_a_run_are_named(name: str, content: str, tmp_path: Path) -> None:
    (tmp_path / "config.resolved.yaml").write_text("data: {seed: 0}\n")
    write_json(tmp_path / "run.json", {"data": {"a": "0"}, "processes": 1})
    assert not check_run_folder(tmp_path, {"data": {"seed": 0}}, {"data": {"a": "0"}})
    (tmp_path / name).write_text(content)
    with pytest.raises(Refused) as refusal:
        check_run_folder(tmp_path, {"data": {"seed": 0}}, {"data": {"a": "0"}})
    assert str(tmp_path) in str(refusal.value) and name in str(refusal.value)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        *[(MEASURED, text) for text in ("{", '{"clips": [1]}', '{"clips": {"a": 5}}', '{"clips": {"a": [1, 2, "3"]}}')],
        *[(SKIPPED, text) for text in ("[", "x", "[1]", '[{"clip": "a"}]', "[" * 10_000)],
    ],
    ids=lambda value: value[:30],
)
def test_damaged_records_of_clips_are_named(name: str, content: str, tmp_path: Path) -> None:
    lost = {"id": "q", "clip": "a.wav", "reason": "gone", "step": 3}
    write_json(tmp_path / MEASURED, {"decoded": True, "clips": {"a.wav": [1, 2, 3]}})
    write_json(tmp_path / SKIPPED, ["left out", lost])
    assert Clips(tmp_path).started
    (tmp_path / name).write_text(content)
    with pytest.raises(Refused, match=re.escape(f"{tmp_path / name}:")):
        Clips(tmp_path)


@pytest.mark.parametrize("content", ["", "[1]", "[" * 10_000, "{}", '{"global_step": "1", "max_steps": 2}'])
def test_a_damaged_state_of_a_trainer_is_named(content: str, tmp_path: Path) -> None:
    (tmp_path / "trainer_state.json").write_text(content)
    with pytest.raises(Refused, match=r"trainer_state\.json"):
        is_last(tmp_path, TrainingArguments(str(tmp_path / "run"), use_cpu=True))


def test_the_config_of_a_run_is_read_as_it_was_written(tmp_path: Path) -> None:
    values = {
        "a": "010", "b": "1:30", "c": "2026-11-29", "d": "=", "e": "<<", "f": 1e-6, "g": [1, -2.5, True, None],
        "h": "no", "i": "1_000", "j": "\u2028é🎵\t", "k": {"0": "*a", "1": "!!int x"}, "l": "",
        "m": 10**30, "n": "0x1F", "o": "~",
    }  # fmt: skip
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(values, allow_unicode=True), encoding="utf-8")
    assert read_yaml(tmp_path / "config.yaml") == values


@pytest.mark.parametrize(
    ("attributes", "named"),
    [
        (r'{"id": "\ud800", "task": "sound"}', "'id' is no valid Unicode"),
        ('{"id": "a", "id": "b"}', "other_attributes is"),
        ('{"id": "a", "difficulty": NaN}', "other_attributes is"),
        (f'{{"id": "a", "more": {DEEP}}}', "'more' is nested too deeply"),
        ("[" * 10_000, "other_attributes is"),
        ('["id"]', "other_attributes is"),
    ],
    ids=lambda value: value[:30],
)
def test_hostile_attributes_of_a_row_are_named(attributes: str, named: str, tmp_path: Path, ends: Any) -> None:
    rows = [
        {"instruction": "What?", "choices": ["x", "y"], "answer": "x", "other_attributes": one}
        for one in (attributes, '{"id": "sound"}')
    ]
    source, out = write_parquet(tmp_path / "rows.parquet", rows), tmp_path / "out"
    ends("data_prep.mmau", "--questions", source, "--out", out, "--workers", 1, code=3, names=[])
    assert [one["id"] for one in read_lines(out / "manifest.jsonl")] == ["sound"]
    assert named in json.dumps(read_json(out / "prep_report.json"), ensure_ascii=False)


def test_a_line_of_megabytes_is_recorded_and_read_again(tmp_path: Path) -> None:
    record = {"id": "a", "completion": "x" * 3_000_000}
    with RecordFile(tmp_path / "file", "Choose another.") as file:
        file.append([record, record])
        assert file.read() == [record, record]
