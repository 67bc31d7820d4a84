"""What is wrong with a text run is said before anything is written: all of it, each with place and remedy."""

from __future__ import annotations

import json
import shutil
from collections import namedtuple
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model

from r1_aqa_repro.model.text_loading import load_policy, load_tokenizer
from tests.text_world import ENTRIES, LORA, Build, arguments, write_lines

ALL = list(ENTRIES)
Refusal = Callable[..., list[str]]


@pytest.fixture
def refusal(text_set: Path, policy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Refusal:
    """The lines that a refused run prints: `refusal(kind, "--key", "value")`. Nothing may have been written."""

    def of(kind: str, *overrides: object) -> list[str]:
        capsys.readouterr()
        argv = [*arguments(kind, tmp_path / "run", text_set, policy), *map(str, overrides)]
        assert ENTRIES[kind][0].main(argv) == 2
        assert not (tmp_path / "run").exists()
        lines = capsys.readouterr().err.splitlines()
        assert lines and all(line.startswith("error: ") and line.endswith(".") for line in lines)
        return lines

    return of


def records_of(text_set: Path, kind: str) -> list[dict[str, Any]]:
    lines = (text_set / ENTRIES[kind][1]).read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


@pytest.mark.parametrize("kind", ALL)
def test_everything_is_said_at_once(
    kind: str, refusal: Refusal, text_set: Path, model_folder: Path, tmp_path: Path
) -> None:
    file = write_lines(tmp_path / "train.jsonl", [{"prompt": "Why?"}, *records_of(text_set, kind)[:2], {"prompt": []}])
    settings: list[object] = ["--train_file", file, "--model_name_or_path", model_folder, "--label_smoothing_factor"]
    settings += ["0.1", "--attn_implementation", "eager"]
    expected = [
        "label_smoothing_factor: 0.1 is not supported here",
        "attn_implementation: eager does not take the shared-prefix mask",
        f"{model_folder}: the model is a qwen2_audio, not a qwen2",
        f"{file}:line 1: ",
        f"{file}:line 4: ",
    ]
    if kind == "grpo":
        settings += ["--reward_funcs", "nice", "--reward_weights", "1", "2", "--dynamic_sampling", "-1"]
        expected += ["there is no reward 'nice'", "2 weights for 1 rewards", "dynamic_sampling: -1"]
    else:
        settings += ["--eval_file", tmp_path / "absent.jsonl"]
        expected.append(f"{tmp_path / 'absent.jsonl'}: there is no such file")
    lines = refusal(kind, *settings)
    assert len(lines) == len(expected)
    for part in expected:
        assert sum(part in line for line in lines) == 1, part


@pytest.mark.parametrize("kind", ALL)
@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (("--train_file", "absent.jsonl"), "absent.jsonl: there is no such file"),
        (("--model_name_or_path", "/absent"), "/absent: no model can be read there"),
        (("--dtype", "bfloat16"), "dtype: bfloat16 weights do not move at small learning rates"),
        (("--eval_strategy", "steps", "--eval_steps", "1"), "eval_steps: there is nothing to evaluate on"),
        (("--eval_strategy", "epoch"), "eval_strategy: there is nothing to evaluate on"),
        (("--eval_on_start", "true"), "eval_on_start: there is nothing to evaluate on"),
        (("--rope_parameters", '{"type": "yarn"}'), "rope_parameters: "),
        (("--rope_parameters", "[4.0]"), "rope_parameters: [4.0] is no mapping"),
        (("--load_in_4bit", "true"), "load_in_4bit: True is not supported here"),
    ],
)
def test_settings_that_cannot_be_carried_out(kind: str, settings: tuple[str, ...], said: str, refusal: Refusal) -> None:
    assert any(f"error: {said}" in line for line in refusal(kind, *settings))


