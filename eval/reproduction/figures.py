"""Every figure of a study's report, from its bundle alone: predictions are scored anew, no score is taken over.

Where several seeds count together, each question counts once, with its mean over the seeds, and intervals are over
questions, or over clips where questions share some. docs/evaluation.md describes the content of figures.json.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import zip_longest
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from eval.compare import difference, settings_that_differ
from eval.evaluation import NO_AUDIO, Evaluation
from eval.reproduction.costs import cost
from eval.reproduction.findings import Answers, findings_of
from eval.reproduction.reading import (
    AFTER,
    BASE,
    CHOSEN,
    COIN,
    DATA,
    EVALUATIONS,
    HELD_OUT,
    LOG,
    NO_SEED,
    ON_TEST,
    PERMUTED,
    SUITE,
    TRAININGS,
    WITHOUT_AUDIO,
    Arm,
    Bundle,
    accuracy_of,
    best_of,
    mean_shares,
    number,
    place_of,
    shares_of,
    weights_of,
)
from eval.rules import RULES, answers_of, tallies
from eval.scores import by_label, sample_size
from eval.settings import RECORDED
from eval.suite import BEFORE, verdict
from r1_aqa_repro.common.console import say
from r1_aqa_repro.common.intervals import paired_gain
from r1_aqa_repro.data.questions import AudioQuestion
from r1_aqa_repro.data.records import parse_records

FORMAT = 1
EXAMPLES = 12  # questions gained, and lost, that are shown with their completions
_CURVES = {"reward": "reward", "kl": "kl", "length": "completions/mean_length", "loss": "loss"}  # as trainers log them
_FINEST = ("sub_category", "category")  # groups that changes are told by: the first that questions have

Block = dict[str, Any]


def compute(folder: Path) -> Block:
    """The content of figures.json.

    Args:
        folder: a bundle's.

    Raises:
        Refused: a file of the bundle is missing or damaged, or evaluations are not on the same questions.
    """
    return _Figures(Bundle.read(folder)).all()


def not_run() -> Block:
    """In place of figures that are not there."""
    return {"status": "not run"}


class _Figures:
    """The figures of a bundle: each method is a block of them."""

    def __init__(self, bundle: Bundle):
        self.bundle, self.study = bundle, bundle.study
        self.questions = bundle.questions
        self.clips = [question.audio_path for question in self.questions]
        self.done = {arm.name: tests for arm in self.study.rows if (tests := bundle.tests(arm.name))}
        self.first = next(one for tests in self.done.values() for one in tests.values())
        self.benchmark, self.version = self.first.benchmark, self.first.version

    def all(self) -> Block:
        split, group = self.bundle.record(DATA, "split.json") or {}, self.benchmark.main_group
        train, held_out = number(split.get("train")), number(split.get("held_out"))
        table = []
        for place, arm in enumerate(self.study.rows, start=1):
            say(f"[{place}/{len(self.study.rows)}] scoring {arm.label}")
            table.append(self.row(arm))
        return {
            "format": FORMAT,
            "name": self.study.name,
            "status": self.study.status,
            "version": self.version,
            "matcher": "official",
            "questions": {**sample_size(self.clips), "train": train, "held_out": held_out},
            "seeds": list(self.study.seeds),
            "chance": self.first.scores["baselines"]["chance"],
            "labels": {group: list(by_label(self.questions, group, self.benchmark))},
            "table": table,
            "findings": findings_of(self.study, self.answers(), self.clips, self.version, train),
            "curves": self.curves(),
            "changes": self.changes(),
            "rules": list(RULES),
            "matrix": self.matrix(),
            "overlap": self.overlap(),
            "suite": self.suite(),
            "cost": cost(self.bundle),
        }

    def answers(self) -> dict[str, Answers]:
        """Of every row that was evaluated on the test questions, by its name."""
        return {
            arm.name: Answers(arm, {seed: shares_of(one) for seed, one in self.done[arm.name].items()})
            for arm in self.study.rows
            if arm.name in self.done
        }

    def row(self, arm: Arm) -> Block:
        """A row of the paper's table, with its seeds and controls."""
        about: Block = {"row": arm.name, "label": arm.label, "kind": arm.kind, "role": arm.role}
        about["published"] = None if arm.published is None else dict(arm.published)
        tests = self.done.get(arm.name)
        if tests is None:
            return about | not_run()
        accuracies = [one.scores["total"]["accuracy"] for one in tests.values()]
        group = self.benchmark.main_group
        labels = [one.scores[group] for one in tests.values()]
        settings = [one.settings for one in tests.values()]
        on_test = self.on_test(arm, tests)
        return {
            **about,
            "status": self.study.status,
            "settings": {key: settings[0].get(key) for key in RECORDED},
            "settings_differ": [key for key in settings_that_differ(settings) if key != "checkpoint_sha256"],
            "seeds": {
                seed: self.seed(arm, seed, tests[seed]) if seed in tests else not_run()
                for seed in self.study.seeds_of(arm.name)
            },
            "n_seeds": len(tests),
            **self.mean(list(tests.values())),
            "spread": stdev(accuracies) if len(accuracies) > 1 else None,
            "task": {label: fmean(one[label]["accuracy"] for one in labels) for label in labels[0]},
            "over_base": self.over_base(arm, tests),
            "on_test": on_test or None,
            "on_test_mean": fmean(one["accuracy"] for one in on_test.values()) if on_test else None,
            "on_test_difference": fmean(one["difference"] for one in on_test.values()) if on_test else None,
            "controls": {
                "no_audio": self.control(arm, WITHOUT_AUDIO, tests),
                "permuted": self.control(arm, PERMUTED, tests),
            },
        }

    def seed(self, arm: Arm, seed: str, test: Evaluation) -> Block:
        """What the checkpoint that was chosen on the held-out questions reached on the test questions.

        `held_out` is its accuracy there, and `chosen_is_best` says whether it is the one that the held-out questions
        choose: both as the predictions on them have it. `chosen_is_tested` says whether the evaluation on the test
        questions is of the same weights. None: nothing tells.
        """
        scores = test.scores
        chosen = self.bundle.record(EVALUATIONS, place_of(arm.name, seed), CHOSEN) or {}
        points = self.bundle.sweep(arm.name, seed, HELD_OUT)
        own = next((point for point in points if point.name == chosen.get("checkpoint")), None)
        return {
            "status": self.study.status,
            "total": scores["total"],
            "task": scores[self.benchmark.main_group],
            **{key: scores[key] for key in ("asked", "missing", "unparsed", "format_rate")},
            "chosen": chosen.get("checkpoint"),
            "step": number(chosen.get("step")),
            "held_out": None if own is None else own.accuracy,
            "chosen_is_best": None if own is None else own == best_of(points),
            "chosen_is_tested": None if own is None or own.weights is None else own.weights == weights_of(test),
        }

    def over_base(self, arm: Arm, tests: Mapping[str, Evaluation]) -> Block | None:
        """An arm against the model that its training began with; None of that model, or without it."""
        base = self.done.get(BASE)
        if arm.name == BASE or base is None:
            return None
        return difference(shares_of(base[NO_SEED]), mean_shares(list(tests.values())), self.clips)

    def mean(self, evaluations: Sequence[Evaluation]) -> Block:
        """Mean accuracy over seeds, and its interval."""
        shares = mean_shares(evaluations)
        mean, low, high = (100 * value for value in paired_gain([0.0] * len(shares), shares, self.clips))
        return {"mean": mean, "ci95": [low, high]}

    def on_test(self, arm: Arm, tests: Mapping[str, Evaluation]) -> Block:
        """By seed the best of all checkpoints on the test questions themselves, and how far above the chosen one it
        is: what choosing there adds."""
        found = {}
        for seed, test in tests.items():
            best = best_of(self.bundle.sweep(arm.name, seed, ON_TEST))
            if best is not None:
                chosen = test.scores["total"]["accuracy"]
                found[seed] = {
                    "best": best.name,
                    "accuracy": best.accuracy,
                    "chosen_accuracy": chosen,
                    "difference": best.accuracy - chosen,
                }
        return found

    def control(self, arm: Arm, name: str, tests: Mapping[str, Evaluation]) -> Block:
        """A control on the seeds that have it, paired with the same seeds as asked."""
        found = {seed: one for seed, one in self.bundle.tests(arm.name, name).items() if seed in tests}
        if not found:
            return not_run()
        controls, plain = mean_shares(list(found.values())), mean_shares([tests[seed] for seed in found])
        orders = [one.scores["permutation"] for one in found.values() if "permutation" in one.scores]
        same = [one["same_choice"]["accuracy"] for one in orders if one["same_choice"] is not None]
        return {
            "status": self.study.status,
            **self.mean(list(found.values())),
            "seeds": {seed: one.scores["total"]["accuracy"] for seed, one in found.items()},
            "difference": difference(plain, controls, self.clips),
            "orders": max((one["orders"] for one in orders), default=None),
            "same_choice": fmean(same) if same else None,
        }

    def curves(self) -> Block:
        """Of every training [step, value] for each curve; None for one that its trainer does not log."""
        found: Block = {}
        for arm in self.study.arms:
            for seed in self.study.seeds:
                logged = self.log(arm, seed)
                points = [[one.step, one.accuracy] for one in self.bundle.sweep(arm.name, seed, HELD_OUT)]
                if logged or points:
                    curves = {name: _curve(logged, key) for name, key in _CURVES.items()}
                    found.setdefault(arm.name, {})[seed] = {**curves, "held_out": points or None}
        return found

    def log(self, arm: Arm, seed: str) -> list[Mapping[str, Any]]:
        """What a trainer logged, an entry a logged step; empty if that is not known."""
        file = self.bundle.folder / TRAININGS / place_of(arm.name, seed) / LOG
        records = (record for _, record in parse_records(file, lambda record, _: record)) if file.exists() else ()
        return [record for record in records if isinstance(record, dict)]

    def changes(self) -> Block:
        """What the best arm gained and lost against the base, by the finest group that the questions have."""
        arms = [arm for arm in self.study.arms if arm.name in self.done and arm.role != COIN]
        if BASE not in self.done or not arms:
            return not_run()
        answers = self.answers()
        best = max(arms, key=lambda arm: accuracy_of(list(answers[arm.name].shares.values())))  # of equals the first
        tests, base = self.done[best.name], self.done[BASE][NO_SEED]
        group = next(
            (key for key in _FINEST if key in self.benchmark.groups and by_label(self.questions, key, self.benchmark)),
            self.benchmark.main_group,
        )
        before, after = shares_of(base), mean_shares(list(tests.values()))

        def on(rows: Sequence[int]) -> Block:
            first, second = ([shares[row] for row in rows] for shares in (before, after))
            return difference(first, second, [self.clips[row] for row in rows])

        labels = by_label(self.questions, group, self.benchmark)
        signs = {seed: _signs(before, shares_of(one)) for seed, one in tests.items()}
        return {
            "status": self.study.status,
            "before": BASE,
            "after": best.name,
            "label": best.label,
            "group": group,
            "total": on(range(len(self.questions))),
            "labels": {label: on(rows) for label, rows in labels.items()},
            **{
                name: [self.example(*one, signs, sign, base, tests) for one in _in_turn(labels, signs, sign)]
                for name, sign in (("gained", 1), ("lost", -1))
            },
        }

    def example(
        self,
        label: str,
        row: int,
        signs: Mapping[str, Sequence[int]],
        sign: int,
        base: Evaluation,
        tests: Mapping[str, Evaluation],
    ) -> Block:
        """A question that was gained (`sign` 1) or lost (-1), with what was said before and by the first such seed."""
        question = self.questions[row]
        seed = next(seed for seed, of_seed in signs.items() if of_seed[row] == sign)
        return {
            "id": question.id,
            "label": label,
            "question": question.question,
            "choices": list(question.choices),
            "answer": question.answer,
            "seed": seed,
            "before": _completion(base, question),
            "after": _completion(tests[seed], question),
        }

    def matrix(self) -> list[Block]:
        """What every rule makes of the stored completions: a row an arm and an evaluation, that is, a prompt, a
        decoding and a number of orders of the choices."""
        found = []
        for arm in self.study.rows:
            for name in self.bundle.names_of_tests(arm.name):
                tests = {} if name.endswith(NO_AUDIO) else self.bundle.tests(arm.name, name)
                if tests:
                    settings = next(iter(tests.values())).settings
                    found.append(
                        {
                            "row": arm.name,
                            "evaluation": name,
                            "status": self.study.status,
                            **{key: settings.get(key) for key in ("prompt_style", "decoding", "repeats")},
                            "orders": settings.get("permute_choices"),
                            "n_seeds": len(tests),
                            "rules": _by_rule(tests),
                        }
                    )
        return found

    def overlap(self) -> Block:
        """What of the test audio is in the training audio, as the study found it: no audio is in a bundle."""
        found = self.bundle.record(DATA, "overlap.json")
        return not_run() if found is None else {**found, "status": self.study.status}

    def suite(self) -> Block:
        """Other benchmarks, after the best training and before any."""
        folder, evaluations = self.bundle.folder / EVALUATIONS / SUITE / AFTER, []
        for name in sorted(path.name for path in folder.glob("*") if path.is_dir()):
            after, before = (self.bundle.evaluation(f"{SUITE}/{which}/{name}") for which in (AFTER, BEFORE))
            if after is not None:
                evaluations.append({"name": name, **_suite_figures(after, before)})
        return {"status": self.study.status, "evaluations": evaluations} if evaluations else not_run()


