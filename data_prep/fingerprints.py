"""Every clip of a manifest decoded once, and what makes two questions share one: the samples, or the source video."""

from __future__ import annotations

import hashlib
import multiprocessing
import os
import re
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile
from tqdm import tqdm

from data_prep.media import MAX_SECONDS, MIN_SECONDS, SILENCE
from data_prep.workers import ignore_interrupts
from r1_aqa_repro.common.errors import Failed
from r1_aqa_repro.data.audio import SAMPLING_RATE, AudioError, check_audio, load_audio
from r1_aqa_repro.data.questions import AudioQuestion

_CHUNK = 16  # clips handed to a process at once
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
    if not os.path.isfile(path):  # False also for what cannot be a path
        return Decoded((("missing", f"{path} does not exist"),))
    if (reason := check_audio(path)) is not None:
        return Decoded((("undecodable", f"{path}: {reason}"),))
    header = soundfile.info(str(path))
    problems: list[tuple[str, str]] = []
    if header.duration > MAX_SECONDS:
        what = f"{path} lasts {header.duration:.0f} s: too long to be one clip ({MAX_SECONDS:.0f} s)"
        return Decoded((("undecodable", what),), header.duration)
    if (header.samplerate, header.channels) != (SAMPLING_RATE, 1):
        problems.append(("not_16khz_mono", f"{path} has {header.samplerate} Hz and {header.channels} channel(s)"))
    if header.duration < MIN_SECONDS:
        problems.append(("too_short", f"{path} lasts {header.duration:.3f} s"))
    try:
        samples = load_audio(path)
    except AudioError as error:
        return Decoded((*problems, ("undecodable", str(error))), header.duration)
    if np.abs(samples).max() < SILENCE:
        problems.append(("silent", f"{path} has no sound in {header.duration:.1f} s"))
    pcm = np.clip(np.rint(samples * 2**15), -(2**15), 2**15 - 1).astype("<i2")
    return Decoded(tuple(problems), header.duration, hashlib.sha256(pcm.tobytes()).digest())


def decode_clips(questions: Iterable[AudioQuestion], workers: int) -> Clips:
    """Decode every clip once, with a progress bar; one clip a process is in memory at a time.

    Raises:
        Failed: a file makes the decoder crash.
    """
    paths = list(dict.fromkeys(question.audio_path for question in questions))
    decoded: Clips = {}
    with tqdm(total=len(paths), desc="decoding", unit=" clips", disable=None) as bar:
        if workers == 1 or len(paths) <= _CHUNK:
            for path in paths:
                decoded[path] = decode_clip(path)
                bar.update()
            return decoded
        os.environ.setdefault("OMP_NUM_THREADS", "1")  # one thread each: the processes are the parallelism
        pool = ProcessPoolExecutor(workers, multiprocessing.get_context("forkserver"), ignore_interrupts)
        try:
            for path, clip in zip(paths, pool.map(decode_clip, paths, chunksize=_CHUNK), strict=True):
                decoded[path] = clip
                bar.update()
            return decoded
        except BrokenProcessPool:
            last = f"one of those after {next(reversed(decoded))}" if decoded else "one of the first"
            raise Failed(f"a clip makes the decoder crash: {last}") from None
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def video_of(question: AudioQuestion) -> str | None:
    """The video a clip was cut from: AVQA's `source_video` without its start second, so that all parts agree."""
    name = question.source_video
    clip = YOUTUBE_CLIP.fullmatch(name) if name is not None else None
    return clip[1] if clip else name
