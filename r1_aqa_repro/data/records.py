"""The one reader of records: JSON lines, a JSON list, a Parquet or an Arrow file, each record checked field by field.

A bad record never stops the reading: it becomes a `Problem` that names the file and the line, and the caller decides
whether that refuses the run or drops the record.
"""

from __future__ import annotations

import json
import math
import os
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

from r1_aqa_repro.common.errors import Problem, Refused
from r1_aqa_repro.common.files import open_file, unreadable

_PARQUET = b"PAR1"  # what such a file begins with
# what Arrow files begin with: the random access format, and the stream, whose messages begin with a continuation mark
_ARROW = (b"ARROW1", b"\xff\xff\xff\xff")
_TABLES = (_PARQUET, *_ARROW)
_COLUMN = r'"?[A-Za-z_][\w-]*"?'
_HEADER = re.compile(rf"{_COLUMN}(?:[,;\t]{_COLUMN})+")  # the first line of a CSV file
_DEEPEST = 64  # lists and objects in one another, in a record
_FROM_CSV = "Make it JSON lines, as with pandas: read_csv(FILE).to_json('out.jsonl', orient='records', lines=True)."
_ROWS = 8  # of a Parquet or Arrow file, with their audio, in memory at once
_BUFFER = 1 << 20  # bytes of a Parquet file's column read at once: it would read a whole row group


class BadRecord(Exception):
    """Raised for one record that cannot be used: what is wrong with it, and what to do about it."""

    def __init__(self, what: str, remedy: str):
        super().__init__(what)
        self.what, self.remedy = what, remedy


T = TypeVar("T", bound=Any)  # what is read; `read_file` looks at its id


@dataclass(frozen=True)
class Rejected:
    """A record that cannot be used."""

    id: str  # its own, or its place in the file if it has no readable one
    raw: Any  # as it stood; the `BadRecord` itself if the line holds no JSON
    problem: Problem


@dataclass(frozen=True)
class Read(Generic[T]):
    """What reading a file gave: the good records in file order, and a problem for each bad one."""

    records: list[T]
    problems: list[Problem]


def read_file(path: str | os.PathLike[str], parse: Callable[[dict[str, Any], str], T], expected: str) -> Read[T]:
    """Read every record of a file (see `parse_records`), of which no two may have one id.

    Raises:
        Refused: the file is absent or cannot be read (the remedy is to give what is `expected`), or holds no records;
            or see `read_records`.
    """
    file = Path(path)
    if (reason := unreadable(file)) is not None:
        raise Refused.because(str(file), reason, f"Give the path of {expected}.")
    records: list[T] = []
    problems: list[Problem] = []
    first_seen: dict[str, str] = {}
    for where, record in parse_records(file, parse):
        if isinstance(record, Rejected):
            problems.append(record.problem)
            continue
        same = unicodedata.normalize("NFC", record.id)  # two forms of a text look alike, and are one on some disks
        if same in first_seen:
            what = f"id {record.id!r} was already used at {first_seen[same]}"
            problems.append(Problem(f"{file}:{where}", what, "Make ids unique."))
        else:
            first_seen[same] = where
            records.append(record)
    if not records and not problems:
        raise no_records(file)
    return Read(records, problems)


def no_records(file: Path) -> Refused:
    """The refusal of an empty file."""
    return Refused.because(str(file), "the file holds no records", "Check that it was written completely.")


def parse_records(
    file: Path,
    parse: Callable[[dict[str, Any], str], T],
    path_only: Collection[str] = (),
    any_text: bool = False,
    one_object: bool = False,
) -> Iterator[tuple[str, T | Rejected]]:
    """Yield (place, what `parse` makes of the object there) for every record of a file; see `read_records`.

    `parse` is given the object and its place and raises BadRecord for one that it cannot read. With `any_text` it also
    gets what is no valid Unicode.
    """
    for where, raw in read_records(file, path_only, one_object):
        record: T | Rejected
        try:
            record = parse(require_object(raw, any_text), where)
        except BadRecord as bad:
            problem = Problem(f"{file}:{where}", bad.what, bad.remedy)
            record = Rejected(_id_or_place(raw, f"{file.name}:{where}"), raw, problem)
        yield where, record