def _curve(logged: Iterable[Mapping[str, Any]], key: str) -> list[list[float]] | None:
    pairs = [(number(entry.get("step")), number(entry.get(key))) for entry in logged]
    return [[step, value] for step, value in pairs if step is not None and value is not None] or None


def _signs(before: Sequence[float], after: Sequence[float]) -> list[int]:
    """1 where a question was gained, -1 where it was lost, else 0."""
    return [(b > a) - (b < a) for a, b in zip(before, after, strict=True)]


def _in_turn(
    labels: Mapping[str, Sequence[int]], signs: Mapping[str, Sequence[int]], sign: int
) -> list[tuple[str, int]]:
    """`EXAMPLES` questions, as (label, place), on which seeds changed in this direction: the labels in turn, of each
    first the questions on which most seeds did."""

    def seeds(row: int) -> int:
        return sum(of_seed[row] == sign for of_seed in signs.values())

    queues = [
        [(label, row) for row in sorted(rows, key=lambda row: (-seeds(row), row)) if seeds(row)]
        for label, rows in labels.items()
    ]
    return [one for turn in zip_longest(*queues) for one in turn if one is not None][:EXAMPLES]


def _completion(evaluation: Evaluation, question: AudioQuestion) -> str | None:
    """The first completion to a question; None if there is none."""
    return next((one.completion for one in evaluation.of_question.get(question.id, ())), None)


