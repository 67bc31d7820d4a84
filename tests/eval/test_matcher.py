"""The official matcher against an implementation written independently, on both published files."""

import random
from dataclasses import replace
from pathlib import Path

import pytest

from eval.matcher import strict, verdicts
from eval.predictions import predict
from eval.scores import score
from r1_aqa_repro.data.questions import read_questions
from r1_aqa_repro.data.versions import baselines, version_of
from tests.eval.made_up import PUBLISHED, is_right, published, words

LETTERS = "ABCDEFGH"


@pytest.fixture(scope="module", params=PUBLISHED)
def mmau(request):
    """(version, questions) of a published file."""
    file = published(request.param)
    read = read_questions(file)
    assert not read.problems
    assert len(read.records) == 1000
    assert version_of(read.records) == request.param
    return request.param, read.records


def answer_in(completion):
    """What stands in the first complete answer tag, or everything, found without regular expressions."""
    _, opened, rest = completion.partition("<answer>")
    answer, closed, _ = rest.partition("</answer>")
    return answer if opened and closed else completion


def gold_letter(question):
    return LETTERS[question.choices.index(question.answer)]


def wrong_choice(question):
    return next((choice for choice in question.choices if choice != question.answer), "")


def random_words(question):
    rng = random.Random(question.id)
    pool = [word for choice in question.choices for word in words(choice)] + ["the", "not", "a", "1", "_"]
    return " ".join(rng.choices(pool, k=rng.randrange(6)))


# None is a missing record
COMPLETIONS = {
    "gold": lambda question: question.answer,
    "wrong": wrong_choice,
    "first": lambda question: question.choices[0],
    "letter": gold_letter,
    "letter and text": lambda question: f"({gold_letter(question)}) {question.answer}",
    "sentence": lambda question: f"The answer is {question.answer}, because it can be heard in the audio.",
    "two choices": lambda question: f"{question.answer} or {wrong_choice(question)}",
    "every choice": lambda question: " ".join(question.choices),
    "upper case": lambda question: question.answer.upper(),
    "first half": lambda question: question.answer[: len(question.answer) // 2],
    "underscores": lambda question: question.answer.replace(" ", "_"),
    "lines": lambda question: "\n".join(question.answer.split()),
    "unicode": lambda question: f"“{question.answer}”… İ ﬁ ² é 答え {question.answer}’s",
    "full width": lambda question: "".join(chr(ord(c) + 0xFEE0) if "!" <= c <= "~" else c for c in question.answer),
    "long": lambda question: f"{question.answer} and so on " * 20,
    "empty": lambda question: "",
    "punctuation": lambda question: "?!",
    "random words": random_words,
    "tagged": lambda question: f"<answer>{question.answer}</answer>",
    "tagged wrong after right thoughts": lambda question: (
        f"<think>{question.answer}</think><answer>{wrong_choice(question)}</answer>"
    ),
    "two tags": lambda question: f"<answer>{question.answer}</answer><answer>{wrong_choice(question)}</answer>",
    "unclosed tag": lambda question: f"<answer>{question.answer}",
    "empty tag": lambda question: f"<answer> </answer>{question.answer}",
    "missing": lambda question: None,
}


@pytest.mark.parametrize("kind", COMPLETIONS)
def test_official_agrees_question_by_question(mmau, kind):
    version, questions = mmau
    completions = {question.id: COMPLETIONS[kind](question) for question in questions}
    predictions = {
        (question.id, 0): predict(question, completions[question.id], "answer", "")
        for question in questions
        if completions[question.id] is not None
    }
    scores, found = score(questions, predictions, "answer", version)
    expected = [
        completions[question.id] is not None
        and is_right(answer_in(completions[question.id]), question.answer, question.choices)
        for question in questions
    ]
    assert [verdict["official"] for verdict in found] == expected
    assert scores["total"]["correct"] == sum(expected)
    assert scores["total"]["n"] == 1000
    assert scores["missing"] == 1000 - len(predictions)


def test_gold_is_right_and_nothing_is_wrong(mmau):
    """Also of 2 to 8 choices, and of choices that are listed twice."""
    for question in mmau[1]:
        assert all(verdicts(question.answer, question.answer, question.choices).values()), question.id
        if len(set(question.choices)) < len(question.choices):
            assert verdicts(gold_letter(question), question.answer, question.choices)["letter_aware"], question.id
        assert not any(verdicts(None, question.answer, question.choices).values())
        assert not any(verdicts("", question.answer, question.choices).values())


def left_out_most_frequent(questions):
    """Percent right of taking the choice that answers most of the other questions, the first of several."""
    right = 0
    for question in questions:
        others = [other.answer for other in questions if other.id != question.id]
        counts = [others.count(choice) for choice in question.choices]
        right += question.choices[counts.index(max(counts))] == question.answer
    return 100 * right / len(questions)


def test_version_and_baselines(mmau):
    version, questions = mmau
    lazy = baselines(questions)
    chance, first = {"original": (25.25, 37.7), "v05.15.25": (25.54, 39.5)}[version]
    assert lazy["chance"] == pytest.approx(chance, abs=0.005)
    assert lazy["always_first"] == pytest.approx(first)
    assert lazy["most_frequent"] == pytest.approx(left_out_most_frequent(questions))


def test_the_version_is_that_of_the_questions_whatever_they_are_called(mmau):
    version, questions = mmau
    other = next(name for name in PUBLISHED if name != version)
    relabelled = [replace(question, version=other, audio_path=Path("elsewhere.wav")) for question in questions]
    assert version_of(relabelled[::-1]) == version
    for changed in (
        replace(questions[7], answer=wrong_choice(questions[7])),
        replace(questions[7], question="What is it?"),
        replace(questions[7], choices=(*questions[7].choices, "none of them")),
        replace(questions[7], id="another"),
    ):
        alike = [replace(one, version=version) for one in [*questions[:7], changed, *questions[8:]]]
        assert version_of(alike) == "unknown"
    assert version_of(questions[:999]) == "unknown"


def test_groups_are_the_benchmarks(mmau):
    version, questions = mmau
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
    assert tuple(verdicts(answer, "Man", choices).values()) == expected


def test_strict_takes_duplicates_as_one_choice_and_ambiguity_as_none():
    assert strict("dog", "dog", ("dog", "dog", "cat"))
    assert not strict("5", "5", ("5", "-5"))
    assert not strict("...", "?", ("?", "yes"))
