"""Make a manifest of a benchmark's questions and the clips that people have: what all preparations of benchmarks share.

Questions are read from JSON or parquet files, whose clips may be embedded; clips are found in folders, tar archives and
parquet files. Every question stays in the manifest: one whose clip is missing or cannot be used is flagged, and an
evaluation counts it as wrong. What the records look like, and which are left out, each benchmark's command says.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from data_prep import pipeline
from data_prep.media import BAD_RECORD, TOO_LONG, Excerpt
from data_prep.media_index import composed
from data_prep.named_clips import (
    AUDIO_COLUMNS,
    UNPACKED,
    NamedClip,
    NamedClips,
    audio_bytes,
    id_and_path,
    problems_of,
)
from data_prep.pipeline import DEFAULT, LeftOut, Making, Record, Report, add_preparation_arguments, safe_stem
from r1_aqa_repro.common.console import Options, say
from r1_aqa_repro.common.errors import EXIT_DONE, EXIT_LOSSES, Problem, Refused
from r1_aqa_repro.common.files import as_json, sha256_of, unreadable, write_atomically
from r1_aqa_repro.data.benchmark_records import NOT_ASKED, NotAsked, only_clip
from r1_aqa_repro.data.questions import HEARD_SECONDS, LONGER, AudioQuestion, check_question
from r1_aqa_repro.data.records import (
    Rejected,
    id_of,
    is_table,
    no_records,
    parse_records,
    read_records,
)
from r1_aqa_repro.data.versions import UNKNOWN, version_of

SOURCE = "source.jsonl"

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
    named: Callable[[dict[str, Any]], tuple[str, str | None]] = id_and_path
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
    def clip(self) -> NamedClip:
        """What the record calls its clip."""
        return NamedClip(self.audio_id, self.question.id)


Listed = Asked | LeftOut | Rejected


def run(benchmark: Benchmark, doc: str | None, argv: list[str]) -> int:
    """Run the command of a benchmark, whose module's docstring is `doc`; returns its exit code."""
    arguments = _parser(benchmark, doc).parse_args(argv)
    report = prepare(benchmark, arguments.questions, arguments.audio, arguments.out, Making.of(arguments))
    has_audio = bool(arguments.audio) or any(map(is_table, arguments.questions))
    lost = report.flagged.keys() - {LONGER} if has_audio else set()
    has_losses = lost or report.dropped.keys() - {*NOT_ASKED, TOO_LONG}
    return EXIT_LOSSES if has_losses or not report.keeps(arguments.min_kept) else EXIT_DONE


def prepare(
    benchmark: Benchmark,
    questions: list[Path],
    audio: list[Path],
    out: Path,
    making: Making = DEFAULT,
    refuse_bad: bool = False,
) -> Report:
    """Write the manifest of a benchmark's questions, and the clips that it names, to a folder; see `_parser`.

    Args:
        benchmark: what it is of.
        questions, audio, out: as on the command line.
        making: how the clips are made.
        refuse_bad: bad records are refused, not dropped: an evaluation has no other account of them.

    Raises:
        Refused: a file is absent or unreadable, an archive cannot be trusted, `out` was made from other questions,
            there are no clips, and what is kept depends on them, or see `refuse_bad`.
        Failed: see `pipeline.prepare`.
    """
    _check_sources(benchmark, questions, audio)
    by_file = _listed(benchmark, questions)
    listed = [record for found in by_file.values() for record in found]
    if not listed:
        raise no_records(questions[0])
    if refuse_bad and (bad := [record.problem for record in listed if isinstance(record, Rejected)]):
        raise Refused(bad)
    settings: dict[str, Any] = {"command": benchmark.command, "questions": [sha256_of(file) for file in questions]}
    if benchmark.part is not None:
        settings["part"] = benchmark.part
    version = _version(benchmark, questions, listed) if benchmark.versions else None
    stream = _records(benchmark, by_file, audio, version, out / UNPACKED, making.format)
    try:
        report = pipeline.prepare(stream, out, making, settings, len(listed), benchmark.full_account)
    finally:
        shutil.rmtree(out / UNPACKED, ignore_errors=True)
    if refuse_bad and (clashes := report.details.get(BAD_RECORD)):  # which clips alone show
        raise Refused([Problem(str(questions[0]), one, "Repair the record.") for one in clashes])
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
            listed[file].append(_unique(record, file, where, first_seen) if benchmark.full_account else record)
    return listed


def _unique(record: Listed, file: Path, where: str, first_seen: dict[str, str]) -> Listed:
    """The record, or a bad one if an earlier record had its id."""
    if not isinstance(record, Asked):
        return record
    question_id, place = record.question.id, f"{file.name}:{where}"
    first = first_seen.setdefault(composed(question_id), place)
    if first == place:
        return record
    what = f"id {question_id!r} was already used at {first}"
    return Rejected(question_id, record.raw, Problem(f"{file}:{where}", what, "Make ids unique."))


def _placed(bad: Rejected) -> Rejected:
    """A bad record with its place in what is wrong with it, which is all that the report says of it."""
    problem = bad.problem
    return replace(bad, problem=replace(problem, what=f"{os.path.basename(problem.where)}: {problem.what}"))


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
    asked = (record.clip for listed in by_file.values() for record in listed if isinstance(record, Asked))
    clips = NamedClips(asked, audio, unpacked, benchmark.named)
    for file, listed in by_file.items():
        has_audio = is_table(file)
        embedded = (audio_bytes(row) for _, row in read_records(file)) if has_audio else (None for _ in listed)
        for record, own in zip(listed, embedded, strict=True):
            if not isinstance(record, Asked):
                yield _placed(record) if isinstance(record, Rejected) and benchmark.full_account else record
                continue
            name = clips.name_of(record.clip)
            stem = safe_stem(name)
            media = own if own is not None else clips.find(record.clip)
            missing = f"no file is named {name}" if audio else "no --audio was given"
            lost = f"{_LOST}/{stem}.{audio_format}"  # no folder of ours: nothing is ever there
            if record.audio_id and not audio and not has_audio:
                lost = record.audio_id
            source_of_clip = None if media is None else Excerpt(media, is_heard_whole=benchmark.part is not None)
            yield Record(replace(record.question, version=version), source_of_clip, stem, missing, lost)


def _check_sources(benchmark: Benchmark, questions: list[Path], audio: list[Path]) -> None:
    """Refuse, all at once, what is not there or of no known kind."""
    problems = [
        Problem(str(file), reason, f"Give {benchmark.files}.")
        for file in questions
        if (reason := unreadable(file)) is not None
    ]
    problems += problems_of(audio)
    if not problems and benchmark.part is not None and not audio and not any(map(_holds_audio, questions)):
        what = f"there are no clips, by whose length questions are kept: those with {benchmark.part}"
        problems.append(Problem(str(questions[0]), what, "Give --audio."))
    if problems:
        raise Refused(problems)


def _holds_audio(file: Path) -> bool:
    return is_table(file) and any(audio_bytes(row) is not None for _, row in read_records(file))


def _parser(benchmark: Benchmark, doc: str | None) -> Options:
    parser = Options(doc, f"python -m {benchmark.command}")
    add = parser.add_argument
    add("--questions", required=True, nargs="+", type=Path, metavar="FILE", help=benchmark.files)
    add("--audio", nargs="+", type=Path, default=[], metavar="DIR|TAR|PARQUET", help="what holds the clips")
    add_preparation_arguments(parser)
    return parser
