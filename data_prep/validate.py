"""Check a manifest for everything a training run relies on, and for leakage between splits.

    python -m data_prep.validate data/avqa/train.jsonl --against data/avqa/held_out.jsonl data/mmau/manifest.jsonl

Every record and every clip of MANIFEST is checked. Records of different files, and of one file that names different
splits, must not share a clip (the same samples) or a source video; questions that merely have the same text and choices
about different clips are common in AVQA and are reported as a warning, as is everything a run can live with.

Exit codes: 0 no errors; 3 errors were found, and they are listed; 2 the file cannot be read at all; 130 interrupted.
"""

from __future__ import annotations

import os
from collections import Counter, defaultdict
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from data_prep.fingerprints import Clips, decode_clips, video_of
from data_prep.workers import add_workers_argument
from r1_aqa_repro.common.console import Options
from r1_aqa_repro.common.errors import EXIT_DONE, EXIT_LOSSES, command
from r1_aqa_repro.common.escaping import visible_line
from r1_aqa_repro.common.files import output_file, write_json
from r1_aqa_repro.data.answers import fold
from r1_aqa_repro.data.prompts import SPECIAL_TOKEN
from r1_aqa_repro.data.questions import AudioQuestion, read_questions
from r1_aqa_repro.data.records import Read, read_records

ERROR, WARNING = "error", "warning"
# rule: (severity, what it means)
RULES = {
    "bad_record": (ERROR, "no valid question: fields, types, unique id, at least 2 choices, answer among them"),
    "no_answer": (ERROR, "a question without an answer, though others have one"),
    "unlabelled": (WARNING, "no question has an answer: nothing to train on or to score with"),
    "absolute_path": (ERROR, "audio_path must be relative to the manifest"),
    "path_outside": (WARNING, "audio_path leaves the manifest's folder, which can then not be moved alone"),
    "missing": (ERROR, "the clip is not there"),
    "undecodable": (ERROR, "the clip cannot be decoded"),
    "cut_off": (ERROR, "the clip ends before its header says"),
    "not_16khz_mono": (ERROR, "the clip is not 16 kHz mono"),
    "too_short": (ERROR, "the clip is shorter than 0.1 s"),
    "silent": (ERROR, "the clip holds no sound"),
    "duplicate_choices": (WARNING, "a choice stands there twice"),
    "special_token": (WARNING, "a text spells a special token; models are given it as text"),
    "same_audio": (ERROR, "two splits share a clip"),
    "same_video": (ERROR, "two splits share a source video"),
    "same_text": (
        WARNING,
        "two splits share a question with its choices; common, and harmless about different clips",
    ),
    "compared_with_flaws": (WARNING, "records or clips of another manifest that could not be compared"),
}
_SHOWN = 3  # findings printed of each rule


@dataclass(frozen=True)
class Finding:
    """One thing that was found: a key of `RULES`, where, and what."""

    rule: str
    where: str
    what: str

    @property
    def severity(self) -> str:
        return RULES[self.rule][0]


@command
def main(argv: list[str]) -> int:
    """Run the command; returns its exit code."""
    arguments = _parser().parse_args(argv)
    files = [arguments.manifest, *arguments.against]
    reads = [read_questions(file) for file in files]
    clips = decode_clips((question for read in reads for question in read.records), arguments.workers)
    findings = [*check(arguments.manifest, reads[0], clips), *leaks(files, reads, clips)]
    findings += [
        finding
        for file, read in zip(arguments.against, reads[1:], strict=True)
        for finding in _not_comparable(file, read, clips)
    ]
    findings.sort(key=lambda finding: list(RULES).index(finding.rule))
    counts = Counter(finding.severity for finding in findings)
    _show(findings, reads[0], clips)
    if arguments.json is not None:
        report = {
            "manifest": str(arguments.manifest),
            "against": [str(file) for file in arguments.against],
            "errors": counts[ERROR],
            "warnings": counts[WARNING],
            "findings": [{"severity": finding.severity, **asdict(finding)} for finding in findings],
        }
        write_json(arguments.json, report)
    return EXIT_LOSSES if counts[ERROR] else EXIT_DONE


