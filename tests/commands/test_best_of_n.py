"""Best of n: the right pair of each prompt's answers, nothing told apart by chance, and the same bytes after a kill."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from r1_aqa_repro import best_of_n
from r1_aqa_repro.data.conversations import TextPrompt, read_pairs
from r1_aqa_repro.data.samples import PAIRS, SAMPLES, Sampled, kl_bound, pair_of
from r1_aqa_repro.model.text_loading import load_reward_model, load_tokenizer
from r1_aqa_repro.rewards.reward_model import RewardModel
from tests.files import contents, read_lines, write_lines

PROMPTS, NUM = 11, 4  # with batches of 3 prompts the last batch is not full


@pytest.fixture(scope="module")
def prompts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    records = [
        {"id": f"p{i}", "prompt": [{"role": "user", "content": f"Say {'aardvark ' * (i % 4)}{i}."}], "task": "say"}
        for i in range(PROMPTS)
    ]
    return write_lines(tmp_path_factory.mktemp("prompts") / "prompts.jsonl", records)


@pytest.fixture(scope="module")
def command(policy: Path, prompts: Path, reward_model: Path) -> list[str]:
    return [
        *("--model", str(policy), "--prompts", str(prompts), "--num", str(NUM), "--batch-size", "3"),
        *("--max-new-tokens", "12", "--length-penalty-cache", "12"),
        *("--reward-model", str(reward_model), "--rewards", "length_penalty", "--reward-weights", "1", "0.25"),
    ]


@pytest.fixture(scope="module")
def finished(command: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("best") / "out"
    assert best_of_n.main([*command, "--out", str(out)]) == 0
    return out


def sampled(scores: list[float], texts: str = "abcd", finished: list[bool] | None = None) -> Sampled:
    count = len(scores)
    return Sampled("p", list(texts[:count]), finished or [True] * count, {"r": scores}, scores)


# --- which answers make a pair


@pytest.mark.parametrize(
    ("answers", "pair"),
    [
        (sampled([0.5, 2.0, -1.0, 0.0]), (1, 2)),
        (sampled([1.0, 0.0, 1.0, 0.0]), (0, 1)),  # the first of equals
        (sampled([1.0, 1.0, 1.0]), None),
        (sampled([1.0, 1.0 + 1e-7], "aa"), None),  # one text
        (sampled([0.0, 9.0, 1.0, 0.5], finished=[True, False, True, True]), (2, 0)),
        (sampled([0.0, 9.0, 1.0, 0.5], "a b "), (2, 0)),  # empty ones
        (sampled([0.0, 1.0], finished=[False, True]), None),
        (sampled([0.0, 1.0], finished=[False, False]), None),
    ],
)
def test_the_best_whole_answer_is_paired_with_the_worst(answers: Sampled, pair: tuple[int, int] | None) -> None:
    assert answers.best_and_worst() == pair


def test_a_pair_holds_the_prompt_and_both_scores() -> None:
    messages = [{"role": "user", "content": "?"}]
    assert pair_of(TextPrompt("p", messages, {"task": "t", "answer": "7"}), sampled([0.0, 2.0])) == {
        "id": "p",
        "task": "t",
        "prompt": messages,
        "chosen": [{"role": "assistant", "content": "b"}],
        "rejected": [{"role": "assistant", "content": "a"}],
        "score_chosen": 2.0,
        "score_rejected": 0.0,
    }


# --- the bound


@pytest.mark.parametrize("n", [1, 2, 8, 64])
def test_kl_bound_is_the_divergence_if_all_answers_differ(n: int) -> None:
    """An answer's rank u is uniform in [0, 1], the best one's has density n u^(n - 1): the integral over u."""
    u = (np.arange(1_000_000) + 0.5) / 1_000_000
    density = n * u ** (n - 1)
    integral = float(np.mean(density * np.log(np.maximum(density, 1e-300))))
    assert kl_bound(n) == pytest.approx(integral, abs=1e-4)  # the sum's own error is about n^2 / 24e12


# --- the command


def test_what_is_written_fits_together(finished: Path, prompts: Path, reward_model: Path) -> None:
    records = read_lines(prompts)
    samples = read_lines(finished / "samples.jsonl")
    assert [each["id"] for each in samples] == [record["id"] for record in records]
    tokenizer = load_tokenizer(reward_model)
    reward_function = RewardModel(load_reward_model(reward_model, tokenizer), tokenizer)
    for record, each in zip(records, samples, strict=True):
        assert len(each["completions"]) == NUM
        by_model = reward_function([record["prompt"]] * NUM, each["completions"])
        # float32 sums in another order, as other padding gives
        np.testing.assert_allclose(each["rewards"]["reward_model"], by_model, atol=1e-5)
        weighted = np.array(each["rewards"]["reward_model"]) + 0.25 * np.array(each["rewards"]["length_penalty"])
        np.testing.assert_allclose(each["scores"], weighted, atol=1e-12)
    assert len({text for each in samples for text in each["completions"]}) > PROMPTS * NUM / 2, "they were sampled"

    read = read_pairs(finished / "pairs.jsonl")
    assert not read.problems
    by_id = {each["id"]: each for each in samples}
    for pair in read.records:
        each = by_id[pair.id]
        ended = [score for score, whole in zip(each["scores"], each["finished"], strict=True) if whole]
        assert pair.columns["score_chosen"] == max(ended) > min(ended) == pair.columns["score_rejected"]
        assert each["completions"][each["scores"].index(max(ended))] == pair.answers["chosen"]

    summary = json.loads((finished / "summary.json").read_text(encoding="utf-8"))
    assert summary["prompts"] == PROMPTS and summary["samples"] == PROMPTS * NUM
    assert 0 < summary["pairs"] == len(read.records) == PROMPTS - summary["ties"] - summary["without_two_whole_answers"]
    assert summary["empty"] == sum(not text.strip() for each in samples for text in each["completions"])
    assert summary["cut_off"] == sum(not whole for each in samples for whole in each["finished"]) > 0
    assert summary["mean_score"] == pytest.approx(np.mean([each["scores"] for each in samples]))
    assert summary["mean_best_score"] == pytest.approx(np.mean([max(each["scores"]) for each in samples]))


@pytest.mark.parametrize("prompts_kept", [0, 3, 4])  # none, a whole batch of 3, a batch that was cut in two
def test_a_run_that_was_cut_short_ends_with_the_same_bytes(
    finished: Path, command: list[str], tmp_path: Path, prompts_kept: int
) -> None:
    best_of_n.main([*command, "--out", str(tmp_path / "out")])
    samples = tmp_path / "out" / SAMPLES
    lines = samples.read_bytes().splitlines(keepends=True)
    samples.write_bytes(b"".join(lines[:prompts_kept]) + lines[prompts_kept][:40])
    (tmp_path / "out" / PAIRS).unlink()
    assert best_of_n.main([*command, "--out", str(tmp_path / "out")]) == 0
    assert contents(tmp_path / "out") == contents(finished)


def test_another_seed_gives_other_answers(finished: Path, command: list[str], tmp_path: Path) -> None:
    assert best_of_n.main([*command, "--seed", "1", "--out", str(tmp_path)]) == 0
    assert (tmp_path / "samples.jsonl").read_bytes() != (finished / "samples.jsonl").read_bytes()


def test_samples_of_other_settings_are_refused(
    finished: Path, command: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    before = contents(finished)
    assert best_of_n.main([*command, "--temperature", "0.5", "--seed", "3", "--out", str(finished)]) == 2
    message = capsys.readouterr().err
    assert "temperature was 1.0, now it is 0.5" in message and "seed was 0, now it is 3" in message
    assert contents(finished) == before


def test_samples_of_other_prompts_and_damaged_lines_are_refused(
    finished: Path, command: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = (finished / "samples.jsonl").read_bytes().splitlines(keepends=True)
    summary = (finished / "summary.json").read_bytes()
    for content, what in (
        (lines[1] + lines[0], "samples.jsonl:1: 'p1' is not the prompt due there"),
        (lines[0] + b'{"id": "p1"}\n' + lines[2], "samples.jsonl:2: the line is damaged"),
        (b"".join(lines) + lines[0], f"samples.jsonl:{PROMPTS + 1}: 'p0' is not the prompt due there"),
    ):
        (tmp_path / "samples.jsonl").write_bytes(content)
        (tmp_path / "summary.json").write_bytes(summary)
        assert best_of_n.main([*command, "--out", str(tmp_path)]) == 2
        assert what in capsys.readouterr().err
        assert (tmp_path / "samples.jsonl").read_bytes() == content
    (tmp_path / "samples.jsonl").write_bytes(lines[0])
    (tmp_path / "summary.json").unlink()
    assert best_of_n.main([*command, "--out", str(tmp_path)]) == 2
    assert "nothing tells how the samples beside it were made" in capsys.readouterr().err


def test_not_a_single_pair_is_a_failure(
    policy: Path, prompts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """No answer of this model has Python in it, so that all of them are worth 0; what was cut off is told apart."""
    options = ["--model", str(policy), "--prompts", str(prompts), "--max-new-tokens", "4", "--num", "2"]
    assert best_of_n.main([*options, "--rewards", "python_syntax", "--out", str(tmp_path)]) == 1
    summary = json.loads((tmp_path / "summary.json").read_text(encoding="utf-8"))
    whole = [sum(line["finished"]) for line in read_lines(tmp_path / "samples.jsonl")]
    few = sum(number < 2 for number in whole)
    assert 0 < few < PROMPTS
    assert few == summary["without_two_whole_answers"] and summary["ties"] == PROMPTS - few
    said = capsys.readouterr().err
    assert "not a single pair" in said and f"{few} have fewer than two that are whole (--max-new-tokens 4)" in said


def test_everything_wrong_is_named_before_a_model_is_loaded(
    policy: Path, prompts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bad = tmp_path / "prompts.jsonl"
    worded = '{"id": "words", "prompt": [{"role": "user", "content": "1 + 1?"}], "answer": "two"}\n'
    bad.write_text(prompts.read_text(encoding="utf-8") + '{"prompt": "no messages"}\n' + worded, encoding="utf-8")
    options = ["--model", str(policy), "--prompts", str(bad), "--out", str(tmp_path / "out"), "--max-new-tokens", "505"]
    asked = ["--reward-model", str(policy), "--reward-weights", "1"]
    asked += ["--rewards", "math", "maths", "persona", "answer_probability"]
    assert best_of_n.main([*options, *asked]) == 2
    message = capsys.readouterr().err
    for part in (
        "--rewards: there is no reward 'maths'",
        "--reward-weights: 1 weights for 5 rewards",
        "--rewards: answer_probability is computed by the policy that GRPO trains",
        "--persona-rubric: the reward persona needs it",
        f"{policy}: the model has no score head",
        f"{bad}:line {PROMPTS + 1}: prompt is 'no messages'",
        f"{bad}: words: answer is 'two'",
        f"{bad}: p0: ",
        "tokens are more than the 7 that the model can take beside 505 of an answer. Shorten it, lower --max-new",
    ):
        assert part in message
    assert not (tmp_path / "out").exists()


def test_what_cannot_work_is_refused(command: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert best_of_n.main([*command[:4], "--out", str(tmp_path / "out")]) == 2
    assert "--rewards: there is no reward" in capsys.readouterr().err
    with pytest.raises(SystemExit, match="2"):
        best_of_n.main([*command, "--out", str(tmp_path / "out"), "--num", "1"])
    assert "1 is too few" in capsys.readouterr().err
