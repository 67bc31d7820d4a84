"""Prepare AVQA for training: its annotations and whatever media one has become a manifest with 16 kHz clips.

    python -m data_prep.avqa --annotations train_qa.json --media videos/ --out data/avqa

finds each question's clip under the --media folders: `ID_000030` or `ID_30` with any of the usual endings (mp4, mkv,
webm, wav, flac, mp3, ogg, m4a), or the whole video `ID`, of which the 10 seconds are cut out. R1-AQA's own JSONL lines
and parquet files with embedded audio are taken as annotations too. It writes manifest.jsonl, prep_report.json and
audio/. The same command goes on with a preparation that was interrupted.

Exit codes: 0 done, and missing clips are listed; 1 failed, such as on a full disk, and what was done is kept; 2 refused
before starting; 3 done, but less than --min-kept was kept, or nothing; 130 interrupted.
"""

from __future__ import annotations

import json
import os
import re
import sys
import unicodedata
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from string import ascii_uppercase
from typing import Any

from data_prep.fingerprints import YOUTUBE_CLIP
from data_prep.pipeline import Record, add_preparation_arguments, prepare, safe_stem
from r1_aqa_repro.common.console import Options, say
from r1_aqa_repro.common.errors import EXIT_DONE, EXIT_LOSSES, Problem, Refused, command
from r1_aqa_repro.common.files import sha256_of

MEDIA_ENDINGS = (".wav", ".flac", ".mp4", ".m4a", ".mkv", ".webm", ".ogg", ".mp3")  # the first found is taken
CLIP_SECONDS = 10.0
# A file that is named after its clip but lasts longer than this is the whole video all the same: that is how
# downloads look whose tool named the file and forgot to cut it.
LONGEST_CLIP = 15.0
_CLIP_NAME = re.compile(r"(.+)_([0-9]{1,9})", re.DOTALL)  # an id may hold underscores: the last one counts
_PARQUET = b"PAR1"
_ROWS = 8  # rows of a parquet file, with their audio, in memory at once
_BUFFER = 1 << 20  # bytes read at once of a parquet file's column: it would read a whole row group
_CHUNK = 1 << 16  # characters read at once
_LONGEST_RECORD = 1 << 20  # characters


@command
def main(argv: list[str]) -> int:
    """Run the command; returns its exit code."""
    arguments = _parser().parse_args(argv)
    _check_paths(arguments.annotations, arguments.media)
    total = sum(map(_number_of_records, arguments.annotations))
    if not total:
        where = str(arguments.annotations[0])
        raise Refused.because(where, "the file holds no records", "Check that it was written completely.")
    index = MediaIndex(arguments.media)
    if not len(index) and not all(map(_brings_media, arguments.annotations)):
        where = ", ".join(map(str, arguments.media)) or "--media"
        raise Refused.because(
            where, "there is no media file", f"Give folders that hold {', '.join(MEDIA_ENDINGS)} files."
        )
    say(f"{total:,} records; {len(index):,} media files in {len(arguments.media)} folders")
    for folder, why in index.unreadable:
        say(f"warning: {folder} cannot be read and is left out ({why})")
    report = prepare(
        records(arguments.annotations, index),
        arguments.out,
        settings={
            "command": "data_prep.avqa",
            "annotations": [f"{file.name}, sha256 {sha256_of(file)}" for file in arguments.annotations],
        },
        workers=arguments.workers,
        channel=arguments.channel,
        audio_format=arguments.format,
        total=total,
    )
    say(report.summary(arguments.out))
    return EXIT_DONE if report.keeps(arguments.min_kept) else EXIT_LOSSES


class MediaIndex:
    """Every media file under some folders by its name without ending, made by one walk over them.

    Of several with one name the first counts: in the order of the folders, then of `MEDIA_ENDINGS`, then of the paths.

    Attributes:
        unreadable: (folder, reason) of those that had to be left out.
    """

    def __init__(self, folders: list[Path]):
        self.unreadable: list[tuple[str, str]] = []
        self._found: dict[str, str] = {}
        for folder in folders:
            names = sorted(self._walk(folder), key=lambda path: (MEDIA_ENDINGS.index(_ending(path)), path))
            for path in names:
                self._found.setdefault(_name(path), path)

    def __len__(self) -> int:
        return len(self._found)

    def __getitem__(self, name: str) -> Path | None:
        path = self._found.get(unicodedata.normalize("NFC", name))
        return None if path is None else Path(path)

    def _walk(self, folder: Path) -> Iterator[str]:
        seen = set()  # folders by device and inode: a link may lead back to one above it

        for where, inner, files in os.walk(folder, followlinks=True, onerror=self._leave_out):
            here = os.stat(where)
            if (here.st_dev, here.st_ino) in seen:
                inner.clear()
                continue
            seen.add((here.st_dev, here.st_ino))
            inner.sort()
            yield from (os.path.join(where, name) for name in files if _ending(name) in MEDIA_ENDINGS)

    def _leave_out(self, error: OSError) -> None:
        self.unreadable.append((str(error.filename), error.strerror or str(error)))


