"""Figures of a study made by hand: 12 questions, two seeds, arms that were run, half run and not run."""

from dataclasses import replace

import pytest

from eval.reproduction.bundle import collect
from eval.reproduction.figures import compute
from r1_aqa_repro.common.errors import Refused
from r1_aqa_repro.common.intervals import paired_gain
from r1_aqa_repro.data.questions import read_questions, write_manifest
from tests.eval.reproduction.study_folder import RIGHT, write_evaluation, write_study
from tests.files import read_json, write_json

NOT_RUN = {"status": "not run"}


@pytest.fixture(scope="module")
def figures(sealed):
    return read_json(sealed / "figures.json")


def row_of(figures, name):
    return next(row for row in figures["table"] if row["row"] == name)


def shares(*digits):
    """The mean over seeds of each question."""
    return [sum(map(int, column)) / len(digits) for column in zip(*digits, strict=True)]


def interval(before, after, clips=None):
    return [100 * bound for bound in paired_gain(before, after, clips)[1:]]


def test_a_row_has_the_mean_the_spread_and_the_interval_of_its_seeds(figures):
    row = row_of(figures, "grpo")
    assert [row["seeds"][seed]["total"]["correct"] for seed in ("1", "2")] == [10, 9]
    assert row["mean"] == pytest.approx(100 * 19 / 24)
    assert row["spread"] == pytest.approx(100 / 12 / 2**0.5)  # 10/12 and 9/12
    own = shares(RIGHT["arms/grpo/seed-1/test"], RIGHT["arms/grpo/seed-2/test"])
    assert row["ci95"] == pytest.approx(interval([0.0] * 12, own))
    # q0, q3, q6, q9: 3 and 4 of 4
    assert row["task"] == pytest.approx({"sound": 87.5, "music": 75, "speech": 75})
    assert list(row["task"]) == figures["labels"]["task"] == ["sound", "music", "speech"]
    over = row["over_base"]
    assert (over["first"], over["second"]) == pytest.approx((100 * 2 / 12, 100 * 19 / 24))
    assert over["ci95"] == pytest.approx(interval(shares(RIGHT["base/test"]), own))
    assert (over["first_only"], over["second_only"]) == (2, 9)


def test_the_paper_is_beside_the_row_and_the_rehearsal_says_what_it_is(figures):
    row = row_of(figures, "grpo")
    assert row["published"]["total"] == 64.5 and row["status"] == row["seeds"]["1"]["status"] == "rehearsed"
    assert figures["status"] == "rehearsed" and figures["version"] == "embedded"
    assert figures["questions"] == {"n": 12, "train": 40, "held_out": 6}
    assert figures["chance"] == 50


def test_what_was_not_run_has_no_figure(figures):
    coin = row_of(figures, "grpo_coin")
    assert coin["status"] == "not run" and "mean" not in coin and "seeds" not in coin
    think = row_of(figures, "grpo_think")
    assert think["status"] == "rehearsed" and think["seeds"]["2"] == NOT_RUN and think["n_seeds"] == 1
    assert think["spread"] is None and think["on_test"] is None and think["on_test_mean"] is None
    assert think["controls"] == {"no_audio": NOT_RUN, "permuted": NOT_RUN}
    assert figures["overlap"] == figures["suite"] == NOT_RUN


def test_the_base_has_one_row_without_seeds(figures):
    base = row_of(figures, "base")
    assert list(base["seeds"]) == ["-"] and base["spread"] is None and base["over_base"] is None
    assert base["mean"] == pytest.approx(100 * 2 / 12)


def test_the_checkpoint_is_the_earliest_of_the_best_on_held_out_questions(figures, out):
    seed = row_of(figures, "grpo")["seeds"]["1"]
    assert (seed["chosen"], seed["step"], seed["held_out"]) == ("checkpoint-200", 200, pytest.approx(100 * 4 / 6))
    assert seed["chosen_is_best"] is True and seed["chosen_is_tested"] is True
    assert figures["curves"]["grpo"]["1"]["held_out"] == [
        [100, pytest.approx(100 * 2 / 6)],
        [200, pytest.approx(100 * 4 / 6)],
        [300, pytest.approx(100 * 4 / 6)],
    ]
    write_json(out / "arms/grpo/seed-1/chosen.json", {"checkpoint": "checkpoint-300", "step": 300})
    seed = row_of(compute(collect(out)), "grpo")["seeds"]["1"]
    assert seed["chosen_is_best"] is False  # of the two best it is the later one
    assert seed["chosen_is_tested"] is False  # what was tested has the weights of checkpoint-200


