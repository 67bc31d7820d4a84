"""Make a manifest of a benchmark's questions and the clips that people have: what all preparations of benchmarks share.

Questions are read from JSON or parquet files, whose clips may be embedded; clips are found in folders, tar archives and
parquet files. Every question stays in the manifest: one whose clip is missing or cannot be used is flagged, and an
evaluation counts it as wrong. What the records look like, and which are left out, each benchmark's command says.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any

from data_prep import pipeline
from data_prep.archives import is_tar, unpack
from data_prep.media import TOO_LONG, Excerpt
from data_prep.media_index import MEDIA_ENDINGS, MediaIndex, composed, unreadable_folder
from data_prep.pipeline import DEFAULT, LeftOut, Making, Record, Report, add_preparation_arguments, safe_stem
from r1_aqa_repro.common.console import Options, say
from r1_aqa_repro.common.errors import EXIT_DONE, EXIT_LOSSES, Problem, Refused
from r1_aqa_repro.common.files import as_json, sha256_of, unreadable, write_atomically
from r1_aqa_repro.data.audio import HEARD_SECONDS
from r1_aqa_repro.data.benchmark_records import NOT_ASKED, NotAsked, only_clip
from r1_aqa_repro.data.questions import LONGER, AudioQuestion, check_question
from r1_aqa_repro.data.records import (
    BadRecord,
    Rejected,
    id_of,
    is_parquet,
    no_records,
    parse_records,
    read_records,
)
from r1_aqa_repro.data.versions import UNKNOWN, version_of

SOURCE = "source.jsonl"

AUDIO_COLUMNS = ("context", "audio")
_UNPACKED = ".unpacked"
_LOST = "audio/missing"


def reading(
    question_from: Callable[[dict[str, Any], Path], AudioQuestion],
) -> Callable[[dict[str, Any]], tuple[AudioQuestion, str | None]]:
    """`Benchmark.read` of records that name their clip as `benchmark_records.clip_paths` finds it."""

    def read(raw: dict[str, Any]) -> tuple[AudioQuestion, str | None]:
        question = question_from(raw, Path())
        check_question(question)
        return question, only_clip(raw)

    return read


def _named(row: dict[str, Any]) -> tuple[str, str | None]:
    return str(row.get("id")), only_clip(row)


@dataclass(frozen=True)
class Benchmark:
    """What is particular to a benchmark.

    Attributes:
        command: the module that prepares it.
        name: what it is called, to stand in a sentence.
        files: what `--questions` takes.
        read: the question of a record, without the path of its clip, and that path as it stands, or None. It raises
            BadRecord, and NotAsked for a record that is to be left out.
        named: id and path, as they stand, of a row that holds a clip; it raises BadRecord.
        versions: of the published files, see `versions.version_of`; if none are known, none is recorded.
        part: what of it is kept, to stand after "with", if not all is: clips that are not heard whole are left out.
        full_account: questions about clips that are not heard whole are flagged, and bad records named by file and
            line. What MMAU's manifests and reports say stays what it was.
    """

    command: str
    name: str
    files: str
    read: Callable[[dict[str, Any]], tuple[AudioQuestion, str | None]]
    named: Callable[[dict[str, Any]], tuple[str, str | None]] = _named
    versions: Collection[str] = ()
    part: str | None = None
    full_account: bool = True


@dataclass(frozen=True)
class Asked:
    """A record of a benchmark.

    Attributes:
        question: without the path of its clip, and without version.
        raw: the record as it stood, without audio.
        audio_id: path of the clip as it stands in the file, or None.
    """

    question: AudioQuestion
    raw: Any
    audio_id: str | None

    @property
    def path(self) -> PurePosixPath:
        """What the clip is looked for under: `audio_id`, else the id."""
        return PurePosixPath(composed(self.audio_id or self.question.id))

    @property
    def clip(self) -> str:
        """Name, without ending, by which the clip is looked for."""
        return PurePosixPath(self.audio_id).stem if self.audio_id else self.question.id


Listed = Asked | LeftOut | Rejected


class _Names:
    """The names of the clips that questions ask for, of which several in different folders may have the same.

    Attributes:
        shared: names that clips of several paths have, and that tell nothing therefore.
        wanted: names by which alone a clip can be known.
    """

    def __init__(self, records: Iterable[Listed]):
        all_asked = [asked for asked in records if isinstance(asked, Asked)]
        paths: dict[str, set[PurePosixPath]] = defaultdict(set)
        for asked in all_asked:
            paths[composed(asked.clip)].add(asked.path)
        self.shared = {name for name, found in paths.items() if len(found) > 1}
        self.wanted = {*paths, *(composed(asked.question.id) for asked in all_asked)} - self.shared
        self._paths = {str(path) for name in self.shared for path in paths[name]}

    def looked_for(self, asked: Asked) -> str:
        """The path if the name alone tells nothing, else the name."""
        return str(asked.path) if composed(asked.clip) in self.shared else asked.clip

    def unpacked(self, member: str) -> str | None:
        """The file name for a member of an archive: its own, or that of the only clip that its path fits."""
        path = PurePosixPath(composed(member))
        if path.suffix.lower() not in MEDIA_ENDINGS:
            return None
        if path.stem in self.wanted:
            return path.name
        ends = ("/".join(path.parts[start:]) for start in range(len(path.parts)))
        nearest = next((end for end in ends if end in self._paths), None)
        return nearest and f"{safe_stem(nearest)}{path.suffix}"


def run(benchmark: Benchmark, doc: str | None, argv: list[str]) -> int:
    """Run the command of a benchmark, whose module's docstring is `doc`; returns its exit code."""
    arguments = _parser(benchmark, doc).parse_args(argv)
    report = prepare(benchmark, arguments.questions, arguments.audio, arguments.out, Making.of(arguments))
    has_audio = bool(arguments.audio) or any(map(is_parquet, arguments.questions))
    lost = report.flagged.keys() - {LONGER} if has_audio else set()
    has_losses = lost or report.dropped.keys() - {*NOT_ASKED, TOO_LONG}
    return EXIT_LOSSES if has_losses or not report.keeps(arguments.min_kept) else EXIT_DONE


