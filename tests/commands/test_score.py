"""`python -m r1_aqa_repro.score`: pair accuracy by hand, files, and what it refuses."""

from __future__ import annotations

import json
import math
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset
from safetensors.torch import load_file, save_file
from transformers import PreTrainedTokenizerBase

from r1_aqa_repro.common.intervals import wilson
from r1_aqa_repro.data.conversations import TextPrompt, answer
from r1_aqa_repro.model.text_loading import load_reward_model
from r1_aqa_repro.rewards.reward_model import score_conversations
from r1_aqa_repro.score import main, pair_accuracy, pair_scores, summarised
from tests.files import read_lines, write_lines

PLACES = {"jsonl": ("line 1", "line 2", "line 3"), "parquet": ("row 1", "row 2", "row 3")}


def pair(name: str, **columns: Any) -> TextPrompt:
    return TextPrompt(name, [{"role": "user", "content": "Why?"}], columns, {"chosen": "good", "rejected": "bad"})


def test_pair_accuracy_by_hand() -> None:
    block = pair_accuracy([1.0, 0.5, -1.0, 2.0], [0.0, 0.5, 0.0, -3.0])  # right, tie, wrong, right
    assert block == {"pair_accuracy": 2.5 / 4, "ci95": list(wilson(2.5, 4)), "n": 4, "ties": 1}
    assert pair_accuracy([1.0], [2.0])["pair_accuracy"] == 0
    with pytest.raises(ValueError, match="no proportion"):
        pair_accuracy([], [])


def test_an_extreme_margin_has_a_finite_loss() -> None:
    """exp of a margin of 1000 is infinite."""
    assert summarised([pair("a"), pair("b")], [1000.0, 0.0], [0.0, 1000.0])["loss"] == 500


def test_summary_by_hand() -> None:
    scored = [pair("a", task="list"), pair("b", task="list"), pair("c", task="safety"), pair("d")]
    found = summarised(scored, [2.0, 0.0, 1.0, 0.0], [0.0, 1.0, 1.0, 0.5])  # margins 2, -1, 0, -.5
    assert found["loss"] == pytest.approx(sum(math.log(1 + math.exp(-m)) for m in (2, -1, 0, -0.5)) / 4)
    assert {task: block["pair_accuracy"] for task, block in found["by_task"].items()} == {"list": 0.5, "safety": 0.5}
    assert found["by_task"]["safety"]["ties"] == 1


