"""The only audio decoder: a file becomes float32 mono at 16 kHz, or an error that names the file.

A file tells its format by its content, never by its name, and only recordings of a few formats are decoded: nothing
that names other files or hosts, such as a playlist, reaches a decoder.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path

import librosa
import numpy as np
import soundfile

from r1_aqa_repro.common.errors import Failed
from r1_aqa_repro.common.files import open_file

SAMPLING_RATE = 16_000  # Hz, what Qwen2-Audio's feature extractor expects
CHANNELS = ("first", "mean")
# Greatest amplitude; that of full scale is 1. Lossy codecs overshoot, and whoever forgets to scale integers of 32 bits
# gets this. What is above no recording has given, and it overflows once it is squared.
LOUDEST = 2.0**31
NO_FILE = "no such audio file"
_FORMATS = ("WAV", "WAVEX", "RF64", "FLAC", "OGG", "MP3", "AIFF")  # by libsndfile's names
# What these begin with; an MP3 with a frame, whose first 11 bits are set, or with a tag. libsndfile is not asked about
# anything else: it would look for parts of it in other files.
_BEGINNING = re.compile(rb"RIFF|RIFX|RF64|fLaC|OggS|FORM|ID3|\xff[\xe0-\xff]")
# What is no recording, by how it begins: most of it tells where to find one
_XML = rb"(?:<\?xml.*?)?<"
_KINDS = {
    "a playlist (ffconcat)": rb"ffconcat version",
    "a playlist (HLS)": rb"#EXTM3U.*?^#EXT-X-",
    "a playlist (M3U)": rb"#EXTM3U",
    "a playlist (PLS)": rb"\[playlist\]",
    "a playlist (ASX)": _XML + rb"asx\b|\[Reference\]",
    "a playlist (XSPF)": _XML + rb"playlist\b",
    "a playlist (SMIL)": _XML + rb"smil\b",
    "a description of streams (DASH)": _XML + rb"MPD\b",
    "a description of streams (Smooth Streaming)": _XML + rb"SmoothStreamingMedia\b",
    "a description of streams (SDP)": rb"v=0\s",
    "a web page": rb"<!DOCTYPE html|<html\b",
    "text": rb"[^\x00-\x08\x0e-\x1f]+\Z",
}
_KIND = [
    (kind, re.compile(rb"(?:\xef\xbb\xbf)?\s*(?:" + how + rb")", re.IGNORECASE | re.DOTALL | re.MULTILINE))
    for kind, how in _KINDS.items()
]
HEAD = 4096  # bytes by which `no_recording` knows
# What a file may hold, which bounds the time and the memory that it takes: ten minutes of eight channels at 48 kHz, or
# an hour at lower rates, which resampling makes many samples of
MOST_BYTES, _MOST_SAMPLES, _MOST_SECONDS = 2**30, 2**28, 3600
_EMPTY = "the audio is empty (0 samples)"
_SLACK_SECONDS = 0.1  # MP3 headers count frames, and some the encoder's delay too
# libsndfile takes a file that breaks off for a shorter one, and says so in its log alone: sizes in bytes
_FOUND_LESS = re.compile(r"^\s*(?:data|SSND|Data Size|riff)\s*: (\d+) \(should be (\d+)\)", re.MULTILINE)
_FEWER_FRAMES = re.compile(r"Calculated frame count \d+ does not match value from 'ds64' chunk of (\d+)")  # RF64
_PADDING = 8  # bytes by which writers miscount
_UNKNOWN_SIZE = 0x7FFFF000  # bytes; what is written into a pipe cannot know its length, and says more than any clip has
_UNKNOWN_FRAMES = 2**63 - 1  # what libsndfile gives for a FLAC that was written into a pipe, and cannot decode
_OGG_PAGE = 27 + 255 + 255 * 255  # bytes of the longest: header, table of segments, segments


class AudioError(Failed):
    """A clip that cannot be used: `path` and `reason`."""

    def __init__(self, path: str | os.PathLike[str], reason: str):
        super().__init__(f"{path}: {reason}")
        self.path, self.reason = Path(path), reason


class CutOff(AudioError):
    """A clip that ends before its header says: half a download, or a full disk while it was written."""


def load_audio(path: str | os.PathLike[str], channel: str = "first") -> np.ndarray:
    """Decode wav, flac, mp3, ogg or aiff of any rate; of several channels the `first`, as R1-AQA does, or their `mean`.

    Returns:
        float32 array [num_samples], mono, 16 kHz, amplitude in [-1, 1] for integer formats.

    Raises:
        AudioError: the file is missing, unreadable, no recording, empty, cut off, too large, or holds values that are
            not finite or above `LOUDEST`.
    """
    samples, rate = _decode(path)  # [num_samples, num_channels]
    mono = samples[:, 0] if channel == "first" else samples.mean(axis=1)
    if rate != SAMPLING_RATE:
        mono = librosa.resample(mono, orig_sr=rate, target_sr=SAMPLING_RATE, res_type="soxr_hq")
    return np.ascontiguousarray(mono, dtype=np.float32)


@dataclass(frozen=True)
class Header:
    """What a clip says of itself: samples of each channel, and their rate in Hz."""

    frames: int
    rate: int
    channels: int

    @property
    def seconds(self) -> float:
        return self.frames / self.rate


def read_header(path: str | os.PathLike[str]) -> Header:
    """The header of a clip. It can be sound before content that is not, and of an MP3 or Ogg be a little off.

    Raises:
        AudioError: as `load_audio`, as far as it was read.
    """
    with _opened(path) as (file, _):
        return Header(file.frames, file.samplerate, file.channels)


def measure_audio(path: str | os.PathLike[str], minimum_seconds: float = 0.0, decode: bool = False) -> int:
    """How many samples `load_audio` gives of a clip: by its header alone, so that a whole data set is measured in
    seconds, unless it is to be decoded.

    Raises:
        AudioError: as `load_audio`, as far as it was read, or the clip is shorter than `minimum_seconds`.
    """
    if decode:
        samples, rate = _decode(path)
        frames = len(samples)
    else:
        header = read_header(path)
        frames, rate = header.frames, header.rate
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


def no_recording(beginning: bytes) -> str | None:
    """What a file is that begins so, if it is known to be no recording: such as "a playlist (M3U), not a recording"."""
    found = next((kind for kind, pattern in _KIND if pattern.match(beginning)), None)
    return None if found is None else f"it is {found}, not a recording"


def impossible(samples: np.ndarray) -> str | None:
    """Why samples, of which there is at least one, cannot be a recording's; None if they can."""
    peak = max(samples.max(), -samples.min())
    if not np.isfinite(peak):
        return "the audio holds NaN or infinite samples"
    return f"the audio holds samples of {peak:.3g}, where full scale is 1" if peak > LOUDEST else None


