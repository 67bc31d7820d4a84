"""Collections of labelled clips as they are published: a CSV table, a JSON object or folders, read row by row.

A collection's `Layout` says where each field of a `LabelledClip` is found. Whatever is wrong with a table is reported
by line, all of it at once.
"""

from __future__ import annotations

import csv
import os
import re
import unicodedata
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, fields
from pathlib import Path, PurePosixPath
from typing import Any

from data_prep.folder import Account
from data_prep.media_index import MEDIA_ENDINGS
from r1_aqa_repro.common.errors import Problem, Refused, collecting
from r1_aqa_repro.common.files import open_file, read_json
from r1_aqa_repro.data.answers import fold
from r1_aqa_repro.data.records import decoded_line, no_records

REPEATED, SEVERAL_LABELS, NO_CLIP = "repeated row", "several labels", "no clip of this layout"

_COLUMN = re.compile(r"\{([^{}]+)\}")
_WANTED = "Give a CSV file with a header."
_NO_COMMAS = {";": "semicolons", "\t": "tabs"}  # between the cells of what some programs call CSV

Rows = list[tuple[str, dict[str, str]]]  # where each stands, such as `line 2`, and its values by column


@dataclass(frozen=True)
class Layout:
    """Where the fields of a clip are found; in each text `{column}` stands for the value in that column.

    Attributes:
        path: of the clip, below the folder of the audio.
        label: what is heard.
        family: what kind of label it is; questions offer labels of one family.
        recording: what the clip was cut from; clips of one are never on two sides of a split.
        source: where the recording comes from, such as a microphone, a library or a project.
        task: speech, sound or music; may be empty, as the next.
        licence: of the clip.
        files: for a collection without a table: a pattern that the paths of its clips below the folder of the audio
            match as a whole, with / between folders; its named groups are the columns.
        is_json: the table is a JSON object of objects, whose keys are the column `key`.
        smeared: `label` is a list with commas of a label and all that are above it in an ontology, in any order.
    """

    path: str
    label: str
    family: str
    recording: str
    source: str
    task: str = ""
    licence: str = ""
    files: str = ""
    is_json: bool = False
    smeared: bool = False

    @property
    def columns(self) -> list[str]:
        """The columns that a table must have."""
        return list(dict.fromkeys(column for field in _FIELDS for column in _COLUMN.findall(getattr(self, field))))


