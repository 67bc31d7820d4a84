"""What the seeds of a study say together: accuracies, differences and their intervals, over questions of all seeds.

Seeds ask other questions about the same recordings, of which one may have several clips, such as the two channels of a
note. What is independent is a recording, over all seeds: intervals take each for one cluster (`common.intervals`). The
spread over seeds stands beside them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import pandas

from eval.predictions import PREDICTIONS
from eval.score_predictions import read_predictions
from eval.scores import read_scores, read_verdict_lines, verdicts_of_question
from r1_aqa_repro.common.files import read_json
from r1_aqa_repro.common.intervals import effective_size, paired_gain, wilson
from scripts.study.seed import MODELS, SETS, SPENT, WARM_START, Manifests, Study, read_all

DIFFERENCES = (
    ("sft", WARM_START), ("grpo", WARM_START), ("grpo_think", WARM_START), ("grpo", "sft"), ("grpo_think", "grpo"),
)  # fmt: skip
BLIND_MARGIN = 0.07  # how far from chance a model may be that is given silence, in every family
_REMEDY = "Give the same command again."

Block = dict[str, Any]


@dataclass(frozen=True)
class Answers:
    """What a model said to a set of questions, all seeds together.

    verdicts: a row a question with `seed`, `id`, `family`, `recording`, `chance`, `right` (the share of the orders of
        its choices in which it was) and `permuted` (the same of all orders but the file's, NaN if there is none).
    format_rate: share of the completions that have the prompt's format, the mean over seeds.
    """

    verdicts: pandas.DataFrame
    format_rate: float


def read_answers(evaluations: Mapping[int, tuple[Path, Path]]) -> Answers:
    """The finished evaluations of a model, by seed: manifest and folder."""
    rows, rates = [], []
    for seed, (manifest, folder) in evaluations.items():
        verdicts = verdicts_of_question(read_verdict_lines(folder / "verdicts.jsonl"))
        for question in read_all(manifest):
            orders = [float(verdict["official"]) for verdict in verdicts[question.id]]
            rows.append(
                {
                    "seed": seed,
                    "id": question.id,
                    "family": question.category,
                    "recording": question.source_video,
                    "chance": 1 / len(question.choices),
                    "right": fmean(orders),
                    "permuted": fmean(orders[1:]) if orders[1:] else float("nan"),
                }
            )
        rates.append(read_scores(folder)["format_rate"])
    return Answers(pandas.DataFrame(rows), fmean(rates))


# --- Blocks of results.json


def accuracy(verdicts: pandas.DataFrame, column: str = "right") -> Block:
    """`accuracy`, its `ci95` over recordings, `n` questions about so many `recordings`, and the `spread` over seeds."""
    values, recordings = verdicts[column].tolist(), verdicts["recording"].tolist()
    low, high = wilson(sum(values), len(values), effective_size(values, recordings))
    means = verdicts.groupby("seed")[column].mean()
    block = {"accuracy": fmean(values), "ci95": [low, high], "n": len(values), "recordings": len(set(recordings))}
    return block | spread(means)


def difference(after: pandas.DataFrame, before: pandas.DataFrame) -> Block:
    """How much more of the same questions is right: `accuracy` (the difference), `ci95` over recordings, `n`,
    `recordings`, and the `spread` over seeds.

    Raises:
        ValueError: the questions are others.
    """
    if not after[["seed", "id"]].equals(before[["seed", "id"]]):
        raise ValueError("two models are compared on the same questions only")
    recordings = after["recording"].tolist()
    mean, low, high = paired_gain(before["right"].tolist(), after["right"].tolist(), recordings)
    block = {"accuracy": mean, "ci95": [low, high], "n": len(after), "recordings": len(set(recordings))}
    return block | spread((after["right"] - before["right"]).groupby(after["seed"]).mean())


def spread(by_seed: pandas.Series) -> Block:
    """`by_seed`, their `mean` and their sample standard deviation `sd`, None of one seed."""
    values = [float(value) for value in by_seed]
    return {
        "by_seed": dict(zip(map(str, by_seed.index), values, strict=True)),
        "mean": fmean(values),
        "sd": stdev(values) if len(values) > 1 else None,
    }


def by_family(verdicts: pandas.DataFrame, column: str = "right") -> dict[str, Block]:
    """`accuracy` of each family."""
    return {str(family): accuracy(rows, column) for family, rows in verdicts.groupby("family")}


def blind_check(without_audio: Mapping[str, pandas.DataFrame]) -> Block:
    """Whether every model that is given silence stays within `BLIND_MARGIN` of chance in every family.

    Returns:
        `margin`, `held`, and `exceptions`: `model`, `family`, `accuracy` and `chance` of those that do not.
    """
    exceptions = []
    for model, verdicts in without_audio.items():
        for family, rows in verdicts.groupby("family"):
            share, chance = float(rows["right"].mean()), float(rows["chance"].mean())
            if abs(share - chance) > BLIND_MARGIN:
                exceptions.append({"model": model, "family": str(family), "accuracy": share, "chance": chance})
    return {"margin": BLIND_MARGIN, "held": not exceptions, "exceptions": exceptions}


# --- All of it


def results(study: Study, manifests: Mapping[int, Manifests]) -> dict[str, Any]:
    """The content of results.json, from the evaluations of these seeds."""
    held_out, blind, sources = SETS
    seeds = list(manifests)
    answers: dict[str, dict[str, Answers]] = {name: {} for name in SETS}
    for name in SETS:
        asked = {seed: one.sources if name == sources else one.held_out for seed, one in manifests.items()}
        for model in MODELS:
            folders = {seed: study.of_seed(seed) / "eval" / model / name for seed in seeds}
            files = {seed: (file, folders[seed]) for seed, file in asked.items() if file is not None}
            if files:
                answers[name][model] = read_answers(files)
    verdicts = {name: {model: one.verdicts for model, one in of.items()} for name, of in answers.items()}
    return {
        "seeds": seeds,
        "half": study.half,
        "chance": float(verdicts[held_out][WARM_START]["chance"].mean()),
        "models": {
            model: {
                "held_out": accuracy(verdicts[held_out][model]) | {"by_family": by_family(verdicts[held_out][model])},
                "without_audio": accuracy(verdicts[blind][model]) | {"by_family": by_family(verdicts[blind][model])},
                "permuted": _permuted(verdicts[held_out][model]),
                "held_out_sources": {
                    model: accuracy(rows) | {"by_family": by_family(rows)} for model, rows in verdicts[sources].items()
                }.get(model),
                "format_rate": answers[held_out][model].format_rate,
            }
            | _spent(study, seeds, model)
            for model in MODELS
        },
        "differences": [
            {"after": after, "before": before}
            | {
                name: difference(verdicts[name][after], verdicts[name][before])
                for name in (held_out, sources)
                if verdicts[name]
            }
            | {"by_family": _differences_by_family(verdicts[held_out][after], verdicts[held_out][before])}
            for after, before in DIFFERENCES
        ],
        "blind_check": blind_check(verdicts[blind]),
        "completions": completions(study, manifests),
    }


def _permuted(verdicts: pandas.DataFrame) -> Block | None:
    asked = verdicts.dropna(subset="permuted")
    return accuracy(asked, "permuted") if len(asked) else None


def _differences_by_family(after: pandas.DataFrame, before: pandas.DataFrame) -> dict[str, Block]:
    families = after.groupby("family").indices
    return {str(family): difference(after.iloc[rows], before.iloc[rows]) for family, rows in families.items()}


def _spent(study: Study, seeds: Iterable[int], model: str) -> Block:
    """Means over seeds of steps, of training FLOPs (of an arm those after the warm start; `pilot`: the pilot's part of
    them) and of seconds of training; and the FLOPs by seed."""
    spent = {seed: read_json(study.of_seed(seed) / SPENT, _REMEDY)[model] for seed in seeds}
    seconds = [read_json(study.of_seed(seed) / "stages.json", _REMEDY)[model] for seed in seeds]
    means = {key: fmean(one[key] for one in spent.values()) for key in ("steps", "flops", "pilot")}
    by_seed = {str(seed): one["flops"] for seed, one in spent.items()}
    return {**means, "flops_by_seed": by_seed, "seconds": fmean(seconds)}


def completions(study: Study, manifests: Mapping[int, Manifests]) -> list[Block]:
    """What every model said to the first questions of each family, of the first seed."""
    seed, asked = next(iter(manifests.items()))
    shown: list[Block] = []
    questions = read_all(asked.held_out)
    folders = {model: study.of_seed(seed) / "eval" / model / SETS[0] for model in MODELS}
    said = {model: read_predictions(folder / PREDICTIONS, questions) for model, folder in folders.items()}
    counts: dict[str | None, int] = {}
    for question in questions:
        counts[question.category] = counts.get(question.category, 0) + 1
        if counts[question.category] <= study.settings.size.completions_shown:
            shown.append(
                {
                    "id": question.id,
                    "family": question.category,
                    "question": question.question,
                    "choices": list(question.choices),
                    "answer": question.answer,
                    "completions": {model: found[question.id, 0].completion for model, found in said.items()},
                }
            )
    return sorted(shown, key=lambda one: str(one["family"]))
