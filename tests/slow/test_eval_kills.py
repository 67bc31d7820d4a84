"""SIGKILL twenty times in a row while evaluating: the same command ends as if nothing had happened, to the byte."""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import shutil
import signal
import time
from collections import Counter
from ctypes import c_int
from pathlib import Path
from typing import Any

import pytest

from eval import mmau
from eval.generation import Generator
from eval.predictions import PREDICTIONS, PredictionFile
from tests.conftest import make_questions
from tests.conftest import write_manifest as write
from tests.eval.conftest import set_own_decoding
from tests.files import contents

pytestmark = [pytest.mark.slow, pytest.mark.timeout(400)]

QUESTIONS, REPEATS, ORDERS, BATCH = 200, 2, 2, 6
LINES, BATCHES = QUESTIONS * REPEATS * ORDERS, QUESTIONS * ORDERS // BATCH
PHASES = ("start-up", "generation", "writing", "between")
# What each kill waits for before a random delay of up to so many seconds: the n-th such phase after the start. There
# are far more batches than the kills can leave time for, or one would come after the end.
AIMS = 2 * [
    ("start-up", 1, 0.0), ("generation", 1, 0.01), ("writing", 1, 0.0005), ("generation", 2, 0.01), ("writing", 2, 0.0),
    ("start-up", 1, 0.5), ("writing", 1, 0.002), ("generation", 2, 0.03), ("between", 2, 0.002), ("writing", 1, 0.0),
]  # fmt: skip


def evaluate_watched(argv: list[str], log: Path, seen: Any) -> None:
    """The command, in a process that notes what it is doing in memory that outlives it.

    Args:
        argv: of the command.
        log: file to which it prints.
        seen: [index in PHASES, then for each phase how often it began].
    """
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(file, 1)
    os.dup2(file, 2)

    def note(kind: type, name: str, phase: str) -> None:
        method = getattr(kind, name)

        def begin(phase: str) -> None:
            seen[0] = PHASES.index(phase)
            seen[1 + seen[0]] += 1

        def noted(*args: Any, **kwargs: Any) -> Any:
            begin(phase)
            result = method(*args, **kwargs)
            begin("between")
            return result

        setattr(kind, name, noted)

    note(Generator, "answer", "generation")
    note(PredictionFile, "append", "writing")
    raise SystemExit(mmau.main(argv))


def lines_of(out: Path) -> list[bytes]:
    """The complete lines."""
    path = out / PREDICTIONS
    return path.read_bytes().split(b"\n")[:-1] if path.is_file() else []


def test_killed_twenty_times_in_a_row(model_folder: Path, tmp_path: Path) -> None:
    manifest = tmp_path / "data" / "manifest.jsonl"
    write(manifest, make_questions(tmp_path / "data" / "clips", QUESTIONS))
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
    rng, hit, generated = random.Random(0), Counter[str](), 0
    for number, (aim, nth, longest_delay) in enumerate(AIMS, 1):
        before, log = lines_of(out), tmp_path / f"log-{number}"
        seen = forking.RawArray(c_int, 1 + len(PHASES))
        process = forking.Process(target=evaluate_watched, args=([*argv, "--out", str(out)], log, seen))
        process.start()
        deadline = time.monotonic() + 60
        while aim != "start-up" and seen[1 + PHASES.index(aim)] < nth:
            assert process.is_alive() and time.monotonic() < deadline, log.read_text(encoding="utf-8")[-3000:]
        time.sleep(rng.uniform(0, longest_delay))
        process.kill()
        process.join()
        assert process.exitcode == -signal.SIGKILL, log.read_text(encoding="utf-8")[-3000:]
        phase, after = PHASES[seen[0]], lines_of(out)
        hit[phase] += 1
        generated += seen[1 + PHASES.index("generation")]
        print(f"kill {number}: in {phase} ({aim}), {len(before)} lines before, {len(after)} after")
        assert after[: len(before)] == before  # nothing is lost
        if number % 4 == 0 and after:  # as a kill within a write would leave it
            with open(out / PREDICTIONS, "ab") as file:
                file.write(after[0][: rng.randint(1, len(after[0]) - 1)])
    print(f"phases: {dict(hit)}; {generated} batches begun for {BATCHES}")
    assert min(hit["start-up"], hit["generation"], hit["writing"]) >= 1
    assert 0 < len(lines_of(out)) < LINES

    assert mmau.main([*argv, "--out", str(out)]) == 0
    keys = [(record["id"], record["repeat"]) for record in map(json.loads, lines_of(out))]
    assert keys == [(f"q{index}", repeat) for index in range(QUESTIONS) for repeat in range(REPEATS * ORDERS)]
    assert contents(out) == contents(whole)
