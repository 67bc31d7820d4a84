"""A bundle as it is read: what was studied, and its evaluations, scored anew from their completions.

docs/evaluation.md says what lies where. Scores that somebody computed before are not in a bundle, and are never read.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from eval.evaluation import Evaluation
from eval.predictions import SETTINGS
from eval.reconcile import read_evaluation
from eval.scores import shares_right
from r1_aqa_repro.common.claim import read_claim
from r1_aqa_repro.common.errors import Problem, Refused
from r1_aqa_repro.common.files import read_json, sha256_of
from r1_aqa_repro.data.questions import AudioQuestion

STUDY, QUESTIONS, EVALUATIONS, TRAININGS, DATA = "study.json", "questions", "evaluations", "trainings", "data"
BASE, SUITE = "base", "suite"  # beside the arms in `EVALUATIONS`
NO_SEED = "-"  # stands for the seed of the model before training, which has none
TEST, WITHOUT_AUDIO, PERMUTED = "test", "test-no-audio", "test-permuted"
HELD_OUT, ON_TEST, CHOSEN = "held_out", "on_test", "chosen.json"
AFTER = "after"  # training, in `SUITE`, beside `suite.BEFORE`
CONFIG, RUN, LOG, COST = "config.resolved.yaml", "run.json", "log.jsonl", "cost.json"  # of a training
KINDS = ("sft", "grpo")
MAIN, THINKING, COIN = "main", "thinking", "coin"  # roles that findings look for
_NAME = re.compile(r"\w[\w.-]*", re.ASCII)
_CHECKPOINT = re.compile(r"checkpoint-(\d+)", re.ASCII)
_REMEDY = "Take the study's own file, as its first stage writes it."
_DAMAGED = "Fetch the bundle again, or collect it anew."


@dataclass(frozen=True)
class Arm:
    """A row of the table: the model before training, or a way of training it.

    Attributes:
        name: `BASE`, or the name of its folder.
        label: for people.
        kind: one of `KINDS`; None of the base.
        role: what findings know it by; None if none looks for it.
        published: the paper's figures by `total`, `sound`, `music`, `speech`, in percent; None if there are none.
    """

    name: str
    label: str
    kind: str | None
    role: str | None
    published: Mapping[str, float | None] | None


@dataclass(frozen=True)
class Study:
    """What study.json says.

    Attributes:
        name: of the study.
        rehearsed: whether model, data and step counts were replaced by embedded ones.
        seeds: of every arm, as texts, in their order.
        rows: the base, then the arms in their order.
        price: `value`, `currency` and `source` of an hour of one GPU; None if it is not known.
    """

    name: str
    rehearsed: bool
    seeds: tuple[str, ...]
    rows: tuple[Arm, ...]
    price: Mapping[str, Any] | None

    @property
    def status(self) -> str:
        """Of whatever was done."""
        return "rehearsed" if self.rehearsed else "run"

    @property
    def arms(self) -> tuple[Arm, ...]:
        return self.rows[1:]

    def seeds_of(self, row: str) -> tuple[str, ...]:
        return (NO_SEED,) if row == BASE else self.seeds

    def with_role(self, role: str) -> Arm | None:
        """The first arm that has it."""
        return next((arm for arm in self.arms if arm.role == role), None)


@dataclass(frozen=True)
class Point:
    """A checkpoint of a sweep: its step, the accuracy of its evaluation in percent, and `weights_of` that."""

    name: str
    step: int
    accuracy: float
    weights: str | None


def place_of(row: str, seed: str) -> str:
    """Where the evaluations of a row are, below `EVALUATIONS`; its training is there below `TRAININGS`."""
    return row if seed == NO_SEED else f"{row}/seed-{seed}"


def number(value: Any) -> float | None:
    """A JSON number; None for anything else, for NaN and for infinity."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    return value if is_number else None