# What --preset names, as published; --table is the file that the comment names, --audio the folder.
PRESETS = {
    # esc50.csv, audio/. src_file is the Freesound clip that up to 5 takes were cut from
    "esc50": Layout("{filename}", "{category}", "sound", "{src_file}", "esc50", "sound", "CC BY-NC 3.0"),
    # UrbanSound8K.csv, audio/ with fold1/ to fold10/. fsID is the Freesound clip
    "urbansound8k": Layout(
        "fold{fold}/{slice_file_name}", "{class}", "sound", "{fsID}", "urbansound8k", "sound", "CC BY-NC 3.0"
    ),
    # FSD50K.ground_truth/dev.csv or eval.csv, FSD50K.dev_audio/ or FSD50K.eval_audio/. A file is a Freesound clip
    "fsd50k": Layout("{fname}.wav", "{labels}", "sound", "{fname}", "fsd50k", "sound", "CC, per clip", smeared=True),
    # no table; a folder a word. Before _nohash_ stands the speaker; _background_noise_ has none
    "speech_commands": Layout(
        "{path}", "{word}", "word", "{speaker}", "speech_commands", "speech", "CC BY 4.0",
        files=r"(?P<path>(?P<word>[^/]+)/(?P<speaker>[^/]+)_nohash_[0-9]+\.wav)",
    ),
    # no table; genres/ with a folder a genre. Which files are of one artist is not published
    "gtzan": Layout(
        "{path}", "{genre}", "genre", "{path}", "gtzan", "music",
        files=r"(?P<path>(?P<genre>[^/]+)/(?P=genre)\.[0-9]+\.[a-z0-9]+)",
    ),
    # examples.json, audio/. A recording is an instrument, of which there are up to 440 notes
    "nsynth": Layout(
        "{key}.wav", "{instrument_family_str}", "instrument", "{instrument_str}", "{instrument_source_str}", "music",
        "CC BY 4.0", is_json=True,
    ),
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class LabelledClip:
    """A row of a table; see `Layout`.

    Attributes:
        where: its place in the table, such as `line 2`.
        label: as it is shown: with spaces instead of underscores.
    """

    where: str
    path: str
    label: str
    family: str
    recording: str
    source: str
    task: str
    licence: str


_FIELDS = [field.name for field in fields(LabelledClip) if field.name != "where"]


def read_clips(table: Path | None, audio: Path, layout: Layout, account: Account) -> list[LabelledClip]:
    """The clips of a collection, in its order.

    Rows that repeat an earlier one, and those that no label can be taken from, are noted in the `account`.

    Raises:
        Refused: the table cannot be read, or rows are bad: each is named by its line.
    """
    problems: list[Problem] = []
    rows: Rows = []
    with collecting(problems):
        if layout.files:
            rows = _rows_of_files(audio, re.compile(layout.files), account)
        elif table is not None:
            rows = _json_rows(table, layout) if layout.is_json else _csv_rows(table, layout.columns, problems)
    place = str(table or audio)
    account.records_in += len(rows)
    if layout.smeared:
        rows = list(_with_one_label(rows, layout.label, account))
    clips = []
    for where, row in rows:
        values = {name: _filled(getattr(layout, name), row) for name in _FIELDS}
        clip = LabelledClip(where, **values | {"label": values["label"].replace("_", " ")})
        wrong = _wrong_with(clip)
        problems += [Problem(f"{place}:{where}", what, remedy) for what, remedy in wrong]
        if not wrong:
            clips.append(clip)
    kept = _consistent(clips, place, problems, account)
    if problems:
        raise Refused(problems)
    if not account.records_in:
        raise no_records(table or audio)
    return kept


def _filled(template: str, row: Mapping[str, str]) -> str:
    return _COLUMN.sub(lambda found: row[found[1]], template).strip()


def _csv_rows(file: Path, needed: list[str], problems: list[Problem]) -> Rows:
    """The rows of a CSV file; empty lines are passed over."""
    reader = csv.reader(_decoded(file), strict=True)
    rows: Rows = []
    header: list[str] | None = None
    begins = 1  # the line on which the row begins: a text in quotes may have several
    try:
        for cells in reader:
            where, begins = f"line {begins}", reader.line_num + 1
            if not "".join(cells).strip():
                continue
            if header is None:
                header = _checked_header([cell.strip() for cell in cells], needed, f"{file}:{where}")
            elif len(cells) != len(header):
                what = f"{len(cells)} cells, where the header has {len(header)}"
                problems.append(Problem(f"{file}:{where}", what, "Put a text that holds a comma in double quotes."))
            else:
                rows.append((where, dict(zip(header, cells, strict=True))))
    except csv.Error as error:
        remedy = "End lines with a line feed, close quotes, and double those inside."
        problems.append(Problem(f"{file}:line {begins}", f"no CSV ({error})", remedy))
    return rows


def _decoded(file: Path) -> Iterator[str]:
    try:
        with open_file(file) as source:
            yield from (decoded_line(file, number, raw) for number, raw in enumerate(source, start=1))
    except OSError as error:
        raise Refused.because(str(file), f"it cannot be read ({error.strerror})", _WANTED) from None


def _checked_header(header: list[str], needed: list[str], where: str) -> list[str]:
    problems = []
    if absent := [name for name in needed if name not in header]:
        what = f"the header has no {', '.join(map(repr, absent))}, but {', '.join(map(repr, header))}"
        remedy = "Rename them, name them with --path-column, --label-column, ..., or give the --preset that it is of."
        apart = next((name for sign, name in _NO_COMMAS.items() if sign in header[0]), None)
        if apart and len(header) == 1:
            remedy = f"Its cells stand apart by {apart}: save it with commas."
        problems.append(Problem(where, what[:1000], remedy))
    if twice := sorted({name for name in header if header.count(name) > 1}):
        what = f"the header names {', '.join(map(repr, twice))} twice"
        problems.append(Problem(where, what, "Name every column once."))
    if problems:
        raise Refused(problems)
    return header


def _json_rows(file: Path, layout: Layout) -> Rows:
    """The objects of a JSON object, with their keys."""
    rows: Rows = []
    problems = []
    for key, value in read_json(file, "Give the collection's JSON file.").items():
        values = {"key": key, **value} if isinstance(value, dict) else {}
        if wrong := [name for name in layout.columns if not isinstance(values.get(name), str)]:
            what = f"{wrong[0]} is {values.get(wrong[0])!r:.60}, not a text"
            problems.append(Problem(f"{file}:record {key!r:.60}", what, "Fetch the file again."))
        rows.append((f"record {key}", values))
    if problems:
        raise Refused(problems)
    return rows


def _rows_of_files(folder: Path, pattern: re.Pattern[str], account: Account) -> Rows:
    """A row for each media file whose path the pattern matches, by path; the others are noted."""
    rows: Rows = []
    for where, inner, names in os.walk(folder):
        inner.sort()
        for name in sorted(names):
            path = os.path.relpath(os.path.join(where, name), folder).replace(os.sep, "/")
            found = pattern.fullmatch(path)
            if found and path.isprintable():  # unlike a name that is no Unicode
                rows.append((path, found.groupdict()))
            elif name.lower().endswith(MEDIA_ENDINGS):
                account.records_in += 1
                account.lose(path, NO_CLIP, "its path is none that a clip of this collection has")
    return rows


def _with_one_label(rows: Rows, template: str, account: Account) -> Iterator[tuple[str, dict[str, str]]]:
    """The rows that have one label at the bottom of the ontology and nothing but what is above it, with that label.

    What every clip of a label has too is above it. Labels that others lie below are not asked about: a clip of "Bird"
    may be an owl, so that neither could be offered beside the other. Labels that always come together, such as those of
    a part of the collection, are one, under the name that comes first.
    """
    (column,) = _COLUMN.findall(template)
    labels = [[label.strip() for label in row[column].split(",")] for _, row in rows]
    together: dict[str, set[str]] = {}  # by label, as they come: itself and what is above it
    for of_row in labels:
        for label in of_row:
            together[label] = together.get(label, set(of_row)) & set(of_row)
    inner = {other for label, found in together.items() for other in found if label not in together[other]}
    place = {label: number for number, label in enumerate(together)}
    for (where, row), of_row in zip(rows, labels, strict=True):
        lowest = sorted((label for label in of_row if label not in inner), key=lambda label: place[label])
        if lowest and set(of_row) == together[lowest[0]]:  # of others at the bottom it would not have all
            yield where, {**row, column: lowest[0]}
        else:
            account.lose(where, SEVERAL_LABELS, f"{row[column]} is not one label and what is above it")


def _wrong_with(clip: LabelledClip) -> list[tuple[str, str]]:
    """(what, remedy) of everything that is wrong with a row by itself."""
    wrong = []
    for name in _FIELDS:
        value = getattr(clip, name)
        if not value and name not in ("task", "licence"):
            wrong.append((f"its {name} is empty", "Fill it in, or leave the row out."))
        if any(unicodedata.category(character) == "Cc" for character in value):
            wrong.append((f"its {name} {value!r:.60} holds a line break or another control character", "Remove it."))
    path = PurePosixPath(clip.path)
    if path.is_absolute() or ".." in path.parts:
        wrong.append((f"the path {clip.path!r:.200} leads out of --audio", "Give paths below that folder."))
    return wrong


def _consistent(
    clips: Iterable[LabelledClip], place: str, problems: list[Problem], account: Account
) -> list[LabelledClip]:
    """The clips without those that repeat an earlier row; what contradicts an earlier one is added to `problems`."""
    kept: list[LabelledClip] = []
    seen: dict[tuple[str, str], LabelledClip] = {}  # by path and family
    spelled: dict[tuple[str, str], LabelledClip] = {}  # by family and folded label
    of_path: dict[str, LabelledClip] = {}
    of_stem: dict[str, LabelledClip] = {}
    for clip in clips:
        earlier = seen.setdefault((clip.path, clip.family), clip)
        alike = spelled.setdefault((clip.family, fold(clip.label)), clip)
        same_file = of_path.setdefault(clip.path, clip)
        same_stem = of_stem.setdefault(os.path.splitext(clip.path)[0], clip)
        where = f"{place}:{clip.where}"
        if alike.label != clip.label:
            what = f"the label {clip.label!r:.60} looks like {alike.label!r:.60} of {alike.where}"
            problems.append(Problem(where, what, "Spell a label in one way."))
        elif earlier.label != clip.label:
            what = f"{clip.path} is {clip.label!r:.60} here and {earlier.label!r:.60} at {earlier.where}"
            problems.append(Problem(where, what, "A clip has one label of a family: correct or leave out its rows."))
        elif same_file.recording != clip.recording:
            what = f"{clip.path} is of the recording {clip.recording!r:.60} here and of another at {same_file.where}"
            problems.append(Problem(where, what, "A clip is of one recording: correct it."))
        elif same_stem.path != clip.path:
            what = f"{clip.path} differs from {same_stem.path} of {same_stem.where} in its ending alone"
            problems.append(Problem(where, what, "Leave one of them out, or rename it."))
        elif earlier is not clip:
            account.lose(clip.where, REPEATED, f"{earlier.where} says the same of {clip.path}")
        else:
            kept.append(clip)
    return kept


def csv_layout(table: Path, named: Mapping[str, str | None], dataset: str) -> Layout:
    """The layout of a CSV table.

    Args:
        table: its header tells which of the columns that need not be there are.
        named: the name of the column of each field; None is that of the field itself, if there is such a column.
        dataset: stands in for the source if there is no column of it. Without others the family has the name of the
            column of the labels, and each path is a recording of its own.

    Raises:
        Refused: the table cannot be read.
    """
    try:
        cells = next((cells for cells in csv.reader(_decoded(table)) if "".join(cells).strip()), [])
    except csv.Error:  # `read_clips` names the line
        cells = []
    present = {cell.strip() for cell in cells} | {"path", "label"}
    columns = {name: column or name for name, column in named.items() if column or name in present}
    found: dict[str, Any] = {name: f"{{{column}}}" for name, column in columns.items()}
    return Layout(**{"family": columns["label"], "recording": found["path"], "source": dataset} | found)
