"""The official matcher against an implementation written independently, on both published files."""

import hashlib
import random
from pathlib import Path

import pytest

from eval.matcher import letter_aware, official, strict, verdicts
from eval.scores import MMAU_VERSIONS, baselines, score, version_of
from r1_aqa_repro.schema import read_questions

MMAU = Path(__file__).parents[3] / "shared" / "data" / "mmau"
FILES = {"original": "mmau-test-mini.2025-03-25.json", "v05.15.25": "mmau-test-mini.v05.15.25.json"}
LETTERS = "ABCDEFGH"


@pytest.fixture(scope="module", params=FILES)
def published(request):
    """(version, questions) of a published file."""
    file = MMAU / FILES[request.param]
    if not file.is_file():
        pytest.skip(f"needs {file}")
    read = read_questions(file)
    assert not read.problems
    assert len(read.questions) == 1000
    assert MMAU_VERSIONS[hashlib.sha256(file.read_bytes()).hexdigest()] == request.param
    return request.param, read.questions


def words(text):
    """Runs of alphanumeric characters and underscores, character by character."""
    found, word = [], ""
    for character in text.lower() + " ":
        if character.isalnum() or character == "_":
            word += character
        elif word:
            found.append(word)
            word = ""
    return found


def independent(prediction, gold, choices):
    """The rule in the words of the benchmark's description, one condition at a time."""
    if len(words(prediction)) == 0:
        return False
    for word in words(gold):
        if word not in words(prediction):
            return False
    for choice in choices:
        if sorted(set(words(choice))) == sorted(set(words(gold))):
            continue
        for word in words(choice):
            if word not in words(gold) and word in words(prediction):
                return False
    return True


def gold_letter(question):
    return LETTERS[question.choices.index(question.answer)]


def wrong_choice(question):
    return next((choice for choice in question.choices if choice != question.answer), "")


def random_words(question):
    rng = random.Random(question.id)
    pool = [word for choice in question.choices for word in words(choice)] + ["the", "not", "a", "1", "_"]
    return " ".join(rng.choices(pool, k=rng.randrange(6)))


PREDICTIONS = {
    "gold": lambda question: question.answer,
    "wrong": wrong_choice,
    "first": lambda question: question.choices[0],
    "letter": gold_letter,
    "letter and text": lambda question: f"({gold_letter(question)}) {question.answer}",
    "sentence": lambda question: f"The answer is {question.answer}, because it can be heard in the audio.",
    "two choices": lambda question: f"{question.answer} or {wrong_choice(question)}",
    "every choice": lambda question: " ".join(question.choices),
    "question": lambda question: question.question,
    "upper case": lambda question: question.answer.upper(),
    "first half": lambda question: question.answer[: len(question.answer) // 2],
    "hyphens": lambda question: question.answer.replace(" ", "-"),
    "underscores": lambda question: question.answer.replace(" ", "_"),
    "unicode": lambda question: f"“{question.answer}”… İ ﬁ ² é 答え {question.answer}’s",
    "long": lambda question: f"{question.answer} and so on " * 20,
    "empty": lambda question: "",
    "punctuation": lambda question: "?!",
    "random words": random_words,
}


@pytest.mark.parametrize("kind", PREDICTIONS)
def test_official_agrees_question_by_question(published, kind):
    for question in published[1]:
        prediction = PREDICTIONS[kind](question)
        expected = independent(prediction, question.answer, question.choices)
        assert official(prediction, question.answer, question.choices) == expected, (question.id, prediction)


def test_gold_is_right_and_nothing_is_wrong(published):
    for question in published[1]:
        assert all(verdicts(question.answer, question.answer, question.choices).values()), question.id
        assert not any(verdicts(None, question.answer, question.choices).values())
        assert not any(verdicts("", question.answer, question.choices).values())


def test_known_quirks():
    questions = read_questions(_published("v05.15.25")).questions
    letters = [official(gold_letter(question), question.answer, question.choices) for question in questions]
    assert sum(letters) == 2
    accepted = [
        question.id
        for question in questions
        for choice in question.choices
        if choice != question.answer and official(choice, question.answer, question.choices)
    ]
    assert (len(accepted), len(set(accepted))) == (12, 9)


def test_version_and_baselines(published):
    version, questions = published
    lazy = baselines(questions)
    chance, first = {"original": (25.25, 37.7), "v05.15.25": (25.54, 39.5)}[version]
    assert lazy["chance"] == pytest.approx(chance, abs=0.005)
    assert lazy["always_first"] == pytest.approx(first)
    assert version_of(hashlib.sha256(_published(version).read_bytes()).hexdigest(), questions) == version


def test_groups_are_the_benchmarks(published):
    version, questions = published
    scores, _ = score(questions, {}, "answer", version)
    assert scores["missing"] == 1000
    assert scores["total"] == {"correct": 0, "n": 1000, "accuracy": 0.0, "ci95": scores["total"]["ci95"]}
    assert {task: group["n"] for task, group in scores["task"].items()} == {"sound": 333, "music": 334, "speech": 333}
    counts = {"original": (258, 510, 232), "v05.15.25": (224, 540, 236)}[version]
    assert tuple(group["n"] for group in scores["difficulty"].values()) == counts
    assert list(scores["difficulty"]) == ["easy", "medium", "hard"]
    assert set(scores["category"]) == {"Reasoning", "Information Extraction"}
    assert len(scores["sub_category"]) == 27


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ("Man", (True, True, True)),
        (" man. ", (True, True, True)),
        ("A", (False, False, True)),
        ("A. Man", (True, False, True)),
        ("A. Woman", (False, False, False)),
        ("The man", (True, False, False)),
        ("Man or Woman", (False, False, False)),
        ("Woman", (False, False, False)),
        ("", (False, False, False)),
    ],
)
def test_three_matchers(answer, expected):
    choices = ("Man", "Woman")
    assert (official(answer, "Man", choices), strict(answer, "Man", choices), letter_aware(answer, "Man", choices)) == (
        expected
    )


def test_strict_takes_duplicates_as_one_choice_and_ambiguity_as_none():
    assert strict("dog", "dog", ("dog", "dog", "cat"))
    assert not strict("5", "5", ("5", "-5"))
    assert not strict("...", "?", ("?", "yes"))


def _published(version):
    file = MMAU / FILES[version]
    if not file.is_file():
        pytest.skip(f"needs {file}")
    return file
