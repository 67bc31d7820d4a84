"""Under ZeRO-3 a reference model is compared to the policy by whole weights, of which each process holds a part."""

from __future__ import annotations

import multiprocessing
import os
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import pytest
import torch
from transformers.integrations import HfDeepSpeedConfig

from r1_aqa_repro.common.errors import Refused
from r1_aqa_repro.model import loading
from tests.distributed.launching import ENVIRONMENT, deepspeed, free_port

pytestmark = [pytest.mark.distributed, pytest.mark.timeout(300)]


def compare(model_folder: Path, port: int) -> list[str]:
    """What is said of the policy's copy, and of one with a changed number, in a process of its own."""
    os.environ |= ENVIRONMENT | {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1"}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    import deepspeed

    deepspeed.init_distributed(dist_backend="gloo")
    config = HfDeepSpeedConfig({"zero_optimization": {"stage": 3}, "train_micro_batch_size_per_gpu": 1})
    policy, reference = (loading.load_model(model_folder) for _ in range(2))
    assert config.is_zero3() and reference.lm_head.weight.numel() == 0
    said = []
    for change in (0.0, 0.01):
        with deepspeed.zero.GatheredParameters(reference.lm_head.weight, modifier_rank=0), torch.no_grad():
            reference.lm_head.weight[0, 0] += change
        try:
            loading.check_reference(policy, reference)
            said.append("")
        except Refused as refusal:
            said.append(str(refusal))
    return said


def test_a_reference_with_other_weights_is_refused(model_folder: Path) -> None:
    deepspeed("zero3")  # skips the test where it cannot run
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        same, other = pool.submit(compare, model_folder, free_port()).result()
    assert same == "" and "in 1 tensors, such as lm_head.weight" in other
