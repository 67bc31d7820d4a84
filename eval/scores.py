"""From predictions to figures: `scores.json` and `verdicts.jsonl`."""

from __future__ import annotations

import math
import statistics
from collections.abc import Hashable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from eval.benchmarks import benchmark_of
from eval.benchmarks.record import Benchmark
from eval.matcher import MATCHERS, verdicts
from eval.predictions import Prediction
from r1_aqa_repro.common.errors import Refused
from r1_aqa_repro.common.files import read_json
from r1_aqa_repro.common.intervals import effective_size, wilson
from r1_aqa_repro.data.answers import follows_format, named_choice
from r1_aqa_repro.data.questions import AudioQuestion
from r1_aqa_repro.data.records import BadRecord, Rejected, id_of, parse_records
from r1_aqa_repro.data.versions import baselines

_REMEDY = "Evaluate again: what is generated is only scored."
Predictions = Mapping[tuple[str, int], Prediction]


def score(
    questions: Sequence[AudioQuestion],
    predictions: Predictions,
    style: str | None,
    version: str,
    times: int = 1,
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Score predictions against the questions' answers, by the rule of their benchmark.

    Every question counts once, however often it was asked: if it was asked repeatedly, its verdict is the share of
    its answers that are right. `n` is therefore always a number of questions, `correct` need not be whole, and
    `accuracy` = 100 `correct` / `n` is the mean over the repeats. `missing` and `unparsed` count answers, of the
    `asked` ones. Questions with the same `audio_path` are about one clip, and intervals take clips as independent.

    Args:
        questions: every question that was to be answered, each with its answer. One without a prediction is wrong.
        predictions: by question id and repeat.
        style: prompt style, which decides what format a completion should have; None if it is not known.
        version: label for `scores["version"]`.
        times: how often each question was to be asked, if no prediction has a higher repeat.

    Returns:
        The content of scores.json (accuracies and intervals 0-100, format_rate 0-1) and the records of verdicts.jsonl,
        one a question and repeat in the order of the questions.
    """
    benchmark = benchmark_of(questions)
    times = max(times, *(1 + repeat for _, repeat in predictions), 1)
    asked = [[predictions.get((question.id, repeat)) for repeat in range(times)] for question in questions]
    records: list[dict[str, Any]] = [
        {"id": question.id, "repeat": repeat, **_verdicts(question, one, benchmark)}
        for question, row in zip(questions, asked, strict=True)
        for repeat, one in enumerate(row)
    ]
    right: dict[str, list[list[bool]]] = {  # by matcher: [questions][repeats]
        name: [[record[name] for record in records[start : start + times]] for start in range(0, len(records), times)]
        for name in MATCHERS
    }
    shares = {name: [sum(row) / times for row in rows] for name, rows in right.items()}
    clips = [question.audio_path for question in questions]
    official = shares["official"]
    everything = [one for row in asked for one in row]
    statuses = [_status(one) for one in everything]

    def ids_with(*wanted: str) -> list[str]:
        rows = zip(questions, asked, strict=True)
        return [question.id for question, row in rows if any(_status(one) in wanted for one in row)]

    scores = {
        **({} if benchmark.dataset is None else {"benchmark": benchmark.name}),
        "version": version,
        "matcher": "official",
        "n": len(questions),
        "asked": len(everything),
        "missing": statuses.count("absent") + statuses.count("no_audio"),
        "unparsed": statuses.count("unparsed"),
        "total": tally(official, clips),
        **{
            key: {
                label: tally([official[row] for row in rows], [clips[row] for row in rows])
                for label, rows in by_label(questions, key, benchmark).items()
            }
            for key in benchmark.groups
        },
        "matchers": {name: tally(shares[name], clips) for name in MATCHERS},
        "disagreements": sum(len({tuple(right[name][index]) for name in MATCHERS}) > 1 for index in range(len(asked))),
        "format_rate": None if style is None else sum(_has_format(one, style) for one in everything) / len(everything),
        "baselines": baselines(questions),
        "repeats": _repeats(right["official"], clips),
        "no_audio": ids_with("no_audio"),
        "missing_ids": ids_with("absent", "no_audio"),
        "unparsed_ids": ids_with("unparsed"),
    }
    if any(one is not None and one.order for one in everything):
        scores["permutation"] = _permutation(questions, asked, right["official"])
    if benchmark.skips and benchmark.owns(version) and (alone := _answered_only(asked, right["official"], clips)):
        scores["answered_only"] = alone
    return scores, records


def unscored(questions: Sequence[AudioQuestion], predictions: Predictions, version: str) -> dict[str, Any]:
    """What scores.json would hold and needs no answers: `version`, `n`, `missing`, `unparsed` and `no_audio`."""
    ids: dict[str, set[str]] = {"ok": set(), "unparsed": set(), "no_audio": set()}
    for one in predictions.values():
        ids[one.status].add(one.id)
    return {
        "version": version,
        "n": len(questions),
        "missing": sum(question.id not in ids["ok"] | ids["unparsed"] for question in questions),
        "unparsed": len(ids["unparsed"]),
        "no_audio": sorted(ids["no_audio"]),
    }


def tally(shares: Sequence[float], clips: Sequence[Hashable]) -> dict[str, Any]:
    """Correct, n, accuracy and its 95 % Wilson interval (see `intervals.wilson`), the latter two in percent.

    Where questions share clips there is `clips`, their number, and the interval is that of so many independent
    questions as `intervals.effective_size` says.

    Args:
        shares: of each question's answers, how many are right: 0 or 1 if it was asked once.
        clips: the clip of each question.
    """
    correct = round(math.fsum(shares), 9)  # thirds add up to whole numbers
    low, high = wilson(correct, len(shares), effective_size(shares, clips))
    return {
        "correct": int(correct) if correct.is_integer() else correct,
        **sample_size(clips),
        "accuracy": 100 * correct / len(shares),
        "ci95": [100 * low, 100 * high],
    }


def sample_size(clips: Sequence[Hashable]) -> dict[str, int]:
    """`n`, the number of questions, and `clips`, that of their clips, where there are fewer; `clips` has one of each
    question."""
    distinct = len(set(clips))
    return {"n": len(clips)} | ({"clips": distinct} if distinct < len(clips) else {})


def surviving(scores: Mapping[str, Any], without_audio: Mapping[str, Any]) -> dict[str, Any]:
    """What is left of a score if silence stands in place of every clip.

    Args:
        scores, without_audio: contents of two scores.json.

    Returns:
        `accuracy`, `ci95` (0-100) and `n` without audio; `share` (0-1) of the score that survives, and
        `share_above_chance`, the same of what is above guessing; None if the score leaves nothing to share.

    Raises:
        Refused: the two are not on the same questions.
    """
    for key in ("version", "n"):
        if scores[key] != without_audio[key]:
            what = f"it has {key} {without_audio[key]}, the one with audio {scores[key]}"
            raise Refused.because("evaluation without audio", what, "Evaluate both on the same questions.")
    left, chance = without_audio["total"], scores["baselines"]["chance"]
    accuracy = scores["total"]["accuracy"]
    return {
        "accuracy": left["accuracy"],
        "ci95": left["ci95"],
        "n": left["n"],
        "share": left["accuracy"] / accuracy if accuracy > 0 else None,
        "share_above_chance": (left["accuracy"] - chance) / (accuracy - chance) if accuracy > chance else None,
    }


def read_scores(folder: Path) -> dict[str, Any]:
    """The scores.json of an evaluation.

    Raises:
        Refused: it is absent or damaged, or no answer is there: the figures would be those of nothing.
    """
    scores = read_json(folder / "scores.json", _REMEDY)
    counts = [scores.get(key) for key in ("n", "asked", "missing")]
    if not all(type(count) is int for count in counts):
        raise Refused.because(str(folder / "scores.json"), "it is damaged", _REMEDY)
    if scores["missing"] >= scores["asked"]:
        raise Refused.because(str(folder), "none of its questions has a prediction", "Evaluate again.")
    return scores


def read_verdicts(path: Path) -> dict[str, dict[str, float]]:
    """`shares_right` of a verdicts.jsonl; see `read_verdict_lines`."""
    return shares_right(read_verdict_lines(path))


def read_verdict_lines(path: Path) -> list[Mapping[str, Any]]:
    """The records of a verdicts.jsonl.

    Raises:
        Refused: it cannot be read, or a line is damaged.
    """
    records = [record for _, record in parse_records(path, _verdict)]
    problems = [record.problem for record in records if isinstance(record, Rejected)]
    if problems:
        raise Refused(problems)
    return [record for record in records if not isinstance(record, Rejected)]


def _verdict(record: dict[str, Any], _: str) -> dict[str, Any]:
    id_of(record)
    if not all(isinstance(record.get(name), bool) for name in MATCHERS):
        raise BadRecord("the line is damaged", _REMEDY)
    return record


def mostly_missing(scores: Mapping[str, Any]) -> str | None:
    """What to say of figures, the content of a scores.json, that are of missing answers for the most part; None if they
    are not."""
    asked = scores.get("asked", scores["n"])
    if 2 * scores["missing"] <= asked:
        return None
    return f"{scores['missing']} of {asked} answers are missing and count as wrong: the figures are of these"


def shares_right(records: Iterable[Mapping[str, Any]]) -> dict[str, dict[str, float]]:
    """The records of verdicts.jsonl, as {question id: {matcher: right}} in question order.

    The verdict is a boolean, or the share of right answers if a question was asked repeatedly.
    """
    return {
        question_id: {
            name: asked[0][name] if len(asked) == 1 else sum(record[name] for record in asked) / len(asked)
            for name in MATCHERS
        }
        for question_id, asked in verdicts_of_question(records).items()
    }


def verdicts_of_question(records: Iterable[Mapping[str, Any]]) -> dict[str, list[Mapping[str, Any]]]:
    """The records of verdicts.jsonl about each question, by repeat."""
    grouped: dict[str, list[Mapping[str, Any]]] = {}
    for record in records:
        grouped.setdefault(record["id"], []).append(record)
    return grouped


def _verdicts(question: AudioQuestion, prediction: Prediction | None, benchmark: Benchmark) -> dict[str, bool]:
    assert question.answer is not None  # `questions.with_answers` has refused the others
    answer = prediction.answer if prediction else None
    return verdicts(answer, question.answer, choices_as_asked(question, prediction), benchmark.rule)


def choices_as_asked(question: AudioQuestion, prediction: Prediction | None) -> Sequence[str]:
    """The choices in the order that a letter in the answer refers to."""
    return prediction.order if prediction is not None and prediction.order else question.choices


def choice_named(question: AudioQuestion, prediction: Prediction | None) -> str | None:
    """The choice that an answer names, whatever their order; None if it names no choice."""
    if prediction is None or prediction.answer is None:
        return None
    return named_choice(prediction.answer, choices_as_asked(question, prediction))


def _has_format(prediction: Prediction | None, style: str) -> bool:
    return prediction is not None and follows_format(prediction.completion or "", style)


def _status(prediction: Prediction | None) -> str:
    return "absent" if prediction is None else prediction.status


def _answered_only(
    asked: Sequence[Sequence[Prediction | None]], right: Sequence[Sequence[bool]], clips: Sequence[Hashable]
) -> dict[str, Any] | None:
    """The tally of the questions that have a prediction, each with the share of its predictions that are right; None
    if all have one, or none has."""
    shares, of_clips = [], []
    for row, hits, clip in zip(asked, right, clips, strict=True):
        there = [hit for one, hit in zip(row, hits, strict=True) if _status(one) in ("ok", "unparsed")]
        if there:
            shares.append(sum(there) / len(there))
            of_clips.append(clip)
    return tally(shares, of_clips) if 0 < len(shares) < len(asked) else None


def _repeats(right: Sequence[Sequence[bool]], clips: Sequence[Hashable]) -> dict[str, Any]:
    """Accuracy and interval of each repeat in percent, and their mean and spread (sample standard deviation)."""
    tallies = [tally(column, clips) for column in zip(*right, strict=True)]
    accuracies = [one["accuracy"] for one in tallies]
    return {
        "count": len(accuracies),
        "accuracy": accuracies,
        "ci95": [one["ci95"] for one in tallies],
        "mean": statistics.mean(accuracies),
        "std": statistics.stdev(accuracies) if len(accuracies) > 1 else None,
        "min": min(accuracies),
        "max": max(accuracies),
    }


def _permutation(
    questions: Sequence[AudioQuestion],
    asked: Sequence[Sequence[Prediction | None]],
    right: Sequence[Sequence[bool]],
) -> dict[str, Any]:
    """What the order of the choices does, over the questions that were asked in more than one.

    `same_choice`: questions of which all answers name the same choice; one that names no choice is never the same.
    `always_right`: questions of which all answers are right. `by_place`: by the place, from 1, at which the right
    choice stood: a question counts once, with the share of these of its answers that are right.
    """
    same, always, reordered, orders = [], [], [], 0
    places: dict[int, list[tuple[float, Hashable]]] = {}  # (share, clip) of each question
    for question, row, hits in zip(questions, asked, right, strict=True):
        seen = {tuple(choices_as_asked(question, one)) for one in row if one is not None}
        orders = max(orders, len(seen))
        of_place: dict[int, list[bool]] = {}
        for one, hit in zip(row, hits, strict=True):
            if one is not None and question.answer is not None:
                place = list(choices_as_asked(question, one)).index(question.answer) + 1
                of_place.setdefault(place, []).append(hit)
        for place, there in of_place.items():
            places.setdefault(place, []).append((sum(there) / len(there), question.audio_path))
        if len(seen) > 1:
            named = {choice_named(question, one) for one in row}
            same.append(len(named) == 1 and None not in named)
            always.append(all(hits))
            reordered.append(question.audio_path)
    return {
        "orders": orders,
        "same_choice": tally(same, reordered) if same else None,
        "always_right": tally(always, reordered) if always else None,
        "by_place": {str(place): tally(*zip(*there, strict=True)) for place, there in sorted(places.items())},
    }


def by_label(questions: Sequence[AudioQuestion], key: str, benchmark: Benchmark) -> dict[str, list[int]]:
    """The places of the questions with each label, in the benchmark's order of labels, others after those by name.

    Questions without a label are left out.
    """
    places: dict[str, list[int]] = {}
    for place, question in enumerate(questions):
        label = getattr(question, key)
        if label is not None:
            places.setdefault(label, []).append(place)
    rank = {label: number for number, label in enumerate(benchmark.labels)}
    return dict(sorted(places.items(), key=lambda item: (rank.get(item[0], len(rank)), item[0])))
