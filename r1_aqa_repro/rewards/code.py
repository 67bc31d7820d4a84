"""Completions that are programs, run against tests: the reward `code`.

Tests are Python statements that raise if something is wrong, `["assert add(1, 2) == 3"]`, as MBPP's `test_list`; or
pairs `[{"input": "1 2", "output": "3"}]` of what the program reads and prints, as the `test_cases` of open-r1's
`verification_info`.

Every program runs in a process of its own, inside `sandbox`, several at once. What keeps it in is the kernel, so it is
no better than the kernel is: for a model's code, not for an attacker's. A program that is tested by statements shares a
process with them, and could cheat by looking for what they will say when they are done, or by objects that are equal to
everything.
"""

from __future__ import annotations

import ast
import json
import os
import secrets
import select
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from r1_aqa_repro.common.errors import Failed, Problem
from r1_aqa_repro.data.answers import answers_of
from r1_aqa_repro.rewards import sandbox
from r1_aqa_repro.rewards.rules import Completion, RewardFunction, completion_text
from r1_aqa_repro.rewards.text_rules import python_blocks

_PATIENCE = 4  # times the processor time, for the clock on the wall: machines are shared, and programs may sleep
_SET_UP = 60  # seconds in which a sandbox begins, on however busy a machine
_REMEDY = (
    "It needs Linux 5.12 with namespaces for users: sysctl kernel.unprivileged_userns_clone=1 (Debian), "
    "kernel.apparmor_restrict_unprivileged_userns=0 (Ubuntu), docker run --privileged; or leave the reward out."
)
# reads its secret, runs code and tests, which it has taken out of the folder, and says the secret if nothing was raised
_TESTED = """
import os, sys
secret, report = sys.stdin.readline().encode(), os.dup(1)
os.dup2(os.open("/dev/null", os.O_RDWR), 0)
os.dup2(0, 1)
texts = []
for name in ("code.py", "tests.py"):
    with open(name, encoding="utf-8") as file:
        texts.append(file.read())
    os.remove(name)
names = {"__name__": "solution"}
for text in texts:
    exec(compile(text, "<solution>", "exec"), names)
os.write(report, secret)
"""
# what the sandbox must not allow; it prints what it could do, and its input
_PROBE = f"""
import os, socket, time
could, children = [], 0
try:
    while children < {4 * sandbox.PROCESSES}:
        if os.fork() == 0:
            time.sleep(1)
            os._exit(0)
        children += 1
    could.append("start many processes")
except OSError:
    pass
for what, attempt in (
    ("reach a network", lambda: socket.create_connection(("192.0.2.1", 80), 1)),
    ("write outside its folder", lambda: open("/usr/sandbox-probe", "w")),
    ("allocate without limit", lambda: bytearray({64 << 30})),
    ("see the files of the machine", lambda: os.listdir("/home") + os.listdir("/proc")),
):
    try:
        attempt()
        could.append(what)
    except (OSError, MemoryError):
        pass
print(*could, input())
"""


@dataclass(frozen=True)
class Limits:
    """Of one run: seconds of processor time, and bytes of address space of a process."""

    seconds: float
    memory: int


def code_reward(timeout: float, memory_mb: int) -> RewardFunction:
    """1 for a completion whose code passes every one of its prompt's tests, else 0.

    The code is the last closed or open Python block in fences, or the whole text without one; of an answer in tags only
    that. Tests that say nothing in time, or after `memory_mb`, are not passed.
    """
    limits = Limits(timeout, memory_mb << 20)

    def code_reward(completions: Sequence[Completion], test_cases: Sequence[Any], **_: Any) -> list[float]:
        """Raises Failed if the sandbox breaks: never 0 for a program that was not run."""
        codes = [code_of(completion_text(completion)) for completion in completions]
        cores = len(os.sched_getaffinity(0)) // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
        with ThreadPoolExecutor(max(1, cores)) as pool:
            return list(map(float, pool.map(partial(passes, limits=limits), codes, test_cases)))

    return code_reward


def code_of(text: str) -> str:
    """The program of a completion, see `code_reward`."""
    answer = answers_of(text)[0]
    blocks = python_blocks(answer)
    return blocks[-1] if blocks else answer


