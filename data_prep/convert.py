"""Make a manifest of the questions that other projects publish, or of a manifest what ms-swift trains on.

    python -m data_prep.convert data.jsonl --audio clips/ --out data/audiomcq
    python -m data_prep.convert --to ms-swift data/avqa/manifest.jsonl --out train.jsonl

The first reads AudioMCQ's data.jsonl, the questions of DCASE-2025's task 5 (a folder of JSON files, or a list of them)
and ms-swift's multimodal JSON lines; the keys of each record tell which it is. Its clip is looked for at its path, from
its file and from here, then in the --audio folders and archives by path and by name. It writes manifest.jsonl,
prep_report.json and audio/. The same command goes on with a preparation that was interrupted.

The second writes what `swift rlhf --rlhf_type grpo --dataset` reads: prompts as in training here, absolute paths of the
clips, and the right answer as `solution`. Converted back it is the same manifest.

Exit codes: 0 done, and missing clips and bad records are listed; 1 failed, such as on a full disk, and what was done is
kept; 2 refused before starting: nothing that can be read, or a question that ms-swift would read otherwise; 3 done, but
less than --min-kept was kept, or nothing; 130 interrupted.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import shutil
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from data_prep import pipeline
from data_prep.media import Excerpt
from data_prep.media_index import composed
from data_prep.named_clips import UNPACKED, NamedClip, NamedClips, id_and_path, problems_of
from data_prep.pipeline import Making, Record, add_making_arguments, safe_stem
from data_prep.question_formats import Published, ms_swift_line, published
from r1_aqa_repro.common.console import Options, say
from r1_aqa_repro.common.errors import EXIT_DONE, EXIT_LOSSES, Problem, Refused, command
from r1_aqa_repro.common.files import output_file, output_folder, sha256_of, unreadable, write_lines
from r1_aqa_repro.data.prompts import PROMPT_STYLES
from r1_aqa_repro.data.questions import read_questions
from r1_aqa_repro.data.records import BadRecord, Rejected, no_records, parse_records

_NOT_FOR = {"manifest": ("prompt_style",), "ms-swift": ("audio", "workers", "channel", "format", "min_kept")}
_WANTED = "Give AudioMCQ's data.jsonl, a folder of DCASE-2025's questions or ms-swift's JSON lines."


@command
def main(argv: list[str]) -> int:
    """Run the command; returns its exit code."""
    parser = _parser()
    arguments = parser.parse_args(argv)
    for name in _NOT_FOR[arguments.to]:
        if getattr(arguments, name) != parser.get_default(name):
            parser.error(f"argument --{name.replace('_', '-')}: not allowed with argument --to {arguments.to}")
    if arguments.to == "manifest":
        return _to_manifest(arguments.input, arguments.audio, output_folder(arguments.out), arguments)
    if len(arguments.input) > 1:
        parser.error("argument --to ms-swift: give one manifest")
    return _to_ms_swift(arguments.input[0], output_file(arguments.out), arguments.prompt_style)


def _to_ms_swift(manifest: Path, out: Path, style: str) -> int:
    read = read_questions(manifest)
    problems, lines = list(read.problems), []
    for question in read.records:
        try:
            lines.append(ms_swift_line(question, style))
            if not os.path.isfile(question.audio_path):
                raise BadRecord(f"there is no clip {question.audio_path}", "Prepare it, or leave the question out.")
        except BadRecord as bad:
            problems.append(Problem(f"{manifest}: {question.id}", bad.what, bad.remedy))
    if os.path.realpath(out) == os.path.realpath(manifest):
        problems.append(Problem(str(out), "the result would overwrite the manifest", "Give another --out."))
    if problems:
        raise Refused(problems)
    write_lines(out, lines)
    say(f"{len(lines):,} questions: {out}")
    return EXIT_DONE


def _to_manifest(given: Sequence[Path], audio: Sequence[Path], out: Path, arguments: argparse.Namespace) -> int:
    files = _files(given)
    if problems := problems_of(audio):
        raise Refused(problems)
    total, formats, left_out, clips = 0, Counter[str](), Counter[str](), set()
    for one in _published(files):
        total += 1
        if isinstance(one, Published):
            formats[one.format] += 1
            left_out.update(one.left_out)
            clips.add(_clip(one))
    if not total:
        raise no_records(given[0])
    say(f"{total:,} records" + "".join(f"; {name}: {number:,}" for name, number in formats.items()))
    settings = {"command": "data_prep.convert", "input": [_identity(one) for one in given]}
    stream = _records(files, clips, audio, out / UNPACKED)
    try:
        report = pipeline.prepare(stream, out, Making.of(arguments), settings, total)
    finally:
        shutil.rmtree(out / UNPACKED, ignore_errors=True)
    say(report.summary(out))
    if left_out:
        say("  left out: " + ", ".join(f"{key!a} ({number:,})" for key, number in sorted(left_out.items())))
    return EXIT_DONE if report.keeps(arguments.min_kept) else EXIT_LOSSES


def _published(files: Sequence[Path]) -> Iterator[Published | Rejected]:
    """Every record of the files, of which no two may have one id."""
    first_seen: dict[str, str] = {}
    for file in files:
        for where, one in parse_records(file, partial(published, file=file), one_object=True):
            place = f"{file}:{where}"
            if isinstance(one, Published) and first_seen.setdefault(composed(one.question.id), place) != place:
                what = f"its id was already used at {first_seen[composed(one.question.id)]}"
                yield Rejected(one.question.id, None, Problem(place, what, "Make ids unique."))
            else:
                yield one


def _clip(one: Published) -> NamedClip:
    return NamedClip(one.audio, one.question.id)


def _records(
    files: Sequence[Path], clips: Collection[NamedClip], audio: Sequence[Path], unpacked: Path
) -> Iterator[Record | Rejected]:
    """Each record with its clip, ready for `pipeline.prepare`; archives are unpacked to a folder first."""
    named = NamedClips(clips, audio, unpacked, id_and_path)
    for one in _published(files):
        if isinstance(one, Rejected):  # the report says of a bad record what is wrong with it, and no more
            yield replace(one, problem=replace(one.problem, what=str(one.problem)))
            continue
        name = named.name_of(_clip(one))
        beside = next((path for path in (one.file.parent / one.audio, Path(one.audio)) if os.path.isfile(path)), None)
        media = beside or named.find(_clip(one))
        missing = f"there is no {one.audio}, and no file is named {name}"
        yield Record(one.question, None if media is None else Excerpt(media), safe_stem(name), missing)


def _files(given: Sequence[Path]) -> list[Path]:
    """The files that are meant: of a folder the JSON files in it, at any depth.

    Raises:
        Refused: one cannot be read, or a folder has none.
    """
    files, problems = [], []
    for path in given:
        found = sorted(path.rglob("*.json")) if os.path.isdir(path) else [path]
        files += found
        problems += [Problem(str(file), reason, _WANTED) for file in found if (reason := unreadable(file)) is not None]
        if not found:
            problems.append(Problem(str(path), "there is no JSON file in this folder", _WANTED))
    if problems:
        raise Refused(problems)
    return files


def _identity(given: Path) -> str:
    """A file by its name and content, a folder by those of its files."""
    if not os.path.isdir(given):
        return f"{given.name}, sha256 {sha256_of(given)}"
    inside = "".join(f"{file.relative_to(given)} {sha256_of(file)}\n" for file in _files([given]))
    return f"{given.name}, sha256 {hashlib.sha256(os.fsencode(inside)).hexdigest()}"


def _parser() -> Options:
    parser = Options(__doc__, "python -m data_prep.convert")
    add = parser.add_argument
    add("input", nargs="+", type=Path, metavar="FILE|DIR", help="the questions, or with --to ms-swift a manifest")
    add("--to", choices=tuple(_NOT_FOR), default="manifest", help="what to make (default: manifest)")
    out = "where to write: a folder (new, or an interrupted run's); with --to ms-swift a file"
    add("--out", required=True, metavar="DIR|FILE", help=out)
    audio = "what holds the clips that are not where the records say"
    add("--audio", nargs="+", type=Path, default=[], metavar="DIR|TAR|PARQUET", help=audio)
    add("--prompt-style", choices=PROMPT_STYLES, default="answer", help="with --to ms-swift (default: answer)")
    add_making_arguments(parser)
    return parser


if __name__ == "__main__":
    main()
