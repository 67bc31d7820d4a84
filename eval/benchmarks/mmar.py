"""MMAR (arXiv 2505.13032; github.com/ddlBoJack/MMAR): 1,000 questions about mixed audio.

Its code/evaluation.py has MMAU's token rule and reads `answer_prediction`; a record without one is left out of the
count. Under this rule 28 wrong choices count as right: their tokens are the right one's and no others.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from eval.benchmarks.mmau import FIELDS, answer_or_empty
from eval.benchmarks.record import Benchmark, HandIn, Row, Version
from r1_aqa_repro.data.answers import official
from r1_aqa_repro.data.questions import AudioQuestion

_MODALITIES = (
    "sound",
    "music",
    "speech",
    "mix-sound-music",
    "mix-sound-speech",
    "mix-music-speech",
    "mix-sound-music-speech",
)  # in the order of the script and of the leaderboard, as the layers below
_LAYERS = ("Signal Layer", "Perception Layer", "Semantic Layer", "Cultural Layer")
_R1_AQA: Row = ("R1-AQA", 55.8, 37.4, 49.0, 9.1, 50.0, 50.0, 50.0, 47.6)

# the leaderboard in the repository's README.md, commit 3bce090
_LEADERBOARD: tuple[Row, ...] = (
    ("Random guess", 29.4, 25.9, 31.5, 25.0, 29.3, 31.1, 28.1, 29.3),
    ("Qwen2-Audio-Instruct", 33.3, 24.3, 32.3, 9.1, 31.2, 30.5, 25.0, 30.0),
    ("Audio-Reasoner", 43.6, 33.5, 33.0, 45.5, 42.7, 31.7, 25.0, 36.8),
    _R1_AQA,
    ("Qwen2.5-Omni (10.7B)", 58.8, 40.8, 59.9, 54.5, 61.9, 67.1, 58.3, 56.7),
    ("Omni-R1", 67.3, 51.5, 64.3, 45.5, 70.2, 64.6, 70.8, 63.4),
)


def _record(question: AudioQuestion) -> dict[str, Any]:
    return {
        "id": question.id,
        "audio_path": f"./audio/{question.audio_path.name}",
        "question": question.question,
        "choices": list(question.choices),
        "answer": question.answer,
        "modality": question.modality,
        "category": question.category,
        "sub-category": question.sub_category,
        "language": question.language,
        "source": question.source,
    }


def _prepare(questions: list[Path], audio: list[Path], out: Path) -> object:
    from data_prep import mmar  # codecs and workers: whoever has a manifest needs none of them

    return mmar.prepare(questions, audio, out)


MMAR = Benchmark(
    name="mmar",
    title="MMAR",
    dataset="MMAR",
    groups={"modality": "modality", "category": "category", "sub_category": "sub-category", "language": "language"},
    labels=(*_MODALITIES, *_LAYERS),
    columns=_MODALITIES,
    rule=official,
    rule_told="benchmark's token rule",
    skips="MMAR's code/evaluation.py",
    reads=("answer_prediction", *FIELDS),
    hand_in=HandIn(
        "submission.json",
        ("answer_prediction",),
        _record,
        frozenset({"id", "modality", "sub-category"}),
        answer_or_empty,
    ),
    versions=(Version("mmar", 1000, _LEADERBOARD, _R1_AQA),),
    source="MMAR's leaderboard (arXiv 2505.13032)",
    prepare=_prepare,
)
