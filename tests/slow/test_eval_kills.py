"""SIGKILL twenty times in a row while evaluating: the same command ends as if nothing had happened, to the byte."""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import shutil
import signal
import time
from pathlib import Path

import pytest

from eval import mmau
from eval.predictions import PREDICTIONS
from tests.conftest import make_questions, write_manifest
from tests.eval.conftest import set_own_decoding
from tests.files import contents

pytestmark = [pytest.mark.slow, pytest.mark.timeout(400)]

KILLS = 20
# far more batches than the kills can leave time for, or one would come after the end
QUESTIONS, REPEATS, ORDERS, BATCH = 200, 2, 2, 6


def evaluate(argv: list[str], log: Path) -> None:
    """The command, which prints to a file."""
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(file, 1)
    os.dup2(file, 2)
    raise SystemExit(mmau.main(argv))


def lines_of(out: Path) -> list[bytes]:
    """The complete lines."""
    path = out / PREDICTIONS
    return path.read_bytes().split(b"\n")[:-1] if path.is_file() else []


def test_killed_twenty_times_in_a_row(model_folder: Path, tmp_path: Path) -> None:
    manifest = tmp_path / "data" / "manifest.jsonl"
    write_manifest(manifest, make_questions(tmp_path / "data" / "clips", QUESTIONS))
    checkpoint = Path(shutil.copytree(model_folder, tmp_path / "checkpoint"))
    set_own_decoding(checkpoint, do_sample=True, repetition_penalty=1.1)
    argv = [
        "--ckpt", str(checkpoint), "--data", str(manifest), "--device", "cpu", "--max-new-tokens", "12",
        "--decoding", "checkpoint", "--repeats", str(REPEATS), "--permute-choices", str(ORDERS),
        "--batch-size", str(BATCH),
    ]  # fmt: skip
    whole, out = tmp_path / "whole", tmp_path / "out"
    assert mmau.main([*argv, "--out", str(whole)]) == 0

    forking = multiprocessing.get_context("forkserver")
    forking.set_forkserver_preload(["eval.run", "eval.loop", __name__])
    rng = random.Random(0)
    for number in range(1, KILLS + 1):
        before, log = lines_of(out), tmp_path / f"log-{number}"
        process = forking.Process(target=evaluate, args=([*argv, "--out", str(out)], log))
        process.start()
        starting, deadline = number % 5 == 1, time.monotonic() + 60
        while not starting and len(lines_of(out)) == len(before):  # then it generates, or writes
            assert process.is_alive() and time.monotonic() < deadline, log.read_text(encoding="utf-8")[-3000:]
        time.sleep(rng.uniform(0, 0.5 if starting else 0.02))
        process.kill()
        process.join()
        assert process.exitcode == -signal.SIGKILL, log.read_text(encoding="utf-8")[-3000:]
        after = lines_of(out)
        assert after[: len(before)] == before  # nothing is lost
        if number % 4 == 0:  # as a kill within a write would leave it
            with open(out / PREDICTIONS, "ab") as file:
                file.write(after[0][: rng.randint(1, len(after[0]) - 1)])
    assert len(lines_of(out)) < QUESTIONS * REPEATS * ORDERS

    assert mmau.main([*argv, "--out", str(out)]) == 0
    keys = [(record["id"], record["repeat"]) for record in map(json.loads, lines_of(out))]
    assert keys == [(f"q{index}", repeat) for index in range(QUESTIONS) for repeat in range(REPEATS * ORDERS)]
    assert contents(out) == contents(whole)
