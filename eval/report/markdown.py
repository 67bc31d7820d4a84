"""`report.md`: the figures of one evaluation with everything needed to read them, for people."""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markdown import Markdown

from eval.evaluation import Evaluation
from eval.matcher import verdicts
from eval.report.rendering import render, shared_values
from eval.scores import choices_as_asked

# what settings.json records of an evaluation that a person chose, as options of `eval.mmau`
_OPTIONS = (
    "prompt_style",
    "decoding",
    "repeats",
    "permute_choices",
    "batch_size",
    "max_new_tokens",
    "audio_channel",
    "dtype",
)


def markdown_report(evaluation: Evaluation) -> str:
    """The report as GitHub-flavoured Markdown; if the answers are withheld, without figures that need them."""
    scores = evaluation.scores
    values = shared_values(evaluation) | {
        "withheld": evaluation.is_withheld,
        "asked": scores.get("asked", scores["n"]),
        "unknown": "not known",
        "command": repeating_command(evaluation.settings, evaluation.paths),
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
    found = []
    for question in evaluation.questions:
        for one in evaluation.of_question.get(question.id, []):
            verdict = verdicts(one.answer, question.answer or "", choices_as_asked(question, one))
            if len(set(verdict.values())) > 1:
                found.append((question.id, one.answer or "", question.answer or "", verdict))
                break
    return found


def repeating_command(settings: Mapping[str, Any], paths: Mapping[str, str]) -> str:
    """The command line that makes the same predictions, or scores the same ones; empty for a model in training."""
    is_scoring = "predictions" in paths
    if "training_step" in settings and not is_scoring:
        return ""
    where = {name: path for name, path in paths.items() if not is_scoring or name not in ("checkpoint", "adapter")}
    options = ("prompt_style",) if is_scoring else _OPTIONS
    given: dict[str, Any] = {"ckpt" if name == "checkpoint" else name: path for name, path in where.items()}
    given |= {"limit": settings.get("questions")} | {name: settings.get(name) for name in options}
    command = ["python", "-m", "eval.mmau"]
    for name, value in given.items():
        command += [] if value is None else [f"--{name.replace('_', '-')}", str(value)]
    silent = settings.get("no_audio") and not is_scoring
    return shlex.join([*command, *(["--no-audio"] if silent else [])])


def print_report(path: str | os.PathLike[str]) -> None:
    """Show a report.md on the terminal, its long lists of ids cut, followed by where it is."""
    lines = Path(path).read_text(encoding="utf-8").split("\n")
    print_markdown("\n".join(line if len(line) < 2000 else f"{line[:500]} ... (all in the file)" for line in lines))
    Console().print(f"\n{path}", markup=False, highlight=False, soft_wrap=True)


def print_markdown(text: str) -> None:
    """Show Markdown on the terminal."""
    Console().print(Markdown(text))


def markdown_table(header: Sequence[str], rows: Iterable[Sequence[str]], texts: int = 1) -> str:
    """A Markdown table: the first columns, `texts` of them, on the left, figures on the right."""
    alignment = ["---"] * texts + ["---:"] * (len(header) - texts)
    return "\n".join("| " + " | ".join(row) + " |" for row in (header, alignment, *rows))