def test_a_model_and_a_file_are_needed(
    text_set: Path, policy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = arguments("dpo", tmp_path / "run", text_set, policy)
    where = argv.index("--train_file")
    assert ENTRIES["dpo"][0].main(argv[:where]) == 2
    said = capsys.readouterr().err
    assert "train_file: no training data is given" in said and "model_name_or_path: no model is given" in said


# --- Models


def test_an_adapter_cannot_be_trained_further(refusal: Refusal, policy: Path, tmp_path: Path) -> None:
    adapter = tmp_path / "adapter"
    get_peft_model(load_policy(policy), LoraConfig(target_modules=["q_proj"])).save_pretrained(adapter)
    for kind in ALL:
        [line] = refusal(kind, "--model_name_or_path", adapter)
        assert f"{adapter}: an adapter cannot be trained further" in line and "merge_adapter" in line


@pytest.mark.parametrize("kind", ALL)
def test_a_tokenizer_of_another_model(kind: str, refusal: Refusal, policy: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(policy, tmp_path / "policy"))
    tokenizer = load_tokenizer(policy)
    vocabulary = len(tokenizer)
    tokenizer.add_tokens(["<one>", "<two>"])
    tokenizer.save_pretrained(folder)
    [line] = refusal(kind, "--model_name_or_path", folder)
    assert f"the tokenizer does not fit the model: {vocabulary + 2} tokens for {vocabulary} embeddings" in line


def test_a_reward_models_tokenizer_must_fit_too(refusal: Refusal, reward_model: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(reward_model, tmp_path / "reward"))
    tokenizer = load_tokenizer(reward_model)
    tokenizer.add_tokens(["<one>"])
    tokenizer.save_pretrained(folder)
    [line] = refusal("grpo", "--reward_funcs", "reward_model", "--reward_model_name_or_path", folder)
    assert f"{folder}: the tokenizer does not fit the model" in line


# --- Records


def lengthened(kind: str, record: dict[str, Any], words: int) -> dict[str, Any]:
    key = {"sft": "completion", "reward_model": "rejected", "dpo": "chosen", "grpo": "prompt"}[kind]
    [message] = record[key]
    return {**record, "id": "long", key: [{**message, "content": "plum " * words}]}  # 4 tokens a word


@pytest.mark.parametrize("kind", ALL)
def test_records_that_the_model_cannot_take(
    kind: str, refusal: Refusal, text_set: Path, tmp_path: Path, build: Build
) -> None:
    """The model has 512 positions; transformers would go on with ones that it was never trained at."""
    records = records_of(text_set, kind)
    file = write_lines(tmp_path / "train.jsonl", [*records[:8], lengthened(kind, records[8], 150)])
    [line] = refusal(kind, "--train_file", file)
    limit = 512 - 8 if kind == "grpo" else 512  # room for a completion of 8 tokens
    assert f"{file}: long: " in line and f"tokens are more than the {limit} that the model can take" in line
    assert (" beside 8 of an answer" in line) == (kind == "grpo")
    # with YaRN it takes twice as many
    longer = build(kind, "--train_file", str(file), "--rope_parameters", '{"rope_type": "yarn", "factor": 2.0}')
    assert len(longer.train_dataset) == 9
    assert longer.model.config.max_position_embeddings == 1024
    # or without the record
    trainer = build(kind, "--train_file", str(file), "--skip_bad_records", "true")
    assert len(trainer.train_dataset) == 8
    skipped = (Path(trainer.args.output_dir) / "skipped_records.json").read_text(encoding="utf-8")
    assert [f"error: {problem}" for problem in json.loads(skipped)] == [line]


def test_the_reference_of_grpo_has_the_policys_positions(build: Build, text_set: Path) -> None:
    """TRL loads it from the folder, without the run's own rope_parameters: it would not be the policy's start."""
    trainer = build("grpo", "--rope_parameters", '{"rope_type": "yarn", "factor": 2.0}')
    ids = torch.arange(5, 45)[None]
    with torch.no_grad():
        own, reference = (model.eval()(input_ids=ids).logits for model in (trainer.model, trainer.ref_model))
    torch.testing.assert_close(own, reference, rtol=0, atol=1e-6)
    assert trainer.ref_model.config.max_position_embeddings == 1024


@pytest.mark.parametrize("kind", [kind for kind in ALL if kind != "grpo"])
def test_held_out_records_are_checked_alike(
    kind: str, refusal: Refusal, text_set: Path, tmp_path: Path, build: Build
) -> None:
    records = records_of(text_set, kind)
    file = write_lines(tmp_path / "held_out.jsonl", [*records[:2], lengthened(kind, records[2], 150), {"prompt": 1}])
    others = [record for record in records if all(record["prompt"] != held_out["prompt"] for held_out in records[:2])]
    files = ["--train_file", str(write_lines(tmp_path / "train.jsonl", others)), "--eval_file", str(file)]
    lines = refusal(kind, *files)
    assert len(lines) == 2 and all(f"error: {file}" in line for line in lines)
    trainer = build(kind, *files, "--skip_bad_records", "true")
    assert len(trainer.eval_dataset) == 2


@pytest.mark.parametrize("kind", [kind for kind in ALL if kind != "grpo"])
def test_held_out_prompts_are_not_trained_on(kind: str, refusal: Refusal, text_set: Path, tmp_path: Path) -> None:
    record = records_of(text_set, kind)[0] | {"id": "again"}
    [line] = refusal(kind, "--eval_file", write_lines(tmp_path / "held_out.jsonl", [record]))
    assert f"{tmp_path / 'held_out.jsonl'}: again: its prompt is trained on (" in line


@pytest.mark.parametrize("kind", ALL)
@pytest.mark.parametrize("targets", ["q_proj", "no_such_proj other_proj"])
def test_modules_to_adapt_that_are_not_there(kind: str, targets: str, refusal: Refusal) -> None:
    """TRL makes a pattern of one name alone, which PEFT holds against whole names."""
    task = ["--lora_task_type", "SEQ_CLS"] if kind == "reward_model" else []
    [line] = refusal(kind, *LORA, *task, "--lora_target_modules", *targets.split())
    assert line.startswith("error: use_peft: ") and all(name in line for name in targets.split())


def test_max_length_above_what_the_model_takes(refusal: Refusal, text_set: Path, tmp_path: Path) -> None:
    records = records_of(text_set, "dpo")
    file = write_lines(tmp_path / "train.jsonl", [records[0], lengthened("dpo", records[1], 150)])
    for max_length, limit in (("100000", "512 that the model can take"), ("64", "64 that max_length allows")):
        assert f"more than the {limit}" in refusal("dpo", "--train_file", file, "--max_length", max_length)[-1]


# --- Folder and disk


@pytest.mark.parametrize("kind", ALL)
def test_too_little_space(kind: str, refusal: Refusal, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr("shutil.disk_usage", lambda path: usage(10**6, 10**6, 1000))
    [line] = refusal(kind)
    assert "2 more checkpoints, one being written and the final model need" in line


def test_another_run_in_the_folder(text_set: Path, policy: Path, tmp_path: Path, capsys: Any) -> None:
    argv = arguments("dpo", tmp_path / "run", text_set, policy)
    assert ENTRIES["dpo"][0].main(argv) == 0
    capsys.readouterr()
    others = [
        ("dpo", [*argv, "--beta", "0.7"]),
        ("dpo", [*argv, "--train_file", str(text_set / "pairs_held_out.jsonl")]),
    ]
    for kind, other in [*others, ("reward_model", argv), ("sft", arguments("sft", tmp_path / "run", text_set, policy))]:
        assert ENTRIES[kind][0].main(other) == 2
        assert f"{tmp_path / 'run'}: is the folder of another run" in capsys.readouterr().err
    assert ENTRIES["dpo"][0].main([*argv, "--beta", "0.7", "--overwrite", "true"]) == 0


def test_a_folder_whose_models_have_changed(
    text_set: Path, policy: Path, reward_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A resume would go on with another reference, judge or rubric than it began with."""
    start, judge, rubric = tmp_path / "start", tmp_path / "judge", tmp_path / "rubric.yaml"
    shutil.copytree(policy, start)
    shutil.copytree(reward_model, judge)
    rubric.write_text("parts: {a: {weight: 1.0, required: [fog]}}\n", encoding="utf-8")
    argv = [*arguments("grpo", tmp_path / "run", text_set, start), "--reward_funcs", "reward_model", "persona"]
    argv += ["--reward_model_name_or_path", str(judge), "--persona_rubric", str(rubric)]
    assert ENTRIES["grpo"][0].main(argv) == 0
    for changed in (start / "model.safetensors", judge / "model.safetensors", rubric):
        before = changed.read_bytes()
        if changed == rubric:
            rubric.write_text("parts: {a: {weight: 1.0, required: [tide]}}\n", encoding="utf-8")
        else:  # the last bits of one weight
            changed.write_bytes(before[:-1] + bytes([before[-1] ^ 1]))
        capsys.readouterr()
        assert ENTRIES["grpo"][0].main(argv) == 2
        named = changed if changed == rubric else changed.parent
        assert f"is the folder of another run: the content of {named} has changed" in capsys.readouterr().err
        changed.write_bytes(before)
    assert ENTRIES["grpo"][0].main(argv) == 0


@pytest.mark.parametrize("kind", ALL)
def test_settings_of_an_evaluation_without_one(kind: str, refusal: Refusal) -> None:
    [line] = refusal(kind, "--eval_steps", "2")
    assert line.startswith("error: eval_steps: there is nothing to evaluate on")


@pytest.mark.parametrize("kind", ALL)
def test_an_adapter_would_forget_rope_parameters(kind: str, refusal: Refusal) -> None:
    task = "SEQ_CLS" if kind == "reward_model" else "CAUSAL_LM"
    yarn = ("--rope_parameters", '{"rope_type": "yarn", "factor": 2.0}')
    [line] = refusal(kind, *LORA, "--lora_task_type", task, *yarn)
    assert "rope_parameters: an adapter does not keep them" in line


def test_lora_dropout_and_grpo(refusal: Refusal) -> None:
    [line] = refusal("grpo", *LORA, "--lora_dropout", "0.1")
    assert "lora_dropout: 0.1: completions would be scored by another model" in line
