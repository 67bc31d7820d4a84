"""Completions as models write them, and what is read from them."""

import time

import pytest

from r1_aqa_repro.data.answers import (
    answer_begins,
    answer_of,
    answers_of,
    follows_format,
    is_correct,
    is_letter_alone,
    match_choice,
    named_choice,
)

CHOICES = ("Man", "Woman", "Child", "Robot")


@pytest.mark.parametrize(
    ("completion", "answer"),
    [
        ("<answer>Man</answer>", "Man"),
        ("<answer> Man\n</answer>", "Man"),
        ("<answer>\nMan\n</answer>", "Man"),
        ("<think>A woman? No.</think><answer>Man</answer>", "Man"),
        ("Surely <answer>Man</answer>.", "Man"),
        ("<answer>Man</answer><answer>Woman</answer>", "Man"),  # the first of several
        ("<answer></answer><answer>Man</answer>", None),
        ("<answer> \n</answer>", None),
        ("", None),
        (" \n\t", None),
        ("Man", "Man"),
        (" Man. ", "Man."),
        ("<answer>Man", "<answer>Man"),  # an unclosed tag is no block
        ("Man</answer>", "Man</answer>"),
        ("<answer><answer>Man</answer></answer>", "<answer>Man"),
        ("</answer>Man<answer>", "</answer>Man<answer>"),
        ("<ANSWER>Man</ANSWER>", "<ANSWER>Man</ANSWER>"),
        ("<answer>“Man”</answer>", "“Man”"),
    ],
)
def test_parsed_answer(completion, answer):
    assert answer_of(completion) == answer


def test_every_block_is_kept():
    assert answers_of("<answer>a</answer> or <answer> b </answer>") == ("a", "b")


@pytest.mark.parametrize(
    ("answer", "index"),
    [
        ("Woman", 1),
        ("woman", 1),
        ("  WOMAN.\n", 1),
        ('"Woman"', 1),
        ("“Woman”", 1),
        ("**Woman**", 1),
        ("Ｗｏｍａｎ", 1),  # full-width letters
        ("B", 1),
        ("b", 1),
        ("(B)", 1),
        ("B.", 1),
        ("B) Woman", 1),
        ("(B) Woman", 1),
        ("B: woman.", 1),
        ("B. Man", None),  # a letter with another choice's text
        ("B. a wrong text", None),
        ("B Woman", None),
        ("E", None),
        ("E. Woman", None),
        ("Man or Woman", None),
        ("not Man", None),
        ("The answer is Woman", None),
        ("Wo man", None),
        ("<answer>Woman", None),
        ("...", None),
        ("", None),
    ],
)
def test_matched_choice(answer, index):
    assert match_choice(answer, CHOICES) == index


NOTES, TWINS, SIGNS = ("C", "B", "A", "D"), ("cat", "dog", "dog"), ("-5", "5")


@pytest.mark.parametrize(
    ("answer", "choices", "index"),
    [
        ("A", NOTES, 2),  # a letter is text where choices are letters
        ("(b)", NOTES, 1),
        ("E", NOTES, None),
        ("A. C", NOTES, 0),  # with its text it is a label again
        ("A", ("Note B", "C", "D"), None),  # one letter among the choices is enough
        ("dog", TWINS, 1),  # duplicate choices are the same answer
        ("5", SIGNS, 1),
        ("-5", SIGNS, 0),
        ("5.", SIGNS, None),  # without punctuation it fits both
        ("us", ("US", "us"), None),
    ],
)
def test_matched_choice_among_choices_that_are_alike(answer, choices, index):
    assert match_choice(answer, choices) == index


@pytest.mark.parametrize(
    ("answer", "named"),
    [
        ("woman", "Woman"),
        ("B", "Woman"),
        ("it is a man", "Man"),
        ("man or woman", None),
        ("nobody", None),
        ("", None),
    ],
)
def test_named_choice(answer, named):
    assert named_choice(answer, ("Man", "Woman")) == named


@pytest.mark.parametrize("answer", ["B", "b", " (B) ", "B.", "B:", "**B**"])
def test_a_letter_alone_stands_for_a_choice(answer):
    assert is_letter_alone(answer, CHOICES)
    assert not is_letter_alone(answer, NOTES)  # there it is the choice's text
    assert not is_letter_alone(answer, CHOICES[:1])  # there is no second choice


@pytest.mark.parametrize("answer", ["B. Woman", "Woman", "A and B", "E", "1", "", "?"])
def test_other_answers_are_no_letter_alone(answer):
    assert not is_letter_alone(answer, CHOICES)


def test_an_answer_is_correct_however_it_is_written():
    assert is_correct("C", "dog", TWINS)
    assert is_correct("Straße", "STRASSE", ("STRASSE", "Weg"))
    assert is_correct("café", "cafe\u0301", ("cafe\u0301", "bar"))  # composed and decomposed accents


@pytest.mark.parametrize(
    ("completion", "styles"),
    [
        ("<answer>Man</answer>", {"answer"}),
        (" <answer>Man</answer>\n", {"answer"}),
        ("<answer>two\nlines</answer>", {"answer"}),
        ("<think>Hm.</think><answer>Man</answer>", {"think"}),
        ("<think>Hm.</think>\n\n<answer>Man</answer>", {"think"}),
        ("Man", {"direct"}),
        ("Man < Woman", set()),
        ("", set()),
        (" ", set()),
        ("<answer></answer>", set()),
        ("<answer> </answer>", set()),
        ("<think></think><answer>Man</answer>", set()),
        ("<answer>Man", set()),
        ("<answer>Man</answer> indeed", set()),
        ("So: <answer>Man</answer>", set()),
        ("<answer>Man</answer><answer>Man</answer>", set()),
        ("<answer><answer>Man</answer></answer>", set()),
        ("<think>a</think><think>b</think><answer>Man</answer>", set()),
        ("<think>a<answer>b</answer></think><answer>Man</answer>", set()),
        ("<answer>Man</answer><think>Hm.</think>", set()),
    ],
)
def test_format(completion, styles):
    assert {style for style in ("direct", "answer", "think") if follows_format(completion, style)} == styles


def test_unclosed_tags_take_linear_time():
    """100,000 characters of opening tags; searched to the end from each of them they took nine seconds."""
    began = time.perf_counter()
    answers = answers_of("<answer>" * 12_500)
    assert time.perf_counter() - began < 1
    assert answers == ("<answer>" * 12_500,)
    assert answers_of("<answer>a</answer> <answer>b") == ("a",)


@pytest.mark.parametrize(
    ("completion", "think", "answer"),
    [
        ("<think>It barks.</think> <answer>dog</answer>", 25, 25),
        ("So: <answer>dog</answer>", None, 4),
        ("<answer>dog", None, 0),  # cut off in the answer
        ("<think>a</think><answer> </answer>", None, None),  # says nothing
        ("<think>a</think><answer>", None, None),
        ("<think>a</think> dog", None, None),
        ("<think>a <answer>dog</answer>", None, 9),
        ("<answer>dog</answer><think>a</think>", None, 0),
        ("<think>a</think><think>b</think><answer>dog</answer>", None, 32),
        ("<think>a</think><answer>dog</answer><answer>cat</answer>", None, None),
        ("dog", None, None),
    ],
)
def test_where_reasoning_ends(completion: str, think: int | None, answer: int | None) -> None:
    assert (answer_begins(completion, "think"), answer_begins(completion, "answer")) == (think, answer)
