"""Evaluation while training: the harness's own figures, no trace in the training, the best checkpoint kept."""

from __future__ import annotations

import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from transformers import GenerationConfig

from eval import mmau
from eval.during_training import HarnessEvaluator
from eval.generation import Generator
from eval.grid import prompts_of
from r1_aqa_repro import train_sft
from r1_aqa_repro.data.questions import AudioQuestion, write_manifest
from r1_aqa_repro.model import loading
from r1_aqa_repro.model.generation import greedy_config
from tests.conftest import make_questions
from tests.distributed.launching import launch
from tests.eval.conftest import limit_memory
from tests.files import read_json, read_lines, write_lines
from tests.run.conftest import Killed, Start, kill_at

SETTINGS = ["--max_steps", "6", "--max_completion_length", "10", "--per_device_eval_batch_size", "3"]
# figures are logged at steps 3 and 6, between them there is an evaluation at step 2 and one at step 4
GRPO = ["--prompts_per_step", "2", "--logging_steps", "3"]
Train = Callable[..., int]
Refused = Callable[..., list[str]]


@pytest.fixture(scope="module")
def held_out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A manifest of 13 questions about clips of their own."""
    folder = tmp_path_factory.mktemp("held_out")
    write_manifest(folder / "manifest.jsonl", make_questions(folder / "clips", 13))
    return folder / "manifest.jsonl"


@pytest.fixture(scope="module")
def train(start: Start, held_out: Path) -> Train:
    """Trains from a model in a folder, evaluated on `eval_file`, if any: `train(name, folder, model, "--key", ...)`."""

    def of(name: str, folder: Path | str, model: Path, *more: str, eval_file: Path | None = held_out) -> int:
        evaluation = ["--eval_file", str(eval_file)] if eval_file else []
        return start(name, folder, *SETTINGS, "--model_name_or_path", str(model), *evaluation, *more)

    return of


@pytest.fixture(scope="module")
def warm(train: Train, model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An SFT run, evaluated every 20 steps, that learns to answer differently to different clips."""
    folder = tmp_path_factory.mktemp("warm")
    learning = ["--learning_rate", "1e-2", "--examples_per_step", "12", "--max_steps", "60"]
    evaluation = ["--save_steps", "20", "--eval_on_start", "true"]
    assert train("audio sft", folder, model_folder, *learning, *evaluation) == 0
    return folder


def checkpoints(folder: Path) -> set[int]:
    return {int(path.name.split("-")[1]) for path in folder.glob("checkpoint-*")}


def state_of(folder: Path) -> dict[str, Any]:
    """The trainer's state in the last checkpoint of a run."""
    return read_json(folder / f"checkpoint-{max(checkpoints(folder))}" / "trainer_state.json")


def evaluations(folder: Path) -> list[dict[str, Any]]:
    """What a run has logged of its evaluations."""
    return [entry for entry in state_of(folder)["log_history"] if "eval_accuracy" in entry]


def assert_as_the_command_says(run: Path, step: int, data: Path, *more: str, code: int = 0) -> None:
    """Compare the evaluation of a step with `python -m eval.mmau` on its checkpoint, question by question."""
    out = run / "command" / f"step-{step}"
    argv = ["--ckpt", str(run / f"checkpoint-{step}"), "--data", str(data), "--out", str(out), "--device", "cpu"]
    assert mmau.main([*argv, "--batch-size", "3", "--max-new-tokens", "10", *more]) == code
    during = run / "eval" / f"step-{step}"
    said, recorded = (read_lines(folder / "predictions.jsonl") for folder in (out, during))
    for prediction in said + recorded:
        del prediction["settings_hash"]  # of the checkpoint's bytes here, of the step there
    assert recorded == said
    scores = read_json(out / "scores.json")
    assert read_json(during / "scores.json") == scores
    for name in ("verdicts.jsonl", "clips.json"):
        assert (during / name).read_bytes() == (out / name).read_bytes()
    [logged] = [entry for entry in evaluations(run) if entry["step"] == step]
    tallies = {"eval_accuracy": scores["total"]}
    tallies |= {f"eval_accuracy_{task}": tally for task, tally in scores["task"].items()}
    assert {name: logged[name] for name in tallies} == {
        name: tally["correct"] / tally["n"] for name, tally in tallies.items()
    }
    assert (logged["eval_format_rate"], logged["eval_unparsed"]) == (scores["format_rate"], scores["unparsed"])


