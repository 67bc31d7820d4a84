"""What README, guides and CONTRIBUTING.md name is there: files, modules, links."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.conftest import ROOT

# CHANGELOG.md and docs/log.md tell of what has been
PAGES = [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / ".github").rglob("*.md")]
PAGES = sorted(page for page in PAGES if page.name not in ("CHANGELOG.md", "log.md"))

_FILE = re.compile(r"(?<![\w./:-])(?:r1_aqa_repro|data_prep|eval|scripts|tests|configs|docs)/[\w./*-]*\.[a-z]{2,6}\b")
_ROOM = re.compile(r"`((?:r1_aqa_repro|data_prep|eval|scripts|tests|configs)/(?:[a-z_]+/)*)`")
_COMMAND = re.compile(r"python -m ((?:r1_aqa_repro|data_prep|eval|scripts)\.[\w.]+)")
_MODULE = re.compile(r"`((?:r1_aqa_repro|data_prep|eval)\.\w[\w.]*)")
_LINK = re.compile(r"\]\((?!https?:)([^)#]*)#?([^)]*)\)")
_HEADING = re.compile(r"^#+ (.*)$", re.MULTILINE)


def anchors(page: Path) -> set[str]:
    """What links may name in a page: its headings, as GitHub writes them."""
    headings = _HEADING.findall(page.read_text(encoding="utf-8"))
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def is_there(target: str, anchor: str, page: Path) -> bool:
    """Whether what a link in a page names is there."""
    linked = page.parent / target if target else page
    return linked.exists() and (not anchor or anchor in anchors(linked))


def absent(text: str, page: Path) -> list[str]:
    """What the text of a page names and is not there."""

    def file(module: str) -> Path:
        return (ROOT / module.replace(".", "/")).with_suffix(".py")

    def is_command(module: str) -> bool:
        return file(module).is_file() and "__main__" in file(module).read_text(encoding="utf-8")

    return [
        *(name for name in _FILE.findall(text) if "NAME" not in name and not list(ROOT.glob(name))),
        *(name for name in _ROOM.findall(text) if not (ROOT / name).is_dir()),
        *(name for name in _MODULE.findall(text) if not file(name).is_file()),
        *(name for name in _COMMAND.findall(text) if not is_command(name)),
        *(f"{target}#{anchor}" for target, anchor in _LINK.findall(text) if not is_there(target, anchor, page)),
    ]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_all_that_a_page_names_is_there(page: Path) -> None:
    assert absent(page.read_text(encoding="utf-8"), page) == []


def test_what_is_not_there_is_found() -> None:
    text = """
        `scripts/gone.sh`, `configs/*_gone.yaml` and NAME in configs/NAME.yaml; `tests/gone/` beside `tests/data/`;
        `eval.gone` and `eval.mmau`; [a page](docs/gone.md#part), [another](README.md#results), [a site](https://a.example);
        [a part](#results), [no part](README.md#gone);
        python -m eval.scores --out runs/eval/x.json
    """
    gone = ["scripts/gone.sh", "configs/*_gone.yaml", "docs/gone.md", "tests/gone/", "eval.gone", "eval.scores"]
    assert sorted(absent(text, ROOT / "README.md")) == sorted([*gone, "docs/gone.md#part", "README.md#gone"])
