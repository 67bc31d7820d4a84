"""The main job as a user starts it, and what it must show."""

from __future__ import annotations

import json
import resource
import sys
from pathlib import Path
from typing import Any

import pytest

from eval.run import carry_out, prepare
from eval.settings import EvalSettings
from r1_aqa_repro import train_grpo, train_sft
from r1_aqa_repro.data.answers import answers_of, is_letter_alone
from r1_aqa_repro.data.prompts import target_text
from r1_aqa_repro.data.questions import AudioQuestion, read_questions, write_manifest
from r1_aqa_repro.model import inputs
from r1_aqa_repro.rewards.rules import REWARDS, completion_text
from tests.conftest import ROOT
from tests.slow.conftest import Run, WholeRun, finish

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1500)]


@pytest.fixture(scope="module")
def finished(whole_run: WholeRun) -> Run:
    return whole_run("train_grpo_audio")


def test_the_model_learns_and_listens_within_time_and_memory(finished: Run) -> None:
    results = finished.results
    assert results["after"]["n"] >= 600
    assert results["gain"]["accuracy"] >= 0.10 and results["gain"]["ci95"][0] > 0
    assert results["after"]["accuracy"] >= 0.75
    assert results["blind_after"]["accuracy"] <= results["chance"]["accuracy"] + 0.07
    assert results["after"]["format_rate"] >= 0.98
    assert (finished.folder / "learning_curve.png").stat().st_size > 10_000
    for name in ("sound, after", "music, after", "speech, after", "embedded set, not MMAU: no comparison with 64.5"):
        assert name in finished.printed
    assert sum(finished.results["seconds"].values()) < 600
    assert resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss < 3_000_000  # kilobytes
    assert finished.results["peak_memory_mb"] < 3000


def test_the_checkpoint_alone_is_evaluated_on_its_own_held_out_set(finished: Run, tmp_path: Path) -> None:
    """The README's second command, from a folder without MMAU data, gives the accuracy of the table."""
    final = finished.folder / "final"
    printed = finish(sys.executable, "-m", "eval.mmau", "--ckpt", final, "--batch-size", "50", folder=tmp_path)
    assert "embedded set, not MMAU: no comparison with 64.5" in printed
    scores = json.loads(next((final / "eval").glob("*/scores.json")).read_text(encoding="utf-8"))
    assert scores["total"]["correct"] / scores["n"] == pytest.approx(finished.results["after"]["accuracy"])


def test_a_run_that_is_well_is_reported_as_such(finished: Run) -> None:
    health = json.loads((finished.folder / "run.json").read_text(encoding="utf-8"))["health"]
    assert {name: found["alarms"] for name, found in health.items()} == {name: [] for name in health}
    assert health["zero-variance groups"]["value"] > 0.3 and health["drift to letters"]["value"] == 0


def test_drift_to_letters_shows_in_the_log(
    finished: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A start that answers some questions with a letter, and a reward that pays for letters."""
    asked = read_questions(finished.folder / "data" / "train" / "manifest.jsonl").records[:480]
    write_manifest(tmp_path / "manifest.jsonl", asked)
    lettered = {question.id for question in asked[::3]}

    def target(question: AudioQuestion, style: str) -> str:
        if question.id in lettered:
            return f"<answer>{'ABCD'[question.choices.index(str(question.answer))]}</answer>"
        return target_text(question, style)

    def letters(completions: Any, choices: Any, **_: Any) -> list[float]:
        answers = (answers_of(completion_text(completion))[0] for completion in completions)
        return [float(is_letter_alone(answer, options)) for answer, options in zip(answers, choices, strict=True)]

    monkeypatch.setattr(inputs, "target_text", target)
    monkeypatch.setitem(REWARDS, "letters", letters)

    def train(entry: Any, config: str, out: str, model: Path, *more: str) -> Path:
        argv = ["--config", str(ROOT / "configs" / config), "--output_dir", str(tmp_path / out), "--report_to", "none"]
        argv += ["--model_name_or_path", str(model), "--train_file", str(tmp_path / "manifest.jsonl"), *more]
        assert entry.main([*argv, "--save_steps", "25"]) == 0
        return tmp_path / out / "final"

    start = train(train_sft, "sft_embedded.yaml", "sft", finished.folder / "sft" / "final", "--max_steps", "15")
    step = ("--reward_funcs", "letters", "--reward_weights", "1", "--prompts_per_step", "8", "--max_steps", "25")
    run = train(train_grpo, "grpo_embedded.yaml", "grpo", start, *step).parent
    log = json.loads((run / "checkpoint-25" / "trainer_state.json").read_text(encoding="utf-8"))["log_history"]
    shares = [entry["completions/letter_only"] for entry in log if "completions/letter_only" in entry]
    assert len(shares) == 25
    assert sum(shares[-5:]) / 5 > sum(shares[:5]) / 5 + 0.2, shares
    assert "step 20, drift to letters: " in capsys.readouterr().err
    health = json.loads((run / "run.json").read_text(encoding="utf-8"))["health"]
    assert health["drift to letters"]["alarms"] == [20]


def test_a_random_accuracy_reward_does_not_gain(finished: Run, tmp_path: Path) -> None:
    """The control: the same start, and a third of the training with a coin for the accuracy reward."""
    data = finished.folder / "data"
    argv = ["--config", str(ROOT / "configs" / "grpo_embedded.yaml"), "--reward_funcs", "random", "format"]
    argv += ["--max_steps", "100", "--report_to", "none", "--output_dir", str(tmp_path / "run")]
    argv += ["--train_file", str(data / "train" / "manifest.jsonl")]
    assert train_grpo.main([*argv, "--model_name_or_path", str(finished.folder / "sft" / "final")]) == 0
    final, held_out = str(tmp_path / "run" / "final"), data / "held_out" / "mmau_format.json"
    settings = EvalSettings(ckpt=final, data=held_out, batch_size=50, max_new_tokens=16, device="cpu")
    scores = carry_out(prepare(settings))
    # a real gain is above 0.10; that of chance alone stays within two intervals of a single accuracy
    assert scores["total"]["accuracy"] / 100 < finished.results["before"]["accuracy"] + 0.06