def _ending(path: str) -> str:
    return os.path.splitext(path)[1].lower()


def _name(path: str) -> str:
    return unicodedata.normalize("NFC", os.path.splitext(os.path.basename(path))[0])


@dataclass(frozen=True)
class _Media:
    """Where a question's clip is to be had; see `Record`."""

    file: Path | bytes | None
    start: float | None = None
    seconds: float | None = None
    cut_over: float | None = None


def find_media(video_name: str, index: MediaIndex) -> _Media:
    """Look a clip up by every naming that is in use.

    `video_name` is a YouTube id, an underscore and the start second as six digits; R1-AQA's own files have it without
    the zeros. The id alone is the whole video.
    """
    name = _CLIP_NAME.fullmatch(video_name)
    if name is None:
        return _Media(index[video_name])
    video, start = name[1], int(name[2])
    for spelled in (video_name, f"{video}_{start:06d}", f"{video}_{start}"):
        if (file := index[spelled]) is not None:
            return _clip_or_video(file, start)
    return _Media(index[video], start, CLIP_SECONDS)


def _clip_or_video(file: Path, start: int) -> _Media:
    """A file with a clip's name, which may be the whole video: it is if it goes on long after the clip's start."""
    return _Media(file, start, CLIP_SECONDS, cut_over=max(LONGEST_CLIP, start + 1.0))


def records(annotations: list[Path], index: MediaIndex) -> Iterator[Record]:
    """Each record of the annotations with its media; a bad one says why it is bad."""
    for file in annotations:
        split = next((split for split in ("train", "val", "test") if file.name.startswith(split)), None)
        for where, raw in raw_records(file):
            try:
                if isinstance(raw, _Bad):
                    raise raw
                yield _record(raw, where, file, split, index)
            except _Bad as bad:
                known = isinstance(raw, dict) and isinstance(raw.get("id"), str | int)
                yield Record({"id": str(raw["id"]) if known else f"{file.name}:{where}"}, bad=str(bad))


class _Bad(Exception):
    """Why a record is no record."""


def _record(raw: Any, where: str, file: Path, split: str | None, index: MediaIndex) -> Record:
    if not isinstance(raw, dict):
        raise _Bad(f"expected an object, found {type(raw).__name__}")
    audio = raw.get("audio")
    embedded = audio.get("bytes") if isinstance(audio, dict) else audio if isinstance(audio, bytes) else None
    if "multi_choice" in raw:
        question, choices, answer = _text(raw, "question_text"), _texts(raw, "multi_choice"), _indexed(raw)
    elif embedded is not None:
        question, choices, answer = _spelled_out(raw)
    else:
        raise _Bad(f"no multi_choice, only {sorted(raw)}")
    video = _optional_text(raw, "video_name")
    path = _optional_text(raw, "audio_path") or (_optional_text(audio, "path") if isinstance(audio, dict) else None)
    name = video or (path and _name(path))
    record_id = raw.get("id", name and f"{name}:{where}" if embedded else None)
    if isinstance(record_id, bool) or not isinstance(record_id, str | int):
        raise _Bad(f"id is {'absent' if 'id' not in raw else repr(record_id)}")
    if not name:
        raise _Bad("video_name is absent: there is nothing to find the clip by")
    media = _Media(embedded) if embedded is not None else _media(video, path, file, index)
    fields = {
        "id": str(record_id),
        "question": question,
        "choices": choices,
        "answer": answer,
        "dataset": _optional_text(raw, "dataset_name") or "AVQA",
        "split": split,
        "task": _optional_text(raw, "question_relation"),
        "category": _optional_text(raw, "question_type"),
        "source_video": video or (name if YOUTUBE_CLIP.fullmatch(name) else None),
    }
    missing = f"no file is named {name}, in any of its spellings"
    return Record(fields, media.file, safe_stem(name), media.start, media.seconds, media.cut_over, missing)


