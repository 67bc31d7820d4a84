"""The one reader of records: every container gives the same, and what is broken is named with its place."""

import datetime
import json
import random
from dataclasses import dataclass
from functools import partial

import pytest

from r1_aqa_repro.common.errors import Refused
from r1_aqa_repro.data.records import (
    BadRecord,
    Rejected,
    id_of,
    label,
    optional_text,
    parse_records,
    read_file,
    read_records,
    require_object,
    text,
    texts,
)
from tests.files import write_arrow, write_parquet


@dataclass(frozen=True)
class Named:
    id: str


def named(record, where):
    return Named(id_of(record, where))


def test_values_of_every_kind_of_file_come_with_their_places(tmp_path):
    values = [{"text": "é" * 70_000}, {"a": [1, {"b": "]},\u2028"}]}, 12, "text", None, [], 7.5e3]
    lines = [json.dumps(value, ensure_ascii=False) for value in values]
    for content, place in (
        (json.dumps(values), "record"),
        (json.dumps(values, indent=3), "record"),
        ("\ufeff \n" + json.dumps(values, ensure_ascii=False) + "\n \n", "record"),
        ("\n".join(lines), "line"),
        ("\ufeff" + "\r\n".join(lines) + "\r\n", "line"),
    ):
        (tmp_path / "file").write_bytes(content.encode())
        expected = [(f"{place} {number}", value) for number, value in enumerate(values, start=1)]
        assert list(read_records(tmp_path / "file")) == expected
    (tmp_path / "file").write_text("\n{}\n\n{oops\n{}\n")  # empty lines count, as in an editor
    (first, _), (second, bad), (third, _) = read_records(tmp_path / "file")
    assert (first, second, third) == ("line 2", "line 4", "line 5") and isinstance(bad, BadRecord)


TABLES = {
    "parquet": partial(write_parquet, rows_a_group=20),
    "arrow stream": partial(write_arrow, rows_a_batch=13),
    "arrow file": partial(write_arrow, is_stream=False),
}


@pytest.mark.parametrize("write", TABLES.values(), ids=TABLES)
def test_rows_of_a_table_are_records_and_audio_may_be_left_out(write, tmp_path):
    audio = {"bytes": b"RIFF", "path": "a.wav"}
    rows = [{"id": str(n), "audio": audio, "made": datetime.date(2024, 2, n + 1)} for n in range(20)]
    file = write(tmp_path / "rows", rows)
    assert list(read_records(file)) == [(f"row {n}", row) for n, row in enumerate(rows, start=1)]
    without = [row | {"audio": {"path": "a.wav"}} for row in rows]
    assert [row for _, row in read_records(file, path_only=("audio", "context"))] == without
    assert read_file(file, named, "rows").records == [Named(str(n)) for n in range(20)]


@pytest.mark.parametrize(
    ("audio", "without"),
    [
        ([{"bytes": b"RIFF", "path": "a.wav"}, {"bytes": b"RIFF", "path": None}], [{"path": "a.wav"}, {"path": None}]),
        (["a.wav", "b.wav"], ["a.wav", "b.wav"]),
        ("a.wav", "a.wav"),
        (b"RIFF", None),
        ([b"RIFF", b"RIFF"], [None, None]),
        ({"bytes": b"RIFF"}, {"bytes": None}),
        ({"bytes": b"RIFF", "path": None}, {"path": None}),
        ({"bytes": b"RIFF", "path": "a.wav", "sampling_rate": 16_000}, {"path": "a.wav"}),
    ],
)
def test_of_audio_in_any_form_the_paths_are_read(tmp_path, audio, without):
    file = write_parquet(tmp_path / "rows", [{"audio": audio, "id": "1"}])
    (row,) = [row for _, row in read_records(file, path_only=("audio",))]
    assert row == {"audio": without, "id": "1"} and list(row) == ["audio", "id"]


def test_audio_that_is_no_structure_in_an_arrow_file_stays(tmp_path):
    rows = [{"id": "a", "audio": "a.wav"}, {"id": "b", "audio": None}]
    assert [row for _, row in read_records(write_arrow(tmp_path / "rows", rows), path_only=("audio",))] == rows