def test_choosing_on_the_test_questions_is_told_apart(figures):
    row = row_of(figures, "grpo")
    assert row["on_test"] == {
        "1": {
            "best": "checkpoint-100",
            "accuracy": 100.0,
            "chosen_accuracy": pytest.approx(100 * 10 / 12),
            "difference": pytest.approx(100 * 2 / 12),
        }
    }
    assert (row["on_test_mean"], row["on_test_difference"]) == (100.0, pytest.approx(100 * 2 / 12))


def test_controls_are_paired_with_the_seeds_that_have_them(figures):
    silent = row_of(figures, "grpo")["controls"]["no_audio"]
    assert silent["mean"] == pytest.approx(100 * 3 / 24) and silent["seeds"]["2"] == pytest.approx(100 / 12)
    assert silent["difference"]["difference"] == pytest.approx(100 * (3 - 19) / 24)
    permuted = row_of(figures, "grpo")["controls"]["permuted"]
    # both orders right or both wrong on every question: wrong on q1 and q11
    assert (permuted["orders"], list(permuted["seeds"])) == (2, ["1"])
    assert permuted["mean"] == pytest.approx(100 * 20 / 24)
    assert permuted["difference"]["first"] == pytest.approx(100 * 10 / 12)  # seed 1 alone
    assert permuted["same_choice"] == 100


def test_a_curve_has_the_points_that_were_logged(figures):
    curves = figures["curves"]["grpo"]["2"]
    assert curves["reward"] == [[100, 1.0], [200, 1.5]] and curves["length"] == [[100, 20.0], [200, 22.0]]
    assert curves["kl"] == [[100, 0.1]]  # the other one is no number
    assert "sft_full" not in figures["curves"]


def test_what_was_gained_and_lost_has_its_interval_and_its_completions(figures):
    changes = figures["changes"]
    assert (changes["before"], changes["after"], changes["group"]) == ("base", "grpo", "sub_category")
    assert changes["total"] == row_of(figures, "grpo")["over_base"]
    counting = changes["labels"]["Counting"]  # q0, q2, ...: 1 of 6 before, 5 of 6 and 5 of 6 after
    assert (counting["n"], counting["first"], counting["second"]) == pytest.approx((6, 100 / 6, 500 / 6))
    assert [(one["id"], one["label"], one["seed"]) for one in changes["lost"]] == [
        ("q0", "Counting", "1"),
        ("q1", "Melody", "2"),
    ]
    # labels in turn, of each first what both seeds gained: q10 is seed 1's alone
    assert [one["id"] for one in changes["gained"]] == ["q2", "q3", "q4", "q5", "q6", "q7", "q8", "q9", "q10"]
    assert changes["gained"][0] | {"question": 0, "choices": 0} == {
        "id": "q2", "label": "Counting", "question": 0, "choices": 0, "answer": "cat", "seed": "1",
        "before": "<answer>dog</answer>", "after": "<answer>cat</answer>",
    }  # fmt: skip


def test_the_matrix_has_every_rule_for_every_prompt_and_order(figures):
    rows = {(one["row"], one["evaluation"]): one for one in figures["matrix"]}
    assert ("grpo", "test-no-audio") not in rows and ("grpo_coin", "test") not in rows
    assert rows["grpo_think", "test"]["prompt_style"] == "think" and rows["grpo", "test-permuted"]["orders"] == 2
    rules = rows["grpo", "test"]["rules"]
    assert list(rules) == figures["rules"]
    assert rules["official"]["mean"] == rules["exact_alnum"]["mean"] == row_of(figures, "grpo")["mean"]
    assert rules["letter_lmms"]["mean"] == 50  # no letters: a draw from two choices, whatever was answered


def test_cost_adds_up_what_was_read_and_nothing_else(figures):
    cost, unread = figures["cost"], {"status": "not read"}
    assert cost["arms"]["grpo"]["1"] == {
        "seconds": 3600, "gpus": 8, "gpu_hours": 8, "mfu": 0.4, "energy_kwh": 12, "price": 20,
    }  # fmt: skip
    assert cost["arms"]["grpo"]["2"]["energy_kwh"] == cost["arms"]["grpo"]["2"]["mfu"] == unread
    assert cost["total"] == {"seconds": 5400, "gpu_hours": 12, "energy_kwh": unread, "price": 30}