@contextmanager
def _opened(path: str | os.PathLike[str]) -> Iterator[tuple[soundfile.SoundFile, BufferedReader]]:
    """A clip whose header has been read, and its file; what goes wrong until it is closed is an AudioError."""
    try:
        with open_file(path) as file:
            if (reason := no_recording(beginning := os.pread(file.fileno(), HEAD, 0))) is not None:
                raise AudioError(path, reason)
            if not _BEGINNING.match(beginning):
                raise AudioError(path, "cannot be decoded (it begins as no wav, flac, mp3, ogg or aiff file does)")
            if (size := os.fstat(file.fileno()).st_size) > MOST_BYTES:
                raise AudioError(path, f"it is too large for a clip ({size:,} bytes)")
            # by its number: libsndfile would go by the name
            with soundfile.SoundFile(file.fileno(), closefd=False) as opened:
                if opened.format not in _FORMATS:
                    raise AudioError(path, f"cannot be decoded ({opened.format} is no format of clips)")
                if opened.frames == _UNKNOWN_FRAMES:
                    raise AudioError(path, "its header does not say how long it is: write it to a file, not a pipe")
                said = f"its header says {opened.frames:,} samples at {opened.samplerate:,} Hz"
                if opened.frames * opened.channels > _MOST_SAMPLES or opened.frames > _MOST_SECONDS * opened.samplerate:
                    raise AudioError(path, f"{said}: too many for a clip")
                yield opened, file
    except FileNotFoundError:
        raise AudioError(path, NO_FILE) from None
    except OSError as error:
        raise AudioError(path, f"cannot be read ({error.strerror or error})") from error
    except (RuntimeError, ValueError, MemoryError) as error:
        why = error.error_string if isinstance(error, soundfile.LibsndfileError) else error
        raise AudioError(path, f"cannot be decoded ({why})") from error


def _decode(path: str | os.PathLike[str]) -> tuple[np.ndarray, int]:
    """float32 [num_samples, num_channels], all that the header says and finite, and their rate in Hz."""
    with _opened(path) as (file, raw):
        declared, rate, log, is_ogg = file.frames, file.samplerate, file.extra_info, file.format == "OGG"
        samples = file.read(dtype="float32", always_2d=True)
        is_whole = not is_ogg or _ends_ogg(raw)
    if len(samples) == 0:
        raise AudioError(path, _EMPTY)
    declared = max(declared, *map(int, _FEWER_FRAMES.findall(log)), 0)
    if len(samples) < declared - _SLACK_SECONDS * rate:
        raise CutOff(path, f"it is cut off: {len(samples):,} of the {declared:,} samples of its header are there")
    for said, found in ((int(said), int(found)) for said, found in _FOUND_LESS.findall(log)):
        if found + _PADDING < said < _UNKNOWN_SIZE:
            raise CutOff(path, f"it is cut off: {found:,} of the {said:,} bytes of its header are there")
    if not is_whole:
        raise CutOff(path, "it is cut off: the last page of an Ogg stream is not there")
    if (reason := impossible(samples)) is not None:
        raise AudioError(path, reason)
    return samples, rate


def _ends_ogg(file: BufferedReader) -> bool:
    """Whether the last page of an Ogg file is whole and marked as a stream's last (RFC 3533, section 6)."""
    file.seek(-min(file.seek(0, os.SEEK_END), 2 * _OGG_PAGE), os.SEEK_END)
    tail = file.read()
    start = tail.rfind(b"OggS")
    segments = tail[start + 27 :][: tail[start + 26]] if 0 <= start < len(tail) - 27 else b""
    end = start + 27 + len(segments) + sum(segments)
    return bool(segments) and len(segments) == tail[start + 26] and end <= len(tail) and bool(tail[start + 5] & 4)
