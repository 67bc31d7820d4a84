"""What makes two questions share a clip: the same samples, or the same source video."""

from __future__ import annotations

import argparse
import hashlib
import multiprocessing
import os
import re
import signal
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile
from tqdm import tqdm

from data_prep.media import MAX_SECONDS, MIN_SECONDS, SILENCE
from r1_aqa_repro.common.console import positive
from r1_aqa_repro.common.errors import Failed
from r1_aqa_repro.data.audio import SAMPLING_RATE, AudioError, check_audio, load_audio
from r1_aqa_repro.data.questions import AudioQuestion

_CHUNK = 16  # clips handed to a process at once
YOUTUBE_CLIP = re.compile(r"([A-Za-z0-9_-]{11})_[0-9]+")  # id and start second; the id may hold underscores itself


@dataclass(frozen=True)
class Heard:
    """What listening to a clip gave.

    Attributes:
        problems: (rule, detail) of everything that is wrong with it; see `validate.RULES`.
        seconds: its length; 0 where it cannot be read.
        pcm: SHA-256 of its samples as training hears them (16 kHz, first channel) in 16 bits, so that WAV and FLAC of
            the same clip agree; None where it cannot be decoded.
    """

    problems: tuple[tuple[str, str], ...]
    seconds: float = 0.0
    pcm: bytes | None = None


def listen(path: Path) -> Heard:
    """Decode a clip and judge it."""
    if not os.path.isfile(path):  # False also for what cannot be a path
        return Heard((("missing", f"{path} does not exist"),))
    if (reason := check_audio(path)) is not None:
        return Heard((("undecodable", f"{path}: {reason}"),))
    header = soundfile.info(str(path))
    problems: list[tuple[str, str]] = []
    if header.duration > MAX_SECONDS:
        what = f"{path} lasts {header.duration:.0f} s: too long to be one clip ({MAX_SECONDS:.0f} s)"
        return Heard((("undecodable", what),), header.duration)
    if (header.samplerate, header.channels) != (SAMPLING_RATE, 1):
        problems.append(("not_16khz_mono", f"{path} has {header.samplerate} Hz and {header.channels} channel(s)"))
    if header.duration < MIN_SECONDS:
        problems.append(("too_short", f"{path} lasts {header.duration:.3f} s"))
    try:
        samples = load_audio(path)
    except AudioError as error:
        return Heard((*problems, ("undecodable", str(error))), header.duration)
    if np.abs(samples).max() < SILENCE:
        problems.append(("silent", f"{path} has no sound in {header.duration:.1f} s"))
    pcm = np.clip(np.rint(samples * 2**15), -(2**15), 2**15 - 1).astype("<i2")
    return Heard(tuple(problems), header.duration, hashlib.sha256(pcm.tobytes()).digest())


def listen_to_all(questions: Iterable[AudioQuestion], workers: int) -> dict[Path, Heard]:
    """Listen to every clip once, with a progress bar; one clip a process is in memory at a time.

    Raises:
        Failed: a file makes the decoder crash.
    """
    paths = list(dict.fromkeys(question.audio_path for question in questions))
    with tqdm(total=len(paths), desc="listening", unit=" clips", disable=None) as bar:
        if workers == 1 or len(paths) <= _CHUNK:
            heard = {}
            for path in paths:
                heard[path] = listen(path)
                bar.update()
            return heard
        os.environ.setdefault("OMP_NUM_THREADS", "1")  # one thread each: the processes are the parallelism
        pool = ProcessPoolExecutor(workers, multiprocessing.get_context("forkserver"), _leave_interrupts)
        try:
            heard = {}
            for path, one in zip(paths, pool.map(listen, paths, chunksize=_CHUNK), strict=True):
                heard[path] = one
                bar.update()
            return heard
        except BrokenProcessPool:
            last = f"one of those after {next(reversed(heard))}" if heard else "one of the first"
            raise Failed(f"a clip makes the decoder crash: {last}") from None
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def add_workers_argument(parser: argparse.ArgumentParser) -> None:
    """`--workers`, for the commands that listen."""
    cores = len(os.sched_getaffinity(0))
    parser.add_argument("--workers", type=positive, default=cores, metavar="N", help="processes (default: one a core)")


def video_of(question: AudioQuestion) -> str | None:
    """The video a clip was cut from: AVQA's `source_video` without its start second, so that all parts agree."""
    name = question.source_video
    clip = YOUTUBE_CLIP.fullmatch(name) if name is not None else None
    return clip[1] if clip else name


def _leave_interrupts() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all processes: the main one decides
