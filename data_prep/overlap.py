"""Find out which training clips are also in a test set: the same samples, the same source video, the same recording.

    python -m data_prep.overlap --train data/avqa/train.jsonl --test data/mmau/manifest.jsonl --out overlap.json
    python -m data_prep.overlap --train train.jsonl --test mmau-test-mini.json --audio-dir test-mini-audios --out DIR

The same recording is known by its fingerprint (`data_prep/haitsma_kalker.py`), though it was resampled, encoded, made
louder, cut elsewhere or taken from another channel. overlap.json lists for each test question the training clips that
share something with its own, and which clips cannot be compared because they are missing, silent or too short. What was
compared is recorded as it goes, so the same command goes on after an interruption.

Exit codes: 0 done, whatever was found; 2 refused: a bad record or a file that cannot be read; 130 interrupted.
"""

from __future__ import annotations

import hashlib
import math
import os
import time
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm
from tqdm.contrib.concurrent import thread_map

from data_prep import haitsma_kalker
from data_prep.fingerprints import read_clip, video_of
from data_prep.folder import printable
from data_prep.haitsma_kalker import Fingerprint, Index, confirmed, fingerprint
from data_prep.workers import add_workers_argument
from r1_aqa_repro.common.console import Options, say
from r1_aqa_repro.common.distributed import num_cores
from r1_aqa_repro.common.errors import EXIT_DONE, Refused, command
from r1_aqa_repro.common.escaping import visible_line
from r1_aqa_repro.common.files import output_file, read_json, sha256_of, write_json
from r1_aqa_repro.common.record_file import RecordFile
from r1_aqa_repro.data.audio import load_audio
from r1_aqa_repro.data.questions import AudioQuestion, read_questions

OVERLAP = "overlap.json"
FORMAT = 1
# What a test clip and a training clip may share, from the surest on: how it is called here, and to people.
KINDS = {"samples": "the same samples", "fingerprint": "the same recording", "video": "the same source video"}

_REMEDY = "Give another --out."
_SAVE_EVERY = 0.25  # seconds between additions to the journal: what a kill costs at most
_SHOWN = 3  # overlaps of each kind in the summary
_SHORTEST = (haitsma_kalker.SHORTEST * haitsma_kalker.HOP + haitsma_kalker.WINDOW) / haitsma_kalker.RATE  # seconds
_NOTHING = fingerprint(np.zeros(0, np.float32))


@command
def main(argv: list[str]) -> int:
    """Run the command; returns its exit code."""
    arguments = _parser().parse_args(argv)
    report = find(arguments.train, arguments.test, arguments.out, arguments.audio_dir, arguments.workers)
    for line in summary(report):
        print(visible_line(line))
    print(visible_line(arguments.out))
    return EXIT_DONE


def find(
    train: Path, test: Path, out: Path, audio_dir: Path | None = None, workers: int | None = None
) -> dict[str, Any]:
    """Compare all clips of two files of questions and write the report, which is returned too, to the file `out`.

    Args:
        train: a manifest, or what else `read_questions` reads.
        test: the same.
        audio_dir: where the clips of `test` are, if that is a benchmark's own file.
        workers: clips decoded at once (default: one a core).

    Raises:
        Refused: a file cannot be read or has bad records, or another process writes to `out`.
        Failed: the disk is full; what was compared is kept.
    """
    reads = [read_questions(train), read_questions(test, audio_dir)]
    if problems := [problem for read in reads for problem in read.problems]:
        raise Refused(problems)
    workers = workers or num_cores()
    sides = [
        _Side.of(file, read.records, root)
        for file, read, root in zip((train, test), reads, (train.parent, audio_dir or test.parent), strict=True)
    ]
    with RecordFile(out.with_name(f".{out.name}.journal.jsonl"), _REMEDY) as journal:
        heard = thread_map(_listen, sides[1].paths, max_workers=workers, desc="test clips", unit=" clips", disable=None)
        sides[1].clips = dict(zip(sides[1].paths, (clip for clip, _ in heard), strict=True))
        prints = [found if clip.reason is None else _NOTHING for clip, found in heard]
        sides[0].clips = _compare(sides[0], sides[1].paths, prints, journal, workers)
        report = _report(*sides)
        write_json(out, report)
    return report


