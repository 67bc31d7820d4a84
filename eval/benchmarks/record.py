"""What an evaluation has to know of a benchmark beside its questions."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from r1_aqa_repro.common.errors import Refused
from r1_aqa_repro.data.questions import AudioQuestion

Rule = Callable[[str, str, Sequence[str]], bool]  # answer, right choice, choices as they were asked
Row = tuple[Any, ...]  # a model; its figure for each of a benchmark's `columns`, or None; the average: in percent


@dataclass(frozen=True)
class Version:
    """A published set of questions, and the figures that are published on it.

    Attributes:
        name: as `benchmarks.version_of` tells it.
        questions: how many there are.
        rows: published figures.
        target: that one of the rows which a run is measured against.
        differs: what tells it from the benchmark's first version.
        labels: of questions whose digest is not known, the number of labels of some groups, by which, with the number
            of questions, they are taken for this version.
    """

    name: str
    questions: int
    rows: tuple[Row, ...]
    target: Row
    differs: str = ""
    labels: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class HandIn:
    """The file in which answers are handed to a benchmark's own script.

    Attributes:
        file: its name; a JSON list, or JSON lines if it ends with `.jsonl`.
        fields: that the script reads the answer from.
        record: a question as the benchmark writes it; what is None is left out.
        marks: keys by which a record of the benchmark's own is known; such a record is handed in as it stands.
        answer: what stands in the fields of a record for the answer to its question, or for none.
    """

    file: str
    fields: tuple[str, ...]
    record: Callable[[AudioQuestion], dict[str, Any]]
    marks: frozenset[str]
    answer: Callable[[Mapping[str, Any], AudioQuestion, str | None], str | None]


@dataclass(frozen=True)
class Benchmark:
    """A benchmark.

    Attributes:
        name: on the command line, and of its folder in data/.
        title: for people.
        dataset: what its questions have as `dataset`; None of MMAU, whose records name the collections of their clips.
        groups: fields of a question that figures are grouped by, and their names for people. The first is the one that
            published tables and curves have.
        labels: the order in which labels of any group stand; others come after those, by name.
        columns: labels of the first group that published tables have figures for.
        rule: the benchmark's own, under which an answer is right; the matcher `official`.
        rule_told: the same for people, after `the`.
        skips: the benchmark's script, if it leaves questions without a prediction out of the count: reports show the
            figure that it would print. None: no such figure is shown.
        reads: fields of other people's records that may hold a prediction.
        hand_in: None if there is nothing to be handed in.
        versions: those with published figures; the first is the one that `source` is about.
        source: what the published figures are of.
        part: what these questions are of the whole, and why not the whole; None if nothing is left out on purpose.
        prepare: makes a manifest of published files (questions, audio, folder to write to).
    """

    name: str
    title: str
    dataset: str | None
    groups: Mapping[str, str]
    labels: tuple[str, ...]
    columns: tuple[str, ...]
    rule: Rule
    rule_told: str
    skips: str | None
    reads: tuple[str, ...]
    hand_in: HandIn | None
    versions: tuple[Version, ...]
    source: str
    prepare: Callable[[list[Path], list[Path], Path], object]
    part: str | None = None

    @property
    def default_data(self) -> Path:
        """Where its manifest is looked for, relative to the working directory."""
        return Path("data") / self.name / "manifest.jsonl"

    @property
    def main_group(self) -> str:
        """The first of `groups`."""
        return next(iter(self.groups))

    def owns(self, version: str) -> bool:
        """Whether questions with this benchmark's rule are its own, by their version: those of no benchmark have MMAU's
        rule too."""
        return self.dataset is not None or version in {one.name for one in self.versions}

    def require(self, questions: Sequence[AudioQuestion], found: Benchmark, where: str) -> None:
        """Check that questions are this benchmark's.

        Args:
            questions: all of a file.
            found: the benchmark that they are of.
            where: the file, for the message.

        Raises:
            Refused: they are another's.
        """
        if found is self:
            return
        if self.dataset is None or found.dataset is not None:
            what = f"its questions are {found.title}'s, not {self.title}'s"
            raise Refused.because(where, what, f"Evaluate them with `python -m eval.benchmark {found.name}`.")
        other = next(one for one in questions if one.dataset != self.dataset)
        what = f"its questions are not {self.title}'s: question {other.id!r} has the dataset {other.dataset!r:.80}"
        remedy = f"Give the benchmark's own file, or make a manifest of it with `python -m data_prep.{self.name}`."
        raise Refused.because(where, what, remedy)