class TestFigures:
    @pytest.mark.parametrize("step", [20, 40, 60])
    def test_of_sft_are_the_commands(self, warm: Path, held_out: Path, step: int) -> None:
        assert_as_the_command_says(warm, step, held_out)

    def test_the_comparison_has_something_to_compare(self, warm: Path) -> None:
        """Answers that differ between questions and between steps, some right and some wrong."""
        first, last = (
            [line["completion"] for line in read_lines(warm / "eval" / f"step-{step}" / "predictions.jsonl")]
            for step in (0, 60)
        )
        assert len(set(first)) > 3 and len(set(last)) > 1 and first != last
        accuracies = [entry["eval_accuracy"] for entry in evaluations(warm)]
        assert len(accuracies) == 4 and any(0 < accuracy < 1 for accuracy in accuracies)

    def test_of_grpo_are_the_commands_with_a_limit_a_channel_and_a_style(
        self, warm: Path, train: Train, held_out: Path, tmp_path: Path
    ) -> None:
        asked = ["--eval_limit", "8", "--audio_channel", "mean", "--prompt_style", "think", "--save_steps", "3"]
        assert train("audio grpo", tmp_path, warm / "final", *GRPO, *asked) == 0
        same = ["--limit", "8", "--audio-channel", "mean", "--prompt-style", "think"]
        for step in (3, 6):
            assert_as_the_command_says(tmp_path, step, held_out, *same)
        assert read_json(tmp_path / "eval/step-6/scores.json")["n"] == 8

    def test_of_unreadable_clips_are_the_commands(
        self, warm: Path, train: Train, held_out: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
    ) -> None:
        """One has no file, one is too short, one is bad behind a sound header: all three count as wrong."""
        file = shutil.copytree(held_out.parent, tmp_path / "data") / "manifest.jsonl"
        clips, run = file.parent / "clips", tmp_path / "run"
        (clips / "clip-2.wav").unlink()
        soundfile.write(clips / "clip-5.wav", np.zeros(100), 16_000)
        soundfile.write(clips / "clip-7.wav", np.full(16_000, np.nan), 16_000, subtype="FLOAT")
        more = ["--max_steps", "2", "--skip_bad_records", "true"]
        assert train("audio sft", run, warm / "checkpoint-40", *more, eval_file=file) == 0
        said = capfd.readouterr().err
        assert f"{file}: 2 of 13 questions count as wrong for want of a clip: q2, q5" in said
        assert "question q7 has no audio and counts as wrong" in said
        assert_as_the_command_says(run, 2, file, code=3)
        scores = read_json(run / "eval/step-2/scores.json")
        assert (scores["n"], scores["missing"], scores["no_audio"]) == (13, 3, ["q2", "q5", "q7"])
        assert [entry["eval_no_audio"] for entry in evaluations(run)] == [3]

    def test_without_audio_are_the_commands_too(self, warm: Path, train: Train, held_out: Path, tmp_path: Path) -> None:
        more = ["--max_steps", "2", "--save_steps", "2", "--eval_no_audio", "true"]
        assert train("audio sft", tmp_path, warm / "checkpoint-40", *more) == 0
        out, during = (tmp_path / folder / "step-2-no-audio" for folder in ("command", "eval"))
        argv = ["--ckpt", str(tmp_path / "checkpoint-2"), "--data", str(held_out), "--out", str(out), "--device", "cpu"]
        assert mmau.main([*argv, "--batch-size", "3", "--max-new-tokens", "10", "--no-audio"]) == 0
        assert (during / "verdicts.jsonl").read_bytes() == (out / "verdicts.jsonl").read_bytes()
        assert_as_the_command_says(tmp_path, 2, held_out)  # whose scores tell those without audio too
        assert "blind" in read_json(tmp_path / "eval/step-2/scores.json")
        scores = read_json(out / "scores.json")
        without = scores["total"]["correct"] / scores["n"]
        [logged] = evaluations(tmp_path)
        assert logged["eval_accuracy_without_audio"] == without
        both = {"accuracy": logged["eval_accuracy"], "accuracy_without_audio": without}
        assert read_json(tmp_path / "run.json")["evaluations"] == {"2": both}

    def test_of_an_adapter_are_the_commands(self, warm: Path, train: Train, held_out: Path, tmp_path: Path) -> None:
        lora = ["--use_peft", "true", "--lora_target_modules", "q_proj", "v_proj"]
        assert train("audio sft", tmp_path, warm / "final", *lora, "--max_steps", "2") == 0
        assert_as_the_command_says(tmp_path, 2, held_out)

    def test_memory_that_runs_out_halves_the_batches_and_changes_no_figure(
        self, warm: Path, train: Train, held_out: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """13 questions at once do not fit, 3 do."""
        limit_memory(monkeypatch, 3)
        evaluation = ["--save_steps", "1", "--per_device_eval_batch_size", "13", "--max_steps", "1"]
        assert train("audio sft", tmp_path, warm / "final", *evaluation) == 0
        assert read_json(tmp_path / "eval/step-1/settings.json")["batch_sizes"] == [13, 8, 4, 2]
        monkeypatch.undo()
        assert_as_the_command_says(tmp_path, 1, held_out)


class TestNoTraceInTraining:
    @pytest.mark.parametrize(
        ("name", "more"), [("audio grpo", GRPO), ("audio grpo", [*GRPO, "--bf16", "true"]), ("audio sft", [])]
    )
    def test_weights_random_states_and_log_are_those_of_a_run_without(
        self, name: str, more: list[str], warm: Path, train: Train, tmp_path: Path
    ) -> None:
        more = [*more, "--save_total_limit", "9"]
        assert train(name, tmp_path / "without", warm / "final", *more, eval_file=None) == 0
        evaluation = ["--eval_on_start", "true", "--eval_no_audio", "true"]
        assert train(name, tmp_path / "with", warm / "final", *more, *evaluation) == 0
        for step in (2, 4, 6):
            plain, evaluated = (tmp_path / name / f"checkpoint-{step}" for name in ("without", "with"))
            for file in ("model.safetensors", "optimizer.pt", "generation_config.json"):
                assert (plain / file).read_bytes() == (evaluated / file).read_bytes(), (step, file)
            states = [torch.load(folder / "rng_state.pth", weights_only=False) for folder in (plain, evaluated)]
            assert states[0]["python"] == states[1]["python"]
            assert all(np.array_equal(*pair) for pair in zip(states[0]["numpy"], states[1]["numpy"], strict=True))
            assert torch.equal(states[0]["cpu"], states[1]["cpu"])
        logs = [
            [entry for entry in state_of(tmp_path / name)["log_history"] if "eval_accuracy" not in entry]
            for name in ("without", "with")
        ]
        for entry in logs[0] + logs[1]:  # what is left of them differs from run to run
            for key in [key for key in entry if "time" in key or "runtime" in key or "per_second" in key]:
                del entry[key]
        assert logs[0] == logs[1] and len(logs[0]) >= 2

    def test_the_model_is_given_back_as_it_was(
        self, warm: Path, questions: list[AudioQuestion], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        model, processor = loading.load(warm / "final")
        own = model.generation_config = GenerationConfig(repetition_penalty=1.5, do_sample=True, eos_token_id=7)
        before = {name: value.clone() for name, value in model.state_dict().items()}
        states = random.getstate(), torch.get_rng_state()
        model.eval()
        config = greedy_config(model, processor, 4)
        assert config.eos_token_id == [processor.tokenizer.eos_token_id, 7]
        generator = Generator(model, processor, config, "answer")
        generator.answer(prompts_of(questions[:3]), warn=pytest.fail)
        assert model.generation_config is own
        monkeypatch.setattr(model, "generate", lambda **_: dict[str, int]()["a failure"])
        with pytest.raises(KeyError):
            generator.answer(prompts_of(questions[:3]), warn=pytest.fail)
        assert model.generation_config is own
        assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
        assert random.getstate() == states[0] and torch.equal(torch.get_rng_state(), states[1])


@pytest.fixture
def scripted(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Accuracies by step in place of evaluations; the steps that were evaluated."""
    accuracies = {0: 0.9, 2: 0.3, 4: 0.6, 6: 0.6, 8: 0.1, 10: 0.2, 12: 0.5}
    asked: list[int] = []

    def evaluate(self: HarnessEvaluator, model: torch.nn.Module, step: int, autocast: Any) -> dict[str, float]:
        assert not any(module.training for module in model.modules())
        asked.append(step)
        return {"accuracy": accuracies[step]}

    monkeypatch.setattr(HarnessEvaluator, "__call__", evaluate)
    return asked


@pytest.fixture
def learn(train: Train, model_folder: Path, scripted: list[int]) -> Train:
    """A run with these evaluations, into a folder."""

    def run(folder: Path | str, *more: str) -> int:
        return train("audio sft", folder, model_folder, "--eval_on_start", "true", "--max_steps", "12", *more)

    return run


class TestBestCheckpoint:
    @pytest.mark.parametrize(
        ("limit", "kept"), [("1", {4, 12}), ("2", {4, 10, 12}), ("5", {4, 6, 8, 10, 12}), (None, {2, 4, 6, 8, 10, 12})]
    )
    def test_is_kept_beside_the_last(
        self, limit: str | None, kept: set[int], tmp_path: Path, learn: Train, scripted: list[int],
        capfd: pytest.CaptureFixture[str],
    ) -> None:  # fmt: skip
        more = ["--save_total_limit", limit] if limit else []
        assert learn(tmp_path / "run", *more) == 0
        assert scripted == [0, 2, 4, 6, 8, 10, 12]
        assert checkpoints(tmp_path / "run") == kept
        state = state_of(tmp_path / "run")
        # the earliest of equals; the start, where there is no checkpoint, is only logged
        assert (state["best_global_step"], state["best_metric"]) == (4, 0.6)
        assert state["best_model_checkpoint"] == str(tmp_path / "run" / "checkpoint-4")
        assert state["log_history"][0]["eval_accuracy"] == 0.9
        last_lines = capfd.readouterr().err.splitlines()[-1]
        assert last_lines == f"best: {tmp_path}/run/checkpoint-4, accuracy 60.00 %; last: step 12, 50.00 %"

    def test_is_known_where_the_folder_is_spelled_unusually(
        self, tmp_path: Path, learn: Train, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.chdir(tmp_path)
        assert learn("./run/", "--save_total_limit", "1", "--max_steps", "4") == 0
        assert checkpoints(tmp_path / "run") == {4}
        assert state_of(tmp_path / "run")["best_model_checkpoint"] == "run/checkpoint-4"

    def test_outlives_kills_and_a_moved_folder_and_nothing_is_evaluated_twice(
        self, tmp_path: Path, learn: Train, scripted: list[int], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        for number, step in enumerate((5, 9)):
            with monkeypatch.context() as patched, pytest.raises(Killed):
                patched.setattr("r1_aqa_repro.run.loop.StopOnSignal", kill_at(step))
                learn(tmp_path / f"run-{number}", "--save_total_limit", "1")
            (tmp_path / f"run-{number}").rename(tmp_path / f"run-{number + 1}")
        assert checkpoints(tmp_path / "run-2") == {4, 8}
        assert learn(tmp_path / "run-2", "--save_total_limit", "1") == 0
        assert scripted == [0, 2, 4, 6, 8, 10, 12]
        assert checkpoints(tmp_path / "run-2") == {4, 12}
        state = state_of(tmp_path / "run-2")
        assert state["best_model_checkpoint"] == str(tmp_path / "run-2" / "checkpoint-4")
        assert [entry["step"] for entry in evaluations(tmp_path / "run-2")] == scripted

    def test_overwriting_deletes_earlier_evaluations(self, train: Train, model_folder: Path, tmp_path: Path) -> None:
        more = ["--save_steps", "1", "--overwrite", "true"]
        for steps in ("2", "1"):
            assert train("audio sft", tmp_path / "run", model_folder, *more, "--max_steps", steps) == 0
        assert os.listdir(tmp_path / "run" / "eval") == ["step-1"]


class TestRefusals:
    @pytest.fixture
    def refused(self, train: Train, model_folder: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> Refused:
        def run(*more: str, **files: Path) -> list[str]:
            assert train("audio sft", tmp_path / "run", model_folder, *more, **files) == 2
            assert not (tmp_path / "run").exists()
            return [line for line in capfd.readouterr().err.splitlines() if line.startswith("error: ")]

        return run

    @pytest.mark.parametrize(
        ("given", "named"),
        [
            (["--eval_steps", "30"], "eval_steps: 30 is no multiple of save_steps (20)"),
            (["--save_strategy", "no"], "save_strategy: with an eval_file only steps is possible"),
            (["--eval_strategy", "epoch"], "eval_strategy: with an eval_file only steps is possible"),
            (["--metric_for_best_model", "loss"], "metric_for_best_model: with an eval_file only eval_accuracy"),
        ],
    )
    def test_of_contradictions(self, refused: Refused, given: list[str], named: str) -> None:
        [line] = refused("--save_steps", "20", *given)
        assert named in line

    def test_of_a_clip_that_is_trained_on(
        self, refused: Refused, questions: list[AudioQuestion], held_out: Path
    ) -> None:
        """By the file it is, whatever it is called; an id that both files use is no reason."""
        link = held_out.parent / "clips" / "linked.wav"
        link.unlink(missing_ok=True)
        link.symlink_to(questions[5].audio_path)
        sound, other, *_ = read_lines(held_out)
        leaky = held_out.with_name("leaky.jsonl")
        write_lines(leaky, [sound, other | {"audio_path": "clips/linked.wav", "id": "other"}])
        [line] = refused("--skip_bad_records", "true", eval_file=leaky)
        assert f"leaky.jsonl: other: its clip {link} is trained on (q5)" in line

    def test_of_what_cannot_be_scored_or_read(
        self, refused: Refused, train: Train, held_out: Path, model_folder: Path, tmp_path: Path
    ) -> None:
        records = read_lines(held_out)[:4]
        del records[0]["answer"]
        records[1]["audio_path"] = "clips/nowhere.wav"
        file = held_out.with_name("bad.jsonl")
        write_lines(file, records)
        lines = refused(eval_file=file)
        assert len(lines) == 2
        assert "bad.jsonl: q0: the question has no answer" in lines[0]
        assert "nowhere.wav: no such audio file" in lines[1]
        assert len(refused("--eval_limit", "1", eval_file=file)) == 1

        more = ["--skip_bad_records", "true", "--max_steps", "1", "--save_steps", "1"]
        assert train("audio sft", tmp_path / "run", model_folder, *more, eval_file=file) == 0
        assert len(read_json(tmp_path / "run" / "skipped_records.json")) == 2
        scores = read_json(tmp_path / "run" / "eval/step-1/scores.json")
        assert (scores["n"], scores["no_audio"]) == (3, ["q1"])  # what has no answer cannot be wrong


@pytest.mark.distributed
@pytest.mark.timeout(600)
def test_two_processes_give_the_figures_of_one(
    warm: Path, train: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """5 batches among 2 processes, of the same weights: those before the first step."""
    more = ["--max_steps", "1", "--save_steps", "1", "--eval_on_start", "true", "--ddp_find_unused_parameters", "false"]
    assert train("audio sft", tmp_path / "one", warm / "checkpoint-40", *more) == 0
    done: list[CompletedProcess[str]] = []

    def in_two(argv: list[str]) -> int:
        done.append(launch("r1_aqa_repro.train_sft", *argv))
        return done[0].returncode

    monkeypatch.setattr(train_sft, "main", in_two)
    assert train("audio sft", tmp_path / "two", warm / "checkpoint-40", *more) == 0, done[0].stderr[-3000:]
    for name in ("predictions.jsonl", "scores.json", "verdicts.jsonl"):
        first, second = (tmp_path / run / "eval" / "step-0" / name for run in ("one", "two"))
        assert first.read_bytes() == second.read_bytes()
    for run in ("one", "two"):
        assert sorted(os.listdir(tmp_path / run / "eval")) == ["step-0", "step-1"]
    logged = [state_of(tmp_path / run)["log_history"][0] for run in ("one", "two")]
    for entry in logged:
        del entry["eval_seconds"]
    assert logged[0] == logged[1] and logged[0]["step"] == 0
    assert done[0].stderr.count("step 0: accuracy") == done[0].stderr.count("best: ") == 1
