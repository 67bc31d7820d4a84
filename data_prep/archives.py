"""Files out of tar archives that somebody else made: read as a stream, and nothing in them is trusted.

Members never decide where anything is written: only regular files that were asked for are taken, and each is written
under the name that was asked for, whatever folders its own path names. An archive with a link, a device, or a path that
is absolute or leads out of the folder was not made to carry data and is refused as a whole, as is one that is damaged
or unpacks to more than a limit.
"""

from __future__ import annotations

import bz2
import gzip
import lzma
import os
import tarfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from io import BufferedIOBase
from pathlib import Path
from typing import Self

from r1_aqa_repro.common.errors import Problem, Refused
from r1_aqa_repro.common.files import open_file

MAX_BYTES = 200 * 2**30  # of all members together, wanted or not
MAX_MEMBER_BYTES = 2**30
MAX_MEMBERS = 1_000_000
_MAX_HEADER_BYTES = 2**20  # of an extended header, which tarfile reads whole
_EXTENDED = (
    tarfile.XHDTYPE,
    tarfile.XGLTYPE,
    tarfile.SOLARIS_XHDTYPE,
    tarfile.GNUTYPE_LONGNAME,
    tarfile.GNUTYPE_LONGLINK,
)
_OPENERS: dict[bytes, type[gzip.GzipFile | bz2.BZ2File | lzma.LZMAFile]] = {  # by what a file begins with
    b"\x1f\x8b": gzip.GzipFile,
    b"BZh": bz2.BZ2File,
    b"\xfd7zXZ\0": lzma.LZMAFile,
}
_LONGEST_NAME = 255  # bytes, of any file system in use
_BLOCK = 1 << 20  # bytes copied at once
_DAMAGE = (tarfile.TarError, EOFError, zlib.error, lzma.LZMAError, OSError, ValueError, OverflowError)


def is_tar(path: Path) -> bool:
    """Whether a file is a tar archive, compressed or not, by its content."""
    try:
        return tarfile.is_tarfile(path)
    except _DAMAGE:
        return False


def unpack(archive: Path, folder: Path, name_for: Callable[[str], str | None]) -> int:
    """Write the archive's files that are wanted to `folder`, with their times; returns how many.

    Args:
        archive: tar, tar.gz, tar.bz2 or tar.xz, told apart by their content.
        folder: where to; it is made. If the archive is refused, what was written before stays.
        name_for: the file name to write a member under, by its path in the archive; None if it is not wanted. It is
            not asked for paths that no file can have. Of several with one name the first counts.

    Raises:
        Refused: the archive is damaged, too large, or holds what no data set needs; wanted files whose names differ
            but would be written under one, such as in how accents are encoded.
        OSError: `folder` cannot be written to.
    """
    folder.mkdir(parents=True, exist_ok=True)
    found: dict[str, str] = {}  # their own names, by those they were written under
    problems: list[Problem] = []
    number = total = 0
    with _open(archive) as stream:
        # not "r|*": that checks no checksum of gzip's, and knows only one of several compressed streams in a row
        with _refusing_damage(archive, "it is no tar archive"):
            members = tarfile.open(fileobj=stream, mode="r|", tarinfo=_Member)  # noqa: SIM115 (`stream` is closed)
        while True:
            with _refusing_damage(archive, "it breaks off or is damaged"):
                member = members.next()
                members.members.clear()  # type: ignore[attr-defined] # it would remember all of them
            if member is None:
                break
            number, total = number + 1, total + member.size
            if number > MAX_MEMBERS or member.size > MAX_MEMBER_BYTES or total > MAX_BYTES:
                what = f"it unpacks to more than the {MAX_BYTES:,} bytes, {MAX_MEMBER_BYTES:,} a file, that are allowed"
                raise Refused.because(f"{archive}: {member.name}", what, "Unpack it yourself, and give the folder.")
            if (unsafe := _unsafe(member, folder)) is not None:
                remedy = "Do not trust the archive, or unpack it yourself and give the folder."
                problems.append(Problem(str(archive), unsafe, remedy))
            if member.isreg():
                own = os.path.basename(member.name)
                name = None if problems or not _can_be_named(member.name) else name_for(member.name)
                if name is not None and found.get(name, own) != own:
                    what = f"{member.name!a} and another file named {found[name]!a} are both asked for as {name!r}"
                    problems.append(Problem(str(archive), what, "Leave one of them out, or rename it."))
                    name = None
                target = None if name is None or name in found else folder / name
                _read(archive, members, member, target)
                if target is not None:
                    found[target.name] = own
        _read_to_the_end(archive, stream)
    if problems:
        raise Refused(problems)
    return len(found)


