"""What every rule makes of completions of known kinds, worked out by hand from the code that each is taken from."""

from __future__ import annotations

import pytest

from eval.rules import RULES, Answer, answers_of, tallies
from r1_aqa_repro.data.answers import answer_of, mentioned
from tests.eval.made_up import CHOICES, about_clips, evaluation_of, make_questions, predictions_of

SPOKEN = "Yes, it is a woman who is speaking, not a child."


def answer(completion, gold="Woman", choices=CHOICES):
    parsed = None if completion is None else answer_of(completion)
    return Answer("q", 0, completion, parsed, gold, choices)


# of Man, Woman, Child, Robot `Woman` is right
# official, official_answered, letter_lmms, letter_lmms_mmau, exact_alnum, strict, letter_aware, named_last
KINDS = {
    "Woman": (1, 1, 0.25, 0.25, 0, 1, 1, 1),
    "<answer>Woman</answer>": (1, 1, 0.25, 0.25, 1, 1, 1, 1),
    "<answer> woman! </answer>": (1, 1, 0.25, 0.25, 1, 1, 1, 1),
    "<answer>Man</answer>": (0, 0, 0.25, 0.25, 0, 0, 0, 0),
    "<answer>B</answer>": (0, 0, 0.25, 0.25, 0, 0, 1, 1),
    "<answer>(B)</answer>": (0, 0, 1, 1, 0, 0, 1, 1),
    "<answer>(B) Woman</answer>": (1, 1, 1, 1, 0, 0, 1, 1),
    "<answer>B. Woman</answer>": (1, 1, 1, 1, 0, 0, 1, 1),
    "<answer>Woman": (1, 1, 0.25, 0.25, 0, 0, 0, 1),  # an unclosed tag: the whole completion is the answer
    "B": (0, 0, 1, 1, 0, 0, 1, 1),
    "B.": (0, 0, 1, 1, 0, 0, 1, 1),
    "b": (0, 0, 0.25, 0.25, 0, 0, 1, 1),
    "B. Man": (0, 0, 1, 1, 0, 0, 0, 0),
    "(A) or rather (C), no, (B)": (0, 0, 1, 0, 0, 0, 0, 0),  # mmau takes the first of letters in brackets
    "(B), not (A)": (0, 0, 0, 0, 0, 0, 0, 0),
    "A or B or B, not C": (0, 0, 0, 0, 0, 0, 0, 0),
    "C or B": (0, 0, 1, 1, 0, 0, 0, 0),
    "The USA anthem": (0, 0, 0, 0.25, 0, 0, 0, 0),  # `A ` at the end of a word
    "The man and the woman": (0, 0, 0.25, 0.25, 0, 0, 0, 1),
    "The woman and the man": (0, 0, 0.25, 0.25, 0, 0, 0, 0),
    SPOKEN: (0, 0, 0, 0.25, 0, 0, 0, 0),
    "I am sure it is a woman": (1, 1, 0, 0.25, 0, 0, 0, 1),  # `man` begins later in it than `woman`
    "<think>A man?</think> <answer>Woman</answer>": (1, 1, 0, 0.25, 1, 1, 1, 1),  # `A ` is an article
    "<answer>Woman</answer><answer>Man</answer>": (1, 1, 0.25, 0.25, 0, 1, 1, 0),
    "<answer></answer>Woman": (0, 0, 0.25, 0.25, 0, 0, 0, 1),
    "": (0, 0, 0.25, 0.25, 0, 0, 0, 0),
    None: (0, None, 0.25, 0.25, 0, 0, 0, 0),
}


@pytest.mark.parametrize("completion", KINDS, ids=repr)
def test_every_rule_on_a_known_kind(completion):
    expected = dict(zip(RULES, KINDS[completion], strict=True))
    assert {name: reading.share for name, reading in answer(completion).readings.items()} == expected


@pytest.mark.parametrize(
    ("choices", "gold", "completion", "lmms", "mmau"),
    [
        (("yes", "no"), "no", "?", 1 / 2, 1 / 4),  # two of the four letters are no choice
        (("a", "b", "c", "d", "e"), "e", "?", 1 / 5, 0),  # E is never drawn
        (("a", "b", "c", "d", "e"), "e", "E", 1, 0),  # nor looked for
        (("yes", "no"), "no", "D", 1 / 2, 0),  # the letter of no choice
        (("dog", "dog", "cat"), "dog", "?", 2 / 3, 2 / 4),
        (("dog", "dog", "cat"), "dog", "(B)", 1, 1),
    ],
)
def test_lmms_letters_where_there_are_not_four_choices(choices, gold, completion, lmms, mmau):
    readings = answer(completion, gold, choices).readings
    assert readings["letter_lmms"].share == pytest.approx(lmms)
    assert readings["letter_lmms_mmau"].share == pytest.approx(mmau)


def test_exact_alnum_reads_from_the_first_opening_to_the_last_closing_tag():
    for completion, right in (
        ("<answer>Old-Man 1!</answer>", 1),
        ("<answer>old<answer>man1</answer></answer>", 0),
        ("</answer>oldman1<answer>", 0),
        ("<answer>old</answer>man1</answer>", 0),
        ("<answer>" * 20_000 + "oldman1", 0),  # in no time
    ):
        assert answer(completion, "old man 1", ("old man 1", "boy")).readings["exact_alnum"].share == right


