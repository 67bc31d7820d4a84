"""Choices with letters: what is read, and what is a bad record because it could be read in two ways or in none."""

import pytest

from data_prep.lettered import meant, spelled_out
from r1_aqa_repro.data.records import BadRecord

HEADING = "Please choose the answer from the following options:"
CHOICES = ("3", "One", "4", "2")


@pytest.mark.parametrize(
    ("text", "question", "choices", "rest"),
    [
        ("How many?\nChoices:\nA. 3\nB. One\nC. 4\nD. 2", "How many?", CHOICES, ""),  # as gijs/avqa-processed has it
        ("How many?\r\nOptions:\r\n(A) 3\r\n(B) One\r\n", "How many?", CHOICES[:2], ""),
        ("How\nmany? \n\nA) 3\n\n  B:  One \n", "How\nmany?", CHOICES[:2], ""),
        ("Which?\nChoices:\nA. A. B. King\nB. C.", "Which?", ("A. B. King", "C."), ""),
        ("A. what?\nchoices:\nA. x\nB. ", "A. what?", ("x", ""), ""),
        (f"Q\n{HEADING}\nA. x\nB. y\nAnswer\nnow", "Q", ("x", "y"), "Answer\nnow"),
    ],
    ids=range(6),
)  # fmt: skip
def test_question_and_choices_of_one_text(text, question, choices, rest):
    assert spelled_out(text) == (question, choices, rest)


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("How many?", "has no `Choices:`"),
        ("How many?\nChoices:\n3\nOne", "has no `Choices:`"),
        ("How many?\nB. 3\nC. One", "has no `Choices:`"),
        ("How many?\nChoices:\nA. 3\nC. 4", "lettered A, C, not A, B"),
        ("How many?\nChoices:\nB. 3\nA. 4", "lettered B, A, not A, B"),
        ("How many?\nChoices:\nA. 3\nor so\nB. 4", "has no letter: 'or so'"),
    ],
)
def test_choices_that_cannot_be_told_apart_are_a_bad_record(text, what):
    with pytest.raises(BadRecord, match=what):
        spelled_out(text)


@pytest.mark.parametrize(
    ("answer", "choices", "expected"),
    [
        ("One", CHOICES, "One"),
        (" One ", CHOICES, "One"),
        ("B", CHOICES, "One"),
        ("(B)", CHOICES, "One"),
        ("B.", CHOICES, "One"),
        ("B. One", CHOICES, "One"),
        ("C. elegans", ("C. elegans", "dog", "worm"), "C. elegans"),
        ("A", ("A", "B"), "A"),  # both readings name the same
        ("A. B", ("B", "A"), "B"),
        ("(C)", CHOICES, "4"),
        ("dog", ("dog", "dog"), "dog"),
    ],
)
def test_an_answer_names_a_choice_by_text_by_letter_or_by_both(answer, choices, expected):
    assert meant(answer, choices) == expected


@pytest.mark.parametrize(
    ("answer", "choices", "what"),
    [
        ("E", CHOICES, "is neither one of the choices"),
        ("five", CHOICES, "is neither one of the choices"),
        ("one", CHOICES, "is neither one of the choices"),
        ("", CHOICES, "is neither one of the choices"),
        ("B. 4", CHOICES, "is neither one of the choices"),  # letter and text of different choices
        ("A, B", CHOICES, "is neither one of the choices"),
        ("A", ("B", "A"), "the text of one choice and the letter of another"),
    ],
)
def test_an_answer_that_names_no_choice_or_two_is_a_bad_record(answer, choices, what):
    with pytest.raises(BadRecord, match=what):
        meant(answer, choices)
