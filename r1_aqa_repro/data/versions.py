"""What data preparation and evaluation both know of a set of questions: its published version, what guessing gives."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Sequence

from r1_aqa_repro.data.questions import AudioQuestion

UNKNOWN = "unknown"

# published files by `questions_digest` of what they ask: the same in whatever form people have them
MMAU_VERSIONS = {  # of test-mini
    "cded6fe68a8c60ef2c1f414ad50600d6e7e1f5de595af57dd895866e5c27f749": "original",
    "8e9a2d07448b2e50f7165bceefcc67ec380ad431df7381e479f512a7ca3610b7": "v05.15.25",
}
MMAR_VERSIONS = {"25cfd0cbafb9fc29acbf8a24413203a82eef227ab4eba95bbac147fd7e7b8430": "mmar"}


def version_of(questions: Sequence[AudioQuestion]) -> str:
    """Which version of which benchmark all questions of a file are, whatever version its records name.

    `original` or `v05.15.25` for those of a published MMAU file; `mmar` for MMAR's 1,000; `embedded` for the project's
    own synthetic set; otherwise `unknown`.
    """
    if all(question.dataset == "embedded" for question in questions):
        return "embedded"
    return (MMAU_VERSIONS | MMAR_VERSIONS).get(questions_digest(questions), UNKNOWN)


def questions_digest(questions: Iterable[AudioQuestion]) -> str:
    """SHA-256 of (id, question, choices, answer) of all questions, whatever their order and the file's format."""
    lines = sorted(json.dumps([one.id, one.question, list(one.choices), one.answer]) for one in questions)
    return hashlib.sha256("\n".join(lines).encode("ascii")).hexdigest()


def baselines(questions: Sequence[AudioQuestion]) -> dict[str, float]:
    """Expected accuracy, in percent, of those who do not listen.

    `chance` takes a choice at random, `always_first` the first one, `most_frequent` that one of the choices which is
    most often the answer to the other questions of the set, of equals the first.
    """
    n = len(questions)
    answers = Counter(question.answer for question in questions)

    def most_frequent(question: AudioQuestion) -> str:
        # without its own answer, which would give away every answer that is right only once
        return max(question.choices, key=lambda choice: answers[choice] - (choice == question.answer))

    return {
        "chance": 100 * sum(1 / len(question.choices) for question in questions) / n,
        "always_first": 100 * sum(question.choices[0] == question.answer for question in questions) / n,
        "most_frequent": 100 * sum(most_frequent(question) == question.answer for question in questions) / n,
    }