def read_overlap(path: Path) -> dict[str, Any]:
    """The report of an earlier run.

    Raises:
        Refused: the file cannot be read or is no such report.
    """
    remedy = "Make it with `python -m data_prep.overlap`."
    report = read_json(path, remedy)
    if report.get("format") != FORMAT or not isinstance(report.get("overlaps"), list):
        raise Refused.because(str(path), f"it is no report of overlaps in format {FORMAT}", remedy)
    return report


def overlapping(report: Mapping[str, Any]) -> dict[str, list[str]]:
    """Ids of the test questions whose clip shares something with a training clip, by kind of `KINDS`."""
    return {
        kind: [one["id"] for one in report["overlaps"] if any(kind in shared["by"] for shared in one["train"])]
        for kind in KINDS
    }


def summary(report: Mapping[str, Any]) -> list[str]:
    """What was found, for people: a line a fact."""
    train, test = report["train"], report["test"]
    lines = [
        f"{test['questions']:,} test questions about {test['clips']:,} clips, "
        f"{train['questions']:,} training questions about {train['clips']:,} clips"
    ]
    for kind, called in KINDS.items():
        found = [(one, [shared for shared in one["train"] if kind in shared["by"]]) for one in report["overlaps"]]
        found = [(one, shared) for one, shared in found if shared]
        clips = {shared["audio_path"] for _, each in found for shared in each}
        lines.append(f"{called}: {len(found):,} test questions, {len(clips):,} training clips")
        for one, shared in found[:_SHOWN]:
            more = f" and {len(shared) - 1:,} more" if shared[1:] else ""
            lines.append(
                f"    {one['id']}: {shared[0]['audio_path']}{_where(shared[0]) if kind != 'video' else ''}{more}"
            )
        if len(found) > _SHOWN:
            lines.append(f"    ... and {len(found) - _SHOWN:,} more")
    for name, side in (("test", test), ("training", train)):
        if lost := side["not_comparable"]:
            reasons = ", ".join(f"{reason} {len(clips):,}" for reason, clips in lost.items())
            lines.append(f"not comparable by fingerprint: {sum(map(len, lost.values())):,} {name} clips ({reasons})")
    return lines


def _where(shared: Mapping[str, Any]) -> str:
    """Of a stretch that was found by fingerprint, for people."""
    if "offset" not in shared:
        return ""
    differ = 100 * shared["bit_error_rate"]
    return f" ({shared['seconds']:.1f} s from {shared['start']:.1f} s on, {differ:.1f} % of the bits differ)"


@dataclass
class _Clip:
    """What is known of a clip; the journal has it of each training clip.

    Attributes:
        pcm: SHA-256 of its samples, see `Decoded`; None if it cannot be decoded.
        reason: why it has no fingerprint, None if it has one.
        compared: sub-fingerprints that are compared.
        matches: of a training clip, what was found and confirmed, `Match` as JSON objects.
    """

    pcm: str | None
    reason: str | None
    compared: int = 0
    matches: list[dict[str, Any]] = field(default_factory=list)


@dataclass
class _Side:
    """A file of questions, its clips' paths, and what these are called in the report."""

    file: Path
    questions: dict[Path, list[AudioQuestion]]
    names: dict[Path, str]
    clips: dict[Path, _Clip] = field(default_factory=dict)

    @classmethod
    def of(cls, file: Path, questions: Sequence[AudioQuestion], root: Path) -> _Side:
        by_path: dict[Path, list[AudioQuestion]] = defaultdict(list)
        for question in questions:
            by_path[question.audio_path].append(question)
        return cls(file, dict(by_path), {path: printable(os.path.relpath(path, root)) for path in by_path})

    @property
    def paths(self) -> list[Path]:
        return list(self.questions)

    def facts(self) -> dict[str, Any]:
        """Its part of the report."""
        lost: dict[str, list[str]] = defaultdict(list)
        for path, clip in self.clips.items():
            if clip.reason is not None:
                lost[clip.reason].append(self.names[path])
        return {
            "file": printable(str(self.file)),
            "sha256": sha256_of(self.file),
            "questions": sum(map(len, self.questions.values())),
            "clips": len(self.questions),
            "not_comparable": dict(sorted(lost.items())),
        }


