"""MMSU (arXiv 2506.04779; github.com/dingdongwang/MMSU_Bench): 5,000 questions about speech in 47 tasks.

Its mmsu_evaluation.py reads a letter from `response`: the first character if that is A, B, C or D, else the last but
one. Our prompts show no letters and ask for the text of a choice, of which that script would take the first character
for a letter; here the text of a choice stands for its letter, and all else is read as the script reads it.

The script leaves out of the count what it finds no letter in, and where a response is empty it takes the letter of the
record before; here both are wrong.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from eval.benchmarks.mmau import FIELDS
from eval.benchmarks.record import Benchmark, HandIn, Row, Version
from r1_aqa_repro.data.answers import match_choice, normalise
from r1_aqa_repro.data.questions import AudioQuestion

_LETTERS = "ABCD"
_TRAINED: Row = ("Qwen2-Audio after an R1-AQA-style training", 54.1)


def choice_meant(answer: str, choices: Sequence[str]) -> int | None:
    """The place of the choice that an answer means by its text, else by the letter that MMSU's script reads."""
    place = match_choice(answer, choices)
    if place is not None and normalise(choices[place]) == normalise(answer):
        return place
    said = answer.strip().replace("\n", "")
    letter = next((one for one in (said[:1], said[-2:-1]) if one and one in _LETTERS), None)
    place = None if letter is None else _LETTERS.index(letter)
    return place if place is not None and place < len(choices) else None


def letter_or_text(answer: str, gold: str, choices: Sequence[str]) -> bool:
    """MMSU's rule: the choice that is meant has the text of the right one."""
    place = choice_meant(answer, choices)
    return place is not None and choices[place] == gold


def _letter(record: Mapping[str, Any], question: AudioQuestion, answer: str | None) -> str | None:
    """The letter that the record has for the choice meant; None, which the script leaves out, where none is."""
    place = None if answer is None else choice_meant(answer, question.choices)
    if place is None:
        return None
    return next(one for one in _LETTERS if record.get(f"choice_{one.lower()}") == question.choices[place])


def _record(question: AudioQuestion) -> dict[str, Any]:
    choices = dict(zip(("choice_a", "choice_b", "choice_c", "choice_d"), question.choices, strict=False))
    return {
        "id": question.id,
        "audio_path": question.audio_path.name,
        "question": question.question,
        **choices,
        "answer_gt": question.answer,
        "task_name": question.task,
        "category": question.category,
        "sub-category": question.sub_category,
    }


def _prepare(questions: list[Path], audio: list[Path], out: Path) -> object:
    from data_prep import mmsu  # codecs and workers: whoever has a manifest needs none of them

    return mmsu.prepare(questions, audio, out)


MMSU = Benchmark(
    name="mmsu",
    title="MMSU",
    dataset="MMSU",
    groups={"category": "category", "sub_category": "sub-category", "task": "task"},
    labels=(),
    columns=(),
    rule=letter_or_text,
    rule_told=(
        "benchmark's letter rule (the first character, else the last but one), in which a choice's text stands for "
        "its letter, since the prompt asks for texts"
    ),
    skips=None,
    reads=("response", *FIELDS),
    hand_in=HandIn("submission.jsonl", ("response",), _record, frozenset({"id", "choice_a", "answer_gt"}), _letter),
    versions=(Version("mmsu", 5000, (("Qwen2-Audio", 30.4), _TRAINED), _TRAINED, labels={"task": 47}),),
    source="published figures (wenet-e2e/west, pull request 117)",
    prepare=_prepare,
)
