"""From records and their media to `manifest.jsonl`, `audio/` and `prep_report.json`: what every preparation shares.

Records are streamed through: whatever their number, only a window of them is in memory. Clips are decoded in worker
processes and get their names when they are whole; a journal remembers each with the file it came from, so that a run
that was killed goes on where it stood, and a file that changed is decoded again. The manifest keeps the order of the
records and gets its name when it is complete.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import os
import re
import sqlite3
import stat
import time
import unicodedata
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import IO, Any

import av
import soxr
from tqdm import tqdm

from data_prep.media import MediaError
from data_prep.workers import PARTIAL, Clip, PassingError, Task, Workers
from r1_aqa_repro.common.console import positive
from r1_aqa_repro.common.errors import Failed, Problem, Refused, is_full_disk, space_left
from r1_aqa_repro.common.files import write_json
from r1_aqa_repro.data.audio import CHANNELS
from r1_aqa_repro.data.questions import AudioQuestion, check_question, question_from_manifest
from r1_aqa_repro.data.records import BadRecord

MANIFEST = "manifest.jsonl"
REPORT = "prep_report.json"
SETTINGS = "prep_settings.json"
FORMATS = ("flac", "wav")
DEFAULT_WORKERS = os.cpu_count() or 1

_JOURNAL = ".journal.sqlite"
_SAVE_EVERY = 0.25  # seconds between commits of the journal: what a kill costs at most
_LINE_ORDER = tuple(entry.name for entry in fields(AudioQuestion))
_SHOWN = 3  # dropped records of each reason in the summary


@dataclass(frozen=True)
class Record:
    """One question on its way to the manifest.

    Attributes:
        fields: the manifest line without `audio_path`: id, question, choices (list), answer, ...; None is left out.
        media: the file, or its bytes where the audio is embedded; None where there is none.
        stem: name of the clip in `audio/`, without its ending (see `safe_stem`); records of one stem share the clip.
        start: where the clip begins in the file; see `media.decode`, as for `seconds` and `cut_over`.
        missing: what was looked for in vain, where `media` is None.
        bad: why this is no record, or None; of a bad one, only the id in `fields` is looked at.
        path_if_lost: `audio_path` under which the record is kept, flagged, when its clip cannot be had; None drops it.
    """

    fields: Mapping[str, Any]
    media: Path | bytes | None = None
    stem: str = ""
    start: float | None = None
    seconds: float | None = None
    cut_over: float | None = None
    missing: str = "no media file"
    bad: str | None = None
    path_if_lost: str | None = None


@dataclass
class Report:
    """What became of the records.

    `dropped` has an id and `details` a text for each one that was dropped, by reason; `flagged` an id and `details` a
    text for each one that was kept without its clip, by flag and by reason.
    """

    records_in: int = 0
    kept: int = 0
    dropped: dict[str, list[str]] = field(default_factory=dict)
    flagged: dict[str, list[str]] = field(default_factory=dict)
    seconds: float = 0.0
    clips_per_second: float = 0.0
    clips_decoded: int = 0  # in this run; the others were there from an earlier one
    audio: dict[str, Any] = field(default_factory=dict)
    details: dict[str, list[str]] = field(default_factory=dict)

    def drop(self, record_id: str, reason: str, detail: str) -> None:
        self.dropped.setdefault(reason, []).append(_printable(record_id))
        self.details.setdefault(reason, []).append(_printable(f"{record_id}: {detail}"))

    def flag(self, record_id: str, reason: str, detail: str) -> str:
        """Note a record that is kept without its clip; returns its flag."""
        flag = "missing_audio" if reason == "missing" else "undecodable"
        self.flagged.setdefault(flag, []).append(_printable(record_id))
        self.details.setdefault(reason, []).append(_printable(f"{record_id}: {detail}"))
        return flag

    @property
    def num_dropped(self) -> int:
        return sum(map(len, self.dropped.values()))

    def keeps(self, minimum: int | float) -> bool:
        """Whether anything, and at least `minimum`, was kept: a number of records, or as a float up to 1.0 a share."""
        if isinstance(minimum, float) and minimum <= 1:
            minimum = math.ceil(round(minimum * self.records_in, 6))  # 0.55 * 100 is a little over 55
        return self.kept > 0 and self.kept >= minimum

    def summary(self, out: Path) -> str:
        """A few lines for the person at the terminal."""
        lines = [f"{self.kept:,} of {self.records_in:,} records kept: {out / MANIFEST}"]
        for reason, details in self.details.items():
            what = "dropped" if reason in self.dropped else "kept without audio"
            lines.append(f"  {what}, {reason}: {len(details):,}")
            lines += [f"    {detail}" for detail in details[:_SHOWN]]
            if len(details) > _SHOWN:
                lines.append(f"    ... and {len(details) - _SHOWN:,} more, all listed in {out / REPORT}")
        if self.audio["clips"]:
            length = self.audio["seconds"]
            lengths = f"{length['min']:.1f} to {length['max']:.1f} s, mean {length['mean']:.1f} s"
            lines.append(f"  {self.audio['clips']:,} clips, {self.audio['hours']:.2f} hours ({lengths})")
        speed = f"{self.seconds:.1f} s ({self.clips_per_second:.1f} a second)"
        lines.append(f"  {self.clips_decoded:,} clips decoded in {speed}")
        return "\n".join(lines)


def prepare(
    records: Iterable[Record],
    out: Path,
    *,
    settings: Mapping[str, Any],
    workers: int,
    channel: str = "first",
    audio_format: str = "flac",
    total: int | None = None,
) -> Report:
    """Make every record's clip, then write the report and the manifest.

    Args:
        records: read once and in order, as a stream.
        out: folder to write to: new, or of a run with the same settings.
        settings: what, beside channel and format, the content of `out` depends on, such as the command's name and
            the annotations' hash (JSON values): a folder made with others is refused.
        workers: number of decoding processes; the result does not depend on it.
        channel: `first` or `mean`, of several.
        audio_format: one of `FORMATS`.
        total: the number of records where it is known, for the progress bar.

    Raises:
        Refused: `out` was made with other settings, or holds something from elsewhere.
        Failed: the disk is full, or another run works in `out`.
        KeyboardInterrupt: what was done is kept, and the same call goes on.
    """
    started = time.perf_counter()
    decoder = f"av {av.__version__}, soxr {soxr.__version__}"
    with _told_of_trouble(out):
        _enter(out, {**settings, "channel": channel, "format": audio_format, "decoder": decoder})
        with closing(_Journal(out / _JOURNAL)) as journal, Workers(workers) as pool:
            for leftover in (out / "audio").glob(f".*{PARTIAL}"):  # of a run that was killed: the journal is ours alone
                leftover.unlink(missing_ok=True)
            run = _Run(out, journal, pool, channel, audio_format)
            with _whole_file(out / MANIFEST) as manifest:
                with tqdm(total=total, unit=" records", disable=None) as bar:
                    run.through(records, manifest, bar, window=8 * workers + 16)
                report = run.report
                report.audio = journal.statistics()
                report.seconds = round(time.perf_counter() - started, 3)
                report.clips_per_second = round(report.clips_decoded / report.seconds, 2)
                write_json(out / REPORT, {entry.name: getattr(report, entry.name) for entry in fields(Report)})
    return report


def add_preparation_arguments(parser: argparse.ArgumentParser) -> None:
    """The options that every preparation has."""
    add = parser.add_argument
    add("--out", required=True, type=Path, metavar="DIR", help="where to write: a new folder, or an interrupted run's")
    add("--workers", type=positive, default=DEFAULT_WORKERS, metavar="N",
        help="decoding processes (default: one a core); the result does not depend on it")  # fmt: skip
    add("--channel", choices=CHANNELS, default="first", help="of several (default: first, as R1-AQA)")
    add("--format", choices=FORMATS, default="flac", help="of the prepared clips, 16 bits (default: flac)")
    add("--min-kept", type=_not_negative, default=0.0, metavar="N",
        help="exit with 3 when fewer records are kept; with a point, up to 1.0: a share (default: 0)")  # fmt: skip


def _not_negative(text: str) -> int | float:
    """An integer stays one: 1 is a record, 1.0 is all of them."""
    if not 0 <= float(text) < math.inf:
        raise argparse.ArgumentTypeError(f"{text} is not a number from 0 on")
    return int(text) if text.isdecimal() else float(text)


def safe_stem(name: str) -> str:
    """A file name, without ending, for `name` alone: unicode and spaces stay, what cannot be in one is replaced."""
    stem = re.sub(r"[/\\\x00-\x1f\x7f\ud800-\udfff]", "_", name).lstrip(".")
    stem = stem.encode()[:160].decode(errors="ignore")
    if stem and stem == name:
        return unicodedata.normalize("NFC", stem)
    return f"{stem}-{hashlib.sha256(name.encode(errors='surrogatepass')).hexdigest()[:8]}"


@dataclass
class _Outcome:
    """What became of a clip; neither `size` nor `reason` is set while it is being made."""

    source: str
    size: int | None = None
    reason: str | None = None
    detail: str = ""

    @property
    def known(self) -> bool:
        return self.size is not None or self.reason is not None


class _Run:
    """One run: the records in its window wait for their clips, and leave in their order."""

    def __init__(self, out: Path, journal: _Journal, pool: Workers, channel: str, audio_format: str):
        self.audio, self.journal, self.pool = out / "audio", journal, pool
        self.channel, self.audio_format = channel, audio_format
        self.report = Report()
        self._making: dict[str, _Outcome] = {}  # by stem

    def through(self, records: Iterable[Record], manifest: IO[str], bar: tqdm, window: int) -> None:
        """Take every record from beginning to end, at most `window` at once."""
        waiting: deque[tuple[Record, str, _Outcome]] = deque()  # record without its media, manifest line, clip
        started = saved = time.perf_counter()
        for record in records:
            waiting.append(self._begin(record))
            self._leave(waiting, window - 1, manifest)
            bar.update(self.report.kept + self.report.num_dropped - bar.n)
            if (now := time.perf_counter()) > saved + _SAVE_EVERY:
                saved = now
                self.journal.save()
                speed = self.report.clips_decoded / (now - started)
                bar.set_postfix_str(f"{speed:.1f} clips/s, {self.report.num_dropped:,} dropped", refresh=False)
        self._leave(waiting, 0, manifest)
        bar.update(self.report.kept + self.report.num_dropped - bar.n)

    def _begin(self, record: Record) -> tuple[Record, str, _Outcome]:
        """Check a record and see to it that its clip is there or in the making: (record, manifest line, clip)."""
        self.report.records_in += 1
        record_id = str(record.fields["id"])
        bare = replace(record, media=None)
        try:
            if record.bad is not None:
                raise MediaError("bad record", record.bad)
            line = _manifest_line(record.fields, f"audio/{record.stem}.{self.audio_format}")
            if record.path_if_lost is not None:
                _manifest_line(record.fields, record.path_if_lost)
            if not self.journal.is_new(record_id):
                raise MediaError("bad record", "an earlier record has the same id")
            if record.media is None:
                raise MediaError("missing", record.missing)
            return bare, line, self._clip(record, record.media)
        except MediaError as error:
            return bare, "", _Outcome("", reason=error.reason, detail=error.detail)

    def _clip(self, record: Record, media: Path | bytes) -> _Outcome:
        """The record's clip: shared with an earlier record, left by an earlier run, or given to the workers.

        Raises:
            MediaError: the file is gone, or another clip has the name.
        """
        source = _signature(record, media)
        outcome, is_used = self.journal.find(record.stem)
        if record.stem in self._making:
            outcome, is_used = self._making[record.stem], True
        if outcome is not None and is_used:
            if outcome.source != source:
                raise MediaError("bad record", f"audio/{record.stem} is already the clip of an earlier record's media")
            return outcome
        target = self.audio / f"{record.stem}.{self.audio_format}"
        if outcome is not None and outcome.source == source and (outcome.reason or outcome.size == _size(target)):
            self.journal.use(record.stem)
            return outcome
        self._making[record.stem] = outcome = _Outcome(source)
        self.pool.submit(Task(target, media, record.start, record.seconds, self.channel, record.cut_over))
        return outcome

    def _leave(self, waiting: deque[tuple[Record, str, _Outcome]], at_most: int, manifest: IO[str]) -> None:
        """Let the foremost records go, in order, until no more than `at_most` wait and the foremost is not ready."""
        while waiting and (len(waiting) > at_most or waiting[0][2].known):
            record, line, outcome = waiting[0]
            if not outcome.known:
                self._collect()
            else:
                waiting.popleft()
                if outcome.reason is None:
                    self.report.kept += 1
                    manifest.write(line)
                elif record.path_if_lost is not None and outcome.reason != "bad record":
                    flag = self.report.flag(str(record.fields["id"]), outcome.reason, outcome.detail)
                    self.report.kept += 1
                    manifest.write(_manifest_line({**record.fields, "flags": [flag]}, record.path_if_lost))
                else:
                    self.report.drop(str(record.fields["id"]), outcome.reason, outcome.detail)

    def _collect(self) -> None:
        """Wait for the workers and note what they made."""
        for task, result in self.pool.finished():
            outcome = self._making.pop(task.target.stem)
            if isinstance(result, MediaError):
                outcome.reason, outcome.detail = result.reason, result.detail
                task.target.unlink(missing_ok=True)  # what a file that has changed gave before
            else:
                outcome.size = result.size
                self.report.clips_decoded += 1
            clip = result if isinstance(result, Clip) else None
            self.journal.put(task.target.stem, outcome, clip, is_final=not isinstance(result, PassingError))


class _Journal:
    """What is known of each clip, in a file that a kill leaves whole; and the ids of this run. Memory stays flat.

    Raises:
        sqlite3.OperationalError: another process has it open, or the disk is full.
    """

    def __init__(self, path: Path):
        self._database = sqlite3.connect(path, timeout=1)
        self._database.executescript("""
            PRAGMA locking_mode = EXCLUSIVE;
            PRAGMA journal_mode = WAL;
            PRAGMA synchronous = NORMAL;
            PRAGMA temp_store = FILE;
            CREATE TABLE IF NOT EXISTS clips (
                stem TEXT PRIMARY KEY, source TEXT, is_used INTEGER, reason TEXT, detail TEXT,
                size INTEGER, seconds REAL, peak REAL, rms REAL, is_final INTEGER
            ) WITHOUT ROWID;
            CREATE TEMP TABLE ids (id TEXT PRIMARY KEY) WITHOUT ROWID;
            DELETE FROM clips WHERE NOT is_final;
            UPDATE clips SET is_used = 0 WHERE is_used;
        """)

    def is_new(self, record_id: str) -> bool:
        """Whether this run meets the id for the first time."""
        return self._database.execute("INSERT OR IGNORE INTO ids VALUES (?)", (record_id,)).rowcount == 1

    def find(self, stem: str) -> tuple[_Outcome | None, bool]:
        """What is known of a clip, and whether a record of this run has it."""
        query = "SELECT source, size, reason, detail, is_used FROM clips WHERE stem = ?"
        row = self._database.execute(query, (stem,)).fetchone()
        return (None, False) if row is None else (_Outcome(*row[:4]), bool(row[4]))

    def use(self, stem: str) -> None:
        self._database.execute("UPDATE clips SET is_used = 1 WHERE stem = ?", (stem,))

    def put(self, stem: str, outcome: _Outcome, clip: Clip | None, is_final: bool) -> None:
        """Note what became of a clip: for this run, and for later ones if it `is_final`."""
        heard = (None, None, None) if clip is None else (clip.seconds, clip.peak, clip.rms)
        row = (stem, outcome.source, 1, outcome.reason, _printable(outcome.detail), outcome.size, *heard, is_final)
        self._database.execute(f"INSERT OR REPLACE INTO clips VALUES ({','.join('?' * len(row))})", row)

    def save(self) -> None:
        self._database.commit()

    def close(self) -> None:
        try:
            self._database.commit()
        finally:
            self._database.close()

    def statistics(self) -> dict[str, Any]:
        """Number, hours and bytes of this run's clips; least, mean and greatest length, peak and loudness."""
        self._database.create_function("decibels", 1, lambda rms: 20 * math.log10(rms), deterministic=True)
        columns = {"seconds": "seconds", "peak": "peak", "rms_decibels": "decibels(rms)"}
        measures = ", ".join(f"min({column}), avg({column}), max({column})" for column in columns.values())
        clips = "(SELECT * FROM clips WHERE is_used AND reason IS NULL ORDER BY stem)"
        query = f"SELECT count(*), sum(seconds), sum(size), {measures} FROM {clips}"
        number, seconds, size, *found = self._database.execute(query).fetchone()
        if not number:
            return {"clips": 0}
        statistics = {"clips": number, "hours": round(seconds / 3600, 4), "bytes": size}
        for index, name in enumerate(columns):
            least, mean, greatest = (round(value, 3) for value in found[3 * index : 3 * index + 3])
            statistics[name] = {"min": least, "mean": mean, "max": greatest}
        return statistics


