"""The embedded text runs as a user starts them: each moves its number on held-out data; and they go on."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import ROOT
from tests.slow.conftest import Carried, Run, WholeRun, finish

LESSONS = {  # and the runs that they build on
    "reward_hacking": ["train_ppo_text"],
    "dpo_log_probs": ["train_dpo"],
    "unseen_fault": ["train_reward_model", "train_dpo", "train_grpo_text"],
    "verified_rewards": [],
}

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1500)]


POLICIES = ["train_sft_text", "train_dpo", "train_kto", "train_grpo_text", "train_rloo_text", "train_ppo_text"]


@pytest.mark.parametrize("script", POLICIES)
def test_training_a_policy_raises_its_true_reward(script: str, whole_run: WholeRun) -> None:
    run = whole_run(script)
    results = run.results
    assert results["before"]["n"] == results["after"]["n"] == results["chance"]["n"] >= 400
    assert results["gain"]["true_reward"] > 0.1 and results["gain"]["ci95"][0] > 0
    assert results["after"]["true_reward"] > results["chance"]["ci95"][1]
    if script in ("train_grpo_text", "train_rloo_text", "train_ppo_text"):
        assert results["after"]["model_reward"] > results["before"]["model_reward"]
    if script == "train_dpo":  # GRPO and PPO: docs/benchmarks.md
        assert results["gain"]["greedy_ci95"][0] > 0
    for block in (results["before"], results["after"]):
        assert set(block["by_task"]) == {"list", "safety"}
        for each in (block, *block["by_task"].values()):
            assert each["ci95"][0] <= each["true_reward"] <= each["ci95"][1]
            assert each["greedy_ci95"][0] <= each["greedy"] <= each["greedy_ci95"][1]
    check_costs(run)


def test_the_reward_model_ranks_pairs_and_its_control_does_not(whole_run: WholeRun) -> None:
    run = whole_run("train_reward_model")
    results = run.results
    assert results["after"]["n"] >= 400
    assert results["after"]["pair_accuracy"] >= 0.85  # 0.91 here; repetitions are still being learned when it ends
    assert abs(results["before"]["pair_accuracy"] - 0.5) < 0.15  # a head at random
    assert abs(results["controls"]["shuffled_labels"]["pair_accuracy"] - 0.5) <= 0.07
    check_costs(run)


def check_costs(run: Run) -> None:
    # five minutes on an idle machine, with all that it starts from; twice as much on one that is not
    assert sum(run.results["seconds"].values()) < 600
    assert (run.folder / "learning_curve.png").stat().st_size > 10_000


def test_both_stages_end_above_the_start_and_each_alone(whole_run: WholeRun) -> None:
    run = whole_run("two_stage_text")
    results = run.results
    assert results["before"]["n"] == results["after"]["n"] >= 600
    assert results["gain"]["true_reward"] > 0.1 and results["gain"]["ci95"][0] > 0
    assert results["chance"]["true_reward"] < results["after"]["true_reward"]
    assert set(results["stages"]) == {"start", "offline alone", "online alone", "both stages"}
    assert results["stages"]["both stages"]["true_reward"] == results["after"]["true_reward"]
    assert (run.folder / "stages.png").stat().st_size > 10_000
    for part in ("offline alone", "online alone"):
        assert results["gains_over_parts"][part]["ci95"][0] > 0
        assert part in run.printed
    start = results["stages"]["start"]["by_task"]
    for part, tasks in (("offline alone", ("maths", "code")), ("online alone", ("list", "safety"))):
        for task in tasks:  # each stage is about its own
            assert results["stages"][part]["by_task"][task]["true_reward"] > start[task]["true_reward"]


def test_four_algorithms_side_by_side(whole_run: WholeRun, runs: Path) -> None:
    """With few samples: two steps of GRPO, of which the first warms up. What each is worth takes ten times as many."""
    whole_run("train_reward_model")  # what all start from
    folder = runs / "compare_algorithms"
    budget = ["--samples", 256, "--seed", 0]
    printed = finish(sys.executable, "-m", "scripts.compare_algorithms", "--output-dir", folder, *budget)
    comparison = json.loads((folder / "comparison.json").read_text(encoding="utf-8"))
    algorithms = comparison["algorithms"]
    assert list(algorithms) == ["best of n", "DPO", "PPO", "GRPO"]
    for name, block in algorithms.items():
        assert block["n"] >= 400 and block["gain"]["ci95"][0] < block["gain"]["true_reward"] < block["gain"]["ci95"][1]
        assert block["seconds"] > 0 and block["seconds_a_step"] > 0
        assert block["kl"]["nats_an_answer"] >= 0
        assert name in printed
    # by the reward model, which ranks 95 % of pairs rightly, the best of eight is better than any one
    assert algorithms["best of n"]["gain"]["ci95"][0] > 0.1
    assert (algorithms["PPO"]["steps"], algorithms["GRPO"]["steps"]) == (4, 2)
    assert (algorithms["PPO"]["updates"], algorithms["GRPO"]["updates"]) == (16, 2)
    for block in (*(algorithms[name] for name in ("DPO", "PPO", "GRPO")), comparison["reward_model"]):
        memory = block["memory_mb"]
        assert block["tflop"] > 0
        assert memory["models"] < memory["peak_of_fewer_rows"] < memory["peak"]  # fewer rows at once, less memory
    assert (folder / "comparison.png").stat().st_size > 10_000


@pytest.fixture(scope="module")
def lesson(whole_run: WholeRun, carried: Carried, runs: Path) -> Callable[[str], dict[str, Any]]:
    """Carries out a lesson on text; its results.json."""

    def carry_out(name: str) -> dict[str, Any]:
        for script in LESSONS[name]:
            whole_run(script)  # what it builds on
        out = runs / "learn" / name
        folders = f"{'--runs runs ' if LESSONS[name] else ''}--out runs/learn/{name}"  # as the course has it
        command = f".venv/bin/python scripts/learn/{name}.py {folders}"
        printed = carried(command).text
        assert str(out / "answers.txt") in "".join(printed.split())
        assert (out / "answers.txt").read_text(encoding="utf-8").count("\n\n") == 11  # twelve prompts
        (picture,) = out.glob("*.png")
        assert picture.stat().st_size > 10_000
        return dict(json.loads((out / "results.json").read_text(encoding="utf-8")))

    return carry_out


def test_without_a_price_the_reward_model_is_hacked(lesson: Callable[[str], dict[str, Any]]) -> None:
    models = lesson("reward_hacking")["models"]
    _, priced, *_, free = models.values()
    assert free["model_reward"] > priced["model_reward"]
    assert free["ci95"][1] < priced["ci95"][0]  # the higher score is for worse answers
    assert free["kl"]["nats_an_answer"] > priced["kl"]["nats_an_answer"]


def test_dpo_lowers_both_log_probabilities_and_a_second_term_holds_the_chosen_one(
    lesson: Callable[[str], dict[str, Any]],
) -> None:
    start, plain, with_sft = lesson("dpo_log_probs")["models"].values()
    assert plain["chosen"] < start["chosen"] and plain["rejected"] < start["rejected"]
    assert with_sft["chosen"] > plain["chosen"]
    for trained in (plain, with_sft):
        assert trained["ranked_right"] > 0.85
        assert trained["own"] < start["own"]  # fresh samples of the start: their mean change is minus a KL divergence
    assert with_sft["worth"]["true_reward"] > plain["worth"]["true_reward"]


def test_what_no_pair_shows_the_reward_model_does_not_see(lesson: Callable[[str], dict[str, Any]]) -> None:
    found = lesson("unseen_fault")
    shown, hidden = found["reward_models"].values()
    assert shown["repetition"]["ci95"][0] > hidden["repetition"]["ci95"][1]
    models = found["models"]
    assert models["DPO, with repetition in the pairs"]["greedy_ci95"][0] > models["DPO, without"]["greedy_ci95"][1]


def test_reasoning_is_paid_with_and_without_a_verifier(lesson: Callable[[str], dict[str, Any]]) -> None:
    found = lesson("verified_rewards")
    start, *trained = found["models"]["maths"].values()
    for block in trained:  # without ever reading the answer, and by reading nothing else
        assert block["ci95"][0] > start["ci95"][1] and block["reason"] > start["reason"] + 0.2
    start, tests = found["models"]["code"].values()
    assert tests["ci95"][0] > start["ci95"][1]
    first, last = found["rlpr"]["first steps"], found["rlpr"]["last steps"]
    assert last["with reasoning"] > first["with reasoning"] > first["without"]


def test_a_sparse_reward_is_found_by_patience(whole_run: WholeRun) -> None:
    run = whole_run("sparse_reward_text")
    results, by_run = run.results, run.results["runs"]
    # 0.01 exactly but for what the start has not learned evenly: 4 standard errors of 960 answers are 0.013
    assert results["before"]["accuracy"] < 0.03
    assert results["after"]["accuracy"] > 0.8 and results["after"]["ci95"][0] > results["before"]["ci95"][1]
    # (1 - 0.01)^8 = 0.92 and (1 - 0.01)^64 = 0.53 at the very start; larger groups leave it sooner
    assert by_run["small groups"]["silent_at_first"] > 0.7 > by_run["large groups"]["silent_at_first"]
    # fewer steps for more completions a step, and no fewer completions
    assert by_run["large groups"]["steps_to_half"] < by_run["small groups"]["steps_to_half"]
    assert by_run["dynamic sampling"]["steps_to_half"] < by_run["small groups"]["steps_to_half"]
    assert by_run["large groups"]["completions_to_half"] > by_run["small groups"]["completions_to_half"]
    assert (run.folder / "learning_curve.png").stat().st_size > 10_000


def test_a_finished_run_started_again_gives_the_same_results(whole_run: WholeRun) -> None:
    run = whole_run("sparse_reward_text")
    finish(sys.executable, ROOT / "scripts" / "sparse_reward_text.py", "--output_dir", run.folder)
    again = json.loads((run.folder / "results.json").read_text(encoding="utf-8"))
    assert again | {"seconds": None} == run.results | {"seconds": None}
