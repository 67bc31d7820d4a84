"""The text set: the same bytes for the same seed, splits that share no prompt, pairs whose better half is chosen."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from r1_aqa_repro.common.errors import Refused
from r1_aqa_repro.embedded import text_set
from r1_aqa_repro.embedded.text_set import ASSIST, HELD_OUT, OBJECTIVE, write_text_set
from r1_aqa_repro.embedded.text_tasks import TASKS, all_prompts, names_again, true_reward
from tests.files import contents, read_lines

SIZES: dict[str, Any] = {"seed": 3, "num_sft": 400, "num_pairs_train": 210, "num_pairs_held_out": 90}
FILES = {
    *("sft.jsonl", "pairs_train.jsonl", "pairs_held_out.jsonl", "text_set.json"),
    *(f"{name}_prompts_{split}.jsonl" for name in ("assist", "objective") for split in ("train", "held_out")),
}


def asked(folder: Path, *names: str) -> set[str]:
    """The texts of all prompts in these files."""
    return {record["prompt"][0]["content"] for name in names for record in read_lines(folder / f"{name}.jsonl")}


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("set") / "text"
    write_text_set(out, **SIZES)
    return out


def test_the_seed_decides_every_byte(written: Path, tmp_path: Path) -> None:
    write_text_set(tmp_path / "same", **SIZES)
    assert contents(tmp_path / "same") == contents(written)
    write_text_set(tmp_path / "other", **{**SIZES, "seed": 4})
    other = contents(tmp_path / "other")
    assert set(other) == FILES
    assert not {name for name in FILES if other[name] == contents(written)[name]}


def test_a_complete_set_is_left_alone_and_an_incomplete_one_written_again(
    written: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "sft.jsonl").write_text("half a li")
    write_text_set(tmp_path, **SIZES)
    assert contents(tmp_path) == contents(written)
    monkeypatch.setattr(text_set, "write_lines", None)  # would fail if anything were to be written
    write_text_set(tmp_path, **SIZES)


@pytest.mark.parametrize("change", [{"seed": 4}, {"num_sft": 401}, {"num_pairs_train": 1}, {"num_pairs_held_out": 1}])
def test_another_set_is_not_overwritten(written: Path, change: dict[str, int]) -> None:
    before = contents(written)
    with pytest.raises(Refused, match=f"{next(iter(change))} was .*, now it is {next(iter(change.values()))}"):
        write_text_set(written, **{**SIZES, **change})
    assert contents(written) == before


def test_train_and_held_out_share_no_prompt(written: Path) -> None:
    """And each carries what the true reward reads; the tasks take turns."""
    for name, tasks in (("assist", ASSIST), ("objective", OBJECTIVE)):
        train, held_out = (read_lines(written / f"{name}_prompts_{split}.jsonl") for split in ("train", "held_out"))
        assert Counter(record["task"] for record in held_out) == {task: HELD_OUT for task in tasks}
        assert sorted(record["id"] for record in train + held_out) == sorted(
            record["id"] for task in tasks for record in all_prompts(task)
        )
        assert {true_reward(record, "nothing") for record in train + held_out} == {0}
        assert not asked(written, f"{name}_prompts_train") & asked(written, f"{name}_prompts_held_out")
    demonstrations = read_lines(written / "sft.jsonl")
    assert Counter(record["task"] for record in demonstrations) == {task: SIZES["num_sft"] // 4 for task in TASKS}
    assert asked(written, "sft", "pairs_train") <= asked(written, "assist_prompts_train", "objective_prompts_train")
    assert asked(written, "pairs_held_out") <= asked(written, "assist_prompts_held_out")


def test_the_chosen_answer_is_the_better_one(written: Path) -> None:
    columns = {record["prompt"][0]["content"]: record for task in ASSIST for record in all_prompts(task)}
    for split in ("train", "held_out"):
        pairs = read_lines(written / f"pairs_{split}.jsonl")
        assert Counter(pair["task"] for pair in pairs) == {"list": 2 * len(pairs) // 3, "safety": len(pairs) // 3}
        assert len({pair["id"] for pair in pairs}) == len(pairs)
        for pair in pairs:
            record = columns[pair["prompt"][0]["content"]]
            for answer in ("chosen", "rejected"):
                (message,) = pair[answer]
                assert message["role"] == "assistant"
                assert pair[f"score_{answer}"] == true_reward(record, message["content"])
            assert pair["score_chosen"] > pair["score_rejected"]


def test_three_lists_in_five_are_worse_for_what_they_name_again(written: Path) -> None:
    pairs = [pair for pair in read_lines(written / "pairs_train.jsonl") if pair["task"] == "list"]
    chosen, rejected = ([pair[key][0]["content"] for pair in pairs] for key in ("chosen", "rejected"))
    repeats = [names_again(text) for text in rejected]
    # 140 draws of 0.6: four standard deviations are 0.166
    assert abs(sum(repeats) / len(repeats) - 0.6) < 0.17
    assert not any(map(names_again, chosen))
    for better, worse, repeated in zip(chosen, rejected, repeats, strict=True):
        if repeated:  # a copy
            assert better.split()[:2] == worse.split()[:2] and len(better.split()) == len(worse.split())
            assert set(worse.split()) < set(better.split())
