"""Compare evaluations question by question.

    python -m eval.compare runs/a/eval/mmau runs/b/eval/mmau
    python -m eval.compare theirs.json ours/predictions.jsonl --data mmau-test-mini.json --out comparison

Each run is the folder of an evaluation, or a file of predictions with --data. Every run is compared with the first one:
the difference of their accuracies with a bootstrap interval over questions, McNemar's exact test, and the groups
in which they differ. A question that was asked repeatedly counts once, with the share of its answers that are right.
Where several questions share a clip, the bootstrap resamples clips and the test swaps whole clips.

Exit codes: 0 done; 2 refused, above all if the runs are not on the same questions; 3 done, but more than half of
a run's answers are missing.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from eval.benchmarks import BENCHMARKS, MMAU, benchmark_of
from eval.evaluation import times_asked
from eval.matcher import MATCHERS
from eval.report.markdown import publish
from eval.report.rendering import render
from eval.score_predictions import Background, background_of, read_predictions
from eval.scores import (
    by_label,
    mostly_missing,
    read_scores,
    read_verdicts,
    sample_size,
    score,
    shares_right,
    tally,
)
from r1_aqa_repro.common.console import Options, not_negative, say
from r1_aqa_repro.common.errors import EXIT_DONE, EXIT_LOSSES, Refused, command
from r1_aqa_repro.common.files import output_folder
from r1_aqa_repro.common.intervals import paired_gain, paired_test
from r1_aqa_repro.data.questions import AudioQuestion, with_answers

SEED = 0


@dataclass(frozen=True)
class Run:
    """One evaluation.

    Attributes:
        name: as it was given.
        version: of the benchmark.
        questions: by id, in their order.
        verdicts: {question id: {matcher: right}}, see `scores.read_verdicts`.
        settings: as in settings.json; empty if they are not known.
        missing: what to say if more than half of its answers are missing, else None.
    """

    name: str
    version: str
    questions: dict[str, AudioQuestion]
    verdicts: dict[str, dict[str, float]]
    settings: dict[str, Any]
    missing: str | None = None


@command
def main(argv: list[str]) -> int:
    """Run the command; returns its exit code."""
    arguments = _parser().parse_args(argv)
    if len(arguments.runs) < 2:
        raise Refused.because("runs", "there is only one", "Give two or more.")
    files = a_file_for_each(arguments.runs, arguments.data)
    runs = [read_run(path, file) for path, file in zip(arguments.runs, files, strict=True)]
    comparison = compare(runs, arguments.intersection, arguments.seed)
    publish(markdown(comparison), comparison, arguments.out, "comparison")
    lacking = [run for run in runs if run.missing is not None]
    for run in lacking:
        say(f"{run.name}: {run.missing}")
    return EXIT_LOSSES if lacking else EXIT_DONE


def read_run(path: Path, data: Path | None = None) -> Run:
    """Read the folder of an evaluation, or score a file of predictions.

    Args:
        path: the folder or the file.
        data: the questions of a file; of a folder, in place of the file that its settings.json names.

    Raises:
        Refused: something is missing, damaged, or of other questions than `data`.
    """
    made, questions = asked_of(path, data)
    if path.is_dir():
        scores, verdicts = read_scores(path), read_verdicts(path / "verdicts.jsonl")
    else:
        found = read_predictions(path, made.questions)
        scores, records = score(questions, found, None, "", times_asked(made.settings))
        verdicts = shares_right(records)
    by_id = {question.id: question for question in questions}
    if list(by_id) != list(verdicts):
        raise Refused.because(str(path), f"its verdicts are not on the questions of {made.data}", "Give --data.")
    return Run(str(path), made.version, by_id, verdicts, made.settings, mostly_missing(scores))


def asked_of(path: Path, data: Path | None = None) -> tuple[Background, list[AudioQuestion]]:
    """What a run was made of, and those of the questions that it was asked; arguments and errors as of `read_run`."""
    made = background_of(path, data)
    questions = made.questions[: made.settings.get("questions")]
    without_answer = with_answers(questions, made.data)
    if without_answer:
        raise Refused(without_answer)
    if made.settings and made.settings.get("data_sha256") != made.data_sha256:
        what = f"it was made with another file than {made.data}"
        raise Refused.because(str(path), what, "Give as --data the one it was made with.")
    return made, questions


def a_file_for_each(runs: Sequence[Path], files: Sequence[Path] | None) -> list[Path | None]:
    """The --data of each run, if it was given once or once for each.

    Raises:
        Refused: it was given another number of times.
    """
    if files and len(files) not in (1, len(runs)):
        raise Refused.because(
            "--data",
            f"there are {len(files)} for {len(runs)} runs",
            "Give one for all, or one for each in their order.",
        )
    given: Sequence[Path | None] = files or [None]
    return list(given) * len(runs) if len(given) == 1 else list(given)


def compare(runs: Sequence[Run], intersection: bool = False, seed: int = SEED) -> dict[str, Any]:
    """The content of comparison.json: accuracies and differences in percent and points, intervals at 95 %.

    Args:
        runs: two or more; each is compared with the first.
        intersection: if the runs are on different questions, compare on those that all have; a question whose text,
            choices or answer differ is another one.
        seed: of the bootstrap.

    Raises:
        Refused: the runs are on different questions, or versions, without `intersection`; or they share no question.
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
    benchmark = benchmark_of(questions)
    clips = [question.audio_path for question in questions]
    verdicts = [[run.verdicts[question_id] for question_id in common] for run in runs]
    return {
        "n": len(common),
        **({} if benchmark.dataset is None else {"benchmark": benchmark.name}),
        "questions": [len(run.questions) for run in runs],
        "versions": versions,
        "seed": seed,
        "runs": [
            {"name": run.name, **{matcher: tally([row[matcher] for row in rows], clips) for matcher in MATCHERS}}
            for run, rows in zip(runs, verdicts, strict=True)
        ],
        "comparisons": [
            {
                "first": first.name,
                "second": run.name,
                "settings": settings_that_differ([first.settings, run.settings]),
                **_pair(questions, verdicts[0], rows, seed),
            }
            for run, rows in zip(others, verdicts[1:], strict=True)
        ],
    }


