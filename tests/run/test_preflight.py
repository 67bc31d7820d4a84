"""What is wrong with a run is said before anything is written: all of it, each with place and remedy."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import sysconfig
from collections import namedtuple
from collections.abc import Callable
from math import ceil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from peft import LoraConfig, get_peft_model
from transformers.integrations.deepspeed import unset_hf_deepspeed_config
from trl import ModelConfig

from r1_aqa_repro import train_dpo, train_grpo
from r1_aqa_repro.common.errors import Refused
from r1_aqa_repro.data.questions import read_questions
from r1_aqa_repro.model.encoded_audio import encoded_bytes
from r1_aqa_repro.model.text_loading import load_policy, load_tokenizer
from r1_aqa_repro.planning.geometries import qwen2_audio_7b_config
from r1_aqa_repro.run import checks
from r1_aqa_repro.run.clips import Clips
from r1_aqa_repro.run.config import AudioGRPOConfig, AudioSFTConfig, parse_config
from r1_aqa_repro.run.kinds import AudioQuestions
from r1_aqa_repro.run.preflight import prepare
from tests.conftest import ROOT, make_questions
from tests.files import contents, read_lines, write_lines
from tests.model.damages import Change, cut_off, edit, remove
from tests.run.conftest import AUDIO, TEXT, Start
from tests.text_world import LORA, Build

ALL = [*AUDIO, *TEXT]
EXAMPLES = [name for name in TEXT if name != "grpo"]
GRPO = ["audio grpo", "grpo"]
ONE_STEP = ("--max_steps", "1", "--save_steps", "1", "--prompts_per_step", "2")
Refusal = Callable[..., list[str]]
Usage = namedtuple("Usage", "total used free")


@pytest.fixture
def refusal(start: Start, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Refusal:
    """The lines that a refused run prints: `refusal(name, "--key", "value")`. Nothing may have been written."""

    def of(name: str, *more: object) -> list[str]:
        run = tmp_path / "run"
        before = contents(run)
        capsys.readouterr()
        assert start(name, run, *map(str, more)) == 2
        assert contents(run) == before
        lines = capsys.readouterr().err.splitlines()
        assert lines and all(line.startswith("error: ") and line.endswith(".") for line in lines)
        return lines

    return of


class Case:
    """Data of four questions that a test may damage, and a run on it."""

    def __init__(self, folder: Path, start: Start, refusal: Refusal):
        self.start, self.refusal = start, refusal
        self.folder, self.output, self.data = folder, folder / "run", folder / "data" / "train.jsonl"
        self.records: list[Any] = [
            {
                "id": question.id,
                "audio_path": f"clips/{question.audio_path.name}",
                "question": question.question,
                "choices": list(question.choices),
                "answer": question.answer,
            }
            for question in make_questions(folder / "data" / "clips", 4)
        ]

    def clip(self, index: int) -> Path:
        return self.folder / "data" / "clips" / f"clip-{index}.wav"

    def write(self) -> list[str]:
        return ["--train_file", str(write_lines(self.data, self.records))]

    def run(self, *more: str, name: str = "audio grpo") -> int:
        steps = ONE_STEP if name == "audio grpo" else ONE_STEP[:4]
        return self.start(name, self.output, *self.write(), *steps, *more)

    def errors(self, *more: str, name: str = "audio grpo") -> list[str]:
        steps = ONE_STEP if name == "audio grpo" else ONE_STEP[:4]
        return self.refusal(name, *self.write(), *steps, *more)


@pytest.fixture
def case(tmp_path: Path, start: Start, refusal: Refusal) -> Case:
    return Case(tmp_path, start, refusal)


# --- Audio records


def remove_clip(case: Case) -> None:
    case.clip(2).unlink()


def change(**values: Any) -> Callable[[Case], None]:
    def apply(case: Case) -> None:
        case.records[2] = {**case.records[2], **values}

    return apply


def cut_line(case: Case) -> None:
    case.records[2] = json.dumps(case.records[2])[:-10]


def write_clip(samples: Any) -> Callable[[Case], None]:
    return lambda case: soundfile.write(case.clip(2), samples, 16_000)


BAD_RECORDS = [
    (remove_clip, ": q2: ", "clip-2.wav: no such audio file"),
    (
        lambda case: case.clip(2).write_bytes(b"no audio at all" * 100),
        ": q2: ",
        "clip-2.wav: it is text,",
    ),
    (write_clip(np.zeros(0)), ": q2: ", "clip-2.wav: the audio is empty (0 samples)"),
    (write_clip(np.full(1600, 0.1)), ": q2: ", "the clip is too short (0.100 s; at least 0.14 s are needed)"),
    (change(answer=None), ": q2: ", "the question has no answer"),
    (change(answer="a bird"), ":line 3: ", "answer 'a bird' is not among the choices"),
    (change(id="q0"), ":line 3: ", "id 'q0' was already used at line 1"),
    (cut_line, ":line 3: ", "malformed JSON"),
]


@pytest.mark.parametrize(("damage", "place", "what"), BAD_RECORDS)
def test_a_bad_record_is_named_or_left_out_and_listed_when_asked(
    case: Case, damage: Callable[[Case], None], place: str, what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(train_grpo, "run_training", lambda *_: 0)
    damage(case)
    [line] = case.errors()
    assert line.startswith(f"error: {case.data}{place}") and what in line
    assert "--skip_bad_records" in line or "clip" not in what
    assert case.run("--skip_bad_records", "true") == 0
    [skipped] = json.loads((case.output / "skipped_records.json").read_text())
    assert f"error: {skipped}" == line


def test_training_runs_on_what_is_left(case: Case, capsys: pytest.CaptureFixture[str]) -> None:
    remove_clip(case)
    case.records[0] = '{"id"'
    assert case.run("--skip_bad_records", "true") == 0
    assert len(json.loads((case.output / "skipped_records.json").read_text())) == 2
    assert "2 bad records are left out" in capsys.readouterr().err
    assert (case.output / "final").is_dir()
    assert [question.id for question in read_questions(case.data).records] == ["q1", "q2", "q3"]  # as it was


def test_what_a_sound_header_hides_is_found_before_the_run(case: Case) -> None:
    soundfile.write(case.clip(2), np.full(16_000, np.nan, dtype=np.float32), 16_000, subtype="FLOAT")
    [line] = case.errors()
    assert line.startswith(f"error: {case.data}: q2: {case.clip(2)}: the audio holds NaN or infinite samples")


def test_a_reason_is_told_once_with_its_count(case: Case) -> None:
    case.records = ['{"id"'] * 30
    [line] = case.errors()
    assert line.startswith(f"error: {case.data}:line 1: malformed JSON (")
    assert line.endswith(" The same holds for 29 more: line 2, line 3, line 4, line 5, line 6, ...")


# --- Text records


def records_of(text_set: Path, name: str) -> list[dict[str, Any]]:
    records: list[dict[str, Any]] = read_lines(text_set / TEXT[name][1])
    return records


def lengthened(name: str, record: dict[str, Any]) -> dict[str, Any]:
    key = {"sft": "completion", "reward_model": "rejected", "dpo": "chosen", "grpo": "prompt"}[name]
    [message] = record[key]
    return {**record, "id": "long", key: [{**message, "content": "plum " * 150}]}  # 4 tokens a word


@pytest.mark.parametrize("name", TEXT)
def test_records_that_the_model_cannot_take(
    name: str, refusal: Refusal, text_set: Path, tmp_path: Path, build: Build
) -> None:
    """The model has 512 positions; transformers would go on with ones that it was never trained at."""
    records = records_of(text_set, name)
    file = write_lines(tmp_path / "train.jsonl", [*records[:8], lengthened(name, records[8])])
    [line] = refusal(name, "--train_file", file)
    limit = 512 - 8 if name == "grpo" else 512  # room for a completion of 8 tokens
    assert f"{file}: long: " in line and f"tokens are more than the {limit} that the model can take" in line
    assert (" beside 8 of an answer" in line) == (name == "grpo")
    trainer = build(name, "--train_file", str(file), "--skip_bad_records", "true")
    assert len(trainer.train_dataset) == 8
    skipped = (Path(trainer.args.output_dir) / "skipped_records.json").read_text(encoding="utf-8")
    assert [f"error: {problem}" for problem in json.loads(skipped)] == [line]


@pytest.mark.parametrize("name", EXAMPLES)
def test_held_out_records_are_checked_alike(
    name: str, refusal: Refusal, text_set: Path, tmp_path: Path, build: Build
) -> None:
    records = records_of(text_set, name)
    file = write_lines(tmp_path / "held_out.jsonl", [*records[:2], lengthened(name, records[2]), {"prompt": 1}])
    others = [record for record in records if all(record["prompt"] != held_out["prompt"] for held_out in records[:2])]
    files = ["--train_file", str(write_lines(tmp_path / "train.jsonl", others)), "--eval_file", str(file)]
    lines = refusal(name, *files)
    assert len(lines) == 2 and all(f"error: {file}" in line for line in lines)
    trainer = build(name, *files, "--skip_bad_records", "true")
    assert len(trainer.eval_dataset) == 2


@pytest.mark.parametrize("name", EXAMPLES)
def test_held_out_prompts_are_not_trained_on(name: str, refusal: Refusal, text_set: Path, tmp_path: Path) -> None:
    record = records_of(text_set, name)[0] | {"id": "again"}
    [line] = refusal(name, "--eval_file", write_lines(tmp_path / "held_out.jsonl", [record]))
    assert f"{tmp_path / 'held_out.jsonl'}: again: its prompt is trained on (" in line


@pytest.mark.parametrize("name", TEXT)
def test_a_file_of_nothing_but_bad_records_is_refused(name: str, refusal: Refusal, tmp_path: Path) -> None:
    file = write_lines(tmp_path / "bad.jsonl", [{"prompt": "Why?"}] * 2)
    assert len(refusal(name, "--train_file", file, "--skip_bad_records", "true")) == 2


def test_max_length_above_what_the_model_takes(refusal: Refusal, text_set: Path, tmp_path: Path) -> None:
    records = records_of(text_set, "dpo")
    file = write_lines(tmp_path / "train.jsonl", [records[0], lengthened("dpo", records[1])])
    for max_length, limit in (("100000", "512 that the model can take"), ("64", "64 that max_length allows")):
        assert f"more than the {limit}" in refusal("dpo", "--train_file", file, "--max_length", max_length)[-1]


# --- Labels of what the audio contributes

LABELS = ("weak", "strong", "strong", "weak")


@pytest.fixture
def labelled(case: Case) -> Case:
    for record, label in zip(case.records, LABELS, strict=True):
        record["contribution"] = label
    case.write()
    return case


@pytest.mark.parametrize(
    ("contribution", "is_weighted", "learned"),
    [
        (None, False, ["q0", "q1", "q2", "q3"]),
        (None, True, ["q0", "q1", "q2", "q3"]),
        ("strong", False, ["q1", "q2"]),
        ("weak", False, ["q0", "q3"]),
    ],
)
def test_labels_choose_what_is_learned_from_and_not_what_is_evaluated_on(
    labelled: Case, contribution: str | None, is_weighted: bool, learned: list[str]
) -> None:
    kind = AudioQuestions(Clips(labelled.output), "answer", 8, contribution, is_weighted)
    trainable, problems = kind.trainable(str(labelled.data))
    assert ([question.id for question in trainable], problems) == (learned, [])
    assert [question.id for question in kind.usable(str(labelled.data))[0]] == ["q0", "q1", "q2", "q3"]


def test_clips_of_questions_that_are_not_learned_from_are_not_asked_for(labelled: Case) -> None:
    labelled.clip(0).unlink()
    for contribution, found in (("strong", 0), ("weak", 1)):
        kind = AudioQuestions(Clips(labelled.output), "answer", 8, contribution)
        assert len(kind.trainable(str(labelled.data))[1]) == found


@pytest.mark.parametrize("setting", [["--contribution", "strong"], ["--contribution_weight", "0.5"]])
@pytest.mark.parametrize("name", AUDIO)
def test_an_unlabelled_question_is_named_if_labels_matter(name: str, setting: list[str], labelled: Case) -> None:
    del labelled.records[2]["contribution"]
    [line] = labelled.errors(*setting, name=name)
    assert line.startswith(f"error: {labelled.data}: q2: it has no contribution, weak or strong.")
    assert "Label it with data_prep.contribution" in line


def test_a_label_that_no_question_has_is_refused(labelled: Case) -> None:
    for record in labelled.records:
        record["contribution"] = "weak"
    [line] = labelled.errors("--contribution", "strong")
    assert f"{labelled.data}: none of its 4 questions is labelled strong" in line


def test_a_weight_beside_one_kind_alone_is_refused(labelled: Case) -> None:
    [line] = labelled.errors("--contribution", "weak", "--contribution_weight", "2")
    assert "contribution_weight: it weighs weak questions against strong ones" in line


# --- Settings

ADAPTER = f"{shlex.join(LORA)} --lora_task_type SEQ_CLS"
REFUSED = [
    (ALL, "--train_file absent.jsonl", "absent.jsonl: there is no such file"),
    (ALL, "--model_name_or_path /absent", "/absent: no model can be read there"),
    (ALL, "--dtype bfloat16", "dtype: bfloat16 weights do not move at small learning rates"),
    (ALL, "--load_in_8bit true", "load_in_8bit: True is not supported here"),
    (list(AUDIO), "--encoder_learning_rate 0", "encoder_learning_rate: 0 trains nothing"),
    (
        ["audio grpo"],
        "--trained_parts no_encoder --encoder_learning_rate 1e-6",
        "encoder_learning_rate: nothing of the encoder is trained: the rate acts on nothing",
    ),
    (
        list(AUDIO),
        f"{shlex.join(LORA)} --projector_learning_rate 1e-6",
        "projector_learning_rate: nothing of the projector is trained",
    ),
    (ALL, "--attn_implementation flash_attention_2", "flash_attention_2 does not take the shared-prefix mask"),
    (ALL, "--eval_strategy epoch", "eval_strategy: there is nothing to evaluate on"),
    (ALL, "--eval_on_start true", "eval_on_start: there is nothing to evaluate on"),
    (ALL, "--eval_steps 2", "eval_steps: there is nothing to evaluate on"),
    (list(AUDIO), "--eval_limit 2", "eval_limit: there is nothing to evaluate on"),
    (list(AUDIO), "--eval_no_audio true", "eval_no_audio: there is nothing to evaluate on"),
    (list(AUDIO), "--contribution some", "invalid choice: 'some'"),
    (list(AUDIO), "--contribution_weight -1", "contribution_weight is -1"),
    (list(AUDIO), "--check_audio all", "invalid choice: 'all'"),
    (ALL, "--lerning_rate 1e-6", "--lerning_rate"),
    (TEXT, """--rope_parameters '{"type": "yarn"}'""", "rope_parameters: "),
    (TEXT, "--rope_parameters [4.0]", "rope_parameters: [4.0] has no rope_type"),
    (["reward_model"], shlex.join(LORA), "lora_task_type: CAUSAL_LM: the adapter would leave the reward head"),
    (TEXT, ADAPTER + """ --rope_parameters '{"rope_type": "yarn", "factor": 2.0}'""", "an adapter does not keep them"),
    (TEXT, f"{ADAPTER} --lora_target_modules q_proj", "use_peft: "),  # a pattern, which PEFT holds against whole names
    (TEXT, f"{ADAPTER} --lora_target_modules no_such_proj other_proj", "use_peft: "),
    (["audio grpo"], "--reward_funcs accuracy politeness", "there is no reward 'politeness'. Choose among"),
    (["audio grpo"], "--reward_weights 1 2", "reward_weights: 2 weights for 1 rewards"),
    (["audio grpo"], "--attn_implementation eager", "eager does not take the shared-prefix mask"),
    (["audio grpo"], "--dtype auto", "auto weights do not move"),
    (["audio grpo"], "--cuda_graphs true", "cuda_graphs: there are none on cpu"),
    (["audio grpo"], "--cuda_graphs true --sharing off", "cuda_graphs: without sharing transformers samples"),
    (["audio grpo"], "--model_revision old", "model_revision: 'old' is not supported here"),
    (["audio grpo"], "--use_vllm true", "use_vllm: True is not supported here"),
    (["audio grpo"], "--dynamic_sampling 3 --max_prompts_per_device 2", "3 further prompts do not divide among the 2"),
    (["audio grpo"], "--advantage_filter best", "invalid choice: 'best'"),
    (["audio grpo"], f"--trained_parts projector {shlex.join(LORA)}", "projector beside an adapter"),
    (["audio grpo"], "--use_peft true --lora_dropout 0", "use_peft: Please specify `target_modules`"),
    (["audio grpo"], "--advantage_filter above_mean --loss_type dapo", "above_mean with loss_type dapo"),
    (["audio grpo"], "--std_filter_beta 0.5 --loss_type dapo", "0.5 with loss_type dapo"),
    (["audio grpo"], "--std_filter_beta 0.5 --std_filter_start_step 6", "the average begins with step 6"),
    (["audio grpo"], "--reward_funcs answer_probability --prompt_style direct", "direct beside answer_probability"),
    (["audio grpo"], "--num_iterations 2 --max_prompts_per_device 2", "num_iterations: 2 updates"),
    (["audio grpo"], "--num_iterations 2 --save_steps 1", "save_steps: 1: a resume would begin in the middle"),
    (["audio sft"], "--prompt_style think", "prompt_style: think has no thoughts to imitate"),
    (GRPO, f"{shlex.join(LORA)} --lora_dropout 0.1", "lora_dropout: 0.1: completions would be scored by another"),
]


@pytest.mark.parametrize(
    ("name", "settings", "said"), [(name, settings, said) for names, settings, said in REFUSED for name in names]
)
def test_a_setting_that_cannot_be_carried_out(name: str, settings: str, said: str, refusal: Refusal) -> None:
    [line] = refusal(name, *shlex.split(settings))
    assert said in line


@pytest.mark.parametrize(("deepspeed", "keep", "refused"), [(True, "last", 1), (True, "all", 0), (False, "last", 0)])
def test_deepspeed_cannot_load_the_best_without_its_optimizer(
    deepspeed: bool, keep: str, refused: int, tmp_path: Path
) -> None:
    config = "configs/deepspeed/zero2.json" if deepspeed else None
    rest: dict[str, Any] = {"output_dir": str(tmp_path), "report_to": "none", "use_cpu": True, "bf16": False}
    best: dict[str, Any] = {"load_best_model_at_end": True, "eval_strategy": "steps", "eval_steps": 500}
    training = AudioSFTConfig(**rest, **best, deepspeed=config, keep_optimizer=keep)
    unset_hf_deepspeed_config()
    found = [str(problem) for problem in checks.check_settings(training, ModelConfig(dtype="float32"))]
    assert len(found) == refused and all("keep_optimizer: last beside load_best_model_at_end" in line for line in found)


@pytest.mark.parametrize("name", ["audio sft", "grpo", "dpo"])
def test_what_a_base_in_4_bits_needs(name: str, refusal: Refusal, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checks, "is_bitsandbytes_available", lambda: False)
    lines = refusal(name, "--load_in_4bit", "true", "--bf16", "true")
    expected = ["load_in_4bit: weights in 4 bits cannot be trained", "dtype: float32, in which a base in 4 bits"]
    expected += ["load_in_4bit: bitsandbytes, which holds the weights, is not installed"]
    expected += ["load_in_4bit: it is for GRPO and SFT"] if name == "dpo" else []
    assert len(lines) == len(expected) and all(sum(part in line for line in lines) == 1 for part in expected)


def test_the_faq_says_how_sft_takes_4_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checks, "is_bitsandbytes_available", lambda: True)
    page = (ROOT / "docs" / "faq.md").read_text(encoding="utf-8")
    [(config, more)] = re.findall(r"`(\S+sft_lora\S+)`, with\n`(.*)` too", page)
    _, training, model = parse_config(
        AudioSFTConfig, ["--config", str(ROOT / config), "--use_cpu", "true", *shlex.split(more)]
    )
    assert model.load_in_4bit and checks.check_settings(training, model) == []


def test_a_model_and_a_file_are_needed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert train_dpo.main(["--output_dir", str(tmp_path / "run"), "--use_cpu", "true", "--bf16", "false"]) == 2
    said = capsys.readouterr().err
    assert "train_file: no training data is given" in said and "model_name_or_path: no model is given" in said


def test_prompts_that_do_not_divide_among_the_processes(refusal: Refusal, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("r1_aqa_repro.run.arguments.num_processes", lambda: 3)
    [line] = refusal("audio grpo")
    assert "batch rule: prompts_per_step: 4 does not divide among 3 processes" in line


@pytest.mark.parametrize("name", TEXT)
def test_everything_wrong_with_a_text_run_is_said_at_once(
    name: str, refusal: Refusal, text_set: Path, model_folder: Path, tmp_path: Path
) -> None:
    file = write_lines(tmp_path / "train.jsonl", [{"prompt": "Why?"}, *records_of(text_set, name)[:2], {"prompt": []}])
    settings: list[object] = ["--train_file", file, "--model_name_or_path", model_folder, "--label_smoothing_factor"]
    settings += ["0.1", "--attn_implementation", "eager"]
    expected = [
        "label_smoothing_factor: 0.1 is not supported here",
        "attn_implementation: eager does not take the shared-prefix mask",
        f"{model_folder}: the model is a qwen2_audio, not a qwen2",
        f"{file}:line 1: ",
        f"{file}:line 4: ",
    ]
    if name == "grpo":
        settings += ["--reward_funcs", "nice", "reward_model", "--reward_weights", "1"]
        settings += ["--advantage_filter", "above_mean", "--loss_type", "dapo"]
        expected += ["there is no reward 'nice'", "1 weights for 2 rewards", "above_mean with loss_type dapo"]
    else:
        settings += ["--eval_file", tmp_path / "absent.jsonl"]
        expected.append(f"{tmp_path / 'absent.jsonl'}: there is no such file")
    lines = refusal(name, *settings)
    assert len(lines) == len(expected)
    for part in expected:
        assert sum(part in line for line in lines) == 1, part


# --- Models


@pytest.mark.parametrize(
    ("change", "what"),
    [
        (edit("config.json", model_type="qwen2"), "the model is a qwen2, not a qwen2_audio"),
        (edit("config.json", audio_token_id=5), "the processor does not fit the model: audio token "),
        (cut_off("model.safetensors", -1), "damaged or cut off"),
        (remove("preprocessor_config.json"), "no processor can be read there"),
    ],
)
def test_a_folder_that_is_no_sound_qwen2_audio(
    refusal: Refusal, model_folder: Path, tmp_path: Path, change: Change, what: str
) -> None:
    model = Path(shutil.copytree(model_folder, tmp_path / "model"))
    change(model)
    line = refusal("audio grpo", "--model_name_or_path", model)[0]
    assert what in line and str(model) in line


@pytest.mark.parametrize("name", TEXT)
def test_an_adapter_cannot_be_trained_further(name: str, refusal: Refusal, policy: Path, tmp_path: Path) -> None:
    adapter = tmp_path / "adapter"
    get_peft_model(load_policy(policy), LoraConfig(target_modules=["q_proj"])).save_pretrained(adapter)
    [line] = refusal(name, "--model_name_or_path", adapter)
    assert f"{adapter}: an adapter cannot be trained further" in line and "merge_adapter" in line


@pytest.mark.parametrize(
    ("name", "key"),
    [*((name, "model_name_or_path") for name in TEXT), ("grpo", "reward_model_name_or_path")],
)
def test_a_tokenizer_of_another_model(
    name: str, key: str, refusal: Refusal, policy: Path, reward_model: Path, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(reward_model if "reward" in key else policy, tmp_path / "model"))
    tokenizer = load_tokenizer(policy)
    vocabulary = len(tokenizer)
    tokenizer.add_tokens(["<one>", "<two>"])
    tokenizer.save_pretrained(folder)
    [line] = refusal(name, f"--{key}", folder)
    what = f"the tokenizer does not fit the model: {vocabulary + 2} tokens for {vocabulary} embeddings"
    assert f"{folder}: {what}" in line


# --- Folder and disk


@pytest.mark.parametrize("name", ALL)
def test_a_full_disk_is_refused(name: str, refusal: Refusal, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def disk_usage(path: Path) -> Usage:
        asked.append(path)
        return Usage(10**9, 10**9 - 1000, 1000)

    monkeypatch.setattr(shutil, "disk_usage", disk_usage)
    [line] = refusal(name, "--max_steps", "2")
    assert f"{tmp_path / 'run'}: 1 more checkpoints (1 with optimizer) and the final model need" in line
    assert "0.0 GB are free" in line
    assert asked == [tmp_path / "run"] and not asked[0].exists()  # there for the time of the check


@pytest.mark.parametrize(
    ("more", "gigabytes"),
    [
        ([], 386.2),  # 10 checkpoints and the final model of 2 bytes a parameter, the optimizer of two of 12
        (["--save_only_model", "true"], 184.7),
        (["--keep_optimizer", "all"], 1192.2),
        (["--save_total_limit", "1"], 251.9),  # two are there until the older one is deleted
        (["--save_steps", "0.5"], 251.9),  # of all steps: two as well
        (["--save_strategy", "epoch", "--max_steps", "-1", "--num_train_epochs", "3"], 268.7),  # three
        (["--deepspeed", "configs/deepspeed/zero2.json"], 419.8),  # 2 bytes more of the two
        (["--trained_parts", "projector"], 218.4),  # of whose optimizer there is little; but of the two 2 bytes more
        # eleven adapters of 43.9 M weights, and the optimizer of two: 4 and 8 bytes
        ([*LORA, "--lora_r", "16", "--deepspeed", ""], 2.6),
    ],
)
def test_what_7b_needs_of_a_disk(
    more: list[str], gigabytes: float, manifest: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """R1-AQA's own run with Qwen2-Audio-7B's sizes; it starts on a machine with 450 GB free."""
    where = ["--train_file", str(manifest), "--output_dir", str(tmp_path / "run"), "--use_cpu", "true"]
    paper = ["--config", "configs/grpo_qwen2_audio_7b.yaml", *where, *more]
    unset_hf_deepspeed_config()  # of another case
    monkeypatch.setattr(AudioQuestions, "check_model", lambda *_: qwen2_audio_7b_config())
    monkeypatch.setattr(checks, "check_tools", lambda *_: [])
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(10**13, 0, 450 * 10**9))

    def start_with() -> None:
        prepare(*parse_config(AudioGRPOConfig, paper), AudioQuestions(Clips(tmp_path / "run"), "answer", 256), [])

    if gigabytes < 450:
        start_with()
        assert (tmp_path / "run" / "run.json").is_file()
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(10**13, 0, 0))
    with pytest.raises(Refused) as refused:
        start_with()
    assert f" need {gigabytes:.1f} GB, 0.0 GB are free" in str(refused.value)
    assert "keep_optimizer: last" in str(refused.value)


def test_encoded_clips_are_counted_where_grpo_keeps_them(manifest: Path, tmp_path: Path) -> None:
    """Of 24 clips a window of 30 s takes 750 tokens of 1,280 values."""
    kind, config = AudioQuestions(Clips(tmp_path), "answer", 256), qwen2_audio_7b_config()
    records, _ = kind.usable(str(manifest))
    where = ["--config", "configs/grpo_embedded.yaml", "--use_cpu", "true", "--output_dir", str(tmp_path)]
    seconds = sum(ceil(25 * soundfile.info(str(record.audio_path)).duration) for record in records)

    def counted(*more: str) -> int:
        _, training, model = parse_config(AudioGRPOConfig, [*where, *more])
        return kind.cache_bytes(records * 2, training, model, config)

    assert counted() == counted("--trained_parts", "no_encoder", "--sharing", "off") == 0
    assert counted("--trained_parts", "no_encoder") == counted("--use_peft", "true") == seconds * 1280 * 4
    assert encoded_bytes([30.0, 60.0], config.audio_config, bf16=True) == 2 * 750 * 1280 * 2


class Tools:
    """Programs on the PATH, and headers of Python; `problems` of a run on such a machine."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch):
        self.folder, self.patch = folder, monkeypatch
        monkeypatch.setenv("PATH", str(folder))
        for variable in ("CC", "CXX"):
            monkeypatch.delenv(variable, raising=False)
        monkeypatch.setattr(sysconfig, "get_path", lambda name: str(folder / name))
        (folder / "include").mkdir()
        self.there("gcc", "c++", "ninja", "include/Python.h")

    def there(self, *names: str) -> None:
        for name in names:
            (self.folder / name).touch(mode=0o755)

    def problems(self, device: str, deepspeed: str | None, report_to: str = "tensorboard") -> list[str]:
        training = AudioSFTConfig(
            output_dir=str(self.folder / "run"),
            use_cpu=True,
            report_to=report_to,
            deepspeed=deepspeed and f"configs/deepspeed/{deepspeed}.json",
        )
        unset_hf_deepspeed_config()
        with self.patch.context() as patched:
            patched.setattr(AudioSFTConfig, "device", torch.device(device))
            return [str(problem) for problem in checks.check_tools(training)]


