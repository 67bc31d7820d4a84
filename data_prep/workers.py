"""Worker processes that turn media into clip files, one task at a time, and the queue that feeds them.

Each worker has a pipe of its own: it ends by itself when the main process is gone, however that died, and if a broken
file crashes a worker, it is known which file did.
"""

from __future__ import annotations

import argparse
import io
import math
import multiprocessing
import os
import signal
import time
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from multiprocessing import forkserver
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any, TypeGuard

import av
import numpy as np
import soundfile

from data_prep.media import Excerpt, MediaError, decode
from r1_aqa_repro.common.console import positive
from r1_aqa_repro.common.distributed import num_cores
from r1_aqa_repro.data.audio import SAMPLING_RATE

PARTIAL = ".partial"  # ending of a clip that is being written
# A clip may take this long, of which decoding is a hundredth: a slow disk may be the rest. A worker can be stopped
# wherever it is, inside a decoder too.
MOST_SECONDS = 60.0
_AHEAD = 4  # tasks a worker holds, so that it need not wait for the next


# One thread each: the processes are the parallelism. And glibc keeps the memory of one clip for the next: to give it
# back and be given it again, page by page, costs a fifth of the decoding. The figures are bytes.
_OF_WORKERS = {"OMP_NUM_THREADS": "1", "MALLOC_MMAP_THRESHOLD_": str(1 << 25), "MALLOC_TRIM_THRESHOLD_": str(1 << 26)}


def add_workers_argument(parser: argparse.ArgumentParser) -> None:
    """`--workers`, for the commands that decode clips."""
    parser.add_argument("--workers", type=positive, default=num_cores(), metavar="N",
        help="clips decoded at once (default: one a core); the result does not depend on it")  # fmt: skip


@dataclass(frozen=True)
class Task:
    """A clip to be made.

    Attributes:
        target: the file; it ends in the format's name.
        source: what it is made from.
        channel: see `decode`.
        seconds: the length that it is cut to or, with silence at its end, filled up to; None leaves it as it is.
    """

    target: Path
    source: Excerpt
    channel: str = "first"
    seconds: float | None = None


@dataclass(frozen=True, slots=True)
class Clip:
    """What was made: size of the file in bytes, length in seconds, largest and root-mean-square amplitude."""

    size: int
    seconds: float
    peak: float
    rms: float


class PassingError(MediaError):
    """A clip that could not be made this time, perhaps through no fault of the file: the next run tries again."""


def make_clip(task: Task) -> Clip:
    """Decode a clip and write it, 16 bits, under its name when it is whole.

    Raises:
        MediaError: it cannot be used.
        OSError: it cannot be written.
    """
    samples = decode(task.source, task.channel)
    if task.seconds is not None:
        length = round(task.seconds * SAMPLING_RATE)
        samples = np.pad(samples[:length], (0, max(0, length - len(samples))))
    # 2 ** 15 gives 16-bit sources back unchanged; what a lossy codec lets overshoot is clipped
    pcm = samples * np.float32(2**15)
    pcm = np.clip(np.rint(pcm, out=pcm), -(2**15), 2**15 - 1, out=pcm).astype(np.int16)
    encoded = io.BytesIO()  # in memory first: soundfile would not say that a disk is full
    file_format = task.target.suffix[1:].upper()
    # the fastest level of FLAC: the others take longer and save hardly anything
    level = {"compression_level": 0.0} if file_format == "FLAC" else {}
    soundfile.write(encoded, pcm, SAMPLING_RATE, format=file_format, subtype="PCM_16", **level)
    temporary = task.target.with_name(f".{task.target.name}.{os.getpid()}{PARTIAL}")
    try:
        temporary.write_bytes(encoded.getbuffer())
        os.replace(temporary, task.target)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise
    peak, rms = float(max(samples.max(), -samples.min())), math.sqrt(float(samples @ samples) / len(samples))
    return Clip(encoded.getbuffer().nbytes, len(samples) / SAMPLING_RATE, peak, rms)


@dataclass
class _Worker:
    process: Any
    connection: Connection
    tasks: deque[Task] = field(default_factory=deque)  # what it holds, in its order
    since: float = 0.0  # when it took up the first of them, by the clock that is not set
    is_retrying: bool = False  # it has a task that another one died of, and no more until that is done