def difference(
    before: Sequence[float], after: Sequence[float], clips: Sequence[Hashable], seed: int = SEED
) -> dict[str, Any]:
    """Difference of two runs on the same questions.

    Args:
        before, after: verdicts, one a question; a share 0-1 if it was asked repeatedly.
        clips: the clip of each question.
        seed: of the bootstrap.

    Returns:
        `n`, and `clips` if there are fewer; `first`, `second` (accuracies), `difference` and `ci95` in percent and
        points; `first_only`, `second_only`: questions on which one run is better (without repeats: alone right); `p`:
        of McNemar's exact test on these two counts (with repeats: the sign test), or of `intervals.paired_test` over
        clips.
    """
    gain, low, high = paired_gain(before, after, clips, seed=seed)
    first_only = sum(one > other for one, other in zip(before, after, strict=True))
    second_only = sum(one < other for one, other in zip(before, after, strict=True))
    return {
        **sample_size(clips),
        "first": 100 * sum(before) / len(before),
        "second": 100 * sum(after) / len(after),
        "difference": 100 * gain,
        "ci95": [100 * low, 100 * high],
        "first_only": first_only,
        "second_only": second_only,
        "p": paired_test(before, after, clips),
    }


def markdown(comparison: Mapping[str, Any]) -> str:
    """The content of comparison.json for people."""
    benchmark = BENCHMARKS[comparison.get("benchmark", MMAU.name)]
    return render("comparison.md.j2", **comparison, groups=benchmark.groups, part=benchmark.part)


def _pair(
    questions: Sequence[AudioQuestion],
    before: Sequence[Mapping[str, float]],
    after: Sequence[Mapping[str, float]],
    seed: int,
) -> dict[str, Any]:
    """Two runs as a whole, by matcher and by every grouping; `better` and `worse` name the questions."""

    clips = [question.audio_path for question in questions]

    def on(rows: Sequence[int], matcher: str = "official") -> dict[str, Any]:
        first, second = ([run[row][matcher] for row in rows] for run in (before, after))
        return difference(first, second, [clips[row] for row in rows], seed)

    everything = range(len(questions))
    result: dict[str, Any] = {"total": on(everything), "matchers": {name: on(everything, name) for name in MATCHERS}}
    benchmark = benchmark_of(questions)
    for key in benchmark.groups:
        result[key] = {label: on(rows) for label, rows in by_label(questions, key, benchmark).items()}
    triples = list(zip(questions, before, after, strict=True))
    result["better"] = [question.id for question, one, other in triples if other["official"] > one["official"]]
    result["worse"] = [question.id for question, one, other in triples if other["official"] < one["official"]]
    return result


def settings_that_differ(settings: Sequence[Mapping[str, Any]]) -> dict[str, list[Any]]:
    """The settings that are not the same in all runs, with their values in each; None for one that does not record
    it."""
    values = {key: [one.get(key) for one in settings] for key in dict.fromkeys(key for one in settings for key in one)}
    return {key: each for key, each in values.items() if any(value != each[0] for value in each)}


def _same(one: AudioQuestion, other: AudioQuestion) -> bool:
    return (one.question, one.choices, one.answer) == (other.question, other.choices, other.answer)


def add_runs(parser: Options) -> None:
    """The options by which a command is given runs, and the questions of each."""
    parser.add_argument(
        "runs", nargs="+", type=Path, metavar="RUN", help="folder of an evaluation, or file of predictions"
    )
    parser.add_argument("--data", type=Path, action="append", metavar="FILE", help="manifest or benchmark file; once, "
        "or once for each run (default: as each folder names it)")  # fmt: skip


def _parser() -> Options:
    parser = Options(__doc__, "python -m eval.compare")
    add_runs(parser)
    add = parser.add_argument
    add("--intersection", action="store_true", help="if questions differ, compare on those that all runs have")
    add("--seed", type=not_negative, default=SEED, metavar="N", help=f"of the bootstrap (default: {SEED})")
    add("--out", type=output_folder, metavar="DIR", help="where to write comparison.json and comparison.md")
    return parser


if __name__ == "__main__":
    main()
