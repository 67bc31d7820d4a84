"""The reward `code`: right programs are judged right, wrong ones wrong, and no program gets out of the sandbox.

No program here tries more than a bounded number of processes, should a limit not hold.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from r1_aqa_repro.common.errors import Failed
from r1_aqa_repro.rewards import sandbox
from r1_aqa_repro.rewards.code import Limits, are_tests, check_sandbox, code_of, code_reward, passes, run_program
from r1_aqa_repro.rewards.registry import check_prompts, check_rewards
from tests.rewards.test_registry import config, prompt, said

PROBLEMS = check_sandbox()
pytestmark = pytest.mark.skipif(bool(PROBLEMS), reason=f"no sandbox here: {PROBLEMS}")
LIMITS = Limits(2, 256 << 20)
FENCED = "Here:\n```python\n{}\n```\nDone."
ADD = ["assert add(1, 2) == 3", "assert add(-1, 1) == 0"]
SUM = [{"input": "1 2\n", "output": "3\n"}, {"input": "4 5\n", "output": "9", "type": "stdin_stdout"}]


def test_solutions_are_judged() -> None:
    judged: list[tuple[str, list[Any], float]] = [
        ("def add(a, b):\n    return a + b", ADD, 1),
        ("def add(a, b):\n    return a + b\nif __name__ == '__main__':\n    print(input())", ADD, 1),
        ("import math\nprint('noise')\ndef add(a, b):\n    return int(math.fsum([a, b]))", ADD, 1),
        ("def add(a, b):\n    return a - b", ADD, 0),
        ("def add(a, b:\n    return a + b", ADD, 0),
        ("import sys\nsys.exit(0)", ADD, 0),  # as if all were well
        ("import os\nos._exit(0)", ADD, 0),
        ("", ADD, 0),
        ("print(sum(map(int, input().split())))", SUM, 1),
        ("import sys\nprint(sum(map(int, sys.stdin.read().split())), '')\nprint()", SUM, 1),  # white space at ends
        ("print(3)", SUM, 0),
        ("print(sum(map(int, input().split())))\n1 / 0", SUM, 0),
    ]
    reward = code_reward(2, 256)
    completions = [[{"role": "assistant", "content": FENCED.format(program)}] for program, _, _ in judged]
    assert reward(completions, test_cases=[tests for _, tests, _ in judged]) == [right for _, _, right in judged]


def test_which_text_is_the_program() -> None:
    assert code_of("x = 1") == "x = 1"
    assert code_of("<think>```\nno\n```</think><answer>\n```python\nx = 1\n```\n</answer>").strip() == "x = 1"
    assert code_of("```python\na\n```\nBetter:\n```python\nb\n```").strip() == "b"
    assert code_of("```python\nx = 1").strip() == "x = 1"  # cut off
    assert code_of("```\nx = 1\n```\n```bash\nls\n```").strip() == "x = 1"


# what a program may try; it comes to its end only if it could have it
HOSTILE = {
    "an endless loop": "while True: pass",
    "a long sleep": "import time\ntime.sleep(1000)",
    "10 GB": "x = bytearray(10 * 10**9)\nprint('could')",
    "a file of 10 MB": "open('x', 'wb').write(bytes(10**7))\nprint('could')",
    "a full folder": "for i in range(9):\n    open(str(i), 'wb').write(bytes(3 * 10**6))\nprint('could')",
    "many open files": "files = [open('/dev/null') for _ in range(100)]\nprint('could')",
    "much to read": "while True: print('x' * 10**6)",
    "an address of the network": "import socket\nsocket.create_connection(('192.0.2.1', 80), 2)\nprint('could')",
    "this machine's ports": "import socket\nsocket.create_connection(('127.0.0.1', {port}), 2)\nprint('could')",
    "a file of the machine": "open({file!r}).read()\nprint('could')",
    "a write outside": "open('/usr/lib/x', 'w')\nprint('could')",
    "the machine's processes": "import os\nos.kill({pid}, 0)\nprint('could')",
    "the way back": "import os\nos.chdir('/..')\nif not {'home', 'proc'} & set(os.listdir()): 1 / 0",
    "a mount": "import ctypes\nif ctypes.CDLL(None).mount(b'x', b'/program', b'tmpfs', 0, None): 1 / 0",
}


@pytest.mark.parametrize("what", HOSTILE)
def test_what_a_program_cannot_have(what: str, tmp_path: Path) -> None:
    """It is stopped, or the attempt raises: it does not come to its end."""
    secret = tmp_path / "secret"
    secret.write_text("secret", encoding="utf-8")
    with socket.create_server(("127.0.0.1", 0)) as server:
        values = {"port": server.getsockname()[1], "file": str(secret), "pid": os.getpid()}
        program = HOSTILE[what]
        for name, value in values.items():
            program = program.replace(f"{{{name}}}", str(value)).replace(f"{{{name}!r}}", repr(value))
        began = time.monotonic()
        assert run_program({"main.py": program}, "", Limits(0.5, 256 << 20)) is None
    assert time.monotonic() - began < 60  # 2 s of the clock at most, and a busy machine's beginning
    assert not list(Path("/usr/lib").glob("x"))


BOMB = """
import os, sys, time
started = 0
for _ in range(60):  # bounded, should nothing stop it
    try:
        if os.fork() == 0:
            os.setsid()  # out of the process group, where nobody finds it
            time.sleep(600)
            os._exit(0)
        started += 1
    except OSError:
        pass