def test_reward_bench_by_hand() -> None:
    """Sections are means over pairs; math-prm's pairs count 984/447 each; the score is the mean of the sections."""
    subsets = ("alpacaeval-easy", "mt-bench-med", "mt-bench-med", "mt-bench-hard", "donotanswer", "math-prm", "hep-go")
    right = (1, 0, 0, 1, 0, 1, 0)
    found = summarised([pair(str(i), subset=name) for i, name in enumerate(subsets)], right, [0.5] * 7)
    assert {name: block["pair_accuracy"] for name, block in found["by_subset"].items()} == {
        **{"alpacaeval-easy": 1, "mt-bench-med": 0, "mt-bench-hard": 1, "donotanswer": 0, "math-prm": 1, "hep-go": 0},
    }
    assert {name: block["n"] for name, block in found["by_section"].items()} == {
        **{"Chat": 3, "Chat Hard": 1, "Safety": 1, "Reasoning": 2},
    }
    reasoning = (984 / 447) / (984 / 447 + 1)
    accuracies = [block["pair_accuracy"] for block in found["by_section"].values()]
    assert accuracies == [pytest.approx(value) for value in (1 / 3, 1, 0, reasoning)]
    assert found["reward_bench"] == pytest.approx((1 / 3 + 1 + 0 + reasoning) / 4)
    assert "reward_bench" not in summarised([pair("a", subset="hep-go")], [1.0], [0.0])


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_a_file_of_reward_bench_is_scored_as_it_is(
    kind: str, reward_model: Path, tokenizer: PreTrainedTokenizerBase, tmp_path: Path, capsys: Any
) -> None:
    record = {"prompt": "Name 2 fruits.", "chosen": "1. plum 2. fig", "rejected": "", "chosen_model": "a", "id": 3}
    records = [record | {"subset": name} for name in ("hep-go", "hep-go", "prior")]
    file = tmp_path / f"filtered.{kind}"
    if kind == "jsonl":
        write_lines(file, records)
    else:
        Dataset.from_list(records).to_parquet(str(file))
    summary, lines = scored(reward_model, file, tmp_path / "out")
    assert [line["id"] for line in lines] == [f"{name}, {place}" for name, place in zip(
        ("hep-go 3", "hep-go 3", "prior 3"), PLACES[kind], strict=True)]  # fmt: skip
    assert summary["by_subset"].keys() == {"hep-go", "prior"} and summary["by_section"].keys() == {"Reasoning"}
    conversations = [[{"role": "user", "content": "Name 2 fruits."}, *answer(text)] for text in ("1. plum 2. fig", "")]
    expected = score_conversations(load_reward_model(reward_model, tokenizer), tokenizer, conversations)
    assert [lines[0]["score_chosen"], lines[0]["score_rejected"]] == pytest.approx(expected, abs=1e-5)
    assert "RewardBench's sections" in capsys.readouterr().out

    bad = write_lines(tmp_path / "bad.jsonl", [{**records[0], "prompt": None}])
    [line] = refused(capsys, "--model", reward_model, "--file", bad, "--out", tmp_path / "none")
    assert f"{bad}:line 1: expected RewardBench's prompt, chosen and rejected as texts" in line


def scored(reward_model: Path, file: Path, out: Path, *more: str) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    assert main(["--model", str(reward_model), "--file", str(file), "--out", str(out), *more]) == 0
    return json.loads((out / "score.json").read_text(encoding="utf-8")), read_lines(out / "scores.jsonl")


def test_scores_are_written_and_printed(
    reward_model: Path, text_set: Path, tokenizer: PreTrainedTokenizerBase, tmp_path: Path, capsys: Any
) -> None:
    summary, lines = scored(reward_model, text_set / "pairs_train.jsonl", tmp_path / "out")
    printed = capsys.readouterr().out
    assert len(lines) == summary["n"] == 24
    assert lines[0].keys() == {"id", "score_chosen", "score_rejected", "margin"}
    assert [line["id"] for line in lines] == [f"pair-train-{index:05d}" for index in range(24)]
    assert all(line["margin"] == line["score_chosen"] - line["score_rejected"] for line in lines)
    right = sum(line["margin"] > 0 for line in lines)
    assert summary["pair_accuracy"] == right / 24 and 0 < right < 24
    assert summary["by_task"].keys() == {"list", "safety"}
    for said in (f"{100 * right / 24:.1f} %", "list", "safety", f"{summary['scores']['chosen']['mean']:+.3f}"):
        assert said in printed
    assert not list((tmp_path / "out").glob(".*"))  # nothing half written


def test_a_name_in_brackets_is_printed_as_it_is(
    reward_model: Path, text_set: Path, tmp_path: Path, capsys: Any
) -> None:
    """rich takes some of them for colours."""
    records = read_lines(text_set / "pairs_train.jsonl")
    file = write_lines(tmp_path / "[red]pairs.jsonl", [{**record, "task": "[bold]"} for record in records[:3]])
    summary, _ = scored(reward_model, file, tmp_path / "out")
    assert summary["by_task"].keys() == {"[bold]"}
    printed = capsys.readouterr().out
    assert "[bold]" in printed and f"{reward_model} on {file}" in printed


