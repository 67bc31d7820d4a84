"""Prepare MMAU for an evaluation: its questions, and the clips if you have them, become a manifest.

    python -m data_prep.mmau --questions mmau-test-mini.json --audio test-mini-audios.tar.gz --out data/mmau

Questions are read from the published JSON or from the Hugging Face copy (parquet, whose clips are embedded); clips are
found in folders, tar archives and parquet files. Every question stays in the manifest: one whose clip is missing or
cannot be used is flagged, and an evaluation counts it as wrong. Without --audio all are flagged, which is enough for
scoring. It writes manifest.jsonl, source.jsonl (every record as it stood), prep_report.json and audio/. The same
command goes on with a preparation that was interrupted.

Exit codes: 0 done; 1 failed, such as on a full disk, and what was done is kept; 2 refused: nothing that can be read, or
an archive that cannot be trusted; 3 done, but records were bad, clips were missing or unusable, or less than --min-kept
was kept; 130 interrupted.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any

from data_prep import pipeline
from data_prep.archives import is_tar, unpack
from data_prep.media import Excerpt
from data_prep.media_index import MEDIA_ENDINGS, MediaIndex, composed, unreadable_folder
from data_prep.pipeline import DEFAULT, Making, Record, Report, add_preparation_arguments, safe_stem
from r1_aqa_repro.common.console import Options, say
from r1_aqa_repro.common.errors import EXIT_DONE, EXIT_LOSSES, Problem, Refused, command
from r1_aqa_repro.common.files import as_json, sha256_of, unreadable, write_atomically
from r1_aqa_repro.data.benchmark_records import without_letters
from r1_aqa_repro.data.questions import AudioQuestion, question_from_mmau
from r1_aqa_repro.data.records import (
    BadRecord,
    Rejected,
    is_parquet,
    no_records,
    optional_text,
    parse_json,
    parse_records,
    read_records,
    require_object,
)
from r1_aqa_repro.data.versions import MMAU_VERSIONS, UNKNOWN, version_of

SOURCE = "source.jsonl"

_AUDIO_COLUMNS = ("context", "audio")
_UNPACKED = ".unpacked"
_LOST = "audio/missing"


@dataclass(frozen=True)
class Asked:
    """A record of MMAU.

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


class _Names:
    """The names of the clips that questions ask for, of which several in different folders may have the same.

    Attributes:
        shared: names that clips of several paths have, and that tell nothing therefore.
        wanted: names by which alone a clip can be known.
    """

    def __init__(self, records: Iterable[Asked | Rejected]):
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


@command
def main(argv: list[str]) -> int:
    """Run the command; returns its exit code."""
    arguments = _parser().parse_args(argv)
    report = prepare(arguments.questions, arguments.audio, arguments.out, Making.of(arguments))
    has_audio = bool(arguments.audio) or any(map(is_parquet, arguments.questions))
    has_losses = report.dropped or (has_audio and report.flagged)
    return EXIT_LOSSES if has_losses or not report.keeps(arguments.min_kept) else EXIT_DONE


def prepare(questions: list[Path], audio: list[Path], out: Path, making: Making = DEFAULT) -> Report:
    """Write the manifest of MMAU's questions, and the clips that it names, to a folder; see the options of the command.

    Raises:
        Refused: a file is absent or unreadable, an archive cannot be trusted, or `out` was made from other questions.
        Failed: see `pipeline.prepare`.
    """
    _check_sources(questions, audio)
    by_file = {file: [one for _, one in parse_records(file, _asked, path_only=_AUDIO_COLUMNS)] for file in questions}
    listed = [record for found in by_file.values() for record in found]
    if not listed:
        raise no_records(questions[0])
    hashes = [sha256_of(file) for file in questions]
    good = [record.question for record in listed if isinstance(record, Asked)]
    version = version_of(good) if len(good) == len(listed) else UNKNOWN
    if version not in MMAU_VERSIONS.values():
        version = UNKNOWN
        names = ", ".join(file.name for file in questions)
        say(f"warning: {names} is no published version of MMAU test-mini: recorded as version {UNKNOWN}")
    else:
        say(f"MMAU test-mini, version {version}")
    settings = {"command": "data_prep.mmau", "questions": hashes}
    stream = _records(by_file, audio, version, out / _UNPACKED, making.format)
    try:
        report = pipeline.prepare(stream, out, making, settings, len(listed))
    finally:
        shutil.rmtree(out / _UNPACKED, ignore_errors=True)
    write_atomically(out / SOURCE, "".join(as_json(one.raw, default=str, ensure_ascii=True) + "\n" for one in listed))
    say(report.summary(out))
    return report


