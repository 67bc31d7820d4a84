"""Scores of made-up predictions."""

import random
from dataclasses import replace
from itertools import permutations
from pathlib import Path

import pytest

from eval.predictions import predict
from eval.scores import score, shares_right, surviving, tally
from r1_aqa_repro.common.errors import Refused
from r1_aqa_repro.common.intervals import wilson
from r1_aqa_repro.data.mmau_versions import version_of
from r1_aqa_repro.data.questions import AudioQuestion


def make_questions(n, **fields):
    return [
        AudioQuestion(
            id=f"q{index}",
            audio_path=Path(f"/clips/{index}.wav"),
            question="What is it?",
            choices=("dog", "cat"),
            answer="cat",
            task=("sound", "music", "speech")[index % 3],
            difficulty=("hard", "easy")[index % 2],
            **fields,
        )
        for index in range(n)
    ]


def predictions_of(questions, completions):
    return {
        (question.id, 0): predict(question, completion, "answer", "settings")
        for question, completion in zip(questions, completions, strict=False)
    }


def test_every_kind_of_prediction():
    questions = make_questions(6)
    completions = [
        "<answer>cat</answer>",
        "<answer>dog</answer>",
        "<answer></answer>",
        None,
        "B",
    ]  # the sixth is absent
    scores, verdicts = score(questions, predictions_of(questions, completions), "answer", "unknown")
    assert (scores["n"], scores["missing"], scores["unparsed"], scores["no_audio"]) == (6, 2, 1, ["q3"])
    assert (scores["total"]["correct"], scores["total"]["n"]) == (1, 6)
    assert scores["total"]["accuracy"] == pytest.approx(100 / 6)
    assert scores["total"]["ci95"] == pytest.approx([3.005, 56.350], abs=1e-3)
    assert {name: total["correct"] for name, total in scores["matchers"].items()} == {
        "official": 1,
        "strict": 1,
        "letter_aware": 2,
    }
    assert scores["format_rate"] == pytest.approx(2 / 6)
    assert scores["baselines"] == {"chance": 50.0, "always_first": 0.0, "most_frequent": 100.0}
    assert list(scores["task"]) == ["sound", "music", "speech"]
    assert list(scores["difficulty"]) == ["easy", "hard"]
    assert scores["category"] == {}
    assert verdicts[4] == {"id": "q4", "repeat": 0, "official": False, "strict": False, "letter_aware": True}
    assert [verdict["id"] for verdict in verdicts] == [question.id for question in questions]


def test_versions():
    """What records call themselves counts for nothing; the published questions are in test_matcher."""
    assert version_of("?", make_questions(2, version="original")) == "unknown"
    assert version_of("?", make_questions(1000, version="v05.15.25")) == "unknown"
    assert version_of("?", make_questions(2)) == "unknown"
    assert version_of("?", make_questions(2, dataset="embedded")) == "embedded"
    assert version_of("?", make_questions(1, dataset="embedded") + make_questions(1)) == "unknown"


def repeated(questions, completions):
    """Predictions of a list of completions a question, by question and repeat."""
    return {
        (question.id, repeat): predict(question, completion, "answer", "settings", repeat)
        for question, row in zip(questions, completions, strict=True)
        for repeat, completion in enumerate(row)
        if completion is not None
    }


def test_a_question_counts_once_however_often_it_is_asked():
    questions = make_questions(4)
    completions = [["cat"] * 4, ["cat", "cat", "cat", "dog"], ["dog", "cat", "", None], ["dog"] * 4]
    scores, verdicts = score(questions, repeated(questions, completions), "answer", "unknown", times=4)
    assert (scores["n"], scores["asked"], scores["missing"], scores["unparsed"]) == (4, 16, 1, 1)
    assert scores["total"]["n"] == 4
    assert scores["total"]["correct"] == pytest.approx(1 + 3 / 4 + 1 / 4)
    assert scores["total"]["accuracy"] == pytest.approx(50.0)
    assert scores["total"]["ci95"] == pytest.approx([100 * bound for bound in wilson(2, 4)])
    repeats = scores["repeats"]
    assert repeats["accuracy"] == [50.0, 75.0, 50.0, 25.0]
    assert (repeats["count"], repeats["mean"], repeats["min"], repeats["max"]) == (4, 50.0, 25.0, 75.0)
    assert repeats["std"] == pytest.approx((2 * 25**2 / 3) ** 0.5)  # sample deviation of 0, 25, 0, -25
    assert (scores["missing_ids"], scores["unparsed_ids"]) == (["q2"], ["q2"])
    assert [(one["id"], one["repeat"]) for one in verdicts[:5]] == [
        ("q0", 0),
        ("q0", 1),
        ("q0", 2),
        ("q0", 3),
        ("q1", 0),
    ]
    assert shares_right(verdicts)["q1"] == {"official": 0.75, "strict": 0.75, "letter_aware": 0.75}


