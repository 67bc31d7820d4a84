"""One evaluation shared by several processes: the same bytes as one process writes, whoever stops and goes on."""

import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest

from eval.predictions import part_file
from r1_aqa_repro.embedded.question_set import write_question_set
from tests.conftest import ROOT
from tests.distributed.launching import ENVIRONMENT, command, launch
from tests.eval.conftest import arguments_of, evaluate
from tests.files import contents, read_lines

PREDICTIONS, PART = "predictions.jsonl", "predictions.rank-1.jsonl"
SAMPLED = ("--batch-size", 2, "--decoding", "checkpoint", "--repeats", 2)


@pytest.fixture(scope="module")
def whole(sampling, data, tmp_path_factory):
    """The folder of an evaluation by one process."""
    out = tmp_path_factory.mktemp("whole") / "out"
    assert evaluate(sampling, data, out, *SAMPLED) == 0
    return out


@pytest.fixture
def out(whole, tmp_path):
    """A copy of it."""
    return Path(shutil.copytree(whole, tmp_path / "out"))


class TestParts:
    """What other processes have left is taken in by whoever comes next."""

    @pytest.mark.parametrize("overlapping", [False, True])
    @pytest.mark.parametrize("cut", [0, 7])
    def test_parts_are_taken_in(self, sampling, data, whole, out, overlapping, cut):
        lines = (whole / "predictions.jsonl").read_bytes().splitlines(keepends=True)
        mine = lines[::2] + (lines[1:8:2] if overlapping else [])  # taken in, then killed before the part was removed
        (out / "predictions.jsonl").write_bytes(b"".join(mine))
        part = b"".join(lines[1::2])
        (out / PART).write_bytes(part[: len(part) - cut])
        assert evaluate(sampling, data, out, *SAMPLED) == 0
        assert contents(out) == contents(whole)

    def test_a_part_of_another_evaluation_is_refused(self, sampling, data, whole, out, capsys):
        line = (whole / "predictions.jsonl").read_bytes().splitlines(keepends=True)[0]
        (out / PART).write_bytes(line.replace(b'"settings_hash": "', b'"settings_hash": "0') * 2)
        assert evaluate(sampling, data, out, *SAMPLED) == 2
        assert "other settings" in capsys.readouterr().err
        assert (out / "predictions.jsonl").read_bytes() == (whole / "predictions.jsonl").read_bytes()

    def test_a_part_that_is_being_written_is_refused(self, sampling, data, whole, out, capsys):
        part_file(out, 1)
        held = part_file(out, 2)
        assert evaluate(sampling, data, out, *SAMPLED) == 2
        assert "another process" in capsys.readouterr().err
        held.close()


def start(log, checkpoint, data, out, *more):
    argv = arguments_of(checkpoint, data, out, *SAMPLED, *more)
    with open(log, "ab") as output:
        return subprocess.Popen(
            command("eval.mmau", *argv),
            stdout=output, stderr=subprocess.STDOUT, env=ENVIRONMENT, cwd=ROOT, start_new_session=True,
        )  # fmt: skip


@pytest.mark.distributed
class TestTwoProcesses:
    def test_the_same_bytes_as_one(self, sampling, data, whole, tmp_path):
        out, log = tmp_path / "shared", tmp_path / "log"
        assert start(log, sampling, data, out).wait(timeout=200) == 0
        assert contents(out) == contents(whole)
        assert log.read_text(encoding="utf-8").count("By matcher") == 1  # only one process reports

    def test_refusals_and_losses_are_those_of_one_process(self, sampling, manifest, tmp_path):
        (manifest.parent / read_lines(manifest)[3]["audio_path"]).unlink()
        log, given = tmp_path / "log", (sampling, manifest, tmp_path / "out")
        assert start(log, *given, "--strict").wait(timeout=200) == 2, log.read_text(encoding="utf-8")
        assert log.read_text(encoding="utf-8").count("no such audio file") == 1
        assert start(log, *given).wait(timeout=200) == 3, log.read_text(encoding="utf-8")

    @pytest.mark.parametrize(("ending", "code"), [("refused", 2), ("done", 0)])
    def test_a_process_aborted_at_its_end_changes_no_exit_code(self, tmp_path, ending, code):
        done = launch(str(ROOT / "tests" / "eval" / "aborted.py"), tmp_path, ending)
        assert done.returncode == code, done.stderr
        assert sorted(path.name for path in tmp_path.iterdir()) == ["0", "1"]

    def test_killed_and_gone_on_with_by_one_process(self, sampling, tmp_path):
        """With enough questions that both processes are at work when they are killed."""
        write_question_set(tmp_path / "data", seed=0, num_train=1, num_held_out=240)
        manifest = tmp_path / "data" / "held_out" / "mmau_format.json"
        out, log = tmp_path / "out", tmp_path / "log"
        process = start(log, sampling, manifest, out)
        deadline = time.monotonic() + 120
        while not all((out / name).is_file() and (out / name).stat().st_size > 4000 for name in (PART, PREDICTIONS)):
            assert time.monotonic() < deadline and process.poll() is None, log.read_text(encoding="utf-8")[-3000:]
            time.sleep(0.002)
        for child in children(process.pid):
            os.kill(child, signal.SIGKILL)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        assert (out / PART).is_file()
        assert evaluate(sampling, manifest, tmp_path / "alone", *SAMPLED) == 0
        assert evaluate(sampling, manifest, out, *SAMPLED) == 0
        assert contents(out) == contents(tmp_path / "alone")


def children(pid):
    """The processes that torchrun has started; each has a session of its own."""
    return list(map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text(encoding="ascii").split()))
