"""The comparison's own parts: what it measures, reads and counts. The whole of it runs in slow/test_text_pipelines."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import pytest
import torch

from r1_aqa_repro import compare_algorithms as old_name
from r1_aqa_repro.common.files import write_json
from r1_aqa_repro.data.conversations import TextPrompt
from r1_aqa_repro.data.samples import Sampled
from r1_aqa_repro.embedded.tiny_qwen2 import TEST_TEXT, build_tiny_qwen2
from r1_aqa_repro.grpo.divergence import token_kls
from r1_aqa_repro.model.inputs import text_inputs
from r1_aqa_repro.model.text_loading import load_policy, load_tokenizer
from scripts import compare_algorithms
from scripts.compare_algorithms import DPO, TRAININGS, Seed, best_answers, counted, tables, together
from scripts.shown import show
from scripts.workshop import MAX_NEW_TOKENS, Block, TextWorkshop, divergence, worth

PROMPTS = [TextPrompt(f"p{i}", [{"role": "user", "content": f"Name {i} {'very ' * i}red things."}]) for i in range(5)]


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "start"
    build_tiny_qwen2(folder, texts=["Name very red things. 0 1 2 3 4"], seed=0, geometry=TEST_TEXT)
    return folder


@pytest.fixture(scope="module")
def moved(start: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The start after a step in a random direction."""
    folder = tmp_path_factory.mktemp("models") / "moved"
    model = load_policy(start)
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.05 * torch.randn_like(parameter)
    model.save_pretrained(folder)
    load_tokenizer(start).save_pretrained(folder)
    return folder


def test_a_model_has_not_moved_from_itself(start: Path) -> None:
    assert divergence(start, start, PROMPTS, seed=0) == {"nats_an_answer": 0.0, "nats_a_token": 0.0}


def test_the_divergence_of_one_token_is_that_of_the_distributions(start: Path, moved: Path) -> None:
    """With one token nothing is left to chance: the divergence of what both models predict after each prompt."""
    tokenizer, p_model, q_model = load_tokenizer(start), load_policy(moved), load_policy(start)
    inputs = text_inputs(tokenizer, [prompt.messages for prompt in PROMPTS])
    found = token_kls(p_model, q_model, tokenizer, inputs, max_new_tokens=1, seed=0)
    for prompt_ids, kl in zip(inputs.prompt_ids, found, strict=True):
        with torch.no_grad():
            log_p, log_q = (
                m(torch.tensor([prompt_ids])).logits[0, -1].double().log_softmax(-1) for m in (p_model, q_model)
            )
        expected = torch.nn.functional.kl_div(log_q, log_p, log_target=True, reduction="sum")
        assert kl.tolist() == pytest.approx([float(expected)], rel=1e-3)  # float32 against float64, other padding
        assert kl > 0.01


def test_the_divergence_of_answers_is_the_sum_over_their_tokens(start: Path, moved: Path) -> None:
    tokenizer = load_tokenizer(start)
    inputs = text_inputs(tokenizer, [prompt.messages for prompt in PROMPTS])
    policies = load_policy(moved), load_policy(start)
    tokens = token_kls(*policies, tokenizer, inputs, MAX_NEW_TOKENS, seed=3)
    found = divergence(moved, start, PROMPTS, seed=3)
    assert found["nats_an_answer"] == pytest.approx(sum(float(kl.sum()) for kl in tokens) / len(PROMPTS), rel=1e-5)
    assert found["nats_a_token"] == pytest.approx(float(torch.cat(tokens).mean()), rel=1e-5)


def test_the_best_answer_goes_by_the_score_alone(tmp_path: Path) -> None:
    samples = [
        Sampled("a", ["x", "y"], [True, True], {"reward_model": [2.0, 1.0], "true": [0.25, 1.0]}, [2.0, 1.0]),
        Sampled("b", ["x", "y"], [True, False], {"reward_model": [0.0, 3.0], "true": [0.5, 0.75]}, [0.0, 3.0]),
    ]
    (tmp_path / "samples.jsonl").write_text("".join(json.dumps(asdict(each)) + "\n" for each in samples))
    assert best_answers(tmp_path / "samples.jsonl") == ([0.25, 0.75], [2.0, 3.0])