@pytest.mark.parametrize(
    ("completion", "choices", "expected"),
    [
        ("an old man, then a Man.", ("man", "old man", "woman"), ["old man", "man"]),
        ("MAN and woman and man", ("man", "woman"), ["woman", "man"]),
        ("a woman", ("man", "woman"), ["woman"]),
        ("it is -5", ("5", "-5"), ["-5"]),
        ("it is 5", ("5", "-5"), ["5"]),
        ("dark</think><answer>red</answer>", ("dark red", "red"), ["red"]),
        ("dark \n red", ("dark red", "red"), ["dark red"]),
        ("<answer>cat</answer>", ("answer", "dog"), []),
        ("Yes, it does", ("Yes.", "No."), ["Yes."]),
        ("dog", ("Dog", "dog", "cat"), []),
        ("dog", ("dog", "dog", "cat"), ["dog"]),
        ("a.c (x", ("a.c", "(x", "abc"), ["a.c", "(x"]),
        ("what?", ("?", "!"), []),
        ("?", ("?", "!"), ["?"]),
    ],
)
def test_mentioned_choices_by_their_last_mention(completion, choices, expected):
    assert mentioned(completion, choices) == expected


@pytest.mark.parametrize(
    ("completion", "names", "saw"),
    [
        (None, "there is no prediction", {
            "official": "counts that as wrong",
            "official_answered": "leaves the question out",
            "letter_lmms": "finds no letter, looks for no text in 5 words or fewer, and would draw one of 4 letters",
        }),
        ("", "the completion names no choice by its text, and no answer can be parsed from it", {
            "strict": "has no answer to read",
            "exact_alnum": "finds no answer tags",
            "named_last": "finds no choice",
        }),
        (SPOKEN, "the completion names 2 choices, 'Woman' and last 'Child'", {
            "official": "finds all words of the right choice, but also 'child' of other choices",
            "letter_lmms": "finds no letter but the texts of 3 choices and takes the last, choice C, 'Child'",
            "named_last": "takes 'Child'",
        }),
        ("<answer>Man or child</answer>", "the completion names 2 choices, 'Man' and last 'Child'", {
            "official": "misses 'woman' of the right choice and finds 'child', 'man' of other choices",
            "exact_alnum": "reads 'manorchild', not 'woman'",
            "strict": "reads 'Man or child', not one choice and nothing else",
            "letter_aware": "reads 'Man or child', neither the text nor the letter of one choice",
        }),
        ("B", "the completion names no choice by its text", {
            "official": "misses 'woman' of the right choice",
            "letter_lmms": "finds 'B ', choice B, 'Woman'",
            "letter_aware": "reads 'B', choice B, 'Woman'",
            "named_last": "finds no text, but choice B, 'Woman'",
        }),
        ("(A) not (B)", "the completion names no choice by its text", {
            "letter_lmms": "finds '(A)' and '(B)' and takes B, choice B, 'Woman'",
            "letter_lmms_mmau": "finds '(A)' and '(B)' and takes A, choice A, 'Man'",
        }),
        ("Man", "the completion names one choice, 'Man'", {"strict": "reads 'Man', another choice"}),
        ("?!", "the completion names no choice by its text", {"official": "finds no word in the answer"}),
    ],
)  # fmt: skip
def test_what_a_rule_saw_is_said(completion, names, saw):
    one = answer(completion)
    assert one.names == names
    assert {name: one.readings[name].saw for name in saw} == saw


def test_tallies_count_a_question_once_and_clips_as_independent():
    """Of `dog` and `cat` the second is right. Four questions about two clips are asked twice each."""
    questions = about_clips(make_questions(4), 2)
    completions = [["cat", "B"], ["cat", None], [None, None], ["dog", "<answer>cat</answer>"]]
    run = evaluation_of(questions, predictions_of(questions, completions), {"repeats": 2})
    found = tallies(run, answers_of(run))
    correct = {
        "official": 0.5 + 0.5 + 0 + 0.5,
        "official_answered": 0.5 + 1 + 0.5,
        "letter_lmms": 0.75 + 0.5 + 0.5 + 0.5,  # every guess is 1/2
        "letter_lmms_mmau": 0.625 + 0.25 + 0.25 + 0.25,
        "exact_alnum": 0.5,
        "strict": 0.5 + 0.5 + 0.5,
        "letter_aware": 1 + 0.5 + 0.5,
        "named_last": 1 + 0.5 + 0.5,
    }
    assert {name: one["correct"] for name, one in found.items()} == pytest.approx(correct)
    assert [found[name]["n"] for name in correct] == [4, 3, 4, 4, 4, 4, 4, 4]
    assert [found[name]["clips"] for name in correct] == [2] * 8
    for name in ("official", "strict", "letter_aware"):
        assert found[name] == run.scores["matchers"][name]


def test_letters_are_those_of_the_order_asked_in():
    questions = make_questions(1)
    orders = [("dog", "cat"), ("cat", "dog")]
    run = evaluation_of(questions, predictions_of(questions, [["(B)", "(B)"]], orders), {"permute_choices": 2})
    shares = [{name: one.readings[name].share for name in ("letter_lmms", "named_last")} for one in answers_of(run)]
    assert shares == [{"letter_lmms": 1, "named_last": 1}, {"letter_lmms": 0, "named_last": 0}]


def test_a_rule_that_leaves_everything_out_has_no_tally():
    questions = make_questions(2)
    run = evaluation_of(questions, {}, {})
    assert set(RULES) - set(tallies(run, answers_of(run))) == {"official_answered"}