def check(manifest: Path, read: Read[AudioQuestion], clips: Clips) -> Iterator[Finding]:
    """Everything that is wrong within one manifest, given its decoded clips."""
    for problem in read.problems:
        yield Finding("bad_record", problem.where, f"{problem.what}. {problem.remedy}")
    unanswered = [question for question in read.records if question.answer is None]
    if read.records and len(unanswered) == len(read.records):
        yield Finding("unlabelled", str(manifest), f"none of the {len(unanswered):,} questions has an answer")
    else:
        yield from (Finding("no_answer", question.id, "the question has no answer") for question in unanswered)
    yield from _paths(manifest)
    for question in read.records:
        for rule, what in clips[question.audio_path].problems:
            yield Finding(rule, question.id, what)
        if len(set(question.choices)) < len(question.choices):
            yield Finding("duplicate_choices", question.id, f"choices {list(question.choices)}")
        spelled = dict.fromkeys(SPECIAL_TOKEN.findall(" ".join([question.question, *question.choices])))
        if spelled:
            yield Finding("special_token", question.id, " ".join(spelled))


def _paths(manifest: Path) -> Iterator[Finding]:
    """The audio paths as they stand in the file: `read_questions` has already made them absolute."""
    for where, record in read_records(manifest):
        if not isinstance(record, dict) or "choices" not in record:  # other formats have other rules
            continue
        path, record_id = record.get("audio_path"), str(record.get("id", where))
        if isinstance(path, str) and os.path.isabs(path):
            yield Finding("absolute_path", record_id, path)
        elif isinstance(path, str) and os.path.normpath(path).split(os.sep)[0] == os.pardir:
            yield Finding("path_outside", record_id, path)


def leaks(files: Sequence[Path], reads: Sequence[Read[AudioQuestion]], clips: Clips) -> Iterator[Finding]:
    """What records of different splits share. A split is a file, or what a file's records name as their split."""
    ids: dict[tuple[str, Hashable], dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))  # by split
    described: dict[tuple[str, Hashable], str] = {}
    for file, read in zip(files, reads, strict=True):
        for question in read.records:
            split = f"{file} ({question.split})" if question.split else str(file)
            pcm, video, text = clips[question.audio_path].pcm, video_of(question), _text(question)
            for rule, key, what in (
                ("same_audio", pcm, f"the samples of {question.audio_path}"),
                ("same_video", video, f"the video {video}"),
                ("same_text", text, f"{question.question!r} {list(question.choices)}"),
            ):
                if key is not None:
                    ids[rule, key][split].append(question.id)
                    described.setdefault((rule, key), what)
    for shared, by_split in ids.items():
        if len(by_split) > 1:
            more = {split: f" and {len(found) - 1:,} more" if found[1:] else "" for split, found in by_split.items()}
            where = ", ".join(f"{split}: {found[0]}{more[split]}" for split, found in by_split.items())
            yield Finding(shared[0], where, described[shared])


def _text(question: AudioQuestion) -> tuple[str, ...]:
    """Question and choices as people read them: case, white space and the order of the choices do not count."""
    return fold(question.question), *sorted(map(fold, question.choices))


def _not_comparable(file: Path, read: Read[AudioQuestion], clips: Clips) -> Iterator[Finding]:
    if read.problems:
        yield Finding("compared_with_flaws", str(file), f"{len(read.problems):,} bad records")
    undecodable = sum(clips[question.audio_path].pcm is None for question in read.records)
    if undecodable:
        yield Finding("compared_with_flaws", str(file), f"{undecodable:,} questions whose clip cannot be decoded")


def _show(findings: Sequence[Finding], read: Read[AudioQuestion], clips: Clips) -> None:
    """What was found, rule by rule with the first few, and how much was looked at."""
    for rule, (severity, meaning) in RULES.items():
        found = [finding for finding in findings if finding.rule == rule]
        if found:
            print(f"{severity}: {rule} ({len(found):,}): {meaning}")
            for finding in found[:_SHOWN]:
                print(visible_line(f"    {finding.where}: {finding.what}"))
            if len(found) > _SHOWN:
                print(f"    ... and {len(found) - _SHOWN:,} more (--json lists all)")
    paths = {question.audio_path for question in read.records}
    hours = sum(clips[path].seconds for path in paths) / 3600
    counts = Counter(finding.severity for finding in findings)
    print(
        f"{len(read.records):,} questions about {len(paths):,} clips ({hours:.2f} hours): "
        f"{counts[ERROR]:,} errors, {counts[WARNING]:,} warnings"
    )


def _parser() -> Options:
    parser = Options(__doc__, "python -m data_prep.validate")
    add = parser.add_argument
    add("manifest", type=Path, metavar="MANIFEST", help="the manifest to check")
    add("--against", nargs="+", type=Path, default=[], metavar="MANIFEST", help="splits to share nothing with")
    add("--json", type=output_file, metavar="FILE", help="write all findings there")
    add_workers_argument(parser)
    return parser


if __name__ == "__main__":
    main()
