"""The house: which files are commands, which room imports which, how long a module may be."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest
from importlinter.cli import lint_imports

from tests.conftest import ROOT

COMMANDS = sorted(path for path in (ROOT / "r1_aqa_repro").glob("*.py") if path.name != "__init__.py")
MODULES = [path for room in ("r1_aqa_repro", "data_prep", "eval", "scripts") for path in (ROOT / room).rglob("*.py")]
LONGEST = 450  # lines


def test_imports_keep_the_contracts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    assert lint_imports(no_logo=True, no_cache=True) == 0, "the output names the imports that break a contract"


def test_the_contract_names_every_command() -> None:
    """A command that the layers do not name could be imported from any room."""
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    top = settings["tool"]["importlinter"]["contracts"][0]["layers"][0]
    assert sorted(name.strip() for name in top.split(":")) == [f"r1_aqa_repro.{path.stem}" for path in COMMANDS]


@pytest.mark.parametrize("path", COMMANDS, ids=lambda path: path.stem)
def test_a_file_beside_the_rooms_is_a_command(path: Path) -> None:
    assert '\nif __name__ == "__main__":\n' in path.read_text(encoding="utf-8")


def test_no_module_is_too_long() -> None:
    lines = {str(path.relative_to(ROOT)): len(path.read_text(encoding="utf-8").splitlines()) for path in MODULES}
    assert {name: count for name, count in lines.items() if count > LONGEST} == {}
