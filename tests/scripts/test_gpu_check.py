"""The check of a GPU at the sizes of the embedded model: its figures, and what a failing part leaves of the others."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch

from r1_aqa_repro.planning.seconds import Machine
from r1_aqa_repro.planning.seconds import measured as planned
from scripts import gpu_check, gpu_parts
from tests.conftest import ROOT
from tests.planning.test_estimate import job

on_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


def measured(part: str, folder: Path) -> dict[str, Any]:
    """The figures of a part, measured in this process."""
    file = folder / "figures.json"
    assert gpu_check.main(["--geometry", "tiny", "--part", part, "--json", str(file)]) == 0
    return json.loads(file.read_text(encoding="utf-8"))[part]


def check_exactness(figures: dict[str, Any]) -> None:
    """Sharing changes bfloat16's rounding and nothing else, and no more than the plain way is off float32."""
    assert figures["head"]["error"]["max"] <= 1.01 * figures["head"]["error_of_bfloat16_logits"]["max"] < 0.02
    assert figures["head"]["gradient_cosine"] > 0.9999
    for name in ("tokens_8", "tokens_24"):
        at = figures[name]
        assert at["gradient_cosine"] > 0.9995
        assert 0 < at["shared_error"]["mean"] < 1.3 * at["plain_error"]["mean"]
        for compared in ("shared_minus_plain", "sampled_minus_scored"):
            assert 0 < at[compared]["mean"] < 3 * at["plain_error"]["mean"] < 0.03
        assert set(at["attention"]) == {"sampling", "shared", "plain"}


def test_exactness(tmp_path: Path) -> None:
    check_exactness(measured("exactness", tmp_path))


@pytest.mark.gpu
@on_gpu
def test_exactness_on_a_gpu(tmp_path: Path) -> None:
    figures = measured("exactness", tmp_path)
    check_exactness(figures)
    assert figures["head"]["triton"]
    for kernels in figures["tokens_24"]["attention"].values():
        assert kernels and not any("math" in name for name in kernels), "attention is computed without a fused kernel"


@pytest.mark.gpu
@on_gpu
def test_cuda_graphs_give_the_tokens_of_the_steps_they_record(tmp_path: Path) -> None:
    assert measured("decoding", tmp_path)["cuda_graphs_same_tokens"]


def test_scores_that_differ_in_more_than_rounding_show(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What `exactness` is for: were a packed row to see another question's clip, its figures would tell."""
    plain = gpu_parts.score_plain

    def wrong(model: Any, rollout: Any, *others: Any) -> Any:
        return plain(model, gpu_parts.replace(rollout, group=rollout.group.flip(0)), *others)

    monkeypatch.setattr(gpu_parts, "score_shared", wrong)
    with pytest.raises(AssertionError):
        check_exactness(measured("exactness", tmp_path))


def test_machine(tmp_path: Path) -> None:
    """The planner reads what is measured."""
    figures = measured("machine", tmp_path)
    machine = Machine(1, 1.0, 1.0, 1.0, (1.0, 1.0), 1.0, 1.0, (1.0, 1.0))
    machine, words = planned(tmp_path / "figures.json", machine, job())
    assert machine.launch == (figures["kernel_us"] / 1e6,) * 2 and len(words) == 3
    assert figures["versions"]["torch"] == torch.__version__ and figures["geometry"] == "tiny"
    assert figures["matmul_tflops"] > 0 and figures["copy_tb_per_second"] > 0 and figures["kernel_us"] > 0


def test_decoding(tmp_path: Path) -> None:
    figures = measured("decoding", tmp_path)
    for way in ("shared", "plain"):
        assert 0 < figures[f"{way}_operations"]["kernels"] < figures[f"{way}_operations"]["all"]
        for tokens in (8, 16, 32):
            assert figures[f"{way}_{tokens}"]["ms_a_token"] > 0


@pytest.mark.slow
@pytest.mark.parametrize("part", ["lora_step", "full_step"])
def test_steps_beside_the_planners_figures(part: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_parts, "STEPS", 1)
    figures = measured(part, tmp_path)
    assert set(figures) == {"shared_8", "shared_16", "shared_32", "plain_8"}
    planned = [figures[f"shared_{tokens}"]["planned_peak_mb"] for tokens in (8, 16, 32)]
    assert planned == sorted(planned) and planned[0] < figures["plain_8"]["planned_peak_mb"]
    for step in figures.values():
        assert step["tflops"] > 0 and step["mfu"] > 0 and step["peak_memory_mb"] > 0
        parts = (
            step["breakdown"] if part == "lora_step" else {"forward": step["forward_s"], "backward": step["backward_s"]}
        )
        assert parts["forward"] > 0 and parts["backward"] > 0


def test_what_was_measured_is_noted_before_the_planner_is_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A planner needs no GPU: what it takes there may cost no figure of one."""

    def late(*_: Any) -> Any:
        raise RuntimeError

    monkeypatch.setattr(gpu_parts, "planned_step", late)
    with pytest.raises(RuntimeError):
        measured("full_step", tmp_path)
    figures = json.loads((tmp_path / "figures.json").read_text(encoding="utf-8"))["full_step"]
    assert set(figures) == {"shared_8", "shared_16", "shared_32", "plain_8", "error"}
    assert all(figures[name]["peak_memory_mb"] > 0 for name in figures if name != "error")


def test_encoder_and_evaluation(tmp_path: Path) -> None:
    figures = measured("encoder", tmp_path)
    assert figures["trimmed"]["frames"] < figures["whole"]["frames"] == 150
    assert figures["difference"]["max"] < 0.05  # of features of size 1, in bfloat16
    figures = measured("evaluation", tmp_path)
    assert set(figures) == {"batch_4", "batch_8"} and figures["batch_8"]["questions_per_second"] > 0


@pytest.mark.slow
@pytest.mark.parametrize(("part", "engine"), [("zero3", "zero3"), ("offload", "zero3_offload")])
def test_two_steps_are_those_without_deepspeed(part: str, engine: str, tmp_path: Path) -> None:
    if shutil.which("c++") is None:
        pytest.skip("DeepSpeed on CPUs builds one op and there is no C++ compiler")
    file = tmp_path / "figures.json"
    assert "error" not in gpu_check.run(part, "tiny", file, 250)
    figures = json.loads(file.read_text(encoding="utf-8"))[part]
    assert len(figures["alone"]["loss"]) == len(figures[engine]["loss"]) == 2
    assert figures["alone"]["kl"][1] > 1e-4, "the policy has not moved: the test shows less than it should"
    assert figures["loss_difference"] < 1e-6 and figures["grad_norm_difference"] < 1e-4


def test_a_part_that_fails_leaves_the_figures_of_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each in a process of its own: one is not known there, one takes too long."""
    file = tmp_path / "figures.json"
    monkeypatch.setattr(gpu_check, "LIMITS", {"no such part": 200, "encoder": 0.1, "machine": 200})
    assert gpu_check.main(["--geometry", "tiny", "--json", str(file)]) == 3
    report = json.loads(file.read_text(encoding="utf-8"))
    assert report["no such part"]["error"] == "ended with exit code 2"
    assert report["encoder"]["error"] == "not done within 0.1 s"
    assert "error" not in report["machine"] and report["machine"]["matmul_tflops"] > 0
    assert "1 of 3 parts; failed: no such part, encoder" in capsys.readouterr().err


@pytest.fixture
def part_in_shell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], tuple[dict[str, Any], Path]]:
    """Runs a part that notes a figure and then does as a line of shell says: its entry of the JSON, and the folder."""

    def run(line: str) -> tuple[dict[str, Any], Path]:
        script, file = tmp_path / "python", tmp_path / "figures.json"
        note = """echo '{"machine": {"kernel_us": 5}, "encoder": {"trimmed": 1}}' > figures.json"""
        script.write_text(f"#!/bin/sh\ncd {tmp_path}\n{note}\n{line}\n", encoding="utf-8")
        script.chmod(0o755)
        monkeypatch.setattr(sys, "executable", str(script))
        monkeypatch.setattr(gpu_check, "GRACE", 0.2)
        gpu_check.run("encoder", "7b", file, 1)
        report = json.loads(file.read_text(encoding="utf-8"))
        assert report["machine"] == {"kernel_us": 5} and report["encoder"].pop("seconds") >= 0
        return report["encoder"], tmp_path

    return run