def test_one_object_is_one_record_where_files_may_hold_one(tmp_path):
    file = tmp_path / "file"
    file.write_text(json.dumps({"id": "a", "choice": ["A. x", "B. y"]}, indent=2))
    assert list(read_records(file, one_object=True)) == [("object", {"id": "a", "choice": ["A. x", "B. y"]})]
    file.write_text('\n{\n  "id": "a",\n  "choice": [\n}\n')
    with pytest.raises(Refused, match=f"{file}:line 5: malformed JSON"):
        list(read_records(file, one_object=True))


def damaged_parquet(folder):
    """Whole at both ends; noise cannot be compressed away."""
    file = write_parquet(folder / "rows", [{"id": random.Random(n).randbytes(999)} for n in range(50)], rows_a_group=20)
    content = bytearray(file.read_bytes())
    content[4 : len(content) // 3] = b"\xff" * (len(content) // 3 - 4)
    return bytes(content)


def broken_off_arrow(folder):
    content = write_arrow(folder / "rows", [{"id": str(n)} for n in range(50)]).read_bytes()
    return content[: len(content) // 2]


@pytest.mark.parametrize(
    ("content", "where", "what"),
    [
        (None, "", "there is no such file"),
        (b"", "", "the file holds no records"),
        (b"\n \n", "", "the file holds no records"),
        (b"[]", "", "the file holds no records"),
        (b'{"id": "\xe9"}', ":line 1", "not UTF-8 text (invalid continuation byte at byte 8 of the line)"),
        (b'[{"id": "\xff"}]', ":line 1", "not UTF-8 text"),
        (b'[\n{"id": "a"},\n{"id": "b', ":line 3", "malformed JSON (Unterminated string starting at)"),
        (b'[{"id": 1}', ":line 1", "malformed JSON (Expecting ',' delimiter)"),
        (b'[{"id": 1}, oops, {"id": 2}]', ":line 1", "malformed JSON (Expecting value)"),
        (b'[{"id": 1}] [{"id": 2}]', ":line 1", "malformed JSON (Extra data)"),
        (b"[1]" + b"\n" * 70_000 + b"x", ":line 70001", "malformed JSON (Extra data)"),
        (b"[" * 200_000, "", "malformed JSON (nested too deeply)"),
        (b"[" + b"8" * 5000 + b"]", "", "malformed JSON (a number has too many digits)"),
        (b'{\n  "data": []\n}', "", "it is one JSON object, not records"),
        (b'prompt,"chosen",rejected\nWhy?,Because.,No.\n', "", "it is CSV, which is not read here"),
        (b"\xef\xbb\xbfid\tprompt\n1\tWhy?\n", "", "it is CSV, which is not read here"),
        (b"PAR1 and no more", "", "no readable parquet file"),
        (b"PAR1", "", "no readable parquet file"),
        (damaged_parquet, "", "no readable parquet file"),
        (b"ARROW1 and no more", "", "no readable Arrow file"),
        (b"\xff\xff\xff\xff", "", "no readable Arrow file"),
        (broken_off_arrow, "", "no readable Arrow file"),
    ],
    ids=lambda value: getattr(value, "__name__", repr(value)[:40]),  # every process must find the same names
)
def test_a_file_that_is_broken_as_a_whole_is_refused(tmp_path, content, where, what):
    file = tmp_path / "file"
    if content is not None:
        file.write_bytes(content if isinstance(content, bytes) else content(tmp_path))
    with pytest.raises(Refused) as refusal:
        read_file(file, named, "a file")
    (problem,) = refusal.value.problems
    assert problem.where == f"{file}{where}" and problem.what.startswith(what) and problem.remedy


@pytest.mark.parametrize(
    ("line", "what"),
    [
        ('{"id": "b", "question"', "malformed JSON (Expecting ':' delimiter)"),
        ('{"id": ' + "8" * 5000 + "}", "malformed JSON (a number has too many digits)"),
        ('{"id": ' + "[" * 100_000, "malformed JSON (nested too deeply)"),
        ("\x00", "malformed JSON (Expecting value)"),
        ("[1, 2]", "expected an object, found list"),
        ("7", "expected an object, found int"),
        ('{"id": ["b"]}', "id is ['b']"),
        ('{"id": true}', "id is True"),
        ('{"id": ""}', "id is ''"),
        ('{"id": "a"}', "id 'a' was already used at line 1"),
        (r'{"task": "\udfff"}', "'task' is no valid Unicode (half of a surrogate pair)"),
    ],
    ids=lambda value: value[:30],
)
def test_a_bad_line_is_named_and_the_others_are_read(tmp_path, line, what):
    file = tmp_path / "file"
    file.write_text(f'{{"id": "a"}}\n\n{line}\n{{"prompt": 1}}\n')
    read = read_file(file, named, "a file")
    assert read.records == [Named("a"), Named("line 4")]
    (problem,) = read.problems
    assert (problem.where, problem.what) == (f"{file}:line 3", what) and problem.remedy


def test_a_rejected_record_has_its_id_or_its_place_and_what_it_was(tmp_path):
    def refuse(record, where):
        raise BadRecord("bad", "Mend it.")

    (tmp_path / "file").write_text('{"id": 3}\n{"id": []}\n{"a": 1}\n[1]\noops\n')
    found = [record for _, record in parse_records(tmp_path / "file", refuse)]
    assert all(isinstance(one, Rejected) for one in found)
    assert [one.id for one in found] == ["3", "file:line 2", "file:line 3", "file:line 4", "file:line 5"]
    assert [one.raw for one in found[:4]] == [{"id": 3}, {"id": []}, {"a": 1}, [1]]
    assert isinstance(found[4].raw, BadRecord)
    assert str(found[0].problem) == f"{tmp_path / 'file'}:line 1: bad. Mend it."


@pytest.mark.parametrize(
    ("check", "value", "expected"),
    [
        (text, "a", "a"),
        (text, " ", " "),
        (text, "", "key is '', not a text"),
        (text, None, "key is None, not a text"),
        (text, 3, "key is 3, not a text"),
        (optional_text, "", None),
        (optional_text, None, None),
        (optional_text, "a", "a"),
        (optional_text, 3, "key is 3, not a text"),
        (texts, ["a", ""], ("a", "")),
        (texts, [], ()),
        (texts, "a", "key is 'a', not a list of texts"),
        (texts, ["a", 5], "key is ['a', 5], not a list of texts"),
        (label, "a", "a"),
        (label, ["a", "b"], "a, b"),
        (label, [], None),
        (label, None, None),
        (label, [["a"]], "key is [['a']], not a list of texts"),
        (label, {"a": 1}, "key is {'a': 1}, not a text"),
    ],
)
def test_a_field_gives_its_value_or_says_what_is_wrong(check, value, expected):
    try:
        found = check({"key": value}, "key")
    except BadRecord as bad:
        assert bad.what == expected and bad.remedy
    else:
        assert found == expected


def test_an_absent_field_is_called_absent():
    for check in (text, texts):
        with pytest.raises(BadRecord, match="key is absent"):
            check({}, "key")
    with pytest.raises(BadRecord, match="id is absent"):
        id_of({})
    assert optional_text({}, "key") is label({}, "key") is None


def test_an_id_is_a_text_or_an_integer_and_may_have_a_default():
    assert (id_of({"id": "a"}), id_of({"id": 0}), id_of({"id": None}, "here"), id_of({}, "here")) == (
        "a", "0", "here", "here"
    )  # fmt: skip
    for bad in (None, True, 1.5, ["a"], ""):
        with pytest.raises(BadRecord, match="id is"):
            id_of({"id": bad})


def test_what_nests_deeper_than_can_be_written_is_bad():
    nested = []
    for _ in range(2_000):
        nested = [nested]
    with pytest.raises(BadRecord, match="'deep' is nested too deeply"):
        require_object({"prompt": [], "deep": nested})
