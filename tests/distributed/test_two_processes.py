"""The real entry point under torchrun with two CPU processes, running freely: DDP, ZeRO-2 and ZeRO-3."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
from safetensors.torch import load_file

from eval.mmau import main as evaluate
from r1_aqa_repro.data.questions import AudioQuestion, write_manifest
from r1_aqa_repro.model import loading
from r1_aqa_repro.run.checkpoints import last_checkpoint
from r1_aqa_repro.run.clips import MEASURED, SKIPPED
from tests.bad_clips import BAD_CLIPS
from tests.conftest import ROOT, make_questions
from tests.distributed.launching import ENVIRONMENT, Job, log_history

pytestmark = [pytest.mark.distributed, pytest.mark.timeout(600)]

# a reward by each process's own coin, so that a resume has to bring back every process's random numbers
FREELY = ["--max_steps", "4", "--reward_funcs", "random"]


@pytest.fixture(scope="module", params=["ddp", "zero2", "zero3"])
def trained(
    request: pytest.FixtureRequest, manifest: Path, model_folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> Job:
    job = Job(tmp_path_factory.mktemp(request.param), manifest, model_folder, request.param)
    done = job.train(*FREELY)
    assert done.returncode == 0, done.stderr[-3000:]
    return job


def test_the_parameters_move(trained: Job) -> None:
    start, final = (loading.load_model(path).state_dict() for path in (trained.model, trained.run / "final"))
    assert len([name for name, value in final.items() if not value.equal(start[name])]) > 20


def test_each_process_has_whole_groups_of_its_own(trained: Job) -> None:
    seen = [trained.records(rank) for rank in (0, 1)]
    assert len(seen[0]) == len(seen[1]) == 4
    for batches in zip(*seen, strict=True):
        questions = [batch["ids"][::4] for batch in batches]  # 2 questions x 4 completions each
        assert [batch["ids"] for batch in batches] == [
            [each for each in asked for _ in range(4)] for asked in questions
        ]
        assert len({*questions[0], *questions[1]}) == 4
        assert batches[0]["completions"] != batches[1]["completions"]


def test_bad_clips_of_two_processes(model_folder: Path, tmp_path: Path) -> None:
    """Decoded in two shares and refused together; or let in, met by either process, and listed once by both."""
    asked = make_questions(tmp_path / "clips", 8)
    write_manifest(tmp_path / "train.jsonl", asked)
    bad = asked[1::3] + asked[2:3]  # in both shares: 1, 2, 4 and 7
    for question in bad:
        BAD_CLIPS["NaN"](question.audio_path)
    job = Job(tmp_path, tmp_path / "train.jsonl", model_folder)
    done = job.train("--max_steps", "2")
    assert done.returncode == 2 and not job.run.exists()
    assert [f": {question.id}: " in done.stderr for question in asked] == [question in bad for question in asked]

    done = job.train("--max_steps", "4", "--check_audio", "headers")
    assert done.returncode == 0, done.stderr[-3000:]
    listed = json.loads((job.run / SKIPPED).read_text(encoding="utf-8"))
    assert sorted(each["id"] for each in listed) == sorted(question.id for question in bad)
    assert {each["step"] for each in listed} == {1, 2}  # in the first epoch, though each was met twice
    met = [{name for batch in job.records(rank) for name in batch["ids"]} for rank in (0, 1)]
    assert all({question.id for question in bad} & each for each in met)
    assert len(json.loads((job.run / MEASURED).read_text(encoding="utf-8"))["clips"]) == len(asked)


def test_processes_that_need_different_things(
    questions: list[AudioQuestion], model_folder: Path, tmp_path: Path
) -> None:
    """Replacing zero-variance groups, encoding clips once, leaving completions out, evaluating: ZeRO-3 as DDP.

    Two of three questions have zero variance, so that one process often asks further ones for the sake of the other,
    has clips in its cache that the other lacks, or nothing left to learn from in a batch.
    """
    manifest, held_out = tmp_path / "train.jsonl", tmp_path / "held_out.jsonl"
    write_manifest(manifest, questions[:19])
    write_manifest(held_out, questions[19:])
    settings = [
        "--max_steps", "4", "--reward_funcs", "hashed_of_some", "--dynamic_sampling", "4", "--trained_parts",
        "no_encoder", "--advantage_filter", "above_mean", "--eval_file", str(held_out), "--per_device_eval_batch_size",
        "2",
    ]  # fmt: skip
    logs = {}
    for strategy in ("ddp", "zero3"):
        job = Job(tmp_path / strategy, manifest, model_folder, strategy)
        done = job.train(*settings)
        assert done.returncode == 0, done.stderr[-3000:]
        logs[strategy] = log_history(job.run / "checkpoint-4")
        state = json.loads((job.run / "checkpoint-4" / "trainer_state.json").read_text(encoding="utf-8"))
        evaluated = [entry["step"] for entry in state["log_history"] if "eval_accuracy" in entry]
        assert evaluated == [2, 4]
        predictions = (job.run / "eval" / "step-4" / "predictions.jsonl").read_text(encoding="utf-8").splitlines()
        assert [json.loads(line)["id"] for line in predictions] == [question.id for question in questions[19:]]
    assert sum(entry["dynamic_sampling/replaced"] for entry in logs["ddp"]) > 0
    for one, other in zip(logs["ddp"], logs["zero3"], strict=True):
        for key in ("reward", "dynamic_sampling/drawn", "dynamic_sampling/replaced", "completions/mean_length"):
            assert one[key] == other[key]
        assert one["loss"] == pytest.approx(other["loss"], abs=1e-5)  # float32, summed in another order
        assert one["grad_norm"] == pytest.approx(other["grad_norm"], rel=1e-4)


def test_a_checkpoint_is_evaluated_and_has_the_published_tensor_names(trained: Job, tmp_path: Path) -> None:
    arguments = ["--ckpt", trained.run / "checkpoint-2", "--data", trained.manifest, "--out", tmp_path / "out"]
    assert evaluate([*map(str, arguments), "--limit", "4", "--max-new-tokens", "6", "--device", "cpu"]) == 0
    assert json.loads((tmp_path / "out" / "scores.json").read_text(encoding="utf-8"))["n"] == 4
    published = load_file(trained.model / "model.safetensors").keys()  # other programs know no others
    assert load_file(trained.run / "checkpoint-2" / "model.safetensors").keys() == published


@pytest.mark.parametrize("trained", ["zero3"], indirect=True)
def test_transformers_4_reads_a_checkpoint(trained: Job, check_older: Callable[..., None]) -> None:
    check_older(trained.run / "checkpoint-2", trained.run / "final")


def test_a_resumed_run_ends_with_the_same_bytes(trained: Job, tmp_path: Path) -> None:
    job = interrupted_after_two_steps(trained, tmp_path)
    done = job.train(*FREELY)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "resuming from" in done.stderr
    steps = [entry["step"] for entry in log_history(job.run / "checkpoint-4")]
    assert steps == [1, 2, 3, 4]
    for rank in (0, 1):
        assert job.records(rank) == trained.records(rank)[2:]
    resumed, whole = (loading.load_model(path / "final").state_dict() for path in (job.run, trained.run))
    assert all(value.equal(resumed[name]) for name, value in whole.items())


def interrupted_after_two_steps(trained: Job, folder: Path) -> Job:
    """A copy of the run as a kill in its third step leaves it."""
    job = Job(folder, trained.manifest, trained.model, trained.strategy)
    shutil.copytree(trained.run, job.run, ignore=shutil.ignore_patterns("final", "checkpoint-4"))
    return job


@pytest.mark.parametrize(("number", "everybody"), [(signal.SIGTERM, True), (signal.SIGUSR1, False)])
def test_a_signal_saves_one_checkpoint(
    number: signal.Signals, everybody: bool, manifest: Path, model_folder: Path, tmp_path: Path
) -> None:
    """Some schedulers signal all processes of a job, to which torchrun passes on its own; others torchrun alone."""
    job = Job(tmp_path, manifest, model_folder)
    command = job.command("--max_steps", "1000", "--save_steps", "1000")
    with subprocess.Popen(command, cwd=ROOT, env=ENVIRONMENT, stderr=subprocess.DEVNULL) as launcher:
        deadline = time.monotonic() + 300
        while not all((job.folder / "records" / f"rank-{rank}.jsonl").is_file() for rank in (0, 1)):
            assert launcher.poll() is None and time.monotonic() < deadline
            time.sleep(0.05)
        workers = psutil.Process(launcher.pid).children() if everybody else []
        for pid in [launcher.pid, *(worker.pid for worker in workers)]:
            os.kill(pid, number)
        assert launcher.wait(timeout=120) == 130
    saved = last_checkpoint(job.run)
    assert saved is not None and not (job.run / "final").exists()
    steps = log_history(saved)[-1]["step"]
    assert saved.name == f"checkpoint-{steps}" and steps == len(job.records(0)) == len(job.records(1)) < 1000
    assert {path.name for path in saved.glob("rng_state*")} == {"rng_state_0.pth", "rng_state_1.pth"}


def test_processes_that_would_train_alone_are_refused(manifest: Path, model_folder: Path, tmp_path: Path) -> None:
    """Without `use_cpu`, transformers takes each CPU process for the only one."""
    job = Job(tmp_path, manifest, model_folder)
    done = job.train("--max_steps", "1", "--use_cpu", "false")
    assert done.returncode == 2
    assert "2 processes were started, but each would train alone" in done.stderr
    assert not job.run.exists()
