"""What data preparation and evaluation both know of a set of questions: its published version, what guessing gives."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Sequence

from r1_aqa_repro.data.questions import AudioQuestion

UNKNOWN = "unknown"

# SHA-256 of the published test-mini files
MMAU_VERSIONS = {
    "e8cc09223b497191781756212cb616315690aaa6ea7ac359db1b65d97d1e2433": "original",
    "9f18fda99f8dbc2bc5ecd6323fb5063309f54969810b5c6f1caeb3b8d904cf1c": "v05.15.25",
}
# `questions_digest` of the same, for those who have them in another form than the published file
MMAU_QUESTIONS = {
    "cded6fe68a8c60ef2c1f414ad50600d6e7e1f5de595af57dd895866e5c27f749": "original",
    "8e9a2d07448b2e50f7165bceefcc67ec380ad431df7381e479f512a7ca3610b7": "v05.15.25",
}


def version_of(data_sha256: str, questions: Sequence[AudioQuestion]) -> str:
    """Which version of which benchmark a data file is.

    `original` or `v05.15.25` for a published MMAU file and for another file of exactly its questions, whatever version
    its records name; `embedded` for the project's own synthetic set; otherwise `unknown`.

    Args:
        data_sha256: of the file.
        questions: all of the file's.
    """
    if data_sha256 in MMAU_VERSIONS:
        return MMAU_VERSIONS[data_sha256]
    if all(question.dataset == "embedded" for question in questions):
        return "embedded"
    digest = questions_digest((one.id, one.question, one.choices, one.answer) for one in questions)
    return MMAU_QUESTIONS.get(digest, UNKNOWN)


def questions_digest(questions: Iterable[tuple[str, str, Sequence[str], str | None]]) -> str:
    """SHA-256 of (id, question, choices, answer) of all questions, whatever their order and the file's format."""
    lines = sorted(
        json.dumps([question_id, question, list(choices), answer], ensure_ascii=True)
        for question_id, question, choices, answer in questions
    )
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
