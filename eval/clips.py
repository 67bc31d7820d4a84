"""`clips.json`: which clips an evaluation has heard, so that it never goes on with others.

It holds the SHA-256 of every question's clip by the question's id, null where there was no file to read. Bytes are what
counts: names and times say nothing after a copy. A thousand 10-s clips of 16 kHz take half a second.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from r1_aqa_repro.common.files import sha256_of

CLIPS = "clips.json"
_SHORTEST = 0.1  # seconds that every model needs, see `inputs.minimum_seconds`

ClipHashes = dict[str, str | None]


def clip_hashes(clips: Mapping[str, Path]) -> ClipHashes:
    """The content of clips.json for the clips, by question id, as they are now."""
    different = list(dict.fromkeys(clips.values()))
    with ThreadPoolExecutor() as pool:  # reading and hashing both let other threads run
        hashes = dict(zip(different, pool.map(_hash_of, different), strict=True))
    return {question_id: hashes[path] for question_id, path in clips.items()}


def recorded_clips(folder: Path) -> ClipHashes | None:
    """The clips.json of an evaluation; None where there is none that can be read."""
    try:
        content = json.loads((folder / CLIPS).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return content if isinstance(content, dict) else None


def can_be_heard(clip: Path) -> bool:
    """Whether a clip can be decoded, to its end, and is not too short for any model."""
    from r1_aqa_repro.data.audio import AudioError, check_audio, load_audio  # slow to import, and seldom needed

    try:
        load_audio(clip)
    except AudioError:
        return False
    return check_audio(clip, _SHORTEST) is None


def _hash_of(path: Path) -> str | None:
    try:
        state = path.stat()
        return _hash_in_state(path, state.st_size, state.st_mtime_ns)
    except OSError:
        return None


@functools.cache
def _hash_in_state(path: Path, size: int, modified: int) -> str:
    """Computed once in the life of a process, which evaluates every checkpoint of a sweep on the same clips."""
    return sha256_of(path)