@dataclass(frozen=True)
class Bundle:
    """A bundle's folder. Evaluations are read when they are asked for.

    Attributes:
        folder: of the bundle.
        study: what study.json says.
        files: those with questions, by the SHA-256 of their bytes.
    """

    folder: Path
    study: Study
    files: Mapping[str, Path]
    _tests: dict[str, Evaluation | None] = field(default_factory=dict, repr=False)
    _sweeps: dict[str, list[Point]] = field(default_factory=dict, repr=False)

    @classmethod
    def read(cls, folder: Path) -> Bundle:
        """The bundle in a folder.

        Raises:
            Refused: it is none, or its study.json is damaged.
        """
        study = read_study(folder / STUDY)
        return cls(folder, study, {sha256_of(path): path for path in sorted((folder / QUESTIONS).glob("*.jsonl"))})

    def evaluation(self, place: str) -> Evaluation | None:
        """The evaluation at a place below `EVALUATIONS`, such as `grpo/seed-1/test`; None if it was not made.

        Raises:
            Refused: a file of it is missing or damaged, or its questions are not in the bundle.
        """
        folder = self.folder / EVALUATIONS / place
        if not folder.is_dir():
            return None
        settings = read_claim(folder / SETTINGS, _DAMAGED, "settings") or {}
        file = self.files.get(str(settings.get("data_sha256")))
        if file is None:
            raise Refused.because(str(folder), f"no file in {QUESTIONS}/ has the questions that it was asked", _DAMAGED)
        return read_evaluation(folder, file)

    def test(self, row: str, seed: str, name: str = TEST) -> Evaluation | None:
        """The evaluation of a row on the test questions; None if it was not made. It is kept.

        Raises:
            Refused: see `evaluation`; or it is not on the questions of the others.
        """
        place = f"{place_of(row, seed)}/{name}"
        if place not in self._tests:
            found = self.evaluation(place)
            if found is not None and [one.id for one in found.questions] != [one.id for one in self.questions]:
                what = f"it is not on the {len(self.questions)} questions that the others are on"
                raise Refused.because(str(self.folder / EVALUATIONS / place), what, "Evaluate it again on those.")
            self._tests[place] = found
        return self._tests[place]

    def tests(self, row: str, name: str = TEST) -> dict[str, Evaluation]:
        """Those of all seeds that were made, by seed."""
        found = {seed: self.test(row, seed, name) for seed in self.study.seeds_of(row)}
        return {seed: one for seed, one in found.items() if one is not None}

    def names_of_tests(self, row: str) -> list[str]:
        """Names of the evaluations on the test questions that any seed has, `TEST` first."""
        folders = [self.folder / EVALUATIONS / place_of(row, seed) for seed in self.study.seeds_of(row)]
        names = {path.name for folder in folders for path in folder.glob(f"{TEST}*") if path.is_dir()}
        return sorted(names, key=lambda name: (name != TEST, name))

    @cached_property
    def questions(self) -> Sequence[AudioQuestion]:
        """Those of the test, as the first evaluation on it was asked them.

        Raises:
            Refused: nothing was evaluated on them.
        """
        for row in self.study.rows:
            for seed in self.study.seeds_of(row.name):
                found = self.evaluation(f"{place_of(row.name, seed)}/{TEST}")
                if found is not None:
                    return found.questions
        raise Refused.because(str(self.folder), "nothing in it was evaluated on the test questions", _DAMAGED)

    def sweep(self, row: str, seed: str, which: str) -> list[Point]:
        """The checkpoints of a seed's training, by step, as they were evaluated on `HELD_OUT` or `ON_TEST`; empty if
        they were not. Only the figures are kept."""
        place = f"{place_of(row, seed)}/{which}"
        if place not in self._sweeps:
            points = []
            for path in (self.folder / EVALUATIONS / place).glob("checkpoint-*"):
                match, found = _CHECKPOINT.fullmatch(path.name), self.evaluation(f"{place}/{path.name}")
                if match and found is not None:
                    accuracy = found.scores["total"]["accuracy"]
                    points.append(Point(path.name, int(match[1]), accuracy, weights_of(found)))
            self._sweeps[place] = sorted(points, key=lambda point: point.step)
        return self._sweeps[place]

    def record(self, *parts: str) -> dict[str, Any] | None:
        """A JSON object of the bundle; None if there is no such file.

        Raises:
            Refused: it is damaged.
        """
        path = self.folder.joinpath(*parts)
        return read_json(path, _DAMAGED) if path.exists() else None


