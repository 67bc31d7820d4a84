"""Completions as models write them, and what is read from them."""

import time

import pytest

from r1_aqa_repro.data.answers import answer_of, answers_of, follows_format, is_correct, match_choice

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
        ("‘Woman’", 1),
        ("«Woman»", 1),
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
        ("Man, Woman", None),
        ("A and B", None),
        ("not Man", None),
        ("The answer is Woman", None),
        ("Wo man", None),
        ("<answer>Woman", None),
        ("...", None),
        ("", None),
    ],
)
def test_named_choice(answer, index):
    assert match_choice(answer, CHOICES) == index


def test_a_letter_is_text_where_choices_are_letters():
    notes = ("C", "B", "A", "D")
    assert match_choice("A", notes) == 2
    assert match_choice("(b)", notes) == 1
    assert match_choice("E", notes) is None
    assert match_choice("A", ("Note B", "C", "D")) is None  # one letter among the choices is enough
    assert match_choice("A. C", notes) == 0  # with its text it is a label again


def test_duplicate_choices_are_the_same_answer():
    assert match_choice("dog", ("cat", "dog", "dog")) == 1
    assert is_correct("C", "dog", ("cat", "dog", "dog"))


def test_choices_that_differ_in_punctuation_or_case_only():
    assert match_choice("5", ("-5", "5")) == 1
    assert match_choice("-5", ("-5", "5")) == 0
    assert match_choice("5.", ("-5", "5")) is None  # without punctuation it fits both
    assert match_choice("us", ("US", "us")) is None


def test_an_answer_is_correct_however_its_letters_are_written():
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
