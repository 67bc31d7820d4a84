"""Make `manifest.jsonl`, `audio/` and `prep_report.json` of records and their media: what all preparations share.

Of the records only a window is in memory, whatever their number, and the ids. Clips are decoded in worker processes and
get their names when they are whole; the journal remembers each with the file it came from, so that a run that was
killed goes on where it stopped, and a file that changed is decoded again. The manifest keeps the order of the records
and gets its name when it is complete.
"""

from __future__ import annotations

import argparse
import hashlib
import math
import os
import re
import time
import unicodedata
from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import IO, Any

import av
import soxr
from tqdm import tqdm

from data_prep.folder import REMEDY, REPORT, SETTINGS, Account, check_own, printable
from data_prep.journal import Outcome, facts_of, outcomes_of
from data_prep.media import BAD_RECORD, TOO_LONG, Excerpt, MediaError
from data_prep.workers import PARTIAL, PassingError, Task, Workers, add_workers_argument
from r1_aqa_repro.common.claim import claim
from r1_aqa_repro.common.distributed import num_cores
from r1_aqa_repro.common.errors import failing_plainly
from r1_aqa_repro.common.files import output_folder, require_regular, whole_file, write_json
from r1_aqa_repro.common.record_file import RecordFile
from r1_aqa_repro.data.audio import CHANNELS
from r1_aqa_repro.data.questions import HEARD_SECONDS, LONGER, AudioQuestion, check_question, manifest_line
from r1_aqa_repro.data.records import BadRecord, Rejected

MANIFEST = "manifest.jsonl"
FORMATS = ("flac", "wav")

_JOURNAL = ".journal.jsonl"
_SAVE_EVERY = 0.25  # seconds between additions to the journal: what a kill costs at most


@dataclass(frozen=True)
class Record:
    """One question on its way to the manifest.

    Attributes:
        question: of which `audio_path` is not looked at.
        source: what the clip is made from; None if nothing was found.
        stem: name of the clip in `audio/`, without its ending (see `safe_stem`); records of one stem share the clip.
        missing: what was looked for in vain, if `source` is None.
        path_if_lost: `audio_path` under which the record is kept, flagged, if it gets no clip; None drops it.
    """

    question: AudioQuestion
    source: Excerpt | None
    stem: str
    missing: str = "no media file"
    path_if_lost: str | None = None


@dataclass(frozen=True)
class LeftOut:
    """A sound record that is not for the manifest: its id, as it stood, why in a few words, and what it is."""

    id: str
    raw: Any
    reason: str
    detail: str


@dataclass
class Report(Account):
    """The account of a preparation of audio, and what it made; the content of prep_report.json."""

    seconds: float = 0.0
    clips_per_second: float = 0.0
    clips_decoded: int = 0  # in this run; the others were there from an earlier one
    audio: dict[str, Any] = field(default_factory=dict)

    def keeps(self, minimum: int | float) -> bool:
        """Whether anything, and at least `minimum`, was kept: a number of records, or as a float up to 1.0 a share."""
        if isinstance(minimum, float) and minimum <= 1:
            minimum = math.ceil(round(minimum * self.records_in, 6))  # 0.55 * 100 is a little over 55
        return self.kept > 0 and self.kept >= minimum

    def summary(self, out: Path) -> str:
        """A few lines for the person at the terminal."""
        lines = [f"{self.kept:,} of {self.records_in:,} records kept: {out / MANIFEST}", *self.losses(out)]
        if self.audio["clips"]:
            length = self.audio["seconds"]
            lengths = f"{length['min']:.1f} to {length['max']:.1f} s, mean {length['mean']:.1f} s"
            lines.append(f"  {self.audio['clips']:,} clips, {self.audio['hours']:.2f} hours ({lengths})")
        speed = f"{self.seconds:.1f} s ({self.clips_per_second:.1f} a second)"
        lines.append(f"  {self.clips_decoded:,} clips decoded in {speed}")
        return "\n".join(lines)


@dataclass(frozen=True)
class Making:
    """How clips are made.

    Attributes:
        workers: number of decoding processes; the result does not depend on it.
        channel: `first` or `mean`, of several.
        format: one of `FORMATS`.
        seconds: the length that every clip is cut or filled up to, see `Task`; None leaves each its own.
    """

    workers: int = field(default_factory=num_cores)
    channel: str = "first"
    format: str = "flac"
    seconds: float | None = None

    @classmethod
    def of(cls, arguments: argparse.Namespace) -> Making:
        """What the options of `add_preparation_arguments` say."""
        return cls(arguments.workers, arguments.channel, arguments.format)


DEFAULT = Making()


