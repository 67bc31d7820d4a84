"""Decode any media file, or a part of it, to float32 mono at 16 kHz, from which the prepared clips are made.

PyAV brings FFmpeg's demuxers and decoders inside its wheel, so nothing has to be installed beside it. The content of a
file tells its format, never its name, and only recordings are opened: of a playlist FFmpeg would read the files and
hosts that it names. Training does not use this module: it reads the prepared files through `r1_aqa_repro.data.audio`,
whose resampling this equals to the bit.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import av
import numpy as np
import soxr

from r1_aqa_repro.common.files import open_file
from r1_aqa_repro.data.audio import CHANNELS, HEAD, SAMPLING_RATE, impossible, no_recording
from r1_aqa_repro.data.questions import HEARD_SECONDS

MAX_SECONDS = 600.0  # longest file taken whole: a longer one is a recording, not a clip
MIN_SECONDS = 0.1
SILENCE = 1e-4  # peak amplitude under which a clip is silent: 3 steps of 16 bits, -80 dB
BAD_RECORD = "bad record"
TOO_LONG = f"longer than {HEARD_SECONDS:.0f} s"
REASONS = ("missing", "undecodable", "no audio track", "shorter than 0.1 s", TOO_LONG, "silent", BAD_RECORD)

# What FFmpeg may take a file for, by its demuxers' names. And whatever that says, no other file or host is opened: none
# is not the name of a protocol, and the file itself is read by Python.
_LISTED = {"format_whitelist": "wav,flac,mp3,ogg,mov,matroska,webm,aac,aiff", "protocol_whitelist": "none"}
_FORMATS = "wav, flac, mp3, ogg, mp4, m4a, mov, webm, mkv, aac and aiff"
_PRE_ROLL = 1.0  # seconds decoded before a cut: AAC, Opus and MP3 need what came before to sound right
_WAV_PROBE = 1 << 16  # bytes
_UNKNOWN_SIZE = 0x7FFFF000
_BLOCK = 1 << 16  # samples of all channels held before they become mono
# how much less than its header says a file may give: an MP4's audio often ends a little before its pictures
_SLACK_SECONDS, _SLACK_SHARE = 0.25, 0.05


class MediaError(Exception):
    """A clip that cannot be used: `reason` is one of `REASONS`, `detail` names the file and says what is wrong."""

    def __init__(self, reason: str, detail: str):
        super().__init__(f"{reason}: {detail}")
        self.reason, self.detail = reason, detail

    def __reduce__(self) -> tuple[type[MediaError], tuple[str, str]]:
        return type(self), (self.reason, self.detail)  # it travels between processes


@dataclass(frozen=True)
class Excerpt:
    """Where a clip is.

    Attributes:
        media: a file, or its bytes.
        start: of the clip, in seconds from the beginning of the file (default: 0); it is found by seeking.
        seconds: length of the clip; a file that ends before gives what it has (default: to the end, and then the
            file may last 600 s at most).
        cut_over: cut only a file that lasts longer than this many seconds; any other is the clip already. A file
            whose header has no length is decoded up to there to find out.
        is_heard_whole: refuse a file, taken to its end, that goes on after `HEARD_SECONDS`.
    """

    media: Path | bytes
    start: float | None = None
    seconds: float | None = None
    cut_over: float | None = None
    is_heard_whole: bool = False


def decode(clip: Excerpt, channel: str = "first") -> np.ndarray:
    """Decode the audio track of a file, or a part of it.

    Args:
        clip: the file and the part.
        channel: `first` takes the first channel, as R1-AQA does; `mean` averages all channels.

    Returns:
        float32 array [num_samples], mono, 16 kHz, amplitude in [-1, 1] for integer formats.

    Raises:
        MediaError: nothing usable is in there.
        ValueError: unknown `channel`.
    """
    if channel not in CHANNELS:
        raise ValueError(f"channel must be one of {CHANNELS}, not {channel!r}")
    name = "the embedded audio" if isinstance(clip.media, bytes) else str(clip.media)
    found = None
    try:
        with _open(clip.media, name) as file:
            if (reason := no_recording(file.read(HEAD))) is not None:
                raise MediaError("undecodable", f"{name}: {reason}")
            options = _LISTED | _check_wav(file, name)
            for part in (clip, replace(clip, cut_over=None)):
                file.seek(0)
                with av.open(file, "r", metadata_errors="ignore", container_options=options) as container:
                    found = _samples(container, name, part, channel)
                if found is not None:
                    break
    except av.ArgumentError as error:
        raise MediaError("undecodable", f"{name} cannot be decoded, or is none of {_FORMATS}") from error
    except (av.FFmpegError, OSError, ValueError) as error:
        raise MediaError("undecodable", f"{name} cannot be decoded ({_brief(error)})") from error
    assert found is not None  # without `cut_over` it cannot be
    mono, rate = found
    if len(mono) < MIN_SECONDS * rate:
        raise MediaError("shorter than 0.1 s", f"{name} gives {len(mono) / rate:.3f} s")
    samples = resample(mono, rate)
    if (reason := impossible(samples)) is not None:  # resampling keeps what is not finite
        raise MediaError("undecodable", f"{name}: {reason}")
    if max(samples.max(), -samples.min()) < SILENCE:
        raise MediaError("silent", f"{name} has no sound in {len(mono) / rate:.1f} s")
    return samples


def resample(mono: np.ndarray, rate: int) -> np.ndarray:
    """Resample [num_samples] to 16 kHz: bit for bit what `librosa.resample(..., res_type="soxr_hq")` gives.

    It is called without librosa because importing librosa's Numba takes each process over a second.
    """
    if rate == SAMPLING_RATE:
        return np.ascontiguousarray(mono, dtype=np.float32)
    resampled = soxr.resample(mono, rate, SAMPLING_RATE, quality="soxr_hq")
    length = int(np.ceil(len(mono) * (SAMPLING_RATE / rate)))
    return np.ascontiguousarray(np.pad(resampled[:length], (0, max(0, length - len(resampled)))), dtype=np.float32)


class _Nameless(io.BufferedReader):
    """A file without its name: FFmpeg would take the extension into account."""

    name = ""


def _open(source: Path | bytes, name: str) -> io.BufferedIOBase:
    if isinstance(source, bytes):
        return io.BytesIO(source)
    try:
        return _Nameless(open_file(source).detach())
    except FileNotFoundError:
        raise MediaError("missing", f"{name} does not exist") from None


def _check_wav(file: io.BufferedIOBase, name: str) -> dict[str, str]:
    """Refuse a WAV that breaks off, which FFmpeg takes as it is; returns how FFmpeg is to find out what is inside."""
    file.seek(0)
    tag, size = file.read(4), int.from_bytes(file.read(4), "little") + 8
    found = file.seek(0, io.SEEK_END)
    if tag not in (b"RIFF", b"RF64"):
        return {}
    # what is written into a pipe cannot know its length, and says the highest number there is
    if tag == b"RIFF" and found < size * (1 - _SLACK_SHARE) and size < _UNKNOWN_SIZE:
        raise MediaError("undecodable", f"{name} breaks off: {found:,} of {size:,} bytes are there")
    return {"probesize": str(_WAV_PROBE)}  # it would read all of it, in search of DTS


def _samples(
    container: av.container.InputContainer, name: str, part: Excerpt, channel: str
) -> tuple[np.ndarray, int] | None:
    """Mono samples at the file's own rate, and that rate in Hz.

    None if the header has no length and the file goes on after `cut_over`, so that the part must be cut out of it.
    """
    start, seconds, cut_over = part.start, part.seconds, part.cut_over
    stream = container.streams.best("audio")
    if stream is None:
        raise MediaError("no audio track", f"{name} holds no audio")
    assert isinstance(stream, av.AudioStream)
    declared = _declared_seconds(container, stream)
    undecided = cut_over if declared is None else None  # seconds up to which it may turn out to be the clip already
    if cut_over is not None and (declared is None or declared <= cut_over):
        start = seconds = None
    start = start or 0.0
    limit = HEARD_SECONDS if part.is_heard_whole else MAX_SECONDS
    longest = limit if seconds is None else seconds
    if seconds is None and limit == MAX_SECONDS and declared is not None and declared - start > limit:
        raise MediaError("undecodable", f"{name} lasts {declared:.0f} s: too long to be one clip ({MAX_SECONDS:.0f} s)")

    origin = (container.start_time or 0) / av.time_base
    if start > _PRE_ROLL and stream.time_base is not None:
        container.seek(int((start - _PRE_ROLL + origin) / stream.time_base), stream=stream)
    parts: list[np.ndarray] = []
    rate = position = begin = end = 0  # position: of the next sample, counted from the beginning of the file
    for block_start, mono, rate in _mono_blocks(container, stream, origin, channel):
        begin, end = round(start * rate), round((start + longest) * rate)
        position = block_start + len(mono)
        parts.append(mono[max(0, begin - block_start) : max(0, end - block_start)])
        if undecided is not None and position > undecided * rate:
            return None
        if position > end and undecided is None:
            break
    if not rate and start and declared and declared <= start:
        raise MediaError("shorter than 0.1 s", f"{name} ends at {declared:.1f} s, before the clip begins")
    if not rate:
        raise MediaError("undecodable", f"{name} gives not one sample")
    if part.is_heard_whole and position > end:
        raise MediaError(TOO_LONG, f"{name} goes on after {HEARD_SECONDS:.0f} s")
    if seconds is None and position > end:
        raise MediaError("undecodable", f"{name} is too long to be one clip (over {MAX_SECONDS:.0f} s)")
    found = sum(map(len, parts)) / rate
    expected = min(longest, (declared or 0.0) - start)
    if found < expected * (1 - _SLACK_SHARE) - _SLACK_SECONDS:
        raise MediaError("undecodable", f"{name} breaks off: {found:.1f} of {expected:.1f} s can be decoded")
    return np.concatenate(parts), rate


def _declared_seconds(container: av.container.InputContainer, stream: av.AudioStream) -> float | None:
    """Length of the audio track as the header gives it, or None if it gives no length."""
    if stream.duration is not None and stream.time_base is not None:
        return float(stream.duration * stream.time_base)
    hours, *rest = stream.metadata.get("DURATION", "").split(":")  # Matroska's, such as 00:00:10.008000000
    if len(rest) == 2:
        return int(hours) * 3600 + int(rest[0]) * 60 + float(rest[1])
    return None if container.duration is None else container.duration / av.time_base


def _mono_blocks(
    container: av.container.InputContainer, stream: av.AudioStream, origin: float, channel: str
) -> Iterator[tuple[int, np.ndarray, int]]:
    """Decode on from here: (index of the first sample in the file, mono samples, rate in Hz), block by block.

    A packet that cannot be decoded is left out; what is missing then shows in the length.
    """
    fifo = av.AudioFifo()  # gathers frames of about 1,000 samples, so that NumPy is called once a block
    position: int | None = None
    channels = 0
    for packet in container.demux(stream):
        try:
            frames = packet.decode()
        except av.InvalidDataError:
            continue
        for frame in frames:
            if position is None:
                position = 0 if frame.time is None else round((frame.time - origin) * frame.sample_rate)
                channels = frame.layout.nb_channels
            if frame.layout.nb_channels != channels:  # the queue looks at rate and format alone, and would crash
                raise ValueError("the number of channels changes on the way")
            frame.pts = None  # the queue would insist on unbroken times
            fifo.write(frame)
        if position is not None and fifo.samples >= _BLOCK and (block := fifo.read()) is not None:
            yield position, _to_mono(block, channel), block.sample_rate
            position += block.samples
    if position is not None and (block := fifo.read()) is not None:
        yield position, _to_mono(block, channel), block.sample_rate


def _to_mono(frame: av.AudioFrame, channel: str) -> np.ndarray:
    """float32 [num_samples] of a frame in any of FFmpeg's sample formats."""
    samples = frame.to_ndarray()  # planar [num_channels, num_samples], else [1, num_samples * num_channels]
    if not frame.format.is_planar:
        samples = samples.reshape(-1, frame.layout.nb_channels).T
    samples = samples[:1] if channel == "first" else samples
    if samples.dtype == np.uint8:
        samples = (samples.astype(np.float32) - 128) / 128
    elif samples.dtype.kind == "i":
        samples = samples.astype(np.float32) / np.float32(2.0 ** (8 * samples.dtype.itemsize - 1))
    return samples.astype(np.float32, copy=False).mean(axis=0) if channel == "mean" else samples[0].astype(np.float32)


def _brief(error: Exception) -> str:
    """The reason alone: FFmpeg's errors repeat a name that is not the file's."""
    return error.strerror if isinstance(error, OSError) and error.strerror else str(error)
