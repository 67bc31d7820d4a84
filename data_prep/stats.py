"""What is in a manifest: counts by kind, lengths, where the right answer stands, and what laziness would score.

    python -m data_prep.stats data/avqa/manifest.jsonl

prints a table and writes stats.json. The lazy strategies use no audio: what they score, a model can
score without listening.

Exit codes: 0 done; 2 the manifest has bad records or cannot be read; 130 interrupted.
"""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from r1_aqa_repro.common.console import Options
from r1_aqa_repro.common.errors import EXIT_DONE, Refused, command
from r1_aqa_repro.common.escaping import visible, visible_line
from r1_aqa_repro.common.files import output_folder, write_json
from r1_aqa_repro.data.audio import AudioError, read_header
from r1_aqa_repro.data.questions import AudioQuestion, read_questions
from r1_aqa_repro.data.versions import baselines

# field: what it is called; AVQA's relation and type stand in the manifest's task and category
_KINDS = {
    "dataset": "dataset",
    "split": "split",
    "version": "version",
    "task": "task / relation",
    "difficulty": "difficulty",
    "category": "category / type",
    "sub_category": "sub-category",
    "modality": "modality",
    "language": "language",
}
_SHOWN = 30  # rows of one kind that are printed


@command
def main(argv: list[str]) -> int:
    """Run the command; returns its exit code."""
    arguments = _parser().parse_args(argv)
    read = read_questions(arguments.manifest)
    if read.problems:
        raise Refused(read.problems)
    out = arguments.out or arguments.manifest.with_name(f"{arguments.manifest.stem}-stats")
    summary = statistics_of(read.records, clip_seconds(read.records))
    write_json(out / "stats.json", summary)
    _show(summary)
    print(visible(out / "stats.json"))
    return EXIT_DONE


def clip_seconds(questions: Iterable[AudioQuestion]) -> dict[Path, float | None]:
    """Length of every clip in seconds, by its header; None if that cannot be read."""

    def length(path: Path) -> float | None:
        try:
            return read_header(path).seconds or None
        except AudioError:
            return None

    paths = list(dict.fromkeys(question.audio_path for question in questions))
    with ThreadPoolExecutor() as pool:
        return dict(zip(paths, pool.map(length, paths), strict=True))


def statistics_of(questions: Sequence[AudioQuestion], seconds: Mapping[Path, float | None]) -> dict[str, Any]:
    """The content of stats.json: counts, lengths in seconds, fractions 0-1."""
    answered = [question for question in questions if question.answer is not None]
    counts = {kind: _counted(getattr(question, kind) for question in questions) for kind in _KINDS}
    return {
        "questions": len(questions),
        "answered": len(answered),
        "counts": {kind: counted for kind, counted in counts.items() if counted},
        "flags": _counted(flag for question in questions for flag in question.flags),
        "choices": {
            "number": _counted(str(len(question.choices)) for question in questions),
            "answer_position": _counted(str(question.choices.index(question.answer) + 1) for question in answered),
            "duplicate_choices": sum(len(set(question.choices)) < len(question.choices) for question in questions),
        },
        "audio": _lengths(seconds),
        "lazy_strategies": lazy_strategies(answered) if answered else {},
    }


def lazy_strategies(questions: Sequence[AudioQuestion]) -> dict[str, float]:
    """Accuracy, 0-1, of answering without listening; every question has an answer.

    `chance`: at random. `always_first`: the first choice. `longest_choice`: that of the most characters, of equals the
    first. `most_frequent_answer`: that of the choices which is the answer to most of the other questions.
    """
    lazy = {name: percent / 100 for name, percent in baselines(questions).items()}
    longest = sum(max(question.choices, key=len) == question.answer for question in questions)
    return {
        "chance": lazy["chance"],
        "always_first": lazy["always_first"],
        "longest_choice": longest / len(questions),
        "most_frequent_answer": lazy["most_frequent"],
    }


def _counted(labels: Iterable[str | None]) -> dict[str, int]:
    """How often each label comes, numbers in their order, anything else the most frequent first."""
    counted = Counter(label for label in labels if label is not None)
    numbers = all(label.isdecimal() for label in counted)
    return dict(sorted(counted.items(), key=lambda item: int(item[0]) if numbers else (-item[1], item[0])))


def _lengths(seconds: Mapping[Path, float | None]) -> dict[str, Any]:
    known = [length for length in seconds.values() if length is not None]
    facts: dict[str, Any] = {"clips": len(seconds), "unreadable": len(seconds) - len(known), "hours": sum(known) / 3600}
    if known:
        facts |= {
            "min_seconds": min(known),
            "median_seconds": statistics.median(known),
            "mean_seconds": statistics.fmean(known),
            "max_seconds": max(known),
        }
    return facts


def _show(summary: Mapping[str, Any]) -> None:
    table = Table("", "", "number", "%", title=f"{summary['questions']:,} questions")
    choices = summary["choices"]
    kinds = {
        **{_KINDS[kind]: counted for kind, counted in summary["counts"].items()},
        "flags": summary["flags"],
        "number of choices": choices["number"],
        "position of the right answer": choices["answer_position"],
        "a choice twice": {"": choices["duplicate_choices"]},
    }
    for name, counted in kinds.items():
        shown = dict(list(counted.items())[:_SHOWN])
        if len(counted) > _SHOWN:
            shown[f"... and {len(counted) - _SHOWN:,} more"] = sum(counted.values()) - sum(shown.values())
        for label, number in shown.items():
            table.add_row(name, visible_line(label), f"{number:,}", f"{100 * number / summary['questions']:.1f}")
            name = ""
        table.add_section()
    for name, accuracy in summary["lazy_strategies"].items():
        table.add_row("right without listening", name.replace("_", " "), "", f"{100 * accuracy:.1f}")
    table.add_section()
    for name, number in summary["audio"].items():
        table.add_row("audio", name.replace("_", " "), f"{number:,.2f}".removesuffix(".00"), "")
    Console(markup=False).print(table)


def _parser() -> Options:
    parser = Options(__doc__, "python -m data_prep.stats")
    add = parser.add_argument
    add("manifest", type=Path, metavar="MANIFEST", help="the manifest to count")
    add("--out", type=output_folder, metavar="DIR", help="where to write (default: beside the manifest, in STEM-stats)")
    return parser


if __name__ == "__main__":
    main()
