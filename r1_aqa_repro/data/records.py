"""The one reader of records: JSON lines or a JSON list, each record checked field by field.

A bad record never stops the reading: it becomes a `Problem` that names the file and the line, and the caller decides
whether that refuses the run or drops the record.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

from r1_aqa_repro.common.errors import Problem, Refused


class BadRecord(Exception):
    """Raised for one record that cannot be used: what is wrong with it, and what to do about it."""

    def __init__(self, what: str, remedy: str):
        super().__init__(what)
        self.what, self.remedy = what, remedy


class Identified(Protocol):
    """What is read: anything with an id that is unique in its file."""

    @property
    def id(self) -> str: ...


T = TypeVar("T", bound=Identified)


@dataclass(frozen=True)
class Read(Generic[T]):
    """What reading a file gave: the good records in file order, and a problem for each bad one."""

    records: list[T]
    problems: list[Problem]


def read_file(path: str | os.PathLike[str], parse: Callable[[dict[str, Any], str], T], expected: str) -> Read[T]:
    """Read every record of a file.

    Args:
        path: the file.
        parse: makes a record of a JSON object and its place (`line 3`); raises BadRecord for one that it cannot read.
        expected: what kind of file to give instead, for the message if there is no such file.

    Raises:
        Refused: the file is absent, empty or not UTF-8, or it is a JSON list that breaks off.
    """
    file = Path(path)
    if not file.is_file():
        raise Refused.because(str(file), "there is no such file", f"Give the path of {expected}.")
    records: list[T] = []
    problems: list[Problem] = []
    first_seen: dict[str, str] = {}
    for where, raw in read_records(file):
        try:
            record = parse(require_object(raw), where)
            if record.id in first_seen:
                raise BadRecord(f"id {record.id!r} was already used at {first_seen[record.id]}", "Make ids unique.")
            first_seen[record.id] = where
            records.append(record)
        except BadRecord as bad:
            problems.append(Problem(f"{file}:{where}", bad.what, bad.remedy))
    if not records and not problems:
        raise Refused.because(str(file), "the file holds no records", "Check that it was written completely.")
    return Read(records, problems)


def read_records(file: Path) -> Iterator[tuple[str, Any]]:
    """Yield (`line N` or `record N`, JSON value or BadRecord) for a JSON list or a JSONL file.

    Lines are read one by one: a large file is not held in memory as one text. A file whose first sign is `[` is a list.

    Raises:
        Refused: the file is not UTF-8, or a JSON list that breaks off.
    """
    with open(file, "rb") as source:  # divided at line feeds alone: other separators may stand inside a JSON text
        lines = ((number, _decoded(file, number, raw)) for number, raw in enumerate(source, start=1))
        is_first = True
        for number, line in lines:
            if not line.strip():
                continue
            if is_first and line.lstrip().startswith("["):
                yield from _list_records(file, "\n" * (number - 1) + line + "".join(text for _, text in lines))
                return
            is_first = False
            yield f"line {number}", _line_record(line)


def _decoded(file: Path, number: int, line: bytes) -> str:
    try:
        return line.decode("utf-8-sig" if number == 1 else "utf-8")
    except UnicodeDecodeError as error:
        what = f"not UTF-8 text ({error.reason} at byte {error.start} of the line)"
        raise Refused.because(f"{file}:line {number}", what, "Convert the file.") from None


def _list_records(file: Path, text: str) -> Iterator[tuple[str, Any]]:
    try:
        records = json.loads(text)
    except (ValueError, RecursionError) as error:
        where = f"{file}:line {error.lineno}" if isinstance(error, json.JSONDecodeError) else str(file)
        remedy = "The file may have been cut off: fetch or write it again."
        raise Refused.because(where, f"malformed JSON ({_json_problem(error)})", remedy) from None
    yield from ((f"record {number}", record) for number, record in enumerate(records, start=1))


def _line_record(line: str) -> Any:
    try:
        return json.loads(line)
    except (ValueError, RecursionError) as error:
        return BadRecord(f"malformed JSON ({_json_problem(error)})", "Each line must be one JSON object.")


def _json_problem(error: ValueError | RecursionError) -> str:
    if isinstance(error, RecursionError):
        return "nested too deeply"
    return error.msg if isinstance(error, json.JSONDecodeError) else "a number has too many digits"


def require_object(raw: Any) -> dict[str, Any]:
    r"""Return what `read_records` gave if it is an object of valid Unicode: JSON may hold `\ud800` alone, which no file
    can be written with.

    Raises:
        BadRecord: it is not, or its line was no JSON at all.
    """
    if isinstance(raw, BadRecord):
        raise raw
    if not isinstance(raw, dict):
        raise BadRecord(f"expected an object, found {type(raw).__name__}", "Each record must be a JSON object.")
    for key, value in raw.items():
        try:
            json.dumps({key: value}, ensure_ascii=False, default=str).encode()
        except UnicodeEncodeError:
            what = f"{key!a} is no valid Unicode (half of a surrogate pair)"
            raise BadRecord(what, "Correct the text.") from None
        except RecursionError:
            raise BadRecord(f"{key!a} is nested too deeply", "Make it flat, or leave it out.") from None
    return raw


def text(record: dict[str, Any], key: str) -> str:
    value = record.get(key)
    if not isinstance(value, str) or not value:
        raise BadRecord(f"{key} is {'absent' if key not in record else repr(value)}", f"Give {key} as a text.")
    _require_unicode(key, value)
    return value


def optional_text(record: dict[str, Any], key: str) -> str | None:
    return None if record.get(key) in (None, "") else text(record, key)


def texts(record: dict[str, Any], key: str) -> tuple[str, ...]:
    value = record.get(key)
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise BadRecord(f"{key} is {'absent' if key not in record else repr(value)}", f"Give {key} as a list of texts.")
    _require_unicode(key, "".join(value))
    return tuple(value)


def _require_unicode(key: str, text: str) -> None:
    r"""JSON may hold `\ud800` alone, which no file can be written with."""
    try:
        text.encode()
    except UnicodeEncodeError:
        raise BadRecord(f"{key} is no valid Unicode (half of a surrogate pair)", "Correct the text.") from None