def _id_or_place(raw: Any, place: str) -> str:
    try:
        return id_of(require_object({"id": require_object(raw, any_text=True).get("id")}), place)
    except BadRecord:
        return place


def read_records(file: Path, path_only: Collection[str] = (), one_object: bool = False) -> Iterator[tuple[str, Any]]:
    """Yield (`line N`, `record N` or `row N`; JSON value, row or BadRecord) for JSON lines, a JSON list, Parquet or
    Arrow (`datasets.save_to_disk` writes its streams).

    Which of them it is shows in the content. Lines and rows are read one by one, so that a large file is not held in
    memory; a list is read whole. Of the columns `path_only` of a Parquet or Arrow file, which hold audio, the paths
    alone are read: `path` of `{bytes, path}`, a text, or either in lists; bytes become None. With `one_object` a JSON
    object over several lines is a record, whose place is `object`.

    Raises:
        Refused: the file cannot be read, is not UTF-8, holds one JSON object over several lines, is CSV, or is a broken
            list, Parquet or Arrow file.
    """
    try:
        source = open_file(file)
    except OSError as error:
        raise Refused.because(str(file), f"it cannot be read ({error.strerror})", "Give a file of records.") from None
    with source:  # divided at line feeds alone: other separators may stand inside a JSON text
        beginning = source.peek(len(_ARROW[0]))
        if beginning.startswith(_TABLES):
            rows = _parquet_rows if beginning.startswith(_PARQUET) else _arrow_rows
            for number, row in enumerate(rows(file, path_only), start=1):
                blank = {name: _without_bytes(row[name]) for name in path_only if name in row}
                yield f"row {number}", row | blank
            return
        lines = ((number, decoded_line(file, number, raw)) for number, raw in enumerate(source, start=1))
        is_first = True
        for number, line in lines:
            if not line.strip():
                continue
            if is_first and line.lstrip().startswith("["):
                yield from _list_records(file, "\n" * (number - 1) + line + "".join(text for _, text in lines))
                return
            if is_first and line.strip() == "{" and one_object:
                whole = "\n" * (number - 1) + "[" + line + "".join(text for _, text in lines) + "]"
                yield from (("object", value) for _, value in _list_records(file, whole))
                return
            if is_first and line.strip() == "{":
                remedy = "Give a JSON list of records, or one record a line."
                raise Refused.because(str(file), "it is one JSON object, not records", remedy)
            if is_first and not line.lstrip().startswith("{") and _is_csv(file, line):
                raise Refused.because(str(file), "it is CSV, which is not read here", _FROM_CSV)
            is_first = False
            yield f"line {number}", _line_record(line)


def is_table(file: Path) -> bool:
    """Whether a file is a Parquet or an Arrow file, whose rows may hold audio, by what it begins with."""
    with open_file(file) as opened:
        return opened.read(len(_ARROW[0])).startswith(_TABLES)


def _is_csv(file: Path, first_line: str) -> bool:
    return file.suffix.lower() in (".csv", ".tsv") or _HEADER.fullmatch(first_line.strip()) is not None


def _parquet_rows(file: Path, path_only: Collection[str]) -> Iterator[dict[str, Any]]:
    import pyarrow  # only for those who have such a file
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(file, buffer_size=_BUFFER, pre_buffer=False) as table:
            leaves = [table.schema.column(index) for index in range(len(table.schema))]
            paths = [leaf.path for leaf in leaves if leaf.name == "path" or leaf.logical_type.type == "STRING"]
            columns: list[str] = []
            for name in table.schema_arrow.names:
                own = [path for path in paths if name in path_only and path.partition(".")[0] == name]
                columns += own or [name]
            for batch in table.iter_batches(batch_size=_ROWS, columns=columns):
                yield from batch.to_pylist()
    except (pyarrow.ArrowException, OSError, ValueError) as error:  # the last one of a text that is not UTF-8
        raise Refused.because(str(file), f"no readable parquet file ({error})", "Fetch it again.") from None