def _media(video: str | None, path: str | None, file: Path, index: MediaIndex) -> _Media:
    """By R1-AQA's `audio_path` as it stands, from the annotations' folder or from here; else by name.

    A number at the end of a file's name alone is no start second: `clip_3.wav` may be the third of many clips.
    """
    names = [name for name in (video, path and _name(path)) if name]
    has_start = video is not None or YOUTUBE_CLIP.fullmatch(names[0])
    if path:
        for candidate in (file.parent / path, Path(path)):
            if os.path.isfile(candidate):  # False also for what cannot be a path
                name = _CLIP_NAME.fullmatch(names[0]) if has_start else None
                return _clip_or_video(candidate, int(name[2])) if name else _Media(candidate)
    found = (find_media(name, index) if has_start else _Media(index[name]) for name in names)
    return next((media for media in found if media.file is not None), _Media(None))


def _indexed(raw: dict[str, Any]) -> str:
    """The answer as text: AVQA gives a 0-based index."""
    index, choices = raw.get("answer"), raw["multi_choice"]
    if isinstance(index, bool) or not isinstance(index, int):
        raise _Bad(f"answer is {index!r}, not an index")
    if not 0 <= index < len(choices):
        raise _Bad(f"answer index {index} is out of range for {len(choices)} choices")
    return choices[index]


def _spelled_out(raw: dict[str, Any]) -> tuple[str, list[str], str]:
    """(question, choices, answer) of a copy whose question reads `Q\\nChoices:\\nA. ...\\nB. ...`."""
    question, _, listed = _text(raw, "question").partition("\nChoices:\n")
    lettered = re.findall(r"^[ \t]*\(?([A-Z])[.):][ \t]*(.*?)[ \t]*$", listed, re.MULTILINE)
    if not lettered:
        raise _Bad("the question has no `Choices:` with lines such as `A. dog`")
    letters, choices = "".join(letter for letter, _ in lettered), [choice for _, choice in lettered]
    if not ascii_uppercase.startswith(letters):
        raise _Bad(f"the choices are lettered {', '.join(letters)}, not A, B, C, ... in order")
    answer = raw.get("answer")
    if isinstance(answer, int) and 0 <= answer < len(choices):
        return question, choices, choices[answer]
    if answer in choices:
        return question, choices, str(answer)
    letter = re.match(r"\s*\(?([A-Z])(?:[.):]|\s*$)", str(answer))
    if letter is None or ord(letter[1]) - ord("A") >= len(choices):
        raise _Bad(f"answer is {answer!r}, neither a choice nor the letter of one")
    return question, choices, choices[ord(letter[1]) - ord("A")]


def _text(raw: dict[str, Any], key: str) -> str:
    value = raw.get(key)
    if not isinstance(value, str) or not value.strip():
        raise _Bad(f"{key} is {'absent' if key not in raw else repr(value)}, not a text")
    return value


def _optional_text(raw: dict[str, Any], key: str) -> str | None:
    return None if raw.get(key) in (None, "") else _text(raw, key)


def _texts(raw: dict[str, Any], key: str) -> list[str]:
    value = raw.get(key)
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise _Bad(f"{key} is {'absent' if key not in raw else repr(value)}, not a list of texts")
    return value


def raw_records(file: Path) -> Iterator[tuple[str, Any]]:
    """Stream (`record N`, `line N` or `row N`; JSON value, or a `_Bad` that says why there is none) of a file.

    Raises:
        Refused: the file as a whole cannot be read.
    """
    with open(file, "rb") as opened:
        beginning = opened.read(_CHUNK).lstrip(b"\xef\xbb\xbf \t\r\n")
    if beginning.startswith(_PARQUET):
        yield from parquet_rows(file)
        return
    try:
        yield from _listed(file) if beginning.startswith(b"[") else _lines(file)
    except UnicodeDecodeError as error:
        raise Refused.because(str(file), f"not UTF-8 text ({error.reason})", "Convert it.") from None


