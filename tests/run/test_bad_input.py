"""What is wrong with the input is said before anything is written: all of it, each with place and remedy."""

import json
import os
import shutil
from collections import namedtuple
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from r1_aqa_repro import train_grpo, train_sft
from r1_aqa_repro.data.questions import read_questions
from tests.conftest import make_questions

COMMON = ["--max_steps", "1", "--bf16", "false", "--use_cpu", "true", "--report_to", "none", "--save_steps", "1"]
GRPO = ["--num_generations", "2", "--prompts_per_step", "2", "--max_completion_length", "2"]
LORA = ["--use_peft", "true", "--lora_target_modules", ".*language_model.*q_proj"]


class Case:
    """Data of four questions that a test may damage, and a run on it."""

    def __init__(self, folder: Path, model: Path, capsys: pytest.CaptureFixture[str]):
        self.folder, self.model, self.capsys = folder, model, capsys
        questions = make_questions(folder / "data" / "clips", 4)
        self.data = folder / "data" / "train.jsonl"
        self.records: list[Any] = [
            {
                "id": question.id,
                "audio_path": f"clips/{question.audio_path.name}",
                "question": question.question,
                "choices": list(question.choices),
                "answer": question.answer,
            }
            for question in questions
        ]
        self.output = folder / "run"

    def clip(self, index: int) -> Path:
        return self.folder / "data" / "clips" / f"clip-{index}.wav"

    def run(self, *extra: str, command: Callable[[list[str]], int] = train_grpo.main) -> int:
        lines = [record if isinstance(record, str) else json.dumps(record) for record in self.records]
        self.data.write_text("".join(line + "\n" for line in lines))
        paths = {"train_file": self.data, "model_name_or_path": self.model, "output_dir": self.output}
        argv = [part for key, value in paths.items() for part in (f"--{key}", str(value))]
        return command([*argv, *COMMON, *(GRPO if command is train_grpo.main else []), *extra])

    def errors(self, *extra: str, command: Callable[[list[str]], int] = train_grpo.main) -> list[str]:
        """The lines that a refused run prints; nothing may have been written."""
        before = snapshot(self.output)
        self.capsys.readouterr()
        assert self.run(*extra, command=command) == 2
        assert snapshot(self.output) == before
        lines = self.capsys.readouterr().err.splitlines()
        assert lines and all(line.startswith("error: ") and line.endswith(".") for line in lines)
        return lines


def snapshot(folder: Path) -> dict[str, bytes] | None:
    """Every file with its content, or None where there is no folder."""
    if not folder.exists():
        return None
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def case(tmp_path, model_folder, capsys) -> Case:
    return Case(tmp_path, model_folder, capsys)


def test_sound_input_trains(case):
    """Otherwise the refusals below would show nothing."""
    assert case.run() == 0
    assert {"checkpoint-1", "final", "run.json", "config.resolved.yaml"} <= set(os.listdir(case.output))
    assert "skipped_records.json" not in os.listdir(case.output)


def remove_clip(case: Case) -> None:
    case.clip(2).unlink()


def garble_clip(case: Case) -> None:
    case.clip(2).write_bytes(b"no audio at all" * 100)


def empty_clip(case: Case) -> None:
    soundfile.write(case.clip(2), np.zeros(0), 16_000)


def shorten_clip(case: Case) -> None:
    soundfile.write(case.clip(2), np.full(1600, 0.1), 16_000)


def change(**values: Any) -> Callable[[Case], None]:
    def apply(case: Case) -> None:
        case.records[2] = {**case.records[2], **values}

    return apply


def index_out_of_range(case: Case) -> None:
    case.records[2] = {
        "id": 7,
        "question_text": "What?",
        "multi_choice": ["a", "b"],
        "answer": 2,
        "audio_path": "clips/clip-2.wav",
    }


def cut_line(case: Case) -> None:
    case.records[2] = json.dumps(case.records[2])[:-10]


BAD_CLIPS = [
    pytest.param(remove_clip, "no such audio file", id="missing audio"),
    pytest.param(garble_clip, "cannot be decoded", id="unreadable audio"),
    pytest.param(empty_clip, "the audio is empty (0 samples)", id="empty audio"),
    pytest.param(shorten_clip, "the clip is too short (0.100 s; at least 0.14 s are needed)", id="short audio"),
]
BAD_RECORDS = [
    pytest.param(index_out_of_range, "answer index 2 is out of range for 2 choices", id="index out of range"),
    pytest.param(change(answer="a bird"), "answer 'a bird' is not among the choices", id="answer not among choices"),
    pytest.param(change(choices=["low"]), "only 1 choice(s)", id="one choice"),
    pytest.param(change(id="q0"), "id 'q0' was already used at line 1", id="duplicate id"),
    pytest.param(cut_line, "malformed JSON", id="malformed line"),
]


