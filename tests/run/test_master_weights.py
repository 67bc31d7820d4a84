"""At a learning rate of 1e-6 only float32 weights move: bf16 ones are rounded back to where they were at every step.

The paper's run keeps float32 weights (`dtype: float32`) and computes in bf16, by autocast or, under DeepSpeed, with a
bf16 copy of float32 masters. Here a constant gradient pushes for 200 steps. Adam then moves a weight by the learning
rate a step, whatever the gradient's size (m = g, v = g^2): 2e-4 in all.
"""

from __future__ import annotations

import multiprocessing
import os
import shutil
import sys
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import PreTrainedConfig, Trainer, TrainerCallback

from r1_aqa_repro.common.distributed import start_distributed
from r1_aqa_repro.model.loading import load_configured
from r1_aqa_repro.run.config import AudioGRPOConfig, parse_config
from tests.conftest import ROOT
from tests.distributed.launching import free_port
from tests.paper import PAPER, paper_training

STEPS, RATE = 200, 1e-6
MOVED = STEPS * RATE


class Weights(nn.Module):
    """4096 weights of sizes 0.02 to 0.9 and random sign: where bf16's spacing is 1.2e-4 to 3.9e-3."""

    def __init__(self, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        size = 0.02 * 45 ** torch.rand(4096, generator=generator)
        sign = torch.randint(0, 2, (4096,), generator=generator) * 2 - 1
        self.weight = nn.Parameter((size * sign).to(dtype))
        self.config = PreTrainedConfig(hidden_size=64)  # from which transformers derives DeepSpeed's bucket sizes

    def forward(self, gradient: torch.Tensor) -> dict[str, torch.Tensor]:
        """A loss whose gradient is the mean of the rows of `gradient` [B, 4096]."""
        return {"loss": (self.weight * gradient.to(self.weight.dtype).mean(0)).sum()}


def constant_gradient() -> torch.Tensor:
    """1e-2 in size (Adam's 1e-8 is lost beside it), half of them negative."""
    return 1e-2 * (torch.arange(4096) % 2 * 2 - 1).float()


def trained(module: Weights, folder: Path, *overrides: str) -> tuple[torch.Tensor, torch.Tensor]:
    """The weights before and after 200 steps of the optimizer that Trainer makes of the paper's configuration."""
    optimizer = Trainer(model=module, args=paper_training(folder, *overrides)).create_optimizer()
    assert optimizer.param_groups[0]["lr"] == RATE
    before = module.weight.detach().clone()
    for _ in range(STEPS):
        module(constant_gradient()[None])["loss"].backward()
        optimizer.step()
        optimizer.zero_grad()
    return before, module.weight.detach().clone()


def check_master(before: torch.Tensor, after: torch.Tensor) -> None:
    """float32 weights after 200 steps against where Adam should have put them."""
    movement = (after.double() - before.double()) * -constant_gradient().sign().double()
    # each step is rounded to float32's spacing, up to 6e-8 below 1: by at most 3 % of 1e-6, and always the same way
    assert movement.min() > 0.97 * MOVED and movement.max() < 1.03 * MOVED


def check_copy(before: torch.Tensor, after: torch.Tensor, moved_master: torch.Tensor) -> None:
    """bf16 copies: below 2^-5 their spacing is under 2e-4, so that all change; above, the nearer ones to an edge do."""
    changed = before != after
    small = before.abs().float() < 2**-5 - MOVED
    assert small.sum() > 200 and changed[small].all()
    assert 0.02 < changed[~small].float().mean() < 0.9
    assert torch.equal(after, moved_master.bfloat16())


def test_float32_weights_move_and_so_does_their_bf16_copy(tmp_path: Path) -> None:
    before, after = trained(Weights(), tmp_path)
    check_master(before, after)
    check_copy(before.bfloat16(), after.bfloat16(), after)


def test_bf16_weights_do_not_move_at_all(tmp_path: Path) -> None:
    """The control, with the same optimizer."""
    before, after = trained(Weights(torch.bfloat16), tmp_path)
    assert torch.equal(before, after)
    # it is the rate: at a thousand times as much they do move
    module = Weights(torch.bfloat16)
    optimizer = torch.optim.AdamW(module.parameters(), lr=1e-3, weight_decay=0.0)
    module(constant_gradient()[None])["loss"].backward()
    optimizer.step()
    assert (module.weight != before).float().mean() > 0.3


def test_the_papers_model_is_loaded_in_float32_and_computes_in_bf16(model_folder: Path, tmp_path: Path) -> None:
    argv = ["--config", str(PAPER), "--model_name_or_path", str(model_folder), "--output_dir", str(tmp_path)]
    _, training, model_config = parse_config(AudioGRPOConfig, [*argv, "--use_cpu", "true", "--deepspeed", ""])
    assert training.bf16
    model, _ = load_configured(model_config)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    trainer = Trainer(model=model, args=training)
    ids = torch.tensor([[1, 2, 3]])
    inside: list[torch.dtype] = []
    model.model.language_model.layers[0].mlp.register_forward_hook(
        lambda module, inputs, output: inside.append(output.dtype)
    )
    with trainer.compute_loss_context_manager(), trainer.accelerator.autocast():
        model(input_ids=ids, attention_mask=torch.ones_like(ids))
    assert inside == [torch.bfloat16]


# --- DeepSpeed


@dataclass
class DeepSpeedRun:
    """Masters and bf16 copies before and after, [2, 4096], and the settings of the optimizer inside the engine."""

    masters: torch.Tensor
    copies: torch.Tensor
    settings: dict[str, Any]


def run_deepspeed(folder: str, strategy: str, port: int) -> DeepSpeedRun:
    """200 steps of Trainer's own loop under DeepSpeed, in a process of its own."""
    os.environ |= {
        "RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port),
        # where ninja is, with which DeepSpeed builds its op
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
    }  # fmt: skip
    import deepspeed
    from deepspeed.utils import safe_get_full_fp32_param

    config = ROOT / "configs" / "deepspeed" / f"{strategy}.json"
    training = paper_training(
        Path(folder), "--bf16", "true", "--deepspeed", str(config), "--lr_scheduler_type", "constant",
        "--max_steps", str(STEPS), "--prompts_per_step", "1",
    )  # fmt: skip
    start_distributed(training)
    masters, copies = [], []

    class Snapshots(TrainerCallback):
        def on_train_begin(self, *_: Any, model: nn.Module, **__: Any) -> None:
            weight = next(model.parameters())
            masters.append(safe_get_full_fp32_param(weight).clone())
            with deepspeed.zero.GatheredParameters([weight]):
                copies.append(weight.detach().clone())

        on_train_end = on_train_begin

    rows = [{"gradient": constant_gradient()}] * training.per_device_train_batch_size
    trainer = Trainer(model=Weights(), args=training, train_dataset=rows, callbacks=[Snapshots()])
    trainer.train()
    engine = trainer.model_wrapped
    group = engine.basic_optimizer.param_groups[0]
    settings = {key: group[key] for key in ("lr", "betas", "eps", "weight_decay")}
    settings |= {"name": type(engine.basic_optimizer).__name__, "max_grad_norm": engine.gradient_clipping()}
    trainer.accelerator.end_training()
    return DeepSpeedRun(torch.stack(masters), torch.stack(copies), settings)


@pytest.mark.distributed
@pytest.mark.timeout(900)  # DeepSpeed's own Adam takes minutes to build, once a machine
@pytest.mark.parametrize(
    ("strategy", "optimizer"), [("zero2", "AdamW"), ("zero3", "AdamW"), ("zero3_offload", "DeepSpeedCPUAdam")]
)
def test_deepspeed_keeps_float32_masters(tmp_path: Path, strategy: str, optimizer: str) -> None:
    """Also of the paper's own strategy, zero3_offload, for which accelerate takes another implementation of AdamW."""
    if shutil.which("c++") is None:
        pytest.skip("DeepSpeed on CPUs builds its ops and there is no C++ compiler")
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        run = pool.submit(run_deepspeed, str(tmp_path), strategy, free_port()).result()
    assert (run.masters.dtype, run.copies.dtype) == (torch.float32, torch.bfloat16)
    check_master(run.masters[0], run.masters[1])
    check_copy(run.copies[0], run.copies[1], run.masters[1])
    assert run.settings == {
        "name": optimizer, "lr": RATE, "betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 0.0, "max_grad_norm": 1.0
    }  # fmt: skip