def _listen(path: Path) -> tuple[_Clip, Fingerprint]:
    """Decode a clip once, for its samples and its fingerprint."""
    decoded, samples = read_clip(path)
    pcm = decoded.pcm.hex() if decoded.pcm is not None else None
    rules = [rule for rule, _ in decoded.problems]
    if samples is None:
        return _Clip(pcm, rules[-1]), _NOTHING
    found = fingerprint(samples)
    compared = int(found.sounding.sum())
    reason = "silent" if "silent" in rules else None if found.is_comparable else f"under {_SHORTEST:.2f} s of sound"
    return _Clip(pcm, reason, compared if reason is None else 0), found


def _compare(
    side: _Side, others: Sequence[Path], prints: Sequence[Fingerprint], journal: RecordFile, workers: int
) -> dict[Path, _Clip]:
    """Every training clip looked for among those of the test, whose fingerprints are `prints`, but for what the journal
    knows."""
    index = Index(prints)
    test = _digest(prints)
    lines = journal.read()
    # of another test, or by another method, nothing is of use
    known = {line["clip"]: line for line in lines if line and line.get("test") == test and "clip" in line}
    if len(known) < len(lines):
        journal.replace(known.values())
    clips = {}
    for path, name in side.names.items():
        if name in known and known[name].get("source") == _source(path):
            clips[path] = _Clip(**known[name]["known"])
    unsaved: list[dict[str, Any]] = []

    def look_for(path: Path) -> tuple[Path, str | None, _Clip]:
        source = _source(path)
        clip, found = _listen(path)
        if clip.reason is None:
            # decoded anew: most clips match nothing, and samples of all would fill the memory
            alike = index.matches(found)
            matches = [confirmed(match, load_audio(path), load_audio(others[match.clip])) for match in alike]
            clip.matches = [asdict(match) for match in matches if match is not None]
        return path, source, clip

    def save() -> None:
        journal.append(unsaved)
        unsaved.clear()

    todo = [path for path in side.paths if path not in clips]
    if clips:
        say(f"{len(clips):,} of {len(side.paths):,} training clips were compared before")
    started = saved = time.perf_counter()
    with ThreadPoolExecutor(workers) as pool:
        try:
            compared = pool.map(look_for, todo)
            for path, source, clip in tqdm(compared, "training clips", len(todo), unit=" clips", disable=None):
                clips[path] = clip
                if source is not None:
                    line = {"clip": side.names[path], "source": source, "test": test, "known": asdict(clip)}
                    unsaved.append(line)
                if (now := time.perf_counter()) > saved + _SAVE_EVERY:
                    saved = now
                    save()
        finally:
            pool.shutdown(wait=False, cancel_futures=True)  # of thousands that wait, when this one is interrupted
            save()
    if todo:
        seconds = time.perf_counter() - started
        say(f"{len(todo):,} training clips compared in {seconds:.1f} s ({len(todo) / seconds:.1f} a second)")
    return {path: clips[path] for path in side.paths}


def _source(path: Path) -> str | None:
    """Changes when the clip does; None if it is not there."""
    try:
        found = os.stat(path)
    except (OSError, ValueError):
        return None
    return f"{found.st_size} {found.st_mtime_ns}"


def _digest(prints: Iterable[Fingerprint]) -> str:
    """Of what training clips are compared with, and how."""
    digest = hashlib.sha256(repr((FORMAT, sorted(_method().items()))).encode())
    for one in prints:
        digest.update(len(one.bits).to_bytes(8, "big") + one.bits.tobytes() + one.sounding.tobytes())
    return digest.hexdigest()


