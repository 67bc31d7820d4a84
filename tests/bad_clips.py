"""Every way in which a clip was seen to be bad, made of one that is sound: `BAD_CLIPS[name](path)`."""

from __future__ import annotations

import gzip
import os
import shutil
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import soundfile

RATE = 16_000


def tone(seconds: int = 1) -> np.ndarray:
    noise = 0.01 * np.random.default_rng(0).standard_normal(seconds * RATE)
    return 0.3 * np.sin(np.arange(seconds * RATE) / 5) + noise


def written(kind: str, samples: np.ndarray, subtype: str | None = None) -> Callable[[Path], bytes]:
    """The bytes of a clip of this format."""

    def of(path: Path) -> bytes:
        soundfile.write(path, samples, RATE, format=kind, subtype=subtype)
        return path.read_bytes()

    return of


def cut(kind: str, share: float = 0.6, subtype: str | None = None, seconds: int = 1) -> Callable[[Path], None]:
    def damage(path: Path) -> None:
        whole = written(kind, tone(seconds), subtype)(path)
        path.write_bytes(whole[: int(share * len(whole))])

    return damage


def one_sample(value: float) -> Callable[[Path], bytes]:
    samples = np.zeros(RATE, dtype=np.float32)
    samples[700] = value
    return written("WAV", samples, "FLOAT")


def patched(kind: str, at: int, value: bytes) -> Callable[[Path], None]:
    def damage(path: Path) -> None:
        whole = bytearray(written(kind, tone())(path))
        whole[at : at + len(value)] = value
        path.write_bytes(whole)

    return damage


def replaced_by(content: bytes) -> Callable[[Path], object]:
    return lambda path: path.write_bytes(content)


def instead(make: Callable[[Path], object]) -> Callable[[Path], None]:
    def damage(path: Path) -> None:
        path.unlink()
        make(path)

    return damage


PNG = b"\x89PNG\r\n\x1a\n" + b"\x00\x00\x00\rIHDR" + bytes(500)
# in a WAV of 16-bit samples: the format stands at byte 20, channels at 22, rate at 24, size of the samples at 40;
# in a FLAC the number of samples at byte 22
BAD_CLIPS: dict[str, Callable[[Path], object]] = {
    "wav cut off": cut("WAV"),
    "wav of floats cut off": cut("WAV", subtype="FLOAT"),
    "flac cut off": cut("FLAC"),
    "ogg cut off": cut("OGG"),
    "ogg cut off in its last page": cut("OGG", 0.99, seconds=3),
    "opus cut off": cut("OGG", 0.99, "OPUS", seconds=3),
    "mp3 cut off": cut("MP3"),
    "aiff cut off": cut("AIFF"),
    "rf64 cut off": cut("RF64"),
    "NaN": one_sample(float("nan")),
    "infinity": one_sample(float("inf")),
    "1e30": one_sample(1e30),
    "header of twice the samples": patched("WAV", 40, struct.pack("<I", 4 * RATE)),
    "header of more samples than memory": patched("FLAC", 22, b"\xff\xff\xff\xff"),
    "header of an unknown codec": patched("WAV", 20, b"\x99\x99"),
    "header of no channel": patched("WAV", 22, b"\x00\x00"),
    "header of no rate": patched("WAV", 24, bytes(4)),
    "header alone, in part": lambda path: path.write_bytes(path.read_bytes()[:20]),
    "zeros in the middle of a flac": patched("FLAC", 8000, bytes(4000)),
    "zeros all over": lambda path: path.write_bytes(bytes(path.stat().st_size)),
    "no samples": written("WAV", np.zeros(0)),
    "too short": written("WAV", np.full(500, 0.1)),
    "empty": replaced_by(b""),
    "text": replaced_by(b"no audio at all\n" * 100),
    "web page": replaced_by(b"<!DOCTYPE html><html><body>404 Not Found</body></html>"),
    "picture": replaced_by(PNG),
    "compressed": lambda path: path.write_bytes(gzip.compress(path.read_bytes())),
    "deleted": lambda path: path.unlink(),
    "folder": instead(Path.mkdir),
    "link to nothing": instead(lambda path: path.symlink_to("nothing")),
    "link to itself": instead(lambda path: path.symlink_to(path)),
    "pipe": instead(os.mkfifo),
}


def restore(path: Path, sound: Path) -> None:
    """Put the sound clip back in the place of a bad one."""
    if path.is_dir():
        path.rmdir()
    else:
        path.unlink(missing_ok=True)
    shutil.copy2(sound, path)
