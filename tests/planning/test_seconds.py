"""Seconds of a step by hand: what decoding waits for, what is sent, and the constants of a measured GPU."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from r1_aqa_repro.common.errors import Refused
from r1_aqa_repro.planning.estimate import Engine, Memory, Parameters, Strategy, Work, memory_of
from r1_aqa_repro.planning.job import Job
from r1_aqa_repro.planning.seconds import Machine, carried, measured, sent, step_seconds, total
from tests.planning.test_estimate import job

PARAMETERS = Parameters(total=1000, trainable=800, largest=100, head=100, head_trainable=True)
MACHINE = Machine(
    gpus=8, gpu_bytes=80e9, flops_per_second=100.0, bytes_per_second=10.0, launch=(1.0, 3.0), link=7.0, host_link=4.0,
    cpu_adam=(0.5, 2.0),
)  # fmt: skip


def seconds(engine: Engine, work: Work, planned: Job, machine: Machine = MACHINE) -> dict[str, tuple[float, float]]:
    return step_seconds(Strategy(engine, False, PARAMETERS, Memory(), work), planned, machine)


@pytest.mark.parametrize(
    ("flops", "moved", "kernels", "expected"),
    [
        (10_000, 20, 1, (100.0, 100.0)),  # 10,000 FLOP at 100 a second
        (100, 500, 20, (50.0, 60.0)),  # 500 bytes at 10 a second, or 20 launches of 3 s
        (100, 20, 20, (20.0, 60.0)),
    ],
)
def test_decoding_waits_for_what_takes_longest(
    flops: int, moved: int, kernels: int, expected: tuple[float, float]
) -> None:
    work = Work({"decoding": flops, "policy": 0}, moved, kernels)
    assert seconds("ddp", work, job())["decoding"] == expected


def test_what_the_processes_send() -> None:
    """Of 8 processes each gets 7/8 from the others, here 1/8 s a byte; two bytes a number, two micro-batches."""
    planned, link = job(accumulation=2), 7.0
    assert sent("ddp", planned, PARAMETERS, link) == (2 * 4 * 800 / 8, 0)  # reduced and spread, in float32
    assert sent("zero2", planned, PARAMETERS, link) == (2 * 2 * 800 / 8, 2 * 800 / 8)
    # forward, backward and reference gather 2000 bytes each, twice; gradients twice; once a rollout to generate
    assert sent("zero3", planned, PARAMETERS, link) == ((6 * 2000 + 2 * 1600) / 8, 2 * 2000 / 8)
    every_token = job(accumulation=1, gather_for_generation=False, completion_tokens=10)
    assert sent("zero3", every_token, PARAMETERS, link)[1] == 11 * 2000 / 8
    assert sent("zero3", job(num_processes=1), PARAMETERS, link) == (0, 0)


def test_what_offloading_adds() -> None:
    planned = job(accumulation=2)
    up, down = 2 * 1000 / 8 / 4, 2 * 800 / 8 / 4  # a share, at 4 bytes a second
    assert carried(planned, PARAMETERS, 4.0) == (6 * up + 2 * down, 2 * up)
    found = seconds("zero3_offload", Work({"policy": 0, "decoding": 0}), planned)
    assert found["CPU to GPU"] == (8 * up + 2 * down,) * 2  # nothing to hide behind
    assert found["CPU's Adam"] == (800 * 0.5, 800 * 2.0)
    # on GPUs each process updates its own weights
    for engine, own in (("ddp", 800), ("zero3", 100)):
        assert seconds(engine, Work({"policy": 0}), planned)["optimizer"] == (own * 30 / 10.0,) * 2  # type: ignore[arg-type]


def test_what_is_sent_in_the_loss_hides_behind_its_computing_at_best() -> None:
    planned = job(accumulation=2)
    in_loss, apart = sent("zero3", planned, PARAMETERS, 7.0)
    found = seconds("zero3", Work({"policy": 100 * 1000, "reference": 100 * 400}), planned)  # 1400 s
    assert in_loss > 1400
    assert found["sent between GPUs"] == (apart + in_loss - 1400, apart + in_loss)
    assert total(found)[1] - total(found)[0] == pytest.approx(1400)
    found = seconds("zero3", Work({"policy": 10**6}), planned)
    assert found["sent between GPUs"] == (apart, apart + in_loss)


def test_a_base_in_4_bits() -> None:
    """By hand: 4.5 bits a matrix weight of the layers, 4.127 with nested scales; one matrix at a time unpacked."""
    parameters = Parameters(
        total=8100, trainable=100, largest=900, head=900, head_trainable=False, adapters=True, layers=6400,
        largest_layer=640, adapted=2,
    )  # fmt: skip
    plain = {"quantised": True, "dtype": torch.bfloat16}
    memory = memory_of(job(**plain), "ddp", parameters, activations=5, logits=0)
    assert memory.weights == 6400 * 4.5 / 8 + 2 * (8000 - 6400) + 4 * 100
    assert memory.activations == 5 + 2 * 640 and memory.optimizer == 8 * 100
    nested = memory_of(job(**plain, nested=True), "ddp", parameters, activations=5, logits=0)
    assert memory.weights - nested.weights == 6400 * (32 / 64 - 8 / 64 - 32 / 64 / 256) // 8


@pytest.fixture
def gpu_check(tmp_path: Path) -> Any:
    """A file as scripts/gpu_check.sh writes it, with some parts changed."""

    def write(**changes: Any) -> Path:
        parts: dict[str, Any] = {
            "machine": {"geometry": "7b", "matmul_tflops": 700.0, "copy_tb_per_second": 4.0, "kernel_us": 5.0},
            "decoding": {
                "shared_operations": {"all": 2835.0, "kernels": 1200.0},
                "shared_32": {"ms_a_token": 9.0}, "shared_128": {"ms_a_token": 10.0},
                "shared_256": {"ms_a_token": 12.0}, "cuda_graphs_256": {"ms_a_token": 6.0},
                "plain_32": {"ms_a_token": 30.0}, "seconds": 60.0,
            },
            "full_step": {"shared_256": {"tflops": 420.0, "mfu": 0.6}, "plain_32": {"tflops": 500.0, "mfu": 0.7}},
        }  # fmt: skip
        file = tmp_path / "gpu.json"
        file.write_text(json.dumps(parts | changes))
        return file

    return write


def test_the_constants_of_a_measured_gpu_take_the_place_of_the_assumed(gpu_check: Any) -> None:
    machine, words = measured(gpu_check(), MACHINE, job(completion_tokens=200))
    assert machine.flops_per_second == 420e12 and machine.bytes_per_second == 4e12
    assert machine.launch == (5e-6, pytest.approx(12e-3 / 1200)) and machine.token == 0.012
    assert (machine.link, machine.cpu_adam) == (MACHINE.link, MACHINE.cpu_adam)  # one GPU cannot tell
    assert len(words) == 4
    work = Work({"decoding": 10**9, "policy": 0}, 10**15, 10**9)
    assert seconds("ddp", work, job(completion_tokens=200, accumulation=3), machine)["decoding"] == (7.2, 7.2)
    assert measured(gpu_check(), MACHINE, job(cuda_graphs=True))[0].token == 0.006
    plain, _ = measured(gpu_check(), MACHINE, job(shared=False))
    assert (plain.flops_per_second, plain.token) == (500e12, 0.03)


def test_a_part_that_failed_leaves_the_rest(gpu_check: Any) -> None:
    failed = {"full_step": {"error": "not done within 70 s"}, "decoding": {"error": "OutOfMemoryError", "seconds": 3.0}}
    machine, words = measured(gpu_check(**failed), MACHINE, job())
    assert machine.flops_per_second == 700e12 and machine.token is None and "a matrix product" in words[0]


def test_milliseconds_a_token_are_those_of_the_measured_model_alone(gpu_check: Any) -> None:
    published = job()  # whose config.json says more than the sizes
    published.model.architectures, published.model.dtype = ["Qwen2AudioForConditionalGeneration"], torch.bfloat16
    assert measured(gpu_check(), MACHINE, published)[0].token == 0.012
    other = job()
    other.model.text_config.num_hidden_layers = 16
    assert measured(gpu_check(), MACHINE, other)[0].token is None
    tiny = {"machine": {"geometry": "tiny", "kernel_us": 5.0}}
    assert measured(gpu_check(**tiny), MACHINE, job())[0].token is None


def test_a_file_without_figures_is_refused(gpu_check: Any, tmp_path: Path) -> None:
    nothing: dict[str, Any] = {"machine": {}, "decoding": {}, "full_step": {}}
    for file in (gpu_check(**nothing), tmp_path / "absent.json"):
        with pytest.raises(Refused, match=r"gpu_check\.sh"):
            measured(file, MACHINE, job())
