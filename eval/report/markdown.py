"""`report.md`: the figures of one evaluation with everything needed to read them, for people."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from eval.evaluation import Evaluation
from eval.matcher import verdicts
from eval.report.rendering import render, shared_values
from eval.scores import choices_as_asked, mostly_missing
from r1_aqa_repro.common.escaping import visible_line
from r1_aqa_repro.common.files import LOCK, sole_use, write_atomically, write_json


def markdown_report(evaluation: Evaluation) -> str:
    """The report as GitHub-flavoured Markdown; if the answers are withheld, without figures that need them."""
    scores = evaluation.scores
    values = shared_values(evaluation) | {
        "withheld": evaluation.is_withheld,
        "asked": scores.get("asked", scores["n"]),
        "unknown": "not known",
        "mostly_missing": mostly_missing(scores),
        "listed": 20,  # completions shown, and the characters of each
        "characters": 120,
    }
    if not evaluation.is_withheld:
        clips = {one.id: str(one.audio_path) for one in evaluation.questions if one.id in scores["no_audio"]}
        values |= {
            "disagreements": _disagreements(evaluation),
            "absent": [one for one in scores["missing_ids"] if one not in clips],
            "clips": clips,
            "unparsed": {
                one: next(each.completion for each in evaluation.of_question[one] if each.status == "unparsed")
                for one in scores["unparsed_ids"]
            },
        }
    return render("report.md.j2", **values)


def _disagreements(evaluation: Evaluation) -> list[tuple[str, str, str, dict[str, bool]]]:
    """(id, answer, right choice, verdicts) of the first answer on which the matchers differ, for each such question."""
    found, rule = [], evaluation.benchmark.rule
    for question in evaluation.questions:
        for one in evaluation.of_question.get(question.id, []):
            verdict = verdicts(one.answer, question.answer or "", choices_as_asked(question, one), rule)
            if len(set(verdict.values())) > 1:
                found.append((question.id, one.answer or "", question.answer or "", verdict))
                break
    return found


def print_report(path: str | os.PathLike[str]) -> None:
    """Show a report.md on the terminal, its long lists of ids cut, followed by where it is."""
    from rich.console import Console

    lines = Path(path).read_text(encoding="utf-8").split("\n")
    print_markdown("\n".join(line if len(line) < 2000 else f"{line[:500]} ... (all in the file)" for line in lines))
    Console().print(f"\n{visible_line(path)}", markup=False, highlight=False, soft_wrap=True)


def publish(report: str, content: Mapping[str, Any], out: Path | None, name: str) -> None:
    """Show a report on the terminal and, where there is a folder `out`, write it with its content as `name`.md and
    `name`.json."""
    print_markdown(report)
    if out is not None:
        with sole_use(out / LOCK, "Choose another --out."):
            write_json(out / f"{name}.json", content)
            write_atomically(out / f"{name}.md", report)


def print_markdown(text: str) -> None:
    """Show Markdown on the terminal."""
    from rich.console import Console  # slow to import, and needed to show a report only
    from rich.markdown import Markdown

    Console().print(Markdown(text))