def best_of(points: Sequence[Point]) -> Point | None:
    """The most accurate, of equals the earliest; None of none."""
    return max(points, key=lambda point: (point.accuracy, -point.step), default=None)


def weights_of(evaluation: Evaluation) -> str | None:
    """The digest of the model that was evaluated; None of one that was in training."""
    digest = evaluation.settings.get("checkpoint_sha256")
    return None if digest is None else str(digest)


def shares_of(evaluation: Evaluation) -> list[float]:
    """Of each question in their order the share of its answers that are right by the benchmark's rule, 0-1."""
    return [float(one["official"]) for one in shares_right(evaluation.verdicts).values()]


def mean_shares(evaluations: Sequence[Evaluation]) -> list[float]:
    """The same, the mean over evaluations on the same questions."""
    return mean_of([shares_of(one) for one in evaluations])


def mean_of(columns: Sequence[Sequence[float]]) -> list[float]:
    """Means over the seeds of [seeds][questions], one a question."""
    # thirds add up to whole numbers, in whatever order
    return [round(math.fsum(shares), 9) / len(shares) for shares in zip(*columns, strict=True)]


def accuracy_of(columns: Sequence[Sequence[float]]) -> float:
    """The mean of [seeds][questions] in percent, so rounded that of equals none is higher."""
    shares = mean_of(columns)
    return round(100 * math.fsum(shares) / len(shares), 9)


def read_study(file: Path) -> Study:
    """What a study.json says.

    Raises:
        Refused: it cannot be read; or naming everything in it that is not as it should be.
    """
    content = read_json(file, _REMEDY)
    problems: list[str] = []

    def take(where: str, record: Any, key: str, kinds: Any, default: Any = None) -> Any:
        value = record.get(key) if isinstance(record, dict) else None
        if isinstance(value, kinds) and not (isinstance(value, bool) and kinds is not bool):
            return value
        problems.append(f"{where}{key} is {value!r:.60}")
        return default

    def row(name: str, record: Any) -> Arm:
        where = f"{name}: "
        label, role = take(where, record, "label", str, name), take(where, record, "role", str | None)
        kind, published = take(where, record, "kind", str | None), take(where, record, "published", dict | None)
        if (kind is not None) if name == BASE else (kind not in KINDS):
            problems.append(f"{where}kind is {kind!r:.60}, not one of {', '.join(KINDS)}")
        if any(value is not None and number(value) is None for value in (published or {}).values()):
            problems.append(f"{where}published holds what is no number")
        return Arm(name, label, kind, role, published)

    seeds, arms = take("", content, "seeds", list, []), take("", content, "arms", dict, {})
    if not seeds or len(set(map(str, seeds))) < len(seeds) or any(type(seed) is not int or seed < 0 for seed in seeds):
        problems.append(f"seeds is {seeds!r:.60}, not different whole numbers")
    problems += [
        f"{name!r:.60} is no name of an arm" for name in arms if name in (BASE, SUITE) or not _NAME.fullmatch(name)
    ]
    rows = (row(BASE, content.get(BASE)), *(row(name, record) for name, record in arms.items()))
    study = Study(
        take("", content, "name", str, ""),
        take("", content, "rehearsed", bool, False),
        tuple(map(str, seeds)),
        rows,
        take("", content, "price_per_gpu_hour", dict | None),
    )
    if problems:
        raise Refused([Problem(str(file), what, _REMEDY) for what in problems])
    return study