def prepare(
    benchmark: Benchmark, questions: list[Path], audio: list[Path], out: Path, making: Making = DEFAULT
) -> Report:
    """Write the manifest of a benchmark's questions, and the clips that it names, to a folder; see `_parser`.

    Raises:
        Refused: a file is absent or unreadable, an archive cannot be trusted, `out` was made from other questions, or
            there are no clips, and what is kept depends on them.
        Failed: see `pipeline.prepare`.
    """
    _check_sources(benchmark, questions, audio)
    by_file = _listed(benchmark, questions)
    listed = [record for found in by_file.values() for record in found]
    if not listed:
        raise no_records(questions[0])
    settings: dict[str, Any] = {"command": benchmark.command, "questions": [sha256_of(file) for file in questions]}
    if benchmark.part is not None:
        settings["part"] = benchmark.part
    version = _version(benchmark, questions, listed) if benchmark.versions else None
    stream = _records(benchmark, by_file, audio, version, out / _UNPACKED, making.format)
    try:
        report = pipeline.prepare(stream, out, making, settings, len(listed), benchmark.full_account)
    finally:
        shutil.rmtree(out / _UNPACKED, ignore_errors=True)
    write_atomically(out / SOURCE, "".join(as_json(one.raw, default=str, ensure_ascii=True) + "\n" for one in listed))
    say("\n".join([report.summary(out), *_to_be_known(benchmark, report)]))
    return report