def _open(archive: Path) -> BufferedIOBase:
    with open_file(archive) as file:
        beginning = file.read(max(map(len, _OPENERS)))
    opener = next((opener for magic, opener in _OPENERS.items() if beginning.startswith(magic)), None)
    return opener(archive) if opener else open_file(archive)


def _read_to_the_end(archive: Path, stream: BufferedIOBase) -> None:
    """Read what follows the last member: of no use in itself, but after it comes the checksum of all."""
    left = MAX_BYTES
    with _refusing_damage(archive, "it is damaged"):
        while block := stream.read(_BLOCK):
            left -= len(block)
            if left < 0:
                raise ValueError(f"more than {MAX_BYTES:,} bytes follow its last file")


class _Member(tarfile.TarInfo):
    """Raises for a header that is damaged or missing: tarfile takes it for the end."""

    @classmethod
    def fromtarfile(cls, tarfile_: tarfile.TarFile) -> Self:
        try:
            return super().fromtarfile(tarfile_)
        except tarfile.EOFHeaderError:  # type: ignore[attr-defined] # the zeros that every archive ends with
            raise
        except tarfile.HeaderError as error:
            raise tarfile.ReadError(str(error)) from None

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> Self:
        member = super().frombuf(buf, encoding, errors)
        if member.size < 0 or (member.type in _EXTENDED and member.size > _MAX_HEADER_BYTES):
            raise tarfile.ReadError(f"a header claims {member.size:,} bytes")
        return member


def _can_be_named(path: str) -> bool:
    """Whether a file can have the name that this path ends with."""
    return "\0" not in path and len(os.fsencode(os.path.basename(path))) <= _LONGEST_NAME


def _unsafe(member: tarfile.TarInfo, folder: Path) -> str | None:
    """Why a member is not to be trusted, or None.

    Raises:
        Refused: this Python is too old to tell.
    """
    if not _can_be_named(member.name) and member.isreg():
        return None  # it is not written anywhere
    if not hasattr(tarfile, "data_filter"):
        remedy = "Unpack the archive and give the folder, or take Python 3.11.4 or newer."
        raise Refused.because("tarfile", "this Python has no filter for unsafe archives", remedy)
    try:
        tarfile.data_filter(member, str(folder))
    except (tarfile.FilterError, ValueError) as error:  # it leads out of the folder, is a device or a pipe, holds \0
        return str(error)
    # these the filter allows, once the slash is gone or if the link stays within: no data set needs them
    if member.name.startswith("/"):
        return f"{member.name!r} has an absolute path"
    return f"{member.name!r} is a link to {member.linkname!r}" if member.issym() or member.islnk() else None


def _read(archive: Path, members: tarfile.TarFile, member: tarfile.TarInfo, target: Path | None) -> None:
    """Read a member to its end, which also shows whether it has one, and write it to `target` if there is one."""
    source = members.extractfile(member)
    assert source is not None  # it is a regular file
    left = member.size
    with open(target or os.devnull, "wb") as file:
        while left:
            with _refusing_damage(archive, f"it breaks off or is damaged within {member.name}"):
                block = source.read(min(_BLOCK, left))
                if not block:
                    raise EOFError(f"{left:,} of {member.size:,} bytes are missing")
            file.write(block)
            left -= len(block)
    if target is not None:
        os.utime(target, (max(0, int(member.mtime)),) * 2)


@contextmanager
def _refusing_damage(archive: Path, what: str) -> Iterator[None]:
    try:
        yield
    except _DAMAGE as error:
        raise Refused.because(str(archive), f"{what} ({error})", "Fetch it again.") from error
