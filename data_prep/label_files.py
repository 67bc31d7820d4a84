"""The files of labelled clips: which can be asked about, and which of them are the same."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

from tqdm.contrib.concurrent import thread_map

from data_prep.folder import Account
from data_prep.label_tables import REPEATED, LabelledClip
from data_prep.media import MIN_SECONDS
from r1_aqa_repro.common.errors import Refused
from r1_aqa_repro.common.files import sha256_of
from r1_aqa_repro.data.audio import NO_FILE, AudioError, read_header

MISSING, TOO_SHORT, TWO_LABELS = "missing", "shorter than 0.1 s", "same file under another label"

T = TypeVar("T")


def usable(clips: Sequence[LabelledClip], audio: Path, workers: int, account: Account) -> list[LabelledClip]:
    """The clips that are there and, by their headers, long enough; the others are noted in the `account`.

    What only decoding tells is found when questions have been drawn: the fewer of these are lost, the better they stay
    balanced.

    Raises:
        Refused: none is there.
    """

    def problem_of(path: str) -> tuple[str, str] | None:
        try:
            seconds = read_header(audio / path).seconds
        except AudioError as error:  # of a video, too, whose header this does not read
            return (MISSING, str(error)) if error.reason == NO_FILE else None
        return (TOO_SHORT, f"{audio / path} lasts {seconds:.3f} s") if 0 < seconds < MIN_SECONDS else None

    paths = list(dict.fromkeys(clip.path for clip in clips))
    problems = dict(zip(paths, _of_each(paths, problem_of, workers, "headers"), strict=True))
    if paths and all(problem and problem[0] == MISSING for problem in problems.values()):
        what = f"none of the {len(paths):,} clips is there, the first being {paths[0]}"
        raise Refused.because(str(audio), what, "Give the folder that the paths are below.")
    found = []
    for clip in clips:
        if problem := problems[clip.path]:
            account.lose(clip.where, *problem)
        else:
            found.append(clip)
    return found


def without_twins(clips: Sequence[LabelledClip], audio: Path, workers: int, account: Account) -> list[LabelledClip]:
    """The clips without those of the same bytes as another one of their family, which are noted in the `account`.

    Of equal clips the first stays, and none if their labels differ. Recordings of which two clips are the same become
    one, under the least of their names.
    """
    digests = _digests(list(dict.fromkeys(clip.path for clip in clips)), audio, workers)
    first_recording: dict[str, str] = {}  # by digest
    same_as: dict[str, str] = {}  # by recording: one that it is a part of

    def root(recording: str) -> str:
        while recording in same_as:
            recording = same_as[recording]
        return recording

    alike: dict[tuple[str, str], list[LabelledClip]] = defaultdict(list)  # by digest and family
    for clip in clips:
        digest = digests.get(clip.path, clip.path)
        alike[digest, clip.family].append(clip)
        one, other = root(first_recording.setdefault(digest, clip.recording)), root(clip.recording)
        if one != other:
            same_as[max(one, other)] = min(one, other)
    kept = []
    for clip in clips:
        first, *others = alike[digests.get(clip.path, clip.path), clip.family]
        if unlike := next((twin for twin in (first, *others) if twin.label != clip.label), None):
            what = f"{clip.path} is {clip.label}, and {unlike.path}, which has the same bytes, {unlike.label}"
            account.lose(clip.where, TWO_LABELS, what)
        elif clip is not first:
            account.lose(clip.where, REPEATED, f"{clip.path} has the same bytes as {first.path} of {first.where}")
        else:
            kept.append(replace(clip, recording=root(clip.recording)))
    return kept


def _digests(paths: Iterable[str], audio: Path, workers: int) -> dict[str, str]:
    """SHA-256 of every file that can be read and has the size of another one."""
    of_size = defaultdict(list)
    for path in paths:
        of_size[(audio / path).stat().st_size].append(path)
    alike = [path for group in of_size.values() if len(group) > 1 for path in group]

    def digest(path: str) -> str:
        try:
            return sha256_of(audio / path)
        except OSError:  # the decoder will say why it cannot be read
            return path

    return dict(zip(alike, _of_each(alike, digest, workers, "same files"), strict=True))


def _of_each(paths: Sequence[str], result: Callable[[str], T], workers: int, name: str) -> list[T]:
    """Threads suffice: what reads files works without Python's lock."""
    return thread_map(result, paths, max_workers=workers, desc=name, unit=" clips", disable=None)