def are_tests(value: Any) -> bool:
    """Whether these are tests: statements, or pairs of input and output; at least one, and all of one kind."""
    if not isinstance(value, list) or not value:
        return False
    return all(map(_is_statement, value)) or all(map(_is_pair, value))


def _is_statement(test: Any) -> bool:
    try:
        return isinstance(test, str) and bool(ast.parse(test).body)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return False


def _is_pair(test: Any) -> bool:
    return (
        isinstance(test, dict)
        and all(isinstance(test.get(key), str) for key in ("input", "output"))
        and test.get("type") in (None, "stdin_stdout")  # open-r1's
        and test.get("fn_name") is None
    )


def passes(code: str, tests: Sequence[str | Mapping[str, str]], limits: Limits) -> bool:
    """Whether a program passes all tests. Of printed lines white space at their ends does not count, nor do empty lines
    at the end.

    Raises:
        Failed: the sandbox could not be set up.
    """
    if isinstance(tests[0], str):
        files = {"main.py": _TESTED, "code.py": code, "tests.py": "\n".join(map(str, tests))}
        secret = secrets.token_hex(16) + "\n"
        return run_program(files, secret, limits) == secret
    for test in tests:
        assert not isinstance(test, str)
        said = run_program({"main.py": code}, test["input"], limits)
        if said is None or _lines(said) != _lines(test["output"]):
            return False
    return True


def _lines(text: str) -> list[str]:
    return [line.rstrip() for line in text.rstrip().splitlines()]


def run_program(files: Mapping[str, str], given: str, limits: Limits) -> str | None:
    """What `main.py` among these files prints when it is given this; None if it fails or takes too long.

    Raises:
        Failed: the sandbox could not be set up, so that it has not begun.
    """
    sound = {name: text.encode("utf-8", "replace").decode() for name, text in files.items()}
    with tempfile.TemporaryDirectory() as folder, tempfile.TemporaryFile() as said, tempfile.TemporaryFile() as asked:
        asked.write(given.encode("utf-8", "replace"))
        asked.seek(0)
        root, job = Path(folder, "root"), Path(folder, "job.json")
        root.mkdir()
        status, status_of_sandbox = os.pipe()
        job.write_text(
            json.dumps(
                {"files": sound, "root": str(root), "status": status_of_sandbox, "seconds": limits.seconds}
                | {"bytes": limits.memory}
            ),
            encoding="utf-8",
        )
        try:
            process = subprocess.Popen(
                [sys.executable, "-I", "-S", sandbox.__file__, str(job)],
                stdin=asked,
                stdout=said,
                stderr=subprocess.DEVNULL,
                pass_fds=[status_of_sandbox],
                env={},
                start_new_session=True,
            )
        finally:
            os.close(status_of_sandbox)
        try:
            select.select([status], [], [], _SET_UP)
            process.wait(_PATIENCE * limits.seconds)
        except subprocess.TimeoutExpired:
            pass
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)  # with it die all processes of the sandbox
                process.wait()
            with os.fdopen(status, "rb") as pipe:
                begun = pipe.read()
        if begun != b"+":
            why = begun.removeprefix(b"+").decode("utf-8", "replace") or "it took too long to be set up"
            raise Failed(f"the sandbox of the reward code broke: {why}")
        said.seek(0)
        return said.read().decode("utf-8", "replace") if process.returncode == 0 else None


def check_sandbox() -> list[Problem]:
    """A problem if programs cannot be run here, or could do what they must not."""
    if sys.platform != "linux":
        return [Problem("reward_funcs", f"the reward code has no sandbox on {sys.platform}", _REMEDY)]
    try:
        found = run_program({"main.py": _PROBE}, "ready", Limits(10, 512 << 20))
    except (Failed, OSError) as error:
        return [Problem("reward_funcs", str(error), _REMEDY)]
    if found is None or found.split() != ["ready"]:
        could = "not run a program" if found is None else found.removesuffix("ready\n").strip()
        return [Problem("reward_funcs", f"the sandbox of the reward code does not hold: it could {could}", _REMEDY)]
    return []
