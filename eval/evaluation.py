"""One evaluation as a record: what was asked, answered and set, and the scores that follow of it."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from eval.benchmarks import benchmark_of
from eval.benchmarks.record import Benchmark
from eval.long_clips import LongClips
from eval.predictions import PREDICTIONS, SETTINGS, Prediction, by_question, recorded_clips
from eval.scores import Predictions, score, surviving, unscored, verdicts_of_question
from r1_aqa_repro.common.claim import differences
from r1_aqa_repro.common.errors import Refused
from r1_aqa_repro.common.files import open_file, read_json
from r1_aqa_repro.data.questions import AudioQuestion, with_answers

_REMEDY = "Evaluate again: what is generated is only scored."
_PREPARED = "prep_report.json"  # as data_prep names it
NO_AUDIO = "-no-audio"  # what the default folder of an evaluation without audio ends with


@dataclass(frozen=True)
class Evaluation:
    """Predictions for a set of questions, and everything needed to score and to report them.

    Attributes:
        folder: of the results.
        questions: those that were to be answered.
        predictions: by question id and repeat.
        settings: what the predictions depend on, as in settings.json; what it lacks is not known.
        paths: `data`, and `checkpoint` or, of predictions made elsewhere, `predictions`; as in settings.json.
        version: of the benchmark, see `benchmarks.version_of`.
        without_audio: the content of scores.json of the same evaluation without audio, if there is one.
        long_clips: those of which not everything was heard, as long_clips.json has them.
    """

    folder: Path
    questions: Sequence[AudioQuestion]
    predictions: Predictions
    settings: Mapping[str, Any]
    paths: Mapping[str, str]
    version: str
    without_audio: Mapping[str, Any] | None = None
    long_clips: LongClips = field(default_factory=LongClips)

    @cached_property
    def benchmark(self) -> Benchmark:
        """The one that the questions are of."""
        return benchmark_of(self.questions)

    @property
    def not_heard(self) -> LongClips:
        """`long_clips`, and those that the questions are flagged with."""
        return self.long_clips.with_flagged(self.questions)

    @property
    def left_out(self) -> dict[str, int] | None:
        """Of a part of a benchmark, how many records were left out, by reason; None if the data do not tell.

        Raises:
            Refused: the report of their preparation is damaged.
        """
        file, remedy = Path(self.paths["data"]).with_name(_PREPARED), "Prepare the data again."
        if self.benchmark.part is None or not file.exists():
            return None
        dropped = read_json(file, remedy).get("dropped")
        if not isinstance(dropped, dict) or not all(isinstance(ids, list) for ids in dropped.values()):
            raise Refused.because(str(file), "it does not say what was dropped", remedy)
        return {reason: len(ids) for reason, ids in dropped.items()}

    @property
    def name(self) -> str:
        """The checkpoint, or the file of predictions made elsewhere."""
        return self.paths.get("checkpoint") or self.paths["predictions"]

    @cached_property
    def is_withheld(self) -> bool:
        """Whether the answers to the questions are withheld, as in MMAU's test split.

        Raises:
            Refused: some questions have answers and others have none.
        """
        withheld = with_answers(self.questions, self.paths["data"])
        if withheld and len(withheld) < len(self.questions):
            raise Refused(withheld)
        return bool(withheld)

    @property
    def scores(self) -> dict[str, Any]:
        """The content of scores.json, or what of it needs no answers if they are withheld."""
        return self._scored[0]

    @property
    def verdicts(self) -> list[dict[str, Any]]:
        """The records of verdicts.jsonl; empty if the answers are withheld."""
        return self._scored[1]

    @cached_property
    def verdicts_of(self) -> dict[str, list[Mapping[str, Any]]]:
        """The verdicts on each question, by repeat."""
        return verdicts_of_question(self.verdicts)

    @cached_property
    def of_question(self) -> dict[str, list[Prediction]]:
        """The predictions of each question that has any, by repeat."""
        return by_question(self.predictions.values())

    @cached_property
    def _scored(self) -> tuple[dict[str, Any], list[dict[str, Any]]]:
        if self.is_withheld:
            return unscored(self.questions, self.predictions, self.version), []
        style, times = self.settings.get("prompt_style"), times_asked(self.settings)
        scores, verdicts = score(self.questions, self.predictions, style, self.version, times)
        if self.without_audio is not None:
            scores["blind"] = surviving(scores, self.without_audio)
        if self.benchmark.part is not None:
            scores |= {"part": self.benchmark.part, "left_out": self.left_out}
        if beyond := list(self.not_heard.seconds):
            scores["beyond_window"] = beyond
        return scores, verdicts


def times_asked(settings: Mapping[str, Any]) -> int:
    """How often each question was to be asked: in so many orders of its choices, so many times each."""
    return int(settings.get("repeats", 1)) * int(settings.get("permute_choices", 1))


def scores_without_audio(folder: Path, settings: Mapping[str, Any]) -> dict[str, Any] | None:
    """The scores of the same evaluation without audio, found where an evaluation puts it by default.

    None if there is no such evaluation, or if it is not complete or took the length of other clips.
    """
    beside = folder.with_name(folder.name + NO_AUDIO)
    if settings.get("no_audio") or not is_complete(beside, dict(settings) | {"no_audio": True}):
        return None
    if recorded_clips(beside) != recorded_clips(folder):
        return None
    return read_json(beside / "scores.json", _REMEDY)


def is_complete(folder: Path, settings: Mapping[str, Any] | None = None, ignored: Collection[str] = ()) -> bool:
    """Whether an evaluation, with these settings but for those ignored, has all answers, and its scores are of all."""
    try:
        made = read_json(folder / SETTINGS, _REMEDY)["settings"]
        scores = read_json(folder / "scores.json", _REMEDY)
        with open_file(folder / PREDICTIONS) as file:
            answers = file.read().count(b"\n")
        all_there = scores["n"] == made["questions"] and answers == scores["n"] * times_asked(made)
        all_scored = scores["missing_ids"] == scores["no_audio"] and {"accuracy", "ci95", "n"} <= set(scores["total"])
    except (Refused, OSError, ValueError, KeyError, TypeError, AttributeError):
        return False
    return all_there and all_scored and (settings is None or not differences(made, settings, ignored))