def _listed(benchmark: Benchmark, questions: Sequence[Path]) -> dict[Path, list[Listed]]:
    """Every record of the files."""

    def parse(raw: dict[str, Any], where: str) -> Asked | LeftOut:
        try:
            question, audio_id = benchmark.read(raw)
        except NotAsked as not_asked:
            return LeftOut(id_of(raw), raw, not_asked.reason, not_asked.what)
        return Asked(question, raw, audio_id)

    listed: dict[Path, list[Listed]] = {file: [] for file in questions}
    first_seen: dict[str, str] = {}
    for file in questions:
        for where, record in parse_records(file, parse, path_only=AUDIO_COLUMNS):
            if benchmark.full_account:
                record = _placed(record, f"{file.name}:{where}", first_seen)
            listed[file].append(record)
    return listed


def _placed(record: Listed, place: str, first_seen: dict[str, str]) -> Listed:
    """A bad record with its place in what is wrong with it, or any other; bad is also one whose id another had."""
    if isinstance(record, Asked):
        question_id = record.question.id
        first = first_seen.setdefault(composed(question_id), place)
        if first == place:
            return record
        problem = Problem(place, f"id {question_id!r} was already used at {first}", "Make ids unique.")
        record = Rejected(question_id, record.raw, problem)
    if isinstance(record, Rejected):
        return replace(record, problem=replace(record.problem, what=f"{place}: {record.problem.what}"))
    return record


def _version(benchmark: Benchmark, questions: Sequence[Path], listed: Sequence[Listed]) -> str:
    good = [record.question for record in listed if isinstance(record, Asked)]
    version = version_of(good) if len(good) == len(listed) else UNKNOWN
    if version in benchmark.versions:
        say(f"{benchmark.name}, version {version}")
        return version
    names = ", ".join(file.name for file in questions)
    say(f"warning: {names} is no published version of {benchmark.name}: recorded as version {UNKNOWN}")
    return UNKNOWN


def _to_be_known(benchmark: Benchmark, report: Report) -> Iterator[str]:
    """What whoever reports figures on the manifest must say."""
    if longer := len(report.flagged.get(LONGER, [])):
        heard = f"{HEARD_SECONDS:.0f} s"
        yield f"  clips of {longer:,} questions go on after {heard}, of which Qwen2-Audio hears no more: flag {LONGER}"
    if benchmark.part is not None:
        yield f"  this is the part of {benchmark.name} with {benchmark.part}: its score is not that of {benchmark.name}"


def _records(
    benchmark: Benchmark,
    by_file: Mapping[Path, Sequence[Listed]],
    audio: Sequence[Path],
    version: str | None,
    unpacked: Path,
    audio_format: str,
) -> Iterator[Record | Rejected | LeftOut]:
    """Each question with its clip, ready for `pipeline.prepare`; archives are unpacked to a folder first."""
    names = _Names(record for listed in by_file.values() for record in listed)
    folders = [source if os.path.isdir(source) else _unpack(benchmark, source, unpacked, names) for source in audio]
    index = MediaIndex(folders)
    for file, listed in by_file.items():
        has_audio = is_parquet(file)
        embedded = (_audio_bytes(row) for _, row in read_records(file)) if has_audio else (None for _ in listed)
        for record, own in zip(listed, embedded, strict=True):
            if not isinstance(record, Asked):
                yield record
                continue
            stem = safe_stem(names.looked_for(record))
            media = own if own is not None else _find(record, folders, index, names)
            missing = f"no file is named {names.looked_for(record)}" if audio else "no --audio was given"
            lost = f"{_LOST}/{stem}.{audio_format}"  # no folder of ours: nothing is ever there
            if record.audio_id and not audio and not has_audio:
                lost = record.audio_id
            source_of_clip = None if media is None else Excerpt(media, is_heard_whole=benchmark.part is not None)
            yield Record(replace(record.question, version=version), source_of_clip, stem, missing, lost)


def _find(asked: Asked, folders: Sequence[Path], index: MediaIndex, names: _Names) -> Path | None:
    """By `audio_id` as it stands below a folder, else by its name, else by the question's id.

    A name that clips of several paths have counts only if an archive was unpacked by these.
    """
    path = asked.audio_id and PurePosixPath(asked.audio_id)
    if path and not path.is_absolute() and ".." not in path.parts:
        for folder in folders:
            if os.path.isfile(folder / path):  # Path.is_file raises if a name is too long to be one
                return folder / path
    by_name = index[safe_stem(str(asked.path)) if composed(asked.clip) in names.shared else asked.clip]
    if by_name is not None or composed(asked.question.id) in names.shared:
        return by_name
    return index[asked.question.id] or index[safe_stem(asked.question.id)]  # the latter out of a parquet file