def _arrow_rows(file: Path, path_only: Collection[str]) -> Iterator[dict[str, Any]]:
    import pyarrow
    import pyarrow.compute

    try:
        with pyarrow.memory_map(str(file)) as mapped:  # of a batch only the pages of what is read come into memory
            if mapped.read(len(_ARROW[0])) == _ARROW[0]:
                source = pyarrow.ipc.open_file(mapped)
                batches = (source.get_batch(number) for number in range(source.num_record_batches))
            else:
                mapped.seek(0)
                batches = iter(pyarrow.ipc.open_stream(mapped))
            for batch in batches:
                for index, field in enumerate(batch.schema):
                    if field.name in path_only and pyarrow.types.is_struct(field.type) and "path" in field.type.names:
                        path = pyarrow.compute.struct_field(batch.column(index), "path")
                        batch = batch.set_column(index, field.name, pyarrow.StructArray.from_arrays([path], ["path"]))
                for start in range(0, batch.num_rows, _ROWS):
                    yield from batch.slice(start, _ROWS).to_pylist()
    except (pyarrow.ArrowException, OSError, ValueError) as error:
        raise Refused.because(str(file), f"no readable Arrow file ({error})", "Fetch it again.") from None


def _without_bytes(value: Any) -> Any:
    if isinstance(value, list):
        return [_without_bytes(one) for one in value]
    if isinstance(value, dict):
        return {key: _without_bytes(one) for key, one in value.items()}
    return None if isinstance(value, bytes) else value


def decoded_line(file: Path, number: int, line: bytes) -> str:
    try:
        return line.decode("utf-8-sig" if number == 1 else "utf-8")
    except UnicodeDecodeError as error:
        what = f"not UTF-8 text ({error.reason} at byte {error.start} of the line)"
        raise Refused.because(f"{file}:line {number}", what, "Convert the file.") from None


def _list_records(file: Path, text: str) -> Iterator[tuple[str, Any]]:
    try:
        records = parse_json(text)
    except (ValueError, RecursionError) as error:
        where = f"{file}:line {error.lineno}" if isinstance(error, json.JSONDecodeError) else str(file)
        remedy = "The file may have been cut off, or hold more than one list: fetch or write it again."
        raise Refused.because(where, f"malformed JSON ({_json_problem(error)})", remedy) from None
    yield from ((f"record {number}", record) for number, record in enumerate(records, start=1))


def _line_record(line: str) -> Any:
    try:
        return parse_json(line)
    except (ValueError, RecursionError) as error:
        return BadRecord(f"malformed JSON ({_json_problem(error)})", "Each line must be one JSON object.")


class _NoJSON(ValueError):
    """What Python reads and JSON does not have, or does not say the meaning of."""


def parse_json(text: str) -> Any:
    """The value of a JSON text.

    Raises:
        ValueError: it is none, or leaves open what it says.
        RecursionError: it is nested too deeply.
    """
    return json.loads(text, parse_constant=_refuse_constant, parse_float=_finite, object_pairs_hook=_unique_keys)


def _refuse_constant(name: str) -> None:
    raise _NoJSON(f"{name} is no JSON")


