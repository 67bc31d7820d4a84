"""Two processes train as one does: the same loss, KL, gradient norm and weights if the completions are the same.

Running freely they can't be compared: each process draws from a random stream of its own.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
import torch

from tests.distributed.launching import Job, apart_and_come, log_history

pytestmark = [pytest.mark.distributed, pytest.mark.timeout(600)]

# 24 questions are 6 steps of 4: the last two steps lie in the second epoch
STEPS = 8
EPS = torch.finfo(torch.float32).eps  # 1.2e-7

Alone = Callable[[int], Job]


def train(job: Job, prompts_at_once: int, processes: int) -> Job:
    settings = ["--max_steps", str(STEPS), "--max_prompts_per_device", str(prompts_at_once)]
    done = job.train(*settings, processes=processes, driver=("--fixed",))
    assert done.returncode == 0, done.stderr[-3000:]
    return job


@pytest.fixture(scope="module")
def alone(manifest: Path, model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Alone:
    """One process that takes so many of a step's four prompts at once; trained once each."""
    return cache(lambda at_once: train(Job(tmp_path_factory.mktemp("alone"), manifest, model_folder), at_once, 1))


def rows_by_step(job: Job, processes: int) -> dict[int, Counter[tuple[str, tuple[int, ...]]]]:
    """The (question id, completion) pairs of each step, of all processes."""
    steps: dict[int, Counter[tuple[str, tuple[int, ...]]]] = {}
    for rank in range(processes):
        for batch in job.records(rank):
            pairs = zip(batch["ids"], map(tuple, batch["completions"]), strict=True)
            steps.setdefault(batch["step"], Counter()).update(pairs)
    return steps


# A step's four prompts in micro-batches of two processes and of one that hold the same prompts: TRL's KL is a mean over
# a micro-batch's tokens, then over micro-batches, so that it depends on how a step is cut.
@pytest.mark.parametrize(
    ("strategy", "prompts_at_once"),
    [("ddp", 2), ("ddp", 1), ("zero2", 1), ("zero3", 1)],
    ids=["ddp", "ddp-accumulating", "zero2-accumulating", "zero3-accumulating"],
)
def test_two_processes_train_as_one(
    strategy: str, prompts_at_once: int, alone: Alone, manifest: Path, model_folder: Path, tmp_path: Path
) -> None:
    one = alone(2 * prompts_at_once)
    two = train(Job(tmp_path, manifest, model_folder, strategy), prompts_at_once, 2)
    assert rows_by_step(two, 2) == rows_by_step(one, 1)

    expected, got = (log_history(job.run / f"checkpoint-{STEPS}") for job in (one, two))
    figures = {
        name: tuple(torch.tensor([step[name] for step in log]) for log in (expected, got))
        for name in ("loss", "kl", "grad_norm", "reward")
    }
    # Both are means of differences between numbers of about 1 (advantages, which add up to nothing in a group;
    # exp(d) - d - 1), each rounded to EPS at that size; on average less. Seen: 0.2 EPS.
    for name in ("loss", "kl"):
        torch.testing.assert_close(*figures[name], rtol=0, atol=2 * EPS)
        assert figures[name][0].max() > 1000 * EPS  # so that a wrong factor would show
    # sums of squares and of rewards, in another order. Seen: 1.2 EPS
    for name in ("grad_norm", "reward"):
        torch.testing.assert_close(*figures[name], rtol=10 * EPS, atol=0)
    assert figures["kl"][0][0] == 0 and figures["kl"][0][1:].min() > 1e-4  # the policies have moved

    apart, come = apart_and_come(model_folder, one.run / "final", two.run / "final")
    assert apart < 2e-4 * come  # seen: 2e-5