class Workers:
    """A pool: `submit` never blocks, `finished` waits for results; tasks finish in any order."""

    def __init__(self, number: int):
        # neither a copy of a process that has threads (fork) nor all imports anew for each worker (spawn)
        self._context = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload(["__main__", __name__])
        with _environment(_OF_WORKERS):
            forkserver.ensure_running()
        self._waiting: deque[Task] = deque()
        self._workers = [self._start() for _ in range(number)]

    def __enter__(self) -> Workers:
        return self

    def __exit__(self, *_: object) -> None:
        for worker in self._workers:
            worker.connection.close()  # it ends after the clip in hand
        for worker in self._workers:
            worker.process.join(5)
            worker.process.kill()

    def submit(self, task: Task) -> None:
        """Queue a task; the caller bounds how many."""
        self._waiting.append(task)
        self._feed()

    def finished(self) -> list[tuple[Task, Clip | MediaError]]:
        """Wait for at least one result.

        A task whose worker dies, of a broken file or of a kill, is tried a second time, by a worker that has no other.
        A worker that is over its time is killed.

        Raises:
            OSError: a clip could not be written.
        """
        done: list[tuple[Task, Clip | MediaError]] = []
        while not done:
            ready = wait([worker.connection for worker in self._workers], timeout=1.0)
            now = time.monotonic()
            for worker in self._workers:
                if worker.tasks and worker.connection not in ready and now - worker.since > MOST_SECONDS:
                    worker.process.kill()  # which is seen in the next round
            for worker in [worker for worker in self._workers if worker.connection in ready]:
                try:
                    result = worker.connection.recv()
                except (EOFError, OSError):
                    if (task := self._replace(worker)) is None:
                        continue
                    what = f"{_name(task)} makes the decoder crash, or takes it over {MOST_SECONDS:.0f} s"
                    result = PassingError("undecodable", what)
                else:
                    task = worker.tasks.popleft()
                    worker.is_retrying = False
                    worker.since = now
                if isinstance(result, OSError):
                    raise result
                done.append((task, result))
            self._feed()
        return done

    def _feed(self) -> None:
        free = [worker for worker in self._workers if not worker.is_retrying]
        for worker in sorted(free, key=lambda worker: len(worker.tasks)):
            # bytes do not fit into the pipe of a worker that is busy: sending them would hold up all others
            while self._waiting:
                at_most = 1 if isinstance(self._waiting[0].source.media, bytes) else _AHEAD
                if len(worker.tasks) >= at_most or not self._give(worker, self._waiting.popleft()):
                    break

    def _give(self, worker: _Worker, task: Task) -> bool:
        worker.tasks.append(task)
        if len(worker.tasks) == 1:
            worker.since = time.monotonic()
        try:
            worker.connection.send(task)
        except OSError:
            return False  # it died: `finished` sees that, and its tasks go to another
        return True

    def _start(self) -> _Worker:
        ours, theirs = self._context.Pipe()
        process = self._context.Process(target=_work, args=(theirs,), daemon=True)
        process.start()
        theirs.close()
        return _Worker(process, ours)

    def _replace(self, worker: _Worker) -> Task | None:
        """Start another in place of a worker that died; returns the task it died of if that was the second try."""
        worker.connection.close()
        self._workers[self._workers.index(worker)] = another = self._start()
        died_of = worker.tasks.popleft() if worker.tasks else None
        self._waiting.extendleft(reversed(worker.tasks))
        if died_of is None or worker.is_retrying:
            return died_of
        another.is_retrying = True
        self._give(another, died_of)
        return None


@contextmanager
def _environment(variables: Mapping[str, str]) -> Iterator[None]:
    """The processes that are started meanwhile get these."""
    before = {name: os.environ[name] for name in variables if name in os.environ}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name in variables:
            del os.environ[name]
        os.environ.update(before)


def _work(connection: Connection) -> None:
    """Make clips until the main process closes the pipe, or is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the main process alone decides: Ctrl-C reaches all of them
    try:
        while True:
            task = connection.recv()
            try:
                result: Clip | Exception = make_clip(task)
            except (MediaError, OSError) as error:
                result = PassingError(error.reason, error.detail) if _is_passing(error) else error
            connection.send(result)
    except (EOFError, OSError):
        return


def _is_passing(error: Exception) -> TypeGuard[MediaError]:
    """Whether it was reading that failed, as on a lost network share or for lack of rights, and not decoding."""
    cause = error.__cause__
    is_reading = isinstance(cause, OSError) and not isinstance(cause, av.FFmpegError)
    return isinstance(error, MediaError) and (is_reading or error.reason == "missing")


def _name(task: Task) -> str:
    media = task.source.media
    return f"the audio embedded for {task.target.stem}" if isinstance(media, bytes) else str(media)