@pytest.mark.parametrize(
    ("run", "seconds", "hours"),
    [
        ({"seconds": {"grpo": 60.0}, "processes": 2, "hardware": {"gpus": []}}, 60.0, None),  # on a CPU
        ({"seconds": {}, "processes": 8, "hardware": {"gpus": ["H800"]}}, None, None),  # never came to its end
        ({"seconds": {"grpo": 3600.0}, "processes": "8", "hardware": {"gpus": ["H800"]}}, 3600.0, None),
        ({}, None, None),
    ],
)
def test_what_a_record_does_not_tell_is_no_number(out, run, seconds, hours):
    write_json(out / "arms/grpo/seed-1/run/run.json", run)
    one = compute(collect(out))["cost"]["arms"]["grpo"]["1"]
    unread = {"status": "not read"}
    assert one["seconds"] == (unread if seconds is None else seconds)
    assert one["gpu_hours"] == one["price"] == (unread if hours is None else hours)


def test_a_second_seed_that_answers_alike_does_not_narrow_the_interval(tmp_path):
    one = {"base/test": "110000000000", "arms/grpo/seed-1/test": "011111111110"}
    alone = compute(collect(write_study(tmp_path / "one", one, {})))
    twice = one | {"arms/grpo/seed-2/test": one["arms/grpo/seed-1/test"]}
    both = compute(collect(write_study(tmp_path / "two", twice, {})))
    assert row_of(both, "grpo")["ci95"] == row_of(alone, "grpo")["ci95"]
    assert row_of(both, "grpo")["over_base"] == row_of(alone, "grpo")["over_base"]
    assert row_of(both, "grpo")["spread"] == 0


def test_where_questions_share_clips_intervals_are_over_clips(tmp_path):
    right = {"base/test": "110000000000", "arms/grpo/seed-1/test": "011111111110"}
    figures = compute(collect(write_study(tmp_path / "out", right, {}, clips=4)))
    assert (figures["questions"]["n"], figures["questions"]["clips"]) == (12, 4)
    clips = [index % 4 for index in range(12)]
    own = row_of(figures, "grpo")
    assert own["ci95"] == pytest.approx(interval([0.0] * 12, shares(right["arms/grpo/seed-1/test"]), clips))
    assert own["over_base"]["clips"] == own["seeds"]["1"]["total"]["clips"] == 4


def test_other_benchmarks_are_scored_before_and_after(out):
    data = out / "elsewhere.jsonl"
    questions = read_questions(out / "data/test.jsonl").records
    write_manifest(data, [replace(one, id=f"x{place}", dataset="other") for place, one in enumerate(questions)])
    write_evaluation(out / "suite/elsewhere", data, "111111111111")
    write_evaluation(out / "suite/before/elsewhere", data, "000000000000")
    write_evaluation(out / "suite/home", out / "data/test.jsonl", "110000000000")
    write_json(out / "suite/suite.json", {"evaluations": [{"name": "home"}, {"name": "elsewhere"}]})
    elsewhere, home = compute(collect(out))["suite"]["evaluations"]
    assert (elsewhere["name"], elsewhere["after"]["accuracy"], elsewhere["before"]["accuracy"]) == ("elsewhere", 100, 0)
    assert elsewhere["comparison"]["verdict"] == "gained" and elsewhere["comparison"]["difference"] == 100
    assert (home["after"]["correct"], home["before"], home["comparison"]) == (2, None, None)


def test_overlap_is_handed_on_as_the_study_found_it(out):
    write_json(out / "data/overlap.json", {"clips": 3})
    assert compute(collect(out))["overlap"] == {"clips": 3, "status": "rehearsed"}


def test_evaluations_on_other_questions_are_refused(sealed, out):
    folder = collect(out)
    for name in ("predictions.jsonl", "settings.json"):  # those of the held-out questions in place of the test's
        source = folder / "evaluations/grpo/seed-1/held_out/checkpoint-100" / name
        (folder / "evaluations/grpo/seed-1/test" / name).write_bytes(source.read_bytes())
    with pytest.raises(Refused, match=r"grpo/seed-1/test: it is not on the 12 questions"):
        compute(folder)


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("rehearsed", None, "rehearsed is None"),
        ("seeds", [1, 1], "not different whole numbers"),
        ("seeds", [], "not different whole numbers"),
        ("arms", {"../x": {"label": "x", "kind": "sft"}}, "no name of an arm"),
        ("arms", {"suite": {"label": "x", "kind": "sft"}}, "no name of an arm"),
        ("arms", {"x": {"label": "x", "kind": "ppo"}}, "x: kind is 'ppo'"),
        ("arms", {"x": {"label": "x", "kind": "sft", "published": {"total": "64"}}}, "published holds what is no num"),
        ("arms", {"x": 1}, "x: label is None"),
        ("base", None, "base: label is None"),
    ],
)
def test_a_damaged_study_is_refused_by_what_is_wrong_in_it(bundle, key, value, said):
    write_json(bundle / "study.json", read_json(bundle / "study.json") | {key: value})
    with pytest.raises(Refused, match=said):
        compute(bundle)