print(started, flush=True)
{end}
"""


@pytest.mark.parametrize("end", ["", "time.sleep(600)", "os.abort()"], ids=["ends", "stays", "crashes"])
def test_a_fork_bomb_is_stopped_and_leaves_nothing(end: str) -> None:
    """As many processes as allowed, whether it ends by itself or not; all die with it."""
    before = sandboxed()
    said_ = run_program({"main.py": BOMB.replace("{end}", end)}, "", Limits(0.5, 256 << 20))
    if not end:
        assert said_ is not None and 1 <= int(said_) < sandbox.PROCESSES
    deadline = time.monotonic() + 20
    while sandboxed() - before and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not sandboxed() - before


def sandboxed() -> set[str]:
    """The processes that run a sandbox's program."""
    found = set()
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if b"/program/main.py" in (folder / "cmdline").read_bytes():
                found.add(folder.name)
        except OSError:  # it has ended
            pass
    return found


def test_several_run_at_once() -> None:
    """Each sandbox has its own processes to spend: those of others do not count."""
    program = "import os, time\nif os.fork() == 0:\n    time.sleep(600)\ntime.sleep(0.3)\nprint('done')"
    reward = code_reward(5, 256)
    assert reward([program] * 6, test_cases=[[{"input": "", "output": "done"}]] * 6) == [1.0] * 6


def test_a_kill_of_the_trainer_leaves_no_program(tmp_path: Path) -> None:
    script = tmp_path / "trainer.py"
    script.write_text(
        "from r1_aqa_repro.rewards.code import Limits, run_program\n"
        "run_program({'main.py': 'import time; time.sleep(600)'}, '', Limits(100, 1 << 28))\n",
        encoding="utf-8",
    )
    before = sandboxed()
    trainer = subprocess.Popen([sys.executable, str(script)])
    deadline = time.monotonic() + 60
    while not sandboxed() - before and time.monotonic() < deadline:
        time.sleep(0.1)
    own = sandboxed() - before
    assert own
    trainer.kill()
    trainer.wait()
    while sandboxed() & own and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not sandboxed() & own


def test_nothing_of_the_environment_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOME_TOKEN", "secret")
    assert run_program({"main.py": "import os; print(sorted(os.environ))"}, "", LIMITS) == "['LANG']\n"


def test_a_broken_sandbox_is_refused_and_never_scores_0(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    broken = tmp_path / "sandbox.py"
    broken.write_text("import json, os, sys\nos.write(json.load(open(sys.argv[1]))['status'], b'no namespaces')\n")
    monkeypatch.setattr(sandbox, "__file__", str(broken))
    with pytest.raises(Failed, match="the sandbox of the reward code broke: no namespaces"):
        passes("x = 1", ["assert x"], LIMITS)
    [problem] = check_rewards(config(reward_funcs=["code"]))
    assert said([problem]) == ["reward_funcs: the sandbox of the reward code broke: no namespaces"]
    # one that runs programs, and lets them do everything
    broken.write_text(
        "import json, os, sys\njob = json.load(open(sys.argv[1]))\nos.write(job['status'], b'+')\n"
        "os.close(job['status'])\nos.execv(sys.executable, [sys.executable, '-c', 'print(\"write outside ready\")'])\n"
    )
    [problem] = check_rewards(config(reward_funcs=["code"]))
    assert "does not hold: it could write outside" in problem.what


@pytest.mark.parametrize(
    ("tests", "sound"),
    [
        (ADD, True),
        (SUM, True),
        ([], False),
        ("assert f()", False),
        (["assert f("], False),
        (["# nothing"], False),
        ([*ADD, *SUM], False),
        ([{"input": "1"}], False),
        ([{"input": "1", "output": 2}], False),
        ([{"input": "1", "output": "2", "type": "function_call", "fn_name": "f"}], False),
    ],
)
def test_tests_that_cannot_be_run_are_named(tests: Any, sound: bool) -> None:
    assert are_tests(tests) == sound
    problems = check_prompts(config(reward_funcs=["code"]), [prompt(test_cases=tests)], "file")
    assert [problem.what.startswith("test_cases is ") for problem in problems] == [True] * (not sound)
