"""docs/paper_map.md names every row and finding of the study, with the paper's figures, and says what was rehearsed."""

from __future__ import annotations

import re
from fnmatch import fnmatch

import pytest

from eval.reproduction.findings import NOT_RUN, Answers, findings_of
from eval.reproduction.reading import BASE, NO_SEED, Arm
from eval.reproduction.reading import Study as Described
from r1_aqa_repro.data.yaml_file import read_yaml
from scripts.reproduce.settings import REHEARSAL, read_study
from scripts.reproduce_r1_aqa import CONFIG
from tests.conftest import ROOT

PAGE = (ROOT / "docs" / "paper_map.md").read_text(encoding="utf-8")
STUDY = read_study(CONFIG, rehearse=True)
GIVEN_BY_STAGES = {"model_name_or_path", "train_file", "seed", "data_seed", "output_dir"}


def tables() -> dict[str, list[dict[str, str]]]:
    """The rows of every table with a status, by its heading and first column."""
    found: dict[str, list[dict[str, str]]] = {}
    heading = ""
    columns: list[str] = []
    for line in PAGE.splitlines():
        if line.startswith("## "):
            heading = line[3:]
        cells = [cell.strip() for cell in line.split("|")[1:-1]] if line.startswith("|") else []
        if not cells:
            columns = []
        elif not columns:
            columns = cells
        elif "Status" in columns and not cells[0].startswith("---"):
            name = f"{heading}: findings" if "Finding of the study" in columns else heading
            found.setdefault(name, []).append(dict(zip(columns, cells, strict=True)))
    return found


TABLES = tables()


def status(row: dict[str, str]) -> str:
    return re.split(r"[;,]", row["Status"])[0]


def test_every_status_is_one_that_the_page_explains() -> None:
    explained = set(re.findall(r"^- `(\w+)`:", PAGE, re.MULTILINE))
    assert {"reproduced", "rehearsed", "configured", "open"} == explained
    assert {status(row) for rows in TABLES.values() for row in rows} <= explained | {"departure"}


def test_every_row_of_the_study_is_there_with_the_paper_s_figures() -> None:
    named = {row["Row of the study"].strip("`"): row for row in TABLES["Results"]}
    base = {"published": STUDY.keys.base["published"], "config": ""}
    arms = {BASE: base, **{name: vars(arm) for name, arm in STUDY.arms.items()}}
    assert named.keys() - {""} == arms.keys()
    for name, arm in arms.items():
        row, published = named[name], arm["published"] or {}
        for column, key in (("Sound", "sound"), ("Music", "music"), ("Speech", "speech"), ("Average", "total")):
            said = row[column].strip("*")
            assert (float(said) if said else None) == published.get(key), (name, column)
        assert arm["config"] in row["How to get it here"]
        assert status(row) == "rehearsed"
    assert {status(row) for row in TABLES["Results"] if not row["Row of the study"]} == {"open"}


def test_every_finding_of_the_study_is_there_and_rehearsed_where_a_rehearsal_decides_it() -> None:
    rows = (
        Arm(BASE, "base", None, None, None),
        *(Arm(arm.name, arm.label, arm.kind, arm.role, None) for arm in STUDY.arms.values()),
    )
    described = Described("by hand", True, ("0",), rows, None)
    answers = {row.name: Answers(row, {NO_SEED if row.name == BASE else "0": [0.0, 1.0]}) for row in rows}
    found = findings_of(described, answers, range(2), "embedded", 2)
    decided = {one["id"]: "open" if one["verdict"] == NOT_RUN else "rehearsed" for one in found}
    named = {row["Finding of the study"].strip("`"): status(row) for row in TABLES["Results: findings"]}
    assert named.pop("") == "open" and named == decided


@pytest.mark.parametrize("row", TABLES["GRPO"], ids=lambda row: row["What"])
def test_a_setting_is_rehearsed_where_the_rehearsal_leaves_it_as_it_is(row: dict[str, str]) -> None:
    keys = re.findall(r"`([a-z_*]+)[^`]*`", row["Key"])
    others = GIVEN_BY_STAGES | set(read_yaml(CONFIG)[REHEARSAL]["keys"]["grpo"])
    is_replaced = any(fnmatch(other, key) for key in keys for other in others)
    assert keys and status(row) == ("configured" if is_replaced else "rehearsed")


def test_prompts_are_rehearsed_that_an_arm_is_trained_with() -> None:
    of_prompts = [row for row in TABLES["Data and prompts"] if "prompt_style" in row["Key"]]
    trained = {arm.prompt_style for arm in STUDY.arms.values()}
    expected = dict.fromkeys(trained, "rehearsed") | {"direct": "open"}  # its wording is not published
    assert {row["Key"].strip("`").split(": ")[1]: status(row) for row in of_prompts} == expected