def _unpack(benchmark: Benchmark, archive: Path, unpacked: Path, names: _Names) -> Path:
    """Write the archive's clips that are wanted to a folder whose name changes when the archive does."""
    say(f"unpacking {archive}")
    found = archive.stat()
    state = f"{archive.absolute()} {found.st_size} {found.st_mtime_ns}"
    folder = unpacked / hashlib.sha256(os.fsencode(state)).hexdigest()[:16]
    if is_parquet(archive):
        number = _unpack_parquet(benchmark, archive, folder, names)
    else:
        number = unpack(archive, folder, names.unpacked)
    say(f"{number:,} of its clips belong to questions")
    return folder


def _unpack_parquet(benchmark: Benchmark, file: Path, folder: Path, names: _Names) -> int:
    """Write the embedded clips under their question's id, or under their own name if that has no question."""
    folder.mkdir(parents=True, exist_ok=True)
    modified = file.stat().st_mtime
    found = set()
    for _, row in read_records(file):
        try:
            row_id, path = benchmark.named(row)
        except BadRecord:
            continue
        own_name = PurePosixPath(path or "").stem
        name = next((name for name in (row_id, own_name) if composed(name) in names.wanted), None)
        audio = _audio_bytes(row)
        if name is None or audio is None or name in found:
            continue
        found.add(name)
        # the ending says nothing of the format, which is read from the content
        target = folder / f"{safe_stem(name)}.wav"
        target.write_bytes(audio)
        os.utime(target, (modified, modified))  # so that the journal, which goes by size and time, knows it again
    return len(found)


def _audio_bytes(row: dict[str, Any]) -> bytes | None:
    """The audio of a row: bytes, `{bytes, path}`, or a list of one of these."""
    for name in AUDIO_COLUMNS:
        audio = row.get(name)
        if isinstance(audio, list) and len(audio) == 1:
            (audio,) = audio
        if isinstance(audio, dict):
            audio = audio.get("bytes")
        if isinstance(audio, bytes) and audio:
            return audio
    return None


def _check_sources(benchmark: Benchmark, questions: list[Path], audio: list[Path]) -> None:
    """Refuse, all at once, what is not there or of no known kind."""
    problems = [
        Problem(str(file), reason, f"Give {benchmark.files}.")
        for file in questions
        if (reason := unreadable(file)) is not None
    ]
    for source in audio:
        is_folder = os.path.isdir(source)
        if (reason := unreadable_folder(source) if is_folder else unreadable(source)) is not None:
            problems.append(Problem(str(source), reason, "Give a folder or file that holds the clips."))
        elif not is_folder and not is_parquet(source) and not is_tar(source):
            what = "it is no folder, no tar archive and no parquet file"
            problems.append(Problem(str(source), what, "It may be damaged: fetch it again, or give the folder."))
    if not problems and benchmark.part is not None and not audio and not any(map(_holds_audio, questions)):
        what = f"there are no clips, by whose length questions are kept: those with {benchmark.part}"
        problems.append(Problem(str(questions[0]), what, "Give --audio."))
    if problems:
        raise Refused(problems)


def _holds_audio(file: Path) -> bool:
    return is_parquet(file) and any(_audio_bytes(row) is not None for _, row in read_records(file))


def _parser(benchmark: Benchmark, doc: str | None) -> Options:
    parser = Options(doc, f"python -m {benchmark.command}")
    add = parser.add_argument
    add("--questions", required=True, nargs="+", type=Path, metavar="FILE", help=benchmark.files)
    add("--audio", nargs="+", type=Path, default=[], metavar="DIR|TAR|PARQUET", help="what holds the clips")
    add_preparation_arguments(parser)
    return parser
