"""Scores of made-up predictions."""

import json
import random
from dataclasses import replace

import pytest

from eval.scores import score, shares_right, surviving, tally
from r1_aqa_repro.common.errors import Refused
from r1_aqa_repro.common.intervals import effective_size, wilson
from r1_aqa_repro.data.versions import version_of
from tests.eval.made_up import about_clips, make_questions, predictions_of

KEPT, SWAPPED = ("dog", "cat"), ("cat", "dog")
GROUPS = ("task", "difficulty", "category", "sub_category")


def counted(tallies):
    return {label: (one["correct"], one["n"]) for label, one in tallies.items()}


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
    assert counted(scores["matchers"]) == {"official": (1, 6), "strict": (1, 6), "letter_aware": (2, 6)}
    assert scores["format_rate"] == pytest.approx(2 / 6)
    assert scores["baselines"] == {"chance": 50.0, "always_first": 0.0, "most_frequent": 100.0}
    assert list(scores["task"]) == ["sound", "music", "speech"]
    assert list(scores["difficulty"]) == ["easy", "hard"]
    assert scores["category"] == {}
    assert verdicts[4] == {"id": "q4", "repeat": 0, "official": False, "strict": False, "letter_aware": True}
    assert [verdict["id"] for verdict in verdicts] == [question.id for question in questions]
    assert score(questions, {}, None, "unknown")[0]["format_rate"] is None  # of an unknown style


@pytest.mark.parametrize(
    ("questions", "version"),
    [
        (make_questions(2, dataset="embedded"), "embedded"),
        (make_questions(1, dataset="embedded") + make_questions(1), "unknown"),
    ],
)
def test_what_records_call_themselves_makes_no_version(questions, version):
    """The published questions are in test_matcher."""
    assert version_of(questions) == version


def test_a_question_counts_once_however_often_it_is_asked():
    questions = make_questions(4)
    completions = [["cat"] * 4, ["cat", "cat", "cat", "dog"], ["dog", "cat", "", None], ["dog"] * 4]
    scores, verdicts = score(questions, predictions_of(questions, completions), "answer", "unknown", times=4)
    assert (scores["n"], scores["asked"], scores["missing"], scores["unparsed"]) == (4, 16, 1, 1)
    assert (scores["total"]["correct"], scores["total"]["n"]) == (pytest.approx(1 + 3 / 4 + 1 / 4), 4)
    assert scores["total"]["accuracy"] == pytest.approx(50.0)
    assert scores["total"]["ci95"] == pytest.approx([100 * bound for bound in wilson(2, 4)])
    repeats = scores["repeats"]
    assert repeats["accuracy"] == [50.0, 75.0, 50.0, 25.0]
    assert (repeats["count"], repeats["mean"], repeats["min"], repeats["max"]) == (4, 50.0, 25.0, 75.0)
    assert repeats["std"] == pytest.approx((2 * 25**2 / 3) ** 0.5)  # sample deviation of 0, 25, 0, -25
    assert (scores["missing_ids"], scores["unparsed_ids"]) == (["q2"], ["q2"])
    order = [(one["id"], one["repeat"]) for one in verdicts[:5]]
    assert order == [("q0", 0), ("q0", 1), ("q0", 2), ("q0", 3), ("q1", 0)]
    assert shares_right(verdicts)["q1"] == {"official": 0.75, "strict": 0.75, "letter_aware": 0.75}


def test_a_repeat_that_is_wholly_absent_is_missing():
    questions = make_questions(3)
    scores, _ = score(questions, predictions_of(questions, [["cat"]] * 3), "answer", "unknown", times=2)
    assert (scores["asked"], scores["missing"], scores["total"]["accuracy"]) == (6, 3, 50.0)


def test_equal_repeats_change_no_figure():
    questions = make_questions(30)
    rng = random.Random(0)
    completions = [[rng.choice(["cat", "dog", "B", "the cat"])] for _ in questions]
    once, thrice = (
        score(questions, predictions_of(questions, [row * times for row in completions]), "answer", "unknown")[0]
        for times in (1, 3)
    )
    for key in ("n", "total", "task", "difficulty", "matchers", "format_rate", "baselines", "disagreements"):
        assert once[key] == thrice[key], key
    assert (once["repeats"]["std"], thrice["repeats"]["std"]) == (None, 0)


@pytest.mark.parametrize(
    ("shares", "correct"),
    [
        ([1, 0, 1], 2),
        ([True, False], 1),
        ([1 / 3, 1 / 3, 1 / 3], 1),
        ([1 / 3, 2 / 3], 1),
        ([0.25, 0.5], 0.75),
    ],
)
def test_whole_numbers_stay_whole(shares, correct):
    found = tally(shares, range(len(shares)))["correct"]
    assert (found, type(found)) == (correct, type(correct))


def test_every_group_adds_up_to_the_whole():
    rng = random.Random(1)
    questions = [
        replace(question, category=rng.choice("xy"), sub_category=rng.choice("abc")) for question in make_questions(60)
    ]
    completions = [[rng.choice(["cat", "dog", "B", "", None]) for _ in range(3)] for _ in questions]
    scores, _ = score(questions, predictions_of(questions, completions), "answer", "unknown", times=3)
    for key in GROUPS:
        assert sum(group["n"] for group in scores[key].values()) == scores["n"] == 60
        assert sum(group["correct"] for group in scores[key].values()) == pytest.approx(scores["total"]["correct"])
        for group in scores[key].values():
            assert group["ci95"][0] <= group["accuracy"] <= group["ci95"][1]
    assert scores["matchers"]["official"] == scores["total"]
    assert scores["repeats"]["mean"] == pytest.approx(scores["total"]["accuracy"])