def _manifest_line(record: Mapping[str, Any], audio_path: str) -> str:
    """The line of a good record.

    Raises:
        MediaError: training could not read the line; its reason is "bad record".
    """
    line = {**record, "audio_path": audio_path}
    try:
        question = question_from_manifest({key: value for key, value in line.items() if value is not None}, Path())
        check_question(question)
        if len(set(question.choices)) < len(question.choices):
            line["flags"] = [*question.flags, "duplicate_choices"]
        text = json.dumps(
            {key: line[key] for key in _LINE_ORDER if line.get(key) not in (None, [], ())}, ensure_ascii=False
        )
        text.encode()
    except BadRecord as bad:
        raise MediaError("bad record", bad.what) from None
    except UnicodeEncodeError:
        raise MediaError("bad record", "a text in it is no valid Unicode (half of a surrogate pair)") from None
    return text + "\n"


def _signature(record: Record, media: Path | bytes) -> str:
    """Changes when the clip would: by the file's path, size and time, or by the bytes, and by the part wanted."""
    part = f"{record.start} {record.seconds} {record.cut_over}"
    if isinstance(media, bytes):
        return f"{hashlib.sha256(media).hexdigest()} {part}"
    try:
        found = media.stat()
    except OSError as error:
        raise MediaError("missing", f"{media} cannot be found ({error.strerror})") from None
    if not stat.S_ISREG(found.st_mode):  # reading a pipe would never end
        raise MediaError("missing", f"{media} is not a file")
    return f"{_printable(os.path.abspath(media))} {found.st_size} {found.st_mtime_ns} {part}"