def prepare(
    records: Iterable[Record | Rejected | LeftOut],
    out: Path,
    making: Making,
    settings: Mapping[str, Any],
    total: int | None = None,
    flag_longer: bool = False,
) -> Report:
    """Make every record's clip, then write the report and the manifest.

    Args:
        records: read once and in order, as a stream.
        out: folder to write to: new, or of a run with the same settings.
        making: how the clips are made.
        settings: what, beside channel, format and seconds, the content of `out` depends on, such as the command's name
            and the annotations' hash (JSON values): a folder made with others is refused.
        total: the number of records if it is known, for the progress bar.
        flag_longer: flag the questions whose clips go on after what is heard of them, see `questions.HEARD_SECONDS`.

    Raises:
        Refused: `out` was made with other settings, holds something from elsewhere, or another run works in it.
        Failed: the disk is full.
        KeyboardInterrupt: what was done is kept, and the same call goes on.
    """
    started = time.perf_counter()
    decoder = f"av {av.__version__}, soxr {soxr.__version__}"
    kept = "What was done is kept: mend that and give the same command again."
    with failing_plainly(out, kept):
        settings = {**settings, "channel": making.channel, "format": making.format, "decoder": decoder}
        if making.seconds is not None:
            settings["seconds"] = making.seconds
        check_own(out, settings, [out / MANIFEST, *(out / "audio").glob("*")])
        claim(out / SETTINGS, settings, REMEDY)
        (out / "audio").mkdir(exist_ok=True)
        with RecordFile(out / _JOURNAL, REMEDY) as journal, Workers(making.workers) as pool:
            for leftover in (out / "audio").glob(f".*{PARTIAL}"):  # of a run that was killed: the journal is ours alone
                leftover.unlink(missing_ok=True)
            with whole_file(out / MANIFEST) as manifest:
                with tqdm(total=total, unit=" records", disable=None) as bar:
                    run = _Run(out, journal, pool, making, manifest, bar, flag_longer)
                    run.through(records, window=8 * making.workers + 16)
                report = run.report
                report.audio = facts_of([one.clip for one in run.outcomes.values() if one.clip])
                report.seconds = round(time.perf_counter() - started, 3)
                report.clips_per_second = round(report.clips_decoded / report.seconds, 2)
                write_json(out / REPORT, asdict(report))
    return report


def add_preparation_arguments(parser: argparse.ArgumentParser) -> None:
    """The options that every preparation has."""
    out = "where to write: a new folder, or an interrupted run's"
    parser.add_argument("--out", required=True, type=output_folder, metavar="DIR", help=out)
    add_making_arguments(parser)


def add_making_arguments(parser: argparse.ArgumentParser) -> None:
    """The options that say how clips are made, and how many."""
    add = parser.add_argument
    add_workers_argument(parser)
    add("--channel", choices=CHANNELS, default="first", help="of several (default: first, as R1-AQA)")
    add("--format", choices=FORMATS, default="flac", help="of the prepared clips, 16 bits (default: flac)")
    add("--min-kept", type=_not_negative, default=0.0, metavar="N",
        help="exit with 3 if fewer records are kept; with a point, up to 1.0: a share (default: 0)")  # fmt: skip


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


@dataclass(frozen=True)
class _Waiting:
    """A record without its media, None if it is a bad one, and what becomes of its clip."""

    id: str
    outcome: Outcome
    record: Record | None = None