def _finite(digits: str) -> float:
    number = float(digits)
    if math.isinf(number):
        raise _NoJSON(f"the number {digits:.20} is too large")
    return number


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Of a key that stands twice Python silently keeps the last value, and another reader perhaps the first."""
    found = dict(pairs)
    if len(found) < len(pairs):
        twice = next(key for key, times in Counter(key for key, _ in pairs).items() if times > 1)
        of = f" of the record {found['id']!r:.60}" if "id" in found else ""
        raise _NoJSON(f"the key {twice!r:.60}{of} stands twice")
    return found


def _json_problem(error: ValueError | RecursionError) -> str:
    if isinstance(error, RecursionError):
        return "nested too deeply"
    if isinstance(error, _NoJSON):
        return str(error)
    return error.msg if isinstance(error, json.JSONDecodeError) else "a number has too many digits"


def require_object(raw: Any, any_text: bool = False) -> dict[str, Any]:
    r"""Return what `read_records` gave if it is an object of valid Unicode: JSON may hold `\ud800` alone, which no file
    can be written with.

    Raises:
        BadRecord: it is not, or its line holds no JSON.
    """
    if isinstance(raw, BadRecord):
        raise raw
    if not isinstance(raw, dict):
        raise BadRecord(f"expected an object, found {type(raw).__name__}", "Each record must be a JSON object.")
    for key, value in raw.items():
        if _is_too_deep(value):
            raise BadRecord(f"{key!a:.200} is nested too deeply", "Make it flat, or leave it out.")
    if not any_text and not _is_unicode(raw):
        key = next(key for key, value in raw.items() if not _is_unicode({key: value}))
        raise BadRecord(f"{key!a:.200} is no valid Unicode (half of a surrogate pair)", "Correct the text.")
    return raw


def _is_unicode(record: dict[str, Any]) -> bool:
    try:
        json.dumps(record, ensure_ascii=False, default=lambda _: None).encode()
    except UnicodeEncodeError:
        return False
    return True


def _is_too_deep(value: Any) -> bool:
    """Whether lists and objects lie in one another deeper than Python can be trusted to write or to show them."""
    layer, depth = [value] if isinstance(value, dict | list) else [], 0
    while layer and depth < _DEEPEST:
        insides = (one.values() if isinstance(one, dict) else one for one in layer)
        layer, depth = [value for inside in insides for value in inside if isinstance(value, dict | list)], depth + 1
    return bool(layer)


def text(record: dict[str, Any], key: str) -> str:
    """The text of a key.

    Raises:
        BadRecord: it is absent, empty or no text; the functions below raise the same.
    """
    value = record.get(key)
    if not isinstance(value, str) or not value:
        raise BadRecord(f"{key} is {_shown(record, key)}, not a text", f"Give {key} as a text.")
    return value


def optional_text(record: dict[str, Any], key: str) -> str | None:
    """The text of a key; None if it is absent, null or empty."""
    return None if record.get(key) in (None, "") else text(record, key)


def texts(record: dict[str, Any], key: str) -> tuple[str, ...]:
    """The list of texts of a key, of which any may be empty."""
    value = record.get(key)
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise BadRecord(f"{key} is {_shown(record, key)}, not a list of texts", f"Give {key} as a list of texts.")
    return tuple(value)


def label(record: dict[str, Any], key: str) -> str | None:
    """A text, or a list of texts as one text; None if it is absent, null or empty."""
    value = record.get(key)
    return ", ".join(texts(record, key)) or None if isinstance(value, list) else optional_text(record, key)


def id_of(record: dict[str, Any], otherwise: str | None = None) -> str:
    """The record's `id`, a text or an integer, as text; `otherwise` if it has no id and need not have one."""
    value = record.get("id")
    if value is None and otherwise is not None:
        return otherwise
    if isinstance(value, bool) or not isinstance(value, str | int) or value == "":
        remedy = "Give id as a text or an integer" + (", or leave it out." if otherwise is not None else ".")
        raise BadRecord(f"id is {_shown(record, 'id')}", remedy)
    return str(value)


def _shown(record: dict[str, Any], key: str) -> str:
    return f"{record[key]!r:.200}" if key in record else "absent"
