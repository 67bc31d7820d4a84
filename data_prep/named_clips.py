"""The clips that records name, found in the folders and archives that people have."""

from __future__ import annotations

import hashlib
import os
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from data_prep.archives import is_tar, unpack
from data_prep.media_index import MEDIA_ENDINGS, MediaIndex, composed, unreadable_folder
from data_prep.pipeline import safe_stem
from r1_aqa_repro.common.console import say
from r1_aqa_repro.common.errors import Problem
from r1_aqa_repro.common.files import unreadable
from r1_aqa_repro.data.benchmark_records import AUDIO_KEYS, only_clip
from r1_aqa_repro.data.records import BadRecord, is_table, read_records

AUDIO_COLUMNS = ("context", *AUDIO_KEYS)  # of Parquet and Arrow files, which hold the clips
UNPACKED = ".unpacked"  # the folder, in that of a preparation, where archives are unpacked

IdAndPath = Callable[[dict[str, Any]], tuple[str, str | None]]


@dataclass(frozen=True)
class NamedClip:
    """What a record calls its clip: the path as it stands, or None, and the record's own id."""

    audio_id: str | None
    record_id: str

    @property
    def path(self) -> PurePosixPath:
        """What the clip is looked for under: `audio_id`, else the id."""
        return PurePosixPath(composed(self.audio_id or self.record_id))

    @property
    def name(self) -> str:
        """Name, without ending, by which the clip is looked for."""
        return PurePosixPath(self.audio_id).stem if self.audio_id else self.record_id


class NamedClips:
    """Where the clips are that records name, of which several in different folders may have the same name.

    Args:
        clips: of all records.
        sources: folders and archives; the first that has a clip counts.
        unpacked: folder that archives are unpacked to, each into one whose name changes when the archive does.
        named: id and path, as they stand, of a Parquet or Arrow file's row that holds a clip; it raises BadRecord.
    """

    def __init__(
        self,
        clips: Iterable[NamedClip],
        sources: Sequence[Path],
        unpacked: Path,
        named: IdAndPath,
    ):
        paths: dict[str, set[PurePosixPath]] = defaultdict(set)
        ids = set()
        for clip in clips:
            paths[composed(clip.name)].add(clip.path)
            ids.add(composed(clip.record_id))
        self._shared = {name for name, found in paths.items() if len(found) > 1}  # names that tell nothing therefore
        self._wanted = {*paths, *ids} - self._shared
        self._paths = {str(path) for name in self._shared for path in paths[name]}
        self._folders = [
            source if os.path.isdir(source) else self._unpack(source, unpacked, named) for source in sources
        ]
        self._index = MediaIndex(self._folders)

    def name_of(self, clip: NamedClip) -> str:
        """What the clip is looked for by: its path if the name alone tells nothing, else the name."""
        return str(clip.path) if composed(clip.name) in self._shared else clip.name

    def find(self, clip: NamedClip) -> Path | None:
        """By `audio_id` as it stands below a folder, else by its name, else by the record's id.

        A name that clips of several paths have counts only if an archive was unpacked by these.
        """
        path = clip.audio_id and PurePosixPath(clip.audio_id)
        if path and not path.is_absolute() and ".." not in path.parts:
            for folder in self._folders:
                if os.path.isfile(folder / path):  # Path.is_file raises if a name is too long to be one
                    return folder / path
        by_name = self._index[safe_stem(str(clip.path)) if composed(clip.name) in self._shared else clip.name]
        if by_name is not None or composed(clip.record_id) in self._shared:
            return by_name
        return self._index[clip.record_id] or self._index[safe_stem(clip.record_id)]  # the latter out of a parquet file

    def _unpack(self, archive: Path, unpacked: Path, named: IdAndPath) -> Path:
        """Write the archive's clips that are wanted to a folder whose name changes when the archive does."""
        say(f"unpacking {archive}")
        found = archive.stat()
        state = f"{archive.absolute()} {found.st_size} {found.st_mtime_ns}"
        folder = unpacked / hashlib.sha256(os.fsencode(state)).hexdigest()[:16]
        if is_table(archive):
            number = _unpack_table(archive, folder, named, self._wanted)
        else:
            number = unpack(archive, folder, self._name_unpacked)
        say(f"{number:,} of its clips belong to questions")
        return folder

    def _name_unpacked(self, member: str) -> str | None:
        """The file name for a member of an archive: its own, or that of the only clip that its path fits."""
        path = PurePosixPath(composed(member))
        if path.suffix.lower() not in MEDIA_ENDINGS:
            return None
        if path.stem in self._wanted:
            return path.name
        ends = ("/".join(path.parts[start:]) for start in range(len(path.parts)))
        nearest = next((end for end in ends if end in self._paths), None)
        return nearest and f"{safe_stem(nearest)}{path.suffix}"


def id_and_path(row: dict[str, Any]) -> tuple[str, str | None]:
    """The id of a row and the path of its clip, which it names as `benchmark_records.clip_paths` finds it."""
    return str(row.get("id")), only_clip(row)


def audio_bytes(row: dict[str, Any]) -> bytes | None:
    """The audio of a row: bytes, `{bytes, path}`, or a list of one of these."""
    for name in AUDIO_COLUMNS:
        audio = row.get(name)
        if isinstance(audio, list) and len(audio) == 1:
            (audio,) = audio
        if isinstance(audio, dict):
            audio = audio.get("bytes")
        if isinstance(audio, bytes) and audio:
            return audio
    return None


def problems_of(sources: Iterable[Path]) -> list[Problem]:
    """What is wrong with folders and archives that are to hold clips: not there, or of no known kind."""
    problems = []
    for source in sources:
        is_folder = os.path.isdir(source)
        if (reason := unreadable_folder(source) if is_folder else unreadable(source)) is not None:
            problems.append(Problem(str(source), reason, "Give a folder or file that holds the clips."))
        elif not is_folder and not is_table(source) and not is_tar(source):
            what = "it is no folder, no tar archive and no parquet file"
            problems.append(Problem(str(source), what, "It may be damaged: fetch it again, or give the folder."))
    return problems


def _unpack_table(file: Path, folder: Path, named: IdAndPath, wanted: Collection[str]) -> int:
    """Write the embedded clips under their question's id, or under their own name if that has no question."""
    folder.mkdir(parents=True, exist_ok=True)
    modified = file.stat().st_mtime
    found = set()
    for _, row in read_records(file):
        try:
            row_id, path = named(row)
        except BadRecord:
            continue
        own_name = PurePosixPath(path or "").stem
        name = next((name for name in (row_id, own_name) if composed(name) in wanted), None)
        audio = audio_bytes(row)
        if name is None or audio is None or name in found:
            continue
        found.add(name)
        # the ending says nothing of the format, which is read from the content
        target = folder / f"{safe_stem(name)}.wav"
        target.write_bytes(audio)
        os.utime(target, (modified, modified))  # so that the journal, which goes by size and time, knows it again
    return len(found)