def _method() -> dict[str, Any]:
    """The part of the report that says how recordings were compared."""
    return {
        "name": "J. Haitsma, T. Kalker: A Highly Robust Audio Fingerprinting System, ISMIR 2002",
        "bands_hz": [haitsma_kalker.LOWEST, haitsma_kalker.HIGHEST],
        "window_seconds": haitsma_kalker.WINDOW / haitsma_kalker.RATE,
        "hop_seconds": haitsma_kalker.HOP / haitsma_kalker.RATE,
        "block": haitsma_kalker.BLOCK,
        "shortest": haitsma_kalker.SHORTEST,
        "least_correlation": haitsma_kalker.LEAST_CORRELATION,
        "threshold": haitsma_kalker.MOST_WRONG,
        "threshold_of_shortest": round(float(haitsma_kalker.threshold(haitsma_kalker.SHORTEST)), 4),
    }


def _report(train: _Side, test: _Side) -> dict[str, Any]:
    """The content of overlap.json."""
    overlaps = list(_overlaps(train, test))
    report: dict[str, Any] = {"format": FORMAT, "train": train.facts(), "test": test.facts(), "method": _method()}
    deviations = (0.5 - haitsma_kalker.MOST_WRONG) / haitsma_kalker.DEVIATION
    chance = math.erfc(deviations / math.sqrt(2)) / 2
    pairs = math.prod(sum(clip.compared for clip in side.clips.values()) for side in (train, test))
    report["method"]["false_positives"] = {
        "standard_deviations": round(deviations, 2),
        "probability_of_two_blocks": chance,
        "pairs_of_blocks": pairs,
        "expected": chance * pairs,
    }
    found = overlapping({"overlaps": overlaps})
    report["test_questions"] = {kind: len(ids) for kind, ids in found.items()} | {"any": len(overlaps)}
    report["train_clips"] = {
        kind: len({shared["audio_path"] for one in overlaps for shared in one["train"] if kind in shared["by"]})
        for kind in KINDS
    }
    report["overlaps"] = overlaps
    return report


def _overlaps(train: _Side, test: _Side) -> Iterator[dict[str, Any]]:
    """For each test question whose clip shares something with training clips: these, in their order."""
    by_pcm: dict[str, list[Path]] = defaultdict(list)
    by_video: dict[str, list[Path]] = defaultdict(list)
    by_clip: dict[int, dict[Path, dict[str, Any]]] = defaultdict(dict)
    for path, clip in train.clips.items():
        if clip.pcm is not None:
            by_pcm[clip.pcm].append(path)
        for video in {video_of(question) for question in train.questions[path]} - {None}:
            by_video[str(video)].append(path)
        for match in clip.matches:
            by_clip[match["clip"]][path] = {key: value for key, value in match.items() if key != "clip"}
    order = {path: place for place, path in enumerate(train.paths)}
    for place, (path, clip) in enumerate(test.clips.items()):
        for question in test.questions[path]:
            shared: dict[str, Collection[Path]] = {
                "samples": by_pcm.get(clip.pcm or "", ()),
                "fingerprint": by_clip[place],
                "video": by_video.get(video_of(question) or "", ()),
            }
            found = sorted({one for paths in shared.values() for one in paths}, key=order.__getitem__)
            if found:
                clips = [
                    {
                        "audio_path": train.names[one],
                        "questions": [each.id for each in train.questions[one]],
                        "by": [kind for kind in KINDS if one in shared[kind]],
                        **by_clip[place].get(one, {}),
                    }
                    for one in found
                ]
                yield {"id": question.id, "audio_path": test.names[path], "train": clips}


def _result_file(text: str) -> Path:
    """The type of an option that names a file to write, or a folder for overlap.json, for argparse."""
    return output_file(text if text.endswith(".json") else os.path.join(text, OVERLAP))


def _parser() -> Options:
    parser = Options(__doc__, "python -m data_prep.overlap")
    add = parser.add_argument
    add("--train", type=Path, required=True, metavar="FILE", help="the manifest that is trained on")
    add("--test", type=Path, required=True, metavar="FILE", help="the manifest of the test, or a benchmark's own file")
    add("--audio-dir", type=Path, metavar="DIR",
        help="where the clips of a benchmark's own file are (default: beside it)")  # fmt: skip
    add("--out", type=_result_file, required=True, metavar="FILE|DIR",
        help=f"file to write that ends in .json, or folder for {OVERLAP}")  # fmt: skip
    add_workers_argument(parser)
    return parser


if __name__ == "__main__":
    main()