class _Run:
    """One run: the records in its window wait for their clips, and leave in their order."""

    def __init__(
        self,
        out: Path,
        journal: RecordFile,
        pool: Workers,
        making: Making,
        manifest: IO[bytes],
        bar: tqdm,
        flag_longer: bool,
    ):
        self.audio, self.journal, self.pool, self.making = out / "audio", journal, pool, making
        self.manifest, self.bar, self.flag_longer = manifest, bar, flag_longer
        self.report = Report()
        self.outcomes: dict[str, Outcome] = {}  # of the clips that this run's records have, by stem
        self._earlier = outcomes_of(journal.read())
        self._ids: set[str] = set()
        self._waiting: deque[_Waiting] = deque()
        self._unsaved: list[dict[str, Any]] = []

    def through(self, records: Iterable[Record | Rejected | LeftOut], window: int) -> None:
        """Take every record from beginning to end, at most `window` at once."""
        started = saved = time.perf_counter()
        try:
            for record in records:
                self._waiting.append(self._begin(record))
                self._leave(window - 1)
                if (now := time.perf_counter()) > saved + _SAVE_EVERY:
                    saved = now
                    self._save()
                    speed, dropped = self.report.clips_decoded / (now - started), self.bar.n - self.report.kept
                    self.bar.set_postfix_str(f"{speed:.1f} clips/s, {dropped:,} dropped", refresh=False)
            self._leave(0)
        finally:
            self._save()

    def _begin(self, record: Record | Rejected | LeftOut) -> _Waiting:
        """Check a record and see to it that its clip is there or in the making."""
        self.report.records_in += 1
        if isinstance(record, LeftOut):
            return _Waiting(record.id, Outcome("", reason=record.reason, detail=record.detail))
        if isinstance(record, Rejected):
            return _Waiting(record.id, Outcome("", reason=BAD_RECORD, detail=record.problem.what))
        record_id, bare = record.question.id, replace(record, source=None)
        try:
            check_question(record.question)
            if record_id in self._ids:
                raise BadRecord("an earlier record has the same id", "Make ids unique.")
            self._ids.add(record_id)
            if record.source is None:
                raise MediaError("missing", record.missing)
            return _Waiting(record_id, self._clip(record.stem, record.source), bare)
        except BadRecord as bad:
            return _Waiting(record_id, Outcome("", reason=BAD_RECORD, detail=bad.what))
        except MediaError as error:
            return _Waiting(record_id, Outcome("", reason=error.reason, detail=error.detail), bare)

    def _clip(self, stem: str, source: Excerpt) -> Outcome:
        """A clip: shared with an earlier record, left by an earlier run, or given to the workers.

        Raises:
            BadRecord: another clip has the name.
            MediaError: the file is gone.
        """
        signature = _signature(source)
        if (outcome := self.outcomes.get(stem)) is not None:
            if outcome.source != signature:
                raise BadRecord(f"audio/{stem} is already the clip of an earlier record's media", "Name them apart.")
            return outcome
        target = self.audio / f"{stem}.{self.making.format}"
        outcome = self._earlier.get(stem)
        if outcome is None or outcome.source != signature or (outcome.clip and outcome.clip.size != _size(target)):
            outcome = Outcome(signature)
            self.pool.submit(Task(target, source, self.making.channel, self.making.seconds))
        self.outcomes[stem] = outcome
        return outcome

    def _leave(self, at_most: int) -> None:
        """Let records go in their order, until at most `at_most` wait and the clip of the first is not ready."""
        while self._waiting and (len(self._waiting) > at_most or self._waiting[0].outcome.known):
            if not self._waiting[0].outcome.known:
                self._collect()
                continue
            self.bar.update()
            one = self._waiting.popleft()
            record, reason, detail = one.record, one.outcome.reason, one.outcome.detail
            if record is not None and not reason:
                flags = [LONGER] if self.flag_longer and _is_longer(one.outcome) else []
                for longer in flags:
                    self.report.flagged.setdefault(longer, []).append(printable(one.id))
                line = _line(record.question, f"audio/{record.stem}.{self.making.format}", *flags)
            elif record is not None and record.path_if_lost is not None and reason != TOO_LONG:
                flag = "missing_audio" if reason == "missing" else "undecodable"
                self.report.lose(one.id, reason, detail, flag)
                line = _line(record.question, record.path_if_lost, flag)
            else:
                self.report.lose(one.id, reason, detail)
                continue
            self.report.kept += 1
            self.manifest.write(line.encode())

    def _collect(self) -> None:
        """Wait for the workers and note what they made."""
        for task, result in self.pool.finished():
            stem = task.target.stem
            outcome = self.outcomes[stem]
            if isinstance(result, MediaError):
                outcome.reason, outcome.detail = result.reason, printable(result.detail)
                task.target.unlink(missing_ok=True)  # what a file that has changed gave before
            else:
                outcome.clip = result
                self.report.clips_decoded += 1
            if not isinstance(result, PassingError):
                self._unsaved.append({"stem": stem, **asdict(outcome)})

    def _save(self) -> None:
        self.journal.append(self._unsaved)
        self._unsaved = []


def _line(question: AudioQuestion, audio_path: str, *flags: str) -> str:
    if len(set(question.choices)) < len(question.choices):
        flags = (*flags, "duplicate_choices")
    return manifest_line(replace(question, flags=tuple(dict.fromkeys((*question.flags, *flags)))), audio_path)


def _is_longer(outcome: Outcome) -> bool:
    return outcome.clip is not None and outcome.clip.seconds > HEARD_SECONDS


def _signature(source: Excerpt) -> str:
    """Changes when the clip would: by the file's path, size and time, or by the bytes, and by the part wanted."""
    part = f"{source.start} {source.seconds} {source.cut_over}"
    if isinstance(source.media, bytes):
        return f"{hashlib.sha256(source.media).hexdigest()} {part}"
    try:
        found = source.media.stat()
        require_regular(found, str(source.media))
    except OSError as error:
        raise MediaError("missing", f"{source.media} cannot be found ({error.strerror})") from None
    return f"{printable(os.path.abspath(source.media))} {found.st_size} {found.st_mtime_ns} {part}"


def _size(path: Path) -> int | None:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return None
