"""What can be wrong with the files of a model, done to a copy of one."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from r1_aqa_repro.common.errors import Refused

Change = Callable[[Path], Any]


def refusal_of(load: Callable[..., Any], *arguments: Any, **settings: Any) -> str:
    with pytest.raises(Refused) as refusal:
        load(*arguments, **settings)
    [problem] = refusal.value.problems
    assert problem.remedy.endswith(".")
    return str(problem)


def edit(name: str, **values: Any) -> Change:
    """Change keys of a JSON file of the folder; None removes one."""

    def change(folder: Path) -> None:
        content = json.loads((folder / name).read_text(encoding="utf-8")) | values
        kept = {key: value for key, value in content.items() if value is not None}
        (folder / name).write_text(json.dumps(kept), encoding="utf-8")

    return change


def remove(*names: str) -> Change:
    def change(folder: Path) -> None:
        for name in names:
            (folder / name).unlink()

    return change


def edit_weights(change: Callable[[dict[str, torch.Tensor]], Any]) -> Change:
    def apply(folder: Path) -> None:
        weights = load_file(folder / "model.safetensors")
        change(weights)
        save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})

    return apply


def cut_off(name: str, kept: int = 5000) -> Change:
    """Keep the first so many bytes (below 0: all but the last)."""
    return lambda folder: (folder / name).write_bytes((folder / name).read_bytes()[:kept])
