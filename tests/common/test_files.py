"""Files that users name: regular ones are opened, and nothing that could wait for ever, or never end, is."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from r1_aqa_repro.common.errors import Refused
from r1_aqa_repro.common.files import in_use, open_file, open_locked, sha256_of, sole_use, unreadable


def a_socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as opened:
        os.chdir(path.parent)  # its name may be 107 bytes long
        opened.bind(path.name)


def a_link_to_a_pipe(path: Path) -> None:
    os.mkfifo(path.with_name("pipe"))
    path.symlink_to("pipe")


SPECIAL: dict[str, tuple[Callable[[Path], object], str]] = {
    "pipe": (os.mkfifo, "a pipe"),
    "link to a pipe": (a_link_to_a_pipe, "a pipe"),
    "socket": (a_socket, "a socket"),
    "link to /dev/zero": (lambda path: path.symlink_to("/dev/zero"), "a device"),
    "folder": (Path.mkdir, "a folder"),
    "link to /proc": (lambda path: path.symlink_to("/proc/self/pagemap"), "of the kernel"),
}


@pytest.fixture(autouse=True)
def unmoved(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("kind", SPECIAL)
def test_what_is_no_regular_file_is_not_opened_and_said(kind: str, tmp_path: Path) -> None:
    make, said = SPECIAL[kind]
    path = tmp_path / "given"
    make(path)
    with pytest.raises(OSError, match=f"it is {said}, not a file") as caught:
        open_file(path)
    assert caught.value.filename == str(path)
    assert unreadable(path) == f"it cannot be read (it is {said}, not a file)"
    with pytest.raises(OSError, match=said):
        sha256_of(path)
    with pytest.raises(Refused, match="given: cannot be written"):
        open_locked(path, "Write elsewhere.")


def test_a_pipe_that_takes_a_files_place_in_the_meantime_is_not_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    os.mkfifo(tmp_path / "pipe")
    found, before = os.stat(tmp_path / "file"), os.listdir("/proc/self/fd")
    monkeypatch.setattr(os, "stat", lambda path: found)
    with pytest.raises(OSError, match="a pipe"):
        open_file(tmp_path / "pipe")
    assert len(os.listdir("/proc/self/fd")) == len(before)


def test_a_regular_file_is_opened_by_a_link_too(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"content")
    (tmp_path / "link").symlink_to("file")
    for name in ("file", "link"):
        assert unreadable(tmp_path / name) is None
        with open_file(tmp_path / name) as file:
            assert file.read() == b"content"


@pytest.mark.parametrize("name", ["absent", "nul\0", "half \ud800", "long" * 80, "file/below", "loop"])
def test_what_no_file_can_be_named_is_absent(name: str, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "loop").symlink_to("loop")
    assert unreadable(tmp_path / name) == "there is no such file"


def test_whether_a_lock_is_held_is_seen_without_holding_it(tmp_path: Path) -> None:
    lock = tmp_path / "locks" / "one.lock"
    assert not in_use(lock) and not lock.parent.exists()
    with sole_use(lock, ""):
        assert in_use(lock)
    lock.parent.mkdir()
    lock.write_text("process 1 on a host")  # left by a process that was killed
    assert not in_use(lock) and lock.exists()
    with open_locked(lock, "Wait."):
        assert in_use(lock)


def test_looking_at_a_lock_keeps_nobody_from_taking_it(tmp_path: Path) -> None:
    lock, ended = tmp_path / "one.lock", threading.Event()

    def look() -> None:
        while not ended.is_set():
            in_use(lock)

    looking = threading.Thread(target=look)
    looking.start()
    try:
        for _ in range(200):
            with sole_use(lock, ""):
                pass
    finally:
        ended.set()
        looking.join()
