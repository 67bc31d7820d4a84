"""The only audio decoder: a file becomes float32 mono at 16 kHz, or an error that names the file."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import librosa
import numpy as np
import soundfile

from r1_aqa_repro.common.errors import Failed

SAMPLING_RATE = 16_000  # Hz, what Qwen2-Audio's feature extractor expects
CHANNELS = ("first", "mean")
NO_FILE = "no such audio file"
_EMPTY = "the audio is empty (0 samples)"
_SLACK_SECONDS = 0.1  # MP3 headers count frames, and some the encoder's delay too
# libsndfile takes a file that breaks off for a shorter one, and says so in its log alone: sizes in bytes
_FOUND_LESS = re.compile(r"^\s*(?:data|SSND|Data Size|riff)\s*: (\d+) \(should be (\d+)\)", re.MULTILINE)
_FEWER_FRAMES = re.compile(r"Calculated frame count \d+ does not match value from 'ds64' chunk of (\d+)")  # RF64
_PADDING = 8  # bytes by which writers miscount
_UNKNOWN_SIZE = 0x7FFFF000  # bytes; what is written into a pipe cannot know its length, and says more than any clip has
_OGG_PAGE = 27 + 255 + 255 * 255  # bytes of the longest: header, table of segments, segments


class AudioError(Failed):
    """A clip that cannot be used: `path` and `reason`."""

    def __init__(self, path: str | os.PathLike[str], reason: str):
        super().__init__(f"{path}: {reason}")
        self.path, self.reason = Path(path), reason


class CutOff(AudioError):
    """A clip that ends before its header says: half a download, or a full disk while it was written."""


def load_audio(path: str | os.PathLike[str], channel: str = "first") -> np.ndarray:
    """Decode wav, flac, mp3 or ogg of any rate; of several channels the `first`, as R1-AQA does, or their `mean`.

    Returns:
        float32 array [num_samples], mono, 16 kHz, amplitude in [-1, 1] for integer formats.

    Raises:
        AudioError: the file is missing, unreadable, empty, cut off, or holds values that are not finite.
    """
    samples, rate = _read(path, _decode)  # [num_samples, num_channels]
    mono = samples[:, 0] if channel == "first" else samples.mean(axis=1)
    if rate != SAMPLING_RATE:
        mono = librosa.resample(mono, orig_sr=rate, target_sr=SAMPLING_RATE, res_type="soxr_hq")
    return np.ascontiguousarray(mono, dtype=np.float32)


def measure_audio(path: str | os.PathLike[str], minimum_seconds: float = 0.0, decode: bool = False) -> int:
    """How many samples `load_audio` gives of a clip.

    By the header alone, so that a whole data set is measured in seconds, unless it is to be decoded. A header can be
    sound before content that is not, and that of an MP3 or Ogg may be a little off.

    Raises:
        AudioError: as `load_audio`, as far as it was read, or the clip is shorter than `minimum_seconds`.
    """
    if decode:
        samples, rate = _read(path, _decode)
        frames = len(samples)
    else:
        info = _read(path, soundfile.info)
        frames, rate = info.frames, info.samplerate
    if frames == 0:
        raise AudioError(path, _EMPTY)
    if frames < minimum_seconds * rate:
        what = f"the clip is too short ({frames / rate:.3f} s; at least {minimum_seconds:.2f} s are needed)"
        raise AudioError(path, what)
    return math.ceil(frames * (SAMPLING_RATE / rate))  # as librosa rounds


def check_audio(path: str | os.PathLike[str], minimum_seconds: float = 0.0) -> str | None:
    """Why `path` cannot be used, or None, by its header alone; see `measure_audio`."""
    try:
        measure_audio(path, minimum_seconds)
    except AudioError as error:
        return error.reason
    return None


def _decode(path: str) -> tuple[np.ndarray, int]:
    """float32 [num_samples, num_channels], all that the header says and finite, and their rate in Hz."""
    with soundfile.SoundFile(path) as file:
        declared, rate, log, is_ogg = file.frames, file.samplerate, file.extra_info, file.format == "OGG"
        samples = file.read(dtype="float32", always_2d=True)
    if len(samples) == 0:
        raise AudioError(path, _EMPTY)
    declared = max(declared, *map(int, _FEWER_FRAMES.findall(log)), 0)
    if len(samples) < declared - _SLACK_SECONDS * rate:
        raise CutOff(path, f"it is cut off: {len(samples):,} of the {declared:,} samples of its header are there")
    for said, found in ((int(said), int(found)) for said, found in _FOUND_LESS.findall(log)):
        if found + _PADDING < said < _UNKNOWN_SIZE:
            raise CutOff(path, f"it is cut off: {found:,} of the {said:,} bytes of its header are there")
    if is_ogg and not _ends_ogg(path):
        raise CutOff(path, "it is cut off: the last page of an Ogg stream is not there")
    if not np.isfinite(samples).all():
        raise AudioError(path, "the audio holds NaN or infinite samples")
    return samples, rate


def _ends_ogg(path: str) -> bool:
    """Whether the last page of an Ogg file is whole and marked as a stream's last (RFC 3533, section 6)."""
    with open(path, "rb") as file:
        file.seek(-min(os.path.getsize(path), 2 * _OGG_PAGE), os.SEEK_END)
        tail = file.read()
    start = tail.rfind(b"OggS")
    segments = tail[start + 27 :][: tail[start + 26]] if 0 <= start < len(tail) - 27 else b""
    end = start + 27 + len(segments) + sum(segments)
    return bool(segments) and len(segments) == tail[start + 26] and end <= len(tail) and bool(tail[start + 5] & 4)


def _read(path: str | os.PathLike[str], read: Callable[[str], Any]) -> Any:
    if not os.path.isfile(path):
        raise AudioError(path, NO_FILE)
    try:
        return read(str(path))
    # a header may claim more samples than fit into any memory
    except (soundfile.LibsndfileError, OSError, RuntimeError, ValueError, MemoryError) as error:
        raise AudioError(path, f"cannot be decoded ({error})") from error