@pytest.mark.parametrize("command", [train_grpo.main, train_sft.main], ids=["grpo", "sft"])
@pytest.mark.parametrize(("damage", "what"), BAD_CLIPS)
def test_a_bad_clip_is_named(case, damage, what, command):
    damage(case)
    (line,) = case.errors(command=command)
    assert f"{case.data}: q2: {case.clip(2)}: {what}" in line
    assert "--skip_bad_records" in line


@pytest.mark.parametrize(("damage", "what"), BAD_RECORDS)
def test_a_bad_record_is_named_by_file_and_line(case, damage, what):
    damage(case)
    (line,) = case.errors()
    assert line.startswith(f"error: {case.data}:line 3: {what}")


def test_a_question_without_answer_is_named(case):
    change(answer=None)(case)
    (line,) = case.errors()
    assert f"{case.data}: q2: the question has no answer" in line


@pytest.mark.parametrize(("damage", "what"), [*BAD_CLIPS, *BAD_RECORDS])
def test_a_bad_record_is_left_out_and_listed_when_asked(case, damage, what, monkeypatch):
    monkeypatch.setattr(train_grpo, "run_training", lambda *_: 0)
    damage(case)
    assert case.run("--skip_bad_records", "true") == 0
    (skipped,) = json.loads((case.output / "skipped_records.json").read_text())
    assert str(case.data) in skipped and what in skipped


def test_training_runs_on_what_is_left(case):
    remove_clip(case)
    case.records[0] = "{"
    assert case.run("--skip_bad_records", "true") == 0
    skipped = json.loads((case.output / "skipped_records.json").read_text())
    assert [text.removeprefix(str(case.data)).split(" ")[:2] for text in skipped] == [[":line", "1:"], [":", "q2:"]]
    assert "2 bad records are left out" in case.capsys.readouterr().err
    assert (case.output / "final").is_dir()
    assert [question.id for question in read_questions(case.data).records] == ["q1", "q2", "q3"]  # as it was


def test_skipping_everything_is_refused(case):
    for index in range(4):
        case.clip(index).unlink()
    assert len(case.errors("--skip_bad_records", "true")) == 4


@pytest.mark.parametrize(
    ("arguments", "what"),
    [
        (["--reward_funcs", "accuracy", "politeness"], "reward_funcs: there is no reward 'politeness'. Choose among"),
        (["--reward_weights", "1.0"], "reward_weights: 1 weights for 2 rewards"),
        (["--lerning_rate", "1e-6"], "--lerning_rate"),
        (["--per_device_train_batch_size", "4"], "per_device_train_batch_size cannot be set: it is derived"),
        (["--attn_implementation", "flash_attention_2"], "flash_attention_2 does not take the shared-prefix mask"),
        (["--attn_implementation", "eager"], "eager does not take the shared-prefix mask"),
        (["--dtype", "bfloat16"], "bfloat16 weights do not move"),
        (["--dtype", "auto"], "auto weights do not move"),
        (["--model_revision", "old"], "model_revision: 'old' is not supported here"),
        (["--use_vllm", "true"], "use_vllm: True is not supported here"),
        (["--train_file", "nowhere.jsonl"], "nowhere.jsonl: there is no such file"),
        (["--model_name_or_path", "/nowhere/model"], "/nowhere/model: no model can be read there"),
        (["--dynamic_sampling", "3", "--max_prompts_per_device", "1"], "3 further prompts do not divide among the 2"),
        (["--advantage_filter", "best"], "invalid choice: 'best'"),
        (["--advantage_top_fraction", "0"], "advantage_top_fraction: 0.0"),
        (["--trained_parts", "projector", *LORA, "--lora_dropout", "0"], "projector beside an adapter"),
        (LORA, "lora_dropout: 0.05"),
        (["--use_peft", "true", "--lora_dropout", "0"], "use_peft: Please specify `target_modules`"),
        (["--advantage_filter", "above_mean", "--loss_type", "dapo"], "above_mean with loss_type dapo"),
        (["--num_iterations", "2", "--max_prompts_per_device", "1", "--save_steps", "2"], "num_iterations: 2 updates"),
        (["--num_iterations", "2"], "save_steps: 1: a resume would begin in the middle"),
    ],
)
def test_a_bad_setting(case, arguments, what):
    (line,) = case.errors(*arguments)
    assert what in line


def test_a_misspelt_key_in_a_file(case, tmp_path):
    config = tmp_path / "config.yaml"
    config.write_text("lerning_rate: 1.0e-6\n")
    (line,) = case.errors("--config", str(config))
    assert line.startswith(f"error: {config}: ") and "lerning_rate" in line


def test_prompts_that_do_not_divide_among_the_processes(case, monkeypatch):
    monkeypatch.setattr("r1_aqa_repro.run.arguments.num_processes", lambda: 3)
    (line,) = case.errors()
    assert "batch rule: prompts_per_step: 2 does not divide among 3 processes" in line


def test_no_thoughts_to_imitate(case):
    (line,) = case.errors("--prompt_style", "think", command=train_sft.main)
    assert "prompt_style: think has no thoughts to imitate" in line