@pytest.mark.parametrize(
    ("device", "deepspeed", "absent", "named"),
    [
        ("cuda", None, "gcc", "C compiler: there is none, and Triton compiles"),
        ("cuda", None, "include/Python.h", "Python.h: it is not there, and Triton compiles"),
        ("cuda", "zero3", "gcc", "C compiler: there is none"),
        ("cuda", "zero3_offload", "c++", "C++ compiler: there is no c++ on the PATH, and DeepSpeed"),
        ("cuda", "zero3_offload", "ninja", "ninja: there is no ninja on the PATH, and DeepSpeed"),
        ("cpu", "zero2", "c++", "C++ compiler: there is no c++"),
        ("cuda", "zero3", "c++", None),
        ("cuda", "zero3", "ninja", None),
        ("cpu", None, "gcc", None),
        ("cpu", None, "include/Python.h", None),
    ],
)
def test_tools_that_a_run_would_miss_later_are_named(
    device: str, deepspeed: str | None, absent: str, named: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tools = Tools(tmp_path, monkeypatch)
    assert tools.problems(device, deepspeed) == []
    (tmp_path / absent).unlink()
    found = tools.problems(device, deepspeed)
    assert [named in line for line in found if named] == ([True] if named else [])
    assert len(found) == (named is not None)


@pytest.mark.parametrize(("deepspeed", "said"), [("zero3", ["cuda_graphs: under ZeRO-3"]), ("zero2", []), (None, [])])
def test_steps_that_would_not_be_recorded_are_not_asked_for(
    deepspeed: str | None, said: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    training = AudioGRPOConfig(
        output_dir=str(tmp_path),
        use_cpu=True,
        cuda_graphs=True,
        deepspeed=deepspeed and f"configs/deepspeed/{deepspeed}.json",
    )
    unset_hf_deepspeed_config()
    monkeypatch.setattr(AudioGRPOConfig, "device", torch.device("cuda"))
    found = [str(each) for each in checks.check_settings(training, ModelConfig()) if each.where == "cuda_graphs"]
    assert [line.startswith(start) for line, start in zip(found, said, strict=True)] == [True] * len(said)


def test_a_c_compiler_may_have_another_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tools = Tools(tmp_path, monkeypatch)
    (tmp_path / "gcc").unlink()
    tools.there("clang")
    assert tools.problems("cuda", None) == []
    monkeypatch.setenv("CC", "mine")
    (tmp_path / "clang").unlink()
    assert len(tools.problems("cuda", None)) == 1
    tools.there("mine")
    assert tools.problems("cuda", None) == []


def test_figures_go_where_a_package_is_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tools = Tools(tmp_path, monkeypatch)
    monkeypatch.setattr(checks, "get_available_reporting_integrations", lambda: ["tensorboard"])
    [line] = tools.problems("cpu", None, "wandb")
    assert line.startswith("report_to: wandb is not installed. Install it (pip install wandb), or ")
    monkeypatch.setattr(checks, "get_available_reporting_integrations", lambda: ["tensorboard", "wandb"])
    assert tools.problems("cpu", None, "wandb") == tools.problems("cpu", None, "none") == []


class TestFolderOfAnotherRun:
    @pytest.fixture
    def used(self, case: Case) -> Case:
        assert case.run() == 0
        assert {"checkpoint-1", "final", "run.json", "config.resolved.yaml"} <= set(os.listdir(case.output))
        assert "skipped_records.json" not in os.listdir(case.output)
        return case

    def test_other_settings_data_or_origin(self, used: Case) -> None:
        for setting, value in (("learning_rate", "0.5"), ("seed", "7"), ("prompt_style", "think")):
            [line] = used.errors(f"--{setting}", value)
            assert f"{used.output}: is the folder of another run: {setting} was " in line and "--overwrite" in line
        last = used.records.pop()
        [line] = used.errors()
        assert f"the folder of another run: the content of {used.data} has changed" in line
        used.records.append(last)
        (used.output / "config.resolved.yaml").unlink()
        [line] = used.errors()
        assert "holds checkpoints but no config.resolved.yaml" in line
        remove_clip(used)
        used.errors("--overwrite", "true", "--seed", "7")  # deletes nothing before everything is checked

    def test_overwrite_starts_anew(self, used: Case) -> None:
        """By SFT: without a right answer among its completions GRPO learns nothing in one step."""
        before = contents(used.output)
        assert used.run("--overwrite", "true", "--seed", "7", "--learning_rate", "0.01", name="audio sft") == 0
        after = contents(used.output)
        for name in ("final/model.safetensors", "checkpoint-1/model.safetensors", "config.resolved.yaml"):
            assert after[name] != before[name]
        assert json.loads(after["run.json"])["seed"] == 7

    def test_another_method_is_another_run(
        self, start: Start, refusal: Refusal, text_set: Path, tmp_path: Path
    ) -> None:
        assert start("dpo", tmp_path / "run", "--max_steps", "1") == 0
        more: list[Any] = ["--train_file", text_set / "pairs_held_out.jsonl"]
        for name, other in (("dpo", ["--beta", "0.7"]), ("dpo", more), ("reward_model", []), ("sft", [])):
            [line] = refusal(name, "--max_steps", "1", *other)
            assert f"{tmp_path / 'run'}: is the folder of another run" in line

    def test_models_and_rubric_that_have_changed(
        self, start: Start, refusal: Refusal, policy: Path, reward_model: Path, tmp_path: Path
    ) -> None:
        """A resume would go on with another reference, reward model or rubric than it began with."""
        model = Path(shutil.copytree(policy, tmp_path / "start"))
        rewarding = Path(shutil.copytree(reward_model, tmp_path / "reward"))
        rubric = tmp_path / "rubric.yaml"
        rubric.write_text("parts: {a: {weight: 1.0, required: [fog]}}\n", encoding="utf-8")
        more = ["--max_steps", "1", "--model_name_or_path", str(model), "--reward_funcs", "reward_model", "persona"]
        more += ["--reward_model_name_or_path", str(rewarding), "--persona_rubric", str(rubric)]
        assert start("grpo", tmp_path / "run", *more) == 0
        for changed in (model / "model.safetensors", rewarding / "model.safetensors", rubric):
            before = changed.read_bytes()
            # the last bits of one weight, or another word
            other = before[:-1] + bytes([before[-1] ^ 1])
            changed.write_bytes(before.replace(b"fog", b"tide") if changed == rubric else other)
            [line] = refusal("grpo", *more)
            named = changed if changed == rubric else changed.parent
            assert f"is the folder of another run: the content of {named} has changed" in line
            changed.write_bytes(before)
        assert start("grpo", tmp_path / "run", *more) == 0


# --- Steps and warm-up


def test_57_pairs_are_not_trained_on_at_a_rate_of_0(policy: Path, tmp_path: Path, capsys: Any) -> None:
    """The 7B configuration as it is, but for the small model, on fewer pairs than its step takes."""
    pairs = [
        {
            "prompt": [{"role": "user", "content": f"What is {number}?"}],
            "chosen": [{"role": "assistant", "content": "A number."}],
            "rejected": [{"role": "assistant", "content": "A fish."}],
        }
        for number in range(57)
    ]
    run, data = tmp_path / "run", write_lines(tmp_path / "pairs.jsonl", pairs)
    where = {"model_name_or_path": policy, "train_file": data, "output_dir": run, "deepspeed": "", "use_cpu": "true"}
    argv = ["--config", str(ROOT / "configs" / "dpo_qwen2_7b.yaml"), "--bf16", "false"]
    argv += [part for key, value in where.items() for part in (f"--{key}", str(value))]
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(train_dpo, "load_configured_policy", lambda _: pytest.fail("a model was loaded"))
        assert train_dpo.main(argv) == 2
    errors = capsys.readouterr().err
    assert "warmup_steps: 57 records make 1 step, the first of the warm-up, whose learning rate is 0" in errors
    assert "train_file: its 57 usable records are fewer than the 64 of a step" in errors
    assert not run.exists()


def test_steps_within_the_warm_up_are_refused_or_warned_of(
    refusal: Refusal, start: Start, tmp_path: Path, capsys: Any
) -> None:
    """24 records in steps of 4: an epoch of 6."""
    of_data = ("--max_steps", "-1", "--num_train_epochs", "1", "--warmup_steps")
    (line,) = refusal("sft", *of_data, "6")
    assert "24 records make 6 steps, all of them in the warm-up of 6" in line
    (line,) = refusal("sft", *of_data, "7.9", "--lr_scheduler_type", "cosine")
    assert "in the warm-up of 7" in line
    (line,) = refusal("grpo", "--prompts_per_step", "32", "--max_prompts_per_device", "4")
    assert "its 24 usable records are fewer than the 32 of a step. Give more data, or lower prompts_per_step" in line
    (line,) = refusal("sft", "--max_steps", "1", "--warmup_steps", "1")
    assert "max_steps allows 1 step, the first of the warm-up" in line
    assert start("sft", tmp_path / "few", "--max_steps", "2", "--warmup_steps", "10") == 0
    told = capsys.readouterr().err
    assert "warning: warmup_steps: max_steps allows 2 steps, all of them in the warm-up of 10" in told
    constant = ("--lr_scheduler_type", "constant", "--max_steps", "1", "--examples_per_step", "32")
    assert start("sft", tmp_path / "constant", *constant, "--warmup_steps", "10") == 0
    told = capsys.readouterr().err
    assert "warning: train_file: its 24 usable records are fewer than the 32 of a step" in told
    assert "warm-up" not in told