def test_a_part_that_is_killed_keeps_what_it_had_measured(part_in_shell: Any) -> None:
    assert part_in_shell("kill -KILL $$")[0] == {"trimmed": 1, "error": "ended with exit code -9"}


def test_a_part_that_hangs_is_ended_with_all_that_it_has_started(part_in_shell: Any) -> None:
    """Though they do not listen: a GPU that hangs holds its process."""
    figures, folder = part_in_shell("trap '' TERM; sleep 300 & echo $! > child; wait; wait")
    assert figures == {"trimmed": 1, "error": "not done within 1 s"}
    child = int((folder / "child").read_text())
    assert not psutil.pid_exists(child) or psutil.Process(child).status() == psutil.STATUS_ZOMBIE


def test_a_part_that_fails_keeps_what_it_had_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(*_: Any) -> Iterator[dict[str, Any]]:
        yield {"trimmed": 1}
        raise RuntimeError("out of memory")

    monkeypatch.setattr(gpu_parts, "encoder", failing)
    with pytest.raises(RuntimeError):
        measured("encoder", tmp_path)
    report = json.loads((tmp_path / "figures.json").read_text(encoding="utf-8"))
    assert report == {"encoder": {"trimmed": 1, "error": "RuntimeError: out of memory"}}


def test_missing_packages_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "scripts.gpu_parts", None)
    assert gpu_check.main(["--geometry", "tiny", "--json", str(tmp_path / "figures.json")]) == 2
    assert "packages are missing" in capsys.readouterr().err and not list(tmp_path.iterdir())


def test_7b_is_refused_without_a_gpu(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert gpu_check.main([]) == 2
    assert "needs a GPU" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["gpu_check.sh", "--wheels", "."], "no wheels are there"),
        (["collect_wheels.sh", "."], "holds wheels"),
        (["collect_wheels.sh"], "give a folder"),
    ],
)
def test_wheels_are_looked_for_first(arguments: list[str], said: str, tmp_path: Path) -> None:
    if said == "holds wheels":
        (tmp_path / "some.whl").touch()
    line = ["bash", str(ROOT / "scripts" / arguments[0]), *arguments[1:]]
    done = subprocess.run(line, capture_output=True, text=True, cwd=tmp_path, check=False, timeout=60)
    assert done.returncode == 2 and said in done.stderr


def test_the_parts_have_the_names_they_are_called_by() -> None:
    assert all(callable(getattr(gpu_parts, part)) for part in gpu_check.LIMITS)
    assert sum(gpu_check.LIMITS.values()) == 600, "the parts together take ten minutes at most"
