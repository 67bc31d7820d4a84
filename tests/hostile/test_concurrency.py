"""Two commands for one place: the second ends at once, names the first, and changes nothing."""

from __future__ import annotations

import errno
import fcntl
import os
import platform
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import IO

import pytest

from r1_aqa_repro.common.errors import Refused
from r1_aqa_repro.common.files import LOCK, open_locked, sole_use
from r1_aqa_repro.run.preflight import RUN_LOCK
from tests.conftest import ROOT
from tests.files import contents
from tests.hostile.conftest import TRAININGS, Ends

HOLDER = f"process {os.getpid()} on {platform.node()}"


@pytest.fixture
def held() -> Iterator[ExitStack]:
    """What an earlier command, here this process, holds until the test is over."""
    with ExitStack() as stack:
        yield stack


@pytest.mark.parametrize("overwrite", ["false", "true"])
@pytest.mark.parametrize("entry", TRAININGS)
def test_a_second_training_in_a_folder_is_refused_and_touches_nothing(
    entry: str, overwrite: str, held: ExitStack, ends: Ends, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    (folder / "checkpoint-2").mkdir(parents=True)
    (folder / "completions.csv").write_text("step,completion\n1,of the first run\n")
    held.enter_context(sole_use(folder / RUN_LOCK, ""))
    before = contents(folder)
    arguments = ["--config", ROOT / "configs" / f"{TRAININGS[entry]}.yaml", "--output_dir", folder, "--use_cpu", "true"]
    arguments += ["--train_file", "nothing.jsonl", "--model_name_or_path", str(tmp_path), "--overwrite", overwrite]
    ended = ends(f"r1_aqa_repro.{entry}", *arguments, code=2, names=[f"{folder}/{RUN_LOCK}: {HOLDER} is at work here"])
    assert ended.err.count("error:") == 1
    assert contents(folder) == before


@pytest.mark.parametrize(
    ("module", "locked", "arguments"),
    [
        ("r1_aqa_repro.merge_adapter", f".merged{LOCK}", ["--adapter", "{}/adapter", "--out", "{}/merged"]),
        (
            "r1_aqa_repro.compose",
            f".made{LOCK}",
            [
                "--encoder",
                "{}/a",
                "--language-model",
                "{}/b",
                "--window-seconds",
                "3",
                "--out",
                "{}/made",
            ],
        ),
        ("r1_aqa_repro.score", f"scored/{LOCK}", ["--model", "{}", "--file", "{}/pairs.jsonl", "--out", "{}/scored"]),
        ("data_prep.preferences", f"made/{LOCK}", ["--input", "{}/pairs.jsonl", "--out", "{}/made"]),
        ("scripts.gpu_check", f".gpu.json{LOCK}", ["--geometry", "tiny", "--json", "{}/gpu.json"]),
        ("scripts.two_stage_text", LOCK, ["--output_dir", "{}/two"]),
    ],
    ids=lambda value: value if isinstance(value, str) and "." in value and "/" not in value else "",
)
def test_a_second_command_for_a_place_is_refused(
    module: str, locked: str, arguments: list[str], held: ExitStack, ends: Ends, tmp_path: Path
) -> None:
    (tmp_path / "pairs.jsonl").write_text("{}\n")
    held.enter_context(sole_use(tmp_path / locked, ""))
    before = contents(tmp_path)
    filled = [argument.format(tmp_path) for argument in arguments]
    ends(module, *filled, code=2, names=[f"{tmp_path / locked}: {HOLDER} is at work here"])
    assert contents(tmp_path) == before


@pytest.mark.parametrize("name", ["comparison.json", "suite.json", "sweep.json"])
def test_results_are_not_written_while_another_command_writes_to_their_folder(
    name: str,
    held: ExitStack,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    from eval import compare, suite, sweep

    held.enter_context(sole_use(tmp_path / LOCK, ""))
    if name == "suite.json":
        with pytest.raises(Refused, match=HOLDER):
            suite.write_suite(tmp_path, {})
    elif name == "sweep.json":
        monkeypatch.setattr(sweep, "summary", lambda *_: {"points": []})
        with pytest.raises(Refused, match=HOLDER):
            sweep.write_sweep(tmp_path, tmp_path, [])
    else:
        monkeypatch.setattr(compare, "read_run", lambda *_: None)
        monkeypatch.setattr(compare, "compare", lambda *_: {})
        monkeypatch.setattr(compare, "markdown", lambda _: "")
        assert compare.main(["a", "b", "--out", str(tmp_path)]) == 2
        assert HOLDER in capfd.readouterr().err
    assert not (tmp_path / name).exists()


@pytest.mark.parametrize(
    ("module", "file", "arguments"),
    [
        ("eval.mmau", "predictions.jsonl", [
            "--ckpt", "{model}", "--data", "{manifest}", "--out", "{out}", "--limit", 1,
        ]),
        ("r1_aqa_repro.best_of_n", "samples.jsonl", [
            "--model", "{policy}", "--prompts", "{prompts}", "--rewards", "random", "--num", 2, "--out", "{out}",
        ]),
    ],
)  # fmt: skip
def test_recorded_work_is_one_process_s_alone(
    module: str,
    file: str,
    arguments: list[object],
    ends: Ends,
    manifest: Path,
    model_folder: Path,
    policy: Path,
    text_set: Path,
    tmp_path: Path,
) -> None:
    places = {"model": model_folder, "manifest": manifest, "policy": policy, "prompts": text_set / "prompts.jsonl"}
    filled = [str(argument).format(out=tmp_path, **places) for argument in arguments]
    with open_locked(tmp_path / file, ""):
        ends(module, *filled, code=2, names=[str(tmp_path / file), "another process is writing to it"])
    assert (tmp_path / file).read_bytes() == b""


def test_a_refused_training_leaves_no_folder_and_no_lock(ends: Ends, tmp_path: Path) -> None:
    folder = tmp_path / "new" / "run"
    arguments = ["--config", ROOT / "configs" / "sft_text_embedded.yaml", "--output_dir", folder, "--use_cpu", "true"]
    arguments += ["--train_file", "nothing.jsonl", "--model_name_or_path", tmp_path]
    ends("r1_aqa_repro.train_sft_text", *arguments, code=2, names=["nothing.jsonl", "config.json"])
    assert list(tmp_path.iterdir()) == []


def test_a_killed_command_leaves_no_lock(tmp_path: Path) -> None:
    """SIGKILL, which nobody can tidy up after: the file stays, its lock does not."""
    lock = tmp_path / LOCK
    program = f"""
import pathlib, time
from r1_aqa_repro.common.files import sole_use
with sole_use(pathlib.Path({str(lock)!r}), ""):
    print("held", flush=True)
    time.sleep(60)
"""
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, cwd=ROOT) as process:
        assert process.stdout is not None and process.stdout.readline() == b"held\n"
        with pytest.raises(Refused, match=f"process {process.pid} on {platform.node()}"), sole_use(lock, ""):
            pass
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert lock.is_file()
    with sole_use(lock, ""):
        assert lock.read_text() == HOLDER
    assert not lock.exists()


@pytest.mark.parametrize(
    ("make", "what"),
    [
        (os.mkfifo, "not seekable"),
        (lambda path: path.symlink_to("/dev/zero"), "it is a link"),
        (lambda path: path.symlink_to(path.with_name("notes")), "it is a link"),
        (Path.mkdir, "Is a directory"),
    ],
)
def test_what_is_no_lock_is_neither_waited_for_nor_read_nor_emptied(
    make: Callable[[Path], None], what: str, tmp_path: Path
) -> None:
    (tmp_path / "notes").write_text("mine")
    make(tmp_path / LOCK)
    with pytest.raises(Refused, match=what), sole_use(tmp_path / LOCK, ""):
        pass
    assert (tmp_path / "notes").read_text() == "mine"
    assert os.path.lexists(tmp_path / LOCK)


def test_a_killed_command_of_another_user_is_not_said_to_be_at_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its file may not be written, and still names it."""
    lock = tmp_path / LOCK
    lock.write_text("process 4711 on node3")

    def denied(path: Path, mode: str) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", path)

    monkeypatch.setattr("r1_aqa_repro.common.files.open", denied, raising=False)
    with pytest.raises(Refused, match=r"cannot be written \(Permission denied\)"), sole_use(lock, ""):
        pass


def test_what_a_command_forks_does_not_keep_its_lock(tmp_path: Path) -> None:
    """A worker of a data loader has a copy of every file that was open."""
    with sole_use(tmp_path / LOCK, ""):
        child = os.fork()
        if child == 0:
            time.sleep(60)
            os._exit(0)
    try:
        with sole_use(tmp_path / LOCK, ""):
            pass
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


def test_a_lock_on_a_file_that_was_removed_meanwhile_is_no_lock(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first removes its file after the second has opened it: the second locks the one that a third would find."""
    lock, flock = tmp_path / LOCK, fcntl.flock
    removed = [False]

    def remove_first(file: IO[bytes], operation: int) -> None:
        if not removed[0]:
            removed[0] = True
            lock.unlink()
        flock(file, operation)

    monkeypatch.setattr(fcntl, "flock", remove_first)
    with open_locked(lock, ""):
        monkeypatch.undo()
        with pytest.raises(Refused), open_locked(lock, ""):
            pass


def test_where_nothing_can_be_locked_work_goes_on_with_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Some network file systems."""

    def unsupported(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", unsupported)
    with sole_use(tmp_path / LOCK, ""):
        pass
    assert f"warning: {tmp_path / LOCK} cannot be locked (No locks available)" in capsys.readouterr().err


def test_on_a_full_disk_a_place_is_locked_all_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "write", full)
    with (
        sole_use(tmp_path / LOCK, ""),
        pytest.raises(Refused, match="another process is writing to it"),
        sole_use(tmp_path / LOCK, ""),
    ):
        pass
    assert not list(tmp_path.iterdir())


def test_a_training_s_lock_is_not_that_of_a_run_of_several_stages() -> None:
    """The embedded audio run trains in the folder that it has for itself."""
    assert RUN_LOCK != LOCK