def _records(
    by_file: Mapping[Path, Sequence[Asked | Rejected]],
    audio: Sequence[Path],
    version: str,
    unpacked: Path,
    audio_format: str,
) -> Iterator[Record | Rejected]:
    """Each question with its clip, ready for `pipeline.prepare`; archives are unpacked to a folder first."""
    names = _Names(record for listed in by_file.values() for record in listed)
    folders = [source if os.path.isdir(source) else _unpack(source, unpacked, names) for source in audio]
    index = MediaIndex(folders)
    for file, listed in by_file.items():
        has_audio = is_parquet(file)
        embedded = (_audio_bytes(row) for _, row in read_records(file)) if has_audio else (None for _ in listed)
        for record, own in zip(listed, embedded, strict=True):
            if isinstance(record, Rejected):
                yield record
                continue
            stem = safe_stem(names.looked_for(record))
            media = own if own is not None else _find(record, folders, index, names)
            missing = f"no file is named {names.looked_for(record)}" if audio else "no --audio was given"
            lost = f"{_LOST}/{stem}.{audio_format}"  # no folder of ours: nothing is ever there
            if record.audio_id and not audio and not has_audio:
                lost = record.audio_id
            source_of_clip = None if media is None else Excerpt(media)
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


def _asked(raw: dict[str, Any], where: str) -> Asked:
    record = _flattened(raw)
    question = question_from_mmau(record, Path())
    choices, answer = without_letters(question.choices, question.answer)
    return Asked(replace(question, choices=choices, answer=answer), raw, optional_text(record, "audio_id"))


def _flattened(raw: dict[str, Any]) -> dict[str, Any]:
    """A row of the Hugging Face copy as the published file has it; any other record as it is."""
    if "instruction" not in raw:
        return raw
    attributes = raw.get("other_attributes") or {}
    if isinstance(attributes, str):
        try:
            attributes = parse_json(attributes)
        except (ValueError, RecursionError):
            attributes = None
    if not isinstance(attributes, dict):
        what = f"other_attributes is {raw['other_attributes']!r:.60}, not an object"
        raise BadRecord(what, "Fetch the file again.")
    require_object(attributes)
    audio: dict[str, Any] = next((raw[name] for name in _AUDIO_COLUMNS if isinstance(raw.get(name), dict)), {})
    own = {"question": raw["instruction"], "choices": raw.get("choices"), "answer": raw.get("answer")}
    return {"id": raw.get("id"), "audio_id": audio.get("path"), **attributes, **own}


def _unpack(archive: Path, unpacked: Path, names: _Names) -> Path:
    """Write the archive's clips that are wanted to a folder whose name changes when the archive does."""
    say(f"unpacking {archive}")
    found = archive.stat()
    state = f"{archive.absolute()} {found.st_size} {found.st_mtime_ns}"
    folder = unpacked / hashlib.sha256(os.fsencode(state)).hexdigest()[:16]
    number = _unpack_parquet(archive, folder, names) if is_parquet(archive) else unpack(archive, folder, names.unpacked)
    say(f"{number:,} of its clips belong to questions")
    return folder


def _unpack_parquet(file: Path, folder: Path, names: _Names) -> int:
    """Write the embedded clips under their question's id, or under their own name if that has no question."""
    folder.mkdir(parents=True, exist_ok=True)
    modified = file.stat().st_mtime
    found = set()
    for _, row in read_records(file):
        try:
            record = _flattened({"instruction": None, **row})
        except BadRecord:
            continue
        own_name = PurePosixPath(str(record.get("audio_id") or "")).stem
        name = next((name for name in (str(record["id"]), own_name) if composed(name) in names.wanted), None)
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
    columns = (row[name] for name in _AUDIO_COLUMNS if isinstance(row.get(name), dict))
    found = (column.get("bytes") for column in columns)
    return next((audio for audio in found if isinstance(audio, bytes) and audio), None)


def _check_sources(questions: list[Path], audio: list[Path]) -> None:
    """Refuse, all at once, what is not there or of no known kind."""
    problems = [
        Problem(str(file), reason, "Give MMAU's JSON, or parquet files of its Hugging Face copy.")
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
    if problems:
        raise Refused(problems)


def _parser() -> Options:
    parser = Options(__doc__, "python -m data_prep.mmau")
    add = parser.add_argument
    add("--questions", required=True, nargs="+", type=Path, metavar="FILE",
        help="MMAU's JSON file, or parquet files of its Hugging Face copy")  # fmt: skip
    add("--audio", nargs="+", type=Path, default=[], metavar="DIR|TAR|PARQUET", help="what holds the clips")
    add_preparation_arguments(parser)
    return parser


if __name__ == "__main__":
    main()
