"""What runs of several stages share."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from r1_aqa_repro.data.conversations import TextPrompt
from scripts.shown import show
from scripts.workshop import by_task, gain, keep_model_alone, log_of, outcome, without_rewards, worth

PROMPTS = [TextPrompt(str(index), [], {"task": task}) for index, task in enumerate(("list", "safety") * 2)]


@pytest.mark.parametrize("deleted", [[], ["checkpoint-4/model.bin"], ["checkpoint-4", "checkpoint-2/model.bin"]])
def test_the_log_outlives_the_checkpoints_also_if_deleting_them_is_cut_short(
    deleted: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for step in (2, 4):
        (tmp_path / f"checkpoint-{step}").mkdir()
        (tmp_path / f"checkpoint-{step}" / "model.bin").touch()
        log = json.dumps({"log_history": [{"step": each, "loss": 0.5} for each in range(1, step + 1)]})
        (tmp_path / f"checkpoint-{step}" / "trainer_state.json").write_text(log)

    def killed(*_: object) -> None:
        for name in deleted:
            path = tmp_path / name
            delete(path) if path.is_dir() else path.unlink()
        raise KeyboardInterrupt

    delete = shutil.rmtree
    monkeypatch.setattr(shutil, "rmtree", killed)
    with pytest.raises(KeyboardInterrupt):
        keep_model_alone(tmp_path)
    monkeypatch.undo()
    for _ in range(2):
        keep_model_alone(tmp_path)
        assert list(log_of(tmp_path).index) == [1, 2, 3, 4]
        assert [path.name for path in tmp_path.iterdir()] == ["trainer_state.json"]


def test_greedy_answers_are_counted_beside_sampled_ones_by_task() -> None:
    block = worth(PROMPTS, [0.0, 1.0, 0.5, 1.0], [1.0, 1.0, 0.0, 0.0])
    assert (block["true_reward"], block["greedy"], block["n"]) == (0.625, 0.5, 4)
    # standard deviations over 3: sqrt(0.6875 / 3) = 0.4787 and sqrt(1 / 3) = 0.5774; 1.96 of a half of them
    assert block["ci95"] == pytest.approx([0.625 - 0.4691, 0.625 + 0.4691], abs=1e-4)
    assert block["greedy_ci95"] == pytest.approx([0.5 - 0.5658, 0.5 + 0.5658], abs=1e-4)
    of_lists = block["by_task"]["list"]
    assert (of_lists["true_reward"], of_lists["greedy"], of_lists["n"]) == (0.25, 0.5, 2)
    assert not {"rewards", "greedy_rewards"} & set(without_rewards(block))


def test_the_gain_is_of_both_decodings_and_best_of_n_has_one() -> None:
    before, after = worth(PROMPTS, [0.0] * 4, [1.0] * 4), worth(PROMPTS, [0.5] * 4, [0.75] * 4)
    assert gain(before, after) == {
        "true_reward": 0.5, "ci95": [0.5, 0.5], "greedy": -0.25, "greedy_ci95": [-0.25, -0.25]
    }  # fmt: skip
    assert gain(before, worth(PROMPTS, [0.5] * 4)) == {"true_reward": 0.5, "ci95": [0.5, 0.5]}


def test_tables_show_both_decodings_of_a_policy_and_one_value_of_others(capsys: pytest.CaptureFixture[str]) -> None:
    before, after = worth(PROMPTS, [0.0, 1.0, 0.5, 1.0], [1.0, 1.0, 0.0, 0.0]), worth(PROMPTS, [1.0] * 4, [0.75] * 4)
    chance = {"true_reward": 0.25, "ci95": [0.1, 0.4], "n": 4}
    show(outcome("policy", {"chance": chance, "before": before, "after": after, "gain": gain(before, after)}))
    printed = " ".join(capsys.readouterr().out.split())
    assert "sampled ┃ 95 % interval ┃ greedy ┃ its interval" in printed
    assert "chance │ 0.250 │ 0.100 to 0.400 │ │ │ 4" in printed
    assert "list, after │ 1.000 │ 1.000 to 1.000 │ 0.750 │ 0.750 to 0.750 │ 2" in printed
    accuracy = {"pair_accuracy": 0.5, "ci95": [0.4, 0.6], "n": 9}
    show(outcome("reward model", dict.fromkeys(("chance", "before", "after"), accuracy)))
    assert "value ┃ 95 % interval ┃ n" in " ".join(capsys.readouterr().out.split())
    show(by_task("greedy", {"start": before, "best of n": after}, greedy=True))
    printed = " ".join(capsys.readouterr().out.split())
    assert "start │ 0.500 ±0.980 │ 0.500 ±0.980 │ 0.500 ±0.566" in printed
