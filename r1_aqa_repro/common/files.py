"""Files: read if they are regular ones, and written so that a kill at any moment leaves the old content or the new."""

from __future__ import annotations

import errno
import fcntl
import functools
import hashlib
import json
import math
import os
import platform
import shutil
import stat
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from io import BufferedReader
from itertools import takewhile
from pathlib import Path
from typing import IO, Any

from r1_aqa_repro.common.console import say
from r1_aqa_repro.common.distributed import rank
from r1_aqa_repro.common.errors import Refused, existing_folder, failing_plainly

LOCK = ".lock"  # of a folder that several files are written to

_NO_FILE = (errno.ENOENT, errno.ENOTDIR, errno.ENAMETOOLONG, errno.ELOOP)
_KINDS = {
    stat.S_IFIFO: "a pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFDIR: "a folder",
}


def open_file(path: str | os.PathLike[str]) -> BufferedReader:
    """Open a file that somebody gave to read its bytes: a regular file, or a link that leads to one.

    Whatever a user can name is opened by this, or asked by `unreadable` first if a library opens it by its path. A
    pipe, a device, a socket, or what the kernel shows in /proc and /sys may wait for ever, never end, or act when it is
    read: it is not even opened.

    Raises:
        OSError: it is absent, there is no permission, or it is no regular file; `strerror` says which of them.
    """

    def opened(name: str, flags: int) -> int:
        require_regular(os.stat(name), name)
        number = os.open(name, flags | os.O_NONBLOCK)  # so that a pipe put there in the meantime is not waited for
        try:
            require_regular(os.fstat(number), name)
        except OSError:
            os.close(number)
            raise
        return number

    try:
        return open(path, "rb", opener=opened)
    except (OSError, ValueError) as error:  # the latter of a null character or half of a surrogate pair
        if isinstance(error, OSError) and error.errno not in _NO_FILE:
            raise
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), os.fspath(path)) from None


def unreadable(path: str | os.PathLike[str]) -> str | None:
    """Why `open_file` does not open it, to stand in a message after the name; None if it does."""
    try:
        open_file(path).close()
    except FileNotFoundError:
        return "there is no such file"
    except OSError as error:
        return f"it cannot be read ({error.strerror})"
    return None


def require_regular(found: os.stat_result, path: str) -> None:
    """Raise the OSError of `open_file` if what `os.stat` found at a path is no regular file."""
    if not stat.S_ISREG(found.st_mode):
        kind = _KINDS.get(stat.S_IFMT(found.st_mode), "something else")
        number = errno.EISDIR if stat.S_ISDIR(found.st_mode) else errno.EINVAL
        raise OSError(number, f"it is {kind}, not a file", path)
    if found.st_dev in _kernel_devices():
        raise OSError(errno.EINVAL, "it is of the kernel, not a file", path)


@functools.cache
def _kernel_devices() -> set[int]:
    """Where regular files are none: some of them wait when they are read, or have no end."""
    return {os.stat(folder).st_dev for folder in ("/proc", "/sys") if os.path.ismount(folder)}


@contextmanager
def whole_file(path: str | os.PathLike[str]) -> Iterator[IO[bytes]]:
    """Open a file to write that gets its name when it is complete and flushed to disk; an error leaves nothing."""
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    # the processes of a run may write the same file at once
    temporary = target.with_name(f".{target.name}.{rank()}.partial")
    try:
        with open(temporary, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, target)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def write_atomically(path: str | os.PathLike[str], content: str | bytes) -> None:
    """Write a whole file, or leave the old one."""
    with whole_file(path) as file:
        file.write(content.encode("utf-8") if isinstance(content, str) else content)


def lock_beside(out: Path) -> Path:
    """The lock of a folder to make. `.` and `/`, which are there already, have one too, so that they can be refused."""
    out = out.absolute()
    return out.parent / f".{out.name}{LOCK}"


@contextmanager
def whole_folder(out: Path) -> Iterator[Path]:
    """A folder to make and fill that gets the name `out`, which nothing has yet, when that is done; an error leaves
    nothing.

    Raises:
        Failed: it could not be written, such as when the disk filled up.
    """
    unfinished = out.with_name(f".{out.name}.partial")
    shutil.rmtree(unfinished, ignore_errors=True)
    with failing_plainly(out, "Nothing of it is left: give the same command again once it can be."):
        try:
            yield unfinished
            os.rename(unfinished, out)
        finally:
            shutil.rmtree(unfinished, ignore_errors=True)


def write_json(path: str | os.PathLike[str], value: Any) -> None:
    """Write `value` as indented JSON, whole or not at all; see `as_json`."""
    write_atomically(path, as_json(value, indent=2) + "\n")


def read_json(path: str | os.PathLike[str], remedy: str) -> dict[str, Any]:
    """The JSON object in a file.

    Raises:
        Refused: the file cannot be read, or holds something else.
    """
    try:
        with open_file(path) as file:
            value = json.loads(file.read())
    except OSError as error:
        raise Refused.because(str(path), f"it cannot be read ({error.strerror})", remedy) from None
    except ValueError as error:
        raise Refused.because(str(path), f"malformed JSON ({error})", remedy) from None
    except RecursionError:
        raise Refused.because(str(path), "malformed JSON (nested too deeply)", remedy) from None
    if not isinstance(value, dict):
        raise Refused.because(str(path), f"it holds no JSON object but a {type(value).__name__}", remedy)
    return value