def test_a_repeat_that_is_wholly_absent_is_missing():
    questions = make_questions(3)
    scores, _ = score(questions, repeated(questions, [["cat"]] * 3), "answer", "unknown", times=2)
    assert (scores["asked"], scores["missing"], scores["total"]["accuracy"]) == (6, 3, 50.0)


def test_equal_repeats_change_no_figure():
    questions = make_questions(30)
    rng = random.Random(0)
    completions = [[rng.choice(["cat", "dog", "B", "the cat"])] for _ in questions]
    once, _ = score(questions, repeated(questions, completions), "answer", "unknown")
    thrice, _ = score(questions, repeated(questions, [row * 3 for row in completions]), "answer", "unknown")
    for key in ("n", "total", "task", "difficulty", "matchers", "format_rate", "baselines", "disagreements"):
        assert once[key] == thrice[key], key
    assert thrice["repeats"]["std"] == 0
    assert once["repeats"]["std"] is None


def test_whole_numbers_stay_whole():
    assert tally([1, 0, 1])["correct"] == 2
    assert isinstance(tally([True, False])["correct"], int)
    assert tally([1 / 3, 1 / 3, 1 / 3])["correct"] == 1
    assert isinstance(tally([1 / 3, 2 / 3])["correct"], int)
    assert tally([0.25, 0.5])["correct"] == 0.75


def test_every_group_adds_up_to_the_whole():
    rng = random.Random(1)
    questions = [
        replace(question, category=rng.choice("xy"), sub_category=rng.choice("abc")) for question in make_questions(60)
    ]
    completions = [[rng.choice(["cat", "dog", "B", "", None]) for _ in range(3)] for _ in questions]
    scores, _ = score(questions, repeated(questions, completions), "answer", "unknown", times=3)
    for key in ("task", "difficulty", "category", "sub_category"):
        assert sum(group["n"] for group in scores[key].values()) == scores["n"] == 60
        assert sum(group["correct"] for group in scores[key].values()) == pytest.approx(scores["total"]["correct"])
        for group in scores[key].values():
            assert group["ci95"][0] <= group["accuracy"] <= group["ci95"][1]
    assert scores["matchers"]["official"] == scores["total"]
    assert scores["repeats"]["mean"] == pytest.approx(scores["total"]["accuracy"])


def test_the_order_of_questions_and_predictions_changes_nothing():
    questions = make_questions(12)
    predictions = repeated(questions, [["cat", "dog"]] * 5 + [["dog", "B"]] * 7)
    scores, verdicts = score(questions, predictions, "answer", "unknown")
    backwards = dict(reversed(predictions.items()))
    assert score(questions, backwards, "answer", "unknown") == (scores, verdicts)
    other, _ = score(questions[::-1], predictions, "answer", "unknown")
    assert {key: other[key] for key in ("total", "task", "matchers")} == {
        key: scores[key] for key in ("total", "task", "matchers")
    }


def permuted(question, completions_by_order, repeats=1):
    """Predictions of one question asked in several orders; each completion is of one (order, repeat)."""
    found, number = {}, 0
    for choices, completions in completions_by_order:
        asked = replace(question, choices=choices)
        for completion in completions:
            found[question.id, number] = predict(asked, completion, "answer", "settings", number, permuted=True)
            number += 1
    return found


