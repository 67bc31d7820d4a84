"""Every clip of a manifest decoded once, and what makes two questions share one: the samples, or the source video."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tqdm.contrib.concurrent import thread_map

from data_prep.media import MAX_SECONDS, MIN_SECONDS, SILENCE
from r1_aqa_repro.data.audio import NO_FILE, SAMPLING_RATE, AudioError, CutOff, load_audio, read_header
from r1_aqa_repro.data.questions import AudioQuestion

YOUTUBE_CLIP = re.compile(r"([A-Za-z0-9_-]{11})_[0-9]+")  # id and start second; the id may hold underscores itself


@dataclass(frozen=True)
class Decoded:
    """What decoding a clip gave.

    Attributes:
        problems: (rule, detail) of everything that is wrong with it; see `validate.RULES`.
        seconds: its length; 0 if its header cannot be read.
        pcm: SHA-256 of its samples as training reads them (16 kHz, first channel) in 16 bits, so that WAV and FLAC of
            the same clip agree; None if it cannot be decoded.
    """

    problems: tuple[tuple[str, str], ...]
    seconds: float = 0.0
    pcm: bytes | None = None


Clips = dict[Path, Decoded]


def decode_clip(path: Path) -> Decoded:
    """Decode a clip and judge it."""
    return read_clip(path)[0]


def read_clip(path: Path) -> tuple[Decoded, np.ndarray | None]:
    """Decode a clip and judge it; its samples too, as `load_audio` gives them, if it can be decoded."""
    problems: list[tuple[str, str]] = []
    seconds = 0.0
    try:
        header = read_header(path)
        seconds = header.seconds
        if seconds > MAX_SECONDS:
            raise AudioError(path, f"it lasts {seconds:.0f} s: too long to be one clip ({MAX_SECONDS:.0f} s)")
        if (header.rate, header.channels) != (SAMPLING_RATE, 1):
            problems.append(("not_16khz_mono", f"{path} has {header.rate} Hz and {header.channels} channel(s)"))
        if 0 < seconds < MIN_SECONDS:
            problems.append(("too_short", f"{path} lasts {seconds:.3f} s"))
        samples = load_audio(path)
    except AudioError as error:
        rule = "cut_off" if isinstance(error, CutOff) else "missing" if error.reason == NO_FILE else "undecodable"
        return Decoded((*problems, (rule, str(error))), seconds), None
    if np.abs(samples).max() < SILENCE:
        problems.append(("silent", f"{path} has no sound in {seconds:.1f} s"))
    pcm = np.clip(np.rint(samples * 2**15), -(2**15), 2**15 - 1).astype("<i2")
    return Decoded(tuple(problems), seconds, hashlib.sha256(pcm.tobytes()).digest()), samples


def decode_clips(questions: Iterable[AudioQuestion], workers: int) -> Clips:
    """Decode every clip once, with a progress bar; `workers` clips at a time are in memory.

    Threads suffice: libsndfile, soxr, NumPy and the digest work without Python's lock.
    """
    paths = list(dict.fromkeys(question.audio_path for question in questions))
    decoded = thread_map(decode_clip, paths, max_workers=workers, desc="decoding", unit=" clips", disable=None)
    return dict(zip(paths, decoded, strict=True))


def video_of(question: AudioQuestion) -> str | None:
    """The video a clip was cut from: AVQA's `source_video` without its start second, so that all parts agree."""
    name = question.source_video
    clip = YOUTUBE_CLIP.fullmatch(name) if name is not None else None
    return clip[1] if clip else name