@pytest.mark.parametrize(
    ("samples", "said"),
    [
        ("100", "--samples: 100 is no multiple of 128"),
        # DPO samples eight answers a prompt, and there are 1,032 prompts
        (
            "12800",
            "there are 8 for each of the 1032 prompts to train on. Choose at most 8192",
        ),
        ("128", "settings.json: samples was 256, now it is 128"),
    ],
)
def test_a_budget_that_not_all_can_use_and_that_of_another_comparison_are_refused_before_any_training(
    samples: str, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_json(tmp_path / "out" / "settings.json", {"seed": 0, "samples": 256})
    assert compare_algorithms.main(["--output-dir", str(tmp_path / "out"), "--samples", samples]) == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / "train_sft_text" / "start").exists()


def test_the_old_name_says_where_the_comparison_went(capsys: pytest.CaptureFixture[str]) -> None:
    assert old_name.main(["--samples", "128"]) == 2
    assert "scripts/compare_algorithms.py" in capsys.readouterr().err


def seed_of(tmp_path: Path, reward: float, steps: int) -> Seed:
    """Four prompts; the start is worth half of what DPO is worth, and best of n is worth 1."""
    prompts = [TextPrompt(str(index), [], {"task": task}) for index, task in enumerate(("list", "safety") * 2)]
    spent = {"seconds": 10.0 * steps, "steps": steps, "updates": steps, "model_reward": 2.0}
    dpo: Block = worth(prompts, [reward] * 4, [reward / 2] * 4) | spent | {"kl": {"nats_an_answer": reward}}
    best = worth(prompts, [1.0] * 4) | spent | {"kl": {"nats_an_answer": 1.2}}
    start = worth(prompts, [reward / 2] * 4, [reward / 2] * 4) | {"model_reward": 1.0}
    return Seed(TextWorkshop(tmp_path / str(reward), 0), prompts, start, {"best of n": best, DPO: dpo})


def test_seeds_count_together_and_one_by_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    seeds = [seed_of(tmp_path, 0.4, 20), seed_of(tmp_path, 0.8, 20)]
    found = together(seeds)
    dpo = found["algorithms"][DPO]
    assert (dpo["n"], dpo["true_reward"], dpo["greedy"]) == (8, pytest.approx(0.6), pytest.approx(0.3))
    assert dpo["by_task"]["safety"]["n"] == 4
    assert dpo["gain"]["true_reward"] == pytest.approx(0.3) and dpo["gain"]["greedy"] == 0
    assert (dpo["kl"]["nats_an_answer"], dpo["seconds_a_step"]) == (pytest.approx(0.6), 10)
    assert "greedy" not in found["algorithms"]["best of n"]["gain"]
    costs = {"tflop": 1.5, "memory_mb": {"models": 20.0, "peak": 90.0, "peak_of_fewer_rows": 40.0, "rows_at_once": 64}}
    for block in found["algorithms"].values():
        block |= costs
    comparison = {"seeds": [0, 1], "samples": 128, "reward_model": {"pairs": 8, "updates": 2, "seconds": 9.0, **costs}}
    show(*tables(comparison | found | {"by_seed": {str(n): together([seed]) for n, seed in enumerate(seeds)}}))
    printed = " ".join(capsys.readouterr().out.split())
    assert "DPO │ +0.300 ±0.075 │ +0.200 +0.400 │ +0.000 ±0.000 │ +0.000 +0.000" in printed
    assert "reward model │ 2 │ │ │ 1.50 │ 9 │ 20 │ 90 │ 64 │ 40" in printed


def test_what_a_product_of_matrices_takes_is_counted() -> None:
    def work() -> None:
        left, right = torch.zeros(100, 200), torch.zeros(200, 300)
        left @ right

    flops, megabytes = counted(work)
    assert flops == 2 * 100 * 200 * 300
    assert megabytes == pytest.approx(4 * (100 * 200 + 200 * 300 + 100 * 300) / 1e6)


def test_rows_at_once_are_those_of_the_configs() -> None:
    """A quarter of each is a whole number of prompts or pairs, and PPO's minibatch can be split into it."""
    for training in TRAININGS.values():
        assert training.of_config(training.at_once) % 4 == 0