def _size(path: Path) -> int | None:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return None


def _printable(text: str) -> str:
    """File names may hold bytes that are no text: shown escaped, so that a report can be written."""
    return text.encode("utf-8", "backslashreplace").decode()


def _enter(out: Path, settings: dict[str, Any]) -> None:
    """Make the folder or check that it is this preparation's own.

    Raises:
        Refused: it is not.
    """
    file, audio = out / SETTINGS, out / "audio"
    if out.exists() and not out.is_dir():
        raise Refused.because(str(out), "it is not a folder", "Give a folder that is new or from the same command.")
    if file.is_file():
        before = json.loads(file.read_text(encoding="utf-8"))
        differing = [
            Problem(str(file), f"{key} was {before.get(key)!r}, now it is {settings.get(key)!r}", "Give another --out.")
            for key in sorted({*before, *settings})
            if before.get(key) != settings.get(key)
        ]
        if differing:
            raise Refused(differing)
    elif (out / MANIFEST).exists() or (audio.is_dir() and any(audio.iterdir())):
        raise Refused.because(
            str(out), "it holds a manifest or clips that were not prepared by this command", "Give another --out."
        )
    audio.mkdir(parents=True, exist_ok=True)
    write_json(file, settings)


@contextmanager
def _whole_file(path: Path) -> Iterator[IO[str]]:
    """A text file that gets its name when it is complete."""
    temporary = path.with_name(f".{path.name}{PARTIAL}")
    try:
        with open(temporary, "w", encoding="utf-8", newline="\n") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


@contextmanager
def _told_of_trouble(out: Path) -> Iterator[None]:
    """Say plainly what cannot be read or written, instead of what a library raised."""
    try:
        yield
    except (OSError, sqlite3.Error) as error:
        if is_full_disk(error) or "disk is full" in str(error):
            raise Failed(
                f"{out} could not be written: the disk is full ({space_left(_existing(out))}). What was done is kept: "
                "free some space and give the same command again."
            ) from error
        if isinstance(error, OSError):
            raise Failed(f"{error.filename or out}: {error.strerror or error}") from error
        if "locked" in str(error):
            raise Failed(f"{out}: another run is working in this folder") from error
        remedy = "Delete it, and all clips are made anew."
        raise Failed(f"{out / _JOURNAL} cannot be used ({error}). {remedy}") from error


def _existing(path: Path) -> Path:
    """The path, or the nearest folder above it that exists."""
    return next(folder for folder in (path, *path.absolute().parents) if folder.exists())