def _by_rule(tests: Mapping[str, Evaluation]) -> Block:
    """Of every rule the tallies by seed, with their mean and spread; none of a rule that leaves out every question."""
    of_seed = {seed: tallies(one, answers_of(one)) for seed, one in tests.items()}
    found = {}
    for rule in RULES:
        seeds = {seed: rules[rule] for seed, rules in of_seed.items() if rule in rules}
        accuracies = [one["accuracy"] for one in seeds.values()]
        if seeds:
            found[rule] = {
                "mean": fmean(accuracies),
                "spread": stdev(accuracies) if len(accuracies) > 1 else None,
                "seeds": seeds,
            }
    return found


def _suite_figures(after: Evaluation, before: Evaluation | None) -> Block:
    """Of one evaluation of the suite."""
    figures: Block = {
        "benchmark": after.benchmark.name,
        "version": after.version,
        "part": after.benchmark.part,
        "after": after.scores["total"],
        "before": None if before is None else before.scores["total"],
        **{key: after.scores[key] for key in ("missing", "unparsed")},
        "comparison": None,
    }
    if before is not None:
        clips = [question.audio_path for question in after.questions]
        pair = difference(shares_of(before), shares_of(after), clips)
        figures["comparison"] = {**pair, "verdict": verdict(pair["ci95"])}
    return figures
