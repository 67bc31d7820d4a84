"""MMAU (arXiv 2410.19168; github.com/Sakshi113/MMAU): test-mini with answers, and the 9,000 of test without.

The rule is that of evaluation.py there, which goes over the records that have a `model_output` (in older versions of
it `model_prediction`) and leaves the others out of the count. The answers to test are withheld: the original file with
predictions is handed in.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from eval.benchmarks.record import Benchmark, HandIn, Row, Version
from r1_aqa_repro.data.answers import official
from r1_aqa_repro.data.questions import AudioQuestion

TASKS = ("sound", "music", "speech")
FIELDS = ("model_prediction", "model_output")  # the first is R1-AQA's and the benchmark's older name
TARGET: Row = ("GRPO, prompt 2 (the target)", 69.37, 66.77, 57.36, 64.5)

# arXiv 2503.11197, tables 1 and 2 (its first line is the MMAU leaderboard's): on the file of 25 March 2025
_ORIGINAL: tuple[Row, ...] = (
    ("Direct inference (MMAU leaderboard)", 54.95, 50.98, 42.04, 49.20),
    ("Zero-shot CoT", 61.68, 56.29, 55.26, 57.80),
    ("Audio-Reasoner (CoTA)", 60.06, 64.30, 60.70, 61.71),
    ("SFT, full, prompt 1", 60.96, 49.19, 45.35, 51.80),
    ("SFT, LoRA, prompt 1", 58.26, 58.08, 52.58, 56.40),
    TARGET,
    ("GRPO, prompt 3 (with thinking)", 66.67, 62.87, 53.75, 61.10),
    ("GRPO, leaderboard model (several trainings)", 68.77, 64.37, 63.66, 65.60),
)
# on the file of 15 May 2025; only averages are published
_V05_15_25: tuple[Row, ...] = (
    ("Qwen2-Audio-7B-Instruct, not trained", None, None, None, 59.60),
    ("an independent R1-AQA-style training", None, None, None, 67.20),
)


def _record(question: AudioQuestion) -> dict[str, Any]:
    return {
        "id": question.id,
        "audio_id": question.audio_path.name,
        "question": question.question,
        "choices": list(question.choices),
        "answer": question.answer,
        "dataset": question.dataset,
        "task": question.task,
        "split": question.split,
        "category": question.category,
        "sub-category": question.sub_category,
        "difficulty": question.difficulty,
    }


def answer_or_empty(_: Mapping[str, Any], __: AudioQuestion, answer: str | None) -> str:
    """An empty text counts as wrong; a record without the fields would be left out of the count."""
    return answer or ""


def _prepare(questions: list[Path], audio: list[Path], out: Path) -> object:
    from data_prep import mmau  # codecs and workers: whoever has a manifest needs none of them

    return mmau.prepare(questions, audio, out)


MMAU = Benchmark(
    name="mmau",
    title="MMAU",
    dataset=None,
    groups={"task": "task", "difficulty": "difficulty", "category": "category", "sub_category": "sub-category"},
    labels=(*TASKS, "easy", "medium", "hard"),
    columns=TASKS,
    rule=official,
    rule_told="benchmark's token rule",
    skips="MMAU's evaluation.py",
    reads=FIELDS,
    hand_in=HandIn("submission.json", FIELDS, _record, frozenset({"id", "audio_id"}), answer_or_empty),
    versions=(
        Version("original", 1000, _ORIGINAL, TARGET),
        Version("v05.15.25", 1000, _V05_15_25, _V05_15_25[-1], "about a quarter of the questions differ"),
    ),
    source="the paper",
    prepare=_prepare,
)