@pytest.mark.parametrize(
    ("kind", "what"),
    [
        ("text model", "the model is a qwen2, not a qwen2_audio"),
        ("no weights", "the folder holds no weights"),
        ("cut-off weights", "damaged or cut off"),
        ("no processor", "no processor can be read there"),
        ("another processor", "the processor does not fit the model: 128 mel bins instead of 80"),
        ("empty", "the folder holds no config.json"),
    ],
)
def test_a_folder_that_is_no_sound_qwen2_audio(case, model_folder, tmp_path, kind, what):
    case.model = tmp_path / "model"
    shutil.copytree(model_folder, case.model)
    config, weights = case.model / "config.json", case.model / "model.safetensors"
    processor = case.model / "processor_config.json"
    if kind == "text model":
        config.write_text(json.dumps(json.loads(config.read_text())["text_config"]))
    elif kind == "no weights":
        weights.unlink()
    elif kind == "cut-off weights":
        weights.write_bytes(weights.read_bytes()[:-1])
    elif kind == "no processor":
        processor.unlink()
    elif kind == "another processor":
        content = json.loads(processor.read_text())
        content["feature_extractor"]["feature_size"] = 128
        processor.write_text(json.dumps(content))
    else:
        shutil.rmtree(case.model)
        case.model.mkdir()
    lines = case.errors()
    assert what in lines[0] and str(case.model) in lines[0]


class TestFolderOfAnotherRun:
    @pytest.fixture
    def used(self, case) -> Case:
        assert case.run() == 0
        return case

    @pytest.mark.parametrize("setting", ["learning_rate", "seed", "prompt_style"])
    def test_other_settings(self, used, setting):
        value = {"learning_rate": "0.5", "seed": "7", "prompt_style": "think"}[setting]
        (line,) = used.errors(f"--{setting}", value)
        assert f"{used.output}: is the folder of another run: {setting} was " in line
        assert "--overwrite" in line

    def test_other_data(self, used):
        used.records.pop()
        (line,) = used.errors()
        assert f"is the folder of another run: the content of {used.data} has changed" in line

    def test_checkpoints_of_unknown_origin(self, used):
        (used.output / "config.resolved.yaml").unlink()
        (line,) = used.errors()
        assert "holds checkpoints but no config.resolved.yaml" in line

    def test_overwrite_does_not_delete_before_everything_is_checked(self, used):
        remove_clip(used)
        used.errors("--overwrite", "true", "--seed", "7")

    def test_overwrite_starts_anew(self, used):
        """By SFT: without a right answer among its completions GRPO learns nothing in one step."""
        before = snapshot(used.output)
        assert used.run("--overwrite", "true", "--seed", "7", "--learning_rate", "0.01", command=train_sft.main) == 0
        after = snapshot(used.output)
        for name in ("final/model.safetensors", "checkpoint-1/model.safetensors", "config.resolved.yaml"):
            assert after[name] != before[name]
        assert json.loads(after["run.json"])["seed"] == 7


def test_everything_wrong_is_said_at_once(case):
    remove_clip(case)
    case.records[0] = "{"
    case.records[3] = case.records[3] | {"choices": ["low"]}
    lines = case.errors(
        "--reward_funcs", "politeness", "--reward_weights", "1.0", "--attn_implementation", "flash_attention_2"
    )
    wanted = ["'politeness'", "flash_attention_2", "line 1: malformed JSON", "line 4: only 1 choice(s)", "clip-2.wav"]
    assert len(lines) == len(wanted)
    for what in wanted:
        assert sum(what in line for line in lines) == 1, what


def test_a_long_list_is_cut(case):
    case.records = ["{"] * 30
    lines = case.errors()
    assert len(lines) == 21
    assert lines[-1] == "error: ... and 10 more of this kind."


Usage = namedtuple("Usage", "total used free")


def test_a_full_disk_is_refused(case, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(10**9, 10**9 - 1000, 1000))
    (line,) = case.errors()
    assert f"{case.output}: 2 more checkpoints, one being written and the final model need" in line
    assert "0.0 GB are free" in line


def test_the_disk_is_asked_where_the_run_will_be(case, monkeypatch):
    monkeypatch.setattr(train_grpo, "run_training", lambda *_: 0)
    asked = []

    def disk_usage(path: Path) -> Usage:
        asked.append(Path(path))
        return Usage(10**12, 0, 10**12)

    monkeypatch.setattr(shutil, "disk_usage", disk_usage)
    assert case.run() == 0
    assert asked == [case.folder]  # the nearest folder that is there


def test_a_clip_that_turns_out_bad_while_training_is_named(case):
    """NaN samples are behind a sound header: found when the clip is decoded, named then, without a traceback."""
    samples = np.full(16_000, np.nan, dtype=np.float32)
    for index in range(4):
        soundfile.write(case.clip(index), samples, 16_000, subtype="FLOAT")
    case.capsys.readouterr()
    assert case.run("--max_steps", "1") == 1
    printed = case.capsys.readouterr().err
    assert "error: " in printed and "clip-" in printed and "the audio holds NaN or infinite samples" in printed
    assert "Traceback" not in printed
