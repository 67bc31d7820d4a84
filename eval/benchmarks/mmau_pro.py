"""MMAU-Pro (arXiv 2508.13992; github.com/sonalkum/MMAUPro): of its 5,305 records the part that can be scored here.

Its evaluate_mmau_pro_comprehensive.py has NV-Embed-v2 find the choice that is nearest to an answer, a language model
judge open questions, and formats checked for instruction following: none of it is here. What has choices and one clip
of at most 30 s is scored by MMAU's token rule. That is not the MMAU-Pro score and is not called so, there are no
published figures beside it, and nothing is handed in, which would have to be a Parquet file of all records.
"""

from __future__ import annotations

from pathlib import Path

from eval.benchmarks.mmau import FIELDS
from eval.benchmarks.record import Benchmark
from r1_aqa_repro.data.answers import official


def _prepare(questions: list[Path], audio: list[Path], out: Path) -> object:
    from data_prep import mmau_pro  # codecs and workers: whoever has a manifest needs none of them

    return mmau_pro.prepare(questions, audio, out)


MMAU_PRO = Benchmark(
    name="mmau_pro",
    title="a part of MMAU-Pro",
    dataset="MMAU-Pro",
    groups={"category": "category", "sub_category": "sub-category"},
    labels=(),
    columns=(),
    rule=official,
    rule_told="token rule of MMAU, which is not MMAU-Pro's own",
    skips=None,
    reads=FIELDS,
    hand_in=None,
    versions=(),
    source="published figures",
    part=(
        "A part of MMAU-Pro, the questions with choices about one clip of at most 30 s, by MMAU's token rule: this is "
        "not the MMAU-Pro score, which needs NV-Embed-v2 for choices and a language model's judgement for open "
        "questions"
    ),
    prepare=_prepare,
)
