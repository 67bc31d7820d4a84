"""A study made by hand, its bundle, and a copy of it to change."""

import shutil
from pathlib import Path

import pytest

from eval.reproduction.bundle import collect, seal
from tests.eval.reproduction.study_folder import PRICE, write_study, write_training

LOG = [
    {"step": 100, "loss": 0.5, "reward": 1.0, "kl": 0.1, "completions/mean_length": 20.0},
    {"step": 200, "loss": 0.4, "reward": 1.5, "kl": float("nan"), "completions/mean_length": 22.0},
]


@pytest.fixture(scope="session")
def study(tmp_path_factory) -> Path:
    """The folder of a rehearsed study, shared by all tests: copy before changing."""
    out = write_study(tmp_path_factory.mktemp("study") / "out", price=PRICE)
    write_training(out / "arms/grpo/seed-1", 3600, 8, LOG, mfu=0.4, energy_kwh=12.0)
    write_training(out / "arms/grpo/seed-2", 1800, 8, LOG)
    return out


@pytest.fixture(scope="session")
def sealed(study, tmp_path_factory) -> Path:
    """Its bundle, sealed and shared: copy before changing."""
    out = Path(shutil.copytree(study, tmp_path_factory.mktemp("sealed") / "out"))
    bundle = collect(out)
    seal(bundle)
    return bundle


@pytest.fixture
def out(study, tmp_path) -> Path:
    """A copy of the study's folder."""
    return Path(shutil.copytree(study, tmp_path / "out"))


@pytest.fixture
def bundle(sealed, tmp_path) -> Path:
    """A copy of the sealed bundle."""
    return Path(shutil.copytree(sealed, tmp_path / "bundle"))
