"""The report of a study and the card of its best model, written from its bundle.

`write` leaves report.md, report.html, curves.svg and card/README.md in the folder of the study. Every figure is one of
the bundle's figures.json. Of the study's folder only clips are taken, to be listened to, where they are at hand.
"""

from __future__ import annotations

import base64
import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import quote

from eval.report.page import embedded_clip
from eval.report.rendering import asset, render
from eval.reproduction import details, sections
from eval.reproduction.card import CARD_FOLDER, card_of, chosen_of, read_figures
from eval.reproduction.curves import PANELS, lines_of, write_curves
from eval.reproduction.sections import Figures, Section, is_rehearsed, was_run
from r1_aqa_repro.common.errors import Refused
from r1_aqa_repro.common.files import LOCK, sole_use, unreadable, write_atomically
from r1_aqa_repro.data.questions import read_questions
from r1_aqa_repro.run.model_card import CARD

REPORT, PAGE, PICTURE = "report.md", "report.html", "curves.svg"
TEST_QUESTIONS = Path("data") / "test.jsonl"  # in the folder of a study
REHEARSAL = (
    "REHEARSAL. A small embedded model learned from embedded questions and was asked embedded questions. No figure of "
    "this report is one of MMAU or of R1-AQA, and none may be compared with the paper's."
)
_CHARACTERS = 300  # of a completion in report.md; the page has all


def write(out: Path) -> None:
    """Write the report of the study in the folder `out`, whose bundle is made, and the card of its best model.

    The same bundle and clips give the same bytes. A study without a chosen checkpoint of its main arm has no card.

    Raises:
        Refused: the bundle has no figures or not the records that the card is made of, or another process writes the
            report.
    """
    figures = read_figures(out)
    labels = {row["row"]: row["label"] for row in figures["table"] if has_curves(figures, row["row"])}
    clips = clips_at_hand(out, figures)
    chosen = chosen_of(figures)
    values = {
        "title": f"Reproduction of R1-AQA: {figures['name']}",
        "rehearsed": is_rehearsed(figures),
        "rehearsal": REHEARSAL,
        "sentences": sections.introduction(figures),
        "sections": sections_of(figures, labels),
    }
    examples = examples_of(figures)
    card = "" if chosen is None else card_of(out, figures, chosen)
    with sole_use(out / LOCK, "Wait until it is written."):
        if labels:
            heading = "REHEARSAL: embedded model, embedded questions" if is_rehearsed(figures) else ""
            write_curves(out / PICTURE, figures["curves"], labels, heading)
        linked = [one | {"link": _link(clips.get(one["id"]), out)} for one in examples]
        report = render(
            "reproduction.md.j2",
            **values,
            picture=PICTURE if labels else "",
            examples=linked,
            characters=_CHARACTERS,
            card=f"{CARD_FOLDER}/{CARD}" if card else "",
        )
        write_atomically(out / REPORT, report)
        heard = [one | {"audio": _audio(clips.get(one["id"]))} for one in examples]
        page = render(
            "reproduction.html.j2",
            **values,
            css=asset("report.css"),
            curves=_data_url(out / PICTURE) if labels else "",
            examples=heard,
        )
        write_atomically(out / PAGE, page)
        if card:
            write_atomically(out / CARD_FOLDER / CARD, card)


def sections_of(figures: Figures, drawn: Mapping[str, str]) -> list[Section]:
    """The sections of the report in their order; `drawn` are the labels of the arms that have curves."""
    found = [
        sections.papers_table(figures),
        sections.verdicts(figures),
        sections.controls(figures),
        sections.choosing(figures),
        sections.curves(drawn.values(), bool(drawn)),
        details.changes(figures),
        details.matrix(figures),
        details.suite(figures),
        details.overlap(figures),
        details.cost(figures),
    ]
    if not is_rehearsed(figures):
        return found
    paper, *others = found
    return [paper, *(replace(one, tables=[_as_rehearsed(table) for table in one.tables]) for one in others)]


def _as_rehearsed(table: sections.Table) -> sections.Table:
    return replace(table, title=table.title or sections.ON_EMBEDDED)


def has_curves(figures: Figures, arm: str) -> bool:
    """Whether anything of an arm's trainings is drawn."""
    return any(lines_of(figures["curves"], arm, name) for name in PANELS)


def examples_of(figures: Figures) -> list[dict[str, Any]]:
    """The questions gained and lost that are shown, with a heading and the completions by who said them."""
    found = figures["changes"]
    if not was_run(found):
        return []
    return [
        {
            "id": one["id"],
            "heading": f"{what}, {one['label']}: {one['id']}",
            **{key: one[key] for key in ("question", "choices", "answer")},
            "completions": {"before": one["before"], f"{found['label']}, seed {one['seed']}": one["after"]},
        }
        for what in ("gained", "lost")
        for one in found[what]
    ]


def clips_at_hand(out: Path, figures: Figures) -> dict[str, Path]:
    """The clips of the questions that are shown, by the questions' ids, as far as they are on this disk."""
    wanted = {one["id"] for one in examples_of(figures)}
    try:
        questions = read_questions(out / TEST_QUESTIONS).records if wanted else []
    except Refused:  # a study's folder without its data, such as one that was handed on
        return {}
    return {one.id: one.audio_path for one in questions if one.id in wanted and unreadable(one.audio_path) is None}


def _link(clip: Path | None, out: Path) -> str:
    return "" if clip is None else quote(os.path.relpath(clip, out), errors="replace")


def _audio(clip: Path | None) -> str:
    """Empty for a clip that is not there or cannot be decoded."""
    url = "" if clip is None else embedded_clip(clip)
    return "" if url.endswith(",") else url


def _data_url(picture: Path) -> str:
    return "data:image/svg+xml;base64," + base64.b64encode(picture.read_bytes()).decode("ascii")