def test_questions_about_one_clip_are_no_independent_draws():
    """Twelve questions, three a clip, one of each task: only within a task has every question a clip of its own."""
    own, shared = make_questions(12), about_clips(make_questions(12), 3)
    completions = [["cat", "cat"]] * 5 + [["cat", "dog"]] + [["dog", "dog"]] * 6
    of_own, of_shared = (
        score(questions, predictions_of(questions, completions), "answer", "unknown", times=2)[0]
        for questions in (own, shared)
    )
    right, clips = [1] * 5 + [0.5] + [0] * 6, [0, 0, 0, 1, 1, 1, 2, 2, 2, 3, 3, 3]
    total = of_shared["total"]
    assert (total["correct"], total["n"], total["clips"], total["accuracy"]) == (5.5, 12, 4, 550 / 12)
    assert total["ci95"] == [100 * bound for bound in wilson(5.5, 12, effective_size(right, clips))]
    assert total["ci95"][0] < of_own["total"]["ci95"][0]
    assert total["ci95"][1] > of_own["total"]["ci95"][1]
    assert of_shared["matchers"]["official"] == total
    assert "clips" not in json.dumps(of_own)
    assert of_shared["task"] == of_own["task"]
    assert (of_shared["difficulty"]["hard"]["n"], of_shared["difficulty"]["hard"]["clips"]) == (6, 4)
    first, second = ([float(one[place] == "cat") for one in completions] for place in range(2))
    for ci95, verdicts in zip(of_shared["repeats"]["ci95"], (first, second), strict=True):
        assert ci95 == [100 * bound for bound in wilson(sum(verdicts), 12, effective_size(verdicts, clips))]
    changed = {key for key in of_own if of_own[key] != of_shared[key]}
    assert changed == {"total", "difficulty", "matchers", "repeats"}


def test_orders_of_questions_about_one_clip():
    questions = about_clips(make_questions(4), 2)
    predictions = predictions_of(
        questions, [["cat", "cat"], ["cat", "cat"], ["dog", "dog"], ["cat", "dog"]], (KEPT, SWAPPED)
    )
    order = score(questions, predictions, "answer", "unknown", times=2)[0]["permutation"]
    for one in (order["same_choice"], order["always_right"], *order["by_place"].values()):
        assert (one["n"], one["clips"]) == (4, 2)
    right = [1, 1, 0, 0]
    expected = [100 * bound for bound in wilson(2, 4, effective_size(right, "aabb"))]
    assert order["always_right"]["ci95"] == order["by_place"]["1"]["ci95"] == expected


def test_orders_of_the_choices():
    questions = make_questions(4)
    completions = [
        ["cat", "the cat"],  # the same choice, in other words
        ["A", "A"],  # always the first: dog, then cat
        ["dog", "dog"],  # the same, and wrong
        ["who knows", "who knows"],  # names none
    ]
    predictions = predictions_of(questions, completions, (KEPT, SWAPPED))
    scores, _ = score(questions, predictions, "answer", "unknown", times=2)
    order = scores["permutation"]
    assert order["orders"] == 2
    tallies = {key: order[key] for key in ("same_choice", "always_right")}
    assert counted(tallies) == {"same_choice": (2, 4), "always_right": (1, 4)}
    assert counted(order["by_place"]) == {"1": (1, 4), "2": (1, 4)}
    assert scores["matchers"]["letter_aware"]["correct"] == 1  # 1/2 each of the first (`the cat`) and of the second


def test_orders_and_repeats_together():
    """A question that is asked twice in each of two orders: all four answers must name the same."""
    questions = make_questions(2)
    completions = [["cat", "cat", "cat", "cat"], ["cat", "dog", "cat", "cat"]]
    predictions = predictions_of(questions, completions, (KEPT, KEPT, SWAPPED, SWAPPED))
    scores, _ = score(questions, predictions, "answer", "unknown", times=4)
    assert scores["permutation"]["same_choice"]["correct"] == 1
    assert scores["total"]["accuracy"] == pytest.approx(100 * (1 + 3 / 4) / 2)
    # the right choice stood second, as the file has it, and first: a question counts once at each place
    assert counted(scores["permutation"]["by_place"]) == {"1": (2, 2), "2": (1.5, 2)}
    repeats = scores["repeats"]
    assert (repeats["count"], repeats["accuracy"]) == (4, [100.0, 50.0, 100.0, 100.0])
    for accuracy, ci95 in zip(repeats["accuracy"], repeats["ci95"], strict=True):
        assert ci95 == pytest.approx([100 * bound for bound in wilson(accuracy / 100 * 2, 2)])


def test_what_survives_without_audio():
    questions = make_questions(10)
    with_audio, silent, nothing = (
        score(questions, predictions_of(questions, ["cat"] * right + ["dog"] * (10 - right)), "answer", "unknown")[0]
        for right in (8, 6, 0)
    )
    left = surviving(with_audio, silent)
    assert (left["accuracy"], left["n"], left["ci95"]) == (60.0, 10, silent["total"]["ci95"])
    assert (left["share"], left["share_above_chance"]) == (pytest.approx(6 / 8), pytest.approx(1 / 3))
    left = surviving(nothing, silent)
    assert (left["share"], left["share_above_chance"]) == (None, None)
    with pytest.raises(Refused, match="has n 10"):
        surviving(score(questions[:9], {}, "answer", "unknown")[0], silent)
    with pytest.raises(Refused, match="has version unknown"):
        surviving(score(questions, {}, "answer", "original")[0], silent)