def _listed(file: Path) -> Iterator[tuple[str, Any]]:
    """The elements of a JSON list, of which no more than a few are held."""
    decode, space = json.JSONDecoder().raw_decode, re.compile(r"[ \t\r\n]*")

    def malformed(what: str) -> Refused:
        remedy = "The file may have been cut off: fetch or write it again."
        return Refused.because(f"{file}:record {number + 1}", f"malformed JSON ({what})", remedy)

    def require_nothing_behind(bracket: int) -> None:
        if text[bracket + 1 :].strip() or any(more.strip() for more in iter(lambda: opened.read(_CHUNK), "")):
            what = f"something follows the list of {number:,} records"
            raise Refused.because(str(file), what, "Make it one list, or give two files.")

    with open(file, encoding="utf-8-sig") as opened:
        text, number = opened.read(_CHUNK).lstrip(), 0
        position = 1  # behind the bracket
        while True:
            problem = "the list does not end"
            start = end = space.match(text, position).end()  # type: ignore[union-attr] # it matches nothing, too
            if text.startswith("]", start) and number == 0:
                require_nothing_behind(start)
                return
            try:
                value, end = decode(text, start)
                end = space.match(text, end).end()  # type: ignore[union-attr]
            except (ValueError, RecursionError) as error:  # also a number of too many digits
                problem, end = str(getattr(error, "msg", "nested too deeply")), len(text)
            if end == len(text):  # the element may go on in what is not yet read
                more = opened.read(_CHUNK)
                if not more or len(text) - start > _LONGEST_RECORD:
                    raise malformed(problem)
                text, position = text[start:] + more, 0
                continue
            if text[end] not in ",]":
                raise malformed("a comma is missing behind it")
            number += 1
            yield f"record {number}", value
            if text[end] == "]":
                require_nothing_behind(end)
                return
            position = end + 1


def _lines(file: Path) -> Iterator[tuple[str, Any]]:
    with open(file, encoding="utf-8-sig") as opened:
        for number, line in enumerate(opened, start=1):
            if number == 1 and line.strip() == "{":
                remedy = "Give a JSON list of records, or one record a line."
                raise Refused.because(str(file), "it is one JSON object, not records", remedy)
            if line.strip():
                try:
                    value = json.loads(line)
                except (ValueError, RecursionError) as error:  # also a number of too many digits
                    value = _Bad(f"malformed JSON ({getattr(error, 'msg', 'nested too deeply')})")
                yield f"line {number}", value


def parquet_rows(file: Path, path_only: Collection[str] = ()) -> Iterator[tuple[str, dict[str, Any]]]:
    """Stream (`row N`, row) of a parquet file; of the columns in `path_only`, which hold audio, `path` alone is read.

    Raises:
        Refused: it is broken.
    """
    with _parquet(file) as table:
        columns = [f"{name}.path" if name in path_only else name for name in table.schema_arrow.names]
        number = 0
        for batch in table.iter_batches(batch_size=_ROWS, columns=columns):
            for row in batch.to_pylist():
                number += 1
                yield f"row {number}", row


@contextmanager
def _parquet(file: Path) -> Iterator[Any]:
    """The opened file; whatever proves broken while it is read is refused."""
    import pyarrow  # after the arguments, and only for those who have such a file
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(file, buffer_size=_BUFFER, pre_buffer=False) as table:
            yield table
    except (pyarrow.ArrowException, OSError, ValueError) as error:  # the last one of text that is none
        raise Refused.because(str(file), f"no readable parquet file ({error})", "Fetch it again.") from None


def _number_of_records(file: Path) -> int:
    """Found by reading the whole file, which also meets what is malformed before any work is done."""
    with open(file, "rb") as opened:
        if opened.read(len(_PARQUET)) == _PARQUET:
            with _parquet(file) as table:
                return int(table.metadata.num_rows)
    return sum(1 for _ in raw_records(file))


def _brings_media(file: Path) -> bool:
    """Whether the records hold audio, or paths of it, judged by the first."""
    first = next(iter(raw_records(file)))[1]
    return isinstance(first, dict) and bool(first.get("audio_path") or first.get("audio"))


def _check_paths(annotations: list[Path], media: list[Path]) -> None:
    """Refuse, all at once, what is not there."""
    wanted = "Give train_qa.json, R1-AQA's JSONL or parquet files."
    problems = [Problem(str(file), "there is no such file", wanted) for file in annotations if not file.is_file()]
    wanted = "Give folders that hold the media."
    problems += [Problem(str(folder), "there is no such folder", wanted) for folder in media if not folder.is_dir()]
    if problems:
        raise Refused(problems)


def _parser() -> Options:
    parser = Options(__doc__, "python -m data_prep.avqa")
    add = parser.add_argument
    add("--annotations", required=True, nargs="+", type=Path, metavar="FILE", help="train_qa.json or val_qa.json, "
        "R1-AQA's JSONL lines, or parquet files with embedded audio")  # fmt: skip
    add("--media", nargs="+", type=Path, default=[], metavar="DIR", help="folders that hold the media, at any depth")
    add_preparation_arguments(parser)
    return parser


if __name__ == "__main__":
    sys.exit(main(None))
