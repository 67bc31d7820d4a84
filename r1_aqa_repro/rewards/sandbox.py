"""A Python program in a sandbox: started as `python -I -S sandbox.py FILE`, so that it is a process of its own.

It moves to namespaces of the kernel (mounts, processes, network, IPC; of users too, which a user's process needs for
the others) and becomes Python on `/program/main.py` with limits set. Inside are no network, no processes of the
machine, no files but the system's libraries and the interpreter's, read-only, and a small folder in memory; nothing of
the environment. Before the program begins `+` is written to the file descriptor `status`, or what could not be set up.

The JSON object in the file: `files` ({name: text}, in /program), `root` (an empty folder to mount on), `status`,
`seconds` (of processor time), `bytes` (of address space, a process).
"""

import ctypes
import json
import os
import resource
import signal
import sys
from math import ceil

PROCESSES = 8  # threads too, and two of the sandbox's own
FILE_BYTES, FOLDER_BYTES, OPEN_FILES = 4 << 20, 16 << 20, 64
_FOLDER = "/program"
_NOBODY, _FIRST_USER = 65534, 30_000
# sched.h, sys/mount.h, sys/prctl.h, linux/mount.h
_NEW_USER, _NEW_MOUNTS, _NEW_PIDS, _NEW_NETWORK, _NEW_IPC = 0x10000000, 0x20000, 0x20000000, 0x40000000, 0x8000000
_NOSUID, _NODEV, _BIND, _RECURSIVE, _PRIVATE = 0x2, 0x4, 0x1000, 0x4000, 0x40000
_DETACH, _AT_RECURSIVE, _AT_CWD = 0x2, 0x8000, -100
_PARENT_DIES, _NO_NEW_PRIVILEGES = 1, 38
_SET_ATTRIBUTES = 442  # mount_setattr, one number everywhere
_PIVOT = {"x86_64": 155, "aarch64": 41}

_libc = ctypes.CDLL(None, use_errno=True)


def main() -> None:
    """Set the sandbox up and become the program in it."""
    with open(sys.argv[1], encoding="utf-8") as file:
        job, python = json.load(file), _interpreter()
    # root is not held to a limit of processes: it becomes a user that no other sandbox has, as they are counted by user
    user = _FIRST_USER + os.getpid() % _FIRST_USER if os.getuid() == 0 else None
    try:
        _call("prctl", _PARENT_DIES, signal.SIGKILL, 0, 0, 0)
        _leave()
        program = os.fork()  # the first process of its own world: whatever it starts dies with it
        if program == 0:
            _enter(job["root"], job["files"], user)
            _limit(ceil(job["seconds"]), job["bytes"], user)
            _call("prctl", _PARENT_DIES, signal.SIGKILL, 0, 0, 0)  # after a change of user, which would undo it
            os.set_inheritable(job["status"], False)
            os.write(job["status"], b"+")
            os.execve(python, [python, "-I", "-S", f"{_FOLDER}/main.py"], {"LANG": "C.UTF-8"})
    except BaseException as error:
        os.write(job["status"], f"{type(error).__name__}: {error}".encode())
        os._exit(1)
    os.close(job["status"])
    _, ended = os.waitpid(program, 0)
    os._exit(os.waitstatus_to_exitcode(ended) != 0)


def _interpreter() -> str:
    """Python itself, not that of a virtual environment."""
    return os.path.realpath(sys.executable)


def _leave() -> None:
    """Move to namespaces of its own. A user's process needs one of users for that, in which it is nobody."""
    others = _NEW_MOUNTS | _NEW_PIDS | _NEW_NETWORK | _NEW_IPC
    user, group = os.getuid(), os.getgid()
    if user == 0:
        _call("unshare", others)
        return
    _call("unshare", _NEW_USER | others)
    _write("/proc/self/setgroups", "deny")
    _write("/proc/self/uid_map", f"{_NOBODY} {user} 1")
    _write("/proc/self/gid_map", f"{_NOBODY} {group} 1")
    _write("/proc/sys/user/max_user_namespaces", "0")  # of this namespace: none inside it


def _enter(root: str, files: dict[str, str], user: int | None) -> None:
    """Make `root`, where nothing but what a program needs is, the root of the file system."""
    _call("mount", b"none", b"/", None, _RECURSIVE | _PRIVATE, None)
    options = f"size={FOLDER_BYTES},nr_inodes=4096,mode=755".encode()
    _call("mount", b"tmpfs", root.encode(), b"tmpfs", _NOSUID | _NODEV, options)
    seen: list[str] = []
    for path in sorted({"/usr", "/lib", "/lib64", "/bin", sys.base_prefix, os.path.dirname(_interpreter())}):
        inside = root + path
        if os.path.islink(path):
            os.symlink(os.readlink(path), inside)
        elif os.path.isdir(path) and not any(f"{path}/".startswith(f"{other}/") for other in seen):
            seen.append(path)
            os.makedirs(inside)
            _bind(path, inside)
    os.mkdir(f"{root}/dev")
    for device in ("/dev/null", "/dev/zero", "/dev/urandom"):
        _write(root + device, "")
        _call("mount", device.encode(), (root + device).encode(), None, _BIND, None)
    if os.path.exists("/etc/ld.so.cache"):
        os.mkdir(f"{root}/etc")
        _write(f"{root}/etc/ld.so.cache", "")
        _bind("/etc/ld.so.cache", f"{root}/etc/ld.so.cache")
    os.mkdir(root + _FOLDER)
    for name, text in files.items():
        _write(f"{root}{_FOLDER}/{name}", text)
    if user is not None:
        os.chown(root + _FOLDER, user, user)
    os.mkdir(f"{root}/outside")
    os.chdir(root)
    _check(_libc.syscall(_PIVOT[os.uname().machine], b".", b"outside"), "pivot_root")
    os.chdir("/")
    _call("umount2", b"/outside", _DETACH)
    os.rmdir("/outside")
    os.chdir(_FOLDER)


def _bind(path: str, inside: str) -> None:
    """Show a file or folder, read-only."""
    _call("mount", path.encode(), inside.encode(), None, _BIND | _RECURSIVE, None)
    attributes = (ctypes.c_uint64 * 4)(0x1 | 0x2)  # set: read-only, no setuid; clear, propagation, user namespace: no
    result = _libc.syscall(_SET_ATTRIBUTES, _AT_CWD, inside.encode(), _AT_RECURSIVE, ctypes.byref(attributes), 32)
    _check(result, f"mount_setattr {path}")


def _limit(seconds: int, memory: int, user: int | None) -> None:
    for what, limit in (
        (resource.RLIMIT_CPU, seconds),
        (resource.RLIMIT_AS, memory),
        (resource.RLIMIT_NPROC, PROCESSES),
        (resource.RLIMIT_FSIZE, FILE_BYTES),
        (resource.RLIMIT_NOFILE, OPEN_FILES),
        (resource.RLIMIT_CORE, 0),
    ):
        resource.setrlimit(what, (limit, limit))
    if user is not None:
        os.setgroups([])
        os.setresgid(user, user, user)
        os.setresuid(user, user, user)
    _call("prctl", _NO_NEW_PRIVILEGES, 1, 0, 0, 0)


def _call(name: str, *arguments: object) -> None:
    _check(getattr(_libc, name)(*arguments), name)


def _check(result: int, name: str) -> None:
    if result != 0:
        code = ctypes.get_errno()
        raise OSError(code, f"{name}: {os.strerror(code)}")


def _write(path: str, text: str) -> None:
    with open(path, "w", encoding="utf-8") as file:
        file.write(text)


if __name__ == "__main__":
    main()
