"""The benchmarks that evaluations know, one file each. Imports nothing heavy."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from eval.benchmarks.mmar import MMAR
from eval.benchmarks.mmau import MMAU
from eval.benchmarks.mmau_pro import MMAU_PRO
from eval.benchmarks.mmsu import MMSU
from eval.benchmarks.record import Benchmark
from r1_aqa_repro.data import versions
from r1_aqa_repro.data.questions import AudioQuestion

BENCHMARKS = {one.name: one for one in (MMAU, MMAR, MMSU, MMAU_PRO)}
_BY_DATASET: dict[str | None, Benchmark] = {one.dataset: one for one in BENCHMARKS.values() if one is not MMAU}


def benchmark_of(questions: Iterable[AudioQuestion]) -> Benchmark:
    """The benchmark that all of these questions say they are of; MMAU for all others, whose rule and groups they get.

    Whether they are the published questions is another matter: see `version_of`.
    """
    datasets = {question.dataset for question in questions}
    return _BY_DATASET.get(datasets.pop(), MMAU) if len(datasets) == 1 else MMAU


def version_of(questions: Sequence[AudioQuestion]) -> str:
    """See `versions.version_of`; where no digest is known, a version that these questions have the numbers of."""
    known = versions.version_of(questions)
    if known != versions.UNKNOWN:
        return known
    for version in benchmark_of(questions).versions:
        labels = {key: len({getattr(one, key) for one in questions} - {None}) for key in version.labels}
        if labels and labels == version.labels and len(questions) == version.questions:
            return version.name
    return known
