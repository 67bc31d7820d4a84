"""Score the same completions by every rule that others use, and say on which questions two rules differ, and why.

    python -m eval.reconcile runs/a/eval/mmau --out reconciled
    python -m eval.reconcile theirs.json ours/predictions.jsonl --data mmau-test-mini.json

Each run is the folder of an evaluation, or a file of predictions with --data; several, of other prompts, decodings or
versions of the questions, make a table of runs by rules, with the settings that differ. Nothing is generated, and no
answer is guessed: where a rule would draw one at random, its expectation counts.

Exit codes: 0 done; 2 refused; 3 done, but more than half of a run's answers are missing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

from eval.compare import a_file_for_each, add_runs, asked_of, settings_that_differ
from eval.evaluation import Evaluation
from eval.predictions import PREDICTIONS
from eval.report.markdown import publish
from eval.report.rendering import render
from eval.rules import RULES, Answer, Reading, answers_of, tallies
from eval.score_predictions import read_predictions
from eval.scores import mostly_missing
from r1_aqa_repro.common.console import Options, say
from r1_aqa_repro.common.errors import EXIT_DONE, EXIT_LOSSES, Refused, command
from r1_aqa_repro.common.files import output_folder, sha256_of


@command
def main(argv: list[str]) -> int:
    """Run the command; returns its exit code."""
    arguments = _parser().parse_args(argv)
    files = a_file_for_each(arguments.runs, arguments.data)
    runs = [read_evaluation(path, file) for path, file in zip(arguments.runs, files, strict=True)]
    reconciled = reconcile(runs)
    publish(markdown(reconciled), reconciled, arguments.out, "reconcile")
    lacking = [(run.name, said) for run in runs if (said := mostly_missing(run.scores)) is not None]
    for name, said in lacking:
        say(f"{name}: {said}")
    return EXIT_LOSSES if lacking else EXIT_DONE


def read_evaluation(path: Path, data: Path | None = None) -> Evaluation:
    """The evaluation in a folder, or that of a file of predictions, from its completions.

    Args:
        path: the folder or the file.
        data: the questions of a file; of a folder, in place of the file that its settings.json names.

    Raises:
        Refused: something is missing, damaged, or of other questions than `data`.
    """
    made, questions = asked_of(path, data)
    file = _completions_of(path, made.paths)
    ids = {question.id for question in questions}
    found = read_predictions(file, made.questions, made.settings.get("prompt_style"))
    if file not in (path, path / PREDICTIONS) and sha256_of(file) != made.settings.get("predictions_sha256"):
        raise Refused.because(str(file), f"it is not what was scored in {path}", "Give the file itself, with --data.")
    asked = {key: one for key, one in found.items() if one.id in ids}
    paths = {"data": str(made.data), "predictions": str(path)}
    return Evaluation(path, questions, asked, made.settings, paths, made.version)


def _completions_of(path: Path, paths: Mapping[str, str]) -> Path:
    """The file with the completions of a run; a folder where anybody's predictions were scored names theirs."""
    if not path.is_dir():
        return path
    own = path / PREDICTIONS
    return own if own.exists() or "predictions" not in paths else Path(paths["predictions"])


def reconcile(runs: Sequence[Evaluation]) -> dict[str, Any]:
    """The content of reconcile.json.

    Args:
        runs: one or more, on the same questions or on others.
    """
    return {
        "rules": {name: {"given": rule.given, "does": rule.does, "whose": rule.whose} for name, rule in RULES.items()},
        "settings": settings_that_differ([{"version": run.version} | dict(run.settings) for run in runs]),
        "runs": [_reconciled(run) for run in runs],
    }


def markdown(reconciled: Mapping[str, Any]) -> str:
    """The content of reconcile.json for people."""
    completions = [
        {(one["id"], one["repeat"]): one["completion"] for one in run["answers"]} for run in reconciled["runs"]
    ]
    return render("reconcile.md.j2", **reconciled, completions=completions, listed=5, characters=120)


def _reconciled(run: Evaluation) -> dict[str, Any]:
    answers = answers_of(run)
    pairs = [_pair(answers, first, second) for first, second in combinations(RULES, 2)]
    differing = {(one["id"], one["repeat"]) for pair in pairs for one in pair["answers"]}
    return {
        "name": run.name,
        "version": run.version,
        **{key: run.scores[key] for key in ("part", "n", "asked", "missing", "unparsed") if key in run.scores},
        "tallies": tallies(run, answers),
        "pairs": pairs,
        "answers": [
            {
                "id": one.id,
                "repeat": one.repeat,
                "completion": one.completion,
                "answer": one.answer,
                "right": one.gold,
                "choices": list(one.choices),
                "shares": {name: reading.share for name, reading in one.readings.items()},
            }
            for one in answers
            if (one.id, one.repeat) in differing
        ],
    }


def _pair(answers: Sequence[Answer], first: str, second: str) -> dict[str, Any]:
    """The answers on which two rules differ; `first_only`, `second_only`: of how many one of them thinks better."""
    shares = [(one, one.readings[first], one.readings[second]) for one in answers]
    differing = [(one, before, after) for one, before, after in shares if before.share != after.share]
    counted = [(a.share, b.share) for _, a, b in differing if a.share is not None and b.share is not None]
    return {
        "first": first,
        "second": second,
        "questions": len({one.id for one, _, _ in differing}),
        "first_only": sum(before > after for before, after in counted),
        "second_only": sum(before < after for before, after in counted),
        "answers": [
            {
                "id": one.id,
                "repeat": one.repeat,
                "reason": f"{one.names}; {_said(first, before)}; {_said(second, after)}",
            }
            for one, before, after in differing
        ],
    }


def _said(rule: str, reading: Reading) -> str:
    """Such as `strict (wrong) reads 'B', not one choice and nothing else`."""
    share = reading.share
    verdict = "left out" if share is None else {0.0: "wrong", 1.0: "right"}.get(share, f"{share:.2f} right")
    return f"{rule} ({verdict}) {reading.saw}"


def _parser() -> Options:
    parser = Options(__doc__, "python -m eval.reconcile")
    add_runs(parser)
    parser.add_argument(
        "--out", type=output_folder, metavar="DIR", help="where to write reconcile.json and reconcile.md"
    )
    return parser


if __name__ == "__main__":
    main()