def test_orders_of_the_choices():
    kept, swapped = ("dog", "cat"), ("cat", "dog")
    questions = make_questions(4)
    predictions = {
        **permuted(questions[0], [(kept, ["cat"]), (swapped, ["the cat"])]),  # the same choice, in other words
        **permuted(questions[1], [(kept, ["A"]), (swapped, ["A"])]),  # always the first: dog, then cat
        **permuted(questions[2], [(kept, ["dog"]), (swapped, ["dog"])]),  # the same, and wrong
        **permuted(questions[3], [(kept, ["who knows"]), (swapped, ["who knows"])]),  # names none
    }
    scores, _ = score(questions, predictions, "answer", "unknown", times=2)
    order = scores["permutation"]
    assert order["orders"] == 2
    assert (order["same_choice"]["correct"], order["same_choice"]["n"]) == (2, 4)
    assert (order["always_right"]["correct"], order["always_right"]["n"]) == (1, 4)
    assert {place: (one["correct"], one["n"]) for place, one in order["by_place"].items()} == {"1": (1, 4), "2": (1, 4)}
    assert scores["matchers"]["letter_aware"]["correct"] == 1  # 1/2 each of the first (`the cat`) and of the second


def test_orders_and_repeats_together():
    """A question that is asked twice in each of two orders: all four answers must name the same."""
    questions = make_questions(2)
    kept, swapped = ("dog", "cat"), ("cat", "dog")
    predictions = {
        **permuted(questions[0], [(kept, ["cat", "cat"]), (swapped, ["cat", "cat"])]),
        **permuted(questions[1], [(kept, ["cat", "dog"]), (swapped, ["cat", "cat"])]),
    }
    scores, _ = score(questions, predictions, "answer", "unknown", times=4)
    assert scores["permutation"]["same_choice"]["correct"] == 1
    assert scores["total"]["accuracy"] == pytest.approx(100 * (1 + 3 / 4) / 2)
    # the right choice stood second, as the file has it, and first: a question counts once at each place
    assert {place: (one["correct"], one["n"]) for place, one in scores["permutation"]["by_place"].items()} == {
        "1": (2, 2),
        "2": (1.5, 2),
    }
    repeats = scores["repeats"]
    assert (repeats["count"], repeats["accuracy"]) == (4, [100.0, 50.0, 100.0, 100.0])
    for accuracy, ci95 in zip(repeats["accuracy"], repeats["ci95"], strict=True):
        assert ci95 == pytest.approx([100 * bound for bound in wilson(accuracy / 100 * 2, 2)])


def test_who_always_answers_the_first_is_found_out():
    """Over all orders of three choices: right in a third of them, the same choice never."""
    choices = ("dog", "cat", "cow")
    questions = [replace(question, choices=choices) for question in make_questions(5)]
    orders = list(permutations(choices))
    predictions = {}
    for question in questions:
        predictions |= permuted(question, [(order, ["A"]) for order in orders])
    scores, _ = score(questions, predictions, "answer", "unknown", times=len(orders))
    assert scores["matchers"]["letter_aware"]["accuracy"] == pytest.approx(100 / 3)
    assert scores["permutation"]["same_choice"]["correct"] == 0


def test_most_frequent_leaves_the_question_itself_out():
    questions = make_questions(3)
    questions[2] = replace(questions[2], answer="dog")
    # `cat` answers two, `dog` one: to the third question `dog`, right only here, is no hint
    scores, _ = score(questions, {}, "answer", "unknown")
    # of the first two, one other says cat and one dog: the first choice, dog, is taken
    assert scores["baselines"]["most_frequent"] == 0.0
    more = [*questions, *(replace(question, id=f"more {question.id}") for question in make_questions(3))]
    assert score(more, {}, "answer", "unknown")[0]["baselines"]["most_frequent"] == pytest.approx(100 * 5 / 6)


def test_what_survives_without_audio():
    questions = make_questions(10)
    sighted, _ = score(questions, predictions_of(questions, ["cat"] * 8 + ["dog"] * 2), "answer", "unknown")
    blind, _ = score(questions, predictions_of(questions, ["cat"] * 6 + ["dog"] * 4), "answer", "unknown")
    left = surviving(sighted, blind)
    assert (left["accuracy"], left["n"], left["ci95"]) == (60.0, 10, blind["total"]["ci95"])
    assert left["share"] == pytest.approx(6 / 8)
    assert left["share_above_chance"] == pytest.approx(1 / 3)
    nothing, _ = score(questions, {}, "answer", "unknown")
    assert surviving(nothing, blind)["share"] is None
    with pytest.raises(Refused, match="has n 10"):
        surviving(score(questions[:9], {}, "answer", "unknown")[0], blind)
    with pytest.raises(Refused, match="has version unknown"):
        surviving(score(questions, {}, "answer", "original")[0], blind)