def as_json(value: Any, **options: Any) -> str:
    """The JSON of a value, null for NaN and infinity, which it has no number for; `options` are `json.dumps`'s."""
    options = {"ensure_ascii": False, "allow_nan": False} | options
    try:
        return json.dumps(value, **options)
    except ValueError:
        return json.dumps(_without_nan(value), **options)


def _without_nan(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {_without_nan(key): _without_nan(one) for key, one in value.items()}
    return [_without_nan(one) for one in value] if isinstance(value, list | tuple) else value


def as_lines(records: Iterable[Any]) -> str:
    """A JSON value a line; see `as_json`."""
    return "".join(as_json(record) + "\n" for record in records)


def write_lines(path: str | os.PathLike[str], records: Iterable[Any]) -> None:
    """Write `records` as JSON lines, all of them or none."""
    write_atomically(path, as_lines(records))


class Taken(Refused):
    """The refusal of a file that another process has locked."""


def open_locked(path: Path, remedy: str) -> IO[bytes]:
    """Open a file for appending and reading that one process at a time can have; closing it lets the next one in.

    Raises:
        Taken: another process has it. `remedy` says where else to write.
        Refused: it cannot be written.
    """
    while True:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            file = open(path, "a+b")  # noqa: SIM115 (the caller closes it)
            require_regular(os.fstat(file.fileno()), str(path))
        except OSError as error:  # a pipe's, which cannot be searched, has no `strerror`
            raise Refused.because(str(path), f"cannot be written ({error.strerror or error})", remedy) from None
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.close()
            raise Taken.because(str(path), "another process is writing to it", f"Wait for it. {remedy}") from None
        except OSError as error:
            say(f"warning: {path} cannot be locked ({error.strerror}): start nothing else that writes there")
        with suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(file.fileno()), os.stat(path)):
                return file
        file.close()  # whoever had it has removed or replaced it while it was opened here


@contextmanager
def sole_use(lock: Path, remedy: str) -> Iterator[None]:
    """Keep other commands out of a place while something is done there, by a locked file that tells who does it.

    The lock ends with its process, however that ends. The file is gone afterwards, and so are folders that were made
    for it, if nothing else is in them.

    Raises:
        Refused: see `open_locked`; it names the process and its host.
    """
    there = existing_folder(lock.parent)
    if os.path.islink(lock):  # what it leads to would be emptied
        raise Refused.because(str(lock), "it is a link, not a lock", f"Remove it. {remedy}")
    try:
        file = open_locked(lock, remedy)
    except Taken as refusal:
        with suppress(OSError):
            if holder := lock.read_text(encoding="utf-8", errors="replace"):
                raise Refused.because(str(lock), f"{holder} is at work here", f"Wait for it. {remedy}") from refusal
        raise
    try:
        with suppress(OSError):  # a full disk: it is locked all the same
            file.truncate(0)
            os.write(file.fileno(), f"process {os.getpid()} on {platform.node()}".encode())
        yield
    finally:
        lock.unlink(missing_ok=True)
        with suppress(OSError):  # where nothing can be locked
            fcntl.flock(file, fcntl.LOCK_UN)  # now, not with its last copy: a process that was forked here may have one
        file.close()
        with suppress(OSError):  # something else is in them
            for made in takewhile(lambda folder: folder.absolute() != there, lock.parents):
                made.rmdir()


def in_use(lock: Path) -> bool:
    """Whether a process holds a `sole_use` lock. Looking keeps nobody from taking it: a file that does not name its
    process is not locked for a look."""
    try:
        with open(lock, "rb") as file:
            if file.read(1):
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:  # there is none, or nothing can be locked here
        return False
    return False


def check_writable(folder: str | os.PathLike[str], remedy: str = "Choose another folder.") -> None:
    """Check that files can be written to a folder, which need not be there; nothing is left of the attempt.

    Raises:
        Refused: it is a file or below one, there is no permission, the disk is full or read-only, or nothing can have
            such a name.
    """
    try:
        if not os.path.exists(folder):
            os.stat(folder)  # no folder yet; a name that none can have says so
        if not os.path.isdir(folder):
            raise OSError(errno.ENOTDIR, "it is not a folder")
    except FileNotFoundError:
        pass
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise Refused.because(str(folder), f"cannot be written to ({reason})", remedy) from None
    try:
        with tempfile.TemporaryFile(dir=existing_folder(folder)) as file:
            file.write(b"\0")
            file.flush()
    except OSError as error:
        raise Refused.because(str(folder), f"cannot be written to ({error.strerror})", remedy) from None


def output_folder(text: str) -> Path:
    """The type of an option that names a folder to write to, for argparse; see `check_writable`."""
    check_writable(text, "Give another folder.")
    return Path(text)


def output_file(text: str) -> Path:
    """The type of an option that names a file to write, for argparse; see `check_writable`."""
    if os.path.isdir(text):
        raise Refused.because(text, "cannot be written (it is a folder)", "Give another file.")
    check_writable(os.path.dirname(text) or ".", "Give another file.")
    return Path(text)


def sha256_of(path: str | os.PathLike[str]) -> str:
    """SHA-256 of a file's bytes, as hexadecimal digits."""
    with open_file(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def size_of(folder: str | os.PathLike[str]) -> int:
    """Bytes of all files in a folder, which need not exist, and in those below it."""
    return sum(path.stat().st_size for path in Path(folder).rglob("*") if path.is_file())