def test_pairs_that_are_sorted_by_length_keep_their_order(
    reward_model: Path, tokenizer: PreTrainedTokenizerBase, pairs: list[TextPrompt]
) -> None:
    """Conversations of like length are scored together; the scores come in the order of the pairs."""
    model = load_reward_model(reward_model, tokenizer)
    one_by_one = [pair_scores(model, tokenizer, [each]) for each in pairs]
    chosen, rejected = pair_scores(model, tokenizer, pairs, batch_size=1)
    assert chosen == pytest.approx([scores[0][0] for scores in one_by_one], abs=1e-5)
    assert rejected == pytest.approx([scores[1][0] for scores in one_by_one], abs=1e-5)
    assert len({round(score, 3) for score in chosen + rejected}) > 24  # so that a wrong order would show


def test_the_default_folder_is_the_models_own(reward_model: Path, text_set: Path, tmp_path: Path) -> None:
    model = Path(shutil.copytree(reward_model, tmp_path / "model"))
    assert main(["--model", str(model), "--file", str(text_set / "pairs_held_out.jsonl")]) == 0
    assert {path.name for path in (model / "score" / "pairs_held_out").iterdir()} == {"score.json", "scores.jsonl"}


def refused(capsys: Any, *argv: object) -> list[str]:
    capsys.readouterr()
    assert main([str(part) for part in argv]) == 2
    lines: list[str] = capsys.readouterr().err.splitlines()
    assert lines and all(line.startswith("error: ") and line.endswith(".") for line in lines)
    return lines


def test_everything_wrong_is_named_at_once(
    policy: Path, reward_model: Path, text_set: Path, tmp_path: Path, capsys: Any
) -> None:
    good = read_lines(text_set / "pairs_train.jsonl")[:2]
    same = {**good[1], "id": "same", "rejected": good[1]["chosen"]}
    file, out = write_lines(tmp_path / "pairs.jsonl", [good[0], {"prompt": "Why?"}, good[1], same]), tmp_path / "out"
    lines = refused(capsys, "--model", policy, "--file", file, "--out", out)
    assert len(lines) == 3
    assert f"{policy}: the model has no score head: it is no reward model" in lines[0]
    assert f"{file}:line 2: expected prompt, chosen and rejected" in lines[1]
    assert f"{file}:line 4: chosen and rejected are identical" in lines[2]

    long = {**good[0], "id": "long", "chosen": [{"role": "assistant", "content": "word " * 600}]}
    file = write_lines(tmp_path / "pairs.jsonl", [good[0], long])
    [line] = refused(capsys, "--model", reward_model, "--file", file, "--out", out)
    assert f"{file}: long: " in line and "tokens are more than the 512 that the model can take" in line
    summary, lines_of_one = scored(reward_model, file, tmp_path / "limited", "--limit", "1", "--batch_size", "1")
    assert summary["n"] == len(lines_of_one) == 1  # the long one is not asked for

    [line] = refused(capsys, "--model", reward_model, "--file", tmp_path / "none.jsonl", "--out", out)
    assert f"{tmp_path / 'none.jsonl'}: there is no such file" in line
    assert not out.exists()


def test_a_hub_id_needs_an_out_folder(text_set: Path, capsys: Any) -> None:
    [line] = refused(capsys, "--model", "someone/model", "--file", text_set / "pairs_train.jsonl")
    assert line.endswith("Give --out.")


def test_a_score_that_is_no_number_fails_and_names_its_pair(
    reward_model: Path, text_set: Path, tmp_path: Path, capsys: Any
) -> None:
    broken = Path(shutil.copytree(reward_model, tmp_path / "broken"))
    weights = load_file(broken / "model.safetensors")
    weights["score.weight"].fill_(3e38)  # finite, as every weight has to be; sums of it are not
    save_file(weights, broken / "model.safetensors", metadata={"format": "pt"})
    out = tmp_path / "out"
    argv = ["--model", str(broken), "--file", str(text_set / "pairs_train.jsonl"), "--out", str(out)]
    assert main(argv) == 1
    assert re.search("scores pair-train-00000 with (nan|-?inf) and (nan|-?inf)", capsys.readouterr().err)
    assert not out.exists()
