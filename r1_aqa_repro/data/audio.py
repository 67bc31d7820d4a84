"""The only audio decoder: a file becomes float32 mono at 16 kHz, or an error that names the file."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import librosa
import numpy as np
import soundfile

from r1_aqa_repro.common.errors import Failed

SAMPLING_RATE = 16_000  # Hz, what Qwen2-Audio's feature extractor expects
CHANNELS = ("first", "mean")
_EMPTY = "the audio is empty (0 samples)"


class AudioError(Failed):
    """A clip that cannot be used: `path` and `reason`."""

    def __init__(self, path: str | os.PathLike[str], reason: str):
        super().__init__(f"{path}: {reason}")
        self.path, self.reason = Path(path), reason


def load_audio(path: str | os.PathLike[str], channel: str = "first") -> np.ndarray:
    """Decode wav, flac, mp3 or ogg of any rate; of several channels the `first`, as R1-AQA does, or their `mean`.

    Returns:
        float32 array [num_samples], mono, 16 kHz, amplitude in [-1, 1] for integer formats.

    Raises:
        AudioError: the file is missing, unreadable, empty, or holds values that are not finite.
    """
    # [num_samples, num_channels]
    samples, rate = _read(path, lambda file: soundfile.read(file, dtype="float32", always_2d=True))
    if samples.shape[0] == 0:
        raise AudioError(path, _EMPTY)
    if not np.isfinite(samples).all():
        raise AudioError(path, "the audio holds NaN or infinite samples")
    mono = samples[:, 0] if channel == "first" else samples.mean(axis=1)
    if rate != SAMPLING_RATE:
        mono = librosa.resample(mono, orig_sr=rate, target_sr=SAMPLING_RATE, res_type="soxr_hq")
    return np.ascontiguousarray(mono, dtype=np.float32)


def check_audio(path: str | os.PathLike[str], minimum_seconds: float = 0.0) -> str | None:
    """Why `path` cannot be used, or None; reads the header only, so that a whole data set is checked in seconds."""
    try:
        info = _read(path, soundfile.info)
    except AudioError as error:
        return error.reason
    if info.frames == 0:
        return _EMPTY
    if info.duration < minimum_seconds:
        return f"the clip is too short ({info.duration:.3f} s; at least {minimum_seconds:.2f} s are needed)"
    return None


def duration(path: str | os.PathLike[str]) -> float:
    """Seconds of a clip, by its header.

    Raises:
        AudioError: the file is missing or unreadable.
    """
    return float(_read(path, soundfile.info).duration)


def _read(path: str | os.PathLike[str], read: Callable[[str], Any]) -> Any:
    if not os.path.isfile(path):
        raise AudioError(path, "no such audio file")
    try:
        return read(str(path))
    except (soundfile.LibsndfileError, OSError, RuntimeError) as error:
        raise AudioError(path, f"cannot be decoded ({error})") from error
