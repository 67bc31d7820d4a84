"""The media files that people have, found by their names."""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Iterator
from pathlib import Path

from r1_aqa_repro.common.console import say
from r1_aqa_repro.common.errors import Problem, Refused

MEDIA_ENDINGS = (".wav", ".flac", ".mp4", ".m4a", ".mkv", ".webm", ".ogg", ".mp3")  # the first found is taken


class MediaIndex:
    """Every media file under some folders by its name without ending, made by one walk over them.

    Of several with one name the first counts: in the order of the folders, then of `MEDIA_ENDINGS`, then of the paths.
    Folders that cannot be read are left out, with a warning.

    Raises:
        Refused: two files beside each other have names that differ only in how accents are encoded: nothing tells
            which is meant.
    """

    def __init__(self, folders: list[Path]):
        self._found: dict[str, str] = {}
        problems = []
        for folder in folders:
            paths = sorted(self._walk(folder), key=lambda path: (MEDIA_ENDINGS.index(_ending(path)), path))
            beside: dict[str, str] = {}
            for path in paths:
                place = os.path.join(os.path.dirname(path), composed(os.path.basename(path)))
                if (twin := beside.setdefault(place, path)) != path:
                    what = f"the file beside it has the same name, written otherwise ({os.path.basename(path)!a})"
                    problems.append(Problem(ascii(twin), what, "Remove or rename one of them."))
                self._found.setdefault(stem_of(path), path)
        if problems:
            raise Refused(problems)

    def __len__(self) -> int:
        return len(self._found)

    def __getitem__(self, name: str) -> Path | None:
        path = self._found.get(composed(name))
        return None if path is None else Path(path)

    def _walk(self, folder: Path) -> Iterator[str]:
        seen = set()  # folders by device and inode: a link may lead back to one above it
        for where, inner, files in os.walk(folder, followlinks=True, onerror=_warn):
            here = os.stat(where)
            if (here.st_dev, here.st_ino) in seen:
                inner.clear()
                continue
            seen.add((here.st_dev, here.st_ino))
            inner.sort()
            yield from (os.path.join(where, name) for name in files if _ending(name) in MEDIA_ENDINGS)


def unreadable_folder(folder: Path) -> str | None:
    """Why the files of a folder cannot be found, to stand in a message after its name; None if they can."""
    try:
        os.scandir(folder).close()
    except FileNotFoundError:
        return "there is no such folder"
    except OSError as error:
        return f"it cannot be read ({error.strerror})"
    return None


def _warn(error: OSError) -> None:
    say(f"warning: {error.filename} cannot be read and is left out ({error.strerror or error})")


def _ending(path: str) -> str:
    return os.path.splitext(path)[1].lower()


def stem_of(path: str) -> str:
    """The name of a file, composed, without folder and ending."""
    return composed(os.path.splitext(os.path.basename(path))[0])


def composed(name: str) -> str:
    """The name with each accented letter as one character: macOS takes them apart."""
    return unicodedata.normalize("NFC", name)
