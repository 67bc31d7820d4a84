"""Compare evaluations question by question.

    python -m eval.compare runs/a/eval/mmau runs/b/eval/mmau
    python -m eval.compare theirs.json ours/predictions.jsonl --data mmau-test-mini.json --out comparison

Each run is the folder of an evaluation, or a file of predictions with --data. Every run is set beside the first one:
the difference of their accuracies with a bootstrap interval over questions, McNemar's exact test, and where they
differ. A question that was asked repeatedly counts once, with the share of its answers that are right.

Exit codes: 0 done; 2 refused, above all where the runs are not on the same questions.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from r1_aqa_repro.common.console import Options
from r1_aqa_repro.common.errors import EXIT_DONE, Refused, command
from r1_aqa_repro.common.files import sha256_of, write_atomically, write_json
from r1_aqa_repro.data.questions import AudioQuestion, read_questions, with_answers

SEED = 0
_GROUPS: dict[str, Callable[[AudioQuestion], str | None]] = {
    "task": lambda question: question.task,
    "difficulty": lambda question: question.difficulty,
    "category": lambda question: question.category,
    "sub_category": lambda question: question.sub_category,
}


@dataclass(frozen=True)
class Run:
    """One evaluation.

    Attributes:
        name: as it was given.
        version: of the benchmark.
        questions: by id, in their order.
        verdicts: {question id: {matcher: right}}, see `scores.read_verdicts`.
        settings: as in settings.json; empty where they are not known.
    """

    name: str
    version: str
    questions: dict[str, AudioQuestion]
    verdicts: dict[str, dict[str, float]]
    settings: dict[str, Any]


@command
def main(argv: list[str]) -> int:
    """Run the command; returns its exit code."""
    arguments = _parser().parse_args(argv)
    if len(arguments.runs) < 2:
        raise Refused.because("runs", "there is only one", "Give two or more.")
    files = arguments.data or [None]
    if len(files) not in (1, len(arguments.runs)):
        what = f"there are {len(files)} for {len(arguments.runs)} runs"
        raise Refused.because("--data", what, "Give one for all, or one for each in their order.")
    files = files * len(arguments.runs) if len(files) == 1 else files
    runs = [read_run(path, file) for path, file in zip(arguments.runs, files, strict=True)]
    comparison = compare(runs, arguments.intersection, arguments.seed)
    report = markdown(comparison)

    from eval.report.markdown import print_markdown

    print_markdown(report)
    if arguments.out is not None:
        write_json(arguments.out / "comparison.json", comparison)
        write_atomically(arguments.out / "comparison.md", report)
    return EXIT_DONE


def read_run(path: Path, data: Path | None = None) -> Run:
    """Read the folder of an evaluation, or score a file of predictions.

    Args:
        path: the folder or the file.
        data: the questions of a file; of a folder, in place of the file that its settings.json names.

    Raises:
        Refused: something is missing, damaged, or of other questions than `data`.
    """
    from eval.evaluation import times_asked
    from eval.score_predictions import read_predictions, settings_of
    from eval.scores import by_question, read_verdicts, score
    from r1_aqa_repro.data.mmau_versions import version_of

    if not path.exists():
        raise Refused.because(str(path), "there is no such file or folder", "Give an evaluation.")
    settings, paths = settings_of(path if path.is_dir() else path.parent) if _is_ours(path) else ({}, {})
    file = data or (Path(paths["data"]) if "data" in paths else None)
    if file is None:
        raise Refused.because(str(path), "the questions of these predictions are not known", "Give --data.")
    read = read_questions(file)
    questions = read.records[: settings.get("questions")]
    problems = read.problems + with_answers(questions, file)
    if problems:
        raise Refused(problems)
    data_sha256 = sha256_of(file)
    if settings and settings.get("data_sha256") != data_sha256:
        what = f"it was made with another file than {file}"
        raise Refused.because(str(path), what, "Give as --data the one it was made with.")
    if path.is_dir():
        try:
            verdicts = read_verdicts(path / "verdicts.jsonl")
        except (OSError, ValueError, KeyError) as error:
            what = f"its verdicts.jsonl cannot be read ({error!r})"
            raise Refused.because(str(path), what, "Evaluate again: what is generated is only scored.") from None
    else:
        _, records = score(questions, read_predictions(path, read.records), None, "", times_asked(settings))
        verdicts = by_question(records)
    by_id = {question.id: question for question in questions}
    if list(by_id) != list(verdicts):
        raise Refused.because(str(path), f"its verdicts are not on the questions of {file}", "Give --data.")
    return Run(str(path), version_of(data_sha256, read.records), by_id, verdicts, settings)


def compare(runs: Sequence[Run], intersection: bool = False, seed: int = SEED) -> dict[str, Any]:
    """The content of comparison.json: accuracies and differences in percent and points, intervals at 95 %.

    Args:
        runs: two or more; each is compared with the first.
        intersection: where the runs are on different questions, compare on those that all have; a question whose text,
            choices or answer differ is another one.
        seed: of the bootstrap.

    Raises:
        Refused: the runs are on different questions, or versions, and `intersection` is not set; none are shared.
    """
    first, *others = runs
    common = [
        question_id
        for question_id, question in first.questions.items()
        if all(question_id in run.questions and _same(question, run.questions[question_id]) for run in others)
    ]
    sizes = sorted({len(run.questions) for run in runs} | {len(common)})
    versions = list(dict.fromkeys(run.version for run in runs))
    if (len(sizes) > 1 or len(versions) > 1) and not intersection:
        what = f"the runs are on different questions: versions {', '.join(versions)}, {len(common)} questions in common"
        raise Refused.because(" / ".join(run.name for run in runs), what, "Pair them on those with --intersection.")
    if not common:
        raise Refused.because(" / ".join(run.name for run in runs), "no question is common to all", "Choose others.")
    questions = [first.questions[question_id] for question_id in common]
    verdicts = [[run.verdicts[question_id] for question_id in common] for run in runs]
    return {
        "n": len(common),
        "questions": [len(run.questions) for run in runs],
        "versions": versions,
        "seed": seed,
        "runs": [_accuracies(run.name, rows) for run, rows in zip(runs, verdicts, strict=True)],
        "comparisons": [
            {
                "first": first.name,
                "second": run.name,
                "settings": _differing(first.settings, run.settings),
                **_pair(questions, verdicts[0], rows, seed),
            }
            for run, rows in zip(others, verdicts[1:], strict=True)
        ],
    }


def difference(before: Sequence[float], after: Sequence[float], seed: int = SEED) -> dict[str, Any]:
    """Difference of two runs on the same questions.

    Args:
        before, after: verdicts, one a question; a share 0-1 where it was asked repeatedly.
        seed: of the bootstrap.

    Returns:
        `n`; `first`, `second` (accuracies), `difference` and `ci95` in percent and points; `first_only`,
        `second_only`: questions on which one run is better (without repeats: alone right); `p`: of McNemar's exact
        test on these two counts (with repeats: the sign test).
    """
    from r1_aqa_repro.common.intervals import mcnemar, paired_gain

    gain, low, high = paired_gain(before, after, seed=seed)
    first_only = sum(one > other for one, other in zip(before, after, strict=True))
    second_only = sum(one < other for one, other in zip(before, after, strict=True))
    return {
        "n": len(before),
        "first": 100 * sum(before) / len(before),
        "second": 100 * sum(after) / len(after),
        "difference": 100 * gain,
        "ci95": [100 * low, 100 * high],
        "first_only": first_only,
        "second_only": second_only,
        "p": mcnemar(first_only, second_only),
    }


def markdown(comparison: Mapping[str, Any]) -> str:
    """The content of comparison.json for people."""
    from eval.report.markdown import markdown_table
    from eval.report.rendering import escape

    sizes = "" if set(comparison["questions"]) == {comparison["n"]} else f", of {_and(comparison['questions'])}"
    lines = [
        "# Comparison of evaluations",
        f"{comparison['n']} questions{sizes}, version {escape(_and(comparison['versions']))}. Matcher official "
        "where no other is named; missing and unparsed answers count as wrong.",
        markdown_table(
            ("run", "official %", "95 % interval", "strict %", "letter_aware %"),
            (
                [
                    escape(run["name"]),
                    f"{run['official']['accuracy']:.2f}",
                    "{:.1f} to {:.1f}".format(*run["official"]["ci95"]),
                    f"{run['strict']['accuracy']:.2f}",
                    f"{run['letter_aware']['accuracy']:.2f}",
                ]
                for run in comparison["runs"]
            ),
        ),
    ]
    for pair in comparison["comparisons"]:
        total = pair["total"]
        low, high = total["ci95"]
        conclusion = (
            "the interval holds 0: these questions do not tell the two apart"
            if low <= 0 <= high
            else "the interval does not hold 0"
        )
        lines += [
            f"## {escape(pair['second'])} minus {escape(pair['first'])}",
            f"**{total['difference']:+.2f} points**, 95 % interval {low:+.2f} to {high:+.2f} (bootstrap over "
            f"questions, seed {comparison['seed']}): {conclusion}. Better on {total['second_only']} questions, "
            f"worse on {total['first_only']}; McNemar's exact test p = {_p(total['p'])}.",
            markdown_table(_HEADER, [_row(f"matcher {name}", one) for name, one in pair["matchers"].items()]),
        ]
        for key in _GROUPS:
            if pair[key]:
                rows = [_row(escape(label), one) for label, one in pair[key].items()]
                lines += [
                    f"### By {key.replace('_', '-')}",
                    markdown_table((key.replace("_", "-"), *_HEADER[1:]), rows),
                ]
        if pair["settings"]:
            rows = [[escape(key), *(escape(str(value)) for value in both)] for key, both in pair["settings"].items()]
            lines += ["### Settings that differ", markdown_table(("setting", "first", "second"), rows, 3)]
    lines.append(
        "Groups are not corrected for being many: of twenty equal ones, one is expected to have p < 0.05. With "
        "repeated answers a question counts once, with the share that is right, and the test is the "
        "sign test on these shares."
    )
    return "\n\n".join(lines) + "\n"


_HEADER = ("", "n", "first %", "second %", "difference", "95 % interval", "first better", "second better", "p")


def _row(label: str, one: Mapping[str, Any]) -> list[str]:
    low, high = one["ci95"]
    figures = [f"{one['first']:.2f}", f"{one['second']:.2f}", f"{one['difference']:+.2f}", f"{low:+.1f} to {high:+.1f}"]
    return [label, str(one["n"]), *figures, str(one["first_only"]), str(one["second_only"]), _p(one["p"])]


def _and(values: Iterable[object]) -> str:
    return " and ".join(map(str, values))


def _p(p: float) -> str:
    return f"{p:.3f}" if p >= 0.001 else f"{p:.1e}"


def _accuracies(name: str, rows: Sequence[Mapping[str, float]]) -> dict[str, Any]:
    from eval.matcher import MATCHERS
    from eval.scores import tally

    return {"name": name, **{matcher: tally([row[matcher] for row in rows]) for matcher in MATCHERS}}


def _pair(
    questions: Sequence[AudioQuestion],
    before: Sequence[Mapping[str, float]],
    after: Sequence[Mapping[str, float]],
    seed: int,
) -> dict[str, Any]:
    """Two runs as a whole, by matcher and by every grouping; `better` and `worse` name the questions."""
    from eval.matcher import MATCHERS
    from eval.scores import in_order

    first, second = ([row["official"] for row in rows] for rows in (before, after))
    result: dict[str, Any] = {
        "total": difference(first, second, seed),
        "matchers": {
            name: difference([row[name] for row in before], [row[name] for row in after], seed) for name in MATCHERS
        },
    }
    for key, label_of in _GROUPS.items():
        members: dict[str, list[int]] = {}
        for index, question in enumerate(questions):
            label = label_of(question)
            if label is not None:
                members.setdefault(label, []).append(index)
        result[key] = {
            label: difference([first[index] for index in rows], [second[index] for index in rows], seed)
            for label, rows in in_order(members)
        }
    triples = list(zip(questions, first, second, strict=True))
    result["better"] = [question.id for question, one, other in triples if other > one]
    result["worse"] = [question.id for question, one, other in triples if other < one]
    return result


def _differing(first: Mapping[str, Any], second: Mapping[str, Any]) -> dict[str, list[Any]]:
    """The settings that are not the same in both, as [first, second]; None where one does not record it."""
    keys = dict.fromkeys((*first, *second))
    return {key: [first.get(key), second.get(key)] for key in keys if first.get(key) != second.get(key)}


def _same(one: AudioQuestion, other: AudioQuestion) -> bool:
    return (one.question, one.choices, one.answer) == (other.question, other.choices, other.answer)


def _is_ours(path: Path) -> bool:
    """Whether a settings.json beside belongs to it."""
    return path.is_dir() or path.name == "predictions.jsonl"


def _parser() -> Options:
    parser = Options(__doc__, "python -m eval.compare")
    add = parser.add_argument
    add("runs", nargs="+", type=Path, metavar="RUN", help="folder of an evaluation, or file of predictions")
    add("--data", type=Path, action="append", metavar="FILE", help="manifest or MMAU JSON file; once, or once for each "
        "run (default: as each folder names it)")  # fmt: skip
    add("--intersection", action="store_true", help="where questions differ, compare on those that all runs have")
    add("--seed", type=int, default=SEED, metavar="N", help=f"of the bootstrap (default: {SEED})")
    add("--out", type=Path, metavar="DIR", help="where to write comparison.json and comparison.md")
    return parser


if __name__ == "__main__":
    sys.exit(main(None))
